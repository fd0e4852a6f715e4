//! What moves bytes: workers, one per core, each with its own runtime, listeners, connections and ledger.
//!
//! Not one multi-threaded runtime: with nothing shared but snapshots and atomics no request ever waits for another
//! core, and nothing in a request's path needs to be `Send`. The kernel spreads connections (`SO_REUSEPORT`).

pub mod answer;
pub mod body;
pub mod exchange;
pub mod fast;
pub mod headers;
pub mod io;
pub mod serve;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod worker;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::{routing::Table, settings::Settings, stats::Stats};

/// Said with 503 where no replica could be connected to, so that nothing was sent.
const UNREACHABLE: &str = "no replica of the service can be reached";
/// Said with 502 and 504.
const NO_ANSWER: &str = "the service did not answer";

/// What all workers read.
#[derive(Debug)]
pub struct Global {
    /// As given.
    pub settings: Settings,
    /// Services and replicas now.
    pub table: Arc<ArcSwap<Table>>,
    /// Counters.
    pub stats: Arc<Stats>,
    /// TLS settings now, where TLS is served.
    pub tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
    /// True once the balancer was told to stop.
    pub closing: watch::Receiver<bool>,
}
