//! Where tasks may be: constraints, the scheduler's filters and ranking, and the constraint enforcer.

use std::collections::BTreeMap;

use serde_json::Value;
use swarmguard_common::domain::{NodeId, ServiceId, TaskId};
use swarmguard_core::swarm::{Availability, TaskState};

use super::{ModelNode, ModelTask, SwarmModel};

/// Whether a node satisfies the `Constraints` of a `Placement`. Unknown keys match nothing, as in swarmkit.
pub(super) fn node_matches(placement: &Value, node: &ModelNode) -> bool {
    let constraints = placement["Constraints"].as_array().map(Vec::as_slice).unwrap_or_default();
    constraints.iter().filter_map(Value::as_str).all(|text| {
        let (key, value, wanted) = match (text.split_once("!="), text.split_once("==")) {
            (Some((key, value)), _) => (key.trim(), value.trim(), false),
            (None, Some((key, value))) => (key.trim(), value.trim(), true),
            (None, None) => return false,
        };
        let actual = match key {
            "node.id" => node.id.as_str(),
            "node.hostname" => return (hostname(node) == value) == wanted,
            "node.role" => node.spec["Role"].as_str().unwrap_or_default(),
            _ => match key.strip_prefix("node.labels.") {
                Some(label) => node.spec["Labels"][label].as_str().unwrap_or_default(),
                None => return false,
            },
        };
        (actual == value) == wanted
    })
}

/// `node1`, `node2`, …
pub(super) fn hostname(node: &ModelNode) -> String {
    format!("node{}", node.id.as_str().trim_start_matches("node").trim_start_matches('0'))
}

impl SwarmModel {
    /// Gives pending tasks a node, or leaves them pending. Those of one spec are placed together, in any order, as are
    /// the groups (`scheduler/scheduler.go`, which walks over maps).
    pub(super) fn schedule(&mut self) {
        let mut groups: BTreeMap<(ServiceId, u64), Vec<TaskId>> = BTreeMap::new();
        for task in self.tasks.values() {
            let waits = task.node.is_none() && task.state <= TaskState::Pending;
            if waits && (task.is_wanted() || self.is_given_up(task)) {
                groups.entry((task.service.clone(), task.spec_version)).or_default().push(task.id.clone());
            }
        }
        let mut groups: Vec<Vec<TaskId>> = groups.into_values().collect();
        self.rng.shuffle(&mut groups);
        for mut group in groups {
            self.rng.shuffle(&mut group);
            for id in group {
                self.place(&id);
            }
        }
    }

    /// Waits for a node in vain, is to be shut down, and was made from an earlier spec: the scheduler looks at it once
    /// more, and ends it itself where it still finds none (`noSuitableNode`).
    fn is_given_up(&self, task: &ModelTask) -> bool {
        let newer =
            self.services.get(&task.service).is_some_and(|service| service.spec_version > task.spec_version);
        task.state == TaskState::Pending && task.desired == TaskState::Shutdown && newer
    }

    fn place(&mut self, id: &TaskId) {
        let Some(task) = self.tasks.get(id).cloned() else { return };
        let node = self.best_node(&task);
        let state = match node {
            Some(_) => TaskState::Assigned,
            None if task.is_wanted() => TaskState::Pending,
            None => TaskState::Shutdown,
        };
        let now = self.now;
        let Some(task) = self.tasks.get_mut(id) else { return };
        (task.state, task.node, task.changed) = (state, node, now);
    }

    /// Fewest tasks of this service, then fewest tasks at all, among the nodes that pass every filter.
    fn best_node(&mut self, task: &ModelTask) -> Option<NodeId> {
        let placement = &task.template["Placement"];
        let linux = |platform: &Value| {
            let says = |key: &str, ours: &str| {
                matches!(platform[key].as_str(), None | Some("")) || platform[key] == ours
            };
            says("OS", "linux") && says("Architecture", "x86_64")
        };
        let platforms = placement["Platforms"].as_array().filter(|list| !list.is_empty());
        if platforms.is_some_and(|list| !list.iter().any(linux)) {
            return None;
        }
        let most = placement["MaxReplicas"].as_u64().filter(|most| *most > 0).unwrap_or(u64::MAX);
        let count = |node: &NodeId, of_service: bool| {
            let counts =
                |other: &&ModelTask| other.is_wanted() && (!of_service || other.service == task.service);
            self.tasks_on(node).filter(counts).count() as u64
        };
        let mut best: Vec<NodeId> = Vec::new();
        let mut least = (u64::MAX, u64::MAX);
        for node in self.nodes.values() {
            let takes = node.ready
                && !node.is_unknown()
                && node.availability() == Availability::Active
                && node_matches(placement, node);
            if !takes || count(&node.id, true) >= most {
                continue;
            }
            let rank = (count(&node.id, true), count(&node.id, false));
            if rank < least {
                least = rank;
                best.clear();
            }
            if rank == least {
                best.push(node.id.clone());
            }
        }
        (!best.is_empty()).then(|| best.swap_remove(self.rng.usize(0..best.len())))
    }

    /// Rejects tasks that the *current* service constraints do not allow on their node; only where the node object
    /// changed, and only on active nodes: pausing a node switches its enforcer off.
    pub(super) fn enforce_constraints(&mut self) {
        for node in std::mem::take(&mut self.enforce) {
            let Some(node) = self.nodes.get(&node).filter(|node| node.availability() == Availability::Active)
            else {
                continue;
            };
            let violating: Vec<TaskId> = self
                .tasks_on(&node.id)
                .filter(|task| task.is_wanted() && task.state < TaskState::Complete)
                .filter(|task| {
                    let service = self.services.get(&task.service);
                    service.is_some_and(|service| {
                        !node_matches(&service.spec["TaskTemplate"]["Placement"], node)
                    })
                })
                .map(|task| task.id.clone())
                .collect();
            for task in violating {
                // The observed state, not the desired one: the old task dies before a new one is even made.
                self.set_state(&task, TaskState::Rejected);
            }
        }
    }
}
