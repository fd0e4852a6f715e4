//! What is counted, and how it is shown: the proposal's JSON and Prometheus text.
//!
//! Each worker has counters of its own, on cache lines of its own; they are added up when somebody asks.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde_json::json;
use swarmguard_common::time::Time;

use crate::routing::Table;

/// Upper bounds of the response time buckets, in microseconds.
pub const BUCKETS_US: [u64; 12] =
    [500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000, 30_000_000];

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counters of one worker.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct WorkerStats {
            $($(#[$doc])* pub $name: AtomicU64,)+
            /// Answers by time to first byte, not cumulative; the last one is everything slower.
            pub buckets: [AtomicU64; BUCKETS_US.len() + 1],
        }

        /// The sum over all workers.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Totals {
            $($(#[$doc])* pub $name: u64,)+
            /// As in [`WorkerStats`].
            pub buckets: [u64; BUCKETS_US.len() + 1],
        }

        impl Totals {
            fn add(&mut self, one: &WorkerStats) {
                $(self.$name = self.$name.wrapping_add(one.$name.load(Relaxed));)+
                for (sum, bucket) in self.buckets.iter_mut().zip(&one.buckets) {
                    *sum += bucket.load(Relaxed);
                }
            }

            fn each(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),+]
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
    /// Answered 400, 405, 413 or 431 by the balancer.
    refused_malformed,
    /// Answered 503: no replica could be connected to.
    unreachable,
    /// Answered 502: replicas failed.
    bad_gateway,
    /// Answered 504: no answer in time.
    gateway_timeout,
    /// Client connections accepted.
    connections,
    /// Client connections closed.
    connections_closed,
    /// TLS handshakes that failed.
    tls_failures,
    /// Upgraded connections (WebSocket and others).
    upgrades,
}

impl WorkerStats {
    /// Counts one answer by its time to first byte.
    pub fn answered_us(&self, micros: u64) {
        let at = BUCKETS_US.iter().position(|bound| micros <= *bound).unwrap_or(BUCKETS_US.len());
        self.buckets[at].fetch_add(1, Relaxed);
    }
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

    /// Prometheus text, version 0.0.4.
    pub fn prometheus(&self, table: &Table, now: Time) -> String {
        let totals = self.totals();
        let mut text = String::with_capacity(8_192);
        for (name, value) in totals.each() {
            family(&mut text, name, "counter");
            let _ = writeln!(text, "swarmguard_lb_{name}_total {value}");
        }
        family(&mut text, "requests_per_second", "gauge");
        let _ = writeln!(text, "swarmguard_lb_requests_per_second {}", self.per_second());
        histogram(&mut text, &totals);
        replica_families(&mut text, table, now);
        service_families(&mut text, table);
        text
    }
}

fn family(text: &mut String, name: &str, kind: &str) {
    let suffix = if kind == "counter" { "_total" } else { "" };
    let _ = writeln!(text, "# TYPE swarmguard_lb_{name}{suffix} {kind}");
}

fn histogram(text: &mut String, totals: &Totals) {
    family(text, "first_byte_seconds", "histogram");
    let mut below = 0;
    for (bound, count) in BUCKETS_US.iter().zip(totals.buckets) {
        below += count;
        #[expect(clippy::cast_precision_loss, reason = "bounds are small")]
        let bound = *bound as f64 / 1e6;
        let _ = writeln!(text, "swarmguard_lb_first_byte_seconds_bucket{{le=\"{bound}\"}} {below}");
    }
    below += totals.buckets[BUCKETS_US.len()];
    let _ = writeln!(text, "swarmguard_lb_first_byte_seconds_bucket{{le=\"+Inf\"}} {below}");
    let _ = writeln!(text, "swarmguard_lb_first_byte_seconds_count {below}");
}

fn replica_families(text: &mut String, table: &Table, now: Time) {
    type Read = fn(&crate::replica::Replica, Time) -> u64;
    let families: [(&str, &str, Read); 9] = [
        ("replica_requests", "counter", |it, _| it.requests.load(Relaxed)),
        ("replica_failures", "counter", |it, _| it.failures.load(Relaxed)),
        ("replica_picks", "counter", |it, _| it.picks.load(Relaxed)),
        ("replica_in_flight", "gauge", |it, _| it.in_flight().into()),
        ("replica_in_flight_of_others", "gauge", |it, now| it.others(now).into()),
        ("replica_ready", "gauge", |it, _| it.ready().into()),
        ("replica_draining", "gauge", |it, _| it.draining().into()),
        ("replica_sick", "gauge", |it, _| it.sick().into()),
        ("replica_ejected", "gauge", |it, now| (it.gate(now) != crate::breaker::Gate::Closed).into()),
    ];
    for (name, kind, read) in families {
        family(text, name, kind);
        let suffix = if kind == "counter" { "_total" } else { "" };
        for service in &table.services {
            for replica in &service.replicas {
                let _ = writeln!(
                    text,
                    "swarmguard_lb_{name}{suffix}{{service=\"{}\",node=\"{}\",task=\"{}\"}} {}",
                    escaped(&service.name),
                    escaped(&replica.node),
                    replica.task,
                    read(replica, now),
                );
            }
        }
    }
}

fn service_families(text: &mut String, table: &Table) {
    type Read = fn(&crate::service::Shared) -> u64;
    let families: [(&str, &str, Read); 4] = [
        ("service_requests", "counter", |it| it.requests.load(Relaxed)),
        ("service_refused", "counter", |it| it.refused.load(Relaxed)),
        ("service_retries", "counter", |it| it.retries.load(Relaxed)),
        ("service_waiting", "gauge", |it| it.waiting().into()),
    ];
    for (name, kind, read) in families {
        family(text, name, kind);
        let suffix = if kind == "counter" { "_total" } else { "" };
        for service in &table.services {
            let (name_of, value) = (escaped(&service.name), read(&service.shared));
            let _ = writeln!(text, "swarmguard_lb_{name}{suffix}{{service=\"{name_of}\"}} {value}");
        }
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
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

    #[test]
    fn prometheus_buckets_are_cumulative() {
        let stats = Stats::new(1, NOW);
        for micros in [100, 700, 40_000_000] {
            stats.workers()[0].answered_us(micros);
        }
        let text = stats.prometheus(&Table::default(), NOW);
        assert!(text.contains("bucket{le=\"0.0005\"} 1\n"), "{text}");
        assert!(text.contains("bucket{le=\"0.001\"} 2\n") && text.contains("bucket{le=\"+Inf\"} 3\n"));
    }
}
