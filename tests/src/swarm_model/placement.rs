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
        let mut least: Vec<u64> = Vec::new();
        for node in self.nodes.values() {
            let takes = node.ready
                && !node.is_unknown()
                && task.shuns.as_ref() != Some(&node.id)
                && node.availability() == Availability::Active
                && node_matches(placement, node);
            if !takes || count(&node.id, true) >= most || !self.has_resources(task, node) {
                continue;
            }
            // Branches of the spread preferences in their order, then the node itself (`scheduler/nodeset.go`).
            let mut rank = self.in_branches(task, node);
            rank.extend([count(&node.id, true), count(&node.id, false)]);
            if best.is_empty() || rank < least {
                least.clone_from(&rank);
                best.clear();
            }
            if rank == least {
                best.push(node.id.clone());
            }
        }
        (!best.is_empty()).then(|| best.swap_remove(self.rng.usize(0..best.len())))
    }

    /// What the task reserves is left on the node by what is there.
    fn has_resources(&self, task: &ModelTask, node: &ModelNode) -> bool {
        let reserved = |task: &ModelTask, what: &str| {
            task.template["Resources"]["Reservations"][what].as_i64().unwrap_or(0)
        };
        [("NanoCPUs", node.nano_cpus), ("MemoryBytes", node.memory_bytes)].into_iter().all(|(what, all)| {
            let wanted = reserved(task, what);
            let there = || {
                let holds = |other: &&ModelTask| {
                    other.state <= TaskState::Running && other.desired <= TaskState::Shutdown
                };
                self.tasks_on(&node.id).filter(holds).map(|other| reserved(other, what)).sum::<i64>()
            };
            wanted == 0 || wanted <= all - there()
        })
    }

    /// Tasks of the service in each branch that a node is in: one for each of the spread preferences, and each within the
    /// branch before it.
    fn in_branches(&self, task: &ModelTask, node: &ModelNode) -> Vec<u64> {
        let label = |node: &ModelNode, descriptor: &str| {
            let name = descriptor.strip_prefix("node.labels.").unwrap_or(descriptor);
            node.spec["Labels"][name].as_str().unwrap_or_default().to_owned()
        };
        let preferences =
            task.template["Placement"]["Preferences"].as_array().map(Vec::as_slice).unwrap_or_default();
        let descriptors: Vec<&str> =
            preferences.iter().filter_map(|it| it["Spread"]["SpreadDescriptor"].as_str()).collect();
        let counted = |depth: usize| {
            let branch = &descriptors[..=depth];
            let same = |other: &ModelNode| branch.iter().all(|it| label(other, it) == label(node, it));
            let there = self.tasks.values().filter(|other| {
                other.service == task.service
                    && other.is_wanted()
                    && other.node.as_ref().and_then(|id| self.nodes.get(id)).is_some_and(same)
            });
            there.count() as u64
        };
        (0..descriptors.len()).map(counted).collect()
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
