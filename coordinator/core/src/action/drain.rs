//! Draining a node without an outage: it is paused, its replicated services leave one after another, successor first,
//! and then, and only then, it is set to `drain`.
//!
//! Global services and jobs are left to Swarm: they cannot run elsewhere instead. So are SwarmGuard's own services, which
//! it never moves: the final `drain` stops them, and Swarm starts replicated ones elsewhere.
//!
//! No service may keep the node paused for ever: the record counts the replicas that are left, and where that number
//! does not fall for too long, the drain is given up. One that is given up, for whatever reason, first takes back the move
//! that is under way. Only then the node is unpaused: an active node loses at once every task that a mark excludes.

use std::time::Duration;

use swarmguard_common::{domain::NodeId, time::Time};

use crate::swarm::{Availability, Mode, Service, Snapshot};

use super::{
    Context, Intent, Next, Step,
    lease::{self, Hold},
    plan::note,
    record::{Record, State, Why, action_name, node_name},
    spec,
};

pub(super) fn step(record: &Record, snapshot: &Snapshot, now: Time, context: &Context<'_>) -> Step {
    let Some(node) = &record.source else {
        return to(record, State::Releasing, Some((Why::BadRecord, "no node is named")));
    };
    match record.state {
        State::Leased => match lease::take(record, snapshot) {
            Hold::Held => {
                let mut step = to(record, State::Moving, None);
                if !lease::is_only_manager(snapshot, node) {
                    step.notes.push(note(record, "source_paused", "the node takes no new tasks"));
                }
                step
            }
            Hold::Do(command) => Step { next: Next::Do(*command), notes: Vec::new() },
            Hold::Busy(why) if now - context.since > context.tuning.node_lease => {
                to(record, State::Releasing, Some((Why::NodeBusy, &why)))
            }
            Hold::Busy(why) => wait(now, why),
            Hold::Lost(code, why) => to(record, State::Releasing, Some((code, &why))),
        },
        State::Moving => moving(record, snapshot, now, node, context),
        State::Releasing if record.undone.is_none() => drained(record, snapshot, node),
        State::Over => wait(now, "nothing: it is over".into()),
        _ => given_up(record, snapshot, now),
    }
}

/// Undone: the move that is under way is taken back, then the node gets back what it had.
fn given_up(record: &Record, snapshot: &Snapshot, now: Time) -> Step {
    let (code, reason) = record.undone.clone().unwrap_or((Why::Other, String::new()));
    for (service, moving) in children(record, snapshot) {
        let name = action_name(&service.id);
        let command = snapshot
            .records
            .get(&name)
            .and_then(|object| super::cancel(object, &format!("{code}: {reason}")));
        if let Some(command) = command {
            return Step { next: Next::Do(command), notes: Vec::new() };
        }
        // Where nothing of it excludes the node any more, what it still waits for does not need the pause.
        if moving.state != State::Undoing || spec::is_marked(&service.spec) {
            return wait(now, format!("the move of {} to end", service.name));
        }
    }
    match lease::release(record, snapshot) {
        Some((command, note)) => Step { next: Next::Do(command), notes: note.into_iter().collect() },
        None => {
            let mut step = to(record, State::Over, None);
            step.notes.push(note(record, "undone", format!("{code}: {reason}")));
            step
        }
    }
}

/// Moves of this drain that are under way.
fn children<'a>(record: &Record, snapshot: &'a Snapshot) -> Vec<(&'a Service, Record)> {
    let prefix = format!("{}-", record.token);
    let child = |service: &'a Service| {
        let action = Record::parse(snapshot.records.get(&action_name(&service.id))?).ok()?;
        (action.token.starts_with(&prefix) && !action.is_over()).then_some((service, action))
    };
    snapshot.services.values().filter_map(child).collect()
}

/// Whether a service is to leave a node that is drained.
fn leaves(service: &Service) -> bool {
    matches!(service.mode, Mode::Replicated(_)) && !service.is_own()
}

fn moving(record: &Record, snapshot: &Snapshot, now: Time, node: &NodeId, context: &Context<'_>) -> Step {
    if let Hold::Lost(code, why) = lease::still(record, snapshot, !lease::is_only_manager(snapshot, node)) {
        return to(record, State::Releasing, Some((code, &why)));
    }
    let here = |service: &&Service| leaves(service) && copies(service, snapshot, node) > 0;
    let left: u64 =
        snapshot.services.values().filter(here).map(|service| copies(service, snapshot, node)).sum();
    if record.left.is_none_or(|before| left < before) {
        // Written down, so that the time since the last one left is counted by whoever goes on, too.
        let mut next = record.clone();
        next.left = Some(left);
        return Step { next: Next::Do(next.update()), notes: Vec::new() };
    }
    let stays = |service: &Service| {
        let seconds = context.tuning.leaving.as_secs();
        let why = format!("{} did not leave within {seconds} s", service.name);
        to(record, State::Releasing, Some((Why::ServiceStays, &why)))
    };
    let late = now - context.since > context.tuning.leaving;
    let prefix = format!("{}-", record.token);
    let action = |service: &Service| {
        snapshot.records.get(&action_name(&service.id)).and_then(|object| Record::parse(object).ok())
    };
    for service in snapshot.services.values() {
        let Some(action) = action(service).filter(|action| action.token.starts_with(&prefix)) else {
            continue;
        };
        if !action.is_over() {
            return if late { stays(service) } else { wait(now, format!("{} to leave", service.name)) };
        }
        if let Some((code, reason)) = &action.undone
            && here(&service)
        {
            let why = format!("{} could not leave: {code}: {reason}", service.name);
            return to(record, State::Releasing, Some((Why::ServiceStays, &why)));
        }
    }
    let mut left = snapshot.services.values().filter(here);
    // One that another action holds is waited for, while the others go first.
    let free = left.clone().find(|service| action(service).is_none_or(|action| action.is_over()));
    match (free, left.next()) {
        (Some(service), _) | (None, Some(service)) if late => stays(service),
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

/// Replicas of a service on a node.
fn copies(service: &Service, snapshot: &Snapshot, node: &NodeId) -> u64 {
    let here =
        snapshot.tasks_of(&service.id).filter(|task| task.is_wanted() && task.node.as_ref() == Some(node));
    here.count() as u64
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
        let drained = snapshot.nodes.get(node).is_some_and(|node| node.availability == Availability::Drain);
        let text =
            if drained { "the node is drained" } else { "the node was emptied, and somebody has it back" };
        step.notes.push(note(record, "done", text));
        return step;
    };
    match snapshot.nodes.get(node) {
        // One that could not be paused is drained from where it stands.
        Some(node)
            if node.availability == Availability::Pause
                || node.availability == Availability::Active
                    && lease.before.availability == Some(Availability::Active)
                    && lease::is_only_manager(snapshot, &node.id) =>
        {
            Step { next: Next::Do(lease::set(node, Availability::Drain)), notes: Vec::new() }
        }
        node => {
            let now = node.map_or("gone", |node| lease::word(node.availability));
            let text = format!("every replicated service left; the node is {now}");
            Step { next: Next::Do(lease.remove()), notes: vec![note(record, "node_drained", text)] }
        }
    }
}

fn to(record: &Record, state: State, undone: Option<(Why, &str)>) -> Step {
    let mut next = record.clone();
    next.state = state;
    let mut notes = Vec::new();
    if let Some((code, reason)) = undone {
        next.undone = Some((code, reason.into()));
        notes.push(note(record, "undoing", format!("{code}: {reason}")));
    }
    Step { next: Next::Do(next.update()), notes }
}

fn wait(now: Time, why: String) -> Step {
    Step { next: Next::Wait { until: now + Duration::from_secs(1), why }, notes: Vec::new() }
}
