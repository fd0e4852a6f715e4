//! The updater: replaces dirty tasks slot by slot, and starts over when the spec is written again
//! (`orchestrator/update/updater.go`).

use std::{collections::VecDeque, time::Duration};

use serde_json::Value;
use swarmguard_common::{
    domain::{ServiceId, TaskId},
    time::Time,
};
use swarmguard_core::swarm::{TaskState, UpdateState};

use super::{ModelService, SwarmModel};

/// One update towards one spec.
#[derive(Clone)]
pub(super) struct Updater {
    spec: Value,
    service: ModelService,
    queue: VecDeque<Vec<TaskId>>,
    workers: Vec<Worker>,
    parallelism: usize,
    start_first: bool,
    delay: Duration,
    monitor: Duration,
    made: Vec<TaskId>,
    done_at: Option<Time>,
}

#[derive(Clone)]
enum Worker {
    /// Waits for the new task to run, then stops the old ones.
    Waiting { new: TaskId, old: Vec<TaskId> },
    /// Rests after a slot.
    Resting { until: Time },
}

enum Next {
    Keep(Worker),
    Free,
}

impl SwarmModel {
    /// Starts an update, unless one towards the same spec is under way; another one is cancelled where it stands.
    pub(super) fn update(&mut self, service: &ModelService, slots: Vec<Vec<TaskId>>) {
        if self.updaters.get(&service.id).is_some_and(|updater| updater.spec == service.spec) {
            return;
        }
        self.updaters.remove(&service.id);
        if matches!(service.update_state, Some(UpdateState::Paused | UpdateState::RollbackPaused)) {
            return;
        }
        let dirty = |slot: &&Vec<TaskId>| slot.len() > 1 || self.is_dirty(service, &self.tasks[&slot[0]]);
        let mut queue: Vec<Vec<TaskId>> = slots.iter().filter(dirty).cloned().collect();
        if queue.is_empty() {
            match service.update_state {
                Some(UpdateState::Updating) => self.set_update_state(&service.id, UpdateState::Completed),
                Some(UpdateState::RollbackStarted) => {
                    self.set_update_state(&service.id, UpdateState::RollbackCompleted);
                }
                _ => {}
            }
            return;
        }
        // swarmkit ranges over a map of slots: their order is not promised.
        self.rng.shuffle(&mut queue);
        if service.update_state.is_none() {
            self.set_update_state(&service.id, UpdateState::Updating);
        }
        let config = &service.spec["UpdateConfig"];
        let parallelism = config["Parallelism"].as_u64().unwrap_or(1);
        let delay = Duration::from_nanos(config["Delay"].as_u64().unwrap_or(0));
        let monitor = config["Monitor"]
            .as_u64()
            .filter(|nanos| *nanos > 0)
            .map_or(Duration::from_secs(5), Duration::from_nanos);
        let updater = Updater {
            spec: service.spec.clone(),
            service: service.clone(),
            parallelism: if parallelism == 0 {
                queue.len()
            } else {
                usize::try_from(parallelism).unwrap_or(1)
            },
            start_first: config["Order"] == "start-first",
            monitor: if delay >= monitor { delay + Duration::from_secs(1) } else { monitor },
            delay,
            queue: queue.into(),
            workers: Vec::new(),
            made: Vec::new(),
            done_at: None,
        };
        self.updaters.insert(service.id.clone(), updater);
    }

    pub(super) fn step_updaters(&mut self) {
        let running: Vec<ServiceId> = self.updaters.keys().cloned().collect();
        for id in running {
            let Some(mut updater) = self.updaters.remove(&id) else { continue };
            if self.step_updater(&id, &mut updater) {
                self.updaters.insert(id, updater);
            }
        }
    }

    /// Whether the updater goes on.
    fn step_updater(&mut self, id: &ServiceId, updater: &mut Updater) -> bool {
        if !self.services.contains_key(id) {
            return false;
        }
        let failed = |task: &TaskId| {
            self.tasks
                .get(task)
                .is_some_and(|task| task.state > TaskState::Running && task.desired <= TaskState::Shutdown)
        };
        if updater.made.iter().any(failed) {
            // A task of this update died: default action is to pause and leave everything as it stands.
            let action = updater.spec["UpdateConfig"]["FailureAction"].as_str().unwrap_or("pause");
            if action != "continue" {
                let back = self.services[id].update_state == Some(UpdateState::RollbackStarted);
                self.set_update_state(
                    id,
                    if back { UpdateState::RollbackPaused } else { UpdateState::Paused },
                );
                return false;
            }
        }
        let mut workers = Vec::new();
        for worker in std::mem::take(&mut updater.workers) {
            if let Next::Keep(worker) = self.step_worker(updater, worker) {
                workers.push(worker);
            }
        }
        while workers.len() < updater.parallelism
            && let Some(slot) = updater.queue.pop_front()
        {
            workers.push(self.take_slot(updater, &slot));
        }
        updater.workers = workers;
        if !updater.workers.is_empty() || !updater.queue.is_empty() {
            return true;
        }
        let done_at = *updater.done_at.get_or_insert(self.now + updater.monitor);
        if self.now >= done_at {
            let back = self.services[id].update_state == Some(UpdateState::RollbackStarted);
            self.set_update_state(
                id,
                if back { UpdateState::RollbackCompleted } else { UpdateState::Completed },
            );
        }
        self.now < done_at
    }

    fn take_slot(&mut self, updater: &mut Updater, slot: &[TaskId]) -> Worker {
        let resting = Worker::Resting { until: self.now + updater.delay };
        let mut alive: Vec<TaskId> =
            slot.iter().filter(|task| self.tasks.contains_key(*task)).cloned().collect();
        // The store lists a slot's tasks by their IDs, which are random: of two clean ones either may stay.
        self.rng.shuffle(&mut alive);
        let Some(first) = alive.first() else { return resting };
        let clean = |desired: fn(TaskState) -> bool| {
            alive.iter().find(|task| {
                let task = &self.tasks[*task];
                desired(task.desired) && !self.is_dirty(&updater.service, task)
            })
        };
        let existing = clean(|desired| desired == TaskState::Running)
            .or_else(|| clean(|desired| desired < TaskState::Running));
        if let Some(existing) = existing.cloned() {
            // All that is left to do is to stop the others: at once, though this one may still be preparing.
            for task in alive.iter().filter(|task| **task != existing) {
                self.tell_to_stop(task, TaskState::Shutdown);
            }
            self.set_desired(&existing, TaskState::Running);
            return resting;
        }
        let slot_number = self.tasks[first].slot;
        let new = self.make_task(&updater.service, slot_number, TaskState::Ready);
        updater.made.push(new.clone());
        if !updater.start_first {
            for task in &alive {
                self.tell_to_stop(task, TaskState::Shutdown);
            }
            if let Some(new) = self.tasks.get_mut(&new) {
                new.start_after = alive.last().cloned();
            }
        }
        Worker::Waiting { new, old: alive }
    }

    fn step_worker(&mut self, updater: &Updater, worker: Worker) -> Next {
        match worker {
            Worker::Resting { until } if self.now >= until => Next::Free,
            Worker::Resting { until } => Next::Keep(Worker::Resting { until }),
            Worker::Waiting { new, old } => {
                let state = self.tasks.get(&new).map_or(TaskState::Failed, |task| task.state);
                if state < TaskState::Running {
                    return Next::Keep(Worker::Waiting { new, old });
                }
                if updater.start_first && state == TaskState::Running {
                    for task in &old {
                        self.tell_to_stop(task, TaskState::Shutdown);
                    }
                }
                Next::Keep(Worker::Resting { until: self.now + updater.delay })
            }
        }
    }

    pub(super) fn set_update_state(&mut self, service: &ServiceId, state: UpdateState) {
        let index = self.next_index();
        if let Some(service) = self.services.get_mut(service) {
            service.update_state = Some(state);
            service.version = index;
        }
        // The orchestrator looks at a service whenever its object changes.
        self.wake(service);
    }
}
