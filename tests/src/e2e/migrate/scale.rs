//! Replicas made hot by demand: how long from the first sample over the threshold until one more runs.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;
use swarmguard_common::journal::{Entry, Kind};
use swarmguard_runtime::clock::{now, wall_ms};

use super::rig::{balancers, command, create, image_ms, no_action};
use super::{ACTION, Migrate, START, say};
use crate::api::{Journal, is_about};
use crate::e2e::heat;
use crate::e2e::stage::{Stage, until};
use crate::http::Endpoint;
use crate::tasks::Watcher;

const NAME: &str = "bench_scale";
/// How long an alert must stand, as its label says.
const ACT_AFTER: Duration = Duration::from_secs(3);
/// CPU and network at once, for longer than any scaling takes; the network alone is far over its threshold.
const HEAT: &str = "/stress/combined?target=95&mbps=15&duration=20";
/// Longer than the load lasts.
const CALM: Duration = Duration::from_secs(60);

/// One scale-out; milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Scale {
    /// First sample over the threshold until the new replica ran, less act-after.
    pub less_act_after_ms: f64,
    /// From when the replica was told to be busy until the new one ran, act-after included.
    pub from_load_ms: f64,
    /// The new container from its start to its first `healthy`.
    pub image_ms: f64,
}

/// Scales out as often as ordered; what was seen before an error is kept.
pub async fn measure(order: &Migrate<'_>, stage: &Stage, scales: &mut Vec<Scale>) -> Result<()> {
    let labels = [
        ("swarmguard.lb.port", "8080"),
        ("swarmguard.lb.path", "/stress"),
        // Above what an emulated node uses for itself, a third of a CPU: else none had room.
        ("swarmguard.cpu.high", "45"),
        ("swarmguard.network.mbps", "10"),
        ("swarmguard.act-after", "3s"),
        ("swarmguard.cooldown", "0s"),
        ("swarmguard.scale.min", "1"),
        ("swarmguard.scale.max", "2"),
        ("swarmguard.scale.up.cooldown", "0s"),
        ("swarmguard.scale.down.cooldown", "0s"),
        // Back only by order.
        ("swarmguard.scale.down.window", "1d"),
    ];
    let service = create(order, stage, NAME, &labels).await?;
    let targets = balancers(order, stage).await?;
    let doors: Vec<Endpoint> = targets.iter().copied().map(Endpoint::Tcp).collect();
    let watcher = Watcher::start(stage.cluster.swarm().clone(), &service);
    until("the replica serves", START, || async { Ok(watcher.serving().len() == 1) }).await?;
    for target in &targets {
        let endpoint = Endpoint::Tcp(*target);
        let what = format!("the balancer at {target} answers for the service");
        until(&what, START, || async { Ok(endpoint.get_json("/stress/stop").await.is_ok()) }).await?;
    }
    let journal = Journal::follow(stage.coordinator.clone()).await?;
    for number in 1..=order.scales {
        until("no alert stands", CALM, || async { Ok(calm(stage, &service).await) }).await?;
        let (_, replica) = watcher.serving().into_iter().next().context("no replica serves")?;
        let from = journal.entries(0).len();
        heat::tell(&doors, replica.host(), HEAT).await?;
        let (heated, heated_ms) = (now(), wall_ms());
        let about = || {
            let entries = journal.entries(from).into_iter().map(|heard| heard.entry);
            entries.filter(|entry| is_about(entry, &service)).collect::<Vec<Entry>>()
        };
        let over =
            || async { Ok(about().iter().any(|entry| matches!(entry.code.as_str(), "done" | "undone"))) };
        until("a replica was added", ACTION, over).await.with_context(|| listed(&about()))?;
        let entries = about();
        let (crossed, ran) = span(&entries).with_context(|| listed(&entries))?;
        let task = entries.iter().find(|entry| entry.code == "successor_healthy");
        let task = task.and_then(|entry| entry.task.clone()).context("the journal names no successor")?;
        let seen = || async { Ok(watcher.serving().keys().any(|id| id == task.as_str())) };
        until("the new replica is seen serving", START, seen).await?;
        let added = watcher.tasks().get(task.as_str()).cloned().context("the new replica vanished")?;
        let one = Scale {
            less_act_after_ms: ran - crossed - ACT_AFTER.as_secs_f64() * 1_000.0,
            from_load_ms: ran - ms(heated_ms),
            image_ms: image_ms(stage, &added).await?,
        };
        say(&format!(
            "scale {number} of {}: {:.0} ms after the crossing less {ACT_AFTER:?}, {:.0} ms after the load began ({:.1} s ago), image {:.0} ms",
            order.scales,
            one.less_act_after_ms,
            one.from_load_ms,
            (now() - heated).as_secs_f64(),
            one.image_ms
        ));
        scales.push(one);
        until("the action is over", ACTION, || async { Ok(no_action(stage).await) }).await?;
        command(order, stage, "scale", &json!({"service": service, "replicas": 1})).await?;
        let single = || async { Ok(watcher.serving().len() == 1 && no_action(stage).await) };
        until("one replica is left", ACTION, single).await?;
    }
    stage.cluster.swarm().delete(&format!("/services/{service}")).await
}

/// First sample over the threshold, and when the new replica ran; both by the coordinator's wall clock, which is this
/// machine's.
fn span(entries: &[Entry]) -> Result<(f64, f64)> {
    let raised = entries.iter().find(|entry| entry.kind == Kind::Alert && entry.code == "cpu_high_raise");
    let raised = raised.context("no alert of CPU was raised")?;
    let age = raised.figures.get("age_ms").copied().unwrap_or_default();
    let ran = entries.iter().find(|entry| entry.code == "successor_healthy");
    let ran = ran.context("no replica was added")?;
    Ok((ms(raised.at_ms) - age, ms(ran.at_ms)))
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^52")]
fn ms(wall: u64) -> f64 {
    wall as f64
}

async fn calm(stage: &Stage, service: &str) -> bool {
    let alerts = stage.coordinator.get("/api/v1/alerts").await.unwrap_or_default();
    alerts.as_array().is_some_and(|all| all.iter().all(|alert| alert["service"] != service))
}

fn listed(entries: &[Entry]) -> String {
    let lines: Vec<String> = entries.iter().map(crate::api::line).collect();
    format!("the journal since the load began:\n{}", lines.join("\n"))
}
