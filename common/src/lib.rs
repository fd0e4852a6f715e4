//! What the parts of SwarmGuard share and what does no IO: kernel PODs, wire messages, domain words, labels, time.
//!
//! Whatever needs a clock, a socket or a file is in `swarmguard-runtime`. Without the `std` feature only [`kernel`] is
//! left, which the BPF programs share with the agent.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod kernel;

#[cfg(feature = "std")]
pub mod api;
#[cfg(feature = "std")]
pub mod domain;
#[cfg(feature = "std")]
pub mod journal;
#[cfg(feature = "std")]
pub mod labels;
#[cfg(feature = "std")]
pub mod time;
#[cfg(feature = "std")]
pub mod wire;
