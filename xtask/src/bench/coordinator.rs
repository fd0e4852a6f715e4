//! `cargo xtask bench coordinator`: the program with 1,000 agents of 50 containers on loopback.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};

use crate::programs;

/// `cargo xtask bench coordinator`.
#[derive(clap::Args)]
pub struct Args {
    /// Write target/bench/coordinator.json, too
    #[arg(long)]
    json: bool,
    /// Agents
    #[arg(long, default_value_t = 1_000)]
    agents: u32,
    /// Containers of each
    #[arg(long, default_value_t = 50)]
    containers: u32,
    /// Windows in which the load is measured
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Length of each in seconds
    #[arg(long, default_value_t = 10)]
    window: u32,
    /// Measure this build of the program instead of one made for the measurement
    #[arg(long)]
    program: Option<PathBuf>,
    /// Alerts whose way to a decision is timed
    #[arg(long, default_value_t = 200)]
    alerts: u32,
}

/// Measures.
///
/// # Errors
/// When it cannot be built, or the measurement fails.
pub fn run(args: &Args, root: &Path) -> Result<ExitCode> {
    let json = root.join("target/bench/coordinator.json");
    // The program as the image has it.
    let mut command = programs::static_cargo("bench");
    command.args(["--package", "swarmguard-coordinator", "--bench", "coordinator", "--"]);
    let numbers = [
        ("agents", args.agents),
        ("containers", args.containers),
        ("rounds", args.rounds),
        ("window-s", args.window),
        ("alerts", args.alerts),
    ];
    for (name, value) in numbers {
        command.arg(format!("--{name}={value}"));
    }
    if let Some(program) = &args.program {
        command.arg(format!("--program={}", program.display()));
    }
    if args.json {
        command.arg(format!("--json={}", json.display()));
    }
    let status = command.status().context("cannot run cargo bench")?;
    if !status.success() {
        bail!("the measurement failed ({status})");
    }
    if args.json {
        println!("written to {}", json.display());
    }
    Ok(ExitCode::SUCCESS)
}
