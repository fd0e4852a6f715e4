//! What the programs share and what does IO: the clock, frames over streams, QUIC transport, identity, settings, logging,
//! tokens, health checks, figures and a small HTTP server. The judgement must never depend on it (`cargo xtask lint` checks
//! that).

pub mod clock;
pub mod config;
pub mod crowd;
pub mod exposition;
pub mod frame;
pub mod health;
pub mod http;
pub mod identity;
pub mod logging;
pub mod privileges;
pub mod process;
pub mod token;
pub mod transport;
