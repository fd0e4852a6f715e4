//! `cargo xtask lint`: everything about the source that can be checked without running it, a line per check.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::clock::Stopwatch;
use crate::host::InstallArgs;
use crate::workspace::root;

mod purity;

/// Lines a source file may have; longer ones are split.
const MAX_LINES: usize = 600;

/// Whose dependencies are looked at: crates for other systems would be fetched for nothing.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// `cargo xtask lint`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    install: InstallArgs,
}

/// Checks everything, also after a failure.
///
/// # Errors
/// Where a tool cannot be started or the source cannot be read.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut fine = true;
    let mut check = |name: &str, problems: Result<Vec<String>>| -> Result<()> {
        let problems = problems.with_context(|| format!("cannot check {name}"))?;
        println!("lint {name}: {}", if problems.is_empty() { "ok" } else { "FAILED" });
        for problem in &problems {
            println!("{problem}");
        }
        fine &= problems.is_empty();
        Ok(())
    };
    let watch = Stopwatch::start();
    check("format", cargo(&["fmt", "--all", "--check"]))?;
    check("sources", sources(&root()))?;
    check("purity", purity())?;
    check("clippy", cargo(&["clippy", "--quiet", "--all-targets", "--locked", "--", "-D", "warnings"]))?;
    check("dependencies", deny(args.install.allowed()))?;
    match advisories()? {
        Some(problems) => check("advisories", Ok(problems))?,
        None => println!("lint advisories: NOT LOOKED AT: their database cannot be reached from here"),
    }
    println!("lint: {} in {watch}", if fine { "nothing to complain about" } else { "see above" });
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// That the judgement can reach no runtime, socket or clock.
fn purity() -> Result<Vec<String>> {
    let output =
        cargo_command(&["metadata", "--format-version", "1", "--locked", "--filter-platform", TARGET])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed ({})", output.status);
    }
    purity::problems(&output.stdout)
}

/// What cargo says, where it fails.
fn cargo(arguments: &[&str]) -> Result<Vec<String>> {
    let output = cargo_command(arguments).output().context("cannot start cargo")?;
    if output.status.success() {
        return Ok(Vec::new());
    }
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(vec![text.trim_end().to_owned()])
}

fn cargo_command(arguments: &[&str]) -> Command {
    let mut command = crate::workspace::cargo();
    command.args(arguments).stdin(Stdio::null());
    command
}

/// The version that the file deny.toml is written for.
const DENY_VERSION: &str = "^0.18";

/// Licences, sources and banned crates. Without the tool nothing was checked, which is a failure.
fn deny(install: bool) -> Result<Vec<String>> {
    if !root().join("deny.toml").exists() {
        return Ok(vec!["there is no deny.toml".to_owned()]);
    }
    if !has_deny() {
        if !install {
            return Ok(vec![format!(
                "cargo-deny is missing: cargo install --locked cargo-deny --version {DENY_VERSION}, or run this without --no-install"
            )]);
        }
        install_deny()?;
    }
    cargo(&["deny", "--offline", "check", "bans", "licenses", "sources"])
}

fn has_deny() -> bool {
    cargo_command(&["deny", "--version"]).output().is_ok_and(|output| output.status.success())
}

/// Compiles cargo-deny, once for this machine. Unoptimised: it runs for a second, and compiles for minutes otherwise.
fn install_deny() -> Result<()> {
    eprintln!("compiling cargo-deny, once, to check licences, sources and banned crates");
    let arguments =
        ["install", "cargo-deny", "--version", DENY_VERSION, "--locked", "--debug", "--no-default-features"];
    let status = cargo_command(&arguments)
        .env("CARGO_TARGET_DIR", root().join("target/tools"))
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("cargo {} failed ({status})", arguments.join(" "));
    }
    Ok(())
}

/// Known vulnerabilities; `None` where their database cannot be had.
fn advisories() -> Result<Option<Vec<String>>> {
    if !has_deny() {
        // Said already.
        return Ok(Some(Vec::new()));
    }
    let output = cargo_command(&["deny", "check", "advisories"]).output().context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(match output.status.success() {
        true => Some(Vec::new()),
        false if text.contains("failed to fetch advisory database") => None,
        false => Some(vec![text.trim_end().to_owned()]),
    })
}

fn sources(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.sort();
    let mut problems = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(root).unwrap_or(&path).display();
        problems.extend(complaints(&text).into_iter().map(|complaint| format!("  {name}{complaint}")));
    }
    Ok(problems)
}

/// All `.rs` files below a directory, except what is built and what is hidden.
fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if name == "target" || name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// What is wrong with one source file, each to follow its name.
fn complaints(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    // A program's attributes or a licence line may precede it, code may not.
    let first = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!"));
    if !first.is_some_and(|line| line.starts_with("//!")) {
        found.push(": does not open with //! (what it is, and why not otherwise)".to_owned());
    }
    let count = text.lines().count();
    if count > MAX_LINES {
        found.push(format!(": has {count} lines, more than {MAX_LINES}: split it"));
    }
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        // Spelled in two parts, so that this file does not complain about itself.
        if [concat!("#[al", "low("), concat!("#![al", "low(")].iter().any(|bare| line.starts_with(bare)) {
            found.push(format!(":{}: allow instead of expect with a reason", index + 1));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_file_has_no_complaints() {
        assert!(complaints("//! What it is.\nfn main() {}\n").is_empty());
        assert!(complaints("#![no_std]\n//! What it is.\n").is_empty());
    }

    #[test]
    fn each_rule_complains() {
        assert_eq!(complaints("fn main() {}\n").len(), 1);
        assert_eq!(complaints("").len(), 1);
        let long = format!("//! x\n{}", "\n".repeat(MAX_LINES));
        assert!(complaints(&long)[0].contains("601 lines"));
        let bare = concat!("//! x\n    #[al", "low(dead_code)]\n");
        assert_eq!(complaints(bare), [":2: allow instead of expect with a reason"]);
    }
}
