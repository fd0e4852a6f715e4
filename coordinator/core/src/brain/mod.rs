//! The only door to the judgement: inputs and the time go in; commands, messages to agents, journal entries and the
//! next deadline come out. No IO, no clock, no panic; every queue is bounded.

mod input;
mod status;

use swarmguard_common::{
    clock::Time,
    domain::{ServiceId, TaskId},
    journal::Entry,
    wire::routes::ReplicaLoad,
};

pub use input::{
    Accepted, AgentEvent, AgentInput, AgentOrder, AgentOutput, ConnectionId, Input, NotTaken, OperatorCommand,
    Settings, Wish,
};
pub use status::{
    ActionStatus, AlertStatus, ContainerStatus, LeaseStatus, NodeStatus, ServiceStatus, Statistics,
};

use crate::{
    command::{Command, CommandId},
    explain::Explanation,
};

/// The judgement of one coordinator. All coordinators keep the full view; only the one beside the raft leader acts.
#[derive(Debug)]
pub struct Brain {
    settings: Settings,
}

impl Brain {
    /// A brain that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Takes something in, and thinks. Afterwards poll everything until it is empty. Costs microseconds for an agent's
    /// message and about a millisecond for a snapshot of a large swarm.
    pub fn handle(&mut self, _now: Time, _input: Input) {}

    /// An operator's command, answered at once. `by` names the operator in the journal. Passes through the same leases
    /// and refusals as everything else; only the coordinator beside the raft leader takes one (`not_leader`).
    ///
    /// # Errors
    /// When the command is not taken; nothing was done then.
    pub fn operator(&mut self, _now: Time, _by: &str, _command: OperatorCommand) -> Result<Accepted, NotTaken> {
        Err(NotTaken { code: "not_leader".into(), text: String::new(), otherwise: String::new() })
    }

    /// The next command to carry out; its answer goes to `handle` as [`Input::Answer`], whatever it is.
    pub fn poll_command(&mut self) -> Option<(CommandId, Command)> {
        None
    }

    /// The next thing for an agent connection.
    pub fn poll_agent(&mut self) -> Option<AgentOutput> {
        None
    }

    /// The next journal entry. `id` and `at_ms` are 0: who keeps the journal sets them, at once.
    pub fn poll_entry(&mut self) -> Option<Entry> {
        None
    }

    /// When to call `handle` with [`Input::Tick`] if nothing else came before; never further than a second away.
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }

    /// How eagerly the next snapshot is awaited.
    pub fn snapshot_wish(&self) -> Wish {
        Wish::Usual
    }

    /// Whether this coordinator is the one to act: it is beside the raft leader, by the newest snapshot.
    pub fn is_acting(&self) -> bool {
        !self.settings.observe
    }

    /// Why a service is or is not touched.
    pub fn explain(&self, _now: Time, _service: &ServiceId) -> Option<Explanation> {
        None
    }

    /// All nodes.
    pub fn nodes(&self, _now: Time) -> Vec<NodeStatus> {
        Vec::new()
    }

    /// All node leases.
    pub fn leases(&self, _now: Time) -> Vec<LeaseStatus> {
        Vec::new()
    }

    /// All containers that agents report.
    pub fn containers(&self, _now: Time) -> Vec<ContainerStatus> {
        Vec::new()
    }

    /// All services.
    pub fn services(&self, _now: Time) -> Vec<ServiceStatus> {
        Vec::new()
    }

    /// All standing alerts.
    pub fn alerts(&self, _now: Time) -> Vec<AlertStatus> {
        Vec::new()
    }

    /// All actions under way, and tombstones.
    pub fn actions(&self, _now: Time) -> Vec<ActionStatus> {
        Vec::new()
    }

    /// Load of a replica for the balancers; `None` when unknown or older than its lease.
    pub fn replica_load(&self, _now: Time, _task: &TaskId) -> Option<ReplicaLoad> {
        None
    }

    /// Counters.
    pub fn statistics(&self) -> Statistics {
        Statistics::default()
    }
}
