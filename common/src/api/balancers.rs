//! What the balancers say of the replicas they send requests to.

use serde::{Deserialize, Serialize};

use crate::{
    domain::{ServiceId, TaskId},
    labels::Algorithm,
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
    /// Age of its figures; `None` where it never sent any.
    pub stats_age_ms: Option<u64>,
    /// What it balances, by name.
    pub services: Vec<BalancedService>,
}

/// A service as one balancer sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BalancedService {
    /// Swarm's ID.
    pub service: ServiceId,
    /// Swarm's name.
    pub name: String,
    /// How replicas are picked, as the service's labels say; the balancer's default where `None`.
    pub algorithm: Option<Algorithm>,
    /// Requests a second, by its last two figures.
    pub requests_per_s: Option<f64>,
    /// Failed of them.
    pub failures_per_s: Option<f64>,
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
    /// Latency as the balancer sees it, smoothed.
    pub latency_ms: Option<f64>,
    /// Its share of the service's requests, where 100 is the mean of the replicas.
    pub share_of_mean_percent: Option<f64>,
    /// Failed requests in all.
    pub failures: u64,
}
