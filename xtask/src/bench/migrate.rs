//! `cargo xtask bench migrate`: 300 migrations under load on a real three-node Swarm, with everything deployed as a user
//! does, and scale-outs.
//!
//! The nodes are namespaces on this kernel, because emulated ones would be measured, not the product. Without IPVS here
//! that still works: requests reach the balancers on their nodes' own ports, and replicas on their own addresses. Each has
//! a CPU quota of its own, so that one can be hot while the others have room. `--vms` gives every node a kernel of its own.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::cluster::{self, Cluster};
use crate::deploy;
use crate::host::InstallArgs;
use crate::image::{self, Image};
use crate::process;
use crate::programs::Build;
use crate::progress::Progress;
use crate::rootfs::Engine;

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
    /// Replicas made hot, until one more runs
    #[arg(long, default_value_t = 0)]
    scales: u32,
    /// Virtual machines instead of namespaces: slow where they are emulated
    #[arg(long)]
    vms: bool,
    /// Requests a second, through the balancers
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Docker Engine's version
    #[arg(long, value_enum, default_value_t = Engine::default())]
    engine: Engine,
    /// How the programs are built; only release ones are the product
    #[arg(long, value_enum, default_value_t = Build::Release)]
    build: Build,
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
    let images = if args.no_build {
        image::built(args.build)?
    } else {
        image::build_default(&[], args.build, args.install.allowed())?
    };
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
    let operator = deploy::balanced(cluster, images, &progress)?;
    drop(progress);
    let json = root.join("target/bench/migrate.json");
    let mut e2e = deploy::e2e(cluster, args.build)?;
    e2e.arg("--token-file").arg(operator).arg("migrate");
    e2e.arg("--on-network").arg(deploy::NETWORK).arg("--rate").arg(args.rate.to_string());
    for (name, value) in
        [("migrations", args.migrations), ("surge-every", args.surge_every), ("scales", args.scales)]
    {
        e2e.arg(format!("--{name}={value}"));
    }
    if args.json {
        e2e.arg("--json").arg(&json);
    }
    let passed = process::wait(&mut e2e)?;
    if args.json {
        println!("written to {}", json.display());
    }
    Ok(passed)
}
