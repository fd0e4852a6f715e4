//! A worker as its connections see it: services and replicas, kept connections, leases and counters.

use std::{
    cell::Cell,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::StatusCode;
use swarmguard_common::time::Time;
use swarmguard_runtime::clock;

use super::{Global, fast::pools, retry::Ended, seats::Seats, upstream::Http1, upstream::Pools};
use crate::{
    choose::{Choice, Chooser, Refusal, Wish},
    lease::Ledger,
    pick::Reason,
    replica::{Outcome, Replica},
    service::Service,
    stats::{WorkerStats, bump},
};

/// One pick in so many is timed.
const TIMED_ONE_IN: u64 = 16;

/// For one request that finds little memory, so many of each service make room.
const AT_ONCE: usize = 8;

/// Least time between two summaries in the log.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Worker {
    /// What all workers read.
    pub global: Arc<Global>,
    /// Its counters.
    pub stats: Arc<WorkerStats>,
    /// Its connections to replicas.
    pub pools: Pools,
    /// The same, and buffers, of the fast path.
    pub fast: pools::Pools,
    /// Its clients' places.
    pub seats: Seats,
    chooser: Chooser,
    ledger: Rc<Ledger>,
    /// When a summary was logged last.
    logged: Cell<Time>,
}

impl Worker {
    /// Number `index` of all.
    pub fn new(global: Arc<Global>, index: usize) -> Self {
        let ledger = Rc::new(Ledger::default());
        let stats = global.stats.workers().get(index).cloned().unwrap_or_default();
        let chooser = Chooser::new(Rc::clone(&ledger), global.settings.tuning(), fastrand::u64(..));
        Self {
            global,
            stats,
            pools: Pools::default(),
            fast: pools::Pools::default(),
            seats: Seats::default(),
            chooser,
            ledger,
            logged: Cell::default(),
        }
    }

    /// Expires old leases and closes connections that nobody needs.
    pub fn sweep(&self) {
        let now = clock::now();
        let expired = self.ledger.expire(self.global.settings.lease_duration, now);
        self.stats.leases_expired.fetch_add(u64::try_from(expired).unwrap_or(0), Relaxed);
        let table = self.global.table.load();
        let replicas = || table.services.iter().flat_map(|service| &service.replicas);
        let wanted = |key| replicas().any(|it| it.key == key && !it.draining());
        self.pools.purge(wanted, now);
        self.fast.purge(wanted, now);
    }

    /// The service for a request.
    pub fn find(&self, host: &str, path: &str) -> Option<Arc<Service>> {
        let table = self.global.table.load();
        self.chooser.with_rng(|rng| table.find(host, path, rng).cloned())
    }

    /// A service as it is now.
    pub fn find_named(&self, name: &str) -> Option<Arc<Service>> {
        self.global.table.load().services.iter().find(|service| service.name == name).cloned()
    }

    /// Whether there is memory for one more request. Where it runs low, whoever has stood still for longest makes room
    /// for those who do not.
    pub fn has_memory(&self) -> bool {
        let memory = &self.global.memory;
        if memory.is_strained() {
            let (now, table) = (clock::now(), self.global.table.load());
            for _ in 0..AT_ONCE {
                let gone =
                    table.services.iter().filter(|service| service.shared.stalls.make_room(now)).count();
                if gone == 0 {
                    break;
                }
                (0..gone).for_each(|_| bump(&self.stats.shed));
            }
        }
        !memory.is_short()
    }

    /// A replica and a lease there.
    ///
    /// # Errors
    /// When no replica can take the request.
    pub fn choose(&self, service: &Service, wish: Wish<'_>) -> Result<Choice, Refusal> {
        let started = clock::now();
        let choice = self.chooser.choose(service, wish, started)?;
        let stats = &self.stats;
        bump(&stats.picks);
        if stats.picks.load(Relaxed).is_multiple_of(TIMED_ONE_IN) {
            let took = clock::now().since(started).as_nanos();
            stats.picks_timed_ns.fetch_add(u64::try_from(took).unwrap_or(u64::MAX), Relaxed);
            bump(&stats.picks_timed);
        }
        if choice.fresh {
            bump(&stats.picks_fresh);
        }
        match choice.reason {
            Reason::Algorithm => {}
            Reason::Fallback(_) => bump(&stats.picks_fallback),
            Reason::Exploration => bump(&stats.picks_exploration),
            Reason::Sticky => bump(&stats.picks_sticky),
        }
        self.log(service, &choice);
        Ok(choice)
    }

    fn log(&self, service: &Service, choice: &Choice) {
        let settings = &self.global.settings;
        let replica = choice.lease.replica();
        if settings.debug_routing {
            tracing::info!(
                service = service.name,
                task = %replica.task,
                node = replica.node,
                algorithm = ?service.algorithm,
                reason = ?choice.reason,
                candidates = choice.candidates,
                in_flight = replica.in_flight(),
                "routed"
            );
        }
        let every = settings.log_every_n_requests;
        if every > 0 && self.stats.picks.load(Relaxed).is_multiple_of(every) {
            self.log_summary(service);
        }
    }

    /// At most once a second, however many requests there are.
    fn log_summary(&self, service: &Service) {
        let now = clock::now();
        if now.since(self.logged.get()) < LOG_PAUSE {
            return;
        }
        self.logged.set(now);
        tracing::info!(
            requests = self.stats.requests.load(Relaxed),
            retries = self.stats.retries.load(Relaxed),
            failures = self.stats.upstream_failures.load(Relaxed),
            service = service.name,
            "requests so far"
        );
    }

    /// Notes how an attempt at a replica ended, which took it so long.
    pub fn ended(&self, service: &Service, replica: &Replica, ended: Ended, took: Duration) {
        if matches!(ended, Ended::Answered(_)) {
            service.shared.first_byte.add(took);
        }
        if ended.is_failure() {
            self.note_broken(replica);
        } else if matches!(ended, Ended::Answered(_)) {
            self.note(replica, Outcome::Answered(took));
        }
    }

    /// A replica has failed.
    pub fn note_broken(&self, replica: &Replica) {
        bump(&self.stats.upstream_failures);
        self.note(replica, Outcome::Failed);
    }

    fn note(&self, replica: &Replica, outcome: Outcome) {
        if replica.record(outcome, clock::now()) {
            bump(&self.stats.ejections);
            tracing::warn!(task = %replica.task, node = replica.node, "a replica fails and is left out for a while");
        }
    }

    /// A request is sent to another replica.
    pub fn retried(&self, service: &Service) {
        bump(&self.stats.retries);
        service.shared.retries.fetch_add(1, Relaxed);
    }

    /// Counts a request that no replica answered; what the client is told, if it is still there.
    pub fn count_failure(&self, service: &Service, ended: Ended) -> Option<StatusCode> {
        let stats = &self.stats;
        let (counter, status) = match ended {
            Ended::Unsent => (&stats.failed_unreachable, StatusCode::SERVICE_UNAVAILABLE),
            Ended::Broken | Ended::Answered(_) => (&stats.failed_broken, StatusCode::BAD_GATEWAY),
            Ended::Unreadable => (&stats.failed_unreadable, StatusCode::BAD_GATEWAY),
            Ended::TooLarge => (&stats.failed_too_large, StatusCode::BAD_GATEWAY),
            Ended::TimedOut => (&stats.failed_timeout, StatusCode::GATEWAY_TIMEOUT),
            Ended::Client => return None,
        };
        bump(counter);
        service.shared.answered(status.as_u16());
        Some(status)
    }

    /// Keeps a connection for the next request to the same replica.
    pub fn keep(&self, replica: &Replica, connection: Http1) {
        if !replica.draining() {
            let most = self.global.settings.idle_per_replica as usize;
            self.pools.give(replica.key, connection, most, clock::now());
        }
    }
}
