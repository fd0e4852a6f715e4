//! `cargo xtask demo --scenario balance`: secrets and stacks as an operator would make them, then the scenario.

use anyhow::Result;

use super::Args;
use crate::cluster::Cluster;
use crate::image::Image;
use crate::progress::Progress;
use crate::{deploy, process};

/// Replicas of the workload.
const REPLICAS: u32 = 3;

/// Deploys everything and plays.
pub fn play(args: &Args, cluster: &Cluster, images: &[Image], progress: Progress) -> Result<bool> {
    let operator = deploy::commanded(cluster, images, &progress)?;
    let replicas = format!("WEB_STRESS_REPLICAS={REPLICAS}");
    deploy::together(cluster, &["deploy/web-stress.yml"], "demo", images, &[replicas])?;
    progress.done("workload deployed: docker stack deploy -c web-stress.yml demo");
    deploy::balancers(cluster, images, "demo_default", &progress)?;
    drop(progress);
    let mut e2e = deploy::e2e(cluster, args.build)?;
    e2e.arg("--token-file").arg(operator).arg("balance");
    e2e.arg("--report").arg(args.report("report-balance.json")).args(&args.parts);
    process::wait(&mut e2e)
}
