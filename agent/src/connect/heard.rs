//! The routes of all coordinators, and which of them hold.
//!
//! Every coordinator sees the same swarm, but only the one that acts knows what it is about to stop. So its word goes
//! first, and what any of them calls draining is taken as draining. Routes that are not renewed are forgotten: without
//! coordinators nobody says which replica still lives, and Swarm's own balancing does better.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use swarmguard_common::{
    domain::TaskId,
    time::Time,
    wire::connect::{ConnectRoutes, ROUTES_LEASE_MS, ReplicaState},
};

use crate::uplink::MAX_COORDINATORS;

const LEASE: Duration = Duration::from_millis(ROUTES_LEASE_MS);

/// What was heard.
#[derive(Debug, Default)]
pub struct Heard {
    by_coordinator: BTreeMap<SocketAddr, (ConnectRoutes, Time)>,
    version: u64,
}

impl Heard {
    /// A coordinator told its routes.
    pub fn hear(&mut self, now: Time, from: SocketAddr, routes: ConnectRoutes) {
        let known = self.by_coordinator.contains_key(&from);
        if known || self.by_coordinator.len() < MAX_COORDINATORS {
            self.by_coordinator.insert(from, (routes, now));
            self.version += 1;
        }
    }

    /// A coordinator says that its routes are still so.
    pub fn renew(&mut self, now: Time, from: SocketAddr, revision: u64) {
        if let Some((routes, at)) = self.by_coordinator.get_mut(&from)
            && routes.revision == revision
        {
            *at = now;
        }
    }

    /// Forgets what has lapsed. Answers a number that changes whenever [`Self::routes`] may.
    pub fn version(&mut self, now: Time) -> u64 {
        let before = self.by_coordinator.len();
        self.by_coordinator.retain(|_, (_, at)| now.since(*at) < LEASE);
        if self.by_coordinator.len() != before {
            self.version += 1;
        }
        self.version
    }

    /// The routes that hold; `None` where no coordinator has spoken lately.
    pub fn routes(&self) -> Option<ConnectRoutes> {
        let newest = self.by_coordinator.values().max_by_key(|(routes, at)| (routes.acting, *at));
        let mut routes = newest?.0.clone();
        let draining: BTreeSet<&TaskId> = self
            .by_coordinator
            .values()
            .flat_map(|(routes, _)| &routes.fronts)
            .flat_map(|front| &front.replicas)
            .filter(|replica| replica.state == ReplicaState::Draining)
            .map(|replica| &replica.task)
            .collect();
        for replica in routes.fronts.iter_mut().flat_map(|front| &mut front.replicas) {
            if draining.contains(&replica.task) {
                replica.state = ReplicaState::Draining;
            }
        }
        Some(routes)
    }
}

#[cfg(test)]
mod tests {
    use swarmguard_common::wire::connect::{ConnectReplica, Front};

    use super::*;

    fn from(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn routes(revision: u64, acting: bool, replicas: &[(&str, ReplicaState)]) -> ConnectRoutes {
        let replicas = replicas.iter().map(|(task, state)| ConnectReplica {
            task: task.parse().expect("an ID"),
            address: [10, 0, 1, 7].into(),
            node: "w1".parse().expect("an ID"),
            state: *state,
        });
        let front = Front {
            service: "s1".parse().expect("an ID"),
            network: "n1".parse().expect("an ID"),
            address: [10, 0, 1, 2].into(),
            replicas: replicas.collect(),
        };
        ConnectRoutes { revision, acting, fronts: vec![front], containers: BTreeMap::new() }
    }

    fn states(heard: &Heard) -> Vec<ReplicaState> {
        let routes = heard.routes().expect("some hold");
        routes.fronts.iter().flat_map(|front| &front.replicas).map(|replica| replica.state).collect()
    }

    use ReplicaState::{Draining, Usable};

    #[test]
    fn routes_hold_as_long_as_they_are_renewed() {
        let mut heard = Heard::default();
        assert_eq!(heard.routes(), None);
        heard.hear(at(0), from(1), routes(3, true, &[("a", Usable)]));
        let version = heard.version(at(4_000));
        heard.renew(at(4_000), from(1), 3);
        heard.renew(at(8_000), from(1), 2);
        heard.renew(at(8_000), from(2), 3);
        assert_eq!(heard.version(at(8_999)), version);
        assert_ne!(
            heard.version(at(9_000)),
            version,
            "neither another revision nor another coordinator renews"
        );
        assert_eq!(heard.routes(), None);
    }

    #[test]
    fn who_acts_goes_first_and_nobody_else_can_hide_a_drain() {
        let mut heard = Heard::default();
        heard.hear(at(0), from(1), routes(1, true, &[("a", Usable), ("b", Draining)]));
        heard.hear(at(9), from(2), routes(1, false, &[("a", Usable)]));
        assert_eq!(states(&heard), [Usable, Draining]);
        // Another one acts now, and does not know yet what the first began.
        heard.hear(at(10), from(2), routes(2, true, &[("a", Usable), ("b", Usable)]));
        assert_eq!(states(&heard), [Usable, Draining]);
        heard.hear(at(11), from(1), routes(2, false, &[("a", Usable), ("b", Usable)]));
        assert_eq!(states(&heard), [Usable, Usable]);
    }

    #[test]
    fn coordinators_without_end_find_no_room() {
        let mut heard = Heard::default();
        for port in 1..100 {
            heard.hear(at(0), from(port), routes(1, false, &[]));
        }
        assert_eq!(heard.by_coordinator.len(), MAX_COORDINATORS);
    }
}
