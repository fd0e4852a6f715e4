//! Scenarios in which a hot replica leaves its node.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{HEAT, MOVES, RATE_HZ, SETTLES, end};
use crate::e2e::service::Web;
use crate::e2e::stage::Stage;
use crate::e2e::trial::Trial;

/// A single replica that may surge.
pub async fn one_replica(stage: &Stage, port: u16) -> Result<()> {
    let web = Web::new("migration", &stage.image("web-stress")?.id, port);
    leaves(stage, &web).await
}

/// One of two, with constraints, preferences and update settings of the operator's own: the other stays the very
/// task it is, and the spec is byte for byte what it was.
pub async fn several_replicas(stage: &Stage, port: u16) -> Result<()> {
    let mut web = Web::new("several-replicas", &stage.image("web-stress")?.id, port);
    web.replicas = 2;
    web.placement = json!({
        "Constraints": ["node.platform.os == linux", "node.hostname != nobody"],
        "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}],
    });
    web.update = json!({
        "Parallelism": 2, "Delay": 7_000_000_000_u64, "FailureAction": "rollback",
        "Monitor": 11_000_000_000_u64, "MaxFailureRatio": 0.25, "Order": "stop-first",
    });
    leaves(stage, &web).await
}

/// Four on three nodes: one node has two, and loses one of them.
pub async fn two_on_one_node(stage: &Stage, port: u16) -> Result<()> {
    let mut web = Web::new("two-on-one-node", &stage.image("web-stress")?.id, port);
    web.replicas = stage.cluster.nodes.len() as u64 + 1;
    stage.cluster.swarm().create_service(&stage.spec(&web)).await?;
    let trial = Trial::adopt(stage, &web.name, port, RATE_HZ).await?;
    let before = stage.placement(&trial.watcher.tasks());
    let crowded = before.iter().find(|(_, count)| **count == 2).map(|(name, _)| name.clone());
    let crowded = crowded.ok_or_else(|| anyhow::anyhow!("no node has two replicas: {before:?}"))?;
    let tasks = trial.watcher.serving();
    let here: Vec<_> = tasks.iter().filter(|(_, task)| stage.cluster.name(&task.node) == crowded).collect();
    trial.heat_crowded(here[0].1, HEAT).await?;
    // Which of the two goes is Swarm's choice.
    let gone = || {
        let now = trial.watcher.tasks();
        here.iter()
            .find(|(id, _)| now.get(*id).is_some_and(|task| task.told_to_stop.is_some()))
            .map(|(id, _)| (*id).clone())
    };
    crate::e2e::stage::until("one of the two has left", MOVES, || async { Ok(gone().is_some()) })
        .await
        .map_err(|error| error.context(trial.picture()))?;
    let victim = gone().unwrap_or_default();
    trial.moved(&victim, MOVES).await?;
    trial.settled(SETTLES).await?;
    let after = stage.placement(&trial.watcher.tasks());
    ensure!(
        after.get(&crowded) == Some(&1),
        "{crowded} had 2 replicas and has {:?}: {after:?}",
        after.get(&crowded)
    );
    end(trial).await
}

/// The successor takes a while to listen at all, and longer to be healthy.
pub async fn slow_start(stage: &Stage, port: u16) -> Result<()> {
    let mut web = Web::new("slow-start", &stage.image("web-stress")?.id, port);
    web.env = vec!["WEB_STRESS_START_DELAY=6s".to_owned(), "WEB_STRESS_HEALTH_DELAY=6s".to_owned()];
    leaves(stage, &web).await
}

/// Heats one replica of `web` and expects it elsewhere, the others untouched, and nothing left behind.
async fn leaves(stage: &Stage, web: &Web) -> Result<()> {
    let trial = Trial::begin(stage, web, RATE_HZ).await?;
    let before = trial.watcher.serving();
    let (victim, hot) = stage.victim(&before)?;
    trial.heat_crowded(&hot, HEAT).await?;
    let moved = trial.moved(&victim, MOVES).await?;
    ensure!(moved.overlap_ms >= 0, "{} ms without either replica\n{}", -moved.overlap_ms, trial.picture());
    trial.settled(SETTLES).await?;
    let after = trial.watcher.serving();
    let lost: Vec<_> = before.keys().filter(|id| **id != victim && !after.contains_key(*id)).collect();
    ensure!(lost.is_empty(), "replicas that were not hot were replaced: {lost:?}\n{}", trial.picture());
    end(trial).await
}
