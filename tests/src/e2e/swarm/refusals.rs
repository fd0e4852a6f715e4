//! Scenarios in which nothing may be done, and the journal must say why.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use swarmguard_common::journal::Kind;
use swarmguard_runtime::clock::now;

use super::{HEAT, MOVES, RATE_HZ, SAYS, SETTLES, end, kill};
use crate::e2e::service::Web;
use crate::e2e::stage::{Stage, until};
use crate::e2e::trial::Trial;

/// How long nothing must happen after the journal has said so: longer than act-after and a settle together.
const QUIET: Duration = Duration::from_secs(12);

/// With `--observe` the decision is made and explained, and not one object in Swarm changes.
pub async fn observe(stage: &Stage, port: u16) -> Result<()> {
    set_observe(stage, true).await?;
    let web = Web::new("observe", &stage.image("web-stress")?.id, port);
    let trial = Trial::begin(stage, &web, RATE_HZ).await?;
    let (_, hot) = stage.victim(&trial.watcher.serving())?;
    let before = versions(stage, &trial).await?;
    trial.heat_crowded(&hot, HEAT).await?;
    let decided = |kind| matches!(kind, Kind::Decision | Kind::Refusal);
    trial.entry("what would be done", SAYS, |entry| decided(entry.kind) && entry.rule.is_some()).await?;
    unchanged(stage, &trial, &before).await?;
    end(trial).await
}

/// Without a health check "running" says little: refused, with the reason.
pub async fn no_healthcheck(stage: &Stage, port: u16) -> Result<()> {
    let mut web = Web::new("no-healthcheck", &stage.image("web-stress")?.id, port);
    web.healthcheck = false;
    let trial = Trial::begin(stage, &web, RATE_HZ).await?;
    let (_, hot) = stage.victim(&trial.watcher.serving())?;
    let before = versions(stage, &trial).await?;
    trial.heat_crowded(&hot, HEAT).await?;
    let about_health = |entry: &swarmguard_common::journal::Entry| {
        entry.kind == Kind::Refusal
            && (entry.code.contains("healthcheck") || entry.text.contains("healthcheck"))
    };
    trial.entry("refused for want of a health check", SAYS, about_health).await?;
    unchanged(stage, &trial, &before).await?;
    end(trial).await
}

/// The replica that an alert names is replaced, and only then does the service allow to be moved: the alert is of no
/// account any more.
pub async fn stale_alert(stage: &Stage, port: u16) -> Result<()> {
    let web =
        Web::new("stale-alert", &stage.image("web-stress")?.id, port).label("swarmguard.migrate", "off");
    let trial = Trial::begin(stage, &web, RATE_HZ).await?;
    let (victim, hot) = stage.victim(&trial.watcher.serving())?;
    trial.heat_crowded(&hot, HEAT).await?;
    trial.entry("refused, because it may not move", SAYS, |entry| entry.kind == Kind::Refusal).await?;
    let swarm = stage.cluster.swarm();
    swarm
        .update_service(&trial.service, |spec| {
            let count = spec["TaskTemplate"]["ForceUpdate"].as_u64().unwrap_or_default();
            spec["TaskTemplate"]["ForceUpdate"] = json!(count + 1);
            spec["Labels"]["swarmguard.migrate"] = json!("surge");
        })
        .await?;
    let replaced = || async {
        let gone = trial.watcher.tasks().get(&victim).is_some_and(|task| task.told_to_stop.is_some());
        let service = swarm.get(&format!("/services/{}", trial.service)).await?;
        Ok(gone && service["UpdateStatus"]["State"] == "completed")
    };
    until("the operator's update replaced the hot replica", Duration::from_secs(240), replaced)
        .await
        .map_err(|error| error.context(trial.picture()))?;
    tokio::time::sleep(QUIET).await;
    let decided = trial.journal.find(|entry| {
        entry.kind == Kind::Decision && entry.task.as_ref().is_some_and(|task| task.as_str() == victim)
    });
    ensure!(decided.is_none(), "decided about a replica that was to go: {decided:?}\n{}", trial.picture());
    end(trial).await
}

/// How long an operator's pause is looked at: three times as long as the one that lifted itself once.
const PAUSED: Duration = Duration::from_secs(90);

/// A service that an operator paused stays where it is, also when its coordinator dies, until the operator resumes it.
pub async fn paused(stage: &Stage, port: u16) -> Result<()> {
    let token = stage.token.as_deref().context("a pause needs the operator's token: add --token-file")?;
    let web = Web::new("paused", &stage.image("web-stress")?.id, port);
    let trial = Trial::begin(stage, &web, RATE_HZ).await?;
    let (victim, hot) = stage.victim(&trial.watcher.serving())?;
    stage.coordinator.command(token, "pause", &json!({"service": "paused"})).await?;
    let since = now();
    let before = versions(stage, &trial).await?;
    trial.heat_crowded(&hot, HEAT).await?;
    let paused = |entry: &swarmguard_common::journal::Entry| {
        entry.kind == Kind::Refusal && entry.rule.as_deref() == Some("paused")
    };
    trial.entry("refused, because it is paused", SAYS, paused).await?;
    kill::kill_coordinator(&stage.cluster.manager().engine).await?;
    stage.ready(Duration::from_secs(120)).await?;
    tokio::time::sleep(PAUSED.saturating_sub(now() - since)).await;
    let after = versions(stage, &trial).await?;
    ensure!(after == before, "a paused service was touched:\n{before}\n{after}\n{}", trial.picture());
    stage.coordinator.command(token, "resume", &json!({"service": "paused"})).await?;
    trial.moved(&victim, MOVES).await.context("after it was resumed")?;
    trial.settled(SETTLES).await?;
    end(trial).await
}

/// Versions of the service and of every node's spec, and the names of all configs: whatever is written changes them.
async fn versions(stage: &Stage, trial: &Trial<'_>) -> Result<Value> {
    let swarm = stage.cluster.swarm();
    let service = swarm.get(&format!("/services/{}", trial.service)).await?;
    let configs = swarm.get("/configs").await?;
    let mine: Vec<_> = configs
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|config| config["Spec"]["Name"].as_str())
        .filter(|name| name.contains(&trial.service))
        .collect();
    let mut specs = Vec::new();
    for node in &stage.cluster.nodes {
        specs.push(swarm.get(&format!("/nodes/{}", node.id)).await?["Spec"].take());
    }
    let tasks: Vec<_> = trial.watcher.serving().into_keys().collect();
    Ok(json!({
        "service": service["Version"], "spec": service["Spec"], "configs": mine, "nodes": specs, "tasks": tasks,
    }))
}

async fn unchanged(stage: &Stage, trial: &Trial<'_>, before: &Value) -> Result<()> {
    tokio::time::sleep(QUIET).await;
    let after = versions(stage, trial).await?;
    ensure!(after == *before, "something was changed:\n{before}\n{after}\n{}", trial.picture());
    Ok(())
}

/// Switches every coordinator to observing or back, as an operator would: by the service's environment.
pub async fn set_observe(stage: &Stage, observe: bool) -> Result<()> {
    let swarm = stage.cluster.swarm();
    let service = swarm.service_by_name("swarmguard_coordinator").await?;
    let id = service["ID"].as_str().context("a service without ID")?;
    let wanted = format!("SWARMGUARD_OBSERVE={observe}");
    let env = &service["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"];
    let has = |text: &str| env.as_array().into_iter().flatten().any(|value| value == text);
    if has(&wanted) || (!observe && !has("SWARMGUARD_OBSERVE=true")) {
        return Ok(());
    }
    swarm
        .update_service(id, |spec| {
            let env = &mut spec["TaskTemplate"]["ContainerSpec"]["Env"];
            let mut list = env.as_array().cloned().unwrap_or_default();
            list.retain(|value| !value.as_str().is_some_and(|text| text.starts_with("SWARMGUARD_OBSERVE=")));
            list.push(json!(wanted));
            *env = Value::Array(list);
        })
        .await?;
    let restarted = || async {
        let service = swarm.get(&format!("/services/{id}")).await?;
        Ok(matches!(service["UpdateStatus"]["State"].as_str(), Some("completed")))
    };
    until("the coordinator's update is complete", Duration::from_secs(180), restarted).await?;
    stage.ready(Duration::from_secs(120)).await
}
