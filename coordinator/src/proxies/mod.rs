//! Beside the proxies that people already run: how much of the traffic each replica should get, and which is about to be
//! stopped. HAProxy asks over a TCP port ([`agent_check`]), Traefik over the API ([`traefik`]).
//!
//! Whoever asks counts as a balancer: before a replica is stopped it must have been told, and asked once more, so that its
//! requests have had that time to end ([`Askers`]).

pub mod agent_check;
mod askers;
pub mod traefik;
mod weights;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use swarmguard_common::{domain::TaskId, labels::RouteLabels, time::Time};
use swarmguard_core::{
    brain::Brain,
    swarm::{Service, Snapshot, TaskState},
};

pub use askers::{Askers, Kind};

/// Prefix of Traefik's labels.
const TRAEFIK: &str = "traefik.";

/// Every service that a proxy may ask about, by name, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backends {
    /// When Swarm was read, on the clock of this process.
    pub taken: Time,
    /// By name.
    pub services: BTreeMap<String, Backend>,
}

impl Backends {
    /// The service that a replica is of.
    pub fn service_of(&self, task: &TaskId) -> Option<String> {
        let of = |backend: &Backend| backend.replicas.iter().any(|replica| replica.task == *task);
        self.services.iter().find(|(_, backend)| of(backend)).map(|(name, _)| name.clone())
    }
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backend {
    /// What its labels `swarmguard.lb.*` say.
    pub route: Option<RouteLabels>,
    /// Its labels `traefik.*`, without the prefix.
    pub traefik: BTreeMap<String, String>,
    /// Replicas that run, in task order.
    pub replicas: Vec<Replica>,
}

/// A replica that runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Replica {
    /// Swarm's task.
    pub task: TaskId,
    /// Host name of its node.
    pub node: String,
    /// Address of that node.
    pub node_address: Option<IpAddr>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Running, and healthy where it has a healthcheck.
    pub ready: bool,
    /// About to be stopped.
    pub draining: bool,
    /// Of the requests, against the one that should get most: 1 to 100.
    pub weight: u8,
}

/// What proxies may ask about now; `leaving` is what is about to be stopped.
pub fn of(snapshot: &Snapshot, brain: &Brain, leaving: &BTreeSet<TaskId>, now: Time) -> Backends {
    let named = snapshot.services.values().map(|service| {
        let replicas = snapshot
            .tasks_of(&service.id)
            .filter(|task| matches!(task.state, TaskState::Starting | TaskState::Running))
            .map(|task| {
                let node = task.node.as_ref().and_then(|node| snapshot.nodes.get(node));
                let replica = Replica {
                    task: task.id.clone(),
                    node: node.map(|node| node.hostname.clone()).unwrap_or_default(),
                    node_address: node.and_then(|node| node.address),
                    addresses: task.addresses.clone(),
                    ready: task.is_serving(),
                    draining: !task.is_wanted() || leaving.contains(&task.id),
                    weight: 100,
                };
                (replica, brain.replica_load(now, &task.id))
            });
        (service.name.clone(), Backend { replicas: weights::weighted(replicas.collect()), ..labels(service) })
    });
    Backends { taken: snapshot.taken, services: named.collect() }
}

fn labels(service: &Service) -> Backend {
    let labels = service.spec.get("Labels").and_then(serde_json::Value::as_object);
    let traefik = labels.into_iter().flatten().filter_map(|(key, value)| {
        Some((key.strip_prefix(TRAEFIK)?.to_ascii_lowercase(), value.as_str()?.to_owned()))
    });
    let route = service.policy.as_ref().ok().and_then(|policy| policy.route.clone());
    Backend { route, traefik: traefik.collect(), replicas: Vec::new() }
}
