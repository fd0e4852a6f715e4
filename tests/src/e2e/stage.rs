//! What every scenario stands on: a cluster with SwarmGuard running on it, the images, and waiting for things.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use swarmguard_runtime::clock::now;
use tokio::task::JoinSet;

use super::heat;
use super::service::Web;
use crate::api::Coordinator;
use crate::cluster::Cluster;
use crate::http::Endpoint;
use crate::tasks::{Seen, Tasks, Watcher};

/// Port of the coordinators' API.
const API_PORT: u16 = 7480;

/// One image, as `cargo xtask image` lists it.
#[derive(Clone, Debug, Deserialize)]
pub struct Image {
    /// `agent`, `coordinator`, `balancer`, `web-stress`.
    pub name: String,
    /// `sha256:…`
    pub id: String,
    /// What an engine loads.
    pub archive: PathBuf,
}

/// How requests come to the replicas of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Front {
    /// Through Swarm's routing mesh, which needs a kernel with IPVS: every node answers on the published port.
    Mesh,
    /// Through SwarmGuard's balancers on this overlay network, found by the requests' host.
    Balancers {
        /// The network that balancers and services are on.
        network: String,
        /// Where the balancers listen.
        targets: Vec<SocketAddr>,
    },
}

/// The balancers' service, and their port on the nodes that they run on.
const BALANCER: &str = "balancer_balancer";
const BALANCER_PORT: u16 = 8081;

/// How long balancers may take to start.
const START: Duration = Duration::from_secs(180);

/// The cluster and what is needed on it.
#[derive(Clone, Debug)]
pub struct Stage {
    /// The nodes.
    pub cluster: Cluster,
    /// Images by name.
    pub images: BTreeMap<String, Image>,
    /// The coordinator beside the first manager.
    pub coordinator: Coordinator,
    /// The operator's token for commands, where one was given.
    pub token: Option<String>,
    /// How requests come in.
    pub front: Front,
}

impl Stage {
    /// Opens a cluster, the list of images, and the file with the operator's token. Requests go through the balancers on
    /// `network`, where one is named.
    ///
    /// # Errors
    /// Where a file cannot be read, an engine does not answer, or balancers do not come to run.
    pub async fn open(
        state: &Path,
        images: &Path,
        token: Option<&Path>,
        network: Option<&str>,
    ) -> Result<Self> {
        let cluster = Cluster::open(state).await?;
        let text = std::fs::read(images)
            .with_context(|| format!("cannot read {}: run cargo xtask image", images.display()))?;
        let list: Vec<Image> = serde_json::from_slice(&text)
            .with_context(|| format!("{} is no list of images", images.display()))?;
        let images = list.into_iter().map(|image| (image.name.clone(), image)).collect();
        let coordinator = Coordinator::at(SocketAddr::new(cluster.manager().ip, API_PORT));
        let read = |path: &Path| {
            let text = std::fs::read_to_string(path);
            text.with_context(|| format!("cannot read {}", path.display()))
        };
        let token = token.map(read).transpose()?.map(|text| text.trim().to_owned());
        let front = match network {
            None => Front::Mesh,
            Some(network) => {
                let targets = balancers(&cluster).await?;
                Front::Balancers { network: network.to_owned(), targets }
            }
        };
        Ok(Stage { cluster, images, coordinator, token, front })
    }

    /// Where requests for a service published on `port` are sent.
    pub fn targets(&self, port: u16) -> Vec<SocketAddr> {
        match &self.front {
            Front::Mesh => self.cluster.everywhere(port),
            Front::Balancers { targets, .. } => targets.clone(),
        }
    }

    /// The same as endpoints, of the service of this name.
    pub fn doors(&self, service: &str, port: u16) -> Vec<Endpoint> {
        let door = |target| Endpoint::Host(target, service.to_owned());
        self.targets(port).into_iter().map(door).collect()
    }

    /// The spec of a service that requests can come to as they do here.
    pub fn spec(&self, web: &Web) -> Value {
        let mut web = web.clone();
        let Front::Balancers { network, .. } = &self.front else { return web.spec() };
        web = web.label("swarmguard.lb.port", "8080");
        web.env.extend(heat::allowance(self.cluster.manager()));
        let host = web.name.clone();
        let mut spec = web.label("swarmguard.lb.host", &host).spec();
        spec["TaskTemplate"]["Networks"] = json!([{"Target": network}]);
        let check = &mut spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"];
        // Four seconds are for emulated nodes, where a check is expensive.
        if check.get("Interval").is_some() {
            check["Interval"] = json!(1_000_000_000_u64);
            // Else engines from 25 on wait five seconds for the first check; earlier ones do not know it.
            check["StartInterval"] = json!(1_000_000_000_u64);
        }
        // Virtual addresses need IPVS as well; balancers take the replicas' own.
        spec["EndpointSpec"] = json!({"Mode": "dnsrr"});
        spec
    }

    /// The ID of an image.
    ///
    /// # Errors
    /// Where it was not built.
    pub fn image(&self, name: &str) -> Result<&Image> {
        self.images
            .get(name)
            .with_context(|| format!("the image {name} was not built: run cargo xtask image {name}"))
    }

    /// Loads the images on the nodes that run them, on all at once.
    ///
    /// # Errors
    /// Where one is missing or an engine refuses it.
    pub async fn load_images(&self) -> Result<()> {
        let mut loads = JoinSet::new();
        for node in &self.cluster.nodes {
            let wanted =
                self.images.values().filter(|image| node.manager || image.name != "coordinator").cloned();
            let (node, wanted) = (node.clone(), wanted.collect::<Vec<_>>());
            loads.spawn(async move {
                for image in wanted {
                    let what = format!("cannot load {} on {}", image.name, node.name);
                    node.engine.load_image(&image.id, &image.archive).await.context(what)?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = loads.join_next().await {
            done.context("a load was cut short")??;
        }
        Ok(())
    }

    /// Waits until the coordinator answers and holds a lease of every node.
    ///
    /// # Errors
    /// After `limit`, with what is missing.
    pub async fn ready(&self, limit: Duration) -> Result<()> {
        until("the coordinator answers", limit, || async { Ok(self.coordinator.is_healthy().await) }).await?;
        until("the coordinator hears an agent on every node", limit, || async {
            let answer = self.coordinator.get("/api/v1/nodes").await.unwrap_or_default();
            Ok(self.cluster.nodes.iter().all(|node| hears(&answer, &node.id)))
        })
        .await
    }

    /// Waits until `count` replicas of the service of this name serve and it answers wherever requests come in.
    ///
    /// # Errors
    /// After `limit`.
    pub async fn serving(
        &self,
        watcher: &Watcher,
        name: &str,
        count: usize,
        port: u16,
        limit: Duration,
    ) -> Result<Tasks> {
        let what = format!("{count} replicas serve");
        until(&what, limit, || async { Ok(watcher.serving().len() == count) }).await?;
        for door in self.doors(name, port) {
            until(&format!("{door} answers"), limit, || async { Ok(door.get_json("/").await.is_ok()) })
                .await?;
        }
        Ok(watcher.serving())
    }

    /// Replicas by node name.
    pub fn placement(&self, tasks: &Tasks) -> BTreeMap<String, u64> {
        let mut placement = BTreeMap::new();
        for task in tasks.values().filter(|task| task.serves()) {
            *placement.entry(self.cluster.name(&task.node).to_owned()).or_default() += 1;
        }
        placement
    }

    /// A replica to make hot: one off the managers where there is one, so that the coordinator's own node stays calm, and
    /// best off the balancers, so that its node can go without taking a door along.
    ///
    /// # Errors
    /// Where none serves.
    pub fn victim(&self, tasks: &Tasks) -> Result<(String, Seen)> {
        let on_manager = |task: &Seen| self.cluster.node(&task.node).is_some_and(|node| node.manager);
        let serving = tasks.iter().filter(|(_, task)| task.serves());
        let has_balancer = |task: &Seen| match (&self.front, self.cluster.node(&task.node)) {
            (Front::Balancers { targets, .. }, Some(node)) => {
                targets.iter().any(|target| target.ip() == node.ip)
            }
            _ => false,
        };
        let chosen = serving.min_by_key(|(_, task)| (on_manager(task), has_balancer(task)));
        chosen.map(|(id, task)| (id.clone(), task.clone())).context("no replica serves")
    }
}

/// Where the balancers listen, once all of them run.
async fn balancers(cluster: &Cluster) -> Result<Vec<SocketAddr>> {
    let service = cluster.swarm().service_by_name(BALANCER).await?;
    let id = service["ID"].as_str().context("a service without ID")?;
    let wanted = service["Spec"]["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(1);
    let watcher = Watcher::start(cluster.swarm().clone(), id);
    until("every balancer runs", START, || async { Ok(watcher.serving().len() as u64 == wanted) }).await?;
    let nodes = watcher.serving().into_values().filter_map(|task| cluster.node(&task.node).cloned());
    Ok(nodes.map(|node| SocketAddr::new(node.ip, BALANCER_PORT)).collect())
}

/// Does the coordinator's list of nodes hold a live lease of this one?
fn hears(answer: &Value, id: &str) -> bool {
    let mut nodes = answer.as_array().into_iter().flatten();
    nodes.any(|node| {
        node["node"] == id && node["lease"]["state"] == "live" && node["lease"]["connected"] == true
    })
}

/// Something did not come about in time: it may be broken, or the machine too busy.
#[derive(Debug, thiserror::Error)]
#[error("waited {seconds} s in vain until {what}")]
pub struct InVain {
    what: String,
    seconds: u64,
}

/// Waits until `holds`, asking ten times a second.
///
/// # Errors
/// After `limit`, saying what was waited for; the first error of `holds`.
pub async fn until<F>(what: &str, limit: Duration, mut holds: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    let start = now();
    while !holds().await? {
        if now() - start > limit {
            return Err(InVain { what: what.to_owned(), seconds: limit.as_secs() }.into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
