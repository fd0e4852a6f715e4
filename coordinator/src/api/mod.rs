//! The operator's API on port 7480: what the coordinator sees and why it acts, and commands for those who may give them.
//!
//! Reads are answered by every coordinator from its own full view. Commands are taken only by the one that acts; the
//! others say which one that is. How it travels is in docs/decisions/0007-api-transport.md.

mod access;
mod commands;
mod events;
pub mod forward;
mod notify;
#[cfg(test)]
mod openapi_tests;
mod overview;
mod page;
mod problem;
mod read;
pub mod server;
pub mod socket;
#[cfg(test)]
mod tests;
mod traefik;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    routing::{MethodRouter, get, post},
};
use clap::ValueEnum;
use swarmguard_runtime::crowd::Crowd;
use tokio::sync::Semaphore;

use crate::{glance::Glance, journal::Journal, metrics::Metrics, quiet::Quiet, run::Handle};
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

type Route = (&'static str, fn() -> MethodRouter<Api>);

/// Everything below `/api/v1` and beside it that is not the page: a list, so that a test holds the API's description
/// (`openapi.json`) against it.
const ROUTES: [Route; 26] = [
    ("/api/v1/nodes", || get(read::nodes)),
    ("/api/v1/containers", || get(read::containers)),
    ("/api/v1/services", || get(read::services)),
    ("/api/v1/leases", || get(read::leases)),
    ("/api/v1/alerts", || get(read::alerts)),
    ("/api/v1/actions", || get(read::actions)),
    ("/api/v1/decisions", || get(read::decisions)),
    ("/api/v1/history", || get(read::history)),
    ("/api/v1/journal", || get(read::journal)),
    ("/api/v1/explain", || get(read::explain)),
    ("/api/v1/status", || get(read::status)),
    ("/api/v1/overview", || get(overview::overview)),
    ("/api/v1/placement", || get(overview::placement)),
    ("/api/v1/health", || get(overview::health)),
    ("/api/v1/series", || get(overview::series)),
    ("/api/v1/targets", || get(overview::targets)),
    ("/api/v1/balancers", || get(overview::balancers)),
    ("/api/v1/traefik", || get(traefik::configuration)),
    ("/api/v1/notify", || get(notify::list)),
    ("/api/v1/events", || get(events::stream)),
    ("/api/v1/openapi.json", || get(read::openapi)),
    ("/api/v1/commands/notify-check", || post(notify::check)),
    ("/api/v1/commands/notify-test", || post(notify::test)),
    ("/api/v1/commands/{command}", || post(commands::command)),
    ("/metrics", || get(read::metrics)),
    ("/healthz", || get(read::healthz)),
];

/// All routes. A request must carry a [`Via`] extension; without one it counts as plain and from afar.
pub fn router(api: Api) -> Router {
    let mut router = page::routes();
    for (path, route) in ROUTES {
        router = router.route(path, route());
    }
    router
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(api.clone(), access::guard))
        .with_state(api)
}
