//! What agents are told for balancing at `connect()`: every service with `swarmguard.lb.connect` in every network in
//! which it has a virtual address, for the nodes with containers on such a network. From the newest snapshot.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use swarmguard_common::{
    domain::{NetworkId, NodeId, TaskId},
    wire::{
        agent::ToAgent,
        connect::{
            ConnectReplica, ConnectRoutes, Front, MAX_CONTAINERS, MAX_FRONTS, MAX_NETWORKS, MAX_REPLICAS,
            ReplicaState,
        },
    },
};
use swarmguard_core::swarm::{Node, Service, Snapshot, Task, TaskState};
use tokio::sync::watch;

use crate::ingest::Outbox;

/// The routes of all nodes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ByNode {
    /// Of nodes that have any. `revision` and `acting` are the caller's.
    pub routes: BTreeMap<NodeId, ConnectRoutes>,
    /// Fronts, replicas and containers that were not told because there are too many.
    pub left_out: u64,
}

/// The routes as they are now. `leaving`: tasks about to be stopped; `silent`: nodes whose lease has lapsed.
pub fn of(snapshot: &Snapshot, leaving: &BTreeSet<TaskId>, silent: &BTreeSet<NodeId>) -> ByNode {
    let mut all = ByNode::default();
    let fronts = fronts(snapshot, leaving, silent, &mut all.left_out);
    if fronts.is_empty() {
        return all;
    }
    for task in snapshot.tasks.values() {
        let (Some(node), Some(container)) = (&task.node, &task.container) else { continue };
        let mut networks: Vec<NetworkId> =
            task.attachments.iter().map(|(network, _)| network.clone()).collect();
        networks.retain(|network| fronts.contains_key(network));
        networks.sort();
        networks.dedup();
        networks.truncate(MAX_NETWORKS);
        if networks.is_empty() {
            continue;
        }
        let routes = all.routes.entry(node.clone()).or_default();
        if routes.containers.len() >= MAX_CONTAINERS {
            all.left_out += 1;
            continue;
        }
        routes.containers.insert(container.clone(), networks);
    }
    for routes in all.routes.values_mut() {
        let near: BTreeSet<&NetworkId> = routes.containers.values().flatten().collect();
        let reachable: Vec<&Front> =
            near.into_iter().filter_map(|network| fronts.get(network)).flatten().collect();
        all.left_out += reachable.len().saturating_sub(MAX_FRONTS) as u64;
        routes.fronts = reachable.into_iter().take(MAX_FRONTS).cloned().collect();
    }
    all
}

/// Tells an agent its routes where they differ from those that it was `told`; or that they still hold, to `renew` them.
pub fn tell(
    told: &mut ConnectRoutes,
    mut routes: ConnectRoutes,
    renew: bool,
    outbox: &watch::Sender<Outbox>,
) {
    if !same(&routes, told) {
        routes.revision = told.revision + 1;
        told.clone_from(&routes);
        outbox.send_modify(|outbox| outbox.connect = Some(Arc::new(ToAgent::Connect(routes))));
    } else if renew && !told.fronts.is_empty() {
        let revision = told.revision;
        outbox.send_modify(|outbox| outbox.connect_still = (revision, outbox.connect_still.1 + 1));
    }
}

/// Whether two differ in nothing but their numbers.
fn same(one: &ConnectRoutes, other: &ConnectRoutes) -> bool {
    (one.acting, &one.fronts, &one.containers) == (other.acting, &other.fronts, &other.containers)
}

/// All fronts by network.
fn fronts(
    snapshot: &Snapshot,
    leaving: &BTreeSet<TaskId>,
    silent: &BTreeSet<NodeId>,
    left_out: &mut u64,
) -> BTreeMap<NetworkId, Vec<Front>> {
    let asks = |service: &&Service| service.policy.as_ref().is_ok_and(|policy| policy.connect);
    let mut fronts: BTreeMap<NetworkId, Vec<Front>> = BTreeMap::new();
    for service in snapshot.services.values().filter(asks) {
        for (network, address) in &service.virtual_addresses {
            let state = |task: &Task| state(snapshot, task, leaving, silent);
            let on = |task: &Task| {
                let (_, address) = task.attachments.iter().find(|(on, _)| on == network)?;
                let (node, state) = (task.node.clone()?, state(task)?);
                Some(ConnectReplica { task: task.id.clone(), address: *address, node, state })
            };
            let mut replicas: Vec<ConnectReplica> = snapshot.tasks_of(&service.id).filter_map(on).collect();
            if replicas.len() > MAX_REPLICAS {
                // Those that can be used first.
                replicas.sort_by_key(|replica| replica.state != ReplicaState::Usable);
                *left_out += (replicas.len() - MAX_REPLICAS) as u64;
                replicas.truncate(MAX_REPLICAS);
            }
            let front =
                Front { service: service.id.clone(), network: network.clone(), address: *address, replicas };
            fronts.entry(network.clone()).or_default().push(front);
        }
    }
    fronts
}

/// `None`: it is not there yet, or not any more.
fn state(
    snapshot: &Snapshot,
    task: &Task,
    leaving: &BTreeSet<TaskId>,
    silent: &BTreeSet<NodeId>,
) -> Option<ReplicaState> {
    if task.state != TaskState::Running {
        return None;
    }
    if !task.is_wanted() || leaving.contains(&task.id) {
        return Some(ReplicaState::Draining);
    }
    let node = task.node.as_ref()?;
    let down = snapshot.nodes.get(node).is_none_or(Node::is_down);
    Some(if down || silent.contains(node) { ReplicaState::Silent } else { ReplicaState::Usable })
}

#[cfg(test)]
mod tests {
    use swarmguard_common::labels::ServicePolicy;
    use swarmguard_core::swarm::{Availability, Mode};

    use super::*;

    fn node(id: &str) -> Node {
        Node {
            id: id.parse().expect("an ID"),
            version: 1,
            hostname: id.into(),
            address: None,
            manager: false,
            leader: false,
            ready: true,
            unknown: false,
            availability: Availability::Active,
            labels: BTreeMap::new(),
            engine_labels: BTreeMap::new(),
            engine_version: String::new(),
            os: "linux".into(),
            architecture: "x86_64".into(),
            nano_cpus: 0,
            memory_bytes: 0,
            plugins: Default::default(),
            generic: BTreeMap::new(),
            spec: serde_json::Value::Null,
        }
    }

    fn service(id: &str, connect: bool, networks: &[(&str, [u8; 4])]) -> Service {
        let policy = ServicePolicy { connect, ..ServicePolicy::default() };
        Service {
            id: id.parse().expect("an ID"),
            version: 1,
            name: id.into(),
            mode: Mode::Replicated(2),
            policy: Ok(policy),
            spec: serde_json::Value::Null,
            previous_spec: None,
            update_state: None,
            job_iteration: None,
            virtual_addresses: attached(networks),
        }
    }

    fn attached(networks: &[(&str, [u8; 4])]) -> Vec<(NetworkId, std::net::Ipv4Addr)> {
        networks.iter().map(|(id, address)| (id.parse().expect("an ID"), (*address).into())).collect()
    }

    fn task(id: &str, service: &str, node: &str, networks: &[(&str, [u8; 4])]) -> Task {
        Task {
            id: id.parse().expect("an ID"),
            service: service.parse().expect("an ID"),
            slot: 1,
            node: Some(node.parse().expect("an ID")),
            desired: TaskState::Running,
            state: TaskState::Running,
            container: Some(format!("c{id}").parse().expect("an ID")),
            addresses: Vec::new(),
            attachments: attached(networks),
            message: String::new(),
            job_iteration: None,
        }
    }

    /// A client on w1 and two replicas of a service that asks, on w1 and w2, all in one network; a stranger on w3.
    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        for id in ["w1", "w2", "w3"] {
            snapshot.nodes.insert(id.parse().expect("an ID"), node(id));
        }
        for one in [
            service("api", true, &[("net1", [10, 0, 1, 2]), ("far", [10, 0, 2, 2])]),
            service("web", false, &[("net1", [10, 0, 1, 3])]),
        ] {
            snapshot.services.insert(one.id.clone(), one);
        }
        for one in [
            task("a1", "api", "w1", &[("net1", [10, 0, 1, 11])]),
            task("a2", "api", "w2", &[("net1", [10, 0, 1, 12])]),
            task("x1", "web", "w1", &[("net1", [10, 0, 1, 21]), ("other", [10, 0, 1, 21])]),
            task("y1", "web", "w3", &[("other", [10, 0, 1, 22])]),
        ] {
            snapshot.tasks.insert(one.id.clone(), one);
        }
        snapshot
    }

    fn states(all: &ByNode, node: &str) -> Vec<(String, ReplicaState)> {
        let routes = &all.routes[&node.parse::<NodeId>().expect("an ID")];
        let replicas = routes.fronts.iter().flat_map(|front| &front.replicas);
        replicas.map(|replica| (replica.task.to_string(), replica.state)).collect()
    }

    #[test]
    fn only_nodes_with_containers_on_the_network_are_told() {
        let all = of(&snapshot(), &BTreeSet::new(), &BTreeSet::new());
        let nodes: Vec<&str> = all.routes.keys().map(NodeId::as_str).collect();
        assert_eq!(nodes, ["w1", "w2"]);
        let routes = &all.routes[&"w1".parse::<NodeId>().expect("an ID")];
        assert_eq!(routes.fronts.len(), 1, "the other network is not one of this node");
        assert_eq!(routes.fronts[0].address, std::net::Ipv4Addr::from([10, 0, 1, 2]));
        let of_client = &routes.containers[&"cx1".parse().expect("an ID")];
        assert_eq!(of_client, &["net1".parse().expect("an ID")], "networks without a front are left out");
        use ReplicaState::Usable;
        assert_eq!(states(&all, "w1"), [("a1".into(), Usable), ("a2".into(), Usable)]);
        assert_eq!(all.left_out, 0);
    }

    #[test]
    fn what_leaves_or_is_silent_is_marked_and_what_starts_is_not_there() {
        use ReplicaState::{Draining, Silent, Usable};
        let (a1, w2) = ("a1".parse().expect("an ID"), "w2".parse().expect("an ID"));
        let mut snapshot = snapshot();
        let leaving = of(&snapshot, &BTreeSet::from([a1]), &BTreeSet::new());
        assert_eq!(states(&leaving, "w1"), [("a1".into(), Draining), ("a2".into(), Usable)]);
        let silent = of(&snapshot, &BTreeSet::new(), &BTreeSet::from([w2]));
        assert_eq!(states(&silent, "w1"), [("a1".into(), Usable), ("a2".into(), Silent)]);
        let change = |snapshot: &mut Snapshot, change: &dyn Fn(&mut Task)| {
            change(snapshot.tasks.get_mut(&"a2".parse().expect("an ID")).expect("there"));
        };
        change(&mut snapshot, &|task| task.desired = TaskState::Shutdown);
        let stopping = of(&snapshot, &BTreeSet::new(), &BTreeSet::new());
        assert_eq!(states(&stopping, "w1"), [("a1".into(), Usable), ("a2".into(), Draining)]);
        change(&mut snapshot, &|task| task.state = TaskState::Starting);
        let starting = of(&snapshot, &BTreeSet::new(), &BTreeSet::new());
        assert_eq!(states(&starting, "w1"), [("a1".into(), Usable)]);
    }

    #[test]
    fn too_many_replicas_are_counted_and_the_usable_come_first() {
        let mut snapshot = snapshot();
        for number in 0..100_u8 {
            let mut one = task(&format!("b{number:03}"), "api", "w2", &[("net1", [10, 0, 3, number])]);
            if number < 50 {
                one.desired = TaskState::Shutdown;
            }
            snapshot.tasks.insert(one.id.clone(), one);
        }
        let all = of(&snapshot, &BTreeSet::new(), &BTreeSet::new());
        let states = states(&all, "w1");
        assert_eq!(states.len(), MAX_REPLICAS);
        assert_eq!(states.iter().filter(|(_, state)| *state == ReplicaState::Usable).count(), 52);
        assert_eq!(all.left_out, 102 - MAX_REPLICAS as u64);
    }

    #[test]
    fn nobody_asks_and_nothing_is_told() {
        let mut snapshot = snapshot();
        snapshot.services.retain(|id, _| id.as_str() == "web");
        assert_eq!(of(&snapshot, &BTreeSet::new(), &BTreeSet::new()), ByNode::default());
    }
}
