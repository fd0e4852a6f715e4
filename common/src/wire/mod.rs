//! The protocol `swarmguard/1`: messages between agents, balancers and coordinators over QUIC.
//!
//! A peer opens one bidirectional *control stream* and says hello on it; everything reliable travels there as
//! length-prefixed frames (`swarmguard_runtime::frame`). What repeats itself travels as datagrams, where the newest wins. All of it is
//! bincode 2 with limits ([`codec`]); golden-bytes tests pin the format.
//!
//! Times of day never travel, only ages: an event of `age_ms` happened that long before the message was written.

pub mod agent;
pub mod codec;
pub mod connect;
pub mod routes;

/// ALPN of the protocol; a peer with another is refused in the TLS handshake.
pub const ALPN: &[u8] = b"swarmguard/1";

/// Largest frame on the control stream, in bytes; a peer that announces a larger one is disconnected.
pub const MAX_FRAME_BYTES: usize = 256 * 1024;

/// Largest datagram sent, in bytes: fits the smallest MTU that QUIC allows (1,200) with its headers.
pub const MAX_DATAGRAM_BYTES: usize = 1_100;

/// A node lease is renewed this often, in milliseconds.
pub const HEARTBEAT_INTERVAL_MS: u64 = 250;
