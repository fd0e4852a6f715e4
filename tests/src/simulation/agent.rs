//! Agents of the simulation: they measure what [`super::load`] says, raise and clear with hysteresis and hold, number
//! their alerts, and send again what was not acknowledged after a reconnect.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::{
    domain::{BasisPoints, Condition, Edge, NodeId, TaskId},
    labels::{CLEAR_RATIO, Thresholds},
    time::Time,
    wire::agent::{Alert, Hello, Report, TaskIntro, TaskLoad, ToAgent, ToCoordinator},
};
use swarmguard_core::brain::{AgentEvent, AgentOrder, ConnectionId};

use super::{
    World,
    coordinator::Coordinator,
    load::{NODE_CPU_MILLIS, NODE_MEMORY_BYTES},
    network::Parcel,
    sabotage::Sabotage,
};

const REPORT_EVERY: Duration = Duration::from_millis(250);
const REFRESH_EVERY: Duration = Duration::from_secs(1);
const RECONNECT_AFTER: Duration = Duration::from_millis(700);
/// Silence from a coordinator after which its connection counts as lost is modelled by the cut itself.
const KEPT_ALERTS: usize = 1_024;

/// The agent of one node.
pub(super) struct Agent {
    node: NodeId,
    /// Of its present life.
    pub epoch: u64,
    alert_seq: u64,
    report_seq: u64,
    next_report: Time,
    standing: BTreeMap<(TaskId, Condition), Standing>,
    links: BTreeMap<NodeId, Link>,
    was_up: bool,
}

struct Standing {
    since: Time,
    raised: bool,
    refreshed: Time,
}

/// One connection to one coordinator.
struct Link {
    connection: ConnectionId,
    established: bool,
    retry_at: Time,
    handles: BTreeMap<TaskId, u32>,
    next_handle: u32,
    unacknowledged: Vec<(Time, TaskId, Alert)>,
}

impl Agent {
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            epoch: 1,
            alert_seq: 0,
            report_seq: 0,
            next_report: Time::ZERO,
            standing: BTreeMap::new(),
            links: BTreeMap::new(),
            was_up: true,
        }
    }

    /// The node has power or not; with it the program starts anew.
    pub fn power(&mut self, up: bool) {
        if up && !self.was_up {
            self.restart();
        }
        self.was_up = up;
    }

    /// The program starts anew: nothing is remembered but that the epoch is later.
    pub fn restart(&mut self) {
        let epoch = self.epoch + 1;
        *self = Self { epoch, ..Self::new(self.node.clone()) };
    }

    pub fn receive(&mut self, coordinator: &NodeId, connection: ConnectionId, what: AgentOrder, now: Time) {
        let Some(link) = self.links.get_mut(coordinator).filter(|link| link.connection == connection) else {
            return;
        };
        match what {
            AgentOrder::Send(ToAgent::Acknowledge { seq }) => {
                link.unacknowledged.retain(|(_, _, alert)| alert.seq > seq);
            }
            AgentOrder::Send(_) => {}
            AgentOrder::Close { .. } => *link = Link::again(link, now),
        }
    }

    /// Edges that the newest figures bring about.
    fn judge(
        &mut self,
        now: Time,
        loads: &BTreeMap<TaskId, TaskLoad>,
        sabotage: Sabotage,
    ) -> Vec<(TaskId, Alert)> {
        let thresholds = Thresholds::default();
        let mut edges = Vec::new();
        for (task, load) in loads {
            let watched = [
                (Condition::CpuHigh, load.cpu, thresholds.cpu_high),
                (Condition::MemoryHigh, load.memory, thresholds.memory_high),
                (Condition::NetworkHigh, load.network, thresholds.network_high),
            ];
            for (condition, value, high) in watched {
                if let Some(value) = value {
                    let raised = self.standing.get(&(task.clone(), condition)).is_some_and(|it| it.raised);
                    let value = if raised { sabotage.of_raised(value, high) } else { value };
                    self.judge_one(now, task, condition, value, high, &mut edges);
                }
            }
        }
        let gone: Vec<(TaskId, Condition)> =
            self.standing.keys().filter(|(task, _)| !loads.contains_key(task)).cloned().collect();
        for key in gone {
            self.standing.remove(&key);
        }
        edges
    }

    fn judge_one(
        &mut self,
        now: Time,
        task: &TaskId,
        condition: Condition,
        value: BasisPoints,
        high: BasisPoints,
        edges: &mut Vec<(TaskId, Alert)>,
    ) {
        let hold = Duration::from_millis(u64::from(Thresholds::default().hold_ms));
        let key = (task.clone(), condition);
        let Some(standing) = self.standing.get_mut(&key) else {
            if value >= high {
                self.standing.insert(key, Standing { since: now, raised: false, refreshed: now });
            }
            return;
        };
        let edge = if standing.raised && value < high.scaled(CLEAR_RATIO) {
            Some(Edge::Clear)
        } else if !standing.raised && value < high {
            None
        } else if !standing.raised && now - standing.since >= hold {
            Some(Edge::Raise)
        } else if standing.raised && now - standing.refreshed >= REFRESH_EVERY {
            Some(Edge::Refresh)
        } else {
            return;
        };
        standing.raised = true;
        standing.refreshed = now;
        let age = if edge == Some(Edge::Clear) { Duration::ZERO } else { now - standing.since };
        if matches!(edge, None | Some(Edge::Clear)) {
            self.standing.remove(&key);
        }
        let Some(edge) = edge else { return };
        self.alert_seq += 1;
        let alert = Alert {
            epoch: self.epoch,
            seq: self.alert_seq,
            handle: 0,
            condition: condition as u8,
            edge: edge as u8,
            value: value.0,
            age_ms: u32::try_from(age.as_millis()).unwrap_or(u32::MAX),
        };
        edges.push((task.clone(), alert));
    }
}

impl Link {
    fn new(retry_at: Time) -> Self {
        Self {
            connection: ConnectionId(0),
            established: false,
            retry_at,
            handles: BTreeMap::new(),
            next_handle: 1,
            unacknowledged: Vec::new(),
        }
    }

    /// The connection is lost: a later one follows, and brings what was not acknowledged.
    fn again(old: &mut Self, now: Time) -> Self {
        let mut new = Self::new(now + RECONNECT_AFTER);
        new.unacknowledged = std::mem::take(&mut old.unacknowledged);
        new
    }
}

impl World {
    pub(super) fn run_agents(&mut self) {
        self.load.choose(self.now, &self.swarm, &self.services);
        for node in self.agents.keys().cloned().collect::<Vec<_>>() {
            let up = self.swarm.nodes[&node].up;
            let agent = self.agents.get_mut(&node).expect("every node has an agent");
            agent.power(up);
            if up {
                self.run_agent(&node);
            }
        }
    }

    fn run_agent(&mut self, node: &NodeId) {
        let (node_load, loads) = self.load.measure(self.now, node, &self.swarm, &mut self.rng);
        let agent = self.agents.get_mut(node).expect("every node has an agent");
        let edges = agent.judge(self.now, &loads, self.sabotage);
        let reports = self.now >= agent.next_report;
        if reports {
            agent.next_report = self.now + REPORT_EVERY;
            agent.report_seq += 1;
        }
        for coordinator in self.coordinators.keys().cloned().collect::<Vec<_>>() {
            if !self.connect(node, &coordinator) {
                self.keep(node, &coordinator, &edges);
                continue;
            }
            self.introduce(node, &coordinator, &loads);
            self.keep(node, &coordinator, &edges);
            for (task, alert) in &edges {
                self.send_alert(node, &coordinator, task, *alert, Duration::ZERO);
            }
            if reports {
                self.report(node, &coordinator, node_load, &loads);
            }
        }
    }

    /// Whether a connection stands; makes one when its time has come.
    fn connect(&mut self, node: &NodeId, coordinator: &NodeId) -> bool {
        let reachable = self.coordinators[coordinator].brain.is_some()
            && self.swarm.nodes[coordinator].up
            && !self.network.is_cut(node, coordinator);
        let now = self.now;
        let agent = self.agents.get_mut(node).expect("every node has an agent");
        let epoch = agent.epoch;
        let link = agent.links.entry(coordinator.clone()).or_insert_with(|| Link::new(Time::ZERO));
        let incarnation = self.coordinators[coordinator].incarnation;
        if link.established && (!reachable || link.connection.0 >> 32 != incarnation) {
            *link = Link::again(link, now);
        }
        if link.established || !reachable || now < link.retry_at {
            return link.established;
        }
        let Some(number) = self.coordinators.get_mut(coordinator).map(Coordinator::accept) else {
            return false;
        };
        link.established = true;
        link.connection = number;
        let hello = Hello {
            node: node.clone(),
            epoch,
            hostname: node.to_string(),
            version: "simulated".into(),
            cpu_millis: NODE_CPU_MILLIS,
            memory_bytes: NODE_MEMORY_BYTES,
            link_mbps: Some(1_000),
            blind: false,
        };
        let again = std::mem::take(&mut link.unacknowledged);
        self.up(node, coordinator, AgentEvent::Connected(hello));
        for (since, task, alert) in &again {
            self.introduce_one(node, coordinator, task);
            self.send_alert(node, coordinator, task, *alert, now - *since);
        }
        self.agents
            .get_mut(node)
            .expect("every node has an agent")
            .links
            .get_mut(coordinator)
            .expect("just made")
            .unacknowledged = again;
        true
    }

    fn keep(&mut self, node: &NodeId, coordinator: &NodeId, edges: &[(TaskId, Alert)]) {
        let now = self.now;
        let link = self.agents.get_mut(node).and_then(|agent| agent.links.get_mut(coordinator));
        if let Some(link) = link {
            link.unacknowledged.extend(edges.iter().map(|(task, alert)| (now, task.clone(), *alert)));
            let excess = link.unacknowledged.len().saturating_sub(KEPT_ALERTS);
            link.unacknowledged.drain(..excess);
        }
    }

    fn introduce(&mut self, node: &NodeId, coordinator: &NodeId, loads: &BTreeMap<TaskId, TaskLoad>) {
        for task in loads.keys() {
            self.introduce_one(node, coordinator, task);
        }
        let link =
            self.agents.get_mut(node).and_then(|agent| agent.links.get_mut(coordinator)).expect("it stands");
        let gone: Vec<(TaskId, u32)> = link
            .handles
            .iter()
            .filter(|(task, _)| !loads.contains_key(*task))
            .map(|(task, handle)| (task.clone(), *handle))
            .collect();
        for (task, _) in &gone {
            link.handles.remove(task);
            link.unacknowledged.retain(|(_, of, _)| of != task);
        }
        for (_, handle) in gone {
            self.up(node, coordinator, AgentEvent::Message(ToCoordinator::Gone { handle }));
        }
    }

    fn introduce_one(&mut self, node: &NodeId, coordinator: &NodeId, task: &TaskId) {
        let Some(container) = self.swarm.tasks.get(task).and_then(crate::swarm_model::ModelTask::container)
        else {
            return;
        };
        let link =
            self.agents.get_mut(node).and_then(|agent| agent.links.get_mut(coordinator)).expect("it stands");
        if link.handles.contains_key(task) {
            return;
        }
        let handle = link.next_handle;
        link.next_handle += 1;
        link.handles.insert(task.clone(), handle);
        let intro = TaskIntro {
            handle,
            container,
            task: Some(task.clone()),
            service: Some(self.swarm.tasks[task].service.clone()),
            cpu_limit_millis: None,
            memory_limit_bytes: None,
            healthcheck: Some(true),
            local_volumes: Vec::new(),
        };
        self.up(node, coordinator, AgentEvent::Message(ToCoordinator::Task(intro)));
    }

    fn send_alert(
        &mut self,
        node: &NodeId,
        coordinator: &NodeId,
        task: &TaskId,
        alert: Alert,
        waited: Duration,
    ) {
        let link = self.agents.get(node).and_then(|agent| agent.links.get(coordinator)).expect("it stands");
        let Some(handle) = link.handles.get(task).copied() else { return };
        let waited = u32::try_from(waited.as_millis()).unwrap_or(u32::MAX);
        let alert = Alert { handle, age_ms: alert.age_ms.saturating_add(waited), ..alert };
        self.up(node, coordinator, AgentEvent::Message(ToCoordinator::Alert(alert)));
    }

    fn report(
        &mut self,
        node: &NodeId,
        coordinator: &NodeId,
        node_load: swarmguard_common::wire::agent::NodeLoad,
        loads: &BTreeMap<TaskId, TaskLoad>,
    ) {
        let agent = &self.agents[node];
        let link = &agent.links[coordinator];
        let tasks = loads
            .iter()
            .filter_map(|(task, load)| Some(TaskLoad { handle: *link.handles.get(task)?, ..*load }))
            .collect();
        let report = Report { epoch: agent.epoch, seq: agent.report_seq, node: node_load, tasks };
        self.up(node, coordinator, AgentEvent::Report(report));
    }

    fn up(&mut self, node: &NodeId, coordinator: &NodeId, what: AgentEvent) {
        let connection = self.agents[node].links[coordinator].connection;
        let parcel = Parcel::Up { from: node.clone(), to: coordinator.clone(), connection, what };
        self.network.send(self.now, parcel, &mut self.rng);
    }

    /// Everything that has arrived reaches its addressee, if that still lives.
    pub(super) fn deliver(&mut self) {
        for parcel in self.network.arrived(self.now) {
            match parcel {
                Parcel::Up { from, to, connection, what } => self.receive_up(&from, &to, connection, what),
                Parcel::Down { from, to, connection, what } => {
                    let now = self.now;
                    if let Some(agent) = self.agents.get_mut(&to) {
                        agent.receive(&from, connection, what, now);
                    }
                }
            }
        }
    }
}

impl World {
    /// The number of the connection that an agent has to a coordinator now.
    pub(super) fn connections_of(&self, agent: &NodeId, coordinator: &NodeId) -> Option<ConnectionId> {
        self.agents.get(agent)?.links.get(coordinator).map(|link| link.connection)
    }
}
