//! What the parts of SwarmGuard share: kernel PODs, wire messages, domain words, labels, identity, clock, and a small HTTP server.
//!
//! Without the `std` feature only [`kernel`] is left, which the BPF programs share with the agent.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod kernel;

#[cfg(feature = "std")]
pub mod api;
#[cfg(feature = "std")]
pub mod clock;
#[cfg(feature = "std")]
pub mod config;
#[cfg(feature = "std")]
pub mod domain;
#[cfg(feature = "std")]
pub mod http;
#[cfg(feature = "std")]
pub mod identity;
#[cfg(feature = "std")]
pub mod journal;
#[cfg(feature = "std")]
pub mod labels;
#[cfg(feature = "std")]
pub mod logging;
#[cfg(feature = "std")]
pub mod transport;
#[cfg(feature = "std")]
pub mod wire;
