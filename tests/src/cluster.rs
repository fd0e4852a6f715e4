//! A cluster as `cargo xtask cluster up` leaves it: who its nodes are and where their engines listen.
//!
//! Read from the cluster's state file rather than taken as arguments, so that a test runs against any cluster, also one
//! that somebody has brought up by hand.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::engine::Engine;
use crate::http::Endpoint;

/// What the state file says; other keys are the cluster's own affair.
#[derive(Clone, Debug, Deserialize)]
pub struct State {
    /// Its nodes, the first one a manager.
    pub nodes: Vec<NodeState>,
}

/// One node, as the state file says it.
#[derive(Clone, Debug, Deserialize)]
pub struct NodeState {
    /// Its host name.
    pub name: String,
    /// Its address in the cluster's own network.
    pub ip: IpAddr,
    /// Its engine: a socket on this machine, or `tcp://IP:PORT` where the state file was written by hand.
    pub socket: String,
    /// Where its engine's log is, where the state file says so.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// The CPUs that it is held to, in thousandths, where it is a cgroup of this machine.
    #[serde(default)]
    pub cpu_millis: Option<u32>,
}

fn endpoint(socket: &str) -> Result<Endpoint> {
    let Some(addr) = socket.strip_prefix("tcp://") else { return Ok(Endpoint::Unix(socket.into())) };
    addr.parse().map(Endpoint::Tcp).with_context(|| format!("{socket}: allowed are /PATH and tcp://IP:PORT"))
}

/// One node, with its engine and its part in the swarm.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its host name.
    pub name: String,
    /// Its address in the cluster's own network, reachable only from inside that.
    pub ip: IpAddr,
    /// Its engine.
    pub engine: Engine,
    /// Swarm's ID of it.
    pub id: String,
    /// Runs a manager.
    pub manager: bool,
    /// Its engine's log, where it is known.
    pub log: Option<PathBuf>,
    /// The CPUs that it is held to, in thousandths, where processes on it cannot see it.
    pub cpu_millis: Option<u32>,
}

/// All nodes; the first is a manager.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The nodes.
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// Reads a state file and connects to every engine that it names.
    ///
    /// # Errors
    /// Where the file cannot be read, an engine does not answer, or one is not part of a swarm.
    pub async fn open(state: &Path) -> Result<Self> {
        let shown = state.display();
        let text =
            std::fs::read(state).with_context(|| format!("cannot read the cluster's state {shown}"))?;
        let state: State =
            serde_json::from_slice(&text).with_context(|| format!("{shown} is no cluster's state"))?;
        let mut nodes = Vec::new();
        for node in state.nodes {
            let engine = Engine::connect(endpoint(&node.socket)?).await?;
            let info = engine.get("/info").await?;
            let swarm = &info["Swarm"];
            let id = swarm["NodeID"].as_str().filter(|id| !id.is_empty());
            let id = id.with_context(|| format!("{} is not part of a swarm", node.name))?.to_owned();
            let manager = swarm["ControlAvailable"] == true;
            let log = node.directory.map(|own| own.join("dockerd.log")).filter(|log| log.exists());
            nodes.push(Node {
                name: node.name,
                ip: node.ip,
                engine,
                id,
                manager,
                log,
                cpu_millis: node.cpu_millis,
            });
        }
        nodes.sort_by_key(|node| !node.manager); // stable: managers first, otherwise as before
        nodes.first().filter(|node| node.manager).with_context(|| format!("{shown} names no manager"))?;
        Ok(Cluster { nodes })
    }

    /// The first manager.
    pub fn manager(&self) -> &Node {
        &self.nodes[0]
    }

    /// The manager's engine, which takes orders for the whole swarm.
    pub fn swarm(&self) -> &Engine {
        &self.manager().engine
    }

    /// The node of this ID.
    pub fn node(&self, id: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The host name of the node of this ID, or the ID.
    pub fn name<'a>(&'a self, id: &'a str) -> &'a str {
        self.node(id).map_or(id, |node| &node.name)
    }

    /// This port on every node.
    pub fn everywhere(&self, port: u16) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| SocketAddr::new(node.ip, port)).collect()
    }

    /// A node's availability: `active`, `pause` or `drain`.
    ///
    /// # Errors
    /// The engine's.
    pub async fn availability(&self, id: &str) -> Result<String> {
        let node = self.swarm().get(&format!("/nodes/{id}")).await?;
        Ok(node["Spec"]["Availability"].as_str().unwrap_or("active").to_owned())
    }
}
