//! What is placed where, counted once for each reading of Swarm.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use swarmguard_common::domain::{NodeId, ServiceId};

use crate::swarm::{Service, Snapshot, generic_resources};

/// A port that is published on the node itself: protocol and number.
pub type HostPort = (String, u64);

/// What Swarm sets aside for each task of a service.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// Reserved CPU, in billionths of one.
    pub nano_cpus: i64,
    /// Reserved memory, in bytes.
    pub memory_bytes: i64,
    /// Ports on the node itself.
    pub host_ports: Vec<HostPort>,
    /// Reserved generic resources, by kind.
    pub generic: BTreeMap<String, i64>,
}

impl Claims {
    /// Reads a service's spec.
    pub fn of(service: &Service) -> Self {
        let reserved = |pointer| service.spec.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
        let ports = service.spec.pointer("/EndpointSpec/Ports").and_then(Value::as_array);
        let host_port = |port: &Value| {
            let published = port.get("PublishedPort").and_then(Value::as_u64).filter(|port| *port > 0)?;
            let protocol = port.get("Protocol").and_then(Value::as_str).unwrap_or("tcp");
            let on_host = port.get("PublishMode").and_then(Value::as_str) == Some("host");
            on_host.then(|| (protocol.to_owned(), published))
        };
        Self {
            nano_cpus: reserved("/TaskTemplate/Resources/Reservations/NanoCPUs"),
            memory_bytes: reserved("/TaskTemplate/Resources/Reservations/MemoryBytes"),
            host_ports: ports.into_iter().flatten().filter_map(host_port).collect(),
            generic: service
                .spec
                .pointer("/TaskTemplate/Resources/Reservations/GenericResources")
                .map(generic_resources)
                .unwrap_or_default(),
        }
    }
}

/// What is on one node.
#[derive(Clone, Debug, Default)]
pub struct OnNode {
    /// Wanted tasks of all services.
    pub tasks: usize,
    /// Wanted tasks by service.
    pub by_service: BTreeMap<ServiceId, u64>,
    /// Reserved CPU, in billionths of one.
    pub nano_cpus: i64,
    /// Reserved memory, in bytes.
    pub memory_bytes: i64,
    /// Ports taken on the node itself.
    pub host_ports: BTreeSet<HostPort>,
    /// Generic resources taken, by kind.
    pub generic: BTreeMap<String, i64>,
}

impl OnNode {
    /// Wanted replicas of a service.
    pub fn replicas(&self, service: &ServiceId) -> u64 {
        self.by_service.get(service).copied().unwrap_or(0)
    }
}

/// What is placed where.
#[derive(Clone, Debug, Default)]
pub struct Placed {
    nodes: BTreeMap<NodeId, OnNode>,
}

impl Placed {
    /// Counts a snapshot.
    pub fn count(snapshot: &Snapshot) -> Self {
        let claims: BTreeMap<&ServiceId, Claims> =
            snapshot.services.values().map(|service| (&service.id, Claims::of(service))).collect();
        let mut placed = Self::default();
        for task in snapshot.tasks.values().filter(|task| task.is_wanted()) {
            let Some(node) = &task.node else { continue };
            let on = placed.nodes.entry(node.clone()).or_default();
            on.tasks += 1;
            *on.by_service.entry(task.service.clone()).or_default() += 1;
            if let Some(claims) = claims.get(&task.service) {
                on.nano_cpus = on.nano_cpus.saturating_add(claims.nano_cpus);
                on.memory_bytes = on.memory_bytes.saturating_add(claims.memory_bytes);
                on.host_ports.extend(claims.host_ports.iter().cloned());
                for (kind, number) in &claims.generic {
                    let taken = on.generic.entry(kind.clone()).or_default();
                    *taken = taken.saturating_add(*number);
                }
            }
        }
        placed
    }

    /// What is on a node; `None` where nothing is.
    pub fn on(&self, node: &NodeId) -> Option<&OnNode> {
        self.nodes.get(node)
    }

    /// Replicas of a service that are wanted on a node.
    pub fn replicas(&self, node: &NodeId, service: &ServiceId) -> u64 {
        self.on(node).map_or(0, |on| on.replicas(service))
    }
}
