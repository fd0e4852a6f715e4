//! The cluster as a coordinator sees it. Ages instead of times of day, because they mean the same everywhere.

use serde::{Deserialize, Serialize};

use crate::{
    domain::{BasisPoints, Condition, ContainerId, NodeId, ServiceId, TaskId},
    wire::agent::{NodeLoad, TaskLoad},
};

/// Whether new tasks may be placed on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// Takes tasks.
    Active,
    /// Keeps its tasks, takes none.
    Pause,
    /// Loses its tasks, stop first.
    Drain,
}

/// How much a node's agent is to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// Heard lately.
    Live,
    /// Silent for a while: nothing new is begun from or to its node.
    Suspect,
    /// Silent too long: what it said counts for nothing.
    Lapsed,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Swarm's ID.
    pub node: NodeId,
    /// Host name.
    pub hostname: String,
    /// Runs a manager.
    pub manager: bool,
    /// Holds the raft leadership.
    pub leader: bool,
    /// Swarm says it is ready.
    pub ready: bool,
    /// As Swarm has it now.
    pub availability: Availability,
    /// The lease of its agent; `None` where none was ever heard.
    pub lease: Option<LeaseStatus>,
    /// Its agent sees nothing.
    pub blind: bool,
    /// As last reported.
    pub load: Option<NodeUse>,
    /// Tasks that Swarm wants there.
    pub tasks: usize,
}

/// Load of a node.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeUse {
    /// Busy share of all CPUs.
    pub cpu_percent: Option<f64>,
    /// Share of memory that is not available.
    pub memory_percent: Option<f64>,
    /// Traffic both ways, of the link speed.
    pub network_percent: Option<f64>,
    /// Share of time in which something waited for CPU (PSI).
    pub psi_cpu_percent: Option<f64>,
    /// The same for memory.
    pub psi_memory_percent: Option<f64>,
    /// The same for input and output.
    pub psi_io_percent: Option<f64>,
    /// The agent's own timers fire late.
    pub starved: bool,
}

impl From<NodeLoad> for NodeUse {
    fn from(load: NodeLoad) -> Self {
        Self {
            cpu_percent: percent(load.cpu),
            memory_percent: percent(load.memory),
            network_percent: percent(load.network),
            psi_cpu_percent: percent(load.psi_cpu),
            psi_memory_percent: percent(load.psi_memory),
            psi_io_percent: percent(load.psi_io),
            starved: load.starved,
        }
    }
}

/// Load of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaUse {
    /// Share of its CPU limit, or of the node where there is none.
    pub cpu_percent: Option<f64>,
    /// Working set, of its limit or of the node.
    pub memory_percent: Option<f64>,
    /// Traffic both ways, of the service's or the node's bandwidth.
    pub network_percent: Option<f64>,
    /// CPU used, in thousandths of one.
    pub cpu_millis: u32,
    /// Working set.
    pub memory_bytes: u64,
    /// Share of time in which its tasks waited for CPU (PSI).
    pub psi_cpu_percent: Option<f64>,
    /// The same for memory.
    pub psi_memory_percent: Option<f64>,
    /// Share of periods in which its CPU limit throttled it.
    pub throttled_percent: Option<f64>,
    /// Requests in flight, as the kernel sees them.
    pub in_flight: Option<u32>,
    /// Median latency of its answers.
    pub latency_ms: Option<f64>,
}

impl From<TaskLoad> for ReplicaUse {
    fn from(load: TaskLoad) -> Self {
        Self {
            cpu_percent: percent(load.cpu),
            memory_percent: percent(load.memory),
            network_percent: percent(load.network),
            cpu_millis: load.cpu_millis,
            memory_bytes: u64::from(load.memory_kib) * 1_024,
            psi_cpu_percent: percent(load.psi_cpu),
            psi_memory_percent: percent(load.psi_memory),
            throttled_percent: percent(load.throttled),
            in_flight: load.in_flight,
            latency_ms: load.latency_us.map(|us| f64::from(us) / 1_000.0),
        }
    }
}

fn percent(share: Option<BasisPoints>) -> Option<f64> {
    share.map(BasisPoints::percent)
}

/// The lease of a node's agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// Whose.
    pub node: NodeId,
    /// Live, suspect or lapsed.
    pub state: LeaseState,
    /// Since it was last renewed.
    pub age_ms: u64,
    /// How many times longer silence is tolerated, because the node said it is starved: 1, 2 or 4.
    pub patience: u32,
    /// Whether a connection stands.
    pub connected: bool,
    /// The agent's epoch.
    pub epoch: u64,
    /// Version of the agent program.
    pub version: String,
}

/// A container of a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// The engine's ID.
    pub container: ContainerId,
    /// Where.
    pub node: NodeId,
    /// Swarm's task, where it is one.
    pub task: Option<TaskId>,
    /// Its service.
    pub service: Option<ServiceId>,
    /// Swarm's name of the service.
    pub service_name: Option<String>,
    /// As last reported.
    pub load: Option<ReplicaUse>,
    /// How old that is.
    pub load_age_ms: Option<u64>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Swarm's ID.
    pub service: ServiceId,
    /// Swarm's name.
    pub name: String,
    /// `swarmguard.enable=true` and all labels make sense.
    pub protected: bool,
    /// What is wrong with its labels.
    pub label_errors: Vec<String>,
    /// Wanted by its spec; `None` for global services and jobs.
    pub replicas: Option<u64>,
    /// Wanted and running.
    pub running: usize,
    /// Automation is paused for it (or for all).
    pub paused: bool,
    /// The action on it that is under way, by its token.
    pub action: Option<String>,
    /// Rule of the last verdict.
    pub rule: Option<String>,
    /// Of a protected service: codes of what stands against moving it or weakens the promise; `explain` has the
    /// sentences.
    pub preflight: Vec<String>,
}

/// A standing alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertStatus {
    /// Who reports it.
    pub node: NodeId,
    /// Of which container.
    pub container: ContainerId,
    /// Its task, where known.
    pub task: Option<TaskId>,
    /// Its service, where known.
    pub service: Option<ServiceId>,
    /// What.
    pub condition: Condition,
    /// Value of the last edge, in per cent.
    pub percent: f64,
    /// How long it has stood.
    pub stands_ms: u64,
    /// Since the agent last said so.
    pub heard_ms: u64,
    /// The task is not, or no longer, on that node: it counts for nothing.
    pub stale: bool,
}

/// An action under way, or the tombstone of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionStatus {
    /// Name of its record.
    pub record: String,
    /// Its token.
    pub action: String,
    /// `migrate`, `scale_out`, `scale_in`, `drain`, `node`.
    pub kind: String,
    /// Phase; `over` for a tombstone.
    pub state: String,
    /// Whose.
    pub service: Option<ServiceId>,
    /// The node it leaves.
    pub source: Option<NodeId>,
    /// Where to.
    pub target: Option<NodeId>,
    /// Who acts.
    pub holder: String,
    /// How long it has been in this phase.
    pub state_age_ms: u64,
    /// What it waits for.
    pub waits_for: Option<String>,
    /// Why it was undone.
    pub undone: Option<String>,
}
