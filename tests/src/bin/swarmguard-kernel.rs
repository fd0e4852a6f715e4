//! `swarmguard-kernel`: the kernel tier, to be run as root on a machine of its own with cgroup v2; `cargo xtask test`
//! runs it in a virtual machine.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use swarmguard_tests::kernel::load::{Load, enter, work};
use swarmguard_tests::kernel::play;

#[derive(Parser)]
#[command(name = "swarmguard-kernel", version, about = "Checks the agent's figures against known loads")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Play all checks
    Check {
        /// The agent's program
        #[arg(long)]
        agent: PathBuf,
    },
    /// Be a load in a cgroup; the checks start this
    Load {
        /// Cgroup to enter
        #[arg(long)]
        cgroup: PathBuf,
        /// Network namespace to enter, by the name that `ip netns` gave it
        #[arg(long)]
        namespace: Option<String>,
        #[command(subcommand)]
        load: Load,
    },
}

fn main() -> Result<ExitCode> {
    let command = Cli::parse().command;
    if let Command::Load { cgroup, namespace, .. } = &command {
        // No thread exists yet: one started earlier would stay in the old cgroup and namespace.
        enter(cgroup, namespace.as_deref())?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(run(command))
}

async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Load { load, .. } => work(&load).await.map(|()| ExitCode::SUCCESS),
        Command::Check { agent } => {
            let (passed, failed) = play(&agent).await?;
            println!("kernel: {passed} passed, {failed} failed");
            Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
