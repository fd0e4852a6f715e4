//! Connections to replicas: kept while unused, one pool for each replica and worker; HTTP/2 shares one.

use std::{cell::RefCell, collections::HashMap, io, net::SocketAddr, time::Duration};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use swarmguard_common::time::Time;
use tokio::net::TcpStream;

use super::{body::RequestBody, io::ReplicaIo};
use crate::settings::Settings;

/// An unused connection is closed after this. Many servers close theirs after 5 s or more; that is noticed, this is
/// for those that never do.
const IDLE: Duration = Duration::from_secs(60);

/// A connection unused for longer than this may be about to be closed by the other side, and is not risked for a
/// request that cannot be sent again.
const SURELY_OPEN: Duration = Duration::from_secs(2);

/// Between two questions whether the other side is still there, once a connection has been silent for long.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// Such questions without an answer that mean that it is not.
const KEEPALIVES: u32 = 5;

/// Of an answer over HTTP/2 a replica may send so much before the client has taken it, in bytes.
const HTTP2_STREAM_BYTES: u32 = 64 * 1_024;
/// The same of all answers over one connection.
const HTTP2_CONNECTION_BYTES: u32 = 1_024 * 1_024;

/// What sends an HTTP/1.1 request.
#[derive(Debug)]
pub struct Http1 {
    /// hyper's end of the connection.
    pub sender: http1::SendRequest<RequestBody>,
    /// What it is for; see [`Use`].
    kind: Use,
    /// Not to be used again: where its last answer ended can be doubted.
    pub spent: bool,
}

/// What a connection is for, and so what silence of the other side means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Requests without a body, that may be sent again: all that is sent fits into any window, so a kernel that
    /// acknowledges nothing cannot be reached.
    Repeatable,
    /// Bodies and tunnels: a replica that reads slowly leaves bytes unacknowledged too, and is not to be cut off.
    Other,
}

impl Use {
    /// Of a request.
    pub fn of(repeatable: bool) -> Self {
        if repeatable { Self::Repeatable } else { Self::Other }
    }
}
/// What sends an HTTP/2 request.
pub type Http2 = http2::SendRequest<RequestBody>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not in time.
    #[error("no connection to {0} within {1:?}")]
    Timeout(SocketAddr, Duration),
    /// Refused, unreachable and so on.
    #[error("no connection to {0}: {1}")]
    Io(SocketAddr, std::io::Error),
    /// It does not speak HTTP.
    #[error("{0} does not speak the protocol: {1}")]
    Handshake(SocketAddr, hyper::Error),
}

/// All kept connections of one worker.
#[derive(Debug, Default)]
pub struct Pools {
    pools: RefCell<HashMap<u64, Pool>>,
}

#[derive(Debug, Default)]
struct Pool {
    /// Most recently used last; by use.
    idle: [Vec<(Http1, Time)>; 2],
    shared: Option<Http2>,
}

impl Pools {
    /// A connection that was used before, if there is one; repeatable requests may risk an older one.
    pub fn take(&self, replica: u64, kind: Use, now: Time) -> Option<Http1> {
        let mut pools = self.pools.borrow_mut();
        let idle = &mut pools.get_mut(&replica)?.idle[kind as usize];
        for at in (0..idle.len()).rev() {
            let (kept, since) = &idle[at];
            if kept.sender.is_closed() {
                idle.swap_remove(at);
            } else if kind == Use::Other && now.since(*since) > SURELY_OPEN {
                return None;
            } else if kept.sender.is_ready() {
                return Some(idle.remove(at).0);
            }
        }
        None
    }

    /// Keeps a connection for the next request, unless there are `most` already.
    pub fn give(&self, replica: u64, connection: Http1, most: usize, now: Time) {
        if connection.spent || connection.sender.is_closed() {
            return;
        }
        let mut pools = self.pools.borrow_mut();
        let idle = &mut pools.entry(replica).or_default().idle[connection.kind as usize];
        if idle.len() < most {
            idle.push((connection, now));
        }
    }

    /// The HTTP/2 connection to a replica, if it is open.
    pub fn shared(&self, replica: u64) -> Option<Http2> {
        let mut pools = self.pools.borrow_mut();
        let pool = pools.get_mut(&replica)?;
        if pool.shared.as_ref().is_some_and(Http2::is_closed) {
            pool.shared = None;
        }
        pool.shared.clone()
    }

    /// Keeps an HTTP/2 connection for all requests to come.
    pub fn share(&self, replica: u64, sender: &Http2) {
        self.pools.borrow_mut().entry(replica).or_default().shared = Some(sender.clone());
    }

    /// Closes what is too old, and everything to replicas that are not `wanted` any more.
    pub fn purge(&self, wanted: impl Fn(u64) -> bool, now: Time) {
        self.pools.borrow_mut().retain(|replica, pool| {
            for idle in &mut pool.idle {
                idle.retain(|(kept, since)| !kept.sender.is_closed() && now.since(*since) < IDLE);
            }
            wanted(*replica)
        });
    }
}

/// Connects and speaks HTTP/1.1.
///
/// # Errors
/// When there is no connection in time.
pub async fn connect(address: SocketAddr, kind: Use, settings: &Settings) -> Result<Http1, ConnectError> {
    let io = TokioIo::new(ReplicaIo::new(dial(address, kind, settings).await?));
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(settings.max_head_bytes as usize)
        .max_headers(settings.max_headers.into())
        .handshake(io)
        .await
        .map_err(|error| ConnectError::Handshake(address, error))?;
    tokio::task::spawn_local(async move {
        // Its errors reach whoever waits for an answer.
        let _: hyper::Result<()> = connection.with_upgrades().await;
    });
    Ok(Http1 { sender, kind, spent: false })
}

/// Connects and speaks HTTP/2 without TLS, as a gRPC server expects it.
///
/// # Errors
/// When there is no connection in time.
pub async fn connect_http2(address: SocketAddr, settings: &Settings) -> Result<Http2, ConnectError> {
    let io = TokioIo::new(dial(address, Use::Other, settings).await?);
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .initial_stream_window_size(HTTP2_STREAM_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_BYTES)
        .max_send_buf_size(HTTP2_STREAM_BYTES as usize)
        .max_header_list_size(settings.max_head_bytes)
        .handshake(io)
        .await
        .map_err(|error| ConnectError::Handshake(address, error))?;
    tokio::task::spawn_local(async move {
        let _: hyper::Result<()> = connection.await;
    });
    Ok(sender)
}

/// Connects, so that a replica that can no longer be reached is noticed.
///
/// # Errors
/// When there is no connection in time.
pub async fn dial(address: SocketAddr, kind: Use, settings: &Settings) -> Result<TcpStream, ConnectError> {
    let patience = settings.connect_timeout;
    let stream = tokio::time::timeout(patience, TcpStream::connect(address))
        .await
        .map_err(|_| ConnectError::Timeout(address, patience))?
        .map_err(|error| ConnectError::Io(address, error))?;
    // Fails only on a socket that is broken already, which the first write will say better.
    let _: io::Result<()> = notice_loss(&stream, kind, settings.unreachable_timeout);
    Ok(stream)
}

/// A node that loses power, and an overlay network that has not heard yet where a replica's address is, answer nothing
/// at all: without this a request waits there for the whole of its timeout. Kernels acknowledge what they receive and
/// answer keepalive's questions however busy the program is.
fn notice_loss(stream: &TcpStream, kind: Use, after: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, after.max(KEEPALIVE))?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE)?;
    if kind == Use::Repeatable {
        // Bytes without acknowledgement and questions without answer count alike (tcp(7), TCP_USER_TIMEOUT).
        return Ok(sockopt::set_tcp_user_timeout(
            stream,
            u32::try_from(after.as_millis()).unwrap_or(u32::MAX),
        )?);
    }
    Ok(sockopt::set_tcp_keepcnt(stream, KEEPALIVES)?)
}

/// Spawns on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}
