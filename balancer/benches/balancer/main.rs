//! The balancer beside nginx and HAProxy: cost of a request on one core, the pick alone, and latency with replicas that
//! are alike, slow, bothered in bursts, or quick to fail.
//!
//! Everything that is compared runs in the same round against the same replicas, in turns, several rounds. The cost of
//! a request is CPU time by the kernel's own account (`schedstat`) of the proxy's process, so that a busy machine
//! spoils it little; one second of CPU time divided by it is what one core can do.
#![expect(clippy::print_stdout, reason = "a benchmark's output is its table")]

mod backend;
mod cgroup;
mod figures;
mod hostile;
mod latency;
mod load;
mod peers;
mod picks;
mod throughput;

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Result;
use clap::Parser;
use swarmguard_tests::figures::Report;

/// Measures the balancer; run it with `cargo xtask bench balancer`
#[derive(Parser)]
struct Args {
    /// Write the rows to this file, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// Rounds of everything that is compared
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Length of one measurement in seconds
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Only these parts: picks, throughput, latency, hostile
    #[arg(long, value_delimiter = ',', default_values = ["picks", "throughput", "latency"])]
    parts: Vec<String>,
    /// Another build of the balancer than the one made for this, for instance the static one of the image
    #[arg(long)]
    program: Option<PathBuf>,
    /// Serve as a replica of this kind instead (used by the benchmark itself)
    #[arg(long, hide = true, requires = "address")]
    backend: Option<backend::Kind>,
    /// Where that replica listens
    #[arg(long, hide = true)]
    address: Option<SocketAddr>,
    /// How fast this machine computes
    #[arg(long, hide = true, default_value_t = 0)]
    rounds_a_ms: u64,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let (Some(kind), Some(address)) = (args.backend, args.address) {
        return backend::serve(kind, address, args.rounds_a_ms);
    }
    if let Some(program) = &args.program {
        peers::use_program(program.clone());
    }
    let mut report = Report::new("cargo xtask bench balancer");
    let wanted = |part: &str| args.parts.iter().any(|it| it == part);
    if wanted("picks") {
        picks::measure(args.rounds, &mut report)?;
    }
    if wanted("throughput") {
        throughput::measure(args.rounds, args.seconds, &mut report)?;
    }
    if wanted("latency") {
        latency::measure(args.rounds, args.seconds, &mut report)?;
    }
    if wanted("hostile") {
        hostile::measure(args.rounds, args.seconds, &mut report)?;
    }
    print!("{report}");
    if let Some(path) = &args.json {
        report.write(path)?;
    }
    report.check()
}
