//! What happens on the nodes: containers start, become healthy, fail, stop; heartbeats stop when a node does.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::domain::{NodeId, ServiceId, TaskId};
use swarmguard_core::swarm::{Availability, TaskState};

use super::{ModelTask, SwarmModel, Workload};

/// Three missed heartbeats of 5 s.
const DOWN_AFTER: Duration = Duration::from_secs(15);

/// `TaskHistoryRetentionLimit`: tasks that a slot keeps, those that run included.
const HISTORY: usize = 5;

/// Between weight 0 in IPVS and SIGTERM, the engine waits this long.
const DRAIN: Duration = Duration::from_secs(2);

impl SwarmModel {
    /// Managers notice nodes that fell silent or came back.
    pub(super) fn watch_nodes(&mut self) {
        let now = self.now;
        let mut changed = Vec::new();
        for node in self.nodes.values_mut() {
            if node.up {
                node.silent_since = None;
            } else if node.silent_since.is_none() {
                node.silent_since = Some(now);
            }
            let alive = node.silent_since.is_none_or(|since| now - since < DOWN_AFTER);
            let heard = node.up && node.unknown_until.take_if(|until| *until <= now).is_some();
            if node.ready != alive || heard {
                node.ready = alive;
                changed.push(node.id.clone());
            }
            if !alive {
                node.unknown_until = None;
            }
        }
        for node in changed {
            let index = self.next_index();
            if let Some(node) = self.nodes.get_mut(&node) {
                node.version = index;
            }
            // The enforcer runs on every change of a node object, whatever changed.
            self.enforce.push(node);
        }
    }

    /// One step in the life of every container on a node that is up.
    pub(super) fn run_containers(&mut self) {
        let tasks: Vec<TaskId> = self.tasks.keys().cloned().collect();
        for id in tasks {
            let Some(task) = self.tasks.get(&id) else { continue };
            let workload =
                self.services.get(&task.service).map(|service| service.workload).unwrap_or_default();
            if let Some(next) = self.next_state(task, workload) {
                if next == TaskState::Starting {
                    let doomed = self.rng.u16(0..1_000) < workload.failing_starts;
                    if let Some(task) = self.tasks.get_mut(&id) {
                        task.doomed = doomed;
                    }
                }
                self.set_state(&id, next);
            }
        }
    }

    fn next_state(&self, task: &ModelTask, workload: Workload) -> Option<TaskState> {
        // One that was never assigned is the scheduler's.
        let node = task.node.as_ref()?;
        if !self.nodes.get(node).is_some_and(|node| node.up) {
            return None;
        }
        let stood = self.now - task.changed;
        let after = |ms: u64, next: TaskState| (stood >= Duration::from_millis(ms)).then_some(next);
        if !task.is_wanted() && task.state <= TaskState::Running {
            let stopped = Duration::from_millis(workload.stop_ms) + DRAIN;
            // `changed` of a running task is when it began to run; the stop is timed by `stopping_for`.
            return (task.state < TaskState::Running || self.stopping_for(task) >= stopped)
                .then_some(TaskState::Shutdown);
        }
        match task.state {
            TaskState::Assigned => Some(TaskState::Accepted),
            TaskState::Accepted => Some(TaskState::Preparing),
            TaskState::Preparing => after(workload.prepare_ms, TaskState::Ready),
            TaskState::Ready if task.desired >= TaskState::Running => Some(TaskState::Starting),
            TaskState::Starting if task.doomed => after(workload.healthy_ms, TaskState::Failed),
            TaskState::Starting => after(workload.healthy_ms, TaskState::Running),
            TaskState::Running => workload.runs_ms.and_then(|runs_ms| after(runs_ms, TaskState::Complete)),
            _ => None,
        }
    }

    fn stopping_for(&self, task: &ModelTask) -> Duration {
        // A task that is told to stop keeps the instant in `start_at`, which has no other use from then on.
        self.now - task.start_at
    }

    /// Tasks whose end was awaited, or whose delay passed, are told to run.
    pub(super) fn start_delayed_tasks(&mut self) {
        let now = self.now;
        let ended = |model: &Self, id: &TaskId| {
            model.tasks.get(id).is_none_or(|old| {
                let gone =
                    old.node.as_ref().and_then(|node| model.nodes.get(node)).is_none_or(|node| !node.ready);
                old.state > TaskState::Running || gone
            })
        };
        let due: Vec<TaskId> = self
            .tasks
            .values()
            .filter(|task| task.desired == TaskState::Ready && task.start_at <= now)
            .filter(|task| task.start_after.as_ref().is_none_or(|old| ended(self, old)))
            .map(|task| task.id.clone())
            .collect();
        for task in due {
            let job = self.tasks.get(&task).is_some_and(|task| task.job_iteration.is_some());
            self.set_desired(&task, if job { TaskState::Complete } else { TaskState::Running });
        }
    }

    /// Told to stop: the clock of the stop starts.
    pub(super) fn tell_to_stop(&mut self, task: &TaskId, desired: TaskState) {
        let now = self.now;
        if let Some(task) = self.tasks.get_mut(task).filter(|task| task.is_wanted()) {
            task.start_at = now;
        }
        self.set_desired(task, desired);
    }

    /// The task reaper: removed tasks vanish once they ended or if they never had a node; of the others that ended each
    /// slot keeps the youngest, up to [`HISTORY`] tasks in all (`taskreaper/task_reaper.go`).
    pub(super) fn reap(&mut self) {
        let over = |task: &ModelTask| task.state > TaskState::Running || task.node.is_none();
        self.tasks.retain(|_, task| !(task.desired == TaskState::Remove && over(task)));
        let services = &self.services;
        self.tasks.retain(|_, task| services.contains_key(&task.service));
        let mut slots: BTreeMap<(&ServiceId, u64), Vec<&ModelTask>> = BTreeMap::new();
        for task in self.tasks.values() {
            slots.entry((&task.service, task.slot)).or_default().push(task);
        }
        let gone = |task: &&ModelTask| over(task) && (task.state > TaskState::Running || !task.is_wanted());
        let mut surplus = Vec::new();
        for mut slot in slots.into_values().filter(|slot| slot.len() > HISTORY) {
            slot.sort_by_key(|task| task.number);
            let count = slot.len() - HISTORY;
            surplus.extend(slot.into_iter().filter(gone).take(count).map(|task| task.id.clone()));
        }
        for id in surplus {
            self.tasks.remove(&id);
        }
    }

    /// A node that is down or drained runs nothing that counts.
    pub(super) fn is_invalid(&self, node: &NodeId) -> bool {
        self.nodes.get(node).is_none_or(|node| !node.ready || node.availability() == Availability::Drain)
    }
}
