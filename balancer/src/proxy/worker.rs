//! A worker: one thread, one runtime, its own listeners, connections, leases and counters.

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use swarmguard_common::time::Time;
use swarmguard_runtime::clock;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::Semaphore,
    task::LocalSet,
};

use super::{Global, fast, serve, upstream::Http1, upstream::Pools};
use crate::{
    choose::{Choice, Chooser, Refusal, Wish},
    lease::Ledger,
    pick::Reason,
    replica::{Outcome, Replica},
    service::Service,
    stats::{WorkerStats, bump},
};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4_096;

/// One pick in so many is timed.
const TIMED_ONE_IN: u64 = 16;

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
    pub fast: fast::Pools,
    chooser: Chooser,
    ledger: Rc<Ledger>,
    /// When a summary was logged last.
    logged: Cell<Time>,
}

/// Runs a worker on the calling thread until the balancer closes; `ready` is told once it listens, or why it cannot.
pub fn run(global: Arc<Global>, index: usize, ready: impl FnOnce(io::Result<Vec<SocketAddr>>)) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ready(Err(error)),
    };
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        match Listeners::open(&global).await {
            Ok(listeners) => {
                ready(listeners.addresses());
                let worker = Rc::new(Worker::new(global, index));
                worker.serve(listeners).await;
            }
            Err(error) => ready(Err(error)),
        }
    });
}

struct Listeners {
    plain: TcpListener,
    tls: Option<TcpListener>,
}

impl Listeners {
    async fn open(global: &Global) -> io::Result<Self> {
        let settings = &global.settings;
        let plain = listen(SocketAddr::new(settings.listen_ip, settings.port))?;
        let tls = match &global.tls {
            Some(_) => Some(listen(SocketAddr::new(settings.listen_ip, settings.tls_port))?),
            None => None,
        };
        Ok(Self { plain, tls })
    }

    fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        [Some(&self.plain), self.tls.as_ref()].into_iter().flatten().map(TcpListener::local_addr).collect()
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
    socket.bind(address).map_err(named)?;
    socket.listen(BACKLOG).map_err(named)
}

impl Worker {
    fn new(global: Arc<Global>, index: usize) -> Self {
        let ledger = Rc::new(Ledger::default());
        let stats = global.stats.workers().get(index).cloned().unwrap_or_default();
        let chooser = Chooser::new(Rc::clone(&ledger), global.settings.tuning(), fastrand::u64(..));
        Self {
            global,
            stats,
            pools: Pools::default(),
            fast: fast::Pools::default(),
            chooser,
            ledger,
            logged: Cell::default(),
        }
    }

    async fn serve(self: Rc<Self>, listeners: Listeners) {
        tokio::task::spawn_local(Rc::clone(&self).sweep());
        let workers = u32::try_from(self.global.stats.workers().len()).unwrap_or(1).max(1);
        let share = self.global.settings.max_connections.div_ceil(workers);
        let room = Arc::new(Semaphore::new(share as usize));
        let mut closing = self.global.closing.clone();
        tokio::select! {
            () = self.accept(&listeners, &room) => {}
            _ = closing.wait_for(|closing| *closing) => {}
        }
        drop(listeners);
        // All permits are back when the last connection has ended.
        let _ = tokio::time::timeout(self.global.settings.shutdown_grace, room.acquire_many(share)).await;
    }

    async fn accept(self: &Rc<Self>, listeners: &Listeners, room: &Arc<Semaphore>) {
        loop {
            let Ok(permit) = Arc::clone(room).acquire_owned().await else { return };
            let (accepted, tls) = match &listeners.tls {
                None => (listeners.plain.accept().await, false),
                Some(tls) => tokio::select! {
                    accepted = listeners.plain.accept() => (accepted, false),
                    accepted = tls.accept() => (accepted, true),
                },
            };
            match accepted {
                Ok((stream, peer)) => {
                    let worker = Rc::clone(self);
                    tokio::task::spawn_local(async move {
                        bump(&worker.stats.connections);
                        serve::connection(&worker, stream, peer, tls).await;
                        bump(&worker.stats.connections_closed);
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: those in use will be closed sooner or later.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Expires old leases and closes connections that nobody needs.
    async fn sweep(self: Rc<Self>) {
        let settings = &self.global.settings;
        loop {
            tokio::time::sleep(settings.lease_cleanup_interval).await;
            let now = clock::now();
            let expired = self.ledger.expire(settings.lease_duration, now);
            self.stats.leases_expired.fetch_add(u64::try_from(expired).unwrap_or(0), Relaxed);
            let table = self.global.table.load();
            let replicas = || table.services.iter().flat_map(|service| &service.replicas);
            let wanted = |key| replicas().any(|it| it.key == key && !it.draining());
            self.pools.purge(wanted, now);
            self.fast.purge(wanted, now);
        }
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

    /// Notes how a request to a replica ended.
    pub fn note(&self, replica: &Replica, outcome: Outcome) {
        if outcome == Outcome::Failed {
            bump(&self.stats.upstream_failures);
        }
        if replica.record(outcome, clock::now()) {
            bump(&self.stats.ejections);
            tracing::warn!(task = %replica.task, node = replica.node, "a replica fails and is left out for a while");
        }
    }

    /// Keeps a connection for the next request to the same replica.
    pub fn keep(&self, replica: &Replica, connection: Http1) {
        if !replica.draining() {
            let most = self.global.settings.idle_per_replica as usize;
            self.pools.give(replica.key, connection, most, clock::now());
        }
    }
}
