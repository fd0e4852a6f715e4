//! Telling one particular replica to be busy, through the same door that everybody uses; and who shares its node.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::body::Bytes;
use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::stage::Stage;
use crate::cluster::Node;
use crate::http::{Endpoint, text};

/// Per cent of a node's CPU that a replica is told to use: twice its threshold, so that it stays over that also where it
/// has to share. Alone it leaves the node room: SwarmGuard moves a replica only from a node that is short, and only to one
/// that is not short with it.
pub const HEAT: &str = "/stress/cpu?target=60&duration=600&ramp=1";
/// Per cent of a node's CPU that a neighbour uses, which is no service and whose node it is as much as the replica's.
/// Together with the replica and the engine it makes the node short.
const NEIGHBOUR: u32 = 45;
/// The neighbour's container.
const NAME: &str = "neighbour";

/// How often the door is asked until it hits the replica meant.
const TRIES: usize = 200;

/// Sends `path` (with a query, without `host=`) to the replica whose container has the host name `host`: mesh and
/// balancers hand requests out in turns, and every other replica declines.
///
/// # Errors
/// Where the replica is not reached, or refuses.
pub async fn tell(doors: &[Endpoint], host: &str, path: &str) -> Result<()> {
    let separator = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{separator}host={host}");
    let mut last = String::new();
    for attempt in 0..TRIES {
        match doors[attempt % doors.len()]
            .call(Method::POST, &path, Bytes::new(), Duration::from_secs(10))
            .await
        {
            Ok((StatusCode::OK, _)) => return Ok(()),
            Ok((StatusCode::MISDIRECTED_REQUEST, body)) => last = text(&body),
            Ok((status, body)) => bail!("{host} refused {path}: {status}: {}", text(&body)),
            Err(error) => last = format!("{error:#}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("{host} was not reached in {TRIES} tries, the last one said: {last}")
}

/// Starts a container on a node beside Swarm's own, which keeps a part of its CPU busy until [`leave`].
///
/// # Errors
/// Where the node is unknown, or its engine's.
pub async fn crowd(stage: &Stage, node: &str) -> Result<()> {
    let node = stage.cluster.node(node).context("a replica on no node of the cluster")?;
    let mut env = vec![format!("WEB_STRESS_BUSY={NEIGHBOUR}")];
    env.extend(allowance(node));
    let create = json!({
        "Image": stage.image("web-stress")?.id, "Env": env, "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {"NetworkMode": "none"},
    });
    leave(node).await?;
    node.engine.post(&format!("/containers/create?name={NAME}"), &create).await?;
    node.engine.post(&format!("/containers/{NAME}/start"), &Value::Null).await.map(drop)
}

/// Removes the neighbour from a node, where there is one.
///
/// # Errors
/// The engine's.
pub async fn leave(node: &Node) -> Result<()> {
    let there = node.engine.get("/containers/json?all=true").await?;
    let name = format!("/{NAME}");
    let is_it =
        |container: &Value| container["Names"].as_array().is_some_and(|all| all.contains(&json!(name)));
    if there.as_array().into_iter().flatten().any(is_it) {
        node.engine.delete(&format!("/containers/{NAME}?force=true")).await?;
    }
    Ok(())
}

/// The variable that says what a container on this node may use, where it cannot see that itself.
pub fn allowance(node: &Node) -> Option<String> {
    node.cpu_millis.map(|millis| format!("WEB_STRESS_CPUS={}", f64::from(millis) / 1_000.0))
}
