//! Draining a node without an outage: it is paused, its replicated services leave one after another, successor first,
//! and then, and only then, it is set to `drain`.
//!
//! Global services and jobs are left to Swarm: they cannot run elsewhere instead.

use std::time::Duration;

use swarmguard_common::{clock::Time, domain::NodeId};

use crate::swarm::{Availability, Mode, Service, Snapshot};

use super::{
    Context, Intent, Next, Step,
    lease::{self, Hold},
    plan::note,
    record::{Record, State, action_name, node_name},
};

pub(super) fn step(record: &Record, snapshot: &Snapshot, now: Time, context: &Context<'_>) -> Step {
    let Some(node) = &record.source else {
        return to(record, State::Releasing, Some(("no_node", "no node is named")));
    };
    match record.state {
        State::Leased => match lease::take(record, snapshot) {
            Hold::Paused => {
                let mut step = to(record, State::Moving, None);
                step.notes.push(note(record, "source_paused", "the node takes no new tasks"));
                step
            }
            Hold::Do(command) => Step { next: Next::Do(*command), notes: Vec::new() },
            Hold::Busy(why) if now - context.since > context.tuning.node_lease => {
                to(record, State::Releasing, Some(("node_busy", &why)))
            }
            Hold::Busy(why) => wait(now, why),
            Hold::Lost(code, why) => to(record, State::Releasing, Some((code, &why))),
        },
        State::Moving => moving(record, snapshot, now, node),
        State::Releasing if record.undone.is_none() => drained(record, snapshot, node),
        State::Over => wait(now, "nothing: it is over".into()),
        // Undone: the node gets back what it had.
        _ => match lease::release(record, snapshot) {
            Some((command, note)) => Step { next: Next::Do(command), notes: note.into_iter().collect() },
            None => {
                let (code, reason) = record.undone.clone().unwrap_or(("undone".into(), String::new()));
                let mut step = to(record, State::Over, None);
                step.notes.push(note(record, "undone", format!("{code}: {reason}")));
                step
            }
        },
    }
}

fn moving(record: &Record, snapshot: &Snapshot, now: Time, node: &NodeId) -> Step {
    if let Hold::Lost(code, why) = lease::still(record, snapshot) {
        return to(record, State::Releasing, Some((code, &why)));
    }
    let here = |service: &&Service| {
        matches!(service.mode, Mode::Replicated(_))
            && snapshot.tasks_of(&service.id).any(|task| task.is_wanted() && task.node.as_ref() == Some(node))
    };
    let prefix = format!("{}-", record.token);
    let action = |service: &Service| {
        snapshot.records.get(&action_name(&service.id)).and_then(|object| Record::parse(object).ok())
    };
    for service in snapshot.services.values() {
        let Some(action) = action(service).filter(|action| action.token.starts_with(&prefix)) else {
            continue;
        };
        if !action.is_over() {
            return wait(now, format!("{} to leave", service.name));
        }
        if let Some((code, reason)) = &action.undone
            && here(&service)
        {
            let why = format!("{} could not leave: {code}: {reason}", service.name);
            return to(record, State::Releasing, Some(("service_stays", &why)));
        }
    }
    let mut left = snapshot.services.values().filter(here);
    // One that another action holds is waited for, while the others go first.
    let free = left.clone().find(|service| action(service).is_none_or(|action| action.is_over()));
    match (free, left.next()) {
        (Some(service), _) => Step {
            next: Next::Start {
                intent: Intent::Migrate { service: service.id.clone(), source: node.clone(), target: None },
                token: child(&record.token, service, snapshot, node),
            },
            notes: Vec::new(),
        },
        (None, Some(service)) => wait(now, format!("another action to let go of {}", service.name)),
        (None, None) => to(record, State::Releasing, None),
    }
}

/// Another token for each replica of each service.
fn child(token: &str, service: &Service, snapshot: &Snapshot, node: &NodeId) -> String {
    let left = snapshot.tasks_of(&service.id).filter(|task| task.node.as_ref() == Some(node)).count();
    let short: String = service.id.as_str().chars().take(8).collect();
    format!("{token}-{short}-{left}")
}

fn drained(record: &Record, snapshot: &Snapshot, node: &NodeId) -> Step {
    let lease = snapshot.records.get(&node_name(node)).and_then(|object| Record::parse(object).ok());
    let Some(lease) = lease.filter(|lease| lease.token == record.token) else {
        let mut step = to(record, State::Over, None);
        step.notes.push(note(record, "done", "the node is drained"));
        return step;
    };
    match snapshot.nodes.get(node) {
        Some(node) if node.availability == Availability::Pause => {
            Step { next: Next::Do(lease::set(node, Availability::Drain)), notes: Vec::new() }
        }
        node => {
            let now = node.map_or("gone", |node| lease::word(node.availability));
            let text = format!("every replicated service left; the node is {now}");
            Step { next: Next::Do(lease.remove()), notes: vec![note(record, "node_drained", text)] }
        }
    }
}

fn to(record: &Record, state: State, undone: Option<(&str, &str)>) -> Step {
    let mut next = record.clone();
    next.state = state;
    let mut notes = Vec::new();
    if let Some((code, reason)) = undone {
        next.undone = Some((code.into(), reason.into()));
        notes.push(note(record, "undoing", format!("{code}: {reason}")));
    }
    Step { next: Next::Do(next.update()), notes }
}

fn wait(now: Time, why: String) -> Step {
    Step { next: Next::Wait { until: now + Duration::from_secs(1), why }, notes: Vec::new() }
}
