//! The gym: the real judgement (`swarmguard-core`, by its only door) and the real agent's state in a closed loop with a model
//! of Swarm and a model of workloads; and other projects' rules in the same loop.
//!
//! ```text
//! scenario (TOML) -> machines (arrivals, queues, CPUs, memory) -> agents -> brain -> Swarm model -> machines …
//!                                                               -> score, plot
//! ```
//!
//! No IO and no clock but in the program that plays it; all chance comes from one seed.

mod agents;
pub mod controller;
pub mod machines;
pub mod number;
pub mod peers;
pub mod plot;
pub mod record;
pub mod scenario;
pub mod score;
mod swarmguard;
mod world;

pub use swarmguard_common::time::Time;
pub use world::{Policy, Run, play};
