//! The operator's `PreviousSpec`, kept where Swarm has lost it.
//!
//! Every write of a service makes the spec before it the previous one, so after an action of ours `docker service
//! rollback` would bring back a spec of ours. The last write of each action is the same twice: a rollback then changes
//! nothing, and does no harm. What the operator had before is kept: in the action's tombstone, and when that goes in a
//! config object `swarmguard-prev-<service id>`, as long as the service's spec is still the one that we left. A rollback
//! that brings back the very same spec is understood from that, and carried out as it was meant.

use std::collections::BTreeMap;

use serde_json::Value;
use swarmguard_common::domain::ServiceId;

use super::{
    look::is_rollback,
    record::{Kind, Record, State, Why, action_name, previous_name},
    spec,
};
use crate::{
    command::Command,
    swarm::{RecordObject, Service, Snapshot},
};

/// The spec that the kept one belongs to, as [`fingerprint`].
const FOR: &str = "swarmguard.for";
/// Largest data of a config object, less than Swarm's 1,000 KiB.
const MAX_DATA_BYTES: usize = 900 << 10;

/// A spec apart from its number of replicas, which our own actions change.
fn fingerprint(spec: &Value) -> String {
    spec::fingerprint(&spec::with_replicas(spec.clone(), 0))
}

/// Swarm's own previous spec says nothing: the last write was one of ours, the same as the one before.
fn is_ours(service: &Service) -> bool {
    service.previous_spec.as_ref().is_some_and(|previous| spec::same(previous, &service.spec))
}

/// The `PreviousSpec` that the operator's own last write left, whether Swarm still has it or we do.
pub(super) fn operators(snapshot: &Snapshot, service: &Service) -> Option<Value> {
    if is_ours(service) {
        kept(snapshot, service).or_else(|| service.previous_spec.clone())
    } else {
        service.previous_spec.clone()
    }
}

/// What was kept for the spec that the service has now.
fn kept(snapshot: &Snapshot, service: &Service) -> Option<Value> {
    let tombstone =
        snapshot.records.get(&action_name(&service.id)).and_then(|object| Record::parse(object).ok());
    if let Some(record) = tombstone
        && belongs(&record, service)
    {
        return record.before.previous_spec.filter(|previous| !spec::same(previous, &service.spec));
    }
    let object = snapshot.records.get(&previous_name(&service.id))?;
    let meant = object.labels.get(FOR).is_some_and(|text| *text == fingerprint(&service.spec));
    meant.then(|| serde_json::from_slice(&object.data).ok()).flatten()
}

/// Whether a tombstone is of the action that left the service as it is.
fn belongs(record: &Record, service: &Service) -> bool {
    record.is_over()
        && record.kind != Kind::Rollback
        && fingerprint(&record.before.spec) == fingerprint(&service.spec)
}

/// What a rollback of the service would restore now, as its operator means it.
pub fn to_roll_back_to(snapshot: &Snapshot, service: &Service) -> Option<Value> {
    operators(snapshot, service).filter(|previous| !spec::same(previous, &service.spec))
}

/// Whether somebody asked Swarm for a rollback, which Swarm could not carry out as it was meant, because the last writes
/// were ours: it brought back the very same spec, or came in the middle of an action that then ended.
pub fn is_rollback_owed(snapshot: &Snapshot, service: &Service) -> bool {
    let interrupted = snapshot
        .records
        .get(&action_name(&service.id))
        .and_then(|object| Record::parse(object).ok())
        .is_some_and(|record| {
            record.is_over()
                && record.undone.as_ref().is_some_and(|(why, _)| *why == Why::RolledBack)
                && belongs(&record, service)
        });
    (interrupted || is_rollback(service) && is_ours(service))
        && kept(snapshot, service).is_some_and(|previous| !spec::same(&previous, &service.spec))
}

/// The command that keeps what a tombstone knows before the tombstone goes; `None` where that is done, or nothing is to
/// be kept.
pub(super) fn to_keep(tombstone: &Record, snapshot: &Snapshot) -> Option<Command> {
    let service = snapshot.services.get(tombstone.service.as_ref()?)?;
    if !is_ours(service) || !belongs(tombstone, service) {
        return None;
    }
    let previous = tombstone.before.previous_spec.as_ref()?;
    if spec::same(previous, &service.spec) {
        return None;
    }
    let data = serde_json::to_vec(previous).ok().filter(|data| data.len() <= MAX_DATA_BYTES)?;
    let name = previous_name(&service.id);
    let meant = fingerprint(&service.spec);
    match snapshot.records.get(&name) {
        Some(object) if object.data == data && object.labels.get(FOR) == Some(&meant) => None,
        // Another one's: it goes first.
        Some(object) => Some(Command::RemoveRecord { id: object.id.clone() }),
        None => {
            let labels = BTreeMap::from([
                (FOR.to_owned(), meant),
                ("swarmguard.kind".to_owned(), "previous".to_owned()),
                ("swarmguard.service".to_owned(), service.id.to_string()),
            ]);
            Some(Command::CreateRecord { name, labels, data })
        }
    }
}

/// The next command for a kept previous spec: it goes when its service is gone or has another spec, from whose own write
/// on Swarm's own previous spec is the true one. Not while an action is under way.
pub(super) fn step(object: &RecordObject, snapshot: &Snapshot) -> Option<Command> {
    let remove = Command::RemoveRecord { id: object.id.clone() };
    let id = service_of(object)?;
    let Some(service) = snapshot.services.get(&id) else { return Some(remove) };
    let action = snapshot.records.get(&action_name(&id));
    if action.is_some_and(|action| Record::parse(action).map_or(true, |record| record.state != State::Over)) {
        return None;
    }
    let meant = object.labels.get(FOR).is_some_and(|text| *text == fingerprint(&service.spec));
    (!meant || !is_ours(service)).then_some(remove)
}

fn service_of(object: &RecordObject) -> Option<ServiceId> {
    object.labels.get("swarmguard.service")?.parse().ok()
}
