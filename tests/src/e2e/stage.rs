//! What every scenario stands on: a cluster with SwarmGuard running on it, the images, and waiting for things.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use swarmguard_runtime::clock::now;
use tokio::task::JoinSet;

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
}

impl Stage {
    /// Opens a cluster, the list of images, and the file with the operator's token.
    ///
    /// # Errors
    /// Where a file cannot be read or an engine does not answer.
    pub async fn open(state: &Path, images: &Path, token: Option<&Path>) -> Result<Self> {
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
        Ok(Stage { cluster, images, coordinator, token })
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

    /// Waits until `count` replicas of a service serve and the mesh answers for it on every node.
    ///
    /// # Errors
    /// After `limit`.
    pub async fn serving(
        &self,
        watcher: &Watcher,
        count: usize,
        port: u16,
        limit: Duration,
    ) -> Result<Tasks> {
        let what = format!("{count} replicas serve");
        until(&what, limit, || async { Ok(watcher.serving().len() == count) }).await?;
        for target in self.cluster.everywhere(port) {
            let endpoint = Endpoint::Tcp(target);
            until(&format!("{target} answers"), limit, || async { Ok(endpoint.get_json("/").await.is_ok()) })
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

    /// A replica to make hot: one off the managers where there is one, so that the coordinator's own node stays calm.
    ///
    /// # Errors
    /// Where none serves.
    pub fn victim(&self, tasks: &Tasks) -> Result<(String, Seen)> {
        let on_manager = |task: &Seen| self.cluster.node(&task.node).is_some_and(|node| node.manager);
        let serving = tasks.iter().filter(|(_, task)| task.serves());
        let chosen = serving.min_by_key(|(_, task)| on_manager(task));
        chosen.map(|(id, task)| (id.clone(), task.clone())).context("no replica serves")
    }
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
