//! What the programs share and what does IO: the clock, frames over streams, QUIC transport, identity, settings, logging,
//! figures and a small HTTP server. The judgement must never depend on it (`cargo xtask lint` checks that).

pub mod clock;
pub mod config;
pub mod exposition;
pub mod frame;
pub mod http;
pub mod identity;
pub mod logging;
pub mod process;
pub mod transport;
