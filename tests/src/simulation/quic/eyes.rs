//! What must hold between agents and coordinators, seen where ingest hands over to the brain, and in what brain and
//! agents then believe.
//!
//! - An agent speaks only for the node that its certificate names, and only over its newest connection.
//! - A node lease is as old as the last thing heard: it lapses on silence only, comes back after it, and is not believed
//!   longer.
//! - No alert is judged twice, none is lost, and none stands that is over, once the way has been clear for a while.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use swarmguard_common::{
    domain::{ContainerId, NodeId},
    journal::Entry,
    time::Time,
    wire::agent::ToCoordinator,
};
use swarmguard_core::{
    brain::{AgentEvent, AgentInput, AlertStatus, ConnectionId, LeaseStatus},
    lease::LeaseState,
};
use tokio::sync::broadcast;

use super::IMPOSTOR;

/// What passes between ingest and the brain may wait for so long.
const SLACK: Duration = Duration::from_millis(600);
/// Ages are told in milliseconds.
const ROUNDING: Duration = Duration::from_millis(2);
/// A way that has been clear for so long carries everything: the longest wait between two attempts, the longest
/// patience with one, and the time in which silence is noticed, with room for a few lost handshakes.
const CLEAR_FOR: Duration = Duration::from_secs(40);
/// Alerts are refreshed every second; so long a time is enough even where most datagrams are lost.
const SAID_WITHIN: Duration = Duration::from_secs(10);

/// Conditions that stand at an agent, by container and number, and how long they have.
pub(super) type Standing = BTreeMap<(ContainerId, u8), Duration>;

/// What a brain believes at one moment.
pub(super) struct Probe {
    /// On the coordinator's clock.
    pub now: Time,
    pub leases: Vec<LeaseStatus>,
    pub alerts: Vec<AlertStatus>,
    /// Alert edges that it took for new.
    pub taken_in: u64,
}

/// One life of a coordinator.
struct Life {
    number: u64,
    journal: broadcast::Receiver<Arc<Entry>>,
    heard: BTreeMap<NodeId, Heard>,
    /// Alerts that came, by node, epoch and number.
    came: BTreeSet<(NodeId, u64, u64)>,
    probe: Option<Probe>,
}

/// An agent as one coordinator heard it.
struct Heard {
    connection: ConnectionId,
    epoch: u64,
    connected: bool,
    /// Reports and hellos on the coordinator's clock, the newest last: back to the first that has reached the brain for
    /// sure.
    at: VecDeque<Time>,
}

impl Heard {
    fn again(&mut self, now: Time) {
        self.at.push_back(now);
        while self.at.get(1).is_some_and(|second| now.since(*second) >= SLACK) {
            self.at.pop_front();
        }
    }
}

/// What happened often enough to be worth a count: a run in which nothing of the kind happened tries nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub connections: u64,
    pub superseded: u64,
    pub alerts: u64,
    pub alerts_again: u64,
    pub lapsed: u64,
    pub refused: u64,
}

/// All of it.
#[derive(Default)]
pub(super) struct Eyes {
    lives: BTreeMap<NodeId, Life>,
    standing: BTreeMap<NodeId, Standing>,
    /// Since when agent and coordinator live and nothing is between them.
    clear_since: BTreeMap<(NodeId, NodeId), Time>,
    lapsed: BTreeSet<(NodeId, NodeId)>,
    /// Since when a coordinator does not know of a condition that stands, by agent and coordinator.
    missing: BTreeMap<(NodeId, NodeId, ContainerId, u8), Time>,
    pub seen: Seen,
    /// What is wrong.
    pub found: Vec<String>,
}

impl Eyes {
    pub fn starts(&mut self, coordinator: &NodeId, number: u64, journal: broadcast::Receiver<Arc<Entry>>) {
        let life = Life { number, journal, heard: BTreeMap::new(), came: BTreeSet::new(), probe: None };
        self.lives.insert(coordinator.clone(), life);
        self.lapsed.retain(|(_, at)| at != coordinator);
    }

    /// The coordinator dies: nothing that it believed counts any more.
    pub fn ends(&mut self, coordinator: &NodeId) {
        if let Some(life) = self.lives.get_mut(coordinator) {
            life.probe = None;
        }
    }

    /// Journal entries since the last call.
    pub fn entries(&mut self, coordinator: &NodeId) -> Vec<Arc<Entry>> {
        let Some(life) = self.lives.get_mut(coordinator) else { return Vec::new() };
        let mut entries = Vec::new();
        loop {
            match life.journal.try_recv() {
                Ok(entry) => entries.push(entry),
                Err(broadcast::error::TryRecvError::Lagged(missed)) => {
                    self.found.push(format!("{missed} journal entries of {coordinator} were missed"));
                }
                Err(_) => return entries,
            }
        }
    }

    pub fn stands(&mut self, agent: &NodeId, standing: Standing) {
        self.standing.insert(agent.clone(), standing);
    }

    /// Something passes from ingest to the brain, at this time of the coordinator's clock.
    pub fn heard(&mut self, coordinator: &NodeId, input: &AgentInput, now: Time) {
        let Some(life) = self.lives.get_mut(coordinator) else { return };
        let (node, number) = (&input.node, life.number);
        let mut wrong = |text: String| self.found.push(format!("{coordinator} (life {number}): {text}"));
        if let AgentEvent::Connected(hello) = &input.what {
            if hello.hostname == IMPOSTOR {
                wrong(format!("somebody else speaks for {node}"));
            }
            self.seen.connections += 1;
            let new =
                Heard { connection: input.connection, epoch: hello.epoch, connected: true, at: [now].into() };
            if let Some(old) = life.heard.insert(node.clone(), new) {
                self.seen.superseded += u64::from(old.connected);
                if old.connection >= input.connection {
                    wrong(format!("connection {} of {node} follows a later one", input.connection.0));
                }
            }
            return;
        }
        let Some(heard) = life.heard.get_mut(node) else {
            return wrong(format!("{node} speaks before its hello"));
        };
        match &input.what {
            AgentEvent::Disconnected if heard.connection == input.connection => heard.connected = false,
            AgentEvent::Disconnected => {}
            // Reports have a queue of their own: the last of the old connection and the first of the new one may pass
            // the hello.
            AgentEvent::Report(report) => {
                if heard.connection == input.connection && report.epoch == heard.epoch {
                    heard.again(now);
                }
            }
            _ if heard.connection != input.connection => {
                wrong(format!("{node} speaks over connection {}, which was superseded", input.connection.0));
            }
            AgentEvent::Message(ToCoordinator::Alert(alert)) => {
                let new = life.came.insert((node.clone(), alert.epoch, alert.seq));
                self.seen.alerts += 1;
                self.seen.alerts_again += u64::from(!new);
            }
            _ => {}
        }
    }

    /// A look into a brain.
    pub fn probed(&mut self, coordinator: &NodeId, probe: Probe) {
        let Some(life) = self.lives.get_mut(coordinator) else { return };
        for lease in &probe.leases {
            let Some(heard) = life.heard.get(&lease.node) else {
                self.found.push(format!("{coordinator} has a lease of {}, which never spoke", lease.node));
                continue;
            };
            let age = Duration::from_millis(lease.age_ms);
            let since = |at: &Time| probe.now.since(*at);
            let silence = heard.at.back().map_or(Duration::ZERO, since);
            // What passed just now may still be on its way to the brain.
            let known = heard.at.iter().rev().map(since).find(|since| *since >= SLACK);
            if age + SLACK < silence {
                self.found.push(format!(
                    "{coordinator}: the lease of {} was renewed {age:?} ago by nothing, it has been silent for {silence:?}",
                    lease.node
                ));
            }
            if let Some(known) = known.filter(|known| age > *known + ROUNDING) {
                self.found.push(format!(
                    "{coordinator}: the lease of {} is {:?} after {age:?}, though it spoke {known:?} ago",
                    lease.node, lease.state
                ));
            }
            let key = (lease.node.clone(), coordinator.clone());
            if lease.state == LeaseState::Lapsed {
                self.seen.lapsed += u64::from(self.lapsed.insert(key));
            } else {
                self.lapsed.remove(&key);
            }
        }
        let came = life.came.len() as u64;
        if probe.taken_in > came {
            self.found.push(format!(
                "{coordinator}: {} alerts were judged, though only {came} different ones came",
                probe.taken_in
            ));
        }
        life.probe = Some(probe);
    }

    /// Whether the way between an agent and a coordinator is clear now, both living.
    pub fn way(&mut self, agent: &NodeId, coordinator: &NodeId, clear: bool, now: Time) {
        let key = (agent.clone(), coordinator.clone());
        if clear {
            self.clear_since.entry(key).or_insert(now);
        } else {
            self.clear_since.remove(&key);
        }
    }

    /// What must hold for every way that has been clear for long enough. `epochs`: of the agents now.
    pub fn compare(&mut self, now: Time, epochs: &BTreeMap<NodeId, u64>) {
        let standing = &self.standing;
        self.missing.retain(|(agent, _, container, condition), _| {
            standing.get(agent).is_some_and(|it| it.contains_key(&(container.clone(), *condition)))
        });
        let clear = self.clear_since.iter().filter(|(_, since)| now.since(**since) >= CLEAR_FOR);
        for ((agent, coordinator), _) in clear {
            let probe = self.lives.get(coordinator).and_then(|life| life.probe.as_ref());
            let (Some(probe), Some(standing)) = (probe, self.standing.get(agent)) else { continue };
            let mut wrong = |text: String| self.found.push(format!("{coordinator}: {text}"));
            match probe.leases.iter().find(|lease| lease.node == *agent) {
                Some(lease)
                    if lease.state != LeaseState::Lapsed && epochs.get(agent) == Some(&lease.epoch) => {}
                lease => wrong(format!("nothing is in the way of {agent}, but its lease is {lease:?}")),
            }
            let of_agent = |alert: &&AlertStatus| alert.node == *agent;
            let known: BTreeSet<(&ContainerId, u8)> =
                probe.alerts.iter().filter(of_agent).map(|it| (&it.container, it.condition as u8)).collect();
            for ((container, condition), stands) in standing {
                let key = (agent.clone(), coordinator.clone(), container.clone(), *condition);
                if known.contains(&(container, *condition)) {
                    self.missing.remove(&key);
                    continue;
                }
                // What is told of the agent may be a moment older than what the coordinator has heard: an end that
                // has just been told is no loss.
                let since = *self.missing.entry(key).or_insert(now);
                if now.since(since) > SAID_WITHIN {
                    wrong(format!(
                        "condition {condition} of {container} on {agent} has stood for {stands:?}, and is lost"
                    ));
                }
            }
            for alert in probe.alerts.iter().filter(of_agent) {
                let silent = Duration::from_millis(alert.heard_ms) > SAID_WITHIN;
                if silent && !standing.contains_key(&(alert.container.clone(), alert.condition as u8)) {
                    wrong(format!(
                        "{:?} of {} on {agent} is over, but stands",
                        alert.condition, alert.container
                    ));
                }
            }
        }
    }

    /// Alerts that stand in any brain.
    pub fn alerts(&self) -> usize {
        self.lives.values().filter_map(|life| life.probe.as_ref()).map(|probe| probe.alerts.len()).sum()
    }
}
