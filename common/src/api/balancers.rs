//! What the balancers say of the replicas they send requests to.

use serde::{Deserialize, Serialize};

use crate::{
    domain::{ServiceId, TaskId},
    labels::Algorithm,
    wire::routes::ReplicaState,
};

/// All balancers connected to the coordinator that answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Balancers {
    /// By name.
    pub balancers: Vec<BalancerStatus>,
}

/// One balancer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BalancerStatus {
    /// As it calls itself.
    pub name: String,
    /// A connection stands.
    pub connected: bool,
    /// It knows a service and a coordinator, and is not about to stop.
    pub ready: bool,
    /// Client connections now.
    pub connections: u32,
    /// Age of its figures; `None` where it never sent any.
    pub stats_age_ms: Option<u64>,
    /// What it balances, by name.
    pub services: Vec<BalancedService>,
}

/// A service as one balancer sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BalancedService {
    /// Swarm's ID; `None` where the balancer knows it by name only.
    pub service: Option<ServiceId>,
    /// Swarm's name.
    pub name: String,
    /// How replicas are picked, as the service's labels say; the balancer's default where `None`.
    pub algorithm: Option<Algorithm>,
    /// Requests a second, by its last two figures.
    pub requests_per_s: Option<f64>,
    /// Of them, answered by the balancer itself with an error, for want of room or replicas or over a rate.
    pub refused_per_s: Option<f64>,
    /// Sent again to another replica.
    pub retries_per_s: Option<f64>,
    /// Failed at replicas.
    pub failures_per_s: Option<f64>,
    /// Requests that wait for room at a replica.
    pub waiting: u32,
    /// Its replicas.
    pub replicas: Vec<BalancedReplica>,
}

/// Whether a replica is sent requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is.
    Ok,
    /// Not ready yet.
    Starting,
    /// About to be stopped: only what is under way is finished.
    Draining,
    /// Its health check fails.
    Sick,
    /// Out for a while, after too many failures.
    Ejected,
}

impl From<ReplicaState> for Standing {
    fn from(state: ReplicaState) -> Self {
        match state {
            ReplicaState::Serving => Self::Ok,
            ReplicaState::Unready => Self::Starting,
            ReplicaState::Sick => Self::Sick,
            ReplicaState::Ejected => Self::Ejected,
            ReplicaState::Draining => Self::Draining,
        }
    }
}

/// A replica as one balancer sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BalancedReplica {
    /// Swarm's task.
    pub task: TaskId,
    /// Host name of its node.
    pub node: Option<String>,
    /// Whether it is sent requests.
    pub standing: Standing,
    /// Requests a second, by the balancer's last two figures.
    pub requests_per_s: Option<f64>,
    /// Requests under way.
    pub in_flight: u64,
    /// Half of the answers of the last second took no longer to their first byte.
    pub latency_ms: Option<f64>,
    /// 99 of 100, likewise.
    pub latency_p99_ms: Option<f64>,
    /// Its share of the service's requests, where 100 is the mean of the replicas.
    pub share_of_mean_percent: Option<f64>,
    /// Failed requests in all.
    pub failures: u64,
}
