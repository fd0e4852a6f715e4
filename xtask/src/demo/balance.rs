//! `cargo xtask demo --scenario balance`: secrets and stacks as an operator would make them, then the scenario.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::{Args, create, deploy_together, e2e, load_those, on_manager, secret, wait};
use crate::cluster::Cluster;
use crate::image::Image;
use crate::progress::Progress;

/// Replicas of the workload.
const REPLICAS: u32 = 3;
/// Balancers, each on a node of its own.
const BALANCERS: u32 = 2;

/// Deploys everything and plays.
pub fn play(args: &Args, cluster: &Cluster, images: &[Image], progress: Progress) -> Result<bool> {
    let operator = deploy_commanded(cluster, images, &["deploy/stack.yml".to_owned()], &progress)?;
    let replicas = format!("WEB_STRESS_REPLICAS={REPLICAS}");
    deploy_together(cluster, &["deploy/web-stress.yml"], "demo", images, &[replicas])?;
    progress.done("workload deployed: docker stack deploy -c web-stress.yml demo");
    deploy_balancers(cluster, images, "demo_default", &[], &progress)?;
    drop(progress);
    let mut e2e = e2e(cluster)?;
    e2e.arg("--token-file").arg(operator).arg("balance");
    e2e.arg("--report").arg(args.report("report-balance.json")).args(&args.parts);
    wait(&mut e2e)
}

/// Loads all images and deploys SwarmGuard from these files, with tokens for balancers and operators; returns the file
/// with the operators' token.
///
/// # Errors
/// Where an engine refuses an image, a secret or the stack.
pub fn deploy_commanded(
    cluster: &Cluster,
    images: &[Image],
    stack: &[String],
    progress: &Progress,
) -> Result<PathBuf> {
    load_those(cluster, images.iter(), progress)?;
    secret(cluster, "swarmguard-balancer-token")?;
    let operator = secret(cluster, "swarmguard-operator-token")?;
    let roots = on_manager(cluster, &["docker", "info", "--format", "{{.Swarm.Cluster.TLSInfo.TrustRoot}}"])?;
    create(cluster, "config", "swarmguard-roots", &roots)?;
    progress.done("tokens and roots made: docker secret create, docker config create");
    let mut stack: Vec<&str> = stack.iter().map(String::as_str).collect();
    stack.extend(["deploy/balancer-token.yml", "deploy/operator-token.yml"]);
    deploy_together(cluster, &stack, "swarmguard", images, &["SWARMGUARD_API_PLAIN=all".to_owned()])?;
    progress.done(
        "SwarmGuard deployed: docker stack deploy -c stack.yml -c balancer-token.yml -c operator-token.yml swarmguard",
    );
    Ok(operator)
}

/// Deploys balancers on an overlay network that is there, with more variables (`NAME=value`).
///
/// # Errors
/// Where the stack is refused.
pub fn deploy_balancers(
    cluster: &Cluster,
    images: &[Image],
    network: &str,
    more: &[String],
    progress: &Progress,
) -> Result<()> {
    let address = cluster.state().nodes.first().context("a cluster without nodes")?.ip;
    let mut variables = vec![
        format!("SWARMGUARD_COORDINATORS={address}:7443"),
        format!("BALANCED_NETWORK={network}"),
        format!("BALANCER_REPLICAS={BALANCERS}"),
    ];
    variables.extend_from_slice(more);
    deploy_together(cluster, &["deploy/balancer.yml"], "balancer", images, &variables)?;
    progress.done("balancers deployed: docker stack deploy -c balancer.yml balancer");
    Ok(())
}
