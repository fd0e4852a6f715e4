//! QUIC endpoints, all from one place: the socket and the runtime come from the caller, so that the same code runs on a
//! real network and in simulation.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::{
    AsyncUdpSocket, Endpoint, EndpointConfig, IdleTimeout, Runtime, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};

/// Silence after which a connection counts as lost. Longer than the longest widened node lease (3 s x 4): what a lease
/// means is the coordinator's judgement, not the transport's.
const IDLE: Duration = Duration::from_secs(15);

/// Datagrams that wait to be sent, in bytes; the oldest are dropped first.
const DATAGRAM_BUFFER_BYTES: usize = 256 * 1024;

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The address is taken or not ours.
    #[error("cannot bind UDP {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        source: std::io::Error,
    },
    /// TLS settings that QUIC cannot use.
    #[error("QUIC cannot use these TLS settings: {0}")]
    Tls(String),
    /// Anything else.
    #[error("cannot make a QUIC endpoint: {0}")]
    Io(#[from] std::io::Error),
}

/// Makes an endpoint on a socket that the caller chose. `seed` makes connection IDs repeatable; give `None` outside
/// simulation.
///
/// # Errors
/// When the runtime cannot drive the socket.
pub fn endpoint(
    socket: Arc<dyn AsyncUdpSocket>,
    runtime: Arc<dyn Runtime>,
    server: Option<quinn::ServerConfig>,
    seed: Option<[u8; 32]>,
) -> Result<Endpoint, TransportError> {
    let mut config = EndpointConfig::default();
    config.rng_seed(seed);
    Ok(Endpoint::new_with_abstract_socket(config, server, socket, runtime)?)
}

/// Makes an endpoint on a UDP socket of this machine, driven by tokio.
///
/// # Errors
/// When the address cannot be bound.
pub fn bind(address: SocketAddr, server: Option<quinn::ServerConfig>) -> Result<Endpoint, TransportError> {
    let socket =
        std::net::UdpSocket::bind(address).map_err(|source| TransportError::Bind { address, source })?;
    let runtime: Arc<dyn Runtime> = Arc::new(quinn::TokioRuntime);
    let socket = runtime.wrap_udp_socket(socket)?;
    endpoint(socket, runtime, server, None)
}

/// QUIC settings for a coordinator.
///
/// # Errors
/// When the TLS settings lack what QUIC needs.
pub fn server_config(tls: rustls::ServerConfig) -> Result<quinn::ServerConfig, TransportError> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| TransportError::Tls(error.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport(None)));
    // A node keeps its address for the life of a connection; migration would only help an attacker.
    config.migration(false);
    Ok(config)
}

/// QUIC settings for an agent or a balancer.
///
/// # Errors
/// When the TLS settings lack what QUIC needs.
pub fn client_config(tls: rustls::ClientConfig) -> Result<quinn::ClientConfig, TransportError> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| TransportError::Tls(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport(Some(IDLE / 4))));
    Ok(config)
}

fn transport(keep_alive: Option<Duration>) -> TransportConfig {
    let mut config = TransportConfig::default();
    config.max_idle_timeout(IdleTimeout::try_from(IDLE).ok());
    config.keep_alive_interval(keep_alive);
    // One control stream, opened by the client; nothing else is ever opened.
    config.max_concurrent_bidi_streams(VarInt::from_u32(1));
    config.max_concurrent_uni_streams(VarInt::from_u32(0));
    config.datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES));
    config.datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES);
    config
}
