//! What SwarmGuard does beside moving a hot replica: one replica more and one less by load, a node drained at an
//! operator's order, and a replica for the node that comes back. Each under requests, of which none may fail.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use swarmguard_common::journal::Kind;

use super::{MOVES, RATE_HZ, SETTLES, end};
use crate::e2e::service::Web;
use crate::e2e::stage::{Stage, until};
use crate::e2e::trial::Trial;

/// CPU and network together: the load is the problem, not the node.
const BUSY: &str = "/stress/combined?target=70&mbps=6&duration=600";
/// What counts as 100 % network here, in Mbit/s; an emulated node has no more to give.
const LINK_MBPS: &str = "6";

/// One replica is overwhelmed: a second one comes, elsewhere. The load ends: one goes, and all is as it was.
pub async fn scales_both_ways(stage: &Stage, port: u16) -> Result<()> {
    let labels = [
        ("swarmguard.network.mbps", LINK_MBPS),
        ("swarmguard.scale.min", "1"),
        ("swarmguard.scale.max", "2"),
        ("swarmguard.scale.up.cooldown", "5s"),
        ("swarmguard.scale.down.cooldown", "5s"),
        ("swarmguard.scale.down.window", "10s"),
    ];
    let web = Web::new("scale", &stage.image("web-stress")?.id, port);
    let mut web = labels.iter().fold(web, |web, (key, value)| web.label(key, value));
    web.env = vec!["WEB_STRESS_NETWORK_SINK=gateway".to_owned()];
    let trial = Trial::begin(stage, &web, RATE_HZ).await?;
    let (first, hot) = stage.victim(&trial.watcher.serving())?;
    trial.heat(&hot, BUSY).await?;
    let two = || async { Ok(trial.watcher.serving().len() == 2) };
    until("a second replica serves", MOVES, two).await.with_context(|| trial.picture())?;
    let serving = trial.watcher.serving();
    let nodes: Vec<_> = serving.values().map(|task| stage.cluster.name(&task.node)).collect();
    ensure!(serving.contains_key(&first), "the busy replica was replaced\n{}", trial.picture());
    ensure!(nodes[0] != nodes[1], "both replicas run on {}\n{}", nodes[0], trial.picture());
    let scaled = |entry: &swarmguard_common::journal::Entry| entry.kind == Kind::Decision;
    trial.entry("why it scaled out", Duration::from_secs(10), scaled).await?;
    trial.heat(&hot, "/stress/stop").await?;
    until("one replica is left", MOVES, || async { Ok(trial.watcher.serving().len() == 1) })
        .await
        .with_context(|| trial.picture())?;
    trial.settled(SETTLES).await?;
    end(trial).await
}

/// Every replica leaves a node before it is drained, and one returns once it is active again.
pub async fn drains_and_returns(stage: &Stage, port: u16) -> Result<()> {
    let count = stage.cluster.nodes.len();
    let mut web =
        Web::new("drain", &stage.image("web-stress")?.id, port).label("swarmguard.rebalance", "true");
    web.replicas = count as u64;
    let trial = Trial::begin(stage, &web, RATE_HZ).await?;
    let before = trial.watcher.serving();
    let (victim, leaving) = stage.victim(&before)?;
    let name = stage.cluster.name(&leaving.node).to_owned();
    let token = stage.token.as_deref().context("a drain needs the operator's token: add --token-file")?;
    stage.coordinator.command(token, "drain", &json!({"node": name})).await?;
    let drained = || async { Ok(stage.cluster.availability(&leaving.node).await? == "drain") };
    until(&format!("{name} is drained"), MOVES, drained).await.with_context(|| trial.picture())?;
    let serving = trial.watcher.serving();
    ensure!(serving.len() == count, "{} of {count} replicas serve\n{}", serving.len(), trial.picture());
    let here = |tasks: &crate::tasks::Tasks| tasks.values().filter(|task| task.node == leaving.node).count();
    ensure!(here(&serving) == 0, "{name} is drained and has a replica yet\n{}", trial.picture());
    let kept = before.keys().filter(|id| **id != victim && serving.contains_key(*id)).count();
    ensure!(kept == count - 1, "replicas on other nodes were replaced\n{}", trial.picture());
    stage.cluster.swarm().set_availability(&leaving.node, "active").await?;
    let back = || async {
        let tasks = trial.watcher.serving();
        Ok(tasks.len() == count && here(&tasks) == 1)
    };
    until(&format!("a replica serves on {name} again"), MOVES, back)
        .await
        .with_context(|| trial.picture())?;
    trial.settled(SETTLES).await?;
    end(trial).await
}
