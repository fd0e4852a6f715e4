//! The operator's API on port 7480: what the coordinator sees and why it acts, and commands for those who may give them.
//!
//! Reads are answered by every coordinator from its own full view. Commands are taken only by the one that acts; the
//! others say which one that is. How it travels is in docs/decisions/0007-api-transport.md.

mod access;
mod commands;
mod events;
pub mod forward;
mod overview;
mod problem;
mod read;
pub mod server;
pub mod socket;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    routing::{get, post},
};
use clap::ValueEnum;
use tokio::sync::Semaphore;

use crate::{crowd::Crowd, glance::Glance, journal::Journal, metrics::Metrics, quiet::Quiet, run::Handle};
pub use access::Access;
pub use forward::Forward;
use problem::Problem;

/// Largest request body, in bytes.
const MAX_BODY_BYTES: usize = 16 * 1024;
/// Longest that the loop may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Event streams at once.
const MAX_STREAMS: usize = 64;
/// Of those, from one address other than this machine's own.
const MAX_STREAMS_PER_ADDRESS: usize = 8;
/// Port where nothing else is said.
const PORT: u16 = 7480;

/// What plain HTTP, without TLS, may be used for. TLS may always be used for everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Plain {
    /// Reading; commands only from this machine's own loopback.
    #[default]
    Reads,
    /// Everything: for networks where nobody listens.
    All,
    /// Nothing, but for loopback.
    None,
}

/// How a request came.
#[derive(Clone, Debug)]
pub struct Via {
    /// From where.
    pub peer: SocketAddr,
    /// Over TLS.
    pub tls: bool,
    /// Name in the operator certificate that was presented, if one was.
    pub operator: Option<String>,
    /// Node ID in the manager's certificate that was presented, if one was: another coordinator.
    pub manager: Option<String>,
}

/// What the API is made of; cheap to clone.
#[derive(Clone, Debug)]
pub struct Api(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    handle: Handle,
    journal: Journal,
    metrics: Arc<Metrics>,
    access: Access,
    glance: Arc<Glance>,
    forward: Option<Forward>,
    streams: Arc<Semaphore>,
    listeners: Arc<Crowd>,
    made: overview::Made,
    quiet: Quiet<access::Reason>,
}

impl Api {
    /// Without a way to others, commands are only taken where they are to be carried out.
    pub fn new(
        handle: Handle,
        journal: Journal,
        metrics: Arc<Metrics>,
        access: Access,
        glance: Arc<Glance>,
        forward: Option<Forward>,
    ) -> Self {
        Self(Arc::new(Inner {
            handle,
            journal,
            metrics,
            access,
            glance,
            forward,
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            listeners: Crowd::new(MAX_STREAMS_PER_ADDRESS),
            made: overview::Made::default(),
            quiet: Quiet::default(),
        }))
    }

    /// Asks the loop, but not for ever.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&swarmguard_core::brain::Brain, &crate::run::Facts) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        match tokio::time::timeout(PATIENCE, self.0.handle.ask(question)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(busy)) => Err(Problem::busy(busy)),
            Err(_) => Err(Problem::busy(crate::run::Busy)),
        }
    }
}

/// All routes. A request must carry a [`Via`] extension; without one it counts as plain and from afar.
pub fn router(api: Api) -> Router {
    let reads = Router::new()
        .route("/nodes", get(read::nodes))
        .route("/containers", get(read::containers))
        .route("/services", get(read::services))
        .route("/leases", get(read::leases))
        .route("/alerts", get(read::alerts))
        .route("/actions", get(read::actions))
        .route("/decisions", get(read::decisions))
        .route("/history", get(read::history))
        .route("/journal", get(read::journal))
        .route("/explain", get(read::explain))
        .route("/status", get(read::status))
        .route("/overview", get(overview::overview))
        .route("/placement", get(overview::placement))
        .route("/health", get(overview::health))
        .route("/series", get(overview::series))
        .route("/targets", get(overview::targets))
        .route("/events", get(events::stream))
        .route("/commands/{command}", post(commands::command));
    Router::new()
        .nest("/api/v1", reads)
        .route("/metrics", get(read::metrics))
        .route("/healthz", get(read::healthz))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(api.clone(), access::guard))
        .with_state(api)
}
