//! `cargo xtask bench agent`: what the agent costs and how fast it alerts, beside a bare loop of reads, netdata, and
//! the statistics of an engine that this starts for the purpose.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};

use crate::cluster::{self, Cluster};
use crate::host;
use crate::image::{self, Which};
use crate::programs::Build;
use crate::progress::Progress;

/// What the agent is compared with, and the libraries that a small installation lacks. Unpacked, for the package starts
/// a service where it is installed.
const NETDATA: [&str; 7] =
    ["netdata-core", "libjson-c5", "liblz4-1", "libssl3", "libuuid1", "libuv1", "zlib1g"];

const INSTALLED_NETDATA: &str = "/usr/sbin/netdata";

/// The cluster of one node whose engine is measured.
const CLUSTER: &str = "bench-agent";
const NODE: &str = "node1";

/// `cargo xtask bench agent`.
#[derive(clap::Args)]
pub struct Args {
    /// Write target/bench/agent.json, too
    #[arg(long)]
    json: bool,
    /// What is measured, of overhead, packets, births, connect, monitor, engine, detect
    #[arg(long, default_value = "overhead,packets,births,connect,monitor,engine,detect")]
    only: String,
    /// Numbers of containers
    #[arg(long, default_value = "10,100,500")]
    containers: String,
    /// Rounds of everything that is compared
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Length of one measurement in seconds
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Trials of detection
    #[arg(long, default_value_t = 100)]
    trials: u32,
    /// Containers of the engine that is started
    #[arg(long, default_value_t = 40)]
    engine_containers: u32,
    /// Socket of another engine on this kernel with containers running; none is started then
    #[arg(long)]
    docker: Option<PathBuf>,
    /// Measure this build of the agent instead of one made for the measurement
    #[arg(long)]
    program: Option<PathBuf>,
    #[command(flatten)]
    install: host::InstallArgs,
}

/// Measures.
///
/// # Errors
/// When something is missing and may not be installed, or a measurement fails.
pub fn run(args: &Args, root: &Path) -> Result<ExitCode> {
    let wants = |part: &str| args.only.split(',').any(|word| word == part);
    let netdata = wants("monitor").then(|| netdata(root, args.install.allowed())).transpose()?;
    // Without them the agent would be measured reading files.
    crate::ebpf::build(args.install.allowed(), false)?;
    let engine = match &args.docker {
        None if wants("engine") => Some(Engine::start(args.engine_containers, args.install.allowed())?),
        _ => None,
    };
    let json = root.join("target/bench/agent.json");
    let mut command = crate::workspace::cargo();
    command.args(["bench", "--package", "swarmguard-agent", "--bench", "agent", "--"]);
    command.arg(format!("--only={}", args.only)).arg(format!("--containers={}", args.containers));
    if let Some(netdata) = netdata {
        command.arg("--netdata").arg(netdata);
    }
    for (name, value) in [("rounds", args.rounds), ("seconds", args.seconds), ("trials", args.trials)] {
        command.arg(format!("--{name}={value}"));
    }
    if let Some(program) = &args.program {
        command.arg("--agent").arg(program);
    }
    match &engine {
        Some(engine) => {
            let socket = std::path::absolute(engine.0.socket(NODE)?).context("no working directory")?;
            command.arg("--docker").arg(socket).arg(format!("--engine-cgroup={CLUSTER}-{NODE}"));
        }
        None => {
            if let Some(socket) = &args.docker {
                command.arg("--docker").arg(socket);
            }
        }
    }
    if args.json {
        command.arg("--json").arg(&json);
    }
    let status = command.status().context("cannot run cargo bench");
    let down = engine.map_or(Ok(()), |engine| engine.0.down());
    let status = status?;
    down?;
    if !status.success() {
        bail!("the measurement failed ({status})");
    }
    if args.json {
        println!("written to {}", json.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Where netdata is.
fn netdata(root: &Path, install: bool) -> Result<PathBuf> {
    let installed = PathBuf::from(INSTALLED_NETDATA);
    if installed.exists() {
        return Ok(installed);
    }
    let place = std::path::absolute(root.join("target/bench/netdata")).context("no working directory")?;
    let program = place.join("usr/sbin/netdata");
    if !program.exists() {
        host::unpack(&NETDATA, "netdata, which the agent is compared with,", &place, install)?;
    }
    Ok(program)
}

/// A native engine with containers that do nothing.
struct Engine(Cluster);

impl Engine {
    fn start(containers: u32, install: bool) -> Result<Self> {
        let images = image::build_default(&[Which::WebStress], Build::Release, install)?;
        let image = images.first().context("no image was built")?;
        let options = cluster::Options {
            name: CLUSTER.to_owned(),
            nodes: 1,
            native: true,
            install,
            ..cluster::Options::default()
        };
        let engine = Self(cluster::up(&options, &Progress::start("engine"))?);
        match engine.fill(containers, image) {
            Ok(()) => Ok(engine),
            Err(error) => {
                engine.0.down()?;
                Err(error)
            }
        }
    }

    fn fill(&self, containers: u32, image: &image::Image) -> Result<()> {
        self.0.load_image(&image.archive)?;
        for number in 0..containers {
            let output = self.0.exec(NODE, &["docker", "run", "--detach", "--network=none", &image.id])?;
            ensure!(
                output.status == 0,
                "docker run of container {number} ended with {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }
}
