//! The operator's API on port 7480: what the coordinator sees and why it acts, and commands for those who may give them.
//!
//! Reads are answered by every coordinator from its own full view. Commands are taken only by the one that acts; the
//! others say which one that is. How it travels is in docs/decisions/0007-api-transport.md.

mod access;
mod commands;
mod events;
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

use crate::{ingest::token::Token, journal::Journal, metrics::Metrics, run::Handle};
use problem::Problem;

/// Largest request body, in bytes.
const MAX_BODY_BYTES: usize = 16 * 1024;
/// Longest that the loop may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Event streams at once.
const MAX_STREAMS: usize = 64;

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
}

/// What the API is made of; cheap to clone.
#[derive(Clone, Debug)]
pub struct Api(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    handle: Handle,
    journal: Journal,
    metrics: Arc<Metrics>,
    token: Option<Token>,
    plain: Plain,
    streams: Arc<Semaphore>,
}

impl Api {
    /// Without a token, commands need an operator's certificate.
    pub fn new(
        handle: Handle,
        journal: Journal,
        metrics: Arc<Metrics>,
        token: Option<Token>,
        plain: Plain,
    ) -> Self {
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        Self(Arc::new(Inner { handle, journal, metrics, token, plain, streams }))
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
        .route("/events", get(events::stream))
        .route("/commands/{command}", post(commands::command));
    Router::new()
        .nest("/api/v1", reads)
        .route("/metrics", get(read::metrics))
        .route("/healthz", get(read::healthz))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(api.clone(), access::transport))
        .with_state(api)
}
