//! `cargo xtask bench balancer`: the balancer beside nginx and HAProxy.
//!
//! Debian's packages of both would start services on port 80 when installed, so they are only unpacked, below
//! `target/bench/peers`, unless the machine has them already. That needs no root either.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::host;
use crate::programs::{self, Build};

const BALANCER: &str = "swarmguard-balancer";

/// What the balancer is compared with, and what loads it.
const PROGRAMS: [&str; 4] = ["nginx", "haproxy", "wrk", "h2load"];

/// Where they are once unpacked.
const UNPACKED: [&str; 4] = ["usr/sbin/nginx", "usr/sbin/haproxy", "usr/bin/wrk", "usr/bin/h2load"];

/// Their packages, and the libraries that a small machine may lack.
const PACKAGES: [&str; 18] = [
    "nginx",
    "haproxy",
    "wrk",
    "nghttp2-client",
    "libc-ares2",
    "libcrypt1",
    "libev4",
    "libjansson4",
    "libjemalloc2",
    "liblua5.3-0",
    "libluajit-5.1-2",
    "libnghttp2-14",
    "libpcre2-8-0",
    "libssl3",
    "libsystemd0",
    "zlib1g",
    "libopentracing-c-wrapper0",
    "libopentracing1",
];

/// `cargo xtask bench balancer`.
#[derive(clap::Args)]
pub struct Args {
    /// Write target/bench/balancer.json, too
    #[arg(long)]
    json: bool,
    /// Rounds of everything that is compared
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Length of one measurement in seconds
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Only these parts: picks, throughput, latency
    #[arg(long, default_value = "picks,throughput,latency")]
    parts: String,
    /// Measure this build of the balancer instead of the image's
    #[arg(long)]
    program: Option<PathBuf>,
    #[command(flatten)]
    install: host::InstallArgs,
}

/// `cargo xtask bench hostile`.
#[derive(clap::Args)]
pub struct HostileArgs {
    /// Write target/bench/hostile.json, too
    #[arg(long)]
    json: bool,
    /// Rounds of everything that is compared
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Length of one attack in seconds
    #[arg(long, default_value_t = 6)]
    seconds: u32,
    /// Attack this build of the balancer instead of the image's
    #[arg(long)]
    program: Option<PathBuf>,
    #[command(flatten)]
    install: host::InstallArgs,
}

/// Measures.
///
/// # Errors
/// When something is missing and may not be fetched, or a measurement fails.
pub fn run(args: &Args, root: &Path) -> Result<ExitCode> {
    measure(args, "balancer", root)
}

/// Measures under attack.
///
/// # Errors
/// When something is missing and may not be fetched, or a measurement fails.
pub fn run_hostile(args: &HostileArgs, root: &Path) -> Result<ExitCode> {
    let HostileArgs { json, rounds, seconds, ref program, install } = *args;
    let all = Args { json, rounds, seconds, parts: "hostile".into(), program: program.clone(), install };
    measure(&all, "hostile", root)
}

fn measure(args: &Args, name: &str, root: &Path) -> Result<ExitCode> {
    let program = match &args.program {
        Some(program) => program.clone(),
        // As the image has it. What measures it is compiled as the tests are: its own CPU time is not counted.
        None => programs::compile(&[(BALANCER, BALANCER)], Build::Release, programs::HOST)?.join(BALANCER),
    };
    let mut command = crate::workspace::cargo();
    with_peers(&mut command, root, args.install.allowed())?;
    command.args(["bench", "--profile", "dev", "--package", BALANCER, "--bench", "balancer", "--"]);
    command.arg(format!("--program={}", program.display()));
    command.arg(format!("--rounds={}", args.rounds)).arg(format!("--seconds={}", args.seconds));
    command.arg(format!("--parts={}", args.parts));
    let json = root.join(format!("target/bench/{name}.json"));
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

/// Lets `command` find nginx, HAProxy and wrk.
///
/// # Errors
/// When one of them is missing and may not be fetched.
pub fn with_peers(command: &mut Command, root: &Path, allowed: bool) -> Result<()> {
    let peers = root.join("target/bench/peers");
    let unpacked = provide(&peers, allowed)?;
    command.env("PATH", path(&peers, unpacked)?);
    if unpacked {
        command.env("LD_LIBRARY_PATH", peers.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH)));
    }
    Ok(())
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
    let installed = |program: &str| {
        let dirs = ["/usr/sbin", "/usr/bin", "/usr/local/bin"];
        dirs.iter().any(|dir| Path::new(dir).join(program).exists())
    };
    if PROGRAMS.iter().all(|program| installed(program)) {
        return Ok(false);
    }
    if !UNPACKED.iter().all(|program| peers.join(program).exists()) {
        host::unpack(
            &PACKAGES,
            "nginx, haproxy, wrk and h2load, which are compared with or load",
            peers,
            allowed,
        )?;
    }
    Ok(true)
}
