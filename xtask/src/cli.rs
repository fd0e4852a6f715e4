//! `cargo xtask cli`: the command line as one static program, with completions and manual pages beside it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::programs::{self, Build, HOST};
use crate::workspace::root;

/// Shells whose completions are written.
const SHELLS: [&str; 5] = ["bash", "zsh", "fish", "elvish", "powershell"];

/// `cargo xtask cli`.
#[derive(clap::Args)]
pub struct Args {
    /// Where it goes
    #[arg(long, default_value = "target/cli")]
    out: PathBuf,
    /// How it is built
    #[arg(long, value_enum, default_value_t = Build::Release)]
    build: Build,
}

/// Builds it, and tries what it prints.
///
/// # Errors
/// Where cargo fails or a file cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let directory = programs::compile(&[("swarmguard-ctl", "swarmguard")], args.build, HOST)?;
    let out = root().join(&args.out);
    let program = programs::strip_into(&directory.join("swarmguard"), &out)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&program, mode)
        .with_context(|| format!("cannot set the mode of {}", program.display()))?;
    if args.build == Build::Release {
        let libraries = programs::Libraries::of(&program);
        ensure!(libraries.is_err(), "{} is not static: {libraries:?}", program.display());
    }
    for shell in SHELLS {
        let output = Command::new(&program).args(["completion", shell]).stderr(Stdio::inherit()).output();
        let output = output.with_context(|| format!("cannot run {}", program.display()))?;
        ensure!(output.status.success(), "swarmguard completion {shell} ended with {}", output.status);
        let file = out.join(format!("swarmguard.{shell}"));
        fs::write(&file, output.stdout).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let status = Command::new(&program).args(["man", "--out"]).arg(out.join("man")).status();
    ensure!(status.is_ok_and(|status| status.success()), "swarmguard man does not write its pages");
    let length = fs::metadata(&program).map_or(0, |known| known.len());
    println!("{} ({:.1} MiB)", program.display(), length as f64 / f64::from(1 << 20));
    Ok(ExitCode::SUCCESS)
}
