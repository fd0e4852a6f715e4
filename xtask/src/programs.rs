//! The product's programs: how they are compiled, where they are then, and what they need to run elsewhere.
//!
//! Twice over: what is shipped is optimised and static; what tests and demos run is built as `cargo test` builds it, so
//! that nothing is compiled twice, with this machine's C library laid beside it. On two cores that is the difference
//! between eight minutes and next to none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::workspace::{cargo, root};

/// How programs are built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Build {
    /// Optimised and static: what is shipped
    #[default]
    Release,
    /// As the tests are built: soon compiled, several times slower
    Dev,
}

impl Build {
    /// Where images of such programs are kept, below the workspace.
    pub fn images(self) -> &'static Path {
        Path::new(match self {
            Self::Release => "target/images",
            Self::Dev => "target/images/dev",
        })
    }

    /// The name of this build in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dev => "development",
        }
    }
}

/// What `--target` is where none is given.
#[cfg(target_arch = "x86_64")]
pub const HOST: &str = "x86_64-unknown-linux-gnu";
#[cfg(target_arch = "aarch64")]
pub const HOST: &str = "aarch64-unknown-linux-gnu";
#[cfg(target_arch = "arm")]
pub const HOST: &str = "armv7-unknown-linux-gnueabihf";

/// Where a program for this machine is once it was built.
pub fn program(name: &str, build: Build) -> PathBuf {
    directory(build, HOST).join(name)
}

fn directory(build: Build, target: &str) -> PathBuf {
    match build {
        Build::Release => root().join("target/static").join(target).join("release"),
        Build::Dev => root().join("target/debug"),
    }
}

/// Builds the binaries named, as (package, binary), in one go and returns the directory they are in.
///
/// # Errors
/// Where cargo fails.
pub fn compile(binaries: &[(&str, &str)], build: Build, target: &str) -> Result<PathBuf> {
    let command = match build {
        Build::Release => static_cargo_for("build", target),
        Build::Dev => {
            ensure!(target == HOST, "--build dev is for this machine only, not for {target}");
            let mut command = cargo();
            command.args(["build", "--locked"]);
            command
        }
    };
    eprintln!("programs: {} build", build.name());
    run(command, binaries)?;
    Ok(directory(build, target))
}

/// Has `command`, a `cargo build`, build the binaries named, as (package, binary), in one go.
///
/// # Errors
/// Where cargo fails.
pub fn run(mut command: Command, binaries: &[(&str, &str)]) -> Result<()> {
    let mut packages: Vec<&str> = binaries.iter().map(|(package, _)| *package).collect();
    packages.dedup();
    for package in packages {
        command.args(["--package", package]);
    }
    for (_, binary) in binaries {
        command.args(["--bin", binary]);
    }
    let names: Vec<&str> = binaries.iter().map(|(_, binary)| *binary).collect();
    eprintln!("programs: building {}", names.join(", "));
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "cargo build of {} failed ({status})", names.join(", "));
    Ok(())
}

/// A cargo command that makes static release programs for this machine.
pub fn static_cargo(verb: &str) -> Command {
    static_cargo_for(verb, HOST)
}

/// The same for another target.
pub fn static_cargo_for(verb: &str, target: &str) -> Command {
    static_cargo_at(&root(), verb, target)
}

/// The same in another copy of the work tree.
pub fn static_cargo_at(root: &Path, verb: &str, target: &str) -> Command {
    let mut cargo = cargo();
    cargo.current_dir(root);
    // A directory of its own: other flags in the usual one would rebuild everything at every turn.
    let dir = root.join("target/static");
    // Not `--release`, which `cargo bench` does not know.
    cargo.args([verb, "--profile", "release", "--locked", "--target", target, "--target-dir"]).arg(dir);
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))
        .unwrap_or_default();
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Clink-arg=-Wl,--build-id=none".to_owned(),
        // The binary, so the image's ID, must not depend on where the work tree lies.
        format!("--remap-path-prefix={}=/swarmguard", root.display()),
        format!("--remap-path-prefix={home}=/cargo"),
    ];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")).env_remove("RUSTFLAGS");
    cargo
}

/// A program's content without its debug information, which would be most of what nodes have to load. Where there is no
/// `strip`, all of it.
///
/// # Errors
/// Where the program cannot be read.
pub fn stripped(program: &Path) -> Result<Vec<u8>> {
    let place = tempfile::tempdir().context("cannot make a temporary directory")?;
    let small = place.path().join("program");
    let status = Command::new("strip").arg("-o").arg(&small).arg(program).status();
    let read = if status.is_ok_and(|status| status.success()) { small.as_path() } else { program };
    fs::read(read).with_context(|| format!("cannot read {}", program.display()))
}

/// A copy of a program without its debug information, in `dir`, under its own name.
///
/// # Errors
/// Where it cannot be read or the copy not be written.
pub fn strip_into(program: &Path, dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let copy = dir.join(program.file_name().context("a program without a name")?);
    fs::write(&copy, stripped(program)?).with_context(|| format!("cannot write {}", copy.display()))?;
    Ok(copy)
}

/// What a dynamic program needs beside it: its loader and its libraries, each where it is on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Libraries {
    /// The program that starts it.
    pub loader: PathBuf,
    /// Its libraries, the loader not among them.
    pub files: Vec<PathBuf>,
}

impl Libraries {
    /// Those of a program on this machine.
    ///
    /// # Errors
    /// Where `ldd` cannot be run or names no loader.
    pub fn of(program: &Path) -> Result<Self> {
        let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (mut loader, mut files) = (None, Vec::new());
        for (name, path) in text.lines().filter_map(library) {
            if name == path { loader = Some(path.into()) } else { files.push(path.into()) }
        }
        let loader = loader.with_context(|| format!("ldd {}: no loader in {text:?}", program.display()))?;
        Ok(Libraries { loader, files })
    }
}

/// The name of a library and where it is, from a line of `ldd`. The loader is named by its path; what the kernel brings is
/// nowhere.
fn library(line: &str) -> Option<(&str, &str)> {
    let (line, _) = line.trim().rsplit_once(" (0x")?;
    let (name, path) = line.split_once(" => ").unwrap_or((line, line));
    path.starts_with('/').then_some((name, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_told_apart() {
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007ffd)"), None);
        let libc = "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1c)";
        assert_eq!(library(libc), Some(("libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6")));
        let loader = "/lib64/ld-linux-x86-64.so.2";
        assert_eq!(library(&format!("\t{loader} (0x00007f1c)")), Some((loader, loader)));
        assert_eq!(library("\tlibz.so.1 => not found"), None);
    }

    #[test]
    fn this_program_has_a_loader_and_a_c_library() {
        let libraries = Libraries::of(&std::env::current_exe().expect("a path")).expect("ldd");
        assert!(libraries.loader.exists(), "{libraries:?}");
        assert!(libraries.files.iter().any(|file| file.ends_with("libc.so.6")), "{libraries:?}");
    }
}
