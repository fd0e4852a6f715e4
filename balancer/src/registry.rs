//! From pictures to what workers see: keeps the state of replicas from one picture to the next, and publishes a new
//! [`Table`] when something changed. Owned by the control task alone; workers only ever read snapshots.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use arc_swap::ArcSwap;
use swarmguard_common::{domain::TaskId, labels::Algorithm, time::Time, wire::routes::ReplicaLoad};

use crate::{
    client_rate::ClientRate,
    pick::metrics,
    rate::Limit,
    replica::{Load, Replica},
    routing::Table,
    service::{Service, Shared, cookie_name},
    source::{Picture, ReplicaPicture, ServicePicture},
};

/// A replica whose CPU stalls this share of the time has no room, whatever else says so (PSI `some`, in per cent).
const STRAINED_PSI_PERCENT: f64 = 60.0;
/// A replica at this CPU utilisation has no room (per cent).
const STRAINED_CPU_PERCENT: f64 = 95.0;

/// Requests are counted over so long to tell what one costs.
const COUNTED_OVER: Duration = Duration::from_millis(900);

/// Drains remembered at once; Swarm stops a few tasks at a time.
const MAX_DRAINING: usize = 4_096;

/// The drain of a task that is in no picture is remembered for so long: the picture may be late.
const DRAIN_MEMORY: Duration = Duration::from_secs(60);

/// How figures are weighed and believed.
#[derive(Clone, Copy, Debug)]
pub struct Weighing {
    /// Weights of CPU, memory and network.
    pub weights: [f64; 3],
    /// Figures older than this are not believed.
    pub ttl: Duration,
    /// For services whose labels name none.
    pub algorithm: Algorithm,
}

/// See the module.
#[derive(Debug)]
pub struct Registry {
    table: Arc<ArcSwap<Table>>,
    weighing: Weighing,
    services: BTreeMap<String, Known>,
    /// Since when each was announced.
    draining: BTreeMap<TaskId, Time>,
    /// The first picture's replicas ran before this balancer did: no slow start for them.
    started: bool,
}

#[derive(Debug)]
struct Known {
    picture: ServicePicture,
    replicas: BTreeMap<TaskId, Arc<Replica>>,
    shared: Arc<Shared>,
    limit: Option<(u32, Arc<Limit>)>,
    clients: Option<(u32, Arc<ClientRate>)>,
    /// Picks of all replicas, and when they were counted.
    counted: Option<(Time, u64)>,
}

impl Registry {
    /// Starts with nothing.
    pub fn new(weighing: Weighing) -> Self {
        Self {
            table: Arc::default(),
            weighing,
            services: BTreeMap::new(),
            draining: BTreeMap::new(),
            started: false,
        }
    }

    /// What workers read.
    pub fn table(&self) -> Arc<ArcSwap<Table>> {
        Arc::clone(&self.table)
    }

    /// Replaces everything known by a picture. Returns whether services or replicas changed (loads do not count).
    pub fn apply(&mut self, picture: &Picture, now: Time) -> bool {
        let mut changed = false;
        let present: BTreeSet<&str> = picture.services.iter().map(|service| service.id.as_str()).collect();
        let before = self.services.len();
        self.services.retain(|id, _| present.contains(id.as_str()));
        changed |= self.services.len() != before;
        for service in &picture.services {
            changed |= self.apply_service(service, now);
        }
        let known = |task: &TaskId| self.services.values().any(|service| service.replicas.contains_key(task));
        self.draining.retain(|task, since| now.since(*since) < DRAIN_MEMORY || known(task));
        if changed {
            self.publish();
        }
        self.started |= !picture.services.is_empty();
        changed
    }

    fn apply_service(&mut self, picture: &ServicePicture, now: Time) -> bool {
        let mut changed = false;
        let known = self.services.entry(picture.id.clone()).or_insert_with(|| {
            changed = true;
            Known {
                picture: picture.clone(),
                replicas: BTreeMap::new(),
                shared: Arc::default(),
                limit: None,
                clients: None,
                counted: None,
            }
        });
        if known.picture.labels != picture.labels || known.picture.name != picture.name {
            changed = true;
        }
        known.picture = picture.clone();
        let present: BTreeMap<&TaskId, &ReplicaPicture> =
            picture.replicas.iter().map(|replica| (&replica.task, replica)).collect();
        known.replicas.retain(|task, replica| {
            let stays = present.get(task).is_some_and(|it| it.address == replica.address);
            // A request that still has the old table must not be sent there either.
            if !stays {
                replica.set_draining(true);
                changed = true;
            }
            stays
        });
        for (task, seen) in present {
            let replica = known.replicas.entry(task.clone()).or_insert_with(|| {
                changed = true;
                let replica = Replica::new(task.clone(), seen.node.clone(), seen.address);
                if self.started {
                    replica.set_unproven();
                }
                Arc::new(replica)
            });
            replica.set_ready(seen.ready, now);
            if !self.started {
                replica.skip_ramp();
            }
            replica.set_draining(seen.draining || self.draining.contains_key(task));
            replica.set_load(seen.load.map(|load| self.weighing.load(load, now)), now);
        }
        let moving =
            picture.replicas.iter().filter_map(|seen| seen.load).map(|load| self.weighing.moving(load));
        known.set_cost(moving.sum(), now);
        changed
    }

    /// These are about to be stopped; answers those that are known here.
    pub fn drain(&mut self, tasks: &[TaskId], now: Time) -> Vec<Arc<Replica>> {
        let room = MAX_DRAINING.saturating_sub(self.draining.len());
        self.draining.extend(tasks.iter().take(room).map(|task| (task.clone(), now)));
        let found = self.find(tasks);
        for replica in &found {
            replica.set_draining(true);
        }
        found
    }

    /// These stay after all.
    pub fn resume(&mut self, tasks: &[TaskId]) {
        for task in tasks {
            self.draining.remove(task);
        }
        for replica in self.find(tasks) {
            replica.set_draining(false);
        }
    }

    /// Forgets all drains: whoever announced them is gone and will not take them back.
    pub fn resume_all(&mut self) {
        let tasks: Vec<TaskId> = std::mem::take(&mut self.draining).into_keys().collect();
        self.resume(&tasks);
    }

    /// Every service as it was last seen, for a source that takes over from another.
    pub fn pictures(&self) -> impl Iterator<Item = &ServicePicture> {
        self.services.values().map(|known| &known.picture)
    }

    fn find(&self, tasks: &[TaskId]) -> Vec<Arc<Replica>> {
        let in_service = |known: &'_ Known, task: &TaskId| known.replicas.get(task).cloned();
        let all =
            tasks.iter().flat_map(|task| self.services.values().filter_map(move |it| in_service(it, task)));
        all.collect()
    }

    fn publish(&mut self) {
        let default = self.weighing.algorithm;
        let services = self.services.values_mut().map(|known| {
            let labels = known.picture.labels.clone();
            // Who was over a rate that stays the same stays over it.
            known.limit = labels.rate.map(|rate| match known.limit.take() {
                Some((old, limit)) if old == rate => (rate, limit),
                _ => (rate, Arc::new(Limit::new(rate))),
            });
            known.clients = labels.client_rate.map(|rate| match known.clients.take() {
                Some((old, clients)) if old == rate => (rate, clients),
                _ => (rate, Arc::new(ClientRate::new(rate))),
            });
            Arc::new(Service {
                name: known.picture.name.clone(),
                algorithm: labels.algorithm.unwrap_or(default),
                labels,
                cookie: cookie_name(&known.picture.name),
                replicas: known.replicas.values().cloned().collect(),
                limit: known.limit.as_ref().map(|(_, limit)| Arc::clone(limit)),
                clients: known.clients.as_ref().map(|(_, clients)| Arc::clone(clients)),
                shared: Arc::clone(&known.shared),
            })
        });
        self.table.store(Arc::new(Table::new(services.collect())));
    }
}

impl Known {
    /// What one request a second costs a replica: `moving`, the part of all scores that requests make, by how many there
    /// were. Those of other balancers make their part of it too, and are sent as ours are.
    fn set_cost(&mut self, moving: f64, now: Time) {
        let picks = self.replicas.values().map(|replica| replica.picks.load(Relaxed)).sum();
        let Some((since, before)) = self.counted else {
            self.counted = Some((now, picks));
            return;
        };
        let seconds = now.since(since).as_secs_f64();
        if seconds < COUNTED_OVER.as_secs_f64() {
            return;
        }
        self.counted = Some((now, picks));
        #[expect(clippy::cast_precision_loss, reason = "requests of a second")]
        let rate = picks.saturating_sub(before) as f64 / seconds;
        #[expect(clippy::cast_possible_truncation, reason = "a score needs no more than an f32 holds")]
        let cost = if rate < 1.0 { 0.0 } else { (moving / rate) as f32 };
        self.replicas.values().for_each(|replica| replica.set_cost(cost));
    }
}

impl Weighing {
    /// The part of a score that comes and goes with requests: CPU and network.
    fn moving(&self, load: ReplicaLoad) -> f64 {
        metrics::score([load.cpu.percent(), 0.0, load.network.percent()], self.weights)
    }

    fn load(&self, load: ReplicaLoad, now: Time) -> Load {
        let percent =
            [load.cpu, load.memory, load.network].map(swarmguard_common::domain::BasisPoints::percent);
        let age = Duration::from_millis(load.age_ms.into());
        #[expect(clippy::cast_possible_truncation, reason = "a score needs no more than an f32 holds")]
        let score = metrics::score(percent, self.weights) as f32;
        Load {
            score,
            strained: load.psi_cpu.percent() >= STRAINED_PSI_PERCENT || percent[0] >= STRAINED_CPU_PERCENT,
            in_flight: load.in_flight,
            latency_us: load.latency_us,
            until: now.before(age) + self.ttl,
        }
    }
}

#[cfg(test)]
mod tests {
    use swarmguard_common::domain::BasisPoints;

    use super::*;
    use crate::source::{found_at, labels};

    const NOW: Time = Time::from_millis(9_000_000);

    fn registry() -> Registry {
        let weighing =
            Weighing { weights: [0.5, 0.3, 0.2], ttl: Duration::from_secs(3), algorithm: Algorithm::Hcl };
        Registry::new(weighing)
    }

    fn picture(addresses: &[&str]) -> Picture {
        let replica = |text: &&str| found_at(text.parse().expect("an address"), "n").expect("a replica");
        let replicas = addresses.iter().map(replica).collect();
        let service = ServicePicture { id: "s".into(), name: "web".into(), labels: labels(80), replicas };
        Picture { services: vec![service] }
    }

    #[test]
    fn replicas_keep_their_state_from_picture_to_picture() {
        let mut registry = registry();
        assert!(registry.apply(&picture(&["10.0.0.1:80", "10.0.0.2:80"]), NOW));
        let first = Arc::clone(&registry.table.load().services[0].replicas[0]);
        assert!(!registry.apply(&picture(&["10.0.0.1:80", "10.0.0.2:80"]), NOW), "nothing changed");
        assert!(registry.apply(&picture(&["10.0.0.1:80"]), NOW));
        let table = registry.table.load();
        assert_eq!(table.services[0].replicas.len(), 1);
        assert!(Arc::ptr_eq(&first, &table.services[0].replicas[0]));
        assert_eq!(table.services[0].algorithm, Algorithm::Hcl);
    }

    #[test]
    fn a_replica_that_is_gone_takes_nothing_from_old_tables_either() {
        let mut registry = registry();
        registry.apply(&picture(&["10.0.0.1:80"]), NOW);
        let gone = Arc::clone(&registry.table.load().services[0].replicas[0]);
        registry.apply(&picture(&["10.0.0.2:80"]), NOW);
        assert!(!gone.enter());
    }

    #[test]
    fn a_drain_outlives_the_next_picture_and_ends_with_resume() {
        let mut registry = registry();
        let one = picture(&["10.0.0.1:80"]);
        registry.apply(&one, NOW);
        let tasks = [one.services[0].replicas[0].task.clone()];
        assert_eq!(registry.drain(&tasks, NOW).len(), 1);
        registry.apply(&one, NOW);
        let replica = Arc::clone(&registry.table.load().services[0].replicas[0]);
        assert!(replica.draining());
        registry.resume(&tasks);
        assert!(!replica.draining());
        assert!(registry.drain(&["unknown".parse().expect("letters")], NOW).is_empty());
    }

    #[test]
    fn drains_of_tasks_that_are_long_gone_are_forgotten() {
        let mut registry = registry();
        let one = picture(&["10.0.0.1:80"]);
        let known = one.services[0].replicas[0].task.clone();
        registry.drain(&["gone".parse().expect("letters"), known.clone()], NOW);
        registry.apply(&one, NOW + DRAIN_MEMORY);
        assert_eq!(registry.draining.keys().collect::<Vec<_>>(), [&known]);
    }

    #[test]
    fn figures_become_a_score_and_a_veto_until_they_are_too_old() {
        let mut registry = registry();
        let mut one = picture(&["10.0.0.1:80"]);
        let points = BasisPoints::from_percent;
        one.services[0].replicas[0].load = Some(ReplicaLoad {
            cpu: points(96),
            memory: points(50),
            network: points(10),
            psi_cpu: points(0),
            in_flight: Some(5),
            latency_us: Some(9_000),
            age_ms: 500,
        });
        registry.apply(&one, NOW);
        let replica = Arc::clone(&registry.table.load().services[0].replicas[0]);
        let fresh = replica.candidate(NOW);
        assert!((fresh.score.expect("fresh") - 65.0).abs() < 0.01 && fresh.strained);
        assert_eq!((fresh.leases, fresh.others, fresh.latency_us), (0, 5, Some(9_000.0)));
        let stale = replica.candidate(NOW + Duration::from_millis(2_500));
        assert_eq!((stale.score, stale.others, stale.latency_us), (None, 0, None));
    }
}
