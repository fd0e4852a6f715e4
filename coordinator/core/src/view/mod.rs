//! What the cluster looks like now: the newest reading of Swarm joined with what the agents say, with ages.
//!
//! The view only remembers and joins; it judges nothing. What it cannot join (a container that Swarm does not know, a
//! task on another node than its reporter's) stays visible as such, because unknown is not idle.

pub mod agent;
pub mod alerts;
mod growth;
pub mod heats;
mod history;
pub mod lives;
mod lows;
mod placed;
mod recent;
pub mod shortage;
mod smooth;
#[cfg(test)]
pub mod testing;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use swarmguard_common::{
    api::Statistics,
    domain::{Condition, ContainerId, NodeId, ServiceId, TaskId},
    labels::ACT_AFTER,
    time::Time,
    wire::agent::{ContainerChange, ContainerEvent, NodeLoad, TaskLoad, ToCoordinator},
};

use agent::{Agent, Container, NewEdge};
use alerts::Standing;
pub use history::{History, Moved, Past, QUIET};
pub use lives::Lives;
pub use placed::{Claims, OnNode, Placed};
pub use recent::{Recent, SPAN};
pub use smooth::Smooth;

use crate::{
    agents::{AgentEvent, AgentInput, AgentOrder, AgentOutput, ConnectionId},
    lease::LeaseState,
    swarm::{Node, Service, Snapshot, Task},
};

/// Most agents kept; Swarm itself is not used with more nodes.
const MAX_AGENTS: usize = 10_000;
/// An agent of a node that Swarm no longer lists is forgotten after this silence.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// For this long after a move it is watched whether the service is hot again where it went.
pub const MOVES_WATCHED: Duration = Duration::from_secs(600);

/// What an agent's input changed, for the journal.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// A connection was accepted; `again` when the node had one before.
    Came {
        /// It had one before.
        again: bool,
    },
    /// The connection ended.
    Went,
    /// A new alert edge.
    Edge(NewEdge),
    /// The engine said something of a task that an action may wait for.
    Container(Option<TaskId>),
    /// Nothing to write down.
    Nothing,
}

/// A replica with everything known about it.
#[derive(Clone, Copy, Debug)]
pub struct Replica<'a> {
    /// Swarm's task.
    pub task: &'a Task,
    /// Where it is.
    pub node: &'a Node,
    /// The agent there.
    pub agent: Option<&'a Agent>,
    /// What that agent knows of it.
    pub container: Option<&'a Container>,
    /// Figures that are fresh enough to count.
    pub load: Option<&'a TaskLoad>,
}

/// The newest reading of Swarm and everything the agents said.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The newest reading; `None` before the first.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Agents by the node they speak for.
    pub agents: BTreeMap<NodeId, Agent>,
    /// What happened to services and nodes lately.
    pub history: History,
    /// How long replicas have served.
    pub lives: Lives,
    tasks_by_container: BTreeMap<ContainerId, TaskId>,
    tasks_by_service: BTreeMap<ServiceId, Vec<TaskId>>,
    tasks_by_node: BTreeMap<NodeId, Vec<TaskId>>,
    /// Counted when it is first asked for after a reading.
    placed: OnceLock<Placed>,
}

impl View {
    /// Takes in a reading; `false` when it was begun earlier than the newest.
    pub fn read(&mut self, now: Time, snapshot: Arc<Snapshot>) -> bool {
        if self.snapshot.as_ref().is_some_and(|newest| snapshot.taken < newest.taken) {
            return false;
        }
        let running =
            snapshot.tasks.values().filter_map(|task| Some((task.container.clone()?, task.id.clone())));
        self.tasks_by_container = running.collect();
        self.tasks_by_service.clear();
        self.tasks_by_node.clear();
        for task in snapshot.tasks.values() {
            self.tasks_by_service.entry(task.service.clone()).or_default().push(task.id.clone());
            if let Some(node) = &task.node {
                self.tasks_by_node.entry(node.clone()).or_default().push(task.id.clone());
            }
        }
        self.agents
            .retain(|node, agent| snapshot.nodes.contains_key(node) || agent.lease.age(now) < FORGET_AFTER);
        self.history.read(now, self.snapshot.as_deref(), &snapshot);
        for (id, agent) in &mut self.agents {
            if let Some(node) = snapshot.nodes.get(id) {
                agent.take_capacity(node);
            }
        }
        let agents = &self.agents;
        let use_of = |task: &TaskId| {
            let task = snapshot.tasks.get(task)?;
            agents.get(task.node.as_ref()?)?.container_of(&task.id, task.container.as_ref())?.cpu.ratio()
        };
        self.lives.read(now, self.snapshot.as_deref(), &snapshot, use_of);
        self.snapshot = Some(snapshot);
        self.placed = OnceLock::new();
        self.watch_moves(now);
        true
    }

    /// Remembers of services that were moved lately whether they were hot again where they went: by an alert that has
    /// stood as long as one must stand to be acted on.
    fn watch_moves(&mut self, now: Time) {
        for (service, node) in self.history.moved_since(now.before(MOVES_WATCHED)) {
            let policy = self
                .snapshot
                .as_ref()
                .and_then(|snapshot| snapshot.services.get(&service)?.policy.as_ref().ok());
            let act_after = policy.and_then(|policy| policy.act_after).unwrap_or(ACT_AFTER);
            let Some(agent) = self.agents.get(&node) else { continue };
            let again = agent.lease.state(now) == LeaseState::Live
                && agent.containers.values().any(|container| {
                    let stands = |condition| {
                        let standing: Option<&Standing> = container.standing.get(&condition);
                        standing.is_some_and(|standing| now - standing.since >= act_after)
                    };
                    (stands(Condition::CpuHigh) || stands(Condition::MemoryHigh))
                        && self.service_of(container).is_some_and(|found| found.id == service)
                });
            if again {
                self.history.note_in_vain(&service, &node);
            }
        }
    }

    /// Takes in what came from an agent. Whatever is to be said to agents is put into `out`.
    pub fn hear(
        &mut self,
        now: Time,
        input: AgentInput,
        statistics: &mut Statistics,
        out: &mut Vec<AgentOutput>,
    ) -> Heard {
        let AgentInput { node, connection, what } = input;
        if let AgentEvent::Message(ToCoordinator::Container(event)) = &what {
            self.note_died(now, &node, connection, event);
        }
        if let AgentEvent::Connected(hello) = what {
            return self.connect(now, node, connection, hello, statistics, out);
        }
        let Some(agent) = self.agents.get_mut(&node) else {
            statistics.dropped += 1;
            return Heard::Nothing;
        };
        if agent.connection != Some(connection) {
            // Superseded: its close is on the way.
            statistics.stale_reports += 1;
            return Heard::Nothing;
        }
        match what {
            AgentEvent::Connected(_) => Heard::Nothing,
            AgentEvent::Disconnected => {
                agent.disconnect(connection);
                Heard::Went
            }
            AgentEvent::Report(report) => {
                let counter = if agent.report(now, &report) {
                    &mut statistics.reports
                } else {
                    &mut statistics.stale_reports
                };
                *counter += 1;
                Heard::Nothing
            }
            AgentEvent::Message(message) => hear_message(now, agent, connection, message, statistics, out),
        }
    }

    /// Remembers how a replica ended that Swarm had asked to stop, and that one failed that it had not.
    fn note_died(&mut self, now: Time, node: &NodeId, connection: ConnectionId, event: &ContainerEvent) {
        let status = match event.what {
            ContainerChange::Died { status } => Some(status),
            ContainerChange::Unhealthy => None,
            _ => return,
        };
        if self.agents.get(node).is_none_or(|agent| agent.connection != Some(connection)) {
            return;
        }
        let task = self.task_of(&event.container, event.task.as_ref());
        let Some(task) = task.filter(|task| task.node.as_ref() == Some(node)) else { return };
        let (service, task, wanted) = (task.service.clone(), task.id.clone(), task.is_wanted());
        if wanted && status != Some(0) && self.lives.has_served(&task) {
            self.history.note_fell(now, &service, &task);
        }
        match status {
            Some(status) if !wanted => self.history.note_stopped(&service, status),
            Some(status) if status != 0 => self.history.note_failed(now, &service),
            _ => {}
        }
    }

    fn connect(
        &mut self,
        now: Time,
        node: NodeId,
        connection: ConnectionId,
        hello: swarmguard_common::wire::agent::Hello,
        statistics: &mut Statistics,
        out: &mut Vec<AgentOutput>,
    ) -> Heard {
        let mut close = |connection, reason: &str| {
            out.push(AgentOutput { connection, what: AgentOrder::Close { reason: reason.into() } });
        };
        if hello.node != node {
            close(connection, "the hello names another node than the certificate");
            return Heard::Nothing;
        }
        if let Some(agent) = self.agents.get_mut(&node) {
            match agent.reconnect(now, connection, hello) {
                Ok(Some(old)) => close(old, "superseded by a newer connection of the same node"),
                Ok(None) => {}
                Err(late) => {
                    close(late, "older than the node's newest connection");
                    return Heard::Nothing;
                }
            }
            return Heard::Came { again: true };
        }
        if self.agents.len() >= MAX_AGENTS {
            statistics.dropped += 1;
            close(connection, "there are too many agents");
            return Heard::Nothing;
        }
        let mut agent = Agent::new(now, connection, hello);
        if let Some(described) = self.snapshot.as_ref().and_then(|snapshot| snapshot.nodes.get(&node)) {
            agent.take_capacity(described);
        }
        self.agents.insert(node, agent);
        Heard::Came { again: false }
    }

    /// The task that a container is, by Swarm's word or else its agent's.
    pub fn task_of(&self, container: &ContainerId, intro: Option<&TaskId>) -> Option<&Task> {
        let tasks = &self.snapshot.as_ref()?.tasks;
        if let Some(known) = self.tasks_by_container.get(container) {
            return tasks.get(known);
        }
        // An agent's own word counts only until Swarm shows which container the task is.
        tasks.get(intro?).filter(|task| task.container.is_none())
    }

    /// The service of a container: Swarm's word through its task, or else its agent's.
    pub fn service_of(&self, container: &Container) -> Option<&Service> {
        let snapshot = self.snapshot.as_ref()?;
        let task = self.task_of(&container.intro.container, container.intro.task.as_ref());
        let id = task.map(|task| &task.service).or(container.intro.service.as_ref())?;
        snapshot.services.get(id)
    }

    /// What is placed where.
    pub fn placed(&self) -> &Placed {
        self.placed.get_or_init(|| self.snapshot.as_deref().map(Placed::count).unwrap_or_default())
    }

    /// Tasks of a service, in task order.
    pub fn tasks_of<'a>(&'a self, service: &ServiceId) -> impl Iterator<Item = &'a Task> {
        let ids = self.tasks_by_service.get(service).into_iter().flatten();
        ids.filter_map(|id| self.snapshot.as_ref()?.tasks.get(id))
    }

    /// Tasks on a node, in task order.
    pub fn tasks_on<'a>(&'a self, node: &NodeId) -> impl Iterator<Item = &'a Task> {
        let ids = self.tasks_by_node.get(node).into_iter().flatten();
        ids.filter_map(|id| self.snapshot.as_ref()?.tasks.get(id))
    }

    /// Replicas of a service that Swarm wants and that are assigned to a node, in task order.
    pub fn replicas<'a>(&'a self, service: &ServiceId, now: Time) -> Vec<Replica<'a>> {
        let Some(snapshot) = self.snapshot.as_deref() else { return Vec::new() };
        let wanted = self.tasks_of(service).filter(|task| task.is_wanted());
        wanted.filter_map(|task| self.replica(snapshot, task, now)).collect()
    }

    /// A task joined with its node, agent and figures; `None` while it is assigned to no known node.
    pub fn replica<'a>(&'a self, snapshot: &'a Snapshot, task: &'a Task, now: Time) -> Option<Replica<'a>> {
        let node = snapshot.nodes.get(task.node.as_ref()?)?;
        let agent = self.agents.get(&node.id);
        let container = agent.and_then(|agent| agent.container_of(&task.id, task.container.as_ref()));
        let load = agent.zip(container).and_then(|(agent, container)| agent.fresh(container, now));
        Some(Replica { task, node, agent, container, load })
    }

    /// What a node's lease is worth; `None` when no agent was ever heard there.
    pub fn lease(&self, node: &NodeId, now: Time) -> Option<LeaseState> {
        self.agents.get(node).map(|agent| agent.lease.state(now))
    }

    /// Whether any alert stands anywhere.
    pub fn any_alert(&self) -> bool {
        self.agents
            .values()
            .any(|agent| agent.containers.values().any(|container| !container.standing.is_empty()))
    }

    /// Figures of a node that may be judged by.
    pub fn node_load(&self, node: &NodeId, now: Time) -> Option<&NodeLoad> {
        self.agents.get(node)?.node_load(now)
    }

    /// What agents saw on a service's containers.
    pub fn seen(&self, service: &Service, now: Time) -> Seen {
        let replicas = self.replicas(&service.id, now);
        let volumes = replicas.iter().filter_map(|replica| replica.container);
        let volumes = volumes.flat_map(|container| &container.intro.local_volumes).cloned();
        Seen { healthcheck: self.healthcheck(service, now), volumes: volumes.collect() }
    }

    /// Whether a service's containers have a healthcheck: by its spec, or seen by an agent (an image may bring one
    /// that no spec shows). `None` when nobody can tell.
    pub fn healthcheck(&self, service: &Service, now: Time) -> Option<bool> {
        if let Some(check) = service.spec.pointer("/TaskTemplate/ContainerSpec/Healthcheck")
            && let Some(test) =
                check.get("Test").and_then(|test| test.as_array()).filter(|test| !test.is_empty())
        {
            return Some(test[0] != "NONE");
        }
        let seen: Vec<bool> = self
            .replicas(&service.id, now)
            .iter()
            .filter_map(|replica| replica.container?.healthcheck())
            .collect();
        if seen.is_empty() { None } else { Some(seen.iter().all(|has| *has)) }
    }
}

/// What agents saw on a service's containers that its spec does not show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether they have a healthcheck, the spec's or the image's; `None` when nobody can tell.
    pub healthcheck: Option<bool>,
    /// Where they have volumes of their own, because the image asks for them.
    pub volumes: BTreeSet<String>,
}

fn hear_message(
    now: Time,
    agent: &mut Agent,
    connection: ConnectionId,
    message: ToCoordinator,
    statistics: &mut Statistics,
    out: &mut Vec<AgentOutput>,
) -> Heard {
    match message {
        ToCoordinator::Hello(_) => {
            let reason = "a second hello on one connection".into();
            out.push(AgentOutput { connection, what: AgentOrder::Close { reason } });
            Heard::Nothing
        }
        ToCoordinator::Task(intro) => {
            if !agent.introduce(intro) {
                statistics.dropped += 1;
            }
            Heard::Nothing
        }
        ToCoordinator::Gone { handle } => {
            agent.gone(handle);
            Heard::Nothing
        }
        ToCoordinator::Alert(alert) => {
            let duplicates = statistics.duplicate_alerts;
            let edge = agent.alert(now, &alert, statistics);
            if statistics.duplicate_alerts != duplicates {
                agent.acknowledge_again();
            }
            edge.map_or(Heard::Nothing, Heard::Edge)
        }
        ToCoordinator::Container(event) => {
            agent.event(&event);
            Heard::Container(event.task)
        }
        ToCoordinator::Hears(coordinators) => {
            agent.hears = Some(coordinators);
            Heard::Nothing
        }
    }
}

#[cfg(test)]
mod tests;
