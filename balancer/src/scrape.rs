//! The balancer's figures for Prometheus.

use std::sync::atomic::Ordering::Relaxed;

use swarmguard_common::{labels::Algorithm, time::Time};
use swarmguard_runtime::{
    exposition::{Family, Scrape},
    process,
};

use crate::{
    breaker::Gate, histogram::BOUNDS_US, proxy::Global, replica::Replica, routing::Table, service::Shared,
    stats::Totals,
};

swarmguard_runtime::families! {
    BUILD = Gauge "swarmguard_balancer_build_info" ["version"] "1, with the version of the balancer";
    READY = Gauge "swarmguard_balancer_ready" [] "1 while it knows a service or a coordinator and is not about to stop";
    ROUTED = Gauge "swarmguard_balancer_routed" [] "1 while a coordinator sends routes";
    REQUESTS = Counter "swarmguard_balancer_requests_total" [] "requests taken in";
    REQUESTS_FAST = Counter "swarmguard_balancer_requests_fast_total" [] "of those, on the fast path of plain HTTP/1.1";
    FAILURES = Counter "swarmguard_balancer_failures_total" ["reason"] "requests that no replica answered";
    REFUSED = Counter "swarmguard_balancer_refused_total" ["reason"] "requests that the balancer answered itself with an error";
    CUT = Counter "swarmguard_balancer_answers_cut_total" ["reason"] "exchanges cut short because the client stands still";
    RETRIES = Counter "swarmguard_balancer_retries_total" [] "requests sent again to another replica";
    STALE = Counter "swarmguard_balancer_stale_connections_total" [] "requests sent again because a kept connection had been closed";
    CONNECTS = Counter "swarmguard_balancer_connects_total" [] "connections made to replicas";
    REPLICA_ERRORS = Counter "swarmguard_balancer_replica_errors_total" [] "requests to replicas that failed, retried or not";
    EJECTIONS = Counter "swarmguard_balancer_ejections_total" [] "times that a replica was left out because it failed";
    LEASES_EXPIRED = Counter "swarmguard_balancer_leases_expired_total" [] "requests that lasted longer than their lease";
    PICKS = Counter "swarmguard_balancer_picks_total" ["reason"] "picks of a replica by what decided: algorithm, fallback for want of figures, exploration, sticky";
    PICKS_FRESH = Counter "swarmguard_balancer_picks_fresh_total" [] "picks of a replica with fresh figures";
    PICK_DURATION = Summary "swarmguard_balancer_pick_duration_seconds" [] "time that a pick takes; one in sixteen is timed";
    CONNECTIONS = Counter "swarmguard_balancer_connections_total" [] "client connections accepted";
    CONNECTIONS_OPEN = Gauge "swarmguard_balancer_connections_open" [] "client connections open";
    EVICTED = Counter "swarmguard_balancer_connections_evicted_total" [] "idle connections closed to make room";
    TLS_FAILURES = Counter "swarmguard_balancer_tls_failures_total" [] "TLS handshakes that failed";
    UPGRADES = Counter "swarmguard_balancer_upgrades_total" [] "connections upgraded, to WebSocket for instance";
    UPGRADES_OPEN = Gauge "swarmguard_balancer_upgrades_open" [] "upgraded connections open";
    MEMORY = Gauge "swarmguard_balancer_client_memory_bytes" [] "memory that clients make the balancer keep";
    MEMORY_LIMIT = Gauge "swarmguard_balancer_client_memory_limit_bytes" [] "most that they may";
    SERVICE_ALGORITHM = Gauge "swarmguard_balancer_service_algorithm_info" ["service", "algorithm"] "1, with the algorithm that picks replicas of the service";
    SERVICE_REQUESTS = Counter "swarmguard_balancer_service_requests_total" ["service"] "requests for the service";
    SERVICE_REFUSED = Counter "swarmguard_balancer_service_refused_total" ["service"] "requests for the service answered by the balancer with an error";
    SERVICE_RETRIES = Counter "swarmguard_balancer_service_retries_total" ["service"] "requests for the service sent again";
    SERVICE_WAITING = Gauge "swarmguard_balancer_service_waiting" ["service"] "requests that wait for room at a replica";
    SERVICE_RESPONSES = Counter "swarmguard_balancer_service_responses_total" ["service", "class"] "answers of the service by class of status";
    FIRST_BYTE = Histogram "swarmguard_balancer_first_byte_seconds" ["service"] "from the last byte of a request to the first of its answer";
    REPLICA_REQUESTS = Counter "swarmguard_balancer_replica_requests_total" ["service", "node", "task"] "requests sent to the replica";
    REPLICA_FAILURES = Counter "swarmguard_balancer_replica_failures_total" ["service", "node", "task"] "of those, failed";
    REPLICA_PICKS = Counter "swarmguard_balancer_replica_picks_total" ["service", "node", "task"] "picks of the replica";
    REPLICA_IN_FLIGHT = Gauge "swarmguard_balancer_replica_in_flight" ["service", "node", "task"] "requests in flight from this balancer";
    REPLICA_OTHERS = Gauge "swarmguard_balancer_replica_in_flight_of_others" ["service", "node", "task"] "requests in flight from elsewhere, as its node counts them";
    REPLICA_READY = Gauge "swarmguard_balancer_replica_ready" ["service", "node", "task"] "1 while it may be picked by its state in Swarm";
    REPLICA_DRAINING = Gauge "swarmguard_balancer_replica_draining" ["service", "node", "task"] "1 while it gets no new requests because it is about to stop";
    REPLICA_SICK = Gauge "swarmguard_balancer_replica_sick" ["service", "node", "task"] "1 while its health check fails";
    REPLICA_EJECTED = Gauge "swarmguard_balancer_replica_ejected" ["service", "node", "task"] "1 while it is left out because requests to it failed";
}

/// Everything as OpenMetrics text.
pub fn text(global: &Global, now: Time) -> String {
    let totals = global.stats.totals();
    let table = global.table.load();
    let mut scrape = Scrape::new();
    scrape.family(BUILD).put(&[env!("CARGO_PKG_VERSION")], 1);
    scrape.one(READY, u8::from(global.ready()));
    scrape.one(ROUTED, u8::from(global.routed.load(Relaxed)));
    counters(&mut scrape, &totals);
    by_reason(&mut scrape, &totals);
    // One pick in sixteen is timed.
    scrape.family(PICK_DURATION).summary(&[], seconds(totals.picks_timed_ns / 1_000), totals.picks_timed);
    scrape.one(CONNECTIONS_OPEN, totals.connections.saturating_sub(totals.connections_closed));
    scrape.one(UPGRADES_OPEN, totals.upgrades.saturating_sub(totals.upgrades_closed));
    scrape.one(MEMORY, global.memory.used());
    scrape.one(MEMORY_LIMIT, global.memory.most());
    services(&mut scrape, &table);
    replicas(&mut scrape, &table, now);
    process::write(&mut scrape);
    scrape.end()
}

fn counters(scrape: &mut Scrape, totals: &Totals) {
    for (family, value) in [
        (REQUESTS, totals.requests),
        (REQUESTS_FAST, totals.requests_fast),
        (RETRIES, totals.retries),
        (STALE, totals.stale_connections),
        (CONNECTS, totals.connects),
        (REPLICA_ERRORS, totals.upstream_failures),
        (EJECTIONS, totals.ejections),
        (LEASES_EXPIRED, totals.leases_expired),
        (CONNECTIONS, totals.connections),
        (EVICTED, totals.evicted),
        (TLS_FAILURES, totals.tls_failures),
        (UPGRADES, totals.upgrades),
        (PICKS_FRESH, totals.picks_fresh),
    ] {
        scrape.one(family, value);
    }
}

fn by_reason(scrape: &mut Scrape, totals: &Totals) {
    let by_algorithm = totals.picks
        - (totals.picks_fallback + totals.picks_exploration + totals.picks_sticky).min(totals.picks);
    /// A family, and its values by the label's words.
    type Labelled<'a> = (Family, &'a [(&'a str, u64)]);
    let labelled: [Labelled<'_>; 4] = [
        (
            PICKS,
            &[
                ("algorithm", by_algorithm),
                ("fallback", totals.picks_fallback),
                ("exploration", totals.picks_exploration),
                ("sticky", totals.picks_sticky),
            ],
        ),
        (
            REFUSED,
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
            FAILURES,
            &[
                ("unreachable", totals.failed_unreachable),
                ("broken", totals.failed_broken),
                ("unreadable", totals.failed_unreadable),
                ("head_too_large", totals.failed_too_large),
                ("timeout", totals.failed_timeout),
            ],
        ),
        (CUT, &[("memory", totals.shed), ("unread", totals.unread), ("room", totals.cut_for_room)]),
    ];
    for (family, values) in labelled {
        let mut samples = scrape.family(family);
        for (word, value) in values {
            samples.put(&[word], value);
        }
    }
}

fn services(scrape: &mut Scrape, table: &Table) {
    let mut algorithms = scrape.family(SERVICE_ALGORITHM);
    for service in &table.services {
        let word = Algorithm::ALL.iter().find(|(_, one)| *one == service.algorithm).map_or("", |one| one.0);
        algorithms.put(&[&service.name, word], 1);
    }
    type Value = fn(&Shared) -> u64;
    let families: [(Family, Value); 4] = [
        (SERVICE_REQUESTS, |it| it.requests.load(Relaxed)),
        (SERVICE_REFUSED, |it| it.refused.load(Relaxed)),
        (SERVICE_RETRIES, |it| it.retries.load(Relaxed)),
        (SERVICE_WAITING, |it| it.waiting().into()),
    ];
    for (family, read) in families {
        let mut samples = scrape.family(family);
        for service in &table.services {
            samples.put(&[&service.name], read(&service.shared));
        }
    }
    let mut responses = scrape.family(SERVICE_RESPONSES);
    for service in &table.services {
        for (class, value) in ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(service.shared.responses())
        {
            responses.put(&[&service.name, class], value);
        }
    }
    let bounds = BOUNDS_US.map(seconds);
    let mut first_bytes = scrape.family(FIRST_BYTE);
    for service in &table.services {
        let (counts, sum_us) = service.shared.first_byte.read();
        first_bytes.histogram(&[&service.name], &bounds, &counts, seconds(sum_us));
    }
}

fn replicas(scrape: &mut Scrape, table: &Table, now: Time) {
    type Value = fn(&Replica, Time) -> u64;
    let families: [(Family, Value); 9] = [
        (REPLICA_REQUESTS, |it, _| it.requests.load(Relaxed)),
        (REPLICA_FAILURES, |it, _| it.failures.load(Relaxed)),
        (REPLICA_PICKS, |it, _| it.picks.load(Relaxed)),
        (REPLICA_IN_FLIGHT, |it, _| it.in_flight().into()),
        (REPLICA_OTHERS, |it, now| it.others(now).into()),
        (REPLICA_READY, |it, _| it.ready().into()),
        (REPLICA_DRAINING, |it, _| it.draining().into()),
        (REPLICA_SICK, |it, _| it.sick().into()),
        (REPLICA_EJECTED, |it, now| (it.gate(now) != Gate::Closed).into()),
    ];
    for (family, read) in families {
        let mut samples = scrape.family(family);
        for service in &table.services {
            for replica in &service.replicas {
                let labels = [service.name.as_str(), replica.node.as_str(), replica.task.as_str()];
                samples.put(&labels, read(replica, now));
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact for three hundred years")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_documentation_lists_every_family() {
        let text = include_str!("../../docs/metrics.md");
        let table = swarmguard_runtime::exposition::table(super::FAMILIES);
        assert!(text.contains(&table), "docs/metrics.md lacks, or has another version of:\n{table}");
    }
}
