//! The whole balancer: workers on threads of their own, and one control task that owns the registry.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use arc_swap::ArcSwap;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use swarmguard_common::{domain::TaskId, time::Time};
use swarmguard_runtime::clock;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use crate::{
    admin, drain,
    figures::Figures,
    health,
    memory::Memory,
    proxy::{Global, accept, seats::Addresses, tls},
    registry::Registry,
    settings::Settings,
    source::{
        Picture, addresses, agents,
        best::{self, Heard},
        dns, feed, fixed,
    },
    stats::Stats,
};

/// Routes older than this do not count as spoken for: DNS steps in.
const STALE: Duration = Duration::from_secs(5);
/// Without any coordinator for so long, drains that were announced are forgotten.
const DRAIN_LAPSE: Duration = Duration::from_secs(30);
/// Time given to coordinators at start before DNS steps in.
const START: Duration = Duration::from_secs(2);
/// Drains remembered of one coordinator.
const MAX_ANNOUNCED: usize = 1_024;
/// Open files that are no connections of clients and none made for them.
const OWN_FILES: u64 = 128;
/// Events of sources that wait; sources wait when it is full.
const QUEUE: usize = 64;

/// A running balancer.
#[derive(Debug)]
pub struct Balancer {
    /// Where it listens: plain, then TLS where served.
    pub addresses: Vec<SocketAddr>,
    /// Where `/metrics` and `/healthz` are.
    pub admin: SocketAddr,
    /// What its workers read.
    pub global: Arc<Global>,
    close: watch::Sender<bool>,
    threads: Vec<std::thread::JoinHandle<()>>,
    control: tokio::task::JoinSet<()>,
}

impl Balancer {
    /// Starts everything; returns when all listeners are open.
    ///
    /// # Errors
    /// When an address cannot be bound, or the certificate cannot be used.
    pub async fn start(mut settings: Settings) -> Result<Self> {
        settings.max_connections = affordable(settings.max_connections);
        let workers = worker_count(settings.workers);
        let registry = Registry::new(settings.weighing());
        let (close, closing) = watch::channel(false);
        let tls = match (&settings.tls_cert, &settings.tls_key) {
            (Some(certificate), Some(key)) => {
                Some(Arc::new(ArcSwap::from_pointee(tls::load(certificate, key)?)))
            }
            _ => None,
        };
        let started = clock::now();
        let global = Arc::new(Global {
            table: registry.table(),
            stats: Arc::new(Stats::new(workers, started)),
            tls,
            closing,
            memory: Memory::new(settings.client_memory_bytes),
            addresses: Addresses::new(settings.per_address()),
            routed: AtomicBool::new(false),
            started,
            figures: watch::Sender::default(),
            settings,
        });
        let listener = TcpListener::bind(global.settings.admin_addr)
            .await
            .with_context(|| format!("cannot listen on {} (--admin-addr)", global.settings.admin_addr))?;
        let admin = listener.local_addr()?;
        let checks = swarmguard_runtime::health::listener(admin::HEALTH_NAME, admin.port())
            .with_context(|| format!("cannot listen for health checks of --admin-addr {admin}"))?;
        let mut control = tokio::task::JoinSet::new();
        let (events_in, events) = mpsc::channel(QUEUE);
        spawn_sources(&mut control, &global, registry, events_in, events).await;
        control.spawn(health::run(Arc::clone(&global)));
        control.spawn(admin::run(Arc::clone(&global), listener));
        let judged = Arc::clone(&global);
        control.spawn(swarmguard_runtime::health::answer(checks, move || admin::health(&judged)));
        control.spawn(tick(Arc::clone(&global)));
        if let (Some(certificate), Some(key), Some(current)) =
            (&global.settings.tls_cert, &global.settings.tls_key, &global.tls)
        {
            control.spawn(tls::watch(certificate.clone(), key.clone(), Arc::clone(current)));
        }
        let (threads, addresses) = spawn_workers(&global, workers).await?;
        tracing::info!(?addresses, %admin, workers, "balancing");
        Ok(Self { addresses, admin, global, close, threads, control })
    }

    /// Stops taking connections, lets requests in flight end within the grace, and ends.
    pub async fn stop(mut self) {
        let _ = self.close.send(true);
        let threads = std::mem::take(&mut self.threads);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a worker had panicked");
                }
            }
        });
        let _ = joined.await;
        self.control.shutdown().await;
    }
}

/// As many connections as there are descriptors for: one for the client, one for the replica.
fn affordable(asked: u32) -> u32 {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let now = if setrlimit(Resource::Nofile, all).is_ok() { limit.maximum } else { limit.current };
    let Some(files) = now else { return asked };
    let most = u32::try_from(files.saturating_sub(OWN_FILES) / 2).unwrap_or(u32::MAX).max(1);
    if most < asked {
        tracing::warn!(
            files,
            asked,
            most,
            "fewer connections than asked for: raise the limit of open files (nofile)"
        );
    }
    asked.min(most)
}

fn worker_count(asked: u16) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(256),
        asked => asked.into(),
    }
}

async fn spawn_workers(
    global: &Arc<Global>,
    workers: usize,
) -> Result<(Vec<std::thread::JoinHandle<()>>, Vec<SocketAddr>)> {
    let (ready_in, mut ready) = mpsc::channel(workers);
    let mut threads = Vec::new();
    for index in 0..workers {
        let (global, ready) = (Arc::clone(global), ready_in.clone());
        let run = move || {
            accept::run(global, index, |listening| {
                // The receiver is there until every worker has reported.
                let _ = ready.try_send(listening);
            });
        };
        threads.push(std::thread::Builder::new().name(format!("worker-{index}")).spawn(run)?);
    }
    drop(ready_in);
    let mut addresses = Vec::new();
    for _ in 0..workers {
        addresses = ready.recv().await.ok_or_else(|| anyhow!("a worker did not start"))??;
    }
    Ok((threads, addresses))
}

async fn spawn_sources(
    control: &mut tokio::task::JoinSet<()>,
    global: &Arc<Global>,
    mut registry: Registry,
    events_in: mpsc::Sender<feed::Event>,
    events: mpsc::Receiver<feed::Event>,
) {
    let settings = &global.settings;
    let names = dns::Names::from_system();
    if !settings.worker_nodes.is_empty() {
        // Once before the first request can come.
        let nodes = Arc::new(settings.worker_nodes.clone());
        let name = settings.target_service.first().map_or("default", |it| dns::split(it, 0).0).to_owned();
        registry.apply(&fixed::picture(&names, &nodes, &name, settings.target_port).await, clock::now());
        let (interval, port) = (settings.dns_interval.min(settings.cache_ttl), settings.target_port);
        let metrics_port = settings.metrics_port;
        control.spawn(async move {
            loop {
                let mut picture = fixed::picture(&names, &nodes, &name, port).await;
                agents::fill(&mut picture, metrics_port).await;
                registry.apply(&picture, clock::now());
                tokio::time::sleep(interval).await;
            }
        });
        return;
    }
    let targets = settings.target_service.iter().map(|it| dns::split(it, settings.target_port));
    let targets: Vec<(String, u16)> = targets.map(|(name, port)| (name.to_owned(), port)).collect();
    if settings.coordinators.is_empty() {
        if targets.is_empty() {
            tracing::warn!(
                "there is nothing to balance: set SWARMGUARD_COORDINATORS, TARGET_SERVICE or WORKER_NODES"
            );
        }
    } else {
        control.spawn(feed::run(Arc::clone(global), names.clone(), events_in.clone()));
    }
    let sources = Sources {
        global: Arc::clone(global),
        registry,
        names,
        targets,
        started: clock::now(),
        with_feed: !settings.coordinators.is_empty(),
        heard: BTreeMap::new(),
        last_heard: None,
        lapsed: true,
        announced: BTreeMap::new(),
        orphans: Vec::new(),
    };
    control.spawn(sources.run(events, events_in, settings.dns_interval));
}

/// The control task: joins what coordinators and DNS say.
struct Sources {
    global: Arc<Global>,
    registry: Registry,
    names: dns::Names,
    targets: Vec<(String, u16)>,
    started: Time,
    with_feed: bool,
    /// What each coordinator's newest routes say of themselves.
    heard: BTreeMap<SocketAddr, Heard>,
    last_heard: Option<Time>,
    /// Whether drains were forgotten since a coordinator was heard.
    lapsed: bool,
    /// What each coordinator announced and did not take back.
    announced: BTreeMap<SocketAddr, BTreeSet<TaskId>>,
    /// The same of coordinators that were lost, with the time of the loss: whoever takes over announces it again.
    orphans: Vec<(Time, BTreeSet<TaskId>)>,
}

impl Sources {
    // `_keep` holds the channel open where there is no feed.
    async fn run(
        mut self,
        mut events: mpsc::Receiver<feed::Event>,
        _keep: mpsc::Sender<feed::Event>,
        dns_interval: Duration,
    ) {
        let mut look = tokio::time::interval(dns_interval);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (resolved_in, mut resolved) = mpsc::channel(1);
        let mut resolving = false;
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some((from, said)) => self.hear(from, said),
                    None => return,
                },
                answer = resolved.recv() => {
                    resolving = false;
                    if let Some(answer) = answer && self.unheard() {
                        self.fall_back(&answer);
                    }
                }
                _ = look.tick() => {
                    self.lapse();
                    self.global.routed.store(self.with_feed && !self.unheard() && self.last_heard.is_some(), Relaxed);
                    if self.unheard() && !resolving {
                        resolving = true;
                        let (names, services, back) = (self.names.clone(), self.service_names(), resolved_in.clone());
                        tokio::spawn(async move {
                            let _ = back.send(names.tasks(services).await).await;
                        });
                    }
                }
            }
        }
    }

    fn hear(&mut self, from: SocketAddr, said: feed::Said) {
        let now = clock::now();
        match said {
            // A coordinator that has not read the swarm yet knows of nothing; that is not the same as nothing.
            feed::Said::Routes(routes) if routes.revision == 0 => {}
            feed::Said::Routes(routes) => {
                self.heard.insert(from, Heard::of(&routes, now));
                self.heard.retain(|_, heard| now.since(heard.at) < STALE && heard.counts(now));
                if best::best(&self.heard, now) == Some(from) {
                    if self.unheard() {
                        tracing::info!(coordinator = %from, services = routes.services.len(), "routes are known again");
                    }
                    self.last_heard = Some(now);
                    self.global.routed.store(true, Relaxed);
                    self.lapsed = false;
                    let subnets = addresses::subnets(Path::new("/proc"));
                    self.registry.apply(&feed::picture(&routes, &subnets), now);
                }
            }
            feed::Said::Drain(tasks, back) => {
                self.orphans.iter_mut().for_each(|(_, orphans)| orphans.retain(|task| !tasks.contains(task)));
                self.announced.entry(from).or_default().extend(tasks.iter().cloned());
                self.drain(&tasks, back);
            }
            feed::Said::Resume(tasks) => {
                tracing::info!(?tasks, "replicas stay after all");
                self.forget(&tasks);
                self.registry.resume(&tasks);
            }
            feed::Said::Lost => {
                self.heard.remove(&from);
                if let Some(tasks) = self.announced.remove(&from) {
                    self.orphans.push((now, tasks));
                }
            }
        }
    }

    fn forget(&mut self, tasks: &[TaskId]) {
        let orphans = self.orphans.iter_mut().map(|(_, orphans)| orphans);
        for announced in self.announced.values_mut().chain(orphans) {
            announced.retain(|task| !tasks.contains(task));
        }
    }

    fn drain(&mut self, tasks: &[TaskId], back: mpsc::Sender<Vec<TaskId>>) {
        let replicas = self.registry.drain(tasks, clock::now());
        tracing::info!(?tasks, known = replicas.len(), "replicas are about to be stopped");
        let known: BTreeSet<_> = replicas.iter().map(|replica| replica.task.clone()).collect();
        let unknown: Vec<_> = tasks.iter().filter(|task| !known.contains(*task)).cloned().collect();
        if !unknown.is_empty() {
            // Nothing is in flight at what was never known.
            let _ = back.try_send(unknown);
        }
        tokio::spawn(drain::wait(replicas, move |tasks| {
            tracing::info!(?tasks, "drained");
            // A full queue means a coordinator that does not read; it waits with a deadline of its own.
            let _ = back.try_send(tasks);
        }));
    }

    /// Whether no coordinator has spoken for a while.
    fn unheard(&self) -> bool {
        let now = clock::now();
        match self.last_heard {
            Some(heard) => now.since(heard) > STALE,
            None => !self.with_feed || now.since(self.started) > START,
        }
    }

    /// Takes back what was announced by coordinators that are gone for long.
    fn lapse(&mut self) {
        let now = clock::now();
        let (old, young) = std::mem::take(&mut self.orphans)
            .into_iter()
            .partition::<Vec<_>, _>(|(lost, _)| now.since(*lost) > DRAIN_LAPSE);
        self.orphans = young;
        for (_, tasks) in old {
            let again = |task: &TaskId| self.announced.values().any(|announced| announced.contains(task));
            let tasks: Vec<TaskId> = tasks.into_iter().filter(|task| !again(task)).collect();
            if !tasks.is_empty() {
                tracing::warn!(
                    ?tasks,
                    "the coordinator that announced these is gone: they may take requests again"
                );
                self.registry.resume(&tasks);
            }
        }
        // Nothing stopped is listed any more, so what is left here is little: a picture may still name what drains.
        for announced in self.announced.values_mut() {
            while announced.len() > MAX_ANNOUNCED {
                announced.pop_first();
            }
        }
        let silent = self.last_heard.is_some_and(|heard| now.since(heard) > DRAIN_LAPSE);
        if silent && !self.lapsed {
            tracing::warn!(
                "no coordinator speaks: the last known routes are kept, announced drains are forgotten"
            );
            self.lapsed = true;
            self.registry.resume_all();
        }
    }

    fn service_names(&self) -> Vec<String> {
        let known = self.registry.pictures().map(|service| service.name.clone());
        let all: BTreeSet<String> = known.chain(self.targets.iter().map(|(name, _)| name.clone())).collect();
        all.into_iter().collect()
    }

    fn fall_back(&mut self, resolved: &dns::Resolved) {
        let mut picture: Picture = dns::picture(self.registry.pictures(), &self.targets, resolved);
        if !self.lapsed {
            // Until drains lapse, what was about to be stopped stays out.
            let draining =
                self.registry.pictures().flat_map(|service| &service.replicas).filter(|it| it.draining);
            let draining: BTreeSet<_> = draining.map(|it| it.task.clone()).collect();
            let replicas = picture.services.iter_mut().flat_map(|service| &mut service.replicas);
            replicas.filter(|it| draining.contains(&it.task)).for_each(|it| it.draining = true);
        }
        if self.registry.apply(&picture, clock::now()) {
            tracing::info!("replicas changed, by DNS");
        }
    }
}

async fn tick(global: Arc<Global>) {
    let mut figures = Figures::default();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = clock::now();
        global.stats.tick(now);
        global.figures.send_replace(Arc::new(figures.make(&global, now)));
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the balancer cannot start.
pub async fn until_signal(settings: Settings) -> Result<()> {
    let balancer = Balancer::start(settings).await?;
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = term.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    if balancer.threads.iter().any(std::thread::JoinHandle::is_finished) {
        bail!("a worker ended by itself");
    }
    tracing::info!("stopping: requests in flight may end");
    balancer.stop().await;
    Ok(())
}
