//! The nodes that Swarm lists: agents of others are not let in, whatever their certificate says. A node that was removed
//! keeps a valid certificate for up to 90 days.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use swarmguard_common::{domain::NodeId, time::Time};
use swarmguard_core::swarm::Snapshot;

/// By an older reading nobody is turned away: a coordinator that cannot read Swarm decides nothing anyway, and the next
/// reading ends the connections of those that are not listed.
const VALID: Duration = Duration::from_secs(5);

/// Who may speak, by the newest reading of Swarm.
#[derive(Debug, Default)]
pub struct Roster(Mutex<Option<(Time, BTreeMap<NodeId, bool>)>>);

impl Roster {
    /// Takes over the nodes of a reading.
    pub fn update(&self, snapshot: &Snapshot) {
        let nodes = snapshot.nodes.values().map(|node| (node.id.clone(), node.manager)).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((snapshot.taken, nodes));
    }

    /// Why a node's agent is not let in; `None` where it is. A manager's certificate on a node that is none is refused;
    /// a worker's on a manager, which is about to get a new one, claims less than it may.
    pub fn why_not(&self, now: Time, node: &NodeId, as_manager: bool) -> Option<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (taken, nodes) = known.as_ref()?;
        if now.since(*taken) > VALID {
            return None;
        }
        match nodes.get(node) {
            None => Some(format!("Swarm lists no node {node}")),
            Some(false) if as_manager => {
                Some(format!("the certificate is a manager's, and Swarm lists {node} as a worker"))
            }
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use swarmguard_core::swarm::{Availability, Node};

    use super::*;

    fn node(name: &str) -> Node {
        Node {
            id: name.parse().expect("an ID"),
            version: 1,
            hostname: name.into(),
            manager: false,
            leader: false,
            ready: true,
            unknown: false,
            availability: Availability::Active,
            labels: BTreeMap::new(),
            engine_labels: BTreeMap::new(),
            engine_version: String::new(),
            os: String::new(),
            architecture: String::new(),
            address: None,
            generic: Default::default(),
            plugins: Default::default(),
            nano_cpus: 0,
            memory_bytes: 0,
            spec: serde_json::Value::Null,
        }
    }

    #[test]
    fn nodes_that_swarm_does_not_list_or_not_so_are_refused_while_that_is_known() {
        let (roster, now) = (Roster::default(), Time::from_millis(10_000));
        let id = |name: &str| -> NodeId { name.parse().expect("an ID") };
        assert_eq!(roster.why_not(now, &id("n9"), false), None, "nothing is known yet");
        let mut snapshot = Snapshot { taken: now, ..Snapshot::default() };
        for (name, manager) in [("m1", true), ("w1", false)] {
            let mut node = node(name);
            node.manager = manager;
            snapshot.nodes.insert(node.id.clone(), node);
        }
        roster.update(&snapshot);
        let refused = |name, as_manager| roster.why_not(now, &id(name), as_manager).is_some();
        assert!(refused("n9", false) && refused("w1", true));
        assert!(!refused("w1", false) && !refused("m1", true) && !refused("m1", false));
        assert_eq!(roster.why_not(now + Duration::from_secs(6), &id("n9"), false), None, "that is too old");
    }
}
