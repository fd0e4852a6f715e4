//! `cargo xtask demo --scenario balance`: secrets and stacks as an operator would make them, then the scenario.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::{Args, deploy_together, e2e, load_those, manager, on_manager, wait};
use crate::cluster::Cluster;
use crate::image::{Image, root};
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
    e2e.arg("balance")
        .arg("--token-file")
        .arg(operator)
        .arg("--report")
        .arg(args.report("report-balance.json"));
    e2e.args(&args.parts);
    wait(&mut e2e)
}

/// Makes a token that nobody knows, as a secret; returns the file with it on this machine.
fn secret(cluster: &Cluster, name: &str) -> Result<PathBuf> {
    let mut bytes = [0_u8; 32];
    let random = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    random.context("cannot read /dev/urandom")?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    create(cluster, "secret", name, &token)
}

/// `docker secret create` or `docker config create`, by way of a file on the manager.
fn create(cluster: &Cluster, kind: &str, name: &str, content: &str) -> Result<PathBuf> {
    let here = root().join("target/demo").join(format!("{}-{name}", cluster.state().name));
    let what = || format!("cannot write {}", here.display());
    fs::create_dir_all(root().join("target/demo")).with_context(what)?;
    fs::write(&here, content).with_context(what)?;
    let there = format!("/root/{name}");
    cluster.copy(&here, manager(cluster)?, &there)?;
    on_manager(cluster, &["docker", kind, "create", name, &there])?;
    Ok(here)
}
