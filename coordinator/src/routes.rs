//! What balancers are told: every balanced service with its replicas and their load, from the newest snapshot.

use std::collections::BTreeMap;

use swarmguard_common::{
    time::Time,
    wire::routes::{RoutedReplica, RoutedService, Routes},
};
use swarmguard_core::{
    brain::Brain,
    swarm::{Snapshot, Task, TaskState},
};

/// The routes as they are now; `revision` is the caller's.
pub fn of(snapshot: &Snapshot, brain: &Brain, now: Time) -> Routes {
    let mut services = BTreeMap::new();
    for service in snapshot.services.values() {
        let Ok(policy) = &service.policy else { continue };
        let Some(labels) = &policy.route else { continue };
        let routed =
            RoutedService { name: service.name.clone(), labels: labels.clone(), replicas: Vec::new() };
        services.insert(service.id.clone(), routed);
    }
    for task in snapshot.tasks.values() {
        let Some(service) = services.get_mut(&task.service) else { continue };
        if !matches!(task.state, TaskState::Starting | TaskState::Running) {
            continue;
        }
        service.replicas.push(replica(snapshot, brain, now, task));
    }
    let age_ms = u32::try_from(now.since(snapshot.taken).as_millis()).unwrap_or(u32::MAX);
    // The caller says whether it acts.
    Routes { revision: 0, age_ms, acting: false, services }
}

fn replica(snapshot: &Snapshot, brain: &Brain, now: Time, task: &Task) -> RoutedReplica {
    let node = task.node.as_ref().and_then(|node| snapshot.nodes.get(node));
    RoutedReplica {
        task: task.id.clone(),
        node: node.map(|node| node.hostname.clone()).unwrap_or_default(),
        addresses: task.addresses.clone(),
        ready: task.is_serving(),
        // Swarm is already stopping it: finish what is in flight.
        draining: !task.is_wanted(),
        load: brain.replica_load(now, &task.id),
    }
}

/// Whether two routes differ in more than load: then balancers are told at once.
pub fn differ(one: &Routes, other: &Routes) -> bool {
    let bare = |replica: &RoutedReplica| {
        (replica.task.clone(), replica.ready, replica.draining, replica.addresses.clone())
    };
    one.acting != other.acting
        || one.services.len() != other.services.len()
        || one.services.iter().zip(&other.services).any(|((id, a), (other_id, b))| {
            id != other_id
                || a.labels != b.labels
                || a.name != b.name
                || !a.replicas.iter().map(bare).eq(b.replicas.iter().map(bare))
        })
}
