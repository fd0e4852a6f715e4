//! What operators asked for that must outlive a coordinator: pauses, observing, and scaling in by several steps. Kept in one config object of ours,
//! whose labels are the wishes; every change is a compare-and-swap, so that two coordinators cannot undo each other's.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use swarmguard_common::{domain::ServiceId, time::Time};

use super::Brain;
use crate::{command::Command, swarm::RecordObject};

/// Name of the config object.
pub(super) const NAME: &str = "swarmguard-settings";
const PAUSE_ALL: &str = "swarmguard.pause-all";
const PAUSE: &str = "swarmguard.pause.";
const SCALE: &str = "swarmguard.scale.";
const OBSERVE: &str = "swarmguard.observe";
/// Most changes that wait to be written.
const MAX_CHANGES: usize = 256;
/// A change that could not be written for this long is given up: what operators want may be another thing by then.
const WRITTEN_WITHIN: Duration = Duration::from_secs(30);
/// Longest name of an operator that is kept, in characters.
const MAX_BY: usize = 64;

/// One label to be set or taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    key: String,
    value: Option<String>,
}

impl Change {
    pub fn pause(service: Option<&ServiceId>, by: Option<&str>) -> Self {
        let key = service.map_or_else(|| PAUSE_ALL.into(), |service| format!("{PAUSE}{service}"));
        Self { key, value: by.map(|by| by.chars().take(MAX_BY).collect()) }
    }

    /// A service is to come down to `to` replicas, one step at a time, as long as nobody raises it over `from`.
    pub fn scale(service: &ServiceId, steps: Option<(u64, u64)>) -> Self {
        let value = steps.map(|(from, to)| format!("{from}-{to}"));
        Self { key: format!("{SCALE}{service}"), value }
    }

    pub fn observe(by: Option<&str>) -> Self {
        Self { key: OBSERVE.into(), value: by.map(|by| by.chars().take(MAX_BY).collect()) }
    }
}

/// What operators asked for: as Swarm has it, and changes on their way there. A change counts from the moment it is
/// asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Wishes {
    labels: BTreeMap<String, String>,
    changes: Vec<(Time, Change)>,
    paused: BTreeSet<ServiceId>,
}

impl Wishes {
    pub fn paused_all(&self) -> bool {
        self.labels.contains_key(PAUSE_ALL)
    }

    pub fn paused(&self) -> impl Iterator<Item = &ServiceId> {
        self.paused.iter()
    }

    pub fn is_paused(&self, service: &ServiceId) -> bool {
        self.paused_all() || self.paused.contains(service)
    }

    pub fn observe(&self) -> bool {
        self.labels.contains_key(OBSERVE)
    }

    /// Services that are to come down: from and to how many replicas.
    pub fn scales(&self) -> Vec<(ServiceId, u64, u64)> {
        let scales = self.labels.iter().filter_map(|(key, value)| {
            let (from, to) = value.split_once('-')?;
            Some((key.strip_prefix(SCALE)?.parse().ok()?, from.parse().ok()?, to.parse().ok()?))
        });
        scales.collect()
    }

    fn read(&mut self, record: Option<&RecordObject>) {
        let kept = record.map(|record| record.labels.clone()).unwrap_or_default();
        // A change that Swarm shows is done.
        self.changes.retain(|(_, change)| kept.get(&change.key) != change.value.as_ref());
        self.labels = kept;
        for (_, change) in &self.changes {
            apply(&mut self.labels, change);
        }
        self.refresh();
    }

    fn refresh(&mut self) {
        let named = self.labels.keys().filter_map(|key| key.strip_prefix(PAUSE)?.parse().ok());
        self.paused = named.collect();
    }

    /// Gives up changes by the time they were asked for; says which labels they were of.
    fn give_up(&mut self, is_old: impl Fn(Time) -> bool) -> Vec<String> {
        let (old, kept) = std::mem::take(&mut self.changes).into_iter().partition(|(at, _)| is_old(*at));
        self.changes = kept;
        old.into_iter().map(|(_, change)| change.key).collect()
    }

    /// Asks for a change; `false` when too many wait.
    pub fn ask(&mut self, now: Time, change: Change) -> bool {
        if self.changes.len() >= MAX_CHANGES {
            return false;
        }
        self.changes.retain(|(_, old)| old.key != change.key);
        apply(&mut self.labels, &change);
        self.changes.push((now, change));
        self.refresh();
        true
    }
}

fn apply(labels: &mut BTreeMap<String, String>, change: &Change) {
    match &change.value {
        Some(value) => labels.insert(change.key.clone(), value.clone()),
        None => labels.remove(&change.key),
    };
}

impl Brain {
    /// Reads what is wished anew. Changes that another coordinator's operators may have overtaken meanwhile are given
    /// up: all of them where this one does not act, old ones in any case.
    pub(super) fn read_wishes(&mut self, now: Time) {
        let Some(snapshot) = self.view.snapshot.clone() else { return };
        self.wishes.read(snapshot.records.get(NAME));
        let acting = self.is_acting();
        let given_up = self.wishes.give_up(|at| !acting || now - at > WRITTEN_WITHIN);
        if !given_up.is_empty() {
            self.wishes.read(snapshot.records.get(NAME));
            self.journal_given_up(&given_up);
        }
    }

    /// Writes what was asked for and Swarm does not show yet; pauses of services that are gone go along.
    pub(super) fn write_wishes(&mut self, now: Time) {
        let Some(snapshot) = self.view.snapshot.clone() else { return };
        if self.wishes.changes.is_empty() || !self.may_issue(NAME, now) {
            return;
        }
        let mut labels = self.wishes.labels.clone();
        labels.retain(|key, _| {
            let id = key.strip_prefix(PAUSE).or_else(|| key.strip_prefix(SCALE));
            let named = id.and_then(|id| id.parse::<ServiceId>().ok());
            named.is_none_or(|service| snapshot.services.contains_key(&service))
        });
        let command = match snapshot.records.get(NAME) {
            None => Command::CreateRecord { name: NAME.into(), labels, data: b"{}".to_vec() },
            Some(record) => Command::UpdateRecord {
                id: record.id.clone(),
                version: record.version,
                name: NAME.into(),
                labels,
                data: record.data.clone(),
            },
        };
        self.issue(now, NAME, command);
    }
}
