//! Swarm, read and written through the engine beside us: any manager's engine passes writes on to the leader.

#[cfg(test)]
mod docker29_tests;
mod http;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use ::http::Method;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use swarmguard_common::{domain::NodeId, time::Time};
use swarmguard_core::{
    command::{Command, CommandError, CommandResult},
    swarm::{
        Node, RecordObject, Service, Snapshot, Task,
        engine::{self, FromEngine, Listed},
    },
};
use swarmguard_runtime::clock;
use tokio::sync::{Mutex, watch};
use tracing::{debug, warn};

pub use http::{Engine, EngineError};

use crate::seam::SwarmApi;

/// Pause before the event stream is opened again, at first and at most.
const REOPEN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Reads and writes one swarm.
#[derive(Debug)]
pub struct Client {
    engine: Arc<Engine>,
    own_node: Mutex<Option<NodeId>>,
    changes: watch::Sender<u64>,
}

impl Client {
    /// A client of the engine at `unix:///path` or `tcp://host:port`; nothing is connected before the first reading.
    ///
    /// # Errors
    /// When the address is neither.
    pub fn new(address: &str) -> Result<Arc<Self>, EngineError> {
        let engine = Arc::new(Engine::new(address)?);
        Ok(Arc::new(Self { engine, own_node: Mutex::default(), changes: watch::Sender::new(0) }))
    }

    /// Listens to the engine's events until the client is dropped, so that [`SwarmApi::changes`] counts. Events are only
    /// hints: readings happen without them too, and tasks have none.
    pub fn watch(self: &Arc<Self>) {
        let (client, engine) = (Arc::downgrade(self), Arc::clone(&self.engine));
        tokio::spawn(async move {
            let mut pause = REOPEN.0;
            while client.strong_count() > 0 {
                let count = || client.upgrade().map(|client| client.changes.send_modify(|count| *count += 1));
                match listen(&engine, count).await {
                    Ok(()) => pause = REOPEN.0,
                    Err(error) => debug!(%error, "the engine's events stopped"),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(REOPEN.1);
            }
        });
    }

    /// Reads the whole swarm at once.
    ///
    /// # Errors
    /// When the engine does not answer, or is not a manager's.
    pub async fn snapshot(&self) -> Result<Snapshot, EngineError> {
        let taken = clock::now();
        let ours = http::filters(&json!({ "name": [engine::OWN_CONFIGS] }));
        let configs_path = format!("/configs{ours}");
        let read = tokio::try_join!(
            self.own_node(),
            self.engine.get_bytes("/nodes"),
            self.engine.get_bytes("/services"),
            self.engine.get_bytes("/tasks"),
            self.engine.get_bytes(&configs_path),
        );
        let (own_node, nodes, services, tasks, configs) = match read {
            Ok(read) => read,
            Err(error) => {
                // A restarted engine may speak another version, or be another node.
                self.engine.forget().await;
                *self.own_node.lock().await = None;
                return Err(error);
            }
        };
        let answers = Answers { nodes, services, tasks, configs };
        // A large swarm's answers take long to understand: agents are not to wait for it.
        let read = tokio::task::spawn_blocking(move || answers.read(taken, own_node)).await;
        read.unwrap_or_else(|error| Err(self.engine.no_answer("reading the swarm", &error)))
    }

    /// The node that the engine runs.
    async fn own_node(&self) -> Result<NodeId, EngineError> {
        let mut known = self.own_node.lock().await;
        if let Some(node) = known.as_ref() {
            return Ok(node.clone());
        }
        let info = self.engine.get("/info").await?;
        let id = info.pointer("/Swarm/NodeID").and_then(Value::as_str).unwrap_or_default();
        let node: NodeId = id.parse().map_err(|_| EngineError::Answer {
            request: "GET /info".into(),
            status: 200,
            words: "it is not part of a swarm".into(),
        })?;
        *known = Some(node.clone());
        Ok(node)
    }

    /// Carries out one command. Those for the balancers are not Swarm's and are refused.
    ///
    /// # Errors
    /// As [`CommandError`] says. After [`CommandError::Unavailable`] it may have been done all the same.
    pub async fn execute(&self, command: &Command) -> CommandResult {
        let done = match command {
            Command::CreateRecord { name, labels, data } => {
                let body = json!({ "Name": name, "Labels": labels, "Data": engine::encode(data) });
                self.post("/configs/create".into(), &body).await
            }
            Command::UpdateRecord { id, version, name, labels, data } => {
                let body = json!({ "Name": name, "Labels": labels, "Data": engine::encode(data) });
                self.post(format!("/configs/{id}/update?version={version}"), &body).await
            }
            Command::RemoveRecord { id } => {
                let removed = self.engine.send(Method::DELETE, &format!("/configs/{id}"), None).await;
                match removed.map(drop) {
                    Err(EngineError::Answer { status: 404, .. }) => Ok(()),
                    other => other,
                }
            }
            Command::WriteService { service, version, spec } => {
                let path = format!("/services/{service}/update?version={version}&registryAuthFrom=spec");
                self.post(path, spec).await
            }
            Command::WriteNode { node, version, spec } => {
                self.post(format!("/nodes/{node}/update?version={version}"), spec).await
            }
            Command::DrainBalancers { .. } | Command::ResumeBalancers { .. } => {
                return Err(CommandError::Refused("balancers are not Swarm's".into()));
            }
        };
        done.map_err(|error| meaning(&error))
    }

    async fn post(&self, path: String, body: &Value) -> Result<(), EngineError> {
        self.engine.send(Method::POST, &path, Some(body)).await.map(drop)
    }
}

impl SwarmApi for Client {
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, String>> {
        Box::pin(async move { Self::snapshot(self).await.map_err(|error| error.to_string()) })
    }

    fn execute(&self, command: Command) -> BoxFuture<'_, CommandResult> {
        Box::pin(async move { Self::execute(self, &command).await })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Counts events until the stream ends. What they say does not matter: the next reading tells.
async fn listen(engine: &Engine, count: impl Fn() -> Option<()>) -> Result<(), EngineError> {
    let wanted = json!({
        "type": ["service", "node", "config", "container"],
        "event": ["create", "update", "remove", "start", "die", "health_status"],
    });
    let mut events = engine.stream(&format!("/events{}", http::filters(&wanted))).await?;
    while let Some(Ok(frame)) = events.frame().await {
        if frame.is_data() && count().is_none() {
            break;
        }
    }
    Ok(())
}

/// A whole swarm, as the engine tells it.
struct Answers {
    nodes: Bytes,
    services: Bytes,
    tasks: Bytes,
    configs: Bytes,
}

impl Answers {
    fn read(self, taken: Time, own_node: NodeId) -> Result<Snapshot, EngineError> {
        // The longest first: its text is gone before the others add to what is held.
        let tasks: Vec<Task> = listed("/tasks", &self.tasks)?;
        drop(self.tasks);
        Ok(Snapshot {
            taken,
            own_node: Some(own_node),
            tasks: tasks.into_iter().map(|task| (task.id.clone(), task)).collect(),
            nodes: listed::<Node>("/nodes", &self.nodes)?
                .into_iter()
                .map(|node| (node.id.clone(), node))
                .collect(),
            services: listed::<Service>("/services", &self.services)?
                .into_iter()
                .map(|service| (service.id.clone(), service))
                .collect(),
            records: listed::<RecordObject>("/configs", &self.configs)?
                .into_iter()
                .map(|record| (record.name.clone(), record))
                .collect(),
        })
    }
}

fn listed<T: FromEngine>(path: &str, bytes: &[u8]) -> Result<Vec<T>, EngineError> {
    let Listed { items, odd } = engine::list(bytes).map_err(|error| EngineError::Answer {
        request: format!("GET {path}"),
        status: 200,
        words: format!("not a list of objects: {error}"),
    })?;
    if let Some(why) = odd {
        warn!(path, why, "an object of the engine is not understood and left out");
    }
    Ok(items)
}

/// What an engine's answer means for the judgement.
fn meaning(error: &EngineError) -> CommandError {
    let text = error.to_string();
    match error {
        EngineError::Answer { status: 404, .. } => CommandError::Gone(text),
        EngineError::Answer { status: 409, .. } => CommandError::Conflict(text),
        // Swarm's compare-and-swap has no status of its own.
        EngineError::Answer { status: 500.., words, .. } if words.contains("out of sequence") => {
            CommandError::Conflict(text)
        }
        EngineError::Answer { status: 400..=499, .. } | EngineError::Address(_) => {
            CommandError::Refused(text)
        }
        EngineError::Answer { .. } | EngineError::NoAnswer { .. } => CommandError::Unavailable(text),
    }
}
