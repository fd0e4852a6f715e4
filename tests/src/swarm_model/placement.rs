//! Where tasks may be: constraints, the scheduler's filters and ranking, and the constraint enforcer.

use serde_json::Value;
use swarmguard_common::domain::{NodeId, TaskId};
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
    /// Gives pending tasks a node, or leaves them pending.
    pub(super) fn schedule(&mut self) {
        let mut pending: Vec<(u64, TaskId)> = self
            .tasks
            .values()
            .filter(|task| task.node.is_none() && task.is_wanted() && task.state <= TaskState::Pending)
            .map(|task| (task.number, task.id.clone()))
            .collect();
        pending.sort();
        for (_, id) in pending {
            let Some(task) = self.tasks.get(&id).cloned() else { continue };
            let node = self.best_node(&task);
            let now = self.now;
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            task.state = if node.is_some() { TaskState::Assigned } else { TaskState::Pending };
            task.node = node;
            task.changed = now;
        }
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
