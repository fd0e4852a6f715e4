//! Routes for balancing without a proxy: what an agent must know to send a container's `connect()` to a replica.
//!
//! A virtual address means nothing by itself: two overlay networks may use the same subnet. So every address comes
//! with the ID of its network, and the agent is told which networks each of its containers is attached to.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::domain::{ContainerId, NetworkId, NodeId, ServiceId, TaskId};

/// Routes that were not renewed for this long are forgotten, in milliseconds: Swarm's own balancing takes over.
pub const ROUTES_LEASE_MS: u64 = 5_000;

/// Most pairs of service and network that one agent is told.
pub const MAX_FRONTS: usize = 512;

/// Most replicas of one service that one agent is told.
pub const MAX_REPLICAS: usize = 64;

/// Most containers of one node whose networks are told.
pub const MAX_CONTAINERS: usize = 1_024;

/// Most networks of one container.
pub const MAX_NETWORKS: usize = 32;

/// All services with `swarmguard.lb.connect=true` that containers of one node can reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectRoutes {
    /// Counts up within one connection; what renews the routes names it.
    pub revision: u64,
    /// The sender is the coordinator that acts, and so the one that knows what it is about to stop.
    pub acting: bool,
    /// One for each service and network that has a virtual address.
    pub fronts: Vec<Front>,
    /// The networks of this node's containers, as far as there is a front on them.
    pub containers: BTreeMap<ContainerId, Vec<NetworkId>>,
}

/// A service as it is reached in one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Front {
    /// The service.
    pub service: ServiceId,
    /// The network.
    pub network: NetworkId,
    /// The service's virtual address there.
    pub address: Ipv4Addr,
    /// Its replicas there, at most [`MAX_REPLICAS`].
    pub replicas: Vec<ConnectReplica>,
}

/// One running replica in one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectReplica {
    /// Swarm's task.
    pub task: TaskId,
    /// Its address in the network.
    pub address: Ipv4Addr,
    /// Where it runs.
    pub node: NodeId,
    /// Whether it takes new connections.
    pub state: ReplicaState,
}

/// Whether a replica takes new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaState {
    /// It does.
    Usable,
    /// It is about to be stopped, or being stopped.
    Draining,
    /// Its node's lease has lapsed.
    Silent,
}
