//! Balancing at `connect()`, the pure part: what coordinators say → which routes hold → what the maps are to contain.
//!
//! No IO and no clock: [`crate::bpf`] carries plans out, the sampler's tick says when.

mod heard;
mod plan;

pub use heard::Heard;
pub use plan::{Plan, Planner};

/// How it goes, for `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Pairs of network set and virtual address that are balanced.
    pub frontends: u64,
    /// Containers whose connections are looked at.
    pub containers: u64,
    /// Connections sent to a replica since the start.
    pub directed: u64,
    /// Connections left to Swarm because the kernel had no memory.
    pub refused: u64,
    /// Connections open now.
    pub open: u64,
    /// Addresses and replicas left to Swarm because there is no room for them.
    pub left_out: u64,
    /// Addresses left to Swarm because a container has them in two networks.
    pub ambiguous: u64,
}
