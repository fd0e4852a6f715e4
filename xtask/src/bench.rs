//! `cargo xtask bench …`: figures of the product beside what it is compared with, measured in one run.
//!
//! The measuring itself is a bench target of the crate that is measured; this installs what it is compared with,
//! builds and runs it, and says where the JSON is. Numbers are reported, never asserted: machines are noisy.

mod balancer;
mod coordinator;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::host::{self, Package};

/// What the agent is compared with.
const MONITOR: &[Package] =
    &[Package { name: "netdata-core", why: "comparing the agent's cost with that of a packaged monitor" }];

const NETDATA: &str = "/usr/sbin/netdata";

/// `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Cost per container sample, resident memory, and time to the alert
    Agent(Agent),
    /// Cost of 1,000 agents, and time from an alert to its decision
    Coordinator(coordinator::Args),
    /// Cost of a request, the pick alone, and tail latency, beside nginx and HAProxy
    Balancer(balancer::Args),
}

/// `cargo xtask bench agent`.
#[derive(clap::Args)]
struct Agent {
    /// Write target/bench/agent.json, too
    #[arg(long)]
    json: bool,
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
    /// Socket of an engine on this kernel with containers running, to compare with its stats stream
    #[arg(long)]
    docker: Option<PathBuf>,
    #[command(flatten)]
    install: host::InstallArgs,
}

/// Measures.
///
/// # Errors
/// When something is missing and may not be installed, or a measurement fails.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Agent(agent) => run_agent(agent),
        What::Coordinator(coordinator) => coordinator::run(coordinator, &root()),
        What::Balancer(balancer) => balancer::run(balancer, &root()),
    }
}

fn run_agent(agent: &Agent) -> Result<ExitCode> {
    host::ensure(MONITOR, agent.install.allowed())?;
    let json = root().join("target/bench/agent.json");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(["bench", "--package", "swarmguard-agent", "--bench", "agent", "--"]);
    command.arg(format!("--containers={}", agent.containers)).arg(format!("--netdata={NETDATA}"));
    for (name, value) in [("rounds", agent.rounds), ("seconds", agent.seconds), ("trials", agent.trials)] {
        command.arg(format!("--{name}={value}"));
    }
    if let Some(socket) = &agent.docker {
        command.arg("--docker").arg(socket);
    }
    if agent.json {
        command.arg("--json").arg(&json);
    }
    let status = command.status().context("cannot run cargo bench")?;
    if !status.success() {
        bail!("the measurement failed ({status})");
    }
    if agent.json {
        println!("written to {}", json.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
