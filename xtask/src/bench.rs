//! `cargo xtask bench …`: figures of the product beside what it is compared with, measured in one run.
//!
//! The measuring itself is a bench target of the crate that is measured (migrations: a command of `swarmguard-e2e`); this
//! installs what it is compared with, builds and runs it, and says where the JSON is. Numbers are reported, never asserted: machines are noisy.

mod agent;
mod balancer;
mod coordinator;
mod judgement;
mod migrate;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

/// `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Cost per container sample, resident memory, and time to the alert
    Agent(agent::Args),
    /// Cost of 1,000 agents, and time from an alert to its decision
    Coordinator(coordinator::Args),
    /// Cost of a request, the pick alone, and tail latency, beside nginx and HAProxy
    Balancer(balancer::Args),
    /// What the judgement is worth in modelled clusters, beside the rules of other projects
    Judgement(judgement::Args),
    /// What hostile clients cost the balancer and its other clients, beside nginx and HAProxy
    Hostile(balancer::HostileArgs),
    /// Migrations and scale-outs under load on a real Swarm, beside the same surge by bare API calls
    Migrate(migrate::Args),
}

/// Measures.
///
/// # Errors
/// When something is missing and may not be installed, or a measurement fails.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        What::Agent(agent) => agent::run(agent, &root()),
        What::Coordinator(coordinator) => coordinator::run(coordinator, &root()),
        What::Balancer(balancer) => balancer::run(balancer, &root()),
        What::Judgement(judgement) => judgement::run(judgement, &root()),
        What::Hostile(hostile) => balancer::run_hostile(hostile, &root()),
        What::Migrate(migrate) => migrate::run(migrate, &root()),
    }
}

/// Lets `command` find nginx and HAProxy, for tests that compare with them.
///
/// # Errors
/// When one of them is missing and may not be fetched.
pub fn with_proxies(command: &mut std::process::Command, allowed: bool) -> Result<()> {
    balancer::with_peers(command, &root(), allowed)
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
