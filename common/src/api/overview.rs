//! The whole swarm at a glance, small enough to be asked for once a second.

use serde::{Deserialize, Serialize};

use super::{Conclusion, Health, LeaseState};
use crate::domain::{Condition, NodeId, ServiceId, TaskId};

/// The swarm at a glance.
///
/// Its `ETag` leaves [`Self::at_ms`] and every age (`…_ms` that counts up) out: who is answered 304 goes on counting by
/// itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    /// [`super::API_VERSION`].
    pub api_version: String,
    /// Version of the coordinator that answers.
    pub version: String,
    /// Wall clock of that coordinator, in milliseconds since the Unix epoch: what the ages count from.
    pub at_ms: u64,
    /// Which swarm.
    pub swarm: SwarmName,
    /// Who acts.
    pub coordination: Coordination,
    /// How well all is.
    pub health: Health,
    /// What an operator must see, the most severe first; it stays as long as it is so.
    pub banner: Vec<Banner>,
    /// All nodes, by host name.
    pub nodes: Vec<NodeRow>,
    /// All services, by name.
    pub services: Vec<ServiceRow>,
    /// Actions under way, the oldest first.
    pub actions: Vec<ActionNow>,
    /// Alerts that stand, the oldest first; at most 200.
    pub alerts: Vec<AlertNow>,
    /// What was done since this time yesterday, as far as this coordinator's journal goes back.
    pub last_day: LastDay,
}

impl Overview {
    /// The same without what changes by itself from one second to the next: what its `ETag` is made of.
    pub fn without_ages(&self) -> Self {
        let mut plain = self.clone();
        plain.at_ms = 0;
        plain.coordination.snapshot_age_ms = None;
        for node in &mut plain.nodes {
            node.lease_age_ms = None;
        }
        for action in &mut plain.actions {
            (action.step_ms, action.total_ms) = (0, None);
        }
        for alert in &mut plain.alerts {
            alert.stands_ms = 0;
        }
        plain
    }
}

/// Which swarm it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmName {
    /// Its ID, as the certificates have it.
    pub id: String,
    /// A name for people, where one was set (`--swarm-name`).
    pub name: Option<String>,
}

/// Who acts, and whether anything is done at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coordination {
    /// Host name of the node with the raft leadership.
    pub leader: Option<String>,
    /// Host name of the node whose coordinator acts, as far as the one that answers can tell: that of the raft leader while
    /// agents hear it, else the next.
    #[serde(default)]
    pub acts: Option<String>,
    /// The coordinator that answers is the one to act.
    pub acting: bool,
    /// Decides and explains only, for the whole swarm.
    pub observe: bool,
    /// Automation is paused for all services.
    pub paused: bool,
    /// Age of the newest reading of Swarm; `None` before the first.
    pub snapshot_age_ms: Option<u64>,
    /// Balancers connected to the coordinator that answers.
    pub balancers: usize,
}

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Users lose requests, or nothing is protected.
    Critical,
    /// It will come to that, or a promise is weakened.
    Warning,
    /// Good to know.
    Notice,
}

/// One line that stays on top as long as it is so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Banner {
    /// How much it matters.
    pub severity: Severity,
    /// What it is.
    pub code: BannerCode,
    /// What happened, to what, and what to do.
    pub text: String,
}

/// What a banner can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BannerCode {
    /// Swarm cannot be read: nothing is decided.
    SwarmUnreadable,
    /// No node holds the raft leadership: nobody acts.
    NoLeader,
    /// One more manager lost, and the swarm can no longer be changed.
    QuorumAtRisk,
    /// Decides and explains only.
    Observe,
    /// Automation is paused for all services.
    Paused,
    /// Services run fewer replicas than they want.
    ServicesShort,
    /// Tasks wait for a node that can take them.
    TasksPending,
    /// Nodes whose agent is silent.
    NodesSilent,
    /// Nodes are down.
    NodesDown,
    /// Alerts stand, and the rules forbid to help.
    HotNotHelped,
    /// Labels make no sense, so those services are not protected.
    LabelsInvalid,
}

/// A word about the state of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeWord {
    /// Ready, its agent's lease lives, nothing is short.
    Ok,
    /// Swarm says it is not ready.
    Down,
    /// The managers changed their leader, and the new one has not heard the node yet.
    Unknown,
    /// Its agent's lease has lapsed.
    Silent,
    /// Its agent has been silent for a while.
    Suspect,
    /// No agent was ever heard there.
    NoAgent,
    /// Its agent sees nothing.
    Blind,
    /// Its agent's own timers fire late.
    Starved,
    /// It has too little CPU for what runs there.
    ShortCpu,
    /// It has too little memory for what runs there.
    ShortMemory,
    /// Its network is full.
    ShortNetwork,
    /// It loses its tasks.
    Drain,
    /// It takes no new tasks.
    Pause,
    /// Holds the raft leadership.
    Leader,
    /// Runs a manager.
    Manager,
}

impl NodeWord {
    /// As people read it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Down => "down",
            Self::Unknown => "unknown",
            Self::Silent => "silent",
            Self::Suspect => "suspect",
            Self::NoAgent => "no agent",
            Self::Blind => "blind",
            Self::Starved => "starved",
            Self::ShortCpu => "short cpu",
            Self::ShortMemory => "short memory",
            Self::ShortNetwork => "short network",
            Self::Drain => "drain",
            Self::Pause => "pause",
            Self::Leader => "leader",
            Self::Manager => "manager",
        }
    }
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Swarm's ID.
    pub node: NodeId,
    /// Host name.
    pub hostname: String,
    /// Its state in words, the most important first; a role word stands last.
    pub state: Vec<NodeWord>,
    /// Busy share of all CPUs, whole per cent.
    pub cpu_percent: Option<u8>,
    /// Share of memory that is not available.
    pub memory_percent: Option<u8>,
    /// Traffic, of the link speed.
    pub network_percent: Option<u8>,
    /// Share of time in which something waited for CPU.
    pub psi_percent: Option<u8>,
    /// CPUs reserved by the tasks there, in thousandths of one.
    pub reserved_cpu_millis: u64,
    /// CPUs that Swarm schedules by, in thousandths of one.
    pub cpu_millis: u64,
    /// Memory reserved by the tasks there.
    pub reserved_memory_bytes: u64,
    /// Memory that Swarm schedules by.
    pub memory_bytes: u64,
    /// Tasks that Swarm wants there.
    pub replicas: u64,
    /// The lease of its agent; `None` where none was ever heard.
    pub lease: Option<LeaseState>,
    /// Since that was last renewed; an age.
    pub lease_age_ms: Option<u64>,
}

/// How many tasks a service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceMode {
    /// A number of replicas.
    Replicated,
    /// One on each node.
    Global,
    /// Runs to completion.
    Job,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// Swarm's ID.
    pub service: ServiceId,
    /// Swarm's name.
    pub name: String,
    /// How many tasks.
    pub mode: ServiceMode,
    /// `swarmguard.enable=true` and all labels make sense.
    pub protected: bool,
    /// A part of SwarmGuard, which never touches itself.
    pub own: bool,
    /// Wanted and running.
    pub running: u64,
    /// Wanted: by its spec, or for global services one on each node that may take it; `None` for jobs.
    pub wanted: Option<u64>,
    /// Tasks that no node can take yet.
    pub pending: u64,
    /// Mean of its replicas' shares of their CPU limits, whole per cent.
    pub cpu_percent: Option<u8>,
    /// The highest of them.
    pub cpu_max_percent: Option<u8>,
    /// Mean of its replicas' shares of their memory limits.
    pub memory_percent: Option<u8>,
    /// CPU used by all of it, in thousandths of one.
    pub cpu_millis: u64,
    /// Working set of all of it.
    pub memory_bytes: u64,
    /// Requests in flight at all of it, where the kernel or a balancer sees them.
    pub in_flight: Option<u64>,
    /// Median latency of its answers, the mean over its replicas; whole milliseconds above 10.
    pub latency_ms: Option<f64>,
    /// What the last judgement came to.
    pub conclusion: Option<Conclusion>,
    /// Rule of the last judgement.
    pub rule: Option<String>,
    /// Decides and explains only for it.
    pub observe: bool,
    /// Automation is paused for it (or for all).
    pub paused: bool,
    /// Its labels make no sense.
    pub labels_invalid: bool,
    /// Alerts that stand for its replicas.
    pub alerts: u64,
    /// Token of the action on it that is under way.
    pub action: Option<String>,
    /// Swarm's word about an update or rollback of it that is not complete.
    pub update: Option<String>,
}

/// An action under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionNow {
    /// Its token.
    pub action: String,
    /// `migrate`, `scale_out`, `scale_in`, `drain`.
    pub kind: String,
    /// Name of the service; `None` for the drain of a node.
    pub service: Option<String>,
    /// Host name of the node it leaves.
    pub source: Option<String>,
    /// Host name of the node it goes to.
    pub target: Option<String>,
    /// The step it is at.
    pub step: String,
    /// How long it has been there; an age.
    pub step_ms: u64,
    /// How long it has been under way, where this coordinator saw it begin; an age.
    pub total_ms: Option<u64>,
    /// What it waits for.
    pub waits_for: Option<String>,
    /// Why it is being undone, if it is.
    pub undone: Option<String>,
}

/// An alert that stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlertNow {
    /// What.
    pub condition: Condition,
    /// Name of the service, where known.
    pub service: Option<String>,
    /// The replica, where known.
    pub task: Option<TaskId>,
    /// Host name of its node.
    pub node: String,
    /// Value of the last edge, whole per cent.
    pub percent: u8,
    /// How long it has stood; an age.
    pub stands_ms: u64,
    /// Nothing is being done about it: the rule that says why.
    pub unhelped: Option<String>,
    /// The task is not, or no longer, on that node: it counts for nothing.
    pub stale: bool,
}

/// What was done in the last 24 hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastDay {
    /// Replicas moved.
    pub moved: u64,
    /// Changes of replica counts.
    pub scaled: u64,
    /// Actions undone.
    pub undone: u64,
    /// 90 % of the actions took at most so long from the first sample over the threshold to the help.
    pub mttr_p90_ms: Option<u64>,
}

/// Which replicas are where: `/placement`. Only cells with replicas are told; they name node and service by their places
/// in the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// All nodes, by host name.
    pub nodes: Vec<(NodeId, String)>,
    /// All services, by name.
    pub services: Vec<(ServiceId, String)>,
    /// Index of the node, index of the service, tasks wanted there, of them running, highest CPU share in per cent (of
    /// its limit, whole, `null` where unknown), alerts standing.
    pub cells: Vec<(u32, u32, u32, u32, Option<u8>, u32)>,
}
