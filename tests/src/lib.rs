//! What the end-to-end tests are made of: the web-stress workload, and the eyes and hands that watch a real Swarm.

pub mod api;
pub mod cluster;
pub mod e2e;
pub mod engine;
pub mod figures;
pub mod http;
pub mod kernel;
pub mod load;
pub mod played_engine;
pub mod simulation;
pub mod swarm_model;
pub mod tasks;
pub mod web_stress;
