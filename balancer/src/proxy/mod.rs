//! What moves bytes: workers, one per core, each with its own runtime, listeners, connections and ledger.
//!
//! Not one multi-threaded runtime: with nothing shared but snapshots and atomics no request ever waits for another
//! core, and nothing in a request's path needs to be `Send`. The kernel spreads connections (`SO_REUSEPORT`).

pub mod accept;
pub mod answer;
pub mod authority;
pub mod body;
pub mod exchange;
pub mod fast;
pub mod framing;
pub mod headers;
pub mod io;
pub mod progress;
pub mod retry;
pub mod seats;
pub mod serve;
pub mod streams;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod worker;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use arc_swap::ArcSwap;
use swarmguard_common::{time::Time, wire::routes::BalancerStats};
use tokio::sync::watch;

use crate::{memory::Memory, routing::Table, settings::Settings, stats::Stats};
use seats::Addresses;

/// Said with 503 where no replica could be connected to, so that nothing was sent.
const UNREACHABLE: &str = "no replica of the service can be reached";
/// Said with 502 and 504.
const NO_ANSWER: &str = "the service did not answer";
/// Said with 503 where clients hold all the memory there is for them.
const NO_MEMORY: &str = "the balancer has no memory left for more requests";

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
    /// Pays for what clients make the balancer keep.
    pub memory: Arc<Memory>,
    /// Connections of each client address.
    pub addresses: Arc<Addresses>,
    /// Whether a coordinator has sent routes within the last seconds.
    pub routed: AtomicBool,
    /// When it was started.
    pub started: Time,
    /// What coordinators are told, renewed once a second.
    pub figures: watch::Sender<Arc<BalancerStats>>,
}

impl Global {
    /// Whether requests may be sent here: it knows a service, or a coordinator, and is not about to stop.
    pub fn ready(&self) -> bool {
        let knows = self.routed.load(Relaxed) || !self.table.load().services.is_empty();
        knows && !*self.closing.borrow()
    }
}
