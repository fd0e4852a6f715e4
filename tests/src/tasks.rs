//! Watches the tasks of one service and notes when each was first seen in each state.
//!
//! By polling: Swarm has no events of tasks. Times are this process's own, so that they can be set against requests and
//! journal entries; the nodes' clocks may differ.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use swarmguard_common::time::Time;
use swarmguard_runtime::clock::now;
use tokio::task::JoinHandle;

use crate::engine::Engine;

const EVERY: Duration = Duration::from_millis(250);

/// One task, and when it was first seen so.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Where it runs; empty while it has no node.
    pub node: String,
    /// Its slot.
    pub slot: u64,
    /// Its container, once there is one; its first 12 digits are the container's host name.
    pub container: String,
    /// Last state seen.
    pub state: String,
    /// Last desired state seen.
    pub desired: String,
    /// First seen at all.
    pub created: Option<Time>,
    /// First seen `running`: with a health check that means healthy.
    pub running: Option<Time>,
    /// First seen with a desired state beyond `running`: told to stop.
    pub told_to_stop: Option<Time>,
    /// First seen in a final state.
    pub ended: Option<Time>,
    /// Swarm's words where it failed.
    pub error: String,
}

impl Seen {
    /// Is it serving, as far as Swarm is concerned?
    pub fn serves(&self) -> bool {
        self.state == "running" && self.desired == "running"
    }

    /// The host name inside its container.
    pub fn host(&self) -> &str {
        self.container.get(..12).unwrap_or(&self.container)
    }
}

/// All tasks of a service by ID.
pub type Tasks = BTreeMap<String, Seen>;

/// Polls until dropped.
#[derive(Debug)]
pub struct Watcher {
    tasks: Arc<Mutex<Tasks>>,
    poll: JoinHandle<()>,
}

impl Watcher {
    /// Starts watching the service of this ID or name.
    pub fn start(engine: Engine, service: &str) -> Self {
        let tasks = Arc::new(Mutex::new(Tasks::new()));
        let (shared, service) = (Arc::clone(&tasks), service.to_owned());
        let poll = tokio::spawn(async move {
            loop {
                // A failed poll is seen as a gap; whoever waits for something has a deadline.
                if let Ok(list) = engine.tasks(&service).await {
                    note(&mut shared.lock().unwrap_or_else(PoisonError::into_inner), &list, now());
                }
                tokio::time::sleep(EVERY).await;
            }
        });
        Watcher { tasks, poll }
    }

    /// What has been seen so far.
    pub fn tasks(&self) -> Tasks {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The tasks that serve now.
    pub fn serving(&self) -> Tasks {
        self.tasks().into_iter().filter(|(_, task)| task.serves()).collect()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.poll.abort();
    }
}

fn note(tasks: &mut Tasks, list: &[Value], at: Time) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for task in list {
        let seen = tasks.entry(text(&task["ID"])).or_default();
        seen.node = text(&task["NodeID"]);
        seen.slot = task["Slot"].as_u64().unwrap_or_default();
        seen.container = text(&task["Status"]["ContainerStatus"]["ContainerID"]);
        seen.state = text(&task["Status"]["State"]);
        seen.desired = text(&task["DesiredState"]);
        seen.error = text(&task["Status"]["Err"]);
        seen.created.get_or_insert(at);
        if seen.state == "running" {
            seen.running.get_or_insert(at);
        }
        if !matches!(seen.desired.as_str(), "running" | "ready" | "accepted") {
            seen.told_to_stop.get_or_insert(at);
        }
        if matches!(
            seen.state.as_str(),
            "complete" | "shutdown" | "failed" | "rejected" | "orphaned" | "remove"
        ) {
            seen.ended.get_or_insert(at);
        }
    }
    // A scaled-down slot's tasks vanish from the list altogether.
    let listed = |id: &String| list.iter().any(|task| task["ID"] == id.as_str());
    for (_, seen) in tasks.iter_mut().filter(|(id, _)| !listed(id)) {
        seen.told_to_stop.get_or_insert(at);
        seen.ended.get_or_insert(at);
        "remove".clone_into(&mut seen.desired);
        "remove".clone_into(&mut seen.state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_sight_of_each_state_is_kept() {
        let task = |state: &str, desired: &str| {
            vec![
                json!({"ID": "t", "NodeID": "n", "Slot": 1, "DesiredState": desired, "Status": {"State": state}}),
            ]
        };
        let mut tasks = Tasks::new();
        let at = Time::from_millis;
        note(&mut tasks, &task("starting", "running"), at(1));
        note(&mut tasks, &task("running", "running"), at(2));
        assert!(tasks["t"].serves());
        note(&mut tasks, &task("running", "running"), at(3));
        note(&mut tasks, &task("running", "shutdown"), at(4));
        assert!(!tasks["t"].serves());
        note(&mut tasks, &[], at(5));
        note(&mut tasks, &[], at(6));
        let seen = &tasks["t"];
        assert_eq!((seen.created, seen.running), (Some(at(1)), Some(at(2))));
        assert_eq!((seen.told_to_stop, seen.ended), (Some(at(4)), Some(at(5))));
    }
}
