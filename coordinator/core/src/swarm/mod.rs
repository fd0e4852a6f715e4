//! What Swarm says: one consistent reading of nodes, services, tasks and our own records.
//!
//! Specs stay raw JSON, because a write replaces the whole spec and any field left out is reset: typed clients lose
//! what they do not know. Only what is judged is lifted out into fields.

pub mod engine;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use serde_json::Value;
pub use swarmguard_common::api::Availability;
use swarmguard_common::{
    domain::{ContainerId, NetworkId, NodeId, ServiceId, TaskId},
    labels::{LabelError, ServicePolicy},
    time::Time,
};

/// Everything that was read from Swarm at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When the reading began: what changed later may be missing.
    pub taken: Time,
    /// The node that this coordinator runs on.
    pub own_node: Option<NodeId>,
    /// All nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// All services.
    pub services: BTreeMap<ServiceId, Service>,
    /// All tasks whose desired state is not past `running`, and those of the last generation that still run.
    pub tasks: BTreeMap<TaskId, Task>,
    /// Tasks that failed or were rejected and are past: what they said. Of each slot the newest at least.
    pub failures: BTreeMap<TaskId, Failure>,
    /// Our own config objects (`swarmguard-…`), by name.
    pub records: BTreeMap<String, RecordObject>,
}

impl Snapshot {
    /// The node that holds the raft leadership, if one does.
    pub fn leader(&self) -> Option<&NodeId> {
        self.nodes.values().find(|node| node.leader).map(|node| &node.id)
    }

    /// Whether the coordinator that took this reading runs beside the raft leader, and so is the one to act.
    pub fn is_leader(&self) -> bool {
        self.own_node.is_some() && self.leader() == self.own_node.as_ref()
    }

    /// Tasks of a service, in task order.
    pub fn tasks_of(&self, service: &ServiceId) -> impl Iterator<Item = &Task> {
        self.tasks.values().filter(move |task| task.service == *service)
    }
}

/// A node of the swarm.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its ID.
    pub id: NodeId,
    /// Version for compare-and-swap writes.
    pub version: u64,
    /// Host name.
    pub hostname: String,
    /// Where other nodes reach it, as Swarm knows it.
    pub address: Option<IpAddr>,
    /// Runs a manager.
    pub manager: bool,
    /// Holds the raft leadership.
    pub leader: bool,
    /// `Status.State` is `ready`.
    pub ready: bool,
    /// `Status.State` is `unknown`: the managers changed their leader, and the new one has not heard the node yet. It
    /// takes no new tasks until then; those it has count as before.
    pub unknown: bool,
    /// `Spec.Availability`.
    pub availability: Availability,
    /// Node labels (`Spec.Labels`).
    pub labels: BTreeMap<String, String>,
    /// Engine labels (`Description.Engine.Labels`).
    pub engine_labels: BTreeMap<String, String>,
    /// For instance `20.10.24`.
    pub engine_version: String,
    /// `linux`, and so on.
    pub os: String,
    /// `x86_64`, and so on, as the engine says it.
    pub architecture: String,
    /// CPUs that Swarm schedules by, in billionths of one.
    pub nano_cpus: i64,
    /// Memory that Swarm schedules by, in bytes.
    pub memory_bytes: i64,
    /// Plugins that its engine has, by type (`Log`, `Volume`, `Network`) and name.
    pub plugins: BTreeSet<(String, String)>,
    /// Generic resources that it has, such as GPUs, by kind.
    pub generic: BTreeMap<String, i64>,
    /// The whole `Spec`, to be written back.
    pub spec: Value,
}

impl Node {
    /// Neither ready nor waiting to be heard by a new leader: its tasks are lost, or never ran.
    pub fn is_down(&self) -> bool {
        !self.ready && !self.unknown
    }
}

/// Generic resources by kind, of a node or of what a service reserves: counted ones as they are, named ones each as one.
pub fn generic_resources(list: &Value) -> BTreeMap<String, i64> {
    let mut found: BTreeMap<String, i64> = BTreeMap::new();
    for resource in list.as_array().into_iter().flatten() {
        let spec = resource.get("DiscreteResourceSpec").or_else(|| resource.get("NamedResourceSpec"));
        let kind = spec.and_then(|spec| spec.get("Kind")?.as_str());
        let (Some(spec), Some(kind)) = (spec, kind) else { continue };
        let number = spec.get("Value").and_then(Value::as_i64).unwrap_or(1);
        let sum = found.entry(kind.to_owned()).or_default();
        *sum = sum.saturating_add(number);
    }
    found
}

/// How many tasks a service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// This many replicas.
    Replicated(u64),
    /// One on each node.
    Global,
    /// Runs to completion: how many at once, how many in all.
    ReplicatedJob {
        /// `MaxConcurrent`.
        concurrent: u64,
        /// `TotalCompletions`.
        completions: u64,
    },
    /// Once on each node.
    GlobalJob,
}

/// `UpdateStatus.State` of a service, in Swarm's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// Tasks are being replaced.
    Updating,
    /// Stopped half-way after a failure.
    Paused,
    /// Over.
    Completed,
    /// On its way back to the previous spec.
    RollbackStarted,
    /// The way back stopped half-way.
    RollbackPaused,
    /// Back at the previous spec.
    RollbackCompleted,
    /// A word of a later engine, or empty.
    #[serde(other)]
    Unknown,
}

impl UpdateState {
    /// A rollout that goes on or stands half done: a write now would restart it. A word that we do not know counts,
    /// because waiting is the smaller harm.
    pub fn is_unfinished(self) -> bool {
        !matches!(self, Self::Completed | Self::RollbackCompleted)
    }

    /// As Swarm says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Updating => "updating",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::RollbackStarted => "rollback_started",
            Self::RollbackPaused => "rollback_paused",
            Self::RollbackCompleted => "rollback_completed",
            Self::Unknown => "unknown",
        }
    }
}

/// A service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its ID.
    pub id: ServiceId,
    /// Version for compare-and-swap writes.
    pub version: u64,
    /// Its name.
    pub name: String,
    /// How many tasks.
    pub mode: Mode,
    /// Our labels, or what is wrong with them.
    pub policy: Result<ServicePolicy, Vec<LabelError>>,
    /// The whole `Spec`, as the engine sent it.
    pub spec: Value,
    /// The whole `PreviousSpec`, where there is one.
    pub previous_spec: Option<Value>,
    /// `UpdateStatus.State`; absent after every write until the updater has looked.
    pub update_state: Option<UpdateState>,
    /// Iteration of a job (`JobStatus.JobIteration.Index`).
    pub job_iteration: Option<u64>,
    /// Its virtual addresses by network (`Endpoint.VirtualIPs`); none with `dnsrr`.
    pub virtual_addresses: Vec<(NetworkId, Ipv4Addr)>,
}

impl Service {
    /// A part of SwarmGuard, which never touches itself: by the label, or by settings that only ours have. Also where
    /// its labels make no sense otherwise.
    pub fn is_own(&self) -> bool {
        let ours = |text: &str| {
            text.starts_with("SWARMGUARD_IDENTITY=") || text.starts_with("SWARMGUARD_QUIC_ADDR=")
        };
        let env = self.spec.pointer("/TaskTemplate/ContainerSpec/Env").and_then(Value::as_array);
        self.spec.pointer("/Labels/swarmguard.role").is_some()
            || env.into_iter().flatten().filter_map(Value::as_str).any(ours)
    }
}

/// A task's place in its life, in Swarm's order: comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "Swarm's own words: github.com/moby/swarmkit, api/types.proto, TaskState")]
pub enum TaskState {
    New,
    Allocated,
    Pending,
    Assigned,
    Accepted,
    Preparing,
    Ready,
    Starting,
    Running,
    Complete,
    Shutdown,
    Failed,
    Rejected,
    Remove,
    Orphaned,
}

impl TaskState {
    /// Swarm's own word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Allocated => "allocated",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }
}

/// An attempt to run a replica that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whose.
    pub service: ServiceId,
    /// Number of the replica.
    pub slot: u64,
    /// Where, if it came so far.
    pub node: Option<NodeId>,
    /// `Failed` or `Rejected`.
    pub state: TaskState,
    /// Why, in Swarm's words.
    pub message: String,
    /// Version of the task: of two failures the newer has the higher.
    pub version: u64,
}

/// One attempt to run one replica.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its ID.
    pub id: TaskId,
    /// Whose.
    pub service: ServiceId,
    /// Number of the replica; 0 in global services.
    pub slot: u64,
    /// Where, once it is assigned.
    pub node: Option<NodeId>,
    /// What Swarm wants.
    pub desired: TaskState,
    /// What is. With a healthcheck `Running` means healthy.
    pub state: TaskState,
    /// The container, from STARTING on.
    pub container: Option<ContainerId>,
    /// Addresses on its networks.
    pub addresses: Vec<IpAddr>,
    /// The version 4 ones again, with the network of each.
    pub attachments: Vec<(NetworkId, Ipv4Addr)>,
    /// Why it failed or waits, in Swarm's words.
    pub message: String,
    /// Iteration of the job that it belongs to.
    pub job_iteration: Option<u64>,
}

impl Task {
    /// Swarm wants it to run, or it waits for its turn.
    pub fn is_wanted(&self) -> bool {
        self.desired <= TaskState::Running
    }

    /// Swarm wants it and it does run (healthy, where it has a healthcheck).
    pub fn is_serving(&self) -> bool {
        self.is_wanted() && self.state == TaskState::Running
    }
}

/// A config object of ours: an action record, a node lease, the settings or the state of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordObject {
    /// Its ID: a tombstone is removed by ID, so that a successor of the same name is never hit.
    pub id: String,
    /// Version for compare-and-swap writes of the labels.
    pub version: u64,
    /// Its name: unique in the swarm, which makes creating it a lock.
    pub name: String,
    /// State, replaced whole under compare-and-swap.
    pub labels: BTreeMap<String, String>,
    /// Immutable: what was before the action began.
    pub data: Vec<u8>,
}
