//! The coordinator's judgement: what the cluster looks like, what is to be done, and each step of doing it.
//!
//! Nothing here does IO, reads a clock or can fail: inputs and the time go in, commands, journal entries and the next
//! deadline come out ([`brain::Brain`]). The manifest has no async runtime and no client, so the compiler keeps it so,
//! and a simulation can run it a million times.

pub mod acting;
pub mod action;
pub mod agents;
pub mod brain;
pub mod command;
pub mod explain;
pub mod hostile;
pub mod lease;
pub mod policy;
pub mod rule;
pub mod swarm;
pub mod view;
