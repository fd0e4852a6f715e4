//! Where Swarm will place one more replica of a service, and what keeps it off where it must not go.
//!
//! Swarm picks the branch with the fewest replicas for each spread preference, then the node with the fewest replicas of
//! the service, then with the fewest tasks at all (swarmkit, `manager/scheduler`). Three levers bend that, the cheapest
//! first:
//! - **Order**: where some node has fewer replicas than the source, Swarm never picks the source by itself.
//! - **Pause**: a node that is paused until the new replica is assigned, a tenth of a second, is not picked.
//! - **Constraint**: nodes that host none of the service may be excluded without making any task dirty. A replica placed
//!   so carries another `Placement` than its service for life, and Swarm's endpoint-only updates pass it by
//!   (`IsTaskDirty`: where only the placement differs, a task is clean, whatever its endpoint). `MaxReplicas` and
//!   preferences are parts of `Placement`, too, and leave the same trace. So a constraint is used only towards a target
//!   that cannot be had otherwise, and for one replica at a time.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use swarmguard_common::domain::NodeId;

use super::spec;
use crate::swarm::{Availability, Node, Service, Snapshot};

/// What Swarm is shown besides what is there: nodes that it cannot take, and why we know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub snapshot: &'a Snapshot,
    pub service: &'a Service,
    /// Nodes that Swarm's other filters refuse (reservations, ports, plugins), as the policy sees them.
    pub closed: &'a [NodeId],
}

/// What keeps one more replica off the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeepOff {
    /// Swarm's own order: another node has fewer replicas.
    Order,
    /// Swarm could pick the source, or would: it must be paused until the replica is assigned.
    Pause,
}

/// What keeps the successor off the source, when it may not go to these nodes either.
pub(super) fn keep_off(seen: Seen<'_>, source: &NodeId, off: &[NodeId]) -> KeepOff {
    let mut nodes = allowed(seen, None);
    nodes.retain(|node, _| !off.contains(node));
    let here = nodes.get(source).map_or(0, |counts| counts.0);
    let plain = preferences(seen.service).is_empty();
    let fewer = nodes.iter().any(|(node, counts)| *node != source && counts.0 < here);
    // A node that does not take tasks itself is never picked.
    let closed = !nodes.contains_key(source);
    if closed || plain && fewer { KeepOff::Order } else { KeepOff::Pause }
}

/// Nodes of which Swarm picks one for one more replica, when it may not go to these.
pub(super) fn winners<'a>(seen: Seen<'a>, off: &[NodeId]) -> BTreeSet<&'a NodeId> {
    let mut nodes = allowed(seen, None);
    nodes.retain(|node, _| !off.contains(node));
    picked(seen, nodes)
}

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

pub(super) fn steer(seen: Seen<'_>, source: Option<&NodeId>, target: &NodeId) -> Steering {
    let nodes = allowed(seen, source);
    if !nodes.contains_key(target) {
        let name = seen.snapshot.nodes.get(target).map_or(target.as_str(), |node| node.hostname.as_str());
        return Steering::NotPossible(format!("{name} takes no task of the service now"));
    }
    let only_target = BTreeSet::from([target]);
    if picked(seen, nodes.clone()) == only_target {
        return Steering::NotNeeded;
    }
    let off: Vec<NodeId> = nodes
        .iter()
        .filter(|(node, counts)| **node != target && counts.0 == 0)
        .map(|(node, _)| (*node).clone())
        .collect();
    let mut left = nodes;
    left.retain(|node, _| !off.contains(node));
    if picked(seen, left) == only_target {
        Steering::Off(off)
    } else {
        let why = "other nodes that host the service would win, and may not be excluded";
        Steering::NotPossible(why.into())
    }
}

/// Those of some nodes that Swarm might choose and that may be excluded.
pub(super) fn avoidable(seen: Seen<'_>, source: Option<&NodeId>, avoid: &[NodeId]) -> Vec<NodeId> {
    let free = allowed(seen, source).into_iter().filter(|(_, counts)| counts.0 == 0);
    free.map(|(node, _)| node.clone()).filter(|node| avoid.contains(node)).collect()
}

/// Wanted tasks of the service, and of all services, on a node.
type Counts = (u64, u64);

/// The nodes of which Swarm's scheduler picks one: several where they rank alike.
fn picked<'a>(seen: Seen<'a>, nodes: BTreeMap<&'a NodeId, Counts>) -> BTreeSet<&'a NodeId> {
    let every: Vec<(&Node, u64)> = seen
        .snapshot
        .nodes
        .values()
        .map(|node| (node, counts(seen.snapshot, seen.service, &node.id).0))
        .collect();
    in_branch(&preferences(seen.service), &every, &nodes)
}

/// Walks down the tree of spread preferences: of its branches the one with the fewest replicas, nodes that take none
/// included in the count, as long as something in it takes one (`scheduler.go`, `scheduleNTasksOnSubtree`).
fn in_branch<'a>(
    preferences: &[String],
    every: &[(&'a Node, u64)],
    takers: &BTreeMap<&'a NodeId, Counts>,
) -> BTreeSet<&'a NodeId> {
    let Some((descriptor, deeper)) = preferences.split_first() else {
        let here = || every.iter().filter_map(|(node, _)| Some((&node.id, *takers.get(&node.id)?)));
        let least = here().map(|(_, counts)| counts).min();
        return here().filter(|(_, counts)| Some(*counts) == least).map(|(node, _)| node).collect();
    };
    let mut branches: BTreeMap<String, Vec<(&Node, u64)>> = BTreeMap::new();
    for (node, replicas) in every {
        branches.entry(value_of(node, descriptor)).or_default().push((*node, *replicas));
    }
    let takes = |nodes: &[(&Node, u64)]| nodes.iter().any(|(node, _)| takers.contains_key(&node.id));
    let sum = |nodes: &[(&Node, u64)]| nodes.iter().map(|(_, replicas)| replicas).sum::<u64>();
    let open: Vec<Vec<(&Node, u64)>> = branches.into_values().filter(|nodes| takes(nodes)).collect();
    let least = open.iter().map(|nodes| sum(nodes)).min();
    open.iter()
        .filter(|nodes| Some(sum(nodes)) == least)
        .flat_map(|nodes| in_branch(deeper, nodes, takers))
        .collect()
}

/// Spread descriptors that Swarm heeds: labels of nodes and engines; others it skips.
fn preferences(service: &Service) -> Vec<String> {
    let list = service.spec.pointer("/TaskTemplate/Placement/Preferences").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|item| item.pointer("/Spread/SpreadDescriptor")?.as_str())
        .filter(|text| {
            let lower = text.to_ascii_lowercase();
            lower.starts_with("node.labels.") || lower.starts_with("engine.labels.")
        })
        .map(Into::into)
        .collect()
}

fn value_of(node: &Node, descriptor: &str) -> String {
    let key = |prefix: &str| descriptor.get(prefix.len()..).unwrap_or_default();
    let (labels, key) = if descriptor.to_ascii_lowercase().starts_with("engine.labels.") {
        (&node.engine_labels, key("engine.labels."))
    } else {
        (&node.labels, key("node.labels."))
    };
    labels.get(key).cloned().unwrap_or_default()
}

/// Nodes that take a new task of the service, with their counts.
fn allowed<'a>(seen: Seen<'a>, source: Option<&NodeId>) -> BTreeMap<&'a NodeId, Counts> {
    let Seen { snapshot, service, closed } = seen;
    let constraints = spec::constraints(&service.spec);
    let most = service.spec.pointer("/TaskTemplate/Placement/MaxReplicas").and_then(Value::as_u64);
    let most = most.filter(|most| *most > 0).unwrap_or(u64::MAX);
    snapshot
        .nodes
        .values()
        .filter(|node| node.ready && node.availability == Availability::Active && Some(&node.id) != source)
        .filter(|node| constraints.iter().all(|constraint| fits(node, constraint)))
        .filter(|node| !closed.contains(&node.id))
        .map(|node| (&node.id, counts(snapshot, service, &node.id)))
        .filter(|(_, counts)| counts.0 < most)
        .collect()
}

/// Wanted tasks of the service, and of all services, on a node.
fn counts(snapshot: &Snapshot, service: &Service, node: &NodeId) -> Counts {
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
