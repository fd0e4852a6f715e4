//! What coordinators are told once a second: how this balancer, its services and their replicas do.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use swarmguard_common::{
    time::Time,
    wire::routes::{
        BalancerStats, MAX_STATS_REPLICAS, MAX_STATS_SERVICES, ReplicaState, ReplicaStats, ServiceStats,
    },
};

use crate::{
    breaker::Gate,
    histogram::{Counts, FINE, quantile},
    proxy::Global,
    replica::Replica,
    service::Service,
};

/// Makes the figures; remembers what was counted before.
#[derive(Debug, Default)]
pub struct Figures {
    before: HashMap<u64, Counts>,
}

impl Figures {
    /// The figures now, quantiles since the last call.
    pub fn make(&mut self, global: &Global, now: Time) -> BalancerStats {
        let table = global.table.load();
        let mut services: Vec<&Arc<Service>> = table.services.iter().collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        services.truncate(MAX_STATS_SERVICES);
        let mut room = MAX_STATS_REPLICAS;
        let mut seen = HashMap::new();
        let services = services.into_iter().map(|service| {
            let listed = &service.replicas[..service.replicas.len().min(room)];
            room -= listed.len();
            let replicas = listed.iter().map(|replica| {
                let counts = replica.latencies.read();
                let stats = one(replica, self.before.get(&replica.key), &counts, now);
                seen.insert(replica.key, counts);
                stats
            });
            ServiceStats {
                name: service.name.clone(),
                requests: service.shared.requests.load(Relaxed),
                refused: service.shared.refused.load(Relaxed),
                retries: service.shared.retries.load(Relaxed),
                waiting: service.shared.waiting(),
                replicas: replicas.collect(),
            }
        });
        let services = services.collect();
        self.before = seen;
        let totals = global.stats.totals();
        let connections = totals.connections.saturating_sub(totals.connections_closed);
        BalancerStats {
            uptime_ms: u64::try_from(now.since(global.started).as_millis()).unwrap_or(u64::MAX),
            ready: global.ready(),
            connections: u32::try_from(connections).unwrap_or(u32::MAX),
            services,
        }
    }
}

fn one(replica: &Replica, before: Option<&Counts>, counts: &Counts, now: Time) -> ReplicaStats {
    // Of one that is new, all that was counted.
    let none = [0; FINE];
    let at = |share| quantile(before.unwrap_or(&none), counts, share);
    ReplicaStats {
        task: replica.task.clone(),
        state: state(replica, now),
        requests: replica.requests.load(Relaxed),
        failures: replica.failures.load(Relaxed),
        in_flight: replica.in_flight(),
        p50_us: at(0.5),
        p99_us: at(0.99),
    }
}

/// Whether it is picked, and if not, the worst reason.
pub fn state(replica: &Replica, now: Time) -> ReplicaState {
    if replica.draining() {
        ReplicaState::Draining
    } else if !replica.ready() {
        ReplicaState::Unready
    } else if replica.sick() {
        ReplicaState::Sick
    } else if replica.gate(now) != Gate::Closed {
        ReplicaState::Ejected
    } else {
        ReplicaState::Serving
    }
}
