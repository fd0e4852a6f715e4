//! Accepting connections, and ending without cutting one.
//!
//! Not `axum::serve` with its graceful shutdown: that closes the listener at once, which resets connections waiting in
//! its backlog, and closes idle connections at once, which races with a request already on its way. Both show as a
//! failed request at a client that sends throughout.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{debug, warn};

/// Connections at a time; more wait in the listener's backlog.
const CONNECTIONS: u32 = 4096;
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a drain may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// New connections and idle ones are served for this long after the signal.
    pub linger: Duration,
    /// After this long whatever is still in flight is cut.
    pub timeout: Duration,
}

/// Serves until `stop` completes, which must have made `draining` true, then drains. Returns how many connections had
/// to be cut at the end.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    draining: watch::Receiver<bool>,
    stop: impl Future<Output = ()>,
    limits: Limits,
) -> u32 {
    let permits = Arc::new(Semaphore::new(CONNECTIONS as usize));
    let accept = Accept { listener, app, draining, limits, permits: Arc::clone(&permits) };
    tokio::select! {
        () = accept.run() => {}
        () = stop => {}
    }
    let told = Instant::now();
    let _ = timeout_at(told + limits.linger, accept.run()).await;
    accept.empty_backlog().await;
    drop(accept);
    let _ = timeout_at(told + limits.timeout.max(limits.linger), permits.acquire_many(CONNECTIONS)).await;
    CONNECTIONS - u32::try_from(permits.available_permits()).unwrap_or(CONNECTIONS).min(CONNECTIONS)
}

struct Accept {
    listener: TcpListener,
    app: Router,
    draining: watch::Receiver<bool>,
    limits: Limits,
    permits: Arc<Semaphore>,
}

impl Accept {
    /// Never ends by itself. Dropping it between two connections loses none.
    async fn run(&self) {
        loop {
            let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => self.spawn(stream, permit),
                Err(error) => {
                    // Mostly a lack of descriptors, which passes; without the pause this would spin.
                    warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Takes what the kernel has already accepted for us.
    async fn empty_backlog(&self) {
        while let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            match timeout(Duration::from_millis(1), self.listener.accept()).await {
                Ok(Ok((stream, _))) => self.spawn(stream, permit),
                _ => return,
            }
        }
    }

    fn spawn(&self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        let _ = stream.set_nodelay(true);
        let (app, draining, linger) = (self.app.clone(), self.draining.clone(), self.limits.linger);
        tokio::spawn(async move {
            connection(stream, app, draining, linger).await;
            drop(permit);
        });
    }
}

/// Serves one connection to its end. Once draining, every answer carries `Connection: close` (set by the router);
/// a connection on which nothing was asked for the whole linger is closed then.
async fn connection(stream: TcpStream, app: Router, mut draining: watch::Receiver<bool>, linger: Duration) {
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::pin!(serving);
    let idle_ends = async move {
        // An error means that the sender is gone, so the process ends anyway.
        let _ = draining.wait_for(|draining| *draining).await;
        sleep_until(Instant::now() + linger).await;
    };
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = idle_ends => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}
