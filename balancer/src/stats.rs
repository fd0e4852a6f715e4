//! What is counted, and the proposal's JSON of it; for Prometheus it is written in `scrape`.
//!
//! Each worker has counters of its own, on cache lines of its own; they are added up when somebody asks.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use serde_json::json;
use swarmguard_common::time::Time;

use crate::routing::Table;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counters of one worker.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct WorkerStats {
            $($(#[$doc])* pub $name: AtomicU64,)+
        }

        /// The sum over all workers.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Totals {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Totals {
            fn add(&mut self, one: &WorkerStats) {
                $(self.$name = self.$name.wrapping_add(one.$name.load(Relaxed));)+
            }
        }
    };
}

counters! {
    /// Requests taken in.
    requests,
    /// Of those, by the fast path for plain HTTP/1.1 requests.
    requests_fast,
    /// Picks made.
    picks,
    /// Picks timed: one in sixteen.
    picks_timed,
    /// Time that those took, in nanoseconds.
    picks_timed_ns,
    /// Picks of a replica with fresh figures.
    picks_fresh,
    /// Picks by a simpler algorithm for want of figures.
    picks_fallback,
    /// Picks in turn, so that every replica is tried.
    picks_exploration,
    /// Picks by cookie.
    picks_sticky,
    /// Requests sent again to another replica.
    retries,
    /// Requests sent again over a new connection, because a kept one had been closed.
    stale_connections,
    /// Connections made to replicas.
    connects,
    /// Requests to replicas that failed.
    upstream_failures,
    /// Breakers that opened.
    ejections,
    /// Leases that expired before their request ended.
    leases_expired,
    /// Answered 404 by the balancer: no service for that host and path.
    refused_no_route,
    /// Answered 503: no replica.
    refused_no_replica,
    /// Answered 503: no room at any replica in time.
    refused_full,
    /// Answered 429: over the service's rate.
    refused_rate,
    /// Answered 429: over the rate of one client address.
    refused_client_rate,
    /// Answered 400, 405, 413 or 431 by the balancer.
    refused_malformed,
    /// Answered 408: the client did not send its body in time.
    refused_client_timeout,
    /// Answered 503, or closed: no memory for one more request or connection.
    refused_memory,
    /// Connections closed at once: too many of that address.
    refused_address,
    /// Answered 503: no replica could be connected to.
    failed_unreachable,
    /// Answered 502: the replica's connection broke.
    failed_broken,
    /// Answered 502: the replica's answer makes no sense.
    failed_unreadable,
    /// Answered 502: the head of the replica's answer is too large.
    failed_too_large,
    /// Answered 504: no answer in time.
    failed_timeout,
    /// Answers cut short for want of memory, because the client does not read.
    shed,
    /// HTTP/2 answers given up, because the client does not read.
    unread,
    /// Requests ended because their client stood still and another one needed the place.
    cut_for_room,
    /// Idle connections closed to make room for others.
    evicted,
    /// Client connections accepted.
    connections,
    /// Client connections closed.
    connections_closed,
    /// TLS handshakes that failed.
    tls_failures,
    /// Upgraded connections (WebSocket and others).
    upgrades,
    /// Those that have ended.
    upgrades_closed,
}

/// Adds one.
pub fn bump(counter: &AtomicU64) {
    // Only the owning worker writes, so no locked instruction is needed.
    counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
}

/// All workers' counters, and the rate that the control task derives from them.
#[derive(Debug)]
pub struct Stats {
    workers: Vec<Arc<WorkerStats>>,
    /// Requests in the last second, as an `f64`'s bits.
    per_second: AtomicU64,
    last: std::sync::Mutex<(Time, u64)>,
}

impl Stats {
    /// For `workers` workers.
    pub fn new(workers: usize, now: Time) -> Self {
        Self {
            workers: (0..workers).map(|_| Arc::default()).collect(),
            per_second: AtomicU64::new(0),
            last: std::sync::Mutex::new((now, 0)),
        }
    }

    /// The counters of each worker.
    pub fn workers(&self) -> &[Arc<WorkerStats>] {
        &self.workers
    }

    /// The sum over all workers.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.workers.iter().for_each(|worker| totals.add(worker));
        totals
    }

    /// To be called about once a second.
    pub fn tick(&self, now: Time) {
        let requests = self.totals().requests;
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let seconds = now.since(last.0).as_secs_f64();
        if seconds > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "requests in a second")]
            let rate = requests.wrapping_sub(last.1) as f64 / seconds;
            self.per_second.store(rate.to_bits(), Relaxed);
            *last = (now, requests);
        }
    }

    /// Requests in the last second.
    pub fn per_second(&self) -> f64 {
        f64::from_bits(self.per_second.load(Relaxed))
    }

    /// The JSON that was proposed, and each replica's state beside it.
    pub fn json(&self, table: &Table) -> String {
        let totals = self.totals();
        let mut decisions = serde_json::Map::new();
        for replica in table.services.iter().flat_map(|service| &service.replicas) {
            let picks = replica.picks.load(Relaxed);
            let sum = decisions.get(&replica.node).and_then(serde_json::Value::as_u64).unwrap_or(0) + picks;
            decisions.insert(replica.node.clone(), sum.into());
        }
        let replicas = table.services.iter().flat_map(|service| {
            service.replicas.iter().map(|replica| {
                json!({
                    "service": service.name, "task": replica.task.as_str(), "node": replica.node,
                    "address": replica.address.to_string(), "ready": replica.ready(),
                    "draining": replica.draining(), "sick": replica.sick(), "in_flight": replica.in_flight(),
                    "requests": replica.requests.load(Relaxed), "failures": replica.failures.load(Relaxed),
                })
            })
        });
        let document = json!({
            "total_requests": totals.requests,
            "requests_per_second": round(self.per_second(), 10.0),
            "routing_decisions": decisions,
            "avg_routing_time_ms": round(ratio(totals.picks_timed_ns, totals.picks_timed) / 1e6, 1e6),
            "cache_hit_rate": round(ratio(totals.picks_fresh, totals.picks), 1e4),
            "replicas": replicas.collect::<Vec<_>>(),
        });
        document.to_string()
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown to a few digits")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn round(value: f64, scale: f64) -> f64 {
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Time = Time::from_millis(1_000);

    #[test]
    fn the_proposed_json_has_its_fields() {
        let stats = Stats::new(2, NOW);
        for worker in stats.workers() {
            (0..10).for_each(|_| bump(&worker.requests));
        }
        stats.tick(NOW + Duration::from_secs(2));
        let text = stats.json(&Table::default());
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["total_requests"], 20);
        assert_eq!(value["requests_per_second"], 10.0);
        for field in ["routing_decisions", "avg_routing_time_ms", "cache_hit_rate"] {
            assert!(value.get(field).is_some(), "{field}");
        }
    }
}
