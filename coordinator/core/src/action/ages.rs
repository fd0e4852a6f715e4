//! Since when each record stands as it does, by this process's own clock.
//!
//! Managers' wall clocks are never compared: a process counts from when it first saw a record's present version. Every
//! coordinator reads every snapshot, so a standby that takes over has counted along; after a restart of all of them a
//! deadline or cooldown begins anew, which is late but never early.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::time::Time;

use crate::swarm::{RecordObject, Snapshot};

/// Keeps when each record was first seen in its present version; bounded by the records that exist.
#[derive(Clone, Debug, Default)]
pub struct Ages(BTreeMap<String, (u64, Time)>);

impl Ages {
    /// Takes in a snapshot; records that it no longer has are forgotten.
    pub fn update(&mut self, snapshot: &Snapshot, now: Time) {
        let old = std::mem::take(&mut self.0);
        self.0 = snapshot
            .records
            .values()
            .map(|record| {
                let since = match old.get(&record.id) {
                    Some((version, since)) if *version == record.version => *since,
                    _ => now,
                };
                (record.id.clone(), (record.version, since))
            })
            .collect();
    }

    /// When the record was first seen in its present version; `now` for one that was not.
    pub fn since(&self, record: &RecordObject, now: Time) -> Time {
        match self.0.get(&record.id) {
            Some((version, since)) if *version == record.version => *since,
            _ => now,
        }
    }

    /// How long the record has stood in its present version.
    pub fn age(&self, record: &RecordObject, now: Time) -> Duration {
        now - self.since(record, now)
    }
}
