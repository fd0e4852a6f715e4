//! `cargo xtask fuzz`: every reader of foreign text against bytes that libFuzzer makes up, for as long as one likes.
//!
//! Needs rustup's nightly, a C++ compiler and cargo-fuzz, which this installs. Without them the same readers are tried
//! by `cargo test -p swarmguard-agent --test hostile`, on stable and for some seconds.

use std::fs;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::host::{self, Package};
use crate::image::root;

const COMPILER: &[Package] = &[Package { name: "g++", why: "compiling libFuzzer" }];

/// `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Args {
    /// Targets; all where none is named
    targets: Vec<String>,
    /// Seconds for each
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    #[command(flatten)]
    install: host::InstallArgs,
}

/// Fuzzes one target after the other, and stops at the first finding.
///
/// # Errors
/// Where a tool is missing and may not be installed, or a target is unknown.
pub fn run(args: &Args) -> Result<ExitCode> {
    let nightly = nightly(&["rustc", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !nightly.is_ok_and(|status| status.success()) {
        bail!("libFuzzer needs a nightly compiler: rustup toolchain install nightly");
    }
    host::ensure(COMPILER, args.install.allowed())?;
    cargo_fuzz(args.install.allowed())?;
    let known = targets()?;
    let wanted = if args.targets.is_empty() { &known } else { &args.targets };
    for target in wanted {
        ensure!(known.contains(target), "there is no target {target}: known are {}", known.join(", "));
    }
    for target in wanted {
        let (corpus, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
        fs::create_dir_all(root().join(&corpus)).with_context(|| format!("cannot make {corpus}"))?;
        let limit = format!("-max_total_time={}", args.seconds);
        let status = nightly_cargo(&["fuzz", "run", target, &corpus, &seeds, "--", &limit, "-timeout=10"]);
        if !status?.success() {
            println!("{target}: found something; put the input into {seeds} once it is mended");
            return Ok(ExitCode::FAILURE);
        }
        println!("{target}: nothing found in {} s", args.seconds);
    }
    Ok(ExitCode::SUCCESS)
}

fn cargo_fuzz(install: bool) -> Result<()> {
    let there = nightly(&["cargo", "fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    ensure!(install, "cargo-fuzz is missing: cargo install --locked cargo-fuzz");
    eprintln!("installing cargo-fuzz, which runs the fuzz targets");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let status =
        command.args(["install", "--locked", "cargo-fuzz"]).status().context("cannot start cargo")?;
    ensure!(status.success(), "cargo install --locked cargo-fuzz failed ({status})");
    Ok(())
}

/// The names of the programs in `fuzz/fuzz_targets`.
fn targets() -> Result<Vec<String>> {
    let directory = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let names = entries
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".rs")?.to_owned()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

fn nightly(words: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly"]).args(words).current_dir(root());
    // Those of the compiler that runs this.
    for name in ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    command
}

fn nightly_cargo(words: &[&str]) -> Result<std::process::ExitStatus> {
    let words: Vec<&str> = std::iter::once("cargo").chain(words.iter().copied()).collect();
    nightly(&words).status().context("cannot start rustup")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_seeds() {
        let all = targets().expect("the targets are there");
        assert!(all.len() >= 5, "{all:?}");
        for target in all {
            let seeds = root().join("fuzz/seeds").join(&target);
            assert!(fs::read_dir(&seeds).is_ok_and(|mut files| files.next().is_some()), "{target}");
        }
    }
}
