//! `cargo xtask bench migrate`: 300 migrations under load on a real three-node Swarm, with everything deployed as a user
//! does, and scale-outs.
//!
//! The nodes are namespaces on this kernel, because emulated ones would be measured, not the product. Without IPVS here
//! that still works: requests reach the balancers on their nodes' own ports, and replicas on their own addresses. Only
//! scaling out does not: all namespaces have the CPU use of the one machine, so where a replica is hot no node has room.
//! `--vms` gives every node a kernel of its own.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::cluster::{self, Cluster};
use crate::demo::{self, balance};
use crate::host::InstallArgs;
use crate::image::{self, Image};
use crate::progress::Progress;
use crate::rootfs::Engine;

/// The capability that the agent can do without: it then hears of stalls when it samples them.
const SPARED: (&str, u32) = ("SYS_RESOURCE", 24);
/// The overlay network of balancers and replicas.
const NETWORK: &str = "bench";

/// `cargo xtask bench migrate`.
#[derive(clap::Args)]
pub struct Args {
    /// Write target/bench/migrate.json, too, and each run by itself to migrate-runs.json
    #[arg(long)]
    json: bool,
    /// Migrations
    #[arg(long, default_value_t = 300)]
    migrations: u32,
    /// After every so many of them one by bare API calls; 0 for none
    #[arg(long, default_value_t = 5)]
    surge_every: u32,
    /// Replicas made hot, until one more runs; needs --vms
    #[arg(long, default_value_t = 0, requires = "vms")]
    scales: u32,
    /// Virtual machines instead of namespaces: slow where they are emulated
    #[arg(long)]
    vms: bool,
    /// Requests a second, through the balancers
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Docker Engine's version
    #[arg(long, value_enum, default_value_t = Engine::V20_10)]
    engine: Engine,
    /// Take the images and programs that an earlier run has built
    #[arg(long)]
    no_build: bool,
    /// Leave the cluster running
    #[arg(long)]
    keep: bool,
    /// Name of the cluster
    #[arg(long, default_value = "bench-migrate")]
    name: String,
    #[command(flatten)]
    install: InstallArgs,
}

/// Measures. Success only where every order was carried out and no request failed.
///
/// # Errors
/// When the cluster cannot be had, or the measurement fails.
pub fn run(args: &Args, root: &Path) -> Result<ExitCode> {
    let progress = Progress::start("migrate");
    let images =
        if args.no_build { image::built()? } else { image::build_default(&[], args.install.allowed())? };
    let options = cluster::Options {
        name: args.name.clone(),
        nodes: 3,
        engine: args.engine,
        native: !args.vms,
        install: args.install.allowed(),
        ..cluster::Options::default()
    };
    let cluster = cluster::up(&options, &progress)?;
    let measured = measure(args, root, &cluster, &images, progress);
    if args.keep {
        println!("the cluster {0} goes on running: cargo xtask cluster down --name {0}", args.name);
    } else {
        cluster.down()?;
    }
    Ok(if measured? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(
    args: &Args,
    root: &Path,
    cluster: &Cluster,
    images: &[Image],
    progress: Progress,
) -> Result<bool> {
    let operator = balance::deploy_commanded(cluster, images, &stack(root)?, &progress)?;
    demo::on_manager(cluster, &["docker", "network", "create", "--driver", "overlay", NETWORK])?;
    balance::deploy_balancers(cluster, images, NETWORK, &["BALANCER_CPUS=0".to_owned()], &progress)?;
    drop(progress);
    let json = root.join("target/bench/migrate.json");
    let mut e2e = demo::e2e(cluster)?;
    e2e.arg("--token-file").arg(operator).arg("migrate");
    e2e.arg("--network").arg(NETWORK).arg("--rate").arg(args.rate.to_string());
    for (name, value) in
        [("migrations", args.migrations), ("surge-every", args.surge_every), ("scales", args.scales)]
    {
        e2e.arg(format!("--{name}={value}"));
    }
    if args.json {
        e2e.arg("--json").arg(&json);
    }
    let passed = demo::wait(&mut e2e)?;
    if args.json {
        println!("written to {}", json.display());
    }
    Ok(passed)
}

/// The stack's files for namespaces on this machine: they have of its controllers what it does not keep in cgroup v1, and
/// of its capabilities what this process has.
fn stack(root: &Path) -> Result<Vec<String>> {
    let (capability, bit) = SPARED;
    let mut files = vec!["deploy/stack.yml".to_owned(), "deploy/without-cpu-limits.yml".to_owned()];
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    if bounds(&status).is_none_or(|bounds| bounds >> bit & 1 != 1) {
        let text = fs::read_to_string(root.join(&files[0])).context("cannot read deploy/stack.yml")?;
        let kept: Vec<&str> = text.lines().filter(|line| line.trim() != format!("- {capability}")).collect();
        files[0] = "target/bench/stack.yml".to_owned();
        fs::create_dir_all(root.join("target/bench")).context("cannot create target/bench")?;
        fs::write(root.join(&files[0]), kept.join("\n")).context("cannot write target/bench/stack.yml")?;
    }
    Ok(files)
}

/// The bounding set of capabilities in a process's status file.
fn bounds(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounding_set_is_found() {
        let set = bounds("Name:\tx\nCapEff:\t00\nCapBnd:\t000001fffeffffff\n").expect("a set");
        assert_eq!(set >> SPARED.1 & 1, 0);
        assert_eq!(set >> 21 & 1, 1);
    }
}
