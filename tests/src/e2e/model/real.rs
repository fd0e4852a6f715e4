//! The engine's side: the same calls on a real swarm, and pictures of what it does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use swarmguard_core::swarm::TaskState;
use swarmguard_runtime::clock::now;

use super::picture::{Painter, Picture, Raw};
use super::script::{Answer, Call, Cast, Fields, Until, fill, set};
use crate::cluster::Cluster;
use crate::e2e::stage;
use crate::engine::Engine;

/// How often an engine is asked.
const EVERY: Duration = Duration::from_millis(40);
/// How long a picture must stand. Swarm reacts within tens of milliseconds; its scheduler and its dispatcher gather for
/// at most one second.
const QUIET: Duration = Duration::from_millis(1_000);
/// The same where a node falls silent and nothing is to come of it: three heartbeats of five seconds may be missed
/// before it counts as down.
const LONG_QUIET: Duration = Duration::from_secs(19);
/// Longest that an engine may take to settle.
const LIMIT: Duration = Duration::from_secs(120);
/// Prefix of everything that this tier makes.
const PREFIX: &str = "model-";

/// One script on an engine.
pub struct Real<'a> {
    cluster: &'a Cluster,
    /// Cuts and restores the power of nodes, where that is possible.
    power: Option<&'a Power>,
    image: &'a str,
    name: String,
    service: String,
    version: u64,
    configs: BTreeMap<&'static str, u64>,
    painter: Painter,
}

/// How nodes lose their power: the program that made the cluster knows.
#[derive(Clone, Debug)]
pub struct Power {
    /// That program.
    pub program: PathBuf,
    /// Its name for the cluster.
    pub cluster: String,
}

impl<'a> Real<'a> {
    /// Ready to play the script of this name.
    pub fn new(cluster: &'a Cluster, power: Option<&'a Power>, image: &'a str, script: &str) -> Self {
        Real {
            cluster,
            power,
            image,
            name: format!("{PREFIX}{script}"),
            service: String::new(),
            version: 0,
            configs: BTreeMap::new(),
            painter: Painter::default(),
        }
    }

    /// Carries a call out.
    ///
    /// # Errors
    /// Where the engine does not answer, or the call makes no sense in the script.
    pub async fn call(&mut self, call: &Call, cast: &Cast) -> Result<Answer> {
        self.painter.begin();
        let swarm = self.cluster.swarm();
        let outcome = match call {
            Call::Create(fields) => {
                let mut spec = json!({});
                set(&mut spec, &self.filled(fields, cast));
                spec["Name"] = json!(self.name);
                spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!(self.image);
                let made = swarm.create_service(&spec).await;
                if let Ok(id) = &made {
                    self.service.clone_from(id);
                    self.version = version(&swarm.get(&format!("/services/{id}")).await?)?;
                }
                made.map(drop)
            }
            Call::Write(fields) | Call::WriteStale(fields) => {
                let mut service = swarm.get(&format!("/services/{}", self.service)).await?;
                let stale = matches!(call, Call::WriteStale(_));
                let version = if stale { self.version } else { version(&service)? };
                set(&mut service["Spec"], &self.filled(fields, cast));
                let path = format!("/services/{}/update?version={version}", self.service);
                swarm.post(&path, &service["Spec"]).await.map(drop)
            }
            Call::Node(role, fields) => {
                let id = self.id_of(role, cast)?;
                let mut node = swarm.get(&format!("/nodes/{id}")).await?;
                let version = version(&node)?;
                set(&mut node["Spec"], fields);
                swarm.post(&format!("/nodes/{id}/update?version={version}"), &node["Spec"]).await.map(drop)
            }
            Call::Crash(role) => self.crash(&self.id_of(role, cast)?).await,
            Call::Config(name) => {
                let spec = json!({"Name": format!("{PREFIX}{name}"), "Data": "ZGF0YQ=="});
                let made = swarm.post("/configs/create", &spec).await;
                if made.is_ok() {
                    let config = self.config(name).await?;
                    self.configs.insert(*name, version(&config)?);
                }
                made.map(drop)
            }
            Call::Label { name, stale } => {
                let mut config = self.config(name).await?;
                let made = self.configs.get(name).copied().unwrap_or_default();
                let version = if *stale { made } else { version(&config)? };
                let id = config["ID"].as_str().context("a config without ID")?.to_owned();
                config["Spec"]["Labels"] = json!({"state": "next"});
                let path = format!("/configs/{id}/update?version={version}");
                swarm.post(&path, &config["Spec"]).await.map(drop)
            }
            Call::PowerCut(role) => {
                let node = self.power("kill", role, cast).await?;
                self.painter.power(&node, false);
                Ok(())
            }
            Call::PowerOn(role) => {
                let node = self.power("boot", role, cast).await?;
                self.painter.power(&node, true);
                Ok(())
            }
        };
        match outcome {
            Ok(()) => Ok(Answer::Done),
            Err(error) => answer(&error).with_context(|| format!("{call:?}: {error:#}")),
        }
    }

    /// The picture, once it stands.
    ///
    /// # Errors
    /// Where it does not come to rest, or the engine does not answer.
    pub async fn settle(&mut self, until: Until) -> Result<Picture> {
        let quiet = if until == Until::LongRest { LONG_QUIET } else { QUIET };
        let start = now();
        loop {
            self.paint().await?;
            if let Some(picture) = self.painter.settled(until, quiet, now()) {
                return Ok(picture.clone());
            }
            if now() - start > LIMIT {
                bail!("the engine does not come to rest in {} s:\n{}", LIMIT.as_secs(), self.painter.last());
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn paint(&mut self) -> Result<()> {
        let swarm = self.cluster.swarm();
        let service = swarm.get(&format!("/services/{}", self.service)).await?;
        let mut raw = Vec::new();
        for task in swarm.tasks(&self.service).await? {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            raw.push(Raw {
                id: text(&task["ID"]),
                slot: task["Slot"].as_u64().unwrap_or_default(),
                created: text(&task["CreatedAt"]),
                node: task["NodeID"].as_str().map(|id| self.cluster.name(id).to_owned()),
                desired: state(&task["DesiredState"])?,
                state: state(&task["Status"]["State"])?,
            });
        }
        let update = service["UpdateStatus"]["State"].as_str().unwrap_or_default().to_owned();
        self.painter.paint(raw, update, now());
        Ok(())
    }

    /// Ends the one container of the service on a node.
    async fn crash(&self, node: &str) -> Result<()> {
        let engine = &self.cluster.node(node).context("no such node")?.engine;
        let running = engine.running_of(&self.name).await?;
        let [container] = running.as_slice() else {
            bail!("{} containers run on {}, not one", running.len(), self.cluster.name(node));
        };
        engine.post(&format!("/containers/{container}/kill"), &Value::Null).await.map(drop)
    }

    async fn power(&self, verb: &str, role: &str, cast: &Cast) -> Result<String> {
        let power = self.power.context("nobody here can cut the power of a node: add --xtask")?;
        let node = cast.get(role).with_context(|| format!("no node is cast as {role}"))?;
        let output = tokio::process::Command::new(&power.program)
            .args(["cluster", verb, node, "--name", &power.cluster])
            .output()
            .await
            .with_context(|| format!("cannot run {}", power.program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cluster {verb} {node} failed: {}", said.trim());
        Ok(node.clone())
    }

    async fn config(&self, name: &str) -> Result<Value> {
        let all = self.cluster.swarm().get("/configs").await?;
        let full = format!("{PREFIX}{name}");
        let mut all = all.as_array().into_iter().flatten();
        all.find(|config| config["Spec"]["Name"] == full.as_str()).cloned().context("no such config")
    }

    fn id_of(&self, role: &str, cast: &Cast) -> Result<String> {
        let name = cast.get(role).with_context(|| format!("no node is cast as {role}"))?;
        self.node_id(name).with_context(|| format!("no node is called {name}"))
    }

    fn node_id(&self, name: &str) -> Option<String> {
        self.cluster.nodes.iter().find(|node| node.name == name).map(|node| node.id.clone())
    }

    fn filled(&self, fields: &Fields, cast: &Cast) -> Fields {
        fill(fields, cast, |name| self.node_id(name))
    }
}

/// Takes away what this tier made, also in a run that was interrupted, and makes every node as it was.
///
/// # Errors
/// Where the engine does not do it in two minutes.
pub async fn clean(cluster: &Cluster) -> Result<()> {
    let swarm = cluster.swarm();
    remove(swarm).await?;
    for node in &cluster.nodes {
        let mut read = swarm.get(&format!("/nodes/{}", node.id)).await?;
        let version = version(&read)?;
        if read["Spec"]["Availability"] != "active" || read["Spec"]["Labels"] != json!({}) {
            read["Spec"]["Availability"] = json!("active");
            read["Spec"]["Labels"] = json!({});
            swarm.post(&format!("/nodes/{}/update?version={version}", node.id), &read["Spec"]).await?;
        }
    }
    stage::until("every node is ready and nothing of ours runs", LIMIT, || async {
        let nodes = swarm.get("/nodes").await?;
        let ready = nodes.as_array().into_iter().flatten().all(|node| node["Status"]["State"] == "ready");
        // Tasks of other services would sway the scheduler. Those that ended do not, and an engine keeps a removed job's.
        let tasks = swarm.get("/tasks").await?;
        let over = |task: &Value| state(&task["Status"]["State"]).is_ok_and(|it| it > TaskState::Running);
        Ok(ready && tasks.as_array().is_some_and(|tasks| tasks.iter().all(over)))
    })
    .await
}

/// Removes what scripts made.
///
/// # Errors
/// Where the engine does not.
pub async fn remove(swarm: &Engine) -> Result<()> {
    for (kind, name) in [("services", "/Spec/Name"), ("configs", "/Spec/Name")] {
        let all = swarm.get(&format!("/{kind}")).await?;
        for object in all.as_array().into_iter().flatten() {
            let ours = object.pointer(name).and_then(Value::as_str).is_some_and(|n| n.starts_with(PREFIX));
            if let Some(id) = object["ID"].as_str().filter(|_| ours) {
                swarm.delete(&format!("/{kind}/{id}")).await?;
            }
        }
    }
    Ok(())
}

fn version(object: &Value) -> Result<u64> {
    object["Version"]["Index"].as_u64().context("an object without version")
}

fn state(value: &Value) -> Result<TaskState> {
    serde_json::from_value(value.clone()).with_context(|| format!("{value} is no task state"))
}

/// What an engine's refusal means. By its words: a stale version is a 500 like any other trouble.
fn answer(error: &anyhow::Error) -> Option<Answer> {
    let said = format!("{error:#}");
    let any = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if any(&["update out of sequence", "409 Conflict"]) {
        Some(Answer::Conflict)
    } else if any(&["400 Bad Request", "403 Forbidden", "404 Not Found"]) {
        Some(Answer::Refused)
    } else {
        None
    }
}
