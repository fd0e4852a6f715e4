//! Detection: from the first instant of load to the alert at a coordinator, which this program plays.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use swarmguard_common::{
    clock,
    domain::{BasisPoints, Condition, Edge},
    identity::{Identity, Source, Unit, issue::Authority},
    labels::Thresholds,
    transport,
    wire::{
        agent::{ToAgent, ToCoordinator},
        frame,
    },
};
use tokio::time::timeout;

use crate::{
    groups::Groups,
    process::{Agent, Running},
    report::{Report, Row, Spread},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Enters a cgroup; then each line on the standard input starts or ends using a CPU.
pub fn burn(dir: &Path) -> Result<()> {
    std::fs::write(dir.join("cgroup.procs"), std::process::id().to_string())?;
    let on = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = std::sync::Arc::clone(&on);
    let burner = std::thread::spawn(move || {
        loop {
            if flag.load(std::sync::atomic::Ordering::Relaxed) {
                std::hint::spin_loop();
            } else {
                std::thread::park();
            }
        }
    });
    for line in std::io::stdin().lines() {
        on.store(line? == "on", std::sync::atomic::Ordering::Relaxed);
        burner.thread().unpark();
    }
    Ok(())
}

struct Burner {
    _running: Running,
    switch: ChildStdin,
}

impl Burner {
    fn start(dir: &Path) -> Result<Self> {
        let mut child: Child =
            Command::new(std::env::current_exe()?).arg("burn").arg(dir).stdin(Stdio::piped()).spawn()?;
        let switch = child.stdin.take().context("a pipe")?;
        Ok(Self { _running: Running(child), switch })
    }

    fn turn(&mut self, word: &str) -> Result<()> {
        writeln!(self.switch, "{word}").context("the burner has ended")
    }
}

/// Measures `trials` times.
pub fn measure(trials: usize, root: &Path, report: &mut Report) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(detect(trials, root, report))
}

async fn detect(trials: usize, root: &Path, report: &mut Report) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let authority = Authority::create("bench")?;
    let issue = |name: &str, unit| -> Result<Source> {
        let path = dir.path().join(name);
        std::fs::create_dir(&path)?;
        authority.issue(name, unit, &path)?;
        Ok(Source::Files(path))
    };
    let manager = Identity::load(&issue("manager1", Unit::Manager)?)?;
    let worker = issue("node1", Unit::Worker)?;
    let server = transport::server_config(manager.server_config()?)?;
    let endpoint = transport::bind(SocketAddr::from(([127, 0, 0, 1], 0)), Some(server))?;
    let groups = Groups::make(root, 10)?;
    let mut burner = Burner::start(&groups.path(3))?;
    let _agent = Agent::start(
        root,
        &[
            "--adaptive=true",
            &format!("--coordinators={}", endpoint.local_addr()?),
            &format!("--identity={worker}"),
        ],
    )?;
    let connection = timeout(PATIENCE, endpoint.accept()).await?.context("the endpoint closed")?.await?;
    let (mut send, mut receive) = connection.accept_bi().await?;
    let hello = frame::read::<ToCoordinator>(&mut receive).await?;
    frame::write(&mut send, &ToAgent::Welcome { version: "bench".into() }).await?;
    // One thread uses as much of a CPU as it gets, which on a busy machine is not much; the threshold is low enough.
    let Some(ToCoordinator::Hello(hello)) = hello else { bail!("no hello") };
    let default = Thresholds {
        cpu_high: BasisPoints::share(50, u64::from(hello.cpu_millis)).context("no CPUs")?,
        ..Thresholds::default()
    };
    let thresholds =
        ToAgent::Thresholds { default, services: Default::default(), containers: Default::default() };
    frame::write(&mut send, &thresholds).await?;

    let mut took = Spread::default();
    for trial in 0..trials {
        // Trials fall on every point of the sampling interval.
        let pause = 700 + (trial as u64 * 37) % 100;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let began = clock::now();
        burner.turn("on")?;
        wait_for(&mut receive, Edge::Raise).await?;
        took.add((clock::now() - began).as_secs_f64() * 1_000.0);
        burner.turn("off")?;
        wait_for(&mut receive, Edge::Clear).await?;
    }
    report.add(Row::new("detect.ms.p50", "ms", &took));
    report.add(Row::new("detect.ms.p99", "ms", &took).of(took.at(0.99)));
    Ok(())
}

async fn wait_for(stream: &mut quinn::RecvStream, wanted: Edge) -> Result<()> {
    loop {
        let message = timeout(PATIENCE, frame::read::<ToCoordinator>(stream)).await.context("no alert")??;
        match message {
            Some(ToCoordinator::Alert(alert)) if alert.parts() == Some((Condition::CpuHigh, wanted)) => {
                return Ok(());
            }
            Some(_) => {}
            None => bail!("the agent ended the stream"),
        }
    }
}
