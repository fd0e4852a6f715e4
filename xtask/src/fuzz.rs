//! `cargo xtask fuzz`: every reader of foreign text against bytes that libFuzzer makes up, for as long as one likes.
//!
//! With the compiler of everything else, not a nightly one: rustup's released toolchains bring the address sanitizer's
//! runtime, and `RUSTC_BOOTSTRAP` lets them take the flags. Needs a C++ compiler and cargo-fuzz, which this installs.
//! Without them the same readers are tried by `cargo test -p swarmguard-agent --test hostile`, for some seconds.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::host::{self, Package};
use crate::workspace::root;

/// The newest that Rust 1.95 compiles.
const CARGO_FUZZ: &str = "0.13.2";

/// Seconds that one input may take; every reader is linear in what it is given.
const SLOWEST_S: u32 = 10;

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
/// Where a tool is missing and may not be installed, a target is unknown, or the targets do not compile.
pub fn run(args: &Args) -> Result<ExitCode> {
    let known = targets()?;
    let wanted = if args.targets.is_empty() { &known } else { &args.targets };
    for target in wanted {
        ensure!(known.contains(target), "there is no target {target}: known are {}", known.join(", "));
    }
    host::ensure(COMPILER, args.install.allowed())?;
    let fuzz = Fuzz { bin: cargo_fuzz(args.install.allowed())?, sanitizer: sanitizer()? };
    // First, so that a finding is told from targets that do not compile.
    for target in wanted {
        let status = fuzz.command("build", target).status().context("cannot start cargo")?;
        ensure!(status.success(), "fuzz target {target} does not compile ({status})");
    }
    for target in wanted {
        let (corpus, seeds) = (format!("fuzz/corpus/{target}"), format!("fuzz/seeds/{target}"));
        fs::create_dir_all(root().join(&corpus)).with_context(|| format!("cannot make {corpus}"))?;
        let limits = [format!("-max_total_time={}", args.seconds), format!("-timeout={SLOWEST_S}")];
        let status = fuzz.command("run", target).args([&corpus, &seeds]).arg("--").args(limits).status();
        if !status.context("cannot start cargo")?.success() {
            println!("{target}: found something; put the input into {seeds} once it is mended");
            return Ok(ExitCode::FAILURE);
        }
        println!("{target}: nothing found in {} s", args.seconds);
    }
    Ok(ExitCode::SUCCESS)
}

/// How cargo-fuzz is called.
struct Fuzz {
    bin: PathBuf,
    sanitizer: &'static str,
}

impl Fuzz {
    fn command(&self, what: &str, target: &str) -> Command {
        let mut command = Command::new(cargo());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(self.bin.clone()).chain(std::env::split_paths(&path));
        // A directory with a colon in its name was none on the path before either.
        command.env("PATH", std::env::join_paths(path).unwrap_or_default());
        command.current_dir(root()).args(["fuzz", what, target, "--sanitizer", self.sanitizer]);
        command.env("RUSTC_BOOTSTRAP", "1");
        // cargo-fuzz sets its own flags, and has a target directory of its own.
        for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR"] {
            command.env_remove(name);
        }
        command
    }
}

/// The address sanitizer where the compiler brings its runtime, which that of a distribution may not.
fn sanitizer() -> Result<&'static str> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "target-libdir"]).stderr(Stdio::inherit()).output();
    let output = output.context("cannot start rustc")?;
    let dir = String::from_utf8(output.stdout).context("rustc names a directory that is no text")?;
    if has_runtime(Path::new(dir.trim())) {
        return Ok("address");
    }
    eprintln!("this compiler has no address sanitizer (rustup's have): panics are found, bad memory is not");
    Ok("none")
}

fn has_runtime(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().ends_with("_rt.asan.a"))
}

/// The directory with cargo-fuzz, which is compiled once.
fn cargo_fuzz(install: bool) -> Result<PathBuf> {
    let tools = root().join(format!("target/tools/cargo-fuzz-{CARGO_FUZZ}"));
    let bin = tools.join("bin");
    let there = Command::new(bin.join("cargo-fuzz"))
        .args(["fuzz", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if there.is_ok_and(|status| status.success()) {
        return Ok(bin);
    }
    ensure!(
        install,
        "cargo-fuzz is missing: run `cargo xtask fuzz` without --no-install once, which compiles it"
    );
    eprintln!(
        "compiling cargo-fuzz {CARGO_FUZZ} from crates.io into {}: it runs the fuzz targets",
        tools.display()
    );
    let mut command = Command::new(cargo());
    command.args([
        "install",
        "cargo-fuzz",
        "--version",
        CARGO_FUZZ,
        "--locked",
        "--quiet",
        "--no-track",
        "--root",
    ]);
    command.arg(&tools).arg("--target-dir").arg(tools.join("build"));
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        command.env_remove(name);
    }
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "cargo install cargo-fuzz failed ({status})");
    // Objects that nothing needs again.
    let _ = fs::remove_dir_all(tools.join("build"));
    Ok(bin)
}

fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
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
