//! What the API shows of the cluster as the brain sees it. Ages instead of times, because they mean the same everywhere.

use std::collections::BTreeMap;

use serde::Serialize;
use swarmguard_common::{
    domain::{Condition, ContainerId, NodeId, ServiceId, TaskId},
    labels::ServicePolicy,
    wire::agent::{NodeLoad, TaskLoad},
};

use crate::{
    explain::{Finding, Judgement},
    lease::LeaseState,
    rule::Rule,
    swarm::Availability,
};

/// A node.
#[derive(Clone, Debug, Serialize)]
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
    pub load: Option<NodeLoad>,
    /// Tasks that Swarm wants there.
    pub tasks: usize,
}

/// The lease of a node's agent.
#[derive(Clone, Debug, Serialize)]
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
#[derive(Clone, Debug, Serialize)]
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
    pub load: Option<TaskLoad>,
    /// How old that is.
    pub load_age_ms: Option<u64>,
}

/// A service.
#[derive(Clone, Debug, Serialize)]
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
    pub rule: Option<Rule>,
    /// Of a protected service: codes of what stands against moving it or weakens the promise; `explain` has the
    /// sentences.
    pub preflight: Vec<Rule>,
}

/// A standing alert.
#[derive(Clone, Debug, Serialize)]
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
#[derive(Clone, Debug, Serialize)]
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

/// Everything that bears on one service now.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Swarm's ID.
    pub service: ServiceId,
    /// Swarm's name.
    pub name: String,
    /// The last judgement; `None` before the first snapshot of it, or on a coordinator that has none yet.
    pub verdict: Option<Judgement>,
    /// How old that is.
    pub verdict_age_ms: Option<u64>,
    /// Whether this coordinator is the one to act.
    pub acting: bool,
    /// Decides and explains only.
    pub observe: bool,
    /// Automation is paused for it, or for all.
    pub paused: bool,
    /// Its labels as understood, thresholds included; absent where they make no sense.
    pub policy: Option<ServicePolicy>,
    /// What is wrong with its labels.
    pub label_errors: Vec<String>,
    /// Cooldowns that still run, by kind of action, in milliseconds left.
    pub cooldowns_ms: BTreeMap<&'static str, u64>,
    /// How long all of it has been spare, where it is.
    pub spare_ms: Option<u64>,
    /// Standing alerts of its tasks.
    pub alerts: Vec<AlertStatus>,
    /// The action under way, or its tombstone.
    pub action: Option<ActionStatus>,
    /// What stands against a migration whatever the load: codes and sentences.
    pub preflight: Vec<Finding>,
}
