//! What happens end to end on a real Swarm: the demo, and the scenarios of the Swarm tier.

pub mod balance;
pub mod demo;
pub mod gossip;
pub mod heat;
pub mod migrate;
pub mod model;
pub mod report;
pub mod service;
pub mod stage;
pub mod swarm;
pub mod trial;
