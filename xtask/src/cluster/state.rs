//! The state file of a cluster: everything that was made for it, written down before it is made.
//!
//! So `down` finds what a crashed `up` left. Tests read `nodes` from it; the rest is the cluster's own affair.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::cache;
use crate::process::Identity;
use crate::rootfs::Engine;

/// Raised where older files can no longer be read.
const VERSION: u32 = 2;

/// What a node is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A virtual machine with a kernel of its own.
    Vm,
    /// A set of namespaces on this machine's kernel.
    Native,
}

/// A node's part in the swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Has a vote and serves the Swarm API.
    Manager,
    /// Runs tasks only.
    Worker,
}

/// How far `up` came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Being made; where the maker is gone, leftovers.
    Starting,
    /// All nodes were ready.
    Up,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Host name: `node1`, `node2`, …
    pub name: String,
    /// Address in the cluster's own network.
    pub ip: Ipv4Addr,
    /// The engine's API, on this machine.
    pub socket: PathBuf,
    /// The command agent, on this machine.
    pub agent_socket: PathBuf,
    /// Its part in the swarm when the cluster was made.
    pub role: Role,
    /// The cluster's engine version.
    pub engine: Engine,
    /// VM or namespaces.
    pub kind: Kind,
    /// Network namespace from which the node can be reached: a VM's is the cluster's, a native node has its own.
    pub netns: PathBuf,
    /// What a native node may use, in thousandths of a CPU; a virtual machine has a whole one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Its disk and logs.
    pub directory: PathBuf,
}

/// A process that belongs to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    /// `forwarder`, or the node's name.
    pub what: String,
    /// Who it is.
    #[serde(flatten)]
    pub identity: Identity,
}

/// Everything known of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// The cluster's name.
    pub name: String,
    /// How far `up` came.
    pub phase: Phase,
    /// Docker Engine's version.
    pub engine: Engine,
    /// VM or namespaces.
    pub kind: Kind,
    /// Memory of a VM in MiB.
    pub memory_mib: u32,
    /// The command that makes or made it.
    pub maker: Option<Identity>,
    /// Named network namespaces, the cluster's own first.
    pub namespaces: Vec<String>,
    /// cgroup directories of native nodes.
    pub cgroups: Vec<PathBuf>,
    /// What runs.
    pub processes: Vec<Tracked>,
    /// The nodes, managers first.
    pub nodes: Vec<Node>,
}

impl State {
    /// A cluster of which nothing exists yet.
    pub fn new(name: &str, engine: Engine, kind: Kind, memory_mib: u32) -> Self {
        let own = i32::try_from(std::process::id()).ok().and_then(Identity::of);
        Self {
            version: VERSION,
            name: name.to_owned(),
            phase: Phase::Starting,
            engine,
            kind,
            memory_mib,
            maker: own,
            namespaces: Vec::new(),
            cgroups: Vec::new(),
            processes: Vec::new(),
            nodes: Vec::new(),
        }
    }

    /// Reads the state file in a cluster's directory; `None` where there is none.
    ///
    /// # Errors
    /// Where it cannot be read or is not one of this version.
    pub fn load(directory: &Path) -> Result<Option<Self>> {
        let path = file(directory);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        parse(&text)
            .with_context(|| format!("{} is no cluster's state: remove it by hand", path.display()))
            .map(Some)
    }

    /// Writes the file in one step, so that a crash leaves the old one or the new one.
    ///
    /// # Errors
    /// Where the directory cannot be written.
    pub fn save(&self, directory: &Path) -> Result<()> {
        let path = file(directory);
        let beside = path.with_extension("json.new");
        fs::write(&beside, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&beside, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The node called `name`; a bare number means `node<number>`.
    ///
    /// # Errors
    /// Where there is none; names those that are there.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let full = format!("node{name}");
        let found = self.nodes.iter().find(|node| node.name == name || node.name == full);
        found.with_context(|| {
            let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            format!("cluster {} has no node {name}: it has {}", self.name, names.join(", "))
        })
    }

    /// The identity of what runs under this name.
    pub fn process(&self, what: &str) -> Option<Identity> {
        self.processes.iter().find(|tracked| tracked.what == what).map(|tracked| tracked.identity)
    }

    /// Notes what runs under this name now.
    pub fn track(&mut self, what: &str, identity: Identity) {
        self.processes.retain(|tracked| tracked.what != what);
        self.processes.push(Tracked { what: what.to_owned(), identity });
    }

    /// The name of the namespace with the bridge.
    pub fn hub(&self) -> String {
        hub(&self.name)
    }
}

/// The name of a cluster's network namespace. It is the whole machine's, so it tells work trees apart: two of them may
/// have clusters of one name at once.
pub fn hub(name: &str) -> String {
    let digest = Sha256::digest(cache::clusters().as_os_str().as_encoded_bytes());
    let tree: String = digest.iter().take(3).map(|byte| format!("{byte:02x}")).collect();
    format!("sg-{tree}-{name}")
}

/// Where a cluster's state is.
pub fn file(directory: &Path) -> PathBuf {
    directory.join("state.json")
}

fn parse(text: &[u8]) -> Result<State> {
    let state: State = serde_json::from_slice(text)?;
    if state.version != VERSION {
        bail!("it has version {}, this xtask knows {VERSION}", state.version);
    }
    Ok(state)
}

/// A cluster's name becomes part of paths, of namespace names and of kernel command lines.
///
/// # Errors
/// Where it is not 1 to 20 of a-z, 0-9 and `-`, or starts with `-`.
pub fn check_name(name: &str) -> Result<String> {
    let fine = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if name.is_empty() || name.len() > 20 || name.starts_with('-') || !fine || ["cache", "vm"].contains(&name)
    {
        bail!("a cluster's name is 1 to 20 of a-z, 0-9 and -, not {name:?}");
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> State {
        let mut state = State::new("t", Engine::V26_1, Kind::Vm, 1536);
        state.nodes.push(Node {
            name: "node1".to_owned(),
            ip: Ipv4Addr::new(10, 78, 0, 11),
            socket: "/c/node1.sock".into(),
            agent_socket: "/c/node1.agent.sock".into(),
            role: Role::Manager,
            engine: Engine::V26_1,
            kind: Kind::Vm,
            netns: "/run/netns/sg-t".into(),
            cpu_millis: None,
            directory: "/c/node1".into(),
        });
        state.track("node1", Identity { pid: 5, start_ticks: 6 });
        state
    }

    #[test]
    fn comes_back_as_saved() {
        let place = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(State::load(place.path()).expect("no file is no error"), None);
        let state = sample();
        state.save(place.path()).expect("written");
        assert_eq!(State::load(place.path()).expect("valid"), Some(state));
    }

    #[test]
    fn what_tests_read_is_there() {
        let json: serde_json::Value = serde_json::to_value(sample()).expect("json");
        assert_eq!(json["nodes"][0]["name"], "node1");
        assert_eq!(json["nodes"][0]["ip"], "10.78.0.11");
        assert_eq!(json["nodes"][0]["socket"], "/c/node1.sock");
        assert_eq!(json["engine"], "26.1");
        assert_eq!(json["processes"][0]["pid"], 5);
    }

    #[test]
    fn another_version_or_half_a_file_is_an_error() {
        let mut json: serde_json::Value = serde_json::to_value(sample()).expect("json");
        json["version"] = 99.into();
        assert!(parse(json.to_string().as_bytes()).is_err());
        assert!(parse(b"{\"version\":2").is_err());
    }

    #[test]
    fn tracking_replaces() {
        let mut state = sample();
        state.track("node1", Identity { pid: 7, start_ticks: 8 });
        assert_eq!(state.processes.len(), 1);
        assert_eq!(state.process("node1").map(|identity| identity.pid), Some(7));
    }

    #[test]
    fn names_are_checked() {
        for good in ["default", "a", "engine-26-1"] {
            check_name(good).expect(good);
        }
        for bad in ["", "-a", "A", "a/b", "a b", "cache", "a-name-longer-than-twenty"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
