//! Which nodes could take one more replica of a service, as Swarm's scheduler and the agents' figures say.

use serde_json::Value;
use swarmguard_common::{
    domain::{NodeId, ServiceId},
    time::Time,
};

use super::constraint;
use crate::{
    action::spec,
    lease::LeaseState,
    swarm::{Availability, Node, Service},
    view::{Claims, OnNode, Placed, View},
};

/// What a service's tasks ask of a node, read from its spec once for all nodes.
#[derive(Debug)]
pub struct Needs<'a> {
    service: &'a ServiceId,
    constraints: Vec<String>,
    platforms: Vec<(&'a str, &'a str)>,
    claims: Claims,
    /// Most replicas on one node; 0: any number.
    most: u64,
}

impl<'a> Needs<'a> {
    /// Reads a service's spec.
    pub fn of(service: &'a Service) -> Self {
        let most = service.spec.pointer("/TaskTemplate/Placement/MaxReplicas").and_then(Value::as_u64);
        Self {
            service: &service.id,
            constraints: spec::constraints(&service.spec),
            platforms: platforms(&service.spec).collect(),
            claims: Claims::of(service),
            most: most.unwrap_or(0),
        }
    }

    /// Why Swarm would not place one more replica on a node with this on it; `None` if it would.
    pub fn obstacle(&self, node: &Node, on: Option<&OnNode>) -> Option<String> {
        if !node.ready {
            return Some("not ready".into());
        }
        if node.availability != Availability::Active {
            return Some("takes no tasks".into());
        }
        if let Err(constraint) = constraint::satisfied(node, self.constraints.iter().map(String::as_str)) {
            return Some(format!("constraint {constraint}"));
        }
        if !constraint::platform_fits(node, self.platforms.iter().copied()) {
            return Some("another platform".into());
        }
        let empty = OnNode::default();
        let on = on.unwrap_or(&empty);
        let claims = &self.claims;
        if claims.nano_cpus > 0 && on.nano_cpus.saturating_add(claims.nano_cpus) > node.nano_cpus {
            return Some("reserved CPUs".into());
        }
        if claims.memory_bytes > 0 && on.memory_bytes.saturating_add(claims.memory_bytes) > node.memory_bytes
        {
            return Some("reserved memory".into());
        }
        if let Some((protocol, port)) = claims.host_ports.iter().find(|port| on.host_ports.contains(*port)) {
            return Some(format!("host port {port}/{protocol} is taken"));
        }
        let most = self.most;
        if most > 0 && on.replicas(self.service) >= most {
            return Some(format!("at most {most} replicas a node"));
        }
        None
    }
}

/// Why Swarm would not place one more replica of a service on a node; `None` if it would.
pub fn obstacle(placed: &Placed, service: &Service, node: &Node) -> Option<String> {
    Needs::of(service).obstacle(node, placed.on(&node.id))
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
            (
                change("/TaskTemplate/Placement", json!({"Constraints": ["node.id==n2"]})),
                Some("constraint node.id==n2"),
            ),
            (
                change("/TaskTemplate/Placement", json!({"Platforms": [{"OS": "windows"}]})),
                Some("another platform"),
            ),
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
            let n1 = &snapshot.nodes[&"n1".parse().expect("an ID")];
            let obstacle = obstacle(&Placed::count(&snapshot), &service, n1);
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
            assert!(obstacle(&Placed::default(), &service, &node).is_some());
        }
    }
}
