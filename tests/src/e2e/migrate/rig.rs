//! The service that is moved, the requests that reach it through the balancers, and everything that watches.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use swarmguard_runtime::clock::now;

use super::{ACTION, Migrate, START};
use crate::api::Journal;
use crate::e2e::service::Web;
use crate::e2e::stage::{Stage, until};
use crate::http::Endpoint;
use crate::load::{Load, Plan, Stats};
use crate::tasks::{Seen, Watcher};

/// The service that is moved.
const NAME: &str = "bench_web";
/// An order that comes before the last action is over is given again for so long.
const ORDER: Duration = Duration::from_secs(60);

/// One service under load.
pub struct Rig<'a> {
    pub order: &'a Migrate<'a>,
    pub stage: &'a Stage,
    pub service: String,
    pub watcher: Watcher,
    pub journal: Journal,
    pub load: Load,
}

impl<'a> Rig<'a> {
    /// Creates the service, waits until the balancers answer for it, and starts to send.
    pub async fn build(order: &'a Migrate<'a>, stage: &'a Stage) -> Result<Rig<'a>> {
        let balancers = balancers(order, stage).await?;
        // Moved only by order.
        let labels = [("swarmguard.act-after", "1h"), ("swarmguard.lb.port", "8080")];
        let service = create(order, stage, NAME, &labels).await?;
        let watcher = Watcher::start(stage.cluster.swarm().clone(), &service);
        until("the replica serves", START, || async { Ok(watcher.serving().len() == 1) }).await?;
        for target in &balancers {
            let endpoint = Endpoint::Tcp(*target);
            let what = format!("the balancer at {target} answers for the service");
            until(&what, START, || async { Ok(endpoint.get_json("/").await.is_ok()) }).await?;
        }
        let journal = Journal::follow(stage.coordinator.clone()).await?;
        let load = Load::start(Plan {
            targets: balancers,
            host: "web".to_owned(),
            path: "/".to_owned(),
            workers: 8,
            rate_hz: order.rate_hz,
            limit: Duration::from_secs(20),
        });
        Ok(Rig { order, stage, service, watcher, journal, load })
    }

    /// The replica that serves, with its task. Waits until there is one: a reading that began before the last move ended
    /// still has the one that was moved.
    pub async fn replica(&self) -> Result<(String, Seen)> {
        until("one replica serves", ACTION, || async { Ok(self.watcher.serving().len() == 1) }).await?;
        self.watcher.serving().into_iter().next().context("no replica serves")
    }

    /// Waits until one replica serves, every other has ended, and no action is under way.
    pub async fn at_rest(&self) -> Result<()> {
        until("the last move is over", ACTION, || async {
            let tasks = self.watcher.tasks();
            let alone = tasks.values().filter(|task| task.serves()).count() == 1
                && tasks.values().all(|task| task.serves() || task.ended.is_some());
            Ok(alone && no_action(self.stage).await)
        })
        .await
    }

    /// Ends the load and removes the service.
    pub async fn end(self) -> Result<Stats> {
        let stats = self.load.finish().await;
        self.stage.cluster.swarm().delete(&format!("/services/{}", self.service)).await?;
        Ok(stats)
    }
}

/// Creates a service of one replica on the balancers' network whose image is healthy about a second after its start.
pub async fn create(
    order: &Migrate<'_>,
    stage: &Stage,
    name: &str,
    labels: &[(&str, &str)],
) -> Result<String> {
    let mut web = Web::new(name, &stage.image("web-stress")?.id, 0);
    for (key, value) in labels {
        web = web.label(key, value);
    }
    // To the node itself, nobody further.
    web.env.push("WEB_STRESS_NETWORK_SINK=gateway".to_owned());
    let mut spec = web.spec();
    // The engine checks for the first time one interval after the start.
    spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"]["Interval"] = json!(1_000_000_000_u64);
    spec["TaskTemplate"]["Networks"] = json!([{"Target": order.network}]);
    spec["EndpointSpec"] = json!({});
    stage.cluster.swarm().create_service(&spec).await
}

/// Where the balancers listen, once all of them run.
pub async fn balancers(order: &Migrate<'_>, stage: &Stage) -> Result<Vec<SocketAddr>> {
    let swarm = stage.cluster.swarm();
    let service = swarm.service_by_name(order.balancer).await?;
    let id = service["ID"].as_str().context("a service without ID")?;
    let wanted = service["Spec"]["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(1);
    let watcher = Watcher::start(swarm.clone(), id);
    until("every balancer runs", START, || async { Ok(watcher.serving().len() as u64 == wanted) }).await?;
    let nodes = watcher.serving().into_values().filter_map(|task| stage.cluster.node(&task.node).cloned());
    Ok(nodes.map(|node| SocketAddr::new(node.ip, order.port)).collect())
}

/// Nothing is under way, as the coordinator sees it.
pub async fn no_action(stage: &Stage) -> bool {
    let actions = stage.coordinator.get("/api/v1/actions").await.unwrap_or_default();
    actions.as_array().is_some_and(Vec::is_empty)
}

/// Gives an order and returns its action; one that comes too early is given again.
pub async fn command(order: &Migrate<'_>, stage: &Stage, name: &str, body: &Value) -> Result<String> {
    let start = now();
    loop {
        let error = match stage.coordinator.command(order.token, name, body).await {
            Ok(answer) => return Ok(answer["action"].as_str().unwrap_or_default().to_owned()),
            Err(error) => error,
        };
        if now() - start > ORDER {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How long a container took from its start to its first `healthy`, in milliseconds, as its engine recorded both.
pub async fn image_ms(stage: &Stage, task: &Seen) -> Result<f64> {
    let node = stage.cluster.node(&task.node).context("the successor runs on no node of the cluster")?;
    let inspected = node.engine.get(&format!("/containers/{}/json", task.container)).await?;
    let began = inspected["State"]["StartedAt"].as_str().context("the container never started")?.to_owned();
    let events = node.engine.past_events(&task.container, &["start", "health_status"]).await?;
    let mut times: BTreeMap<&str, u64> = BTreeMap::new();
    for event in &events {
        let (Some(action), Some(at)) = (event["Action"].as_str(), event["timeNano"].as_u64()) else {
            continue;
        };
        let word = if action.ends_with(": healthy") { "healthy" } else { action };
        times.entry(word).or_insert(at);
    }
    let (start, healthy) = times.get("start").zip(times.get("healthy")).with_context(|| {
        format!("the engine of {} kept no start and healthy of a container begun {began}", node.name)
    })?;
    Ok(Duration::from_nanos(healthy.saturating_sub(*start)).as_secs_f64() * 1_000.0)
}
