//! The coordinator: hears the agents, reads and writes Swarm, keeps the journal and serves the API. What is to be done
//! is decided in `swarmguard-core`, which does no IO; here is everything that does.

pub mod api;
pub mod balancers;
pub mod bridge;
pub mod config;
pub mod connect;
pub mod errands;
pub mod glance;
pub mod ingest;
pub mod journal;
pub mod metrics;
pub mod notify;
pub mod proxies;
mod quiet;
pub mod routes;
pub mod run;
pub mod seam;
pub mod snapshots;
pub mod start;
pub mod swarm;
pub mod volume;
