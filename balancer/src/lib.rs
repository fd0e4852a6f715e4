//! An HTTP balancer for Swarm services that knows how loaded every replica is and lets none be stopped with requests
//! in flight.
//!
//! Pure parts: [`pick`] (the algorithms), [`breaker`], [`rate`], [`routing`] (host and path to service). Shared state
//! ([`replica`], [`service`]) is atomics behind one snapshot that [`registry`] publishes; workers never lock. The
//! sources of replicas are in [`source`], what moves bytes is in [`proxy`].

pub mod admin;
pub mod breaker;
pub mod choose;
pub mod client_rate;
pub mod drain;
pub mod figures;
pub mod health;
pub mod histogram;
pub mod hostile;
pub mod lease;
pub mod memory;
pub mod others;
pub mod pick;
pub mod proxy;
pub mod rate;
pub mod registry;
pub mod replica;
pub mod routing;
pub mod run;
pub mod scrape;
pub mod service;
pub mod settings;
pub mod source;
pub mod stall;
pub mod stats;
pub mod sticky;
