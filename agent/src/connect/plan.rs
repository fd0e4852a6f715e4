//! From routes to what the maps are to contain.
//!
//! A *scope* stands for a set of networks. Containers with the same set share one, so that the tables grow with the
//! kinds of containers and not with their number. An address that one set holds twice, in networks with equal subnets,
//! is left out: nobody could say which of the two is meant.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use swarmguard_common::{
    domain::{ContainerId, NetworkId, TaskId},
    kernel::{Backend, Frontend, MAX_BACKENDS, MAX_FRONTENDS, MAX_LEASES, frontend_key},
    wire::connect::{ConnectRoutes, Front, ReplicaState},
};

/// What the maps are to contain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// By [`frontend_key`].
    pub frontends: BTreeMap<u64, Frontend>,
    /// Scope of each container, by cgroup. `None`: as it was.
    pub scopes: Option<BTreeMap<u64, u32>>,
    /// Slots that belong to a new replica, with their new generation.
    pub renewed: Vec<(u32, u64)>,
    /// Slots in use.
    pub slots: Vec<u32>,
    /// Addresses and replicas for which there is no room.
    pub left_out: u64,
    /// Addresses that one container has in two networks.
    pub ambiguous: u64,
}

/// Makes plans, and remembers who has which slot and scope.
#[derive(Debug, Default)]
pub struct Planner {
    scopes: BTreeMap<BTreeSet<NetworkId>, u32>,
    last_scope: u32,
    slots: BTreeMap<TaskId, u32>,
    free: BTreeSet<u32>,
    next_slot: u32,
    generation: u64,
}

impl Planner {
    /// The plan for these routes; `None`: none hold. `cgroups` are the containers that are watched.
    pub fn plan(&mut self, routes: Option<&ConnectRoutes>, cgroups: &BTreeMap<ContainerId, u64>) -> Plan {
        let mut plan = Plan::default();
        // Connections that are open are still counted when the coordinators come back, so the slots stay.
        let Some(routes) = routes else {
            plan.slots = self.slots.values().copied().collect();
            return plan;
        };
        self.give_slots(routes, &mut plan);
        let mut scopes = BTreeMap::new();
        let mut used: BTreeMap<BTreeSet<NetworkId>, u32> = BTreeMap::new();
        for (container, networks) in &routes.containers {
            let Some(cgroup) = cgroups.get(container) else { continue };
            let networks: BTreeSet<NetworkId> = networks.iter().cloned().collect();
            let scope = match used.get(&networks) {
                Some(scope) => *scope,
                None => {
                    let scope = self.scope_of(&networks);
                    self.add_frontends(scope, &networks, routes, &mut plan);
                    used.insert(networks, scope);
                    scope
                }
            };
            scopes.insert(*cgroup, scope);
        }
        self.scopes = used;
        plan.scopes = Some(scopes);
        plan
    }

    /// Scopes are never given twice, so that what the kernel still holds of an old one cannot be mistaken.
    fn scope_of(&mut self, networks: &BTreeSet<NetworkId>) -> u32 {
        if let Some(scope) = self.scopes.get(networks) {
            return *scope;
        }
        self.last_scope = self.last_scope.wrapping_add(1).max(1);
        self.last_scope
    }

    /// Each replica keeps its slot, whatever its state: what drains still has connections.
    fn give_slots(&mut self, routes: &ConnectRoutes, plan: &mut Plan) {
        let replicas = || routes.fronts.iter().flat_map(|front| &front.replicas);
        let alive: BTreeSet<&TaskId> = replicas().map(|replica| &replica.task).collect();
        let free = &mut self.free;
        self.slots.retain(|task, slot| {
            let stays = alive.contains(task);
            if !stays {
                free.insert(*slot);
            }
            stays
        });
        for task in alive {
            if self.slots.contains_key(task) {
                continue;
            }
            let slot = self.free.pop_first().or_else(|| {
                let next = self.next_slot;
                self.next_slot = (next + 1).min(MAX_LEASES);
                (next < MAX_LEASES).then_some(next)
            });
            let Some(slot) = slot else {
                plan.left_out += 1;
                continue;
            };
            self.generation += 1;
            self.slots.insert(task.clone(), slot);
            plan.renewed.push((slot, self.generation));
        }
        plan.slots = self.slots.values().copied().collect();
    }

    fn add_frontends(
        &self,
        scope: u32,
        networks: &BTreeSet<NetworkId>,
        routes: &ConnectRoutes,
        plan: &mut Plan,
    ) {
        let mut by_address: BTreeMap<Ipv4Addr, Vec<&Front>> = BTreeMap::new();
        for front in routes.fronts.iter().filter(|front| networks.contains(&front.network)) {
            by_address.entry(front.address).or_default().push(front);
        }
        for (address, fronts) in by_address {
            let [front] = fronts.as_slice() else {
                plan.ambiguous += 1;
                continue;
            };
            // With nobody to send connections to, Swarm's own balancing may know better.
            let Some(frontend) = self.frontend(front, &mut plan.left_out) else { continue };
            if plan.frontends.len() >= MAX_FRONTENDS as usize {
                plan.left_out += 1;
                continue;
            }
            plan.frontends.insert(frontend_key(scope, in_network_order(address)), frontend);
        }
    }

    fn frontend(&self, front: &Front, left_out: &mut u64) -> Option<Frontend> {
        let mut backends = [Backend::default(); MAX_BACKENDS];
        let mut places = backends.iter_mut();
        let mut count = 0;
        for replica in front.replicas.iter().filter(|replica| replica.state == ReplicaState::Usable) {
            // One without a slot was counted when it got none.
            let Some(slot) = self.slots.get(&replica.task) else { continue };
            let Some(place) = places.next() else {
                *left_out += 1;
                continue;
            };
            *place = Backend { address: in_network_order(replica.address), slot: *slot };
            count += 1;
        }
        (count > 0).then_some(Frontend { count, padding: 0, backends })
    }
}

/// An address as it lies in the kernel's structures.
fn in_network_order(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

#[cfg(test)]
mod tests {
    use swarmguard_common::wire::connect::ConnectReplica;

    use super::*;

    fn front(network: &str, address: [u8; 4], replicas: &[(&str, u8, ReplicaState)]) -> Front {
        let replicas = replicas.iter().map(|(task, last, state)| ConnectReplica {
            task: task.parse().expect("an ID"),
            address: [10, 0, 1, *last].into(),
            node: "w1".parse().expect("an ID"),
            state: *state,
        });
        Front {
            service: "s1".parse().expect("an ID"),
            network: network.parse().expect("an ID"),
            address: address.into(),
            replicas: replicas.collect(),
        }
    }

    fn routes(fronts: Vec<Front>, containers: &[(&str, &[&str])]) -> ConnectRoutes {
        let ids = |names: &[&str]| names.iter().map(|name| name.parse().expect("an ID")).collect();
        let containers =
            containers.iter().map(|(id, networks)| (id.parse().expect("an ID"), ids(networks))).collect();
        ConnectRoutes { revision: 1, acting: true, fronts, containers }
    }

    fn cgroups(of: &[(&str, u64)]) -> BTreeMap<ContainerId, u64> {
        of.iter().map(|(id, cgroup)| (id.parse().expect("an ID"), *cgroup)).collect()
    }

    fn addresses(plan: &Plan, scope: u32, vip: [u8; 4]) -> Vec<u8> {
        let frontend = plan.frontends.get(&frontend_key(scope, u32::from_ne_bytes(vip)));
        let Some(frontend) = frontend else { return Vec::new() };
        frontend.backends[..frontend.count as usize].iter().map(|one| one.address.to_ne_bytes()[3]).collect()
    }

    const VIP: [u8; 4] = [10, 0, 1, 2];
    use ReplicaState::{Draining, Silent, Usable};

    #[test]
    fn only_usable_replicas_take_connections_and_all_keep_their_slots() {
        let mut planner = Planner::default();
        let watched = cgroups(&[("c1", 71)]);
        let of = |states: [ReplicaState; 3]| {
            let [a, b, c] = states;
            routes(vec![front("n1", VIP, &[("a", 11, a), ("b", 12, b), ("c", 13, c)])], &[("c1", &["n1"])])
        };
        let first = planner.plan(Some(&of([Usable; 3])), &watched);
        let scope = first.scopes.as_ref().expect("told")[&71];
        assert_ne!(scope, 0);
        assert_eq!(addresses(&first, scope, VIP), [11, 12, 13]);
        assert_eq!(first.renewed.len(), 3);
        let second = planner.plan(Some(&of([Usable, Draining, Silent])), &watched);
        assert_eq!(addresses(&second, scope, VIP), [11]);
        assert_eq!((second.renewed.len(), second.slots.len()), (0, 3));
        let none = planner.plan(Some(&of([Draining, Draining, Silent])), &watched);
        assert!(none.frontends.is_empty(), "Swarm's own balancing may know somebody");
    }

    #[test]
    fn routes_that_lapsed_leave_nothing_but_the_counts() {
        let mut planner = Planner::default();
        let (watched, one) = (
            cgroups(&[("c1", 71)]),
            routes(vec![front("n1", VIP, &[("a", 11, Usable)])], &[("c1", &["n1"])]),
        );
        let before = planner.plan(Some(&one), &watched);
        let lapsed = planner.plan(None, &watched);
        assert!(lapsed.frontends.is_empty() && lapsed.scopes.is_none());
        let back = planner.plan(Some(&one), &watched);
        assert!(back.renewed.is_empty(), "the same replica under the same count");
        assert_eq!(back.frontends, before.frontends);
    }

    #[test]
    fn equal_addresses_in_different_networks_are_kept_apart_or_left_alone() {
        let fronts = vec![front("n1", VIP, &[("a", 11, Usable)]), front("n2", VIP, &[("b", 12, Usable)])];
        let containers: &[(&str, &[&str])] =
            &[("c1", &["n1"]), ("c2", &["n2"]), ("c3", &["n1"]), ("c4", &["n1", "n2"]), ("c5", &["n3"])];
        let watched = cgroups(&[("c1", 1), ("c2", 2), ("c3", 3), ("c4", 4), ("c5", 5)]);
        let plan = Planner::default().plan(Some(&routes(fronts, containers)), &watched);
        let scopes = plan.scopes.as_ref().expect("told");
        assert_eq!(scopes[&1], scopes[&3]);
        assert_eq!(addresses(&plan, scopes[&1], VIP), [11]);
        assert_eq!(addresses(&plan, scopes[&2], VIP), [12]);
        assert!(addresses(&plan, scopes[&4], VIP).is_empty(), "nobody knows which is meant");
        assert!(addresses(&plan, scopes[&5], VIP).is_empty());
        assert_eq!((plan.ambiguous, plan.left_out), (1, 0));
    }

    #[test]
    fn a_slot_that_goes_to_another_replica_has_another_generation() {
        let mut planner = Planner::default();
        let of = |task| routes(vec![front("n1", VIP, &[(task, 11, Usable)])], &[("c1", &["n1"])]);
        let watched = cgroups(&[("c1", 71)]);
        let first = planner.plan(Some(&of("a")), &watched);
        let second = planner.plan(Some(&of("b")), &watched);
        let ([(old, was)], [(new, is)]) = (first.renewed.as_slice(), second.renewed.as_slice()) else {
            panic!("one slot each: {first:?} {second:?}")
        };
        assert_eq!(old, new);
        assert_ne!(was, is);
    }

    #[test]
    fn a_set_of_networks_that_changed_is_another_scope() {
        let mut planner = Planner::default();
        let of =
            |networks: &[&str]| routes(vec![front("n1", VIP, &[("a", 11, Usable)])], &[("c1", networks)]);
        let watched = cgroups(&[("c1", 71)]);
        let mut seen = BTreeSet::new();
        for networks in [&["n1"][..], &["n1", "n2"], &["n1"]] {
            let plan = planner.plan(Some(&of(networks)), &watched);
            assert_eq!(plan.frontends.len(), 1);
            seen.insert(plan.scopes.expect("told")[&71]);
        }
        assert_eq!(seen.len(), 3);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let many: Vec<(String, u8, ReplicaState)> =
            (0..u8::MAX).map(|number| (format!("t{number}"), number, Usable)).collect();
        let many: Vec<(&str, u8, ReplicaState)> =
            many.iter().map(|(task, last, state)| (task.as_str(), *last, *state)).collect();
        let one = routes(vec![front("n1", VIP, &many)], &[("c1", &["n1"])]);
        let plan = Planner::default().plan(Some(&one), &cgroups(&[("c1", 71)]));
        assert_eq!(plan.left_out, (many.len() - MAX_BACKENDS) as u64);
        let fronts = (0..=u8::MAX).flat_map(|a| (0..8).map(move |b| [10, 1, a, b]));
        let fronts = fronts.map(|vip| front("n1", vip, &[("a", 11, Usable)])).collect();
        let plan =
            Planner::default().plan(Some(&routes(fronts, &[("c1", &["n1"])])), &cgroups(&[("c1", 71)]));
        assert_eq!(plan.frontends.len(), MAX_FRONTENDS as usize);
        assert_eq!(plan.left_out, 2_048 - u64::from(MAX_FRONTENDS));
    }
}
