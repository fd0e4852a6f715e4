//! Messages in flight: delayed, lost, reordered, duplicated, or cut off by a partition.
//!
//! A control stream keeps its order and loses nothing while it stands, as QUIC's streams do; a partition breaks it.
//! Datagrams do what datagrams do.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use swarmguard_common::{domain::NodeId, time::Time};
use swarmguard_core::brain::{AgentEvent, AgentOrder, ConnectionId};

use super::scenario::Scenario;

/// What travels between an agent and a coordinator.
#[derive(Clone, Debug)]
pub(super) enum Parcel {
    /// To the coordinator on `to`, over a connection of the agent of `from`.
    Up { from: NodeId, to: NodeId, connection: ConnectionId, what: AgentEvent },
    /// To the agent of `to`.
    Down { from: NodeId, to: NodeId, connection: ConnectionId, what: AgentOrder },
}

/// The network.
pub(super) struct Network {
    loss: u16,
    delay_ms: u64,
    flying: BTreeMap<(Time, u64), Parcel>,
    sent: u64,
    /// Last arrival on each stream and direction, so that streams keep their order.
    last: BTreeMap<(NodeId, NodeId, bool), Time>,
    /// Pairs (agent's node, coordinator's node) that cannot talk.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Coordinators that cannot reach Swarm.
    blind: BTreeSet<NodeId>,
}

impl Network {
    pub fn new(scenario: &Scenario) -> Self {
        Self {
            loss: scenario.loss,
            delay_ms: scenario.delay_ms,
            flying: BTreeMap::new(),
            sent: 0,
            last: BTreeMap::new(),
            cut: BTreeSet::new(),
            blind: BTreeSet::new(),
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.blind.clear();
        self.loss = 0;
    }

    pub fn cut(&mut self, agent: &NodeId, coordinator: &NodeId) {
        self.cut.insert((agent.clone(), coordinator.clone()));
    }

    pub fn is_cut(&self, agent: &NodeId, coordinator: &NodeId) -> bool {
        self.cut.contains(&(agent.clone(), coordinator.clone()))
    }

    pub fn set_blind(&mut self, coordinator: &NodeId, blind: bool) {
        if blind {
            self.blind.insert(coordinator.clone());
        } else {
            self.blind.remove(coordinator);
        }
    }

    pub fn is_blind(&self, coordinator: &NodeId) -> bool {
        self.blind.contains(coordinator)
    }

    pub fn mend(&mut self) {
        self.cut.clear();
    }

    pub fn delay(&self, rng: &mut fastrand::Rng) -> Duration {
        Duration::from_millis(rng.u64(0..=self.delay_ms))
    }

    pub fn send(&mut self, now: Time, parcel: Parcel, rng: &mut fastrand::Rng) {
        let (agent, coordinator, up, datagram) = match &parcel {
            Parcel::Up { from, to, what, .. } => (from, to, true, matches!(what, AgentEvent::Report(_))),
            Parcel::Down { from, to, .. } => (to, from, false, false),
        };
        if self.is_cut(agent, coordinator) || (datagram && rng.u16(0..1_000) < self.loss) {
            return;
        }
        let mut arrives = now + self.delay(rng);
        if datagram && rng.u16(0..1_000) < self.loss / 4 {
            self.put(now + self.delay(rng), parcel.clone());
        }
        if !datagram {
            let last = self.last.entry((agent.clone(), coordinator.clone(), up)).or_default();
            arrives = arrives.max(*last);
            *last = arrives;
        }
        self.put(arrives, parcel);
    }

    fn put(&mut self, at: Time, parcel: Parcel) {
        self.sent += 1;
        self.flying.insert((at, self.sent), parcel);
    }

    /// What has arrived by now, in order.
    pub fn arrived(&mut self, now: Time) -> Vec<Parcel> {
        let later = self.flying.split_off(&(now + Duration::from_micros(1), 0));
        std::mem::replace(&mut self.flying, later).into_values().collect()
    }
}
