//! The balancers' figures as the API shows them: counters become rates, tasks get the names of their nodes.

use std::collections::BTreeMap;

use swarmguard_common::{
    api::{BalancedReplica, BalancedService, BalancerStatus, Balancers, Standing},
    domain::TaskId,
    time::Time,
    wire::routes::{BalancerStats, ReplicaStats, ServiceStats},
};
use swarmguard_core::swarm::{Service, Snapshot};

use crate::ingest::hub::Figures;

/// Figures older than this are of a balancer that says no more.
const STALE_MS: u64 = 10_000;

/// All balancers at one moment.
pub fn of(snapshot: Option<&Snapshot>, all: Vec<(String, bool, Option<Figures>)>, now: Time) -> Balancers {
    let by_name: BTreeMap<&str, &Service> = snapshot
        .into_iter()
        .flat_map(|snapshot| snapshot.services.values())
        .map(|service| (service.name.as_str(), service))
        .collect();
    let host = |task: &TaskId| {
        let node = snapshot?.tasks.get(task)?.node.as_ref()?;
        Some(snapshot?.nodes.get(node)?.hostname.clone())
    };
    let balancers = all.into_iter().map(|(name, connected, figures)| {
        let services = figures.iter().flat_map(|figures| {
            figures.newest.services.iter().map(|service| {
                let known = by_name.get(service.name.as_str()).copied();
                one_service(service, figures, known, &host)
            })
        });
        let newest = figures.as_ref().map(|figures| &figures.newest);
        BalancerStatus {
            name,
            connected,
            ready: newest.is_some_and(|newest| newest.ready),
            connections: newest.map_or(0, |newest| newest.connections),
            stats_age_ms: figures.as_ref().map(|figures| age_ms(figures, now)),
            services: services.collect(),
        }
    });
    Balancers { balancers: balancers.collect() }
}

/// Replicas that a balancer sends nothing to because they fail, by service and node.
pub fn out_of_balance(all: &Balancers) -> Vec<String> {
    let mut out = Vec::new();
    for balancer in all.balancers.iter().filter(|one| one.stats_age_ms.is_some_and(|age| age < STALE_MS)) {
        for service in &balancer.services {
            let failing = service
                .replicas
                .iter()
                .filter(|one| matches!(one.standing, Standing::Sick | Standing::Ejected));
            out.extend(failing.map(|replica| {
                let node = replica.node.as_deref().unwrap_or("an unknown node");
                format!("{} on {node}", service.name)
            }));
        }
    }
    out.sort();
    out.dedup();
    out
}

fn age_ms(figures: &Figures, now: Time) -> u64 {
    u64::try_from(now.since(figures.at).as_millis()).unwrap_or(u64::MAX)
}

fn one_service(
    service: &ServiceStats,
    figures: &Figures,
    known: Option<&Service>,
    host: &impl Fn(&TaskId) -> Option<String>,
) -> BalancedService {
    let before = figures.before.as_ref().and_then(|before| of_name(before, &service.name));
    let between_ms = figures.before.as_ref().map(|before| figures.newest.uptime_ms - before.uptime_ms);
    let rate = |newest: u64, before: Option<u64>| per_second(newest, before?, between_ms?);
    let replica_before = |task: &TaskId| before?.replicas.iter().find(|one| one.task == *task);
    let rates: Vec<Option<f64>> = service
        .replicas
        .iter()
        .map(|one| rate(one.requests, Some(replica_before(&one.task).map_or(0, |before| before.requests))))
        .collect();
    let all: f64 = rates.iter().flatten().sum();
    #[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 replicas")]
    let mean = all / rates.len().max(1) as f64;
    let replicas = service.replicas.iter().zip(&rates).map(|(one, rate)| BalancedReplica {
        task: one.task.clone(),
        node: host(&one.task),
        standing: one.state.into(),
        requests_per_s: *rate,
        in_flight: one.in_flight.into(),
        latency_ms: one.p50_us.map(ms),
        latency_p99_ms: one.p99_us.map(ms),
        share_of_mean_percent: rate.filter(|_| mean > 0.0).map(|rate| rounded(rate / mean * 100.0)),
        failures: one.failures,
    });
    let failures = |of: &ServiceStats| of.replicas.iter().map(|one: &ReplicaStats| one.failures).sum::<u64>();
    BalancedService {
        service: known.map(|service| service.id.clone()),
        name: service.name.clone(),
        algorithm: known.and_then(|known| known.policy.as_ref().ok()?.route.as_ref()?.algorithm),
        requests_per_s: rate(service.requests, before.map(|before| before.requests)),
        refused_per_s: rate(service.refused, before.map(|before| before.refused)),
        retries_per_s: rate(service.retries, before.map(|before| before.retries)),
        failures_per_s: rate(failures(service), before.map(failures)),
        waiting: service.waiting,
        replicas: replicas.collect(),
    }
}

fn of_name<'a>(stats: &'a BalancerStats, name: &str) -> Option<&'a ServiceStats> {
    stats.services.iter().find(|service| service.name == name)
}

/// `None` where no time passed. A counter that went down, as that of a replica which left and came back, counts as 0.
#[expect(clippy::cast_precision_loss, reason = "counts and milliseconds within a second or so")]
fn per_second(newest: u64, before: u64, between_ms: u64) -> Option<f64> {
    (between_ms > 0).then(|| rounded(newest.saturating_sub(before) as f64 * 1_000.0 / between_ms as f64))
}

fn ms(us: u32) -> f64 {
    f64::from(us) / 1_000.0
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use swarmguard_common::wire::routes::ReplicaState;

    use super::*;

    fn stats(uptime_ms: u64, one: u64, other: u64) -> BalancerStats {
        let replica = |task: &str, requests, state| ReplicaStats {
            task: task.parse().expect("an ID"),
            state,
            requests,
            failures: 0,
            in_flight: 1,
            p50_us: Some(1_500),
            p99_us: None,
        };
        let replicas =
            vec![replica("t1", one, ReplicaState::Serving), replica("t2", other, ReplicaState::Ejected)];
        let web =
            ServiceStats { name: "web".into(), requests: one + other, replicas, ..ServiceStats::default() };
        BalancerStats { uptime_ms, ready: true, connections: 3, services: vec![web] }
    }

    fn shown(before: Option<BalancerStats>, newest: BalancerStats) -> Balancers {
        let figures = Figures { at: Time::from_millis(1_000), newest, before };
        of(None, vec![("lb1".into(), true, Some(figures))], Time::from_millis(1_400))
    }

    #[test]
    fn counters_become_rates_and_shares() {
        let all = shown(Some(stats(10_000, 100, 100)), stats(12_000, 160, 120));
        let (lb, web) = (&all.balancers[0], &all.balancers[0].services[0]);
        assert_eq!((lb.stats_age_ms, lb.connections), (Some(400), 3));
        assert_eq!(web.requests_per_s, Some(40.0));
        let of =
            |index: usize| (web.replicas[index].requests_per_s, web.replicas[index].share_of_mean_percent);
        assert_eq!((of(0), of(1)), ((Some(30.0), Some(150.0)), (Some(10.0), Some(50.0))));
        assert_eq!(web.replicas[0].latency_ms, Some(1.5));
        assert_eq!(out_of_balance(&all), ["web on an unknown node"]);
    }

    #[test]
    fn without_earlier_figures_rates_are_unknown_and_not_0() {
        let all = shown(None, stats(1_000, 5, 5));
        assert_eq!(all.balancers[0].services[0].requests_per_s, None);
        assert_eq!(all.balancers[0].services[0].replicas[0].share_of_mean_percent, None);
    }
}
