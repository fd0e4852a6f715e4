//! The same surge by bare API calls, as fast as Swarm lets one: no lease, no record, no settling, no word to the
//! balancers. What SwarmGuard's migrations are compared with.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use swarmguard_runtime::clock::now;

use super::ACTION;
use super::rig::{Rig, image_ms};

/// Pause between two looks.
const EVERY: Duration = Duration::from_millis(50);

/// One surge; milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Surge {
    /// The first call to the last.
    pub total_ms: f64,
    /// The successor's container from its start to its first `healthy`.
    pub image_ms: f64,
}

impl fmt::Display for Surge {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { total_ms, image_ms } = self;
        write!(out, "{total_ms:.0} ms, of these the image {image_ms:.0}")
    }
}

/// Moves the replica off its node.
pub async fn one(rig: &Rig<'_>) -> Result<Surge> {
    let swarm = rig.stage.cluster.swarm();
    let (old, replica) = rig.replica().await?;
    let source = replica.node;
    let before = swarm.service_spec(&rig.service).await?;
    let start = now();
    swarm.set_availability(&source, "pause").await?;
    swarm.update_service(&rig.service, |spec| spec["Mode"]["Replicated"]["Replicas"] = json!(2)).await?;
    let new = wait(rig, "the successor runs", |tasks| {
        tasks.iter().find(|task| task["ID"] != old.as_str() && task["Status"]["State"] == "running").cloned()
    })
    .await?;
    swarm
        .update_service(&rig.service, |spec| {
            spec["TaskTemplate"]["Placement"]["Constraints"] = json!([format!("node.id!={source}")]);
            spec["TaskTemplate"]["Placement"]["Platforms"] = json!([{"OS": "none", "Architecture": "none"}]);
            spec["UpdateConfig"] =
                json!({"Parallelism": 1, "Order": "start-first", "FailureAction": "pause"});
        })
        .await?;
    wait(rig, "a twin is pending", |tasks| {
        tasks.iter().find(|task| task["Status"]["State"] == "pending").cloned()
    })
    .await?;
    swarm.update_service(&rig.service, |spec| spec.clone_from(&before)).await?;
    wait(rig, "the old replica goes", |tasks| {
        let [only] = tasks else { return None };
        (only["ID"] == new["ID"] && only["Status"]["State"] == "running").then(|| only.clone())
    })
    .await?;
    swarm.set_availability(&source, "active").await?;
    let total_ms = (now() - start).as_secs_f64() * 1_000.0;
    ensure!(new["NodeID"] != source.as_str(), "the successor runs on the source");
    let id = new["ID"].as_str().context("a task without ID")?;
    rig.at_rest().await?;
    let moved = rig.watcher.tasks().get(id).cloned().context("the successor was not seen")?;
    Ok(Surge { total_ms, image_ms: image_ms(rig.stage, &moved).await? })
}

/// Looks at the tasks that Swarm wants until something is found among them.
async fn wait(rig: &Rig<'_>, what: &str, found: impl Fn(&[Value]) -> Option<Value>) -> Result<Value> {
    let start = now();
    loop {
        let mut tasks = rig.stage.cluster.swarm().tasks(&rig.service).await?;
        tasks.retain(|task| matches!(task["DesiredState"].as_str(), Some("running" | "ready")));
        if let Some(task) = found(&tasks) {
            return Ok(task);
        }
        ensure!(now() - start < ACTION, "waited in vain until {what}: {}", Value::Array(tasks));
        tokio::time::sleep(EVERY).await;
    }
}
