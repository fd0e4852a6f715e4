//! The lease on a node's availability: exclusive, so that two actions off one node never unpause each other.
//!
//! An availability that somebody else set is never overwritten: the node is paused only while it is as the lease found
//! it, and given back only while it is as we left it. One thing Swarm does not show: an operator's `pause` of a node
//! that is paused by us already. The write changes nothing but the version, and so do leader changes, agents that come
//! back and network attachments (swarmkit, `markNodesUnknown`, `commitAllocatedNode`); to take every new version for an
//! operator's act would leave a node paused after most migrations.

use swarmguard_common::domain::NodeId;

use crate::{
    command::Command,
    swarm::{Availability, Node, Snapshot},
};

use super::{
    Note,
    plan::{self, note},
    record::{Before, Kind, Record, State, Why, action_name, drain_name, node_name},
    spec,
};

/// How the source stands for an action that needs it to take no new tasks.
#[derive(Debug)]
pub(super) enum Hold {
    /// It is ours, and paused where it may be.
    Held,
    /// This first.
    Do(Box<Command>),
    /// Another action has it.
    Busy(String),
    /// It cannot be had.
    Lost(Why, String),
}

/// Whether nobody but the coordinator on this node could act: no other manager is there. A paused node does not start a
/// global task again, so that its coordinator, once killed, would leave the node paused for ever. Such a node is never
/// paused.
pub(super) fn is_only_manager(snapshot: &Snapshot, node: &NodeId) -> bool {
    let manages = |node: &Node| node.manager && !node.is_down();
    snapshot.nodes.get(node).is_some_and(|node| node.manager)
        && !snapshot.nodes.values().any(|other| other.id != *node && manages(other))
}

/// Takes the lease and pauses the node, one call at a time.
pub(super) fn take(record: &Record, snapshot: &Snapshot) -> Hold {
    let node = match usable(record, snapshot) {
        Ok(node) => node,
        Err(lost) => return lost,
    };
    let Some(object) = snapshot.records.get(&node_name(&node.id)) else {
        return Hold::Do(Box::new(new_lease(record, node).create()));
    };
    let lease = match Record::parse(object) {
        Ok(lease) => lease,
        Err(error) => return Hold::Busy(error.to_string()),
    };
    let own = lease.token == record.token;
    if !own && !is_of_own_drain(record, &lease, snapshot) {
        return Hold::Busy(format!("node {} is held by action {}", node.hostname, lease.token));
    }
    match (node.availability, lease.before.availability) {
        (Availability::Pause, _) => Hold::Held,
        (Availability::Active, Some(Availability::Active)) if is_only_manager(snapshot, &node.id) => {
            Hold::Held
        }
        (_, Some(Availability::Active)) if own => Hold::Do(Box::new(set(node, Availability::Pause))),
        _ => Hold::Lost(
            Why::AvailabilityChanged,
            format!("node {} was made active by somebody", node.hostname),
        ),
    }
}

/// Whether the node still stands as the action needs it: not down, not drained and, where the phase needs that, paused.
pub(super) fn still(record: &Record, snapshot: &Snapshot, paused: bool) -> Hold {
    match usable(record, snapshot) {
        Ok(node) if paused && node.availability != Availability::Pause => Hold::Lost(
            Why::AvailabilityChanged,
            format!("node {} was made active by somebody", node.hostname),
        ),
        Ok(_) => Hold::Held,
        Err(lost) => lost,
    }
}

fn usable<'a>(record: &Record, snapshot: &'a Snapshot) -> Result<&'a Node, Hold> {
    let node = record.source.as_ref().and_then(|source| snapshot.nodes.get(source));
    let Some(node) = node else { return Err(Hold::Lost(Why::NodeGone, "the source left the swarm".into())) };
    if node.is_down() {
        return Err(Hold::Lost(Why::NodeDown, format!("node {} is down", node.hostname)));
    }
    if node.availability == Availability::Drain {
        return Err(Hold::Lost(
            Why::AvailabilityChanged,
            format!("node {} was drained by somebody", node.hostname),
        ));
    }
    Ok(node)
}

/// The next call that gives the node back, `None` when nothing of it is ours any more.
pub(super) fn release(record: &Record, snapshot: &Snapshot) -> Option<(Command, Option<Note>)> {
    let source = record.source.as_ref()?;
    let lease = Record::parse(snapshot.records.get(&node_name(source))?).ok()?;
    if lease.token != record.token {
        return None;
    }
    let theirs = record.undone.as_ref().is_some_and(|(why, _)| *why == Why::AvailabilityChanged);
    let was = lease.before.availability.filter(|_| !theirs);
    match snapshot.nodes.get(source) {
        Some(node) if node.availability == Availability::Pause && was == Some(Availability::Active) => {
            Some((set(node, Availability::Active), None))
        }
        node => {
            let now = node.map_or("gone", |node| word(node.availability));
            Some((
                lease.remove(),
                Some(note(record, "unpaused", format!("the source is {now}, its lease is given back"))),
            ))
        }
    }
}

/// What becomes of a node lease whose action is not there any more: somebody removed its record by hand. A service
/// whose spec, or previous spec, is still one of ours gets its action back, to undo it, before the node is unpaused.
pub(super) fn orphaned(lease: &Record, snapshot: &Snapshot) -> Option<Command> {
    let source = lease.source.as_ref()?;
    let names = [lease.service.as_ref().map(action_name), Some(drain_name(source))];
    let alive = names.iter().flatten().filter_map(|name| snapshot.records.get(name)).any(|object| {
        // One that cannot be read may still be somebody's.
        Record::parse(object).map_or(true, |action| action.token == lease.token && !action.is_over())
    });
    if alive {
        return None;
    }
    let service = lease.service.as_ref().and_then(|service| snapshot.services.get(service));
    let ours = service.is_some_and(|service| {
        let written = |spec| plan::is_on_the_way(spec, &lease.before, source);
        written(&service.spec) || service.previous_spec.as_ref().is_some_and(written)
    });
    if ours && let Some(name) = &names[0] {
        return Some(lease.revived(name.clone()).create());
    }
    let node = snapshot.nodes.get(source);
    match node {
        Some(node)
            if node.availability == Availability::Pause
                && lease.before.availability == Some(Availability::Active) =>
        {
            Some(set(node, Availability::Active))
        }
        _ => Some(lease.remove()),
    }
}

fn is_of_own_drain(record: &Record, lease: &Record, snapshot: &Snapshot) -> bool {
    let Some(source) = &record.source else { return false };
    let part = record.token.strip_prefix(&lease.token).is_some_and(|rest| rest.starts_with('-'));
    part && snapshot
        .records
        .get(&drain_name(source))
        .and_then(|object| Record::parse(object).ok())
        .is_some_and(|drain| drain.token == lease.token && !drain.is_over())
}

fn new_lease(record: &Record, node: &Node) -> Record {
    let before = Before { availability: Some(node.availability), ..record.before.clone() };
    record.lease_for(node_name(&node.id), Kind::Node, State::Leased, before)
}

pub(super) fn set(node: &Node, availability: Availability) -> Command {
    Command::WriteNode {
        node: node.id.clone(),
        version: node.version,
        spec: spec::with_availability(node.spec.clone(), availability),
    }
}

pub(super) fn word(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "active",
        Availability::Pause => "paused",
        Availability::Drain => "drained",
    }
}

/// Whether this node is the one that a record is about.
pub(super) fn is_source(record: &Record, node: Option<&NodeId>) -> bool {
    node.is_some() && node == record.source.as_ref()
}
