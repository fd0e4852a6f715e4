//! Which nodes could take one more replica of a service, as Swarm's scheduler and the agents' figures say.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use swarmguard_common::{
    clock::Time,
    domain::{NodeId, ServiceId},
};

use super::constraint;
use crate::{
    action::spec,
    lease::LeaseState,
    swarm::{Availability, Node, Service, Snapshot},
    view::View,
};

/// What is placed where, counted once for a round of judgements.
#[derive(Clone, Debug, Default)]
pub struct Placed {
    nodes: BTreeMap<NodeId, OnNode>,
}

#[derive(Clone, Debug, Default)]
struct OnNode {
    tasks: usize,
    by_service: BTreeMap<ServiceId, u64>,
    nano_cpus: i64,
    memory_bytes: i64,
    host_ports: BTreeSet<(String, u64)>,
}

impl Placed {
    /// Counts a snapshot.
    pub fn count(snapshot: &Snapshot) -> Self {
        let mut placed = Self::default();
        for task in snapshot.tasks.values().filter(|task| task.is_wanted()) {
            let Some(node) = &task.node else { continue };
            let on = placed.nodes.entry(node.clone()).or_default();
            on.tasks += 1;
            *on.by_service.entry(task.service.clone()).or_default() += 1;
            if let Some(service) = snapshot.services.get(&task.service) {
                let (nano_cpus, memory_bytes) = reservation(service);
                on.nano_cpus = on.nano_cpus.saturating_add(nano_cpus);
                on.memory_bytes = on.memory_bytes.saturating_add(memory_bytes);
                on.host_ports.extend(host_ports(service));
            }
        }
        placed
    }

    /// Replicas of a service that are wanted on a node.
    pub fn replicas(&self, node: &NodeId, service: &ServiceId) -> u64 {
        self.nodes.get(node).and_then(|on| on.by_service.get(service)).copied().unwrap_or(0)
    }

    /// Tasks of all services that are wanted on a node.
    pub fn tasks(&self, node: &NodeId) -> usize {
        self.nodes.get(node).map_or(0, |on| on.tasks)
    }

    /// Why Swarm would not place one more replica of a service on a node; `None` if it would.
    pub fn obstacle(&self, service: &Service, node: &Node) -> Option<String> {
        if !node.ready {
            return Some("not ready".into());
        }
        if node.availability != Availability::Active {
            return Some("takes no tasks".into());
        }
        let constraints = spec::constraints(&service.spec);
        if let Err(constraint) = constraint::satisfied(node, constraints.iter().map(String::as_str)) {
            return Some(format!("constraint {constraint}"));
        }
        if !constraint::platform_fits(node, platforms(&service.spec)) {
            return Some("another platform".into());
        }
        let empty = OnNode::default();
        let on = self.nodes.get(&node.id).unwrap_or(&empty);
        let (nano_cpus, memory_bytes) = reservation(service);
        if nano_cpus > 0 && on.nano_cpus.saturating_add(nano_cpus) > node.nano_cpus {
            return Some("reserved CPUs".into());
        }
        if memory_bytes > 0 && on.memory_bytes.saturating_add(memory_bytes) > node.memory_bytes {
            return Some("reserved memory".into());
        }
        if let Some((protocol, port)) = host_ports(service).find(|port| on.host_ports.contains(port)) {
            return Some(format!("host port {port}/{protocol} is taken"));
        }
        let most = service.spec.pointer("/TaskTemplate/Placement/MaxReplicas").and_then(Value::as_u64).unwrap_or(0);
        if most > 0 && self.replicas(&node.id, &service.id) >= most {
            return Some(format!("at most {most} replicas a node"));
        }
        None
    }
}

/// Why a node's figures may not be relied upon; `None` if they may.
pub fn unbelievable(view: &View, node: &NodeId, now: Time) -> Option<&'static str> {
    match view.lease(node, now) {
        None => Some("no agent was heard there"),
        Some(LeaseState::Lapsed) => Some("its agent's lease has lapsed"),
        Some(LeaseState::Suspect) => Some("its agent has been silent for a while"),
        Some(LeaseState::Live) if view.agents.get(node).is_some_and(|agent| agent.hello.blind) => {
            Some("its agent sees nothing")
        }
        Some(LeaseState::Live) => None,
    }
}

fn reservation(service: &Service) -> (i64, i64) {
    let of = |key: &str| {
        let pointer = format!("/TaskTemplate/Resources/Reservations/{key}");
        service.spec.pointer(&pointer).and_then(Value::as_i64).unwrap_or(0)
    };
    (of("NanoCPUs"), of("MemoryBytes"))
}

fn host_ports(service: &Service) -> impl Iterator<Item = (String, u64)> + '_ {
    let ports = service.spec.pointer("/EndpointSpec/Ports").and_then(Value::as_array);
    ports.into_iter().flatten().filter_map(|port| {
        let published = port.get("PublishedPort").and_then(Value::as_u64).filter(|port| *port > 0)?;
        let protocol = port.get("Protocol").and_then(Value::as_str).unwrap_or("tcp");
        let on_host = port.get("PublishMode").and_then(Value::as_str) == Some("host");
        on_host.then(|| (protocol.to_owned(), published))
    })
}

fn platforms(spec: &Value) -> impl Iterator<Item = (&str, &str)> {
    let list = spec.pointer("/TaskTemplate/Placement/Platforms").and_then(Value::as_array);
    list.into_iter().flatten().map(|platform| {
        let text = |key: &str| platform.get(key).and_then(Value::as_str).unwrap_or_default();
        (text("OS"), text("Architecture"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{World, replicated};
    use serde_json::json;

    #[test]
    fn what_swarm_would_refuse_is_no_target() {
        let change = |pointer: &str, value: Value| {
            let mut service = replicated("s1", 2);
            let (parent, key) = pointer.rsplit_once('/').expect("a path");
            service.spec.pointer_mut(parent).expect("there")[key] = value;
            service
        };
        let ports = json!({"Ports": [{"PublishMode": "host", "PublishedPort": 80, "Protocol": "tcp"}]});
        let table: Vec<(Service, Option<&str>)> = vec![
            (replicated("s1", 2), None),
            (change("/TaskTemplate/Placement", json!({"Constraints": ["node.id==n2"]})), Some("constraint node.id==n2")),
            (change("/TaskTemplate/Placement", json!({"Platforms": [{"OS": "windows"}]})), Some("another platform")),
            (change("/TaskTemplate/Placement", json!({"MaxReplicas": 1})), Some("at most 1 replicas a node")),
            (change("/TaskTemplate/Placement", json!({"MaxReplicas": 2})), None),
            (
                change("/TaskTemplate/Resources", json!({"Reservations": {"NanoCPUs": 3_000_000_000_i64}})),
                Some("reserved CPUs"),
            ),
            (
                change("/TaskTemplate/Resources", json!({"Reservations": {"MemoryBytes": 1_i64 << 40}})),
                Some("reserved memory"),
            ),
            (change("/EndpointSpec", ports), Some("host port 80/tcp is taken")),
        ];
        for (service, expected) in table {
            let mut world = World::new(["n1", "n2"]);
            world.service(service.clone());
            world.task("t1", "s1", 1, "n1");
            let snapshot = world.snapshot();
            let obstacle = Placed::count(&snapshot).obstacle(&service, &snapshot.nodes[&"n1".parse().expect("an ID")]);
            assert_eq!(obstacle.as_deref(), expected, "{:?}", service.spec);
        }
    }

    #[test]
    fn paused_drained_and_lost_nodes_are_no_targets() {
        let service = replicated("s1", 2);
        for (availability, ready) in
            [(Availability::Pause, true), (Availability::Drain, true), (Availability::Active, false)]
        {
            let node = Node { availability, ready, ..crate::view::testing::node("n1") };
            assert!(Placed::default().obstacle(&service, &node).is_some());
        }
    }
}
