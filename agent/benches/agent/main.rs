//! What the agent costs and how fast it alerts, beside what it is compared with: `cargo xtask bench agent`.
//!
//! The real program runs against cgroups made for the purpose; CPU time is what the kernel accounts to the whole
//! process. What is compared runs in alternating rounds in one run, so that a noisy machine is noisy for both. The
//! figures are reported, never asserted.

mod births;
mod connect;
mod detect;
mod empty;
mod engine;
mod floor;
mod groups;
#[path = "../../tests/kernel/mod.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod kernel;
mod monitor;
mod packets;
mod process;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};

use groups::Groups;
use process::Agent;
use swarmguard_agent::bpf::{KernelFacts, Options, Programs};
use swarmguard_tests::figures::{Report, Row};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Inner>,
    /// What is measured: overhead, packets, births, connect, monitor, engine, detect
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "overhead,packets,births,connect,monitor,engine,detect"
    )]
    only: Vec<Part>,
    /// Numbers of containers
    #[arg(long, value_delimiter = ',', default_value = "10,100,500")]
    containers: Vec<usize>,
    /// Rounds of everything that is compared
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of one measurement in seconds
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Trials of detection
    #[arg(long, default_value_t = 100)]
    trials: usize,
    /// Socket of an engine on this kernel with containers running, to compare with its stats stream
    #[arg(long)]
    docker: Option<PathBuf>,
    /// Part of the path of that engine's own cgroup, where there are several engines
    #[arg(long, default_value = "")]
    engine_cgroup: String,
    /// Program of netdata, to compare with it
    #[arg(long)]
    netdata: Option<PathBuf>,
    /// Write the table as JSON, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// Another build of the agent than the one made for this, for instance the static one of the image
    #[arg(long, env = "SWARMGUARD_BENCH_AGENT")]
    agent: Option<PathBuf>,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// What can be measured by itself.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Overhead,
    Packets,
    Births,
    Connect,
    Monitor,
    Engine,
    Detect,
}

/// What this program runs of itself, as processes of their own.
#[derive(Subcommand)]
enum Inner {
    /// Reads the files of all cgroups of a directory in a tight loop
    #[command(hide = true)]
    Floor { dir: PathBuf, hz: u32, seconds: u64 },
    /// Enters a cgroup and uses a CPU when told to
    #[command(hide = true)]
    Burn { dir: PathBuf },
    /// Sends packets from sockets of two cgroups in a network namespace
    #[command(hide = true)]
    Send { counted: PathBuf, bare: PathBuf, namespace: String },
    /// Enters a cgroup, connects and asks
    #[command(hide = true)]
    Ask {
        dir: PathBuf,
        port: u16,
        #[arg(action = clap::ArgAction::Set)]
        direct: bool,
        requests: u32,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match &cli.command {
        Some(Inner::Floor { dir, hz, seconds }) => floor::run(dir, *hz, Duration::from_secs(*seconds)),
        Some(Inner::Burn { dir }) => detect::burn(dir),
        Some(Inner::Send { counted, bare, namespace }) => packets::send(counted, bare, namespace),
        Some(Inner::Ask { dir, port, direct, requests }) => connect::ask(dir, *port, *direct, *requests),
        None => measure(&cli),
    }
}

fn measure(cli: &Cli) -> Result<()> {
    let root = swarmguard_agent::run::cgroup_root("/sys/fs/cgroup".as_ref())
        .context("no cgroup v2 at /sys/fs/cgroup: nothing can be measured here")?;
    if let Some(agent) = &cli.agent {
        process::use_agent(agent.clone());
    }
    let mut report = Report::new("cargo xtask bench agent").on(&hierarchy(&root));
    for part in &cli.only {
        match part {
            Part::Overhead => {
                for containers in &cli.containers {
                    let groups = Groups::make(&root, *containers)?;
                    for hz in [1, 10] {
                        overhead(cli, &mut report, &groups, hz)?;
                    }
                }
            }
            Part::Births => births::measure(cli.trials, &root, &mut report)?,
            Part::Packets => packets::measure(cli.rounds, &root, &mut report)?,
            Part::Connect => connect::measure(cli.rounds, &root, &mut report)?,
            Part::Monitor => match &cli.netdata {
                Some(program) => monitor::measure(cli.seconds, cli.rounds, program, &root, &mut report)?,
                None => report.skip("agent.vs_monitor", "no --netdata given"),
            },
            Part::Engine => match &cli.docker {
                Some(socket) => {
                    engine::measure(cli.seconds, cli.rounds, socket, &cli.engine_cgroup, &root, &mut report)?;
                }
                None => report.skip(
                    "agent.vs_engine_stats",
                    "no --docker given, an engine on this kernel with containers",
                ),
            },
            Part::Detect => {
                for adaptive in [true, false] {
                    detect::measure(cli.trials, adaptive, &root, &mut report)?;
                }
            }
        }
    }
    print!("{report}");
    if let Some(path) = &cli.json {
        report.write(path)?;
    }
    report.check()
}

/// Where cgroup v2 is, and what it does there.
fn hierarchy(root: &Path) -> String {
    let controllers = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let controllers = if controllers.trim().is_empty() { "no controllers" } else { controllers.trim() };
    format!("cgroup v2 at {} with {controllers}", root.display())
}

/// The BPF programs, loaded; `None` where they cannot be, which is told under `row`.
fn programs(root: &Path, row: &str, report: &mut Report) -> Option<Programs> {
    let loaded = Programs::load(root, &KernelFacts::probe(root), Options::default());
    loaded.inspect_err(|error| report.skip(row, &error.to_string())).ok()
}

/// The agent and the floor in turns.
fn overhead(cli: &Cli, report: &mut Report, groups: &Groups, hz: u32) -> Result<()> {
    let window = Duration::from_secs(cli.seconds);
    let (mut sample, mut core, mut rss, mut floor) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..cli.rounds {
        let agent = Agent::start(groups.root(), &[&format!("--interval={}ms", 1_000 / hz)])?;
        agent.wait_for(groups.len())?;
        let used = agent.measure(window)?;
        sample.push(used.us_per_sample());
        core.push(used.core_percent());
        rss.push(used.rss_mib);
        drop(agent);
        floor.push(floor::measure(groups.dir(), hz, window)?);
    }
    let count = groups.len();
    let name = |row: &str| format!("{row}.{count}x{hz}hz");
    report.announce(
        Row::of(&name("agent.us_per_sample"), "us", if hz == 10 { "<= 3" } else { "" }, &sample)
            // Without samples it would be the cost of nothing.
            .plausible(0.05..=500.0)
            .beside("pread loop", &floor),
    );
    report.announce(Row::of(
        &name("agent.core_percent"),
        "% of a core",
        if count == 100 { "< 1" } else { "" },
        &core,
    ));
    report.announce(Row::of(&name("agent.rss_mib"), "MiB", "< 15", &rss));
    Ok(())
}
