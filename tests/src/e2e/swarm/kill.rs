//! A coordinator that dies at a bad moment: whatever it had begun is finished or undone by the next one, and no request
//! is lost meanwhile.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{HEAT, MOVES, RATE_HZ, SETTLES, end};
use crate::e2e::service::Web;
use crate::e2e::stage::{Stage, until};
use crate::e2e::trial::Trial;
use crate::engine::Engine;

/// Label of an action record that says how far the action is.
const STATE: &str = "swarmguard.state";

/// Kills the coordinator as soon as the action record says `phase`, or a later one where that was too short to be seen.
pub async fn at(stage: &Stage, port: u16, phase: &str) -> Result<()> {
    let web = Web::new(&format!("killed-{phase}"), &stage.image("web-stress")?.id, port);
    let trial = Trial::begin(stage, &web, RATE_HZ).await?;
    let (victim, hot) = stage.victim(&trial.watcher.serving())?;
    trial.heat_crowded(&hot, HEAT).await?;
    kill_and_finish(trial, &victim, phase).await
}

/// What the coordinator's own node is to the move that an operator orders.
#[derive(Clone, Copy, Debug)]
pub enum Own {
    /// The replica leaves it: a pause of it would keep the coordinator from coming back.
    Source,
    /// The replica goes there.
    Target,
}

/// The same for a move that an operator orders, off the coordinator's own node or to it.
pub async fn by_order(stage: &Stage, port: u16, phase: &str, own: Own) -> Result<()> {
    let token = stage.token.as_deref().context("an order needs the operator's token: add --token-file")?;
    let name = match own {
        Own::Source => format!("killed-source-{phase}"),
        Own::Target => format!("killed-target-{phase}"),
    };
    let mut web = Web::new(&name, &stage.image("web-stress")?.id, port);
    web.replicas = stage.cluster.nodes.len() as u64;
    let trial = Trial::begin(stage, &web, RATE_HZ).await?;
    let manager = stage.cluster.manager();
    let leaves = |node: &str| match own {
        Own::Source => node == manager.id,
        Own::Target => node != manager.id,
    };
    let mut serving = trial.watcher.serving().into_iter();
    let (victim, task) = serving
        .find(|(_, task)| leaves(&task.node))
        .with_context(|| format!("no replica serves where one is to leave\n{}", trial.picture()))?;
    let mut order = json!({"service": name, "source": stage.cluster.name(&task.node)});
    if matches!(own, Own::Target) {
        order["target"] = json!(manager.name);
    }
    // The coordinator learns of a new service a moment later than who asks the engine.
    let taken = || async { Ok(stage.coordinator.command(token, "migrate", &order).await.is_ok()) };
    until("the order to move is taken", SETTLES, taken).await.with_context(|| trial.picture())?;
    kill_and_finish(trial, &victim, phase).await
}

async fn kill_and_finish(trial: Trial<'_>, victim: &str, phase: &str) -> Result<()> {
    let stage = trial.stage;
    let seen = reaches(stage.cluster.swarm(), &trial.service, phase)
        .await
        .map_err(|error| error.context(trial.picture()))?;
    kill_coordinator(&stage.cluster.manager().engine).await?;
    // Finished, or undone and tried again.
    trial.moved(victim, MOVES).await.with_context(|| format!("killed when the record said {seen}"))?;
    stage.ready(Duration::from_secs(120)).await?;
    trial.settled(SETTLES).await.with_context(|| format!("killed when the record said {seen}"))?;
    end(trial).await
}

/// The phases of a migration in their order.
const PHASES: [&str; 5] = ["leased", "surging", "marking", "draining", "over"];

/// Waits until the record of an action on `service` says `phase` or a later one; returns what it says.
async fn reaches(swarm: &Engine, service: &str, phase: &str) -> Result<String> {
    let place = |phase: &str| PHASES.iter().position(|known| *known == phase);
    let wanted = place(phase).with_context(|| format!("{phase} is no phase of a migration"))?;
    let mut seen = String::new();
    let name = format!("swarmguard-act-{service}");
    let start = swarmguard_runtime::clock::now();
    // Polled as fast as it goes: some phases are a single write long.
    while swarmguard_runtime::clock::now() - start < MOVES {
        if let Some(state) = record_state(swarm, &name).await? {
            if place(&state).is_some_and(|at| at >= wanted) {
                return Ok(state);
            }
            seen = state;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("the migration never came to {phase}, its record last said {seen:?}")
}

async fn record_state(swarm: &Engine, name: &str) -> Result<Option<String>> {
    let configs = swarm.get("/configs").await?;
    let record = configs.as_array().into_iter().flatten().find(|config| config["Spec"]["Name"] == name);
    Ok(record.and_then(|config| config["Spec"]["Labels"][STATE].as_str()).map(str::to_owned))
}

/// SIGKILL, as a crash or an out-of-memory kill would.
pub(super) async fn kill_coordinator(engine: &Engine) -> Result<()> {
    let running = engine.running_of("swarmguard_coordinator").await?;
    let id = running.first().context("no coordinator runs here")?;
    engine.post(&format!("/containers/{id}/kill?signal=KILL"), &Value::Null).await?;
    until("the coordinator is gone", Duration::from_secs(30), || async {
        Ok(engine
            .get(&format!("/containers/{id}/json"))
            .await
            .map_or(true, |it| it["State"]["Running"] != true))
    })
    .await
}
