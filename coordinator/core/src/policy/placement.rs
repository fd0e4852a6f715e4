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
    swarm::{Availability, Node, Service, Snapshot},
    view::{Claims, OnNode, Placed, View},
};

/// What a service's tasks ask of a node, read from its spec once for all nodes.
#[derive(Debug)]
pub struct Needs<'a> {
    service: &'a ServiceId,
    constraints: Vec<String>,
    platforms: Vec<(&'a str, &'a str)>,
    claims: Claims,
    /// Plugins that a node must have, by type and name.
    plugins: Vec<(&'static str, &'a str)>,
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
            plugins: plugins(&service.spec).collect(),
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
        for (kind, number) in &claims.generic {
            let left =
                node.generic.get(kind).copied().unwrap_or(0) - on.generic.get(kind).copied().unwrap_or(0);
            if left < *number {
                return Some(format!("{left} {kind} left, {number} are reserved for each"));
            }
        }
        if let Some((kind, name)) = self.plugins.iter().find(|(kind, name)| !has_plugin(node, kind, name)) {
            return Some(format!("its engine has no {} plugin {name}", kind.to_lowercase()));
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

/// Plugins that Swarm's scheduler asks of a node: the log driver, and drivers of volumes other than `local`.
fn plugins(spec: &Value) -> impl Iterator<Item = (&'static str, &str)> {
    let log = spec.pointer("/TaskTemplate/LogDriver/Name").and_then(Value::as_str);
    let log = log.filter(|name| !name.is_empty() && *name != "none").map(|name| ("Log", name));
    let mounts = spec.pointer("/TaskTemplate/ContainerSpec/Mounts").and_then(Value::as_array);
    let volumes = mounts.into_iter().flatten().filter_map(|mount| {
        let name = mount.pointer("/VolumeOptions/DriverConfig/Name").and_then(Value::as_str)?;
        (!name.is_empty() && name != "local").then_some(("Volume", name))
    });
    log.into_iter().chain(volumes)
}

/// Whether a node has a plugin. An engine that tells of none of the type does not tell of that type at all.
fn has_plugin(node: &Node, kind: &str, name: &str) -> bool {
    let plain = |name: &str| name.strip_suffix(":latest").unwrap_or(name).to_owned();
    let mut of_kind = node.plugins.iter().filter(|(is, _)| is == kind).peekable();
    of_kind.peek().is_none() || of_kind.any(|(_, is)| plain(is) == plain(name))
}

/// How many wanted tasks of a service there are in a node's branch of each of its spread preferences, in their order:
/// what Swarm's scheduler evens out before anything else.
pub fn spread(snapshot: &Snapshot, placed: &Placed, service: &Service, node: &Node) -> Vec<u64> {
    let list = service.spec.pointer("/TaskTemplate/Placement/Preferences").and_then(Value::as_array);
    let labels: Vec<&str> = list
        .into_iter()
        .flatten()
        .filter_map(|preference| preference.pointer("/Spread/SpreadDescriptor")?.as_str())
        .collect();
    (1..=labels.len())
        .map(|depth| {
            let same =
                |other: &&Node| labels[..depth].iter().all(|key| label(other, key) == label(node, key));
            snapshot.nodes.values().filter(same).map(|other| placed.replicas(&other.id, &service.id)).sum()
        })
        .collect()
}

fn label<'a>(node: &'a Node, key: &str) -> &'a str {
    let of = |labels: &'a std::collections::BTreeMap<String, String>, key: &str| {
        labels.get(key).map_or("", String::as_str)
    };
    match (key.strip_prefix("node.labels."), key.strip_prefix("engine.labels.")) {
        (Some(key), _) => of(&node.labels, key),
        (None, Some(key)) => of(&node.engine_labels, key),
        (None, None) => "",
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
    fn generic_resources_and_plugins_are_asked_for_as_the_scheduler_does() {
        let mut service = replicated("s1", 2);
        service.spec["TaskTemplate"]["Resources"] = json!({"Reservations": {"GenericResources": [{"DiscreteResourceSpec": {"Kind": "GPU", "Value": 1}}]}});
        let with = |gpus: i64, plugins: &[(&str, &str)]| Node {
            generic: [("GPU".to_owned(), gpus)].into(),
            plugins: plugins.iter().map(|(kind, name)| ((*kind).into(), (*name).into())).collect(),
            ..crate::view::testing::node("n1")
        };
        let none = Placed::default();
        assert_eq!(
            obstacle(&none, &service, &with(0, &[])).as_deref(),
            Some("0 GPU left, 1 are reserved for each")
        );
        assert_eq!(obstacle(&none, &service, &with(1, &[])), None);
        // One that runs there has taken it.
        let mut world = World::new(["n1"]);
        world.service(service.clone()).task("t1", "s1", 1, "n1");
        let placed = Placed::count(&world.snapshot());
        assert!(obstacle(&placed, &service, &with(1, &[])).is_some());
        assert_eq!(obstacle(&placed, &service, &with(2, &[])), None);
        let mut service = replicated("s1", 2);
        service.spec["TaskTemplate"]["LogDriver"] = json!({"Name": "loki"});
        let table: [(&[(&str, &str)], bool); 4] = [
            (&[("Log", "json-file")], false),
            (&[("Log", "loki:latest")], true),
            (&[("Volume", "local")], true),
            (&[], true),
        ];
        for (plugins, fits) in table {
            assert_eq!(obstacle(&none, &service, &with(0, plugins)).is_none(), fits, "{plugins:?}");
        }
        let mut service = replicated("s1", 2);
        let driver = json!({"DriverConfig": {"Name": "rexray"}});
        service.spec["TaskTemplate"]["ContainerSpec"]["Mounts"] =
            json!([{"Type": "volume", "Source": "v", "VolumeOptions": driver}]);
        assert!(obstacle(&none, &service, &with(0, &[("Volume", "local")])).is_some());
        assert_eq!(obstacle(&none, &service, &with(0, &[("Volume", "rexray")])), None);
    }

    #[test]
    fn spread_preferences_count_branch_by_branch() {
        let mut world = World::new(["a1", "b1", "b2"]);
        for (id, zone, rack) in [("a1", "a", "1"), ("b1", "b", "1"), ("b2", "b", "2")] {
            let node = world.swarm.nodes.get_mut(&id.parse().expect("an ID")).expect("there");
            node.labels = [("zone".to_owned(), zone.to_owned()), ("rack".to_owned(), rack.to_owned())].into();
        }
        let mut service = replicated("s1", 3);
        let by = |key: &str| json!({"Spread": {"SpreadDescriptor": format!("node.labels.{key}")}});
        service.spec["TaskTemplate"]["Placement"] = json!({"Preferences": [by("zone"), by("rack")]});
        world.service(service.clone());
        world.task("t1", "s1", 1, "a1").task("t2", "s1", 2, "b1").task("t3", "s1", 3, "b2");
        let snapshot = world.snapshot();
        let placed = Placed::count(&snapshot);
        let counts =
            |id: &str| spread(&snapshot, &placed, &service, &snapshot.nodes[&id.parse().expect("an ID")]);
        assert_eq!((counts("a1"), counts("b1"), counts("b2")), (vec![1, 1], vec![2, 1], vec![2, 1]));
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
