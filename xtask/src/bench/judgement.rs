//! `cargo xtask bench judgement`: the real judgement in a closed loop with modelled clusters and workloads, beside the rules
//! of other projects (`docs/judgement.md`).

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use crate::workspace::cargo;

/// `cargo xtask bench judgement`.
#[derive(clap::Args)]
pub struct Args {
    /// Write target/bench/judgement.json, too
    #[arg(long)]
    json: bool,
    /// Scenarios by name, from tests/scenarios/judgement; all unless said otherwise. May be given several times
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
    /// A scenario of your own. May be given several times
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Seeds of each scenario
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: u64,
    /// Who decides: swarmguard, hpa, kpa, prototype, lownodeload, nothing; all unless said otherwise. May be given several
    /// times
    #[arg(long = "policy", value_name = "NAME")]
    policies: Vec<String>,
    /// Print what was decided and refused in the first seed
    #[arg(long)]
    verbose: bool,
}

/// Plays. Success only where every bound is kept that is not known to be missed.
///
/// # Errors
/// When it cannot be built or started.
pub fn run(args: &Args, root: &Path) -> Result<ExitCode> {
    let bench = root.join("target/bench");
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", "swarmguard-gym", "--"]);
    command.arg("--dir").arg(root.join("tests/scenarios/judgement"));
    command.arg("--plots").arg(bench.join("judgement"));
    command.arg(format!("--seeds={}", args.seeds));
    if args.json {
        command.arg("--json").arg(bench.join("judgement.json"));
    }
    for (flag, values) in [("--scenario", &args.scenarios), ("--policy", &args.policies)] {
        for value in values {
            command.arg(flag).arg(value);
        }
    }
    for file in &args.files {
        let file = std::path::absolute(file).with_context(|| format!("cannot find {}", file.display()))?;
        command.arg("--file").arg(file);
    }
    if args.verbose {
        command.arg("--verbose");
    }
    let status = command.status().context("cannot run cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
