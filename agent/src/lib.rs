//! The agent of a node: samples its containers many times a second and alerts the coordinators.
//!
//! Kernel counters → [`sources`] → [`model`] (pure) → [`conditions`] (pure) → alert edges in [`state`] → [`uplink`].
//! [`sampler`] drives the sources, [`pace`] says how often, [`discovery`] finds the containers.

pub mod bpf;
pub mod conditions;
pub mod config;
pub mod connect;
pub mod discovery;
pub mod doctor;
pub mod drill;
#[doc(hidden)]
pub mod hostile;
pub mod http;
pub mod metrics;
pub mod model;
pub mod pace;
pub mod run;
pub mod sampler;
pub mod sources;
pub mod state;
pub mod uplink;
