//! Detection: from the first instant of load to the alert in the queue of a coordinator's judgement. Agent, QUIC and
//! ingest are the real ones; only what would be decided is left out.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use swarmguard_common::{
    domain::{BasisPoints, Condition, Edge},
    labels::Thresholds,
    wire::agent::{ToAgent, ToCoordinator},
};
use swarmguard_coordinator::{
    ingest::{Event, Ingest, Limits, Outbox, hub::Hub},
    metrics::Metrics,
};
use swarmguard_core::brain::AgentEvent;
use swarmguard_runtime::{
    clock,
    identity::{Identity, Source, Unit, issue::Authority},
    transport,
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use swarmguard_tests::figures::{Report, Row};

use crate::{
    groups::Groups,
    process::{Agent, Running},
};

/// The hold of 300 ms and two sampling intervals.
const DETECTED: &str = "<= 500";

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

/// Measures `trials` times, with the adaptive rate or the fixed one.
pub fn measure(trials: usize, adaptive: bool, root: &Path, report: &mut Report) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(detect(trials, adaptive, root, report))
}

async fn detect(trials: usize, adaptive: bool, root: &Path, report: &mut Report) -> Result<()> {
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
    let address = endpoint.local_addr()?;
    let cluster = manager.own.cluster.clone();
    let (ingest, mut inputs) =
        Ingest::new(Limits::default(), cluster, None, Arc::new(Hub::default()), Metrics::new());
    tokio::spawn(ingest.serve(endpoint));
    tokio::spawn(async move { while inputs.reports.recv().await.is_some() {} });
    let groups = Groups::make(root, 10)?;
    let mut burner = Burner::start(&groups.path(3))?;
    let rate = format!("--adaptive={adaptive}");
    let more = [rate.as_str(), &format!("--coordinators={address}"), &format!("--identity={worker}")];
    let _agent = Agent::start(root, &more)?;
    let mut coordinator = Coordinator::greet(inputs.events).await?;

    let mut took = Vec::new();
    for trial in 0..trials {
        // Trials fall on every point of the sampling interval.
        let pause = 700 + (trial as u64 * 37) % 100;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let began = clock::now();
        burner.turn("on")?;
        coordinator.wait_for(Edge::Raise).await?;
        took.push((clock::now() - began).as_secs_f64() * 1_000.0);
        burner.turn("off")?;
        coordinator.wait_for(Edge::Clear).await?;
    }
    let rate = if adaptive { "" } else { ".fixed_rate" };
    let rows = Row::percentiles(&format!("detect.ms{rate}"), "ms", DETECTED, took);
    rows.into_iter().for_each(|row| report.announce(row));
    Ok(())
}

/// The loop's end of the ingest.
struct Coordinator {
    events: mpsc::Receiver<Event>,
    outbox: watch::Sender<Outbox>,
}

impl Coordinator {
    /// Waits for the agent and tells it when to alert.
    async fn greet(mut events: mpsc::Receiver<Event>) -> Result<Self> {
        let event = timeout(PATIENCE, events.recv()).await.context("no agent")?.context("ingest ended")?;
        let Event::Up { input, outbox, .. } = event else {
            bail!("the agent did not introduce itself first")
        };
        let AgentEvent::Connected(hello) = input.what else { bail!("no hello") };
        // One thread uses as much of a CPU as it gets, which on a busy machine is not much; the threshold is low enough.
        let default = Thresholds {
            cpu_high: BasisPoints::share(50, u64::from(hello.cpu_millis)).context("no CPUs")?,
            ..Thresholds::default()
        };
        let thresholds =
            ToAgent::Thresholds { default, services: Default::default(), containers: Default::default() };
        outbox.send_modify(|out| out.thresholds = Some(Arc::new(thresholds)));
        Ok(Self { events, outbox })
    }

    async fn wait_for(&mut self, wanted: Edge) -> Result<()> {
        loop {
            let event =
                timeout(PATIENCE, self.events.recv()).await.context("no alert")?.context("ingest ended")?;
            let Event::Input(input) = event else { continue };
            match input.what {
                AgentEvent::Message(ToCoordinator::Alert(alert)) => {
                    self.outbox.send_modify(|out| out.acknowledge = alert.seq);
                    if alert.parts() == Some((Condition::CpuHigh, wanted)) {
                        return Ok(());
                    }
                }
                AgentEvent::Disconnected => bail!("the agent went away"),
                _ => {}
            }
        }
    }
}
