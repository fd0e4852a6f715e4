//! `cargo xtask bench balancer`: the balancer beside nginx and HAProxy.
//!
//! Debian's packages of both would start services on port 80 when installed, so they are only unpacked, below
//! `target/bench/peers`, unless the machine has them already. That needs no root either.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::host;

/// What the balancer is compared with, and what loads it.
const PROGRAMS: [&str; 3] = ["nginx", "haproxy", "wrk"];

/// Their packages, and the libraries that a small machine may lack.
const PACKAGES: [&str; 10] = [
    "nginx",
    "haproxy",
    "wrk",
    "libcrypt1",
    "liblua5.3-0",
    "libluajit-5.1-2",
    "libpcre2-8-0",
    "libssl3",
    "libsystemd0",
    "zlib1g",
];

/// `cargo xtask bench balancer`.
#[derive(clap::Args)]
pub struct Args {
    /// Write target/bench/balancer.json, too
    #[arg(long)]
    json: bool,
    /// Rounds of everything that is compared
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Length of one measurement in seconds
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Only these parts: picks, throughput, latency
    #[arg(long, default_value = "picks,throughput,latency")]
    parts: String,
    #[command(flatten)]
    install: host::InstallArgs,
}

/// Measures.
///
/// # Errors
/// When something is missing and may not be fetched, or a measurement fails.
pub fn run(args: &Args, root: &Path) -> Result<ExitCode> {
    let peers = root.join("target/bench/peers");
    let unpacked = provide(&peers, args.install.allowed())?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args([
        "bench",
        "--package",
        "swarmguard-balancer",
        "--bench",
        "balancer",
        "--",
    ]);
    command.arg(format!("--rounds={}", args.rounds)).arg(format!("--seconds={}", args.seconds));
    command.arg(format!("--parts={}", args.parts));
    command.env("PATH", path(&peers, unpacked)?);
    if unpacked {
        command.env("LD_LIBRARY_PATH", peers.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH)));
    }
    let json = root.join("target/bench/balancer.json");
    if args.json {
        command.arg("--json").arg(&json);
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

/// The search path; `/usr/sbin` belongs to it, which not every user has.
fn path(peers: &Path, unpacked: bool) -> Result<OsString> {
    let own = ["usr/sbin", "usr/bin"].map(|dir| peers.join(dir));
    let own = own.into_iter().filter(|_| unpacked);
    let known = std::env::var_os("PATH").unwrap_or_default();
    let all: Vec<PathBuf> = own.chain(std::env::split_paths(&known)).chain(["/usr/sbin".into()]).collect();
    std::env::join_paths(all).context("the search path cannot be written")
}

/// Makes sure that all programs are there; true where they were unpacked instead of installed.
fn provide(peers: &Path, allowed: bool) -> Result<bool> {
    let installed = |program: &&str| {
        let dirs = ["/usr/sbin", "/usr/bin", "/usr/local/bin"];
        dirs.iter().any(|dir| Path::new(dir).join(program).exists())
    };
    if PROGRAMS.iter().all(|program| installed(&program)) {
        return Ok(false);
    }
    if peers.join("usr/sbin/nginx").exists() && peers.join("usr/bin/wrk").exists() {
        return Ok(true);
    }
    let packages = PACKAGES.join(" ");
    if !allowed {
        bail!(
            "nginx, haproxy and wrk are missing: run without --no-install to unpack these below {}: {packages}",
            peers.display()
        );
    }
    eprintln!("unpacking from Debian, nothing is installed: {packages}");
    fs::create_dir_all(peers)?;
    run_in(peers, "apt-get", &[&["download", "-qq"], &PACKAGES[..]].concat())?;
    for file in fs::read_dir(peers)? {
        let file = file?.path();
        if file.extension().is_some_and(|it| it == "deb") {
            let name = file.to_string_lossy().into_owned();
            run_in(peers, "dpkg-deb", &["-x", &name, "."])?;
            fs::remove_file(&file)?;
        }
    }
    Ok(true)
}

fn run_in(dir: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .current_dir(dir)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
