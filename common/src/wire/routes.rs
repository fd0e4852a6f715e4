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
    /// How the balancer and its replicas do, about once a second.
    Stats(BalancerStats),
}

/// Most services in [`BalancerStats`].
pub const MAX_STATS_SERVICES: usize = 512;
/// Most replicas in [`BalancerStats`], over all services: with the longest names it stays within a frame.
pub const MAX_STATS_REPLICAS: usize = 2_048;

/// What one balancer has counted. Counters begin at 0 with the balancer and never go down while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalancerStats {
    /// Milliseconds since the balancer started; where it goes down the counters began anew.
    pub uptime_ms: u64,
    /// It knows a service, or a coordinator, and is not about to stop.
    pub ready: bool,
    /// Client connections now.
    pub connections: u32,
    /// Services, in order of their names; at most [`MAX_STATS_SERVICES`].
    pub services: Vec<ServiceStats>,
}

/// One service as a balancer sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStats {
    /// Swarm's name of it.
    pub name: String,
    /// Requests for it.
    pub requests: u64,
    /// Of those, answered by the balancer itself with an error, for want of room or replicas or over a rate.
    pub refused: u64,
    /// Requests sent again to another replica.
    pub retries: u64,
    /// Requests that wait for room at a replica now.
    pub waiting: u32,
    /// Its replicas, those that are about to be stopped included.
    pub replicas: Vec<ReplicaStats>,
}

/// One replica as a balancer sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStats {
    /// Swarm's task, or one made from the address where Swarm's DNS is all there is.
    pub task: TaskId,
    /// Whether it may be picked, and if not, why.
    pub state: ReplicaState,
    /// Requests sent there.
    pub requests: u64,
    /// Of those: no connection, no answer in time, a broken one, or a status of 500 and above.
    pub failures: u64,
    /// Requests of this balancer in flight there now.
    pub in_flight: u32,
    /// Half of the answers since the last message took no longer to their first byte, in microseconds; `None` without any.
    pub p50_us: Option<u32>,
    /// 99 of 100, likewise.
    pub p99_us: Option<u32>,
}

/// Whether a balancer picks a replica. The worst that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// It is picked.
    Serving,
    /// Swarm says that it does not run, or is not healthy.
    Unready,
    /// The balancer's own health check failed, or was not made yet of one that is new.
    Sick,
    /// Its circuit breaker is open.
    Ejected,
    /// It is about to be stopped.
    Draining,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::{decode, encode};

    #[test]
    fn golden_bytes_of_a_balancers_figures() {
        let replica = ReplicaStats {
            task: "t1".parse().expect("an ID"),
            state: ReplicaState::Ejected,
            requests: 300,
            failures: 5,
            in_flight: 2,
            p50_us: Some(900),
            p99_us: None,
        };
        let web = ServiceStats {
            name: "web".into(),
            requests: 301,
            refused: 1,
            retries: 4,
            waiting: 0,
            replicas: vec![replica],
        };
        let stats = BalancerStats { uptime_ms: 70_000, ready: true, connections: 9, services: vec![web] };
        let message = ToRouteSource::Stats(stats);
        let golden = [
            2, 252, 112, 17, 1, 0, 1, 9, 1, 3, b'w', b'e', b'b', 251, 45, 1, 1, 4, 0, 1, 2, b't', b'1', 3,
            251, 44, 1, 5, 2, 1, 251, 132, 3, 0,
        ];
        assert_eq!(encode(&message).expect("small"), golden, "the wire format changed");
        let ToRouteSource::Stats(back) = decode::<ToRouteSource>(&golden).expect("golden") else {
            panic!("another message");
        };
        let ToRouteSource::Stats(stats) = message else { panic!("another message") };
        assert_eq!(back, stats);
    }
}
