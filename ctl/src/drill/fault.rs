//! What can go wrong on purpose, and the job that makes it so: a service of one task on one node, from the agent's image,
//! with just what that fault needs. The fault ends with the job's process, whatever ends that.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::facts::{Facts, Node};
use crate::{commands::install::STACK, stack::NAMESPACE};

/// Where docker keeps its data, on most nodes.
const DOCKER_DATA: &str = "/var/lib/docker";
const SOCKET: &str = "/var/run/docker.sock";
/// The program in the agent's image.
const AGENT: &str = "/swarmguard-agent";
/// What the job may take beside what it holds, in bytes.
const OWN_MEMORY: u64 = 64 << 20;
const MIB: u64 = 1 << 20;

/// A fault, with its target's names as they were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// One replica of a service is killed.
    KillTask {
        /// Name of the service.
        service: String,
        /// Host name of the node whose replica goes.
        node: String,
        /// The replica's container.
        container: String,
    },
    /// The coordinator beside a manager is killed.
    KillCoordinator {
        /// Host name.
        node: String,
        /// Its container.
        container: String,
    },
    /// All that Swarm runs on a node is killed, and the node cut off, as if its power were gone.
    KillNode {
        /// Host name.
        node: String,
    },
    /// A neighbour keeps CPUs busy.
    Cpu {
        /// Host name.
        node: String,
        /// How many threads.
        threads: u64,
    },
    /// A neighbour holds memory.
    Memory {
        /// Host name.
        node: String,
        /// How much.
        mib: u64,
    },
    /// Disk space is held.
    Disk {
        /// Host name.
        node: String,
        /// How much.
        mib: u64,
    },
    /// A node is cut off from others, or loses packets to and from them.
    Cut {
        /// Host name.
        node: String,
        /// From these; from all where empty.
        from: Vec<String>,
        /// How many of a hundred packets go.
        percent: u8,
    },
}

impl Fault {
    /// Its name as it is typed.
    pub fn name(&self) -> &'static str {
        match self {
            Self::KillTask { .. } => "kill-task",
            Self::KillCoordinator { .. } => "kill-coordinator",
            Self::KillNode { .. } => "kill-node",
            Self::Cpu { .. } => "cpu",
            Self::Memory { .. } => "memory",
            Self::Disk { .. } => "disk",
            Self::Cut { percent: 100, .. } => "partition",
            Self::Cut { .. } => "loss",
        }
    }

    /// The node it happens on.
    pub fn node(&self) -> &str {
        match self {
            Self::KillTask { node, .. }
            | Self::KillCoordinator { node, .. }
            | Self::KillNode { node }
            | Self::Cpu { node, .. }
            | Self::Memory { node, .. }
            | Self::Disk { node, .. }
            | Self::Cut { node, .. } => node,
        }
    }

    /// What the user must type to say yes: the service or the node.
    pub fn target(&self) -> &str {
        match self {
            Self::KillTask { service, .. } => service,
            _ => self.node(),
        }
    }

    /// Whether it is over as soon as it is made.
    pub fn is_instant(&self) -> bool {
        matches!(self, Self::KillTask { .. } | Self::KillCoordinator { .. })
    }

    /// Whether replicas on the node are gone, or out of reach, while it lasts.
    pub fn takes_replicas(&self) -> bool {
        matches!(self, Self::KillNode { .. } | Self::Cut { percent: 100, .. })
    }

    /// What it does, in words.
    pub fn text(&self, span: Duration) -> String {
        let span = span.as_secs();
        match self {
            Self::KillTask { service, node, .. } => format!("kill the replica of {service} on {node}"),
            Self::KillCoordinator { node, .. } => format!("kill the coordinator on {node}"),
            Self::KillNode { node } => format!("kill what Swarm runs on {node} and cut it off for {span}s"),
            Self::Cpu { node, threads } => format!("keep {threads} threads busy on {node} for {span}s"),
            Self::Memory { node, mib } => format!("hold {mib} MiB of memory on {node} for {span}s"),
            Self::Disk { node, mib } => format!("hold {mib} MiB of disk on {node} for {span}s"),
            Self::Cut { node, from, percent: 100 } => {
                format!("cut {node} off from {} for {span}s", others(from))
            }
            Self::Cut { node, from, percent } => {
                format!("drop {percent} % of the packets between {node} and {} for {span}s", others(from))
            }
        }
    }

    /// What should come of it.
    pub fn expected(&self) -> &'static str {
        match self {
            Self::KillTask { .. } => "Swarm starts another replica; the others serve meanwhile",
            Self::KillCoordinator { .. } => {
                "Swarm starts it again; another coordinator acts meanwhile; no replica is touched"
            }
            Self::KillNode { .. } | Self::Cut { percent: 100, .. } => {
                "the node's lease lapses, replicas are started elsewhere, and nothing is moved back and forth after it"
            }
            Self::Cpu { .. } => "an alert or PSI tells of it, and what is protected is moved or relieved",
            Self::Memory { .. } => "memory pressure is seen; nothing but the drill itself is killed",
            Self::Disk { .. } => "services go on; the node is not taken for lost",
            Self::Cut { .. } => "agents stay connected, or say that they were not; nothing is moved in vain",
        }
    }

    /// The arguments of the job's program.
    fn arguments(&self, facts: &Facts, span: Duration) -> Vec<String> {
        let hold = ["--for".to_owned(), format!("{}s", span.as_secs())];
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let mut line = match self {
            Self::KillTask { container, .. } | Self::KillCoordinator { container, .. } => {
                return words(&[AGENT, "drill", "kill", "--container", container]);
            }
            Self::Cpu { threads, .. } => words(&[AGENT, "drill", "cpu", "--threads", &threads.to_string()]),
            Self::Memory { mib, .. } => words(&[AGENT, "drill", "memory", "--mib", &mib.to_string()]),
            Self::Disk { mib, .. } => {
                words(&[AGENT, "drill", "disk", "--on", DOCKER_DATA, "--mib", &mib.to_string()])
            }
            Self::KillNode { .. } | Self::Cut { .. } => {
                let peers: Vec<&str> = self.peers(facts).iter().map(|node| node.address.as_str()).collect();
                words(&[AGENT, "drill", "cut", "--peer", &peers.join(",")])
            }
        };
        match self {
            Self::Cut { percent, .. } => line.extend(["--percent".to_owned(), percent.to_string()]),
            Self::KillNode { node } => {
                line.push("--kill".into());
                let spare = facts.own_containers(node);
                if !spare.is_empty() {
                    line.extend(["--spare".to_owned(), spare.join(",")]);
                }
            }
            _ => {}
        }
        line.extend(hold);
        line
    }

    /// The nodes that it is cut off from.
    pub fn peers<'a>(&self, facts: &'a Facts) -> Vec<&'a Node> {
        let wanted = |node: &&Node| match self {
            Self::KillNode { node: own } => node.name != *own,
            Self::Cut { node: own, from, .. } => {
                node.name != *own && (from.is_empty() || from.contains(&node.name))
            }
            _ => false,
        };
        facts.nodes.iter().filter(wanted).collect()
    }

    /// The service that makes it.
    pub fn job(&self, facts: &Facts, name: &str, node: &str, span: Duration) -> Value {
        let mut container = json!({
            "Image": facts.agent_image,
            "Command": self.arguments(facts, span),
            "Labels": {NAMESPACE: STACK},
            "CapabilityDrop": ["ALL"],
            // Its own is the agent's, which this is none of.
            "Healthcheck": {"Test": ["NONE"]},
        });
        let bind = |path: &str| json!([{"Type": "bind", "Source": path, "Target": path}]);
        let mut networks = json!([]);
        match self {
            Self::KillTask { .. } | Self::KillCoordinator { .. } => container["Mounts"] = bind(SOCKET),
            Self::Disk { .. } => container["Mounts"] = bind(DOCKER_DATA),
            Self::KillNode { .. } | Self::Cut { .. } => {
                container["Mounts"] = bind(SOCKET);
                container["CapabilityAdd"] = json!(["CAP_NET_ADMIN"]);
                networks = json!([{"Target": facts.host_network}]);
            }
            Self::Cpu { .. } | Self::Memory { .. } => {}
        }
        let mut limits = json!({});
        if let Self::Memory { mib, .. } = self {
            limits = json!({"MemoryBytes": mib * MIB + OWN_MEMORY});
        }
        json!({
            "Name": name,
            "Labels": {NAMESPACE: STACK},
            "TaskTemplate": {
                "ContainerSpec": container,
                "Resources": {"Limits": limits},
                "RestartPolicy": {"Condition": "none"},
                "Placement": {"Constraints": [format!("node.id == {node}")]},
                "Networks": networks,
            },
            "Mode": {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 1}},
        })
    }

    /// For programs.
    pub fn parameters(&self) -> BTreeMap<&'static str, String> {
        let mut found = BTreeMap::from([("node", self.node().to_owned())]);
        match self {
            Self::KillTask { service, .. } => drop(found.insert("service", service.clone())),
            Self::Cpu { threads, .. } => drop(found.insert("threads", threads.to_string())),
            Self::Memory { mib, .. } | Self::Disk { mib, .. } => drop(found.insert("mib", mib.to_string())),
            Self::Cut { percent, .. } => drop(found.insert("percent", percent.to_string())),
            Self::KillCoordinator { .. } | Self::KillNode { .. } => {}
        }
        found
    }
}

fn others(from: &[String]) -> String {
    if from.is_empty() { "all others".into() } else { from.join(", ") }
}
