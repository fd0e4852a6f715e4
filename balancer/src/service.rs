//! A balanced service as workers see it: what its labels say, its replicas, and what all workers share of it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

use swarmguard_common::labels::{Algorithm, RouteLabels};
use tokio::sync::Notify;

use crate::{
    client_rate::ClientRate,
    histogram::Histogram,
    rate::{Limit, RetryBudget},
    replica::Replica,
    stall::Stalls,
};

/// One reading of a service; a new one is made whenever its labels or replicas change.
#[derive(Debug)]
pub struct Service {
    /// Swarm's name of it.
    pub name: String,
    /// What its labels say.
    pub labels: RouteLabels,
    /// The label's algorithm, or the balancer's own default.
    pub algorithm: Algorithm,
    /// Name of the cookie that keeps a client at its replica.
    pub cookie: String,
    /// Replicas, in the order in which round-robin takes them.
    pub replicas: Vec<Arc<Replica>>,
    /// Its rate limit, where it has one.
    pub limit: Option<Arc<Limit>>,
    /// The same for each client address.
    pub clients: Option<Arc<ClientRate>>,
    /// What outlives this reading.
    pub shared: Arc<Shared>,
}

impl Service {
    /// Whether it has a rate of any kind.
    pub fn is_rated(&self) -> bool {
        self.limit.is_some() || self.clients.is_some()
    }
}

/// Counters and queues of a service, the same from one reading to the next.
#[derive(Debug, Default)]
pub struct Shared {
    /// Counts picks: whose turn it is.
    pub turn: AtomicU64,
    /// How many retries are left.
    pub budget: RetryBudget,
    /// Requests that wait for room at a replica.
    waiting: AtomicU32,
    room: Notify,
    /// Requests whose client stands still.
    pub stalls: Arc<Stalls>,
    /// Requests of this service.
    pub requests: AtomicU64,
    /// Requests answered by the balancer itself with an error.
    pub refused: AtomicU64,
    /// Retries made.
    pub retries: AtomicU64,
    /// Time to the first byte of answers.
    pub first_byte: Histogram,
    /// Answers by class of status: 1xx to 5xx.
    responses: [AtomicU64; 5],
}

impl Shared {
    /// A lease was returned: whoever waits longest may try.
    pub fn freed(&self) {
        if self.waiting.load(SeqCst) > 0 {
            self.room.notify_one();
        }
    }

    /// Counts an answer of this status.
    pub fn answered(&self, status: u16) {
        let class = usize::from((status / 100).clamp(1, 5)) - 1;
        self.responses[class].fetch_add(1, Relaxed);
    }

    /// Answers by class of status: 1xx to 5xx.
    pub fn responses(&self) -> [u64; 5] {
        [0, 1, 2, 3, 4].map(|class| self.responses[class].load(Relaxed))
    }

    /// Requests that wait for room now.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    /// Takes a place in the queue; `None` where it has `most` already.
    pub fn queue(self: &Arc<Self>, most: u32) -> Option<Waiter> {
        let room = |waiting: u32| (waiting < most).then_some(waiting + 1);
        self.waiting.fetch_update(SeqCst, SeqCst, room).ok()?;
        Some(Waiter { shared: Arc::clone(self) })
    }
}

/// A place in a service's queue; dropping it leaves the queue.
#[derive(Debug)]
pub struct Waiter {
    shared: Arc<Shared>,
}

impl Waiter {
    /// Waits until a lease was returned since the last wait; first come, first served.
    pub async fn room(&self) {
        self.shared.room.notified().await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, SeqCst);
    }
}

/// The cookie's name: tells services apart without saying what they are called.
pub fn cookie_name(service: &str) -> String {
    let mut hasher = DefaultHasher::new();
    service.hash(&mut hasher);
    format!("sg_{:08x}", hasher.finish() >> 32)
}
