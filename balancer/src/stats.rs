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

use crate::{histogram::BOUNDS_US, process, proxy::Global, routing::Table};

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

    /// Prometheus text, version 0.0.4.
    pub fn prometheus(&self, global: &Global, now: Time) -> String {
        let totals = self.totals();
        let table = global.table.load();
        let mut text = String::with_capacity(16_384);
        worker_families(&mut text, &totals);
        gauge(&mut text, "connections_open", totals.connections.saturating_sub(totals.connections_closed));
        gauge(&mut text, "upgrades_open", totals.upgrades.saturating_sub(totals.upgrades_closed));
        gauge(&mut text, "client_memory_bytes", global.memory.used());
        gauge(&mut text, "client_memory_limit_bytes", global.memory.most());
        gauge(&mut text, "ready", global.ready().into());
        service_families(&mut text, &table);
        histogram(&mut text, &table);
        replica_families(&mut text, &table, now);
        family(&mut text, "build_info", "gauge");
        let _ =
            writeln!(text, "swarmguard_balancer_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        process::write(&mut text);
        text
    }
}

fn family(text: &mut String, name: &str, kind: &str) {
    let _ = writeln!(text, "# TYPE swarmguard_balancer_{name} {kind}");
}

fn gauge(text: &mut String, name: &str, value: u64) {
    family(text, name, "gauge");
    let _ = writeln!(text, "swarmguard_balancer_{name} {value}");
}

fn worker_families(text: &mut String, totals: &Totals) {
    for (name, value) in [
        ("requests", totals.requests),
        ("requests_fast", totals.requests_fast),
        ("retries", totals.retries),
        ("stale_connections", totals.stale_connections),
        ("connects", totals.connects),
        ("replica_errors", totals.upstream_failures),
        ("ejections", totals.ejections),
        ("leases_expired", totals.leases_expired),
        ("connections", totals.connections),
        ("connections_evicted", totals.evicted),
        ("tls_failures", totals.tls_failures),
        ("upgrades", totals.upgrades),
        ("picks_fresh", totals.picks_fresh),
    ] {
        family(text, &format!("{name}_total"), "counter");
        let _ = writeln!(text, "swarmguard_balancer_{name}_total {value}");
    }
    let by_algorithm = totals.picks
        - (totals.picks_fallback + totals.picks_exploration + totals.picks_sticky).min(totals.picks);
    /// Name, label, and the values by the label's words.
    type Labelled<'a> = (&'a str, &'a str, &'a [(&'a str, u64)]);
    let labelled: [Labelled<'_>; 4] = [
        (
            "picks_total",
            "reason",
            &[
                ("algorithm", by_algorithm),
                ("fallback", totals.picks_fallback),
                ("exploration", totals.picks_exploration),
                ("sticky", totals.picks_sticky),
            ],
        ),
        (
            "refused_total",
            "reason",
            &[
                ("no_route", totals.refused_no_route),
                ("no_replica", totals.refused_no_replica),
                ("full", totals.refused_full),
                ("rate", totals.refused_rate),
                ("client_rate", totals.refused_client_rate),
                ("malformed", totals.refused_malformed),
                ("client_timeout", totals.refused_client_timeout),
                ("memory", totals.refused_memory),
                ("address", totals.refused_address),
            ],
        ),
        (
            "failures_total",
            "reason",
            &[
                ("unreachable", totals.failed_unreachable),
                ("broken", totals.failed_broken),
                ("unreadable", totals.failed_unreadable),
                ("head_too_large", totals.failed_too_large),
                ("timeout", totals.failed_timeout),
            ],
        ),
        (
            "answers_cut_total",
            "reason",
            &[("memory", totals.shed), ("unread", totals.unread), ("room", totals.cut_for_room)],
        ),
    ];
    for (name, label, values) in labelled {
        family(text, name, "counter");
        for (word, value) in values {
            let _ = writeln!(text, "swarmguard_balancer_{name}{{{label}=\"{word}\"}} {value}");
        }
    }
    // One pick in sixteen is timed.
    family(text, "pick_duration_seconds", "summary");
    let _ = writeln!(
        text,
        "swarmguard_balancer_pick_duration_seconds_sum {}",
        seconds(totals.picks_timed_ns / 1_000)
    );
    let _ = writeln!(text, "swarmguard_balancer_pick_duration_seconds_count {}", totals.picks_timed);
}

fn histogram(text: &mut String, table: &Table) {
    const NAME: &str = "swarmguard_balancer_first_byte_seconds";
    family(text, "first_byte_seconds", "histogram");
    for service in &table.services {
        let name = escaped(&service.name);
        let (counts, sum_us) = service.shared.first_byte.read();
        let mut below = 0;
        for (bound, count) in BOUNDS_US.iter().zip(counts) {
            below += count;
            let bound = seconds(*bound);
            let _ = writeln!(text, "{NAME}_bucket{{service=\"{name}\",le=\"{bound}\"}} {below}");
        }
        below += counts[BOUNDS_US.len()];
        let _ = writeln!(text, "{NAME}_bucket{{service=\"{name}\",le=\"+Inf\"}} {below}");
        let _ = writeln!(text, "{NAME}_sum{{service=\"{name}\"}} {}", seconds(sum_us));
        let _ = writeln!(text, "{NAME}_count{{service=\"{name}\"}} {below}");
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact for three hundred years")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn replica_families(text: &mut String, table: &Table, now: Time) {
    type Value = fn(&crate::replica::Replica, Time) -> u64;
    let families: [(&str, &str, Value); 9] = [
        ("replica_requests_total", "counter", |it, _| it.requests.load(Relaxed)),
        ("replica_failures_total", "counter", |it, _| it.failures.load(Relaxed)),
        ("replica_picks_total", "counter", |it, _| it.picks.load(Relaxed)),
        ("replica_in_flight", "gauge", |it, _| it.in_flight().into()),
        ("replica_in_flight_of_others", "gauge", |it, now| it.others(now).into()),
        ("replica_ready", "gauge", |it, _| it.ready().into()),
        ("replica_draining", "gauge", |it, _| it.draining().into()),
        ("replica_sick", "gauge", |it, _| it.sick().into()),
        ("replica_ejected", "gauge", |it, now| (it.gate(now) != crate::breaker::Gate::Closed).into()),
    ];
    for (name, kind, read) in families {
        family(text, name, kind);
        for service in &table.services {
            let name_of = escaped(&service.name);
            for replica in &service.replicas {
                let (node, task, value) = (escaped(&replica.node), &replica.task, read(replica, now));
                let labels = format!("service=\"{name_of}\",node=\"{node}\",task=\"{task}\"");
                let _ = writeln!(text, "swarmguard_balancer_{name}{{{labels}}} {value}");
            }
        }
    }
}

fn service_families(text: &mut String, table: &Table) {
    type Value = fn(&crate::service::Shared) -> u64;
    let families: [(&str, &str, Value); 4] = [
        ("service_requests_total", "counter", |it| it.requests.load(Relaxed)),
        ("service_refused_total", "counter", |it| it.refused.load(Relaxed)),
        ("service_retries_total", "counter", |it| it.retries.load(Relaxed)),
        ("service_waiting", "gauge", |it| it.waiting().into()),
    ];
    for (name, kind, read) in families {
        family(text, name, kind);
        for service in &table.services {
            let (name_of, value) = (escaped(&service.name), read(&service.shared));
            let _ = writeln!(text, "swarmguard_balancer_{name}{{service=\"{name_of}\"}} {value}");
        }
    }
    family(text, "service_responses_total", "counter");
    for service in &table.services {
        let name = escaped(&service.name);
        for (class, value) in (1..).zip(service.shared.responses()) {
            let labels = format!("service=\"{name}\",class=\"{class}xx\"");
            let _ = writeln!(text, "swarmguard_balancer_service_responses_total{{{labels}}} {value}");
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
}
