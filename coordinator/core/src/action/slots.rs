//! The wanted tasks of a service by slot, and which slot Swarm would remove next.
//!
//! Swarm's order of removal (swarmkit, `manager/orchestrator/replicated/slot.go` and `services.go`): slots with two
//! tasks or an unassigned one; then the highest count of copies on one node, where running copies are counted first.

use std::collections::{BTreeMap, BTreeSet};

use swarmguard_common::domain::{NodeId, ServiceId};

use crate::swarm::{Snapshot, Task};

/// The wanted tasks of one service.
#[derive(Debug)]
pub(super) struct Slots<'a>(BTreeMap<u64, Vec<&'a Task>>);

impl<'a> Slots<'a> {
    pub(super) fn of(snapshot: &'a Snapshot, service: &ServiceId) -> Self {
        let mut slots: BTreeMap<u64, Vec<&Task>> = BTreeMap::new();
        for task in snapshot.tasks_of(service).filter(|task| task.is_wanted()) {
            slots.entry(task.slot).or_default().push(task);
        }
        Self(slots)
    }

    pub(super) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    pub(super) fn tasks(&self) -> impl Iterator<Item = &'a Task> {
        self.0.values().flatten().copied()
    }

    /// Slots in which one task serves and nothing else is wanted.
    pub(super) fn serving(&self) -> u64 {
        self.0.values().filter(|tasks| tasks.len() == 1 && tasks[0].is_serving()).count() as u64
    }

    /// Serving tasks that are not on this node.
    pub(super) fn serving_off(&self, node: Option<&NodeId>) -> u64 {
        self.tasks().filter(|task| task.is_serving() && task.node.as_ref() != node).count() as u64
    }

    pub(super) fn any_doubled(&self) -> bool {
        self.0.values().any(|tasks| tasks.len() > 1)
    }

    /// Whether in every doubled slot one task waits for a node: taking the cause away then costs nothing.
    pub(super) fn twins_have_no_node(&self) -> bool {
        let mut doubled = self.0.values().filter(|tasks| tasks.len() > 1);
        doubled.all(|tasks| tasks.iter().any(|task| task.node.is_none()))
    }

    /// Slots that Swarm removes first: with two tasks, or with one that has no node.
    pub(super) fn doomed(&self) -> Vec<(u64, &[&'a Task])> {
        let doomed = |tasks: &[&Task]| tasks.len() > 1 || tasks.iter().any(|task| task.node.is_none());
        self.0
            .iter()
            .filter(|(_, tasks)| doomed(tasks))
            .map(|(slot, tasks)| (*slot, tasks.as_slice()))
            .collect()
    }

    /// Slots that were not there before.
    pub(super) fn beyond(&self, before: &BTreeSet<u64>) -> Vec<(u64, &[&'a Task])> {
        self.0
            .iter()
            .filter(|(slot, _)| !before.contains(slot))
            .map(|(slot, tasks)| (*slot, tasks.as_slice()))
            .collect()
    }

    pub(super) fn copies_on(&self, node: &NodeId) -> usize {
        self.tasks().filter(|task| task.node.as_ref() == Some(node)).count()
    }

    /// Whether one replica fewer costs no serving replica.
    pub(super) fn can_lose_one(&self) -> bool {
        if self.serving() == self.len() {
            return true;
        }
        let doomed = self.doomed();
        if !doomed.is_empty() {
            return doomed.iter().all(|(_, tasks)| !tasks.iter().any(|task| task.is_serving()));
        }
        // All slots have one assigned task here. On its node an unwell one is counted after those that run; which of
        // several fullest nodes is taken is not promised (Go's sort is not stable).
        let mut copies: BTreeMap<&NodeId, (usize, bool)> = BTreeMap::new();
        for task in self.tasks() {
            if let Some(node) = &task.node {
                let (count, unwell) = copies.entry(node).or_default();
                (*count, *unwell) = (*count + 1, *unwell || !task.is_serving());
            }
        }
        let most = copies.values().map(|(count, _)| *count).max().unwrap_or(0);
        copies.values().filter(|(count, _)| *count == most).all(|(_, unwell)| *unwell)
    }
}

#[cfg(test)]
mod tests {
    use swarmguard_common::domain::TaskId;

    use super::*;
    use crate::swarm::TaskState;

    /// A service's tasks, each by slot, node (0 for none) and state.
    fn snapshot(tasks: &[(u64, u32, TaskState)]) -> (Snapshot, ServiceId) {
        let service: ServiceId = "s1".parse().expect("an ID");
        let mut snapshot = Snapshot::default();
        for (number, (slot, node, state)) in tasks.iter().enumerate() {
            let id: TaskId = format!("t{number}").parse().expect("an ID");
            let task = Task {
                id: id.clone(),
                service: service.clone(),
                slot: *slot,
                node: (*node > 0).then(|| format!("n{node}").parse().expect("an ID")),
                desired: TaskState::Running,
                state: *state,
                container: None,
                addresses: Vec::new(),
                attachments: Vec::new(),
                message: String::new(),
                job_iteration: None,
            };
            snapshot.tasks.insert(id, task);
        }
        (snapshot, service)
    }

    fn can_lose_one(tasks: &[(u64, u32, TaskState)]) -> bool {
        let (snapshot, service) = snapshot(tasks);
        Slots::of(&snapshot, &service).can_lose_one()
    }

    #[test]
    fn one_fewer_costs_nothing_only_where_swarm_takes_one_that_does_not_serve() {
        use TaskState::{Pending, Preparing, Running};
        assert!(
            can_lose_one(&[(1, 1, Running), (2, 2, Running)]),
            "all serve, as many as were wanted remain"
        );
        assert!(can_lose_one(&[(1, 1, Running), (2, 0, Pending)]), "the one without a node goes first");
        assert!(!can_lose_one(&[(1, 1, Running), (2, 2, Preparing)]), "either may go");
        assert!(
            can_lose_one(&[(1, 1, Running), (2, 2, Running), (3, 2, Preparing)]),
            "the fullest node's unwell one"
        );
        assert!(
            !can_lose_one(&[(1, 1, Running), (2, 1, Running), (3, 2, Preparing)]),
            "the fullest node is another"
        );
        assert!(
            !can_lose_one(&[(1, 1, Running), (1, 0, Pending), (2, 2, Preparing)]),
            "the doubled slot would go"
        );
    }
}
