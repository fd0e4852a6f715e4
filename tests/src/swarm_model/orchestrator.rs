//! The replicated orchestrator: how many slots there are, which go, and what replaces the dead.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::Value;
use swarmguard_common::domain::{NodeId, ServiceId, TaskId};
use swarmguard_core::swarm::{Availability, TaskState};

use super::{ModelService, ModelTask, SwarmModel, id, placement::node_matches};

/// Delay of a restart where the spec says nothing.
const RESTART_DELAY: Duration = Duration::from_secs(5);

impl SwarmModel {
    /// Asks for a look at a service in the next step.
    pub(super) fn wake(&mut self, service: &ServiceId) {
        if !self.reconcile.contains(service) {
            self.reconcile.push(service.clone());
        }
    }

    pub(super) fn reconcile_services(&mut self) {
        for service in std::mem::take(&mut self.reconcile) {
            if let Some(service) = self.services.get(&service).filter(|found| found.job_iteration.is_none()) {
                self.reconcile_service(&service.clone());
            }
        }
        // What becomes of a job's tasks matters to it as much as what is written.
        let jobs = self.services.values().filter(|service| service.job_iteration.is_some());
        for job in jobs.cloned().collect::<Vec<_>>() {
            self.reconcile_job(&job);
        }
    }

    /// Makes what is still to be done of a job's iteration, and ends what runs of earlier ones
    /// (`jobs/replicated/reconciler.go`). Tasks on lost nodes count as running.
    fn reconcile_job(&mut self, job: &ModelService) {
        let number = |key: &str| job.spec["Mode"]["ReplicatedJob"][key].as_u64().unwrap_or(1);
        let (completions, concurrent) = (number("TotalCompletions"), number("MaxConcurrent"));
        let (mut slots, mut running, mut done) = (BTreeSet::new(), 0, 0);
        let mut stale = Vec::new();
        for task in self.tasks.values().filter(|task| task.service == job.id) {
            if task.job_iteration != job.job_iteration {
                if task.state <= TaskState::Running && task.desired != TaskState::Remove {
                    stale.push(task.id.clone());
                }
            } else if task.state == TaskState::Complete {
                done += 1;
                slots.insert(task.slot);
            } else if task.desired <= TaskState::Complete {
                running += 1;
                slots.insert(task.slot);
            }
        }
        let more = concurrent.saturating_sub(running).min(completions.saturating_sub(done + running));
        let free: Vec<u64> = (0..completions).filter(|slot| !slots.contains(slot)).collect();
        for slot in free.into_iter().take(usize::try_from(more).unwrap_or(usize::MAX)) {
            self.make_task(job, slot, TaskState::Complete);
        }
        for task in stale {
            self.tell_to_stop(&task, TaskState::Remove);
        }
    }

    fn reconcile_service(&mut self, service: &ModelService) {
        let slots = self.slots(&service.id);
        self.forget_dead_slots(service, &slots);
        let wanted = usize::try_from(service.replicas()).unwrap_or(usize::MAX);
        if wanted >= slots.len() {
            self.update(service, slots.values().cloned().collect());
            let taken: Vec<u64> = slots.keys().copied().collect();
            let free = (1..).filter(|slot| !taken.contains(slot));
            for slot in free.take(wanted - slots.len()).collect::<Vec<_>>() {
                self.make_task(service, slot, TaskState::Running);
            }
            return;
        }
        let sorted = self.removal_order(slots.into_values().collect());
        self.update(service, sorted[..wanted].to_vec());
        for task in sorted[wanted..].iter().flatten() {
            self.tell_to_stop(task, TaskState::Remove);
        }
    }

    /// Drops the tasks of slots of which nothing is wanted any more, also those that are still stopping: their nodes end
    /// them all the same (`replicated/services.go`, `deleteTasksMap`). Slots that are taken again keep their history.
    fn forget_dead_slots(&mut self, service: &ModelService, slots: &BTreeMap<u64, Vec<TaskId>>) {
        let wanted = usize::try_from(service.replicas()).unwrap_or(usize::MAX);
        let free = (1..).filter(|slot| !slots.contains_key(slot));
        let again: BTreeSet<u64> = free.take(wanted.saturating_sub(slots.len())).collect();
        self.tasks.retain(|_, task| {
            let dead = task.service == service.id && !slots.contains_key(&task.slot);
            // The last task of a slot that is not to be restarted counts as one that is wanted.
            let kept = again.contains(&task.slot) || task.template["RestartPolicy"]["Condition"] == "none";
            !dead || kept
        });
    }

    /// Slots that count, each with its wanted tasks, oldest first.
    fn slots(&self, service: &ServiceId) -> BTreeMap<u64, Vec<TaskId>> {
        let mut slots: BTreeMap<u64, Vec<(u64, TaskId)>> = BTreeMap::new();
        for task in self.wanted(service) {
            slots.entry(task.slot).or_default().push((task.number, task.id.clone()));
        }
        let ordered = |mut tasks: Vec<(u64, TaskId)>| {
            tasks.sort();
            tasks.into_iter().map(|(_, task)| task).collect()
        };
        slots.into_iter().map(|(slot, tasks)| (slot, ordered(tasks))).collect()
    }

    /// Kept ones first. Removed first are slots with two tasks or an unassigned one, then the nth copies on a node, then
    /// those that do not run, then high slot numbers (`replicated/services.go`, `slot.go`).
    fn removal_order(&mut self, slots: Vec<Vec<TaskId>>) -> Vec<Vec<TaskId>> {
        let mut slots = slots;
        // swarmkit iterates a map here: equal ones come in any order.
        self.rng.shuffle(&mut slots);
        slots.sort_by_key(|slot| {
            let runs = slot.iter().any(|task| self.tasks[task].state == TaskState::Running);
            (!runs, self.tasks[&slot[0]].slot)
        });
        let mut copies: BTreeMap<NodeId, i64> = BTreeMap::new();
        let mut indexed: Vec<(i64, Vec<TaskId>)> = Vec::new();
        for slot in slots {
            let node = if slot.len() == 1 { self.tasks[&slot[0]].node.clone() } else { None };
            let index = node.map_or(i64::MAX, |node| {
                let copies = copies.entry(node).or_default();
                *copies += 1;
                *copies
            });
            indexed.push((index, slot));
        }
        // Go's sort.Sort is not stable, so the order within an index is not promised: shuffle, then sort by it alone.
        self.rng.shuffle(&mut indexed);
        indexed.sort_by_key(|(index, _)| *index);
        indexed.into_iter().map(|(_, slot)| slot).collect()
    }

    /// Makes a task from the service's newest spec.
    pub(super) fn make_task(&mut self, service: &ModelService, slot: u64, desired: TaskState) -> TaskId {
        self.made += 1;
        let task = ModelTask {
            id: id(&format!("task{:021}", self.made)),
            service: service.id.clone(),
            slot,
            node: None,
            desired,
            state: TaskState::New,
            template: service.spec["TaskTemplate"].clone(),
            endpoint: service.spec["EndpointSpec"].clone(),
            spec_version: service.spec_version,
            created: self.now,
            number: self.made,
            changed: self.now,
            start_at: self.now,
            start_after: None,
            doomed: false,
            shuns: None,
            job_iteration: service.job_iteration,
        };
        let made = task.id.clone();
        self.tasks.insert(made.clone(), task);
        made
    }

    /// The restart supervisor: a dead task, or one on a node that is down or drained, is replaced in its slot.
    pub(super) fn restart_dead_tasks(&mut self) {
        let dead: Vec<ModelTask> = self
            .tasks
            .values()
            .filter(|task| match task.job_iteration {
                // One on a lost node counts as running.
                Some(_) => task.desired <= TaskState::Complete && task.state > TaskState::Complete,
                None => {
                    let lost = || task.node.as_ref().is_some_and(|node| self.is_invalid(node));
                    task.is_wanted() && (task.state > TaskState::Running || lost())
                }
            })
            .cloned()
            .collect();
        for old in dead {
            let Some(service) = self.services.get(&old.service).cloned() else { continue };
            self.tell_to_stop(&old.id, TaskState::Shutdown);
            if old.template["RestartPolicy"]["Condition"] == "none" {
                continue;
            }
            let new = self.make_task(&service, old.slot, TaskState::Ready);
            let node = old.node.as_ref().and_then(|node| self.nodes.get(node));
            let drained = node.is_some_and(|node| node.availability() == Availability::Drain);
            let down = node.is_some_and(|node| !node.ready);
            let delay =
                old.template["RestartPolicy"]["Delay"].as_u64().map_or(RESTART_DELAY, Duration::from_nanos);
            let waits = !down && old.state <= TaskState::Running;
            let start_at = self.now + if drained { Duration::ZERO } else { delay };
            if let Some(new) = self.tasks.get_mut(&new) {
                new.start_at = start_at;
                new.start_after = waits.then(|| old.id.clone());
            }
        }
    }

    /// `IsTaskDirty` (`orchestrator/task.go`).
    pub(super) fn is_dirty(&self, service: &ModelService, task: &ModelTask) -> bool {
        if service.spec_version == task.spec_version {
            return false;
        }
        let template = &service.spec["TaskTemplate"];
        let node = task.node.as_ref().and_then(|node| self.nodes.get(node));
        let same_but_placement = template["Placement"] != task.template["Placement"]
            && without_placement(template) == without_placement(&task.template);
        if same_but_placement && node.is_some_and(|node| node_matches(&template["Placement"], node)) {
            return false;
        }
        *template != task.template || service.spec["EndpointSpec"] != task.endpoint
    }
}

fn without_placement(template: &Value) -> Value {
    let mut rest = template.clone();
    if let Some(map) = rest.as_object_mut() {
        map.remove("Placement");
    }
    rest
}
