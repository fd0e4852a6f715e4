//! Connections to replicas: kept while unused, one pool for each replica and worker; HTTP/2 shares one.

use std::{cell::RefCell, collections::HashMap, net::SocketAddr, time::Duration};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use swarmguard_common::clock::Time;
use tokio::net::TcpStream;

use super::body::RequestBody;

/// An unused connection is closed after this. Many servers close theirs after 5 s or more; that is noticed, this is
/// for those that never do.
const IDLE: Duration = Duration::from_secs(60);

/// A connection unused for longer than this may be about to be closed by the other side, and is not risked for a
/// request that cannot be sent again.
const SURELY_OPEN: Duration = Duration::from_secs(2);

/// What sends an HTTP/1.1 request.
pub type Http1 = http1::SendRequest<RequestBody>;
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
    /// Most recently used last.
    idle: Vec<(Http1, Time)>,
    shared: Option<Http2>,
}

impl Pools {
    /// A connection that was used before, if there is one; `repeatable` requests may risk an older one.
    pub fn take(&self, replica: u64, repeatable: bool, now: Time) -> Option<Http1> {
        let mut pools = self.pools.borrow_mut();
        let idle = &mut pools.get_mut(&replica)?.idle;
        for at in (0..idle.len()).rev() {
            let (sender, since) = &idle[at];
            if sender.is_closed() {
                idle.swap_remove(at);
            } else if !repeatable && now.since(*since) > SURELY_OPEN {
                return None;
            } else if sender.is_ready() {
                return Some(idle.remove(at).0);
            }
        }
        None
    }

    /// Keeps a connection for the next request, unless there are `most` already.
    pub fn give(&self, replica: u64, sender: Http1, most: usize, now: Time) {
        if sender.is_closed() {
            return;
        }
        let mut pools = self.pools.borrow_mut();
        let idle = &mut pools.entry(replica).or_default().idle;
        if idle.len() < most {
            idle.push((sender, now));
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
            pool.idle.retain(|(sender, since)| !sender.is_closed() && now.since(*since) < IDLE);
            wanted(*replica)
        });
    }
}

/// Connects and speaks HTTP/1.1.
///
/// # Errors
/// When there is no connection within `patience`.
pub async fn connect(address: SocketAddr, patience: Duration) -> Result<Http1, ConnectError> {
    let io = TokioIo::new(dial(address, patience).await?);
    let (sender, connection) =
        http1::handshake(io).await.map_err(|error| ConnectError::Handshake(address, error))?;
    tokio::task::spawn_local(async move {
        // Its errors reach whoever waits for an answer.
        let _: hyper::Result<()> = connection.with_upgrades().await;
    });
    Ok(sender)
}

/// Connects and speaks HTTP/2 without TLS, as a gRPC server expects it.
///
/// # Errors
/// When there is no connection within `patience`.
pub async fn connect_http2(address: SocketAddr, patience: Duration) -> Result<Http2, ConnectError> {
    let io = TokioIo::new(dial(address, patience).await?);
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .handshake(io)
        .await
        .map_err(|error| ConnectError::Handshake(address, error))?;
    tokio::task::spawn_local(async move {
        let _: hyper::Result<()> = connection.await;
    });
    Ok(sender)
}

async fn dial(address: SocketAddr, patience: Duration) -> Result<TcpStream, ConnectError> {
    let stream = tokio::time::timeout(patience, TcpStream::connect(address))
        .await
        .map_err(|_| ConnectError::Timeout(address, patience))?
        .map_err(|error| ConnectError::Io(address, error))?;
    // Fails only on a socket that is broken already, which the first write will say better.
    let _: std::io::Result<()> = stream.set_nodelay(true);
    Ok(stream)
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
