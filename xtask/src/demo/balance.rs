//! `cargo xtask demo --scenario balance`: secrets and stacks as an operator would make them, then the scenario.

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
    load_those(cluster, images.iter(), &progress)?;
    secret(cluster, "swarmguard-balancer-token")?;
    let operator = secret(cluster, "swarmguard-operator-token")?;
    let roots = on_manager(cluster, &["docker", "info", "--format", "{{.Swarm.Cluster.TLSInfo.TrustRoot}}"])?;
    create(cluster, "config", "swarmguard-roots", &roots)?;
    progress.done("tokens and roots made: docker secret create, docker config create");
    let stack = ["deploy/stack.yml", "deploy/balancer-token.yml", "deploy/operator-token.yml"];
    deploy_together(cluster, &stack, "swarmguard", images, &["SWARMGUARD_API_PLAIN=all".to_owned()])?;
    progress.done(
        "SwarmGuard deployed: docker stack deploy -c stack.yml -c balancer-token.yml -c operator-token.yml swarmguard",
    );
    let replicas = format!("WEB_STRESS_REPLICAS={REPLICAS}");
    deploy_together(cluster, &["deploy/web-stress.yml"], "demo", images, &[replicas])?;
    progress.done("workload deployed: docker stack deploy -c web-stress.yml demo");
    let address = cluster.state().nodes.first().context("a cluster without nodes")?.ip;
    let variables = [
        format!("SWARMGUARD_COORDINATORS={address}:7443"),
        "BALANCED_NETWORK=demo_default".to_owned(),
        format!("BALANCER_REPLICAS={BALANCERS}"),
    ];
    deploy_together(cluster, &["deploy/balancer.yml"], "balancer", images, &variables)?;
    progress.done("balancers deployed: docker stack deploy -c balancer.yml balancer");
    drop(progress);
    let mut e2e = e2e(cluster)?;
    e2e.arg("--token-file").arg(operator).arg("balance");
    e2e.arg("--report").arg(args.report("report-balance.json")).args(&args.parts);
    wait(&mut e2e)
}
