//! Which nodes to keep a successor off, so that Swarm itself picks the node that was meant.
//!
//! Swarm picks the node with the fewest tasks of the service, then with the fewest tasks at all. Nodes that host none of
//! the service may be excluded without making any task dirty; nodes that host some may not. So a target can be reached
//! where it has strictly fewer replicas than every other node that stays allowed.

use std::collections::BTreeMap;

use swarmguard_common::domain::NodeId;

use crate::swarm::{Availability, Node, Service, Snapshot};

use super::spec;

/// What is to be done so that the successor goes to the target.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Steering {
    /// Swarm goes there by itself.
    NotNeeded,
    /// Keep it off these.
    Off(Vec<NodeId>),
    /// Swarm's choice it is, because.
    NotPossible(String),
}

pub(super) fn steer(
    snapshot: &Snapshot,
    service: &Service,
    source: Option<&NodeId>,
    target: &NodeId,
) -> Steering {
    let allowed = allowed(snapshot, service, source);
    let Some(target_counts) = allowed.get(target).copied() else {
        return Steering::NotPossible(format!("node {target} takes no task of the service now"));
    };
    let spread = service.spec.pointer("/TaskTemplate/Placement/Preferences");
    let spread = spread.and_then(|list| list.as_array()).is_some_and(|list| !list.is_empty());
    let mut others = allowed.iter().filter(|(node, _)| **node != target);
    if !spread && others.clone().all(|(_, counts)| target_counts < *counts) {
        return Steering::NotNeeded;
    }
    let hosts = |counts: &(u64, u64)| counts.0 > 0;
    if others.clone().any(|(_, counts)| hosts(counts) && (spread || counts.0 <= target_counts.0)) {
        return Steering::NotPossible(
            "other nodes that host the service would win, and may not be excluded".into(),
        );
    }
    let off: Vec<NodeId> =
        others.by_ref().filter(|(_, counts)| !hosts(counts)).map(|(node, _)| (*node).clone()).collect();
    if off.is_empty() { Steering::NotNeeded } else { Steering::Off(off) }
}

/// Those of some nodes that Swarm might choose and that may be excluded.
pub(super) fn avoidable(
    snapshot: &Snapshot,
    service: &Service,
    source: Option<&NodeId>,
    avoid: &[NodeId],
) -> Vec<NodeId> {
    let free = allowed(snapshot, service, source).into_iter().filter(|(_, counts)| counts.0 == 0);
    free.map(|(node, _)| node.clone()).filter(|node| avoid.contains(node)).collect()
}

/// Nodes that take a new task of the service, with their counts.
fn allowed<'a>(
    snapshot: &'a Snapshot,
    service: &Service,
    source: Option<&NodeId>,
) -> BTreeMap<&'a NodeId, (u64, u64)> {
    let constraints = spec::constraints(&service.spec);
    snapshot
        .nodes
        .values()
        .filter(|node| node.ready && node.availability == Availability::Active && Some(&node.id) != source)
        .filter(|node| constraints.iter().all(|constraint| fits(node, constraint)))
        .map(|node| (&node.id, counts(snapshot, service, &node.id)))
        .collect()
}

/// Wanted tasks of the service, and of all services, on a node.
fn counts(snapshot: &Snapshot, service: &Service, node: &NodeId) -> (u64, u64) {
    let here = snapshot.tasks.values().filter(|task| task.is_wanted() && task.node.as_ref() == Some(node));
    here.fold((0, 0), |(own, all), task| (own + u64::from(task.service == service.id), all + 1))
}

/// Whether a node satisfies one of Swarm's constraints. One that is not understood is taken to be satisfied: Swarm has
/// the last word, this only predicts it.
fn fits(node: &Node, constraint: &str) -> bool {
    let (key, value, equal) = match (constraint.split_once("=="), constraint.split_once("!=")) {
        (Some((key, value)), _) => (key.trim(), value.trim(), true),
        (None, Some((key, value))) => (key.trim(), value.trim(), false),
        (None, None) => return true,
    };
    let lower = key.to_ascii_lowercase();
    let label = |labels: &BTreeMap<String, String>, prefix: &str| {
        labels.get(key.get(prefix.len()..).unwrap_or_default()).cloned().unwrap_or_default()
    };
    let actual = match lower.as_str() {
        "node.id" => node.id.to_string(),
        "node.hostname" => node.hostname.clone(),
        "node.role" => if node.manager { "manager" } else { "worker" }.into(),
        "node.platform.os" => node.os.clone(),
        "node.platform.arch" => node.architecture.clone(),
        _ if lower.starts_with("node.labels.") => label(&node.labels, "node.labels."),
        _ if lower.starts_with("engine.labels.") => label(&node.engine_labels, "engine.labels."),
        _ => return true,
    };
    actual.eq_ignore_ascii_case(value) == equal
}
