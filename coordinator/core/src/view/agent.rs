//! What one node's agent has said: its lease, its containers with their loads, and the alerts that stand.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::{
    api::Statistics,
    domain::{Condition, ContainerId, Edge, TaskId},
    time::Time,
    wire::agent::{
        Alert, ContainerChange, ContainerEvent, HeardCoordinator, Hello, NodeLoad, Report, TaskIntro,
        TaskLoad, ToAgent,
    },
};

use super::{
    alerts::{Episodes, Seen, Standing, StandingAlerts},
    growth::Growth,
    recent::{Recent, SPAN},
    shortage::Shortage,
    smooth::Smooth,
};
use crate::{
    agents::ConnectionId,
    lease::{Lease, LeaseState},
    swarm::Node,
};

/// Most containers kept for one node; more are counted as dropped.
pub const MAX_CONTAINERS: usize = 4_096;
/// A container's figures count for this long: agents send each at least once a second, and a datagram may be lost.
const LOAD_VALID: Duration = Duration::from_millis(2_500);
/// An alert that its agent, though heard, has not said again for this long stands no more: agents say what stands every
/// second, every two at their slowest sampling. The end of it was lost, or is of a handle that is gone.
const STANDING_VALID: Duration = Duration::from_secs(5);

/// Time constant of what tells a little more load from chance: a few dozen requests a second vary by a tenth over seconds.
pub const STEADY: Duration = Duration::from_secs(8);

/// A condition that came back after a dip is told to the journal once it has stood for this long.
const LASTS: Duration = Duration::from_secs(5);

/// A container as its agent describes it.
#[derive(Clone, Debug)]
pub struct Container {
    /// As introduced.
    pub intro: TaskIntro,
    /// Last figures and when they came.
    pub load: Option<(TaskLoad, Time)>,
    /// Smoothed CPU utilisation.
    pub cpu: Smooth,
    /// The same over [`STEADY`].
    pub steady_cpu: Smooth,
    /// Smoothed memory utilisation.
    pub memory: Smooth,
    /// Smoothed network utilisation.
    pub network: Smooth,
    /// Its memory over the last minutes.
    pub growth: Growth,
    /// Its figures of the last seconds.
    pub recent: Recent<TaskLoad>,
    /// Conditions that stand.
    pub standing: StandingAlerts,
    /// Conditions that stood a moment ago: they may go on.
    episodes: Episodes,
    /// Its healthcheck was seen to speak, so it has one.
    pub health_seen: bool,
}

impl Container {
    fn new(intro: TaskIntro) -> Self {
        Self {
            intro,
            load: None,
            cpu: Smooth::default(),
            steady_cpu: Smooth::over(STEADY),
            memory: Smooth::default(),
            network: Smooth::default(),
            growth: Growth::default(),
            recent: Recent::default(),
            standing: StandingAlerts::new(),
            episodes: Episodes::default(),
            health_seen: false,
        }
    }

    /// Whether it has a healthcheck, as far as its agent can tell.
    pub fn healthcheck(&self) -> Option<bool> {
        if self.health_seen { Some(true) } else { self.intro.healthcheck }
    }
}

/// An alert edge that was new.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEdge {
    /// Of which container; `None` for a condition of the agent itself.
    pub container: Option<ContainerId>,
    /// Which condition.
    pub condition: Condition,
    /// Which change; a refresh of something unknown here is a raise.
    pub edge: Edge,
    /// Value in per cent.
    pub percent: f64,
    /// Age of the condition when the edge came.
    pub age_ms: u32,
    /// It begins or ends an episode; a short dip within one is no news.
    pub news: bool,
}

/// One node's agent.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The connection it speaks over, while there is one.
    pub connection: Option<ConnectionId>,
    /// As it introduced itself.
    pub hello: Hello,
    /// Its right to be believed.
    pub lease: Lease,
    /// Last node figures.
    pub load: Option<NodeLoad>,
    /// Node figures of the last seconds.
    pub recent: Recent<NodeLoad>,
    /// What the node is short of.
    pub shortage: Shortage,
    /// Smoothed CPU of the node.
    pub cpu: Smooth,
    /// Smoothed memory of the node.
    pub memory: Smooth,
    /// Its containers.
    pub containers: BTreeMap<ContainerId, Container>,
    /// The coordinators that it hears; `None` where it has not said over this connection.
    pub hears: Option<Vec<HeardCoordinator>>,
    handles: BTreeMap<u32, ContainerId>,
    /// What stood when the last connection ended; taken over as containers are introduced again.
    stood: BTreeMap<ContainerId, StandingAlerts>,
    newest_connection: ConnectionId,
    report_seq: Option<u64>,
    seen: Seen,
    acknowledged: Option<u64>,
    /// The thresholds that it was sent over its present connection.
    pub(crate) thresholds_sent: Option<ToAgent>,
}

impl Agent {
    /// An agent said hello for the first time.
    pub fn new(now: Time, connection: ConnectionId, hello: Hello) -> Self {
        Self {
            connection: Some(connection),
            newest_connection: connection,
            hello,
            lease: Lease::new(now),
            load: None,
            recent: Recent::default(),
            shortage: Shortage::default(),
            cpu: Smooth::default(),
            memory: Smooth::default(),
            containers: BTreeMap::new(),
            hears: None,
            handles: BTreeMap::new(),
            stood: BTreeMap::new(),
            report_seq: None,
            seen: Seen::default(),
            acknowledged: None,
            thresholds_sent: None,
        }
    }

    /// The agent said hello over a new connection, which supersedes the one before: that one is returned, to be closed.
    ///
    /// # Errors
    /// When the connection is older than the newest one: it is to be closed itself.
    pub fn reconnect(
        &mut self,
        now: Time,
        connection: ConnectionId,
        hello: Hello,
    ) -> Result<Option<ConnectionId>, ConnectionId> {
        if connection <= self.newest_connection {
            return Err(connection);
        }
        let old = self.connection.replace(connection);
        self.newest_connection = connection;
        self.handles.clear();
        let containers = std::mem::take(&mut self.containers);
        if hello.epoch == self.hello.epoch {
            self.stood.extend(containers.into_iter().map(|(id, container)| (id, container.standing)));
            self.stood.retain(|_, standing| !standing.is_empty());
        } else {
            // Another life of the agent: it begins to observe and to count anew.
            self.stood.clear();
            self.report_seq = None;
            self.seen = Seen::default();
        }
        self.acknowledged = None;
        self.thresholds_sent = None;
        self.hears = None;
        self.hello = hello;
        self.lease.renew(now, false);
        Ok(old)
    }

    /// How large the node is, by Swarm's own description: the agent's word is taken only where that says nothing.
    pub fn take_capacity(&mut self, node: &Node) {
        if let Some(cpu_millis) = u32::try_from(node.nano_cpus / 1_000_000).ok().filter(|millis| *millis > 0)
        {
            self.hello.cpu_millis = cpu_millis;
        }
        if let Some(bytes) = u64::try_from(node.memory_bytes).ok().filter(|bytes| *bytes > 0) {
            self.hello.memory_bytes = bytes;
        }
    }

    /// The connection ended. The lease runs on.
    pub fn disconnect(&mut self, connection: ConnectionId) {
        if self.connection == Some(connection) {
            self.connection = None;
        }
    }

    /// Introduces a container; `false` when there are too many.
    pub fn introduce(&mut self, intro: TaskIntro) -> bool {
        if self.containers.len() >= MAX_CONTAINERS && !self.containers.contains_key(&intro.container) {
            return false;
        }
        let id = intro.container.clone();
        self.handles.insert(intro.handle, id.clone());
        let stood = self.stood.remove(&id).unwrap_or_default();
        match self.containers.get_mut(&id) {
            Some(container) => {
                // What stood under the old handle ended with it, without a clear edge: its limits may be others now.
                if container.intro.handle != intro.handle {
                    self.handles.remove(&container.intro.handle);
                    container.standing.clear();
                }
                container.intro = intro;
            }
            None => {
                let mut container = Container::new(intro);
                container.standing = stood;
                self.containers.insert(id, container);
            }
        }
        true
    }

    /// A container is gone; answers which.
    pub fn gone(&mut self, handle: u32) -> Option<ContainerId> {
        let id = self.handles.remove(&handle)?;
        self.containers.remove(&id);
        Some(id)
    }

    /// What the engine said of a container.
    pub fn event(&mut self, event: &ContainerEvent) {
        if let Some(container) = self.containers.get_mut(&event.container) {
            let spoke = matches!(event.what, ContainerChange::Healthy | ContainerChange::Unhealthy);
            container.health_seen |= spoke;
        }
    }

    /// Takes in a report; `false` when it is older than the newest, or of another epoch.
    pub fn report(&mut self, now: Time, report: &Report) -> bool {
        if report.epoch != self.hello.epoch || self.report_seq.is_some_and(|newest| report.seq <= newest) {
            return false;
        }
        self.report_seq = Some(report.seq);
        self.lease.renew(now, report.node.starved);
        self.load = Some(report.node);
        self.recent.push(now, report.node);
        self.shortage.update(now, self.recent.settled(now, SPAN).as_ref());
        self.cpu.update(now, report.node.cpu);
        self.memory.update(now, report.node.memory);
        self.expire(now);
        for load in &report.tasks {
            let Some(container) = self.handles.get(&load.handle).and_then(|id| self.containers.get_mut(id))
            else {
                continue; // A datagram may overtake the introduction.
            };
            container.load = Some((*load, now));
            container.recent.push(now, *load);
            if load.memory.is_some() {
                container.growth.note(now, f64::from(load.memory_kib) * 1_024.0);
            }
            container.cpu.update(now, load.cpu);
            container.steady_cpu.update(now, load.cpu);
            container.memory.update(now, load.memory);
            container.network.update(now, load.network);
        }
        true
    }

    /// Ends what the agent no longer says. Only while it is heard: what a silent one said is the lease's to judge.
    fn expire(&mut self, now: Time) {
        let valid = STANDING_VALID * self.lease.patience();
        for container in self.containers.values_mut().filter(|container| !container.standing.is_empty()) {
            container.standing.retain(|_, standing| now - standing.heard < valid);
        }
    }

    /// Takes in an alert edge; answers with it if it is new and understood.
    pub fn alert(&mut self, now: Time, alert: &Alert, statistics: &mut Statistics) -> Option<NewEdge> {
        if alert.epoch != self.hello.epoch {
            statistics.unknown_alerts += 1;
            return None;
        }
        if !self.seen.insert(alert.seq) {
            statistics.duplicate_alerts += 1;
            return None;
        }
        let Some((condition, edge)) = alert.parts() else {
            statistics.unknown_alerts += 1;
            return None;
        };
        statistics.alerts += 1;
        let mut new = NewEdge {
            container: None,
            condition,
            edge,
            percent: f64::from(alert.value) / 100.0,
            age_ms: alert.age_ms,
            news: true,
        };
        if alert.handle == 0 {
            return Some(new);
        }
        let Some((id, container)) = self
            .handles
            .get(&alert.handle)
            .and_then(|id| self.containers.get_mut(id).map(|container| (id, container)))
        else {
            statistics.unknown_alerts += 1;
            return None;
        };
        new.container = Some(id.clone());
        let standing = Standing {
            since: now.before(Duration::from_millis(u64::from(alert.age_ms))),
            heard: now,
            value: swarmguard_common::domain::BasisPoints(alert.value),
            told: true,
        };
        let known = container.standing.get(&condition).copied();
        match (edge, known) {
            (Edge::Raise | Edge::Refresh, None) => {
                new.edge = Edge::Raise;
                let standing = container.episodes.goes_on(now, condition, standing);
                new.news = standing.told;
                container.standing.insert(condition, standing);
            }
            (Edge::Raise, Some(_)) => {
                container.standing.insert(condition, standing);
            }
            (Edge::Refresh, Some(old)) => {
                // What was taken for a part of an episode that had been told as over, and lasts.
                if !old.told && now - old.since >= LASTS {
                    new.edge = Edge::Raise;
                }
                let told = old.told || new.edge == Edge::Raise;
                container.standing.insert(condition, Standing { since: old.since, told, ..standing });
            }
            (Edge::Clear, _) => {
                if let Some(old) = container.standing.remove(&condition) {
                    new.news = old.told;
                    let ended = now.before(Duration::from_millis(u64::from(alert.age_ms)));
                    container.episodes.ended(condition, old, ended);
                }
            }
        }
        Some(new)
    }

    /// What is to be acknowledged, if that was not said yet.
    pub fn acknowledgement(&mut self) -> Option<u64> {
        let seq = self.seen.acknowledge()?;
        (self.acknowledged.replace(seq) != Some(seq)).then_some(seq)
    }

    /// Says the acknowledgement again at the next occasion: the agent repeated itself, so it did not hear.
    pub fn acknowledge_again(&mut self) {
        self.acknowledged = None;
    }

    /// The container that the agent introduced for a task.
    pub fn container_of(&self, task: &TaskId, container: Option<&ContainerId>) -> Option<&Container> {
        match container {
            Some(id) => self.containers.get(id),
            None => self.containers.values().find(|container| container.intro.task.as_ref() == Some(task)),
        }
    }

    /// Figures of a container, unless they are too old to count.
    pub fn fresh<'a>(&self, container: &'a Container, now: Time) -> Option<&'a TaskLoad> {
        let (load, at) = container.load.as_ref()?;
        let believed = self.lease.state(now) == LeaseState::Live && !self.hello.blind;
        (believed && now - *at < LOAD_VALID * self.lease.patience()).then_some(load)
    }

    /// Figures of the node, unless it is not to be believed.
    pub fn node_load(&self, now: Time) -> Option<&NodeLoad> {
        let believed = self.lease.state(now) == LeaseState::Live && !self.hello.blind;
        if believed { self.load.as_ref() } else { None }
    }
}
