//! Since when each record stands as it does, by this process's own clock.
//!
//! Managers' wall clocks are never compared: a process counts from when it first saw a record's present version. Every
//! coordinator reads every snapshot, so a standby that takes over has counted along; after a restart of all of them a
//! deadline or cooldown begins anew, which is late but never early.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use swarmguard_common::time::Time;

use swarmguard_common::domain::{ServiceId, TaskId};

use super::record::{Record, is_record};
use crate::swarm::{RecordObject, Snapshot, TaskState};

/// Keeps when each record was first seen in its present version, and each task that an action may wait for in its
/// present phase; bounded by the records that exist and the tasks of their services.
#[derive(Clone, Debug, Default)]
pub struct Ages {
    records: BTreeMap<String, (u64, Time)>,
    tasks: BTreeMap<TaskId, (Phase, Time)>,
}

/// What a task is doing on its way to running; each has a deadline of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waits,
    IsMade,
    Starts,
    Runs,
}

impl Phase {
    fn of(state: TaskState) -> Self {
        match state {
            state if state <= TaskState::Pending => Self::Waits,
            state if state < TaskState::Starting => Self::IsMade,
            TaskState::Starting => Self::Starts,
            _ => Self::Runs,
        }
    }
}

impl Ages {
    /// Takes in a snapshot; records that it no longer has are forgotten.
    pub fn update(&mut self, snapshot: &Snapshot, now: Time) {
        self.update_tasks(snapshot, now);
        let old = std::mem::take(&mut self.records);
        self.records = snapshot
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

    fn update_tasks(&mut self, snapshot: &Snapshot, now: Time) {
        let acted_on: BTreeSet<ServiceId> = snapshot
            .records
            .values()
            .filter(|object| is_record(&object.name))
            .filter_map(|object| Record::parse(object).ok().filter(|record| !record.is_over())?.service)
            .collect();
        let old = std::mem::take(&mut self.tasks);
        if acted_on.is_empty() {
            return;
        }
        for task in snapshot.tasks.values().filter(|task| acted_on.contains(&task.service)) {
            let phase = Phase::of(task.state);
            let since = old.get(&task.id).filter(|(was, _)| *was == phase).map_or(now, |(_, since)| *since);
            self.tasks.insert(task.id.clone(), (phase, since));
        }
    }

    /// When the task was first seen in its present phase; `now` for one that was not.
    pub fn task_since(&self, task: &TaskId, now: Time) -> Time {
        self.tasks.get(task).map_or(now, |(_, since)| *since)
    }

    /// When the record was first seen in its present version; `now` for one that was not.
    pub fn since(&self, record: &RecordObject, now: Time) -> Time {
        match self.records.get(&record.id) {
            Some((version, since)) if *version == record.version => *since,
            _ => now,
        }
    }

    /// How long the record has stood in its present version.
    pub fn age(&self, record: &RecordObject, now: Time) -> Duration {
        now - self.since(record, now)
    }
}
