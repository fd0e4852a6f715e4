//! `cargo xtask demo`: from nothing to a hot replica that leaves its node, in one command.
//!
//! The cluster, the deployment and the end are here; what happens on the cluster is played by `swarmguard-e2e`, inside the
//! cluster's network.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

use crate::clock::Stopwatch;
use crate::cluster::{self, Cluster, Kind};
use crate::host::InstallArgs;
use crate::image::{self, Image};
use crate::programs::Build;
use crate::progress::Progress;
use crate::rootfs::Engine;
use crate::workspace::root;
use crate::{deploy, process};

mod balance;

/// What is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Scenario {
    /// A replica runs hot and leaves its node
    Heat,
    /// Requests go through the balancers while replicas move, come, go and die
    Balance,
}

/// `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// What is played
    #[arg(long, value_enum, default_value_t = Scenario::Heat)]
    scenario: Scenario,
    /// Docker Engine's version
    #[arg(long, value_enum, default_value_t = Engine::default())]
    engine: Engine,
    /// Number of nodes, 3 to 9
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
    nodes: u8,
    /// Leave everything running, and say how to look around
    #[arg(long)]
    keep: bool,
    /// Nodes that are namespaces on this kernel, each with a CPU quota: the default wherever that is possible
    #[arg(long, conflicts_with = "vms")]
    native: bool,
    /// Nodes that are virtual machines, also where they have to be emulated
    #[arg(long)]
    vms: bool,
    /// How the programs are built; development ones compile several times faster
    #[arg(long, value_enum, default_value_t = Build::Dev)]
    build: Build,
    /// Take the images and programs that an earlier run has built
    #[arg(long)]
    no_build: bool,
    /// Name of the cluster
    #[arg(long, default_value = "demo")]
    name: String,
    /// What the replica is told once traffic flows, in the scenario heat
    #[arg(long, default_value = "/stress/cpu?target=60&duration=600&ramp=1")]
    heat: String,
    /// Only this part of the scenario balance: spread, move, scale, coordinators, outage; may be given several times
    #[arg(long = "part", value_name = "PART")]
    parts: Vec<String>,
    /// Where the report goes [default: target/demo/report.json, or report-balance.json there]
    #[arg(long)]
    report: Option<PathBuf>,
    #[command(flatten)]
    install: InstallArgs,
}

/// Plays the demo. Success only where the replica moved, no request failed, and spec and availability are as before.
///
/// # Errors
/// Where something it needs cannot be had; what was made is removed, unless `--keep`.
pub fn run(args: &Args) -> Result<ExitCode> {
    let watch = Stopwatch::start();
    let progress = Progress::start("demo");
    let native = native(args, &progress);
    let images = if args.no_build {
        image::built(args.build)?
    } else {
        let images = image::build_default(&[], args.build, args.install.allowed())?;
        progress.done("images built");
        images
    };
    // What follows is what a user waits for whose programs are compiled.
    let after_build = Stopwatch::start();
    let options = cluster::Options {
        name: args.name.clone(),
        nodes: usize::from(args.nodes),
        engine: args.engine,
        native,
        install: args.install.allowed(),
        ..cluster::Options::default()
    };
    let cluster = cluster::up(&options, &progress)?;
    let played = match args.scenario {
        Scenario::Heat => play(args, &cluster, &images, progress),
        Scenario::Balance => balance::play(args, &cluster, &images, progress),
    };
    if args.keep {
        explain(&cluster);
    } else {
        cluster.down()?;
    }
    let passed = played?;
    let verdict = match args.scenario {
        _ if !passed => "FAILED",
        Scenario::Heat => "passed: moved, nothing lost, nothing left behind",
        Scenario::Balance => "passed: moved, scaled, coordinators and replicas killed, nothing lost",
    };
    println!("demo: {verdict} (in {watch}, {after_build} of it after compilation)");
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether nodes are namespaces: unless virtual machines are asked for, wherever this machine allows it, because whether
/// KVM boots here is known only after a minute of trying. The scenario `balance` goes through the routing mesh, which needs
/// a kernel with IPVS.
fn native(args: &Args, progress: &Progress) -> bool {
    if args.native || args.vms || args.scenario == Scenario::Balance || !cluster::native_fits() {
        return args.native;
    }
    progress.done(
        "nodes are namespaces on this machine's kernel, each with a CPU quota (--vms: virtual machines)",
    );
    true
}

impl Args {
    fn report(&self, name: &str) -> PathBuf {
        root().join(self.report.clone().unwrap_or_else(|| Path::new("target/demo").join(name)))
    }
}

fn play(args: &Args, cluster: &Cluster, images: &[Image], progress: Progress) -> Result<bool> {
    let native = cluster.state().kind == Kind::Native;
    if native {
        deploy::balanced(cluster, images, &progress)?;
        deploy::workload(cluster, images, &progress)?;
    } else {
        deploy::load(cluster, images, &progress)?;
        deploy::plain(cluster, images, &progress)?;
        deploy::together(cluster, &["deploy/web-stress.yml"], "demo", images, &[])?;
        progress.done("workload deployed: docker stack deploy -c web-stress.yml demo");
    }
    drop(progress);
    let mut e2e = deploy::e2e(cluster, args.build)?;
    if native {
        e2e.args(["--network", deploy::NETWORK]);
    }
    e2e.arg("demo").arg("--heat").arg(&args.heat).arg("--report").arg(args.report("report.json"));
    e2e.arg("--nodes-are").arg(nodes_are(cluster)).arg("--programs").arg(args.build.name());
    process::wait(&mut e2e)
}

/// What the nodes are, for the report.
fn nodes_are(cluster: &Cluster) -> String {
    let first = cluster.state().nodes.first();
    match first.and_then(|node| node.cpu_millis) {
        Some(millis) => format!(
            "namespaces on this machine's kernel, each held to {} CPUs, with an engine, a disk and a network of its own",
            f64::from(millis) / 1_000.0
        ),
        None => "virtual machines, each with a kernel and a CPU of its own".to_owned(),
    }
}

fn explain(cluster: &Cluster) {
    let name = &cluster.state().name;
    let manager = cluster.state().nodes.first().map(|node| node.ip.to_string()).unwrap_or_default();
    println!("The cluster {name} goes on running. To look around:");
    println!("  cargo xtask cluster status --name {name}");
    println!("  cargo xtask cluster docker --name {name} 1 -- service ps demo_web");
    println!("  cargo xtask cluster netns --name {name} -- curl -s http://{manager}:7480/api/v1/journal");
    println!("  cargo xtask cluster netns --name {name} -- curl -s http://{manager}:8082/metrics/containers");
    println!(
        "  cargo xtask cluster netns --name {name} -- curl 'http://{manager}:8080/stress/cpu?target=90&duration=120'"
    );
    println!("  cargo xtask cluster down --name {name}");
}
