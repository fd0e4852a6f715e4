//! What balancers and coordinators say to each other: where the replicas are, how loaded, and which one goes next.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    domain::{BasisPoints, ServiceId, TaskId},
    labels::RouteLabels,
};

/// Reliable, balancer to coordinator. The first message is [`ToRouteSource::Hello`].
#[derive(Clone, Serialize, Deserialize)]
pub enum ToRouteSource {
    /// Who speaks, proven by the read-only token from the Docker secret.
    Hello {
        /// The token, compared in constant time and never logged.
        token: String,
        /// A name for logs, at most 255 bytes.
        name: String,
    },
    /// No request is in flight at these replicas any more, and none will be sent.
    Drained {
        /// Which.
        tasks: Vec<TaskId>,
    },
}

/// Reliable, coordinator to balancer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromRouteSource {
    /// Replaces everything that came before. Sent at once after a change, and at least once a second with loads.
    Routes(Routes),
    /// These replicas are about to be stopped: send nothing new, finish what is in flight, answer
    /// [`ToRouteSource::Drained`].
    Drain {
        /// Which.
        tasks: Vec<TaskId>,
    },
    /// The removal was given up: the replicas may take requests again.
    Resume {
        /// Which.
        tasks: Vec<TaskId>,
    },
}

/// All balanced services at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Routes {
    /// Counts up within one coordinator's life.
    pub revision: u64,
    /// How old the reading of Swarm was when this was written, in milliseconds.
    pub age_ms: u32,
    /// The coordinator acts: what it says of replicas that go is first-hand.
    pub acting: bool,
    /// Services that carry `swarmguard.lb.port`.
    pub services: BTreeMap<ServiceId, RoutedService>,
}

/// A service to be balanced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoutedService {
    /// Swarm's name of the service.
    pub name: String,
    /// Its `swarmguard.lb.*` labels, checked.
    pub labels: RouteLabels,
    /// Replicas that run, in task order.
    pub replicas: Vec<RoutedReplica>,
}

/// One running replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoutedReplica {
    /// Swarm's task.
    pub task: TaskId,
    /// Host name of its node, for people and metrics.
    pub node: String,
    /// Its addresses on the networks it is attached to; the balancer uses the first one that it shares a subnet with.
    pub addresses: Vec<IpAddr>,
    /// Running, and healthy where it has a healthcheck.
    pub ready: bool,
    /// About to be stopped.
    pub draining: bool,
    /// Load as last reported, `None` when unknown or older than its lease.
    pub load: Option<ReplicaLoad>,
}

/// What the algorithms `metrics`, `hybrid` and `hcl` need besides what the balancer sees itself.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaLoad {
    /// CPU utilisation.
    pub cpu: BasisPoints,
    /// Memory utilisation.
    pub memory: BasisPoints,
    /// Network utilisation.
    pub network: BasisPoints,
    /// PSI `some` of cpu.
    pub psi_cpu: BasisPoints,
    /// Requests in flight at its sockets, whoever sent them, where its kernel counts them.
    pub in_flight: Option<u32>,
    /// Median time from a request to its answer as seen there, in microseconds.
    pub latency_us: Option<u32>,
    /// How old the figures were when this was written.
    pub age_ms: u32,
}
