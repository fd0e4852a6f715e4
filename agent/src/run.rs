//! The running agent: what it finds at start, and the loop around the sampler.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use swarmguard_common::{
    clock::{self, Time},
    domain::{ContainerId, NodeId},
    wire::agent::{ContainerChange, Hello},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    bpf::{EventSource, GroupEvent, is_cgroup2},
    config::{Link, Settings},
    discovery::{
        engine::{Engine, EngineError, Happening, What},
        scan::{self, Found},
        watch::Watch,
    },
    http::{self, Served},
    model::Capacity,
    sampler::Sampler,
    sources::{network::Networks, node},
    state::{Agent, Description},
    uplink::{
        self, Shared, Uplink,
        addresses::{Addresses, Wanted},
    },
};

/// The whole hierarchy is walked this often; in between, births and deaths are heard of.
const WALK_INTERVAL: Duration = Duration::from_secs(10);

/// Directories that hold containers are looked at this often where inotify is not to be had.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The engine's list is asked for this often, in case an event was lost.
const LIST_INTERVAL: Duration = Duration::from_secs(30);

/// Link speed assumed where neither the driver nor the operator says.
pub const ASSUMED_MBPS: u32 = 1_000;

/// Messages of the engine that wait for the loop.
const ENGINE_QUEUE: usize = 1_024;

/// Containers that the kernel told to stall.
const STALL_QUEUE: usize = 64;

/// Containers that wait to be asked about.
const BIRTH_QUEUE: usize = 4_096;

/// Where the node's cgroup v2 hierarchy really is below `configured`: there, or where a hybrid setup puts it.
pub fn cgroup_root(configured: &Path) -> Option<PathBuf> {
    [configured.to_path_buf(), configured.join("unified")].into_iter().find(|path| is_cgroup2(path))
}

/// What the node has, and the link speed that the driver says.
pub fn capacity(settings: &Settings) -> (Capacity, Option<u32>) {
    let said = match settings.link_mbps {
        Link::Fixed(mbps) => Some(mbps),
        Link::Auto => node::link_mbps(&settings.proc_root),
    };
    let capacity = Capacity {
        cpu_millis: node::cpu_millis(&settings.proc_root),
        memory_bytes: node::memory_bytes(&settings.proc_root),
        network_mbps: Some(said.unwrap_or(ASSUMED_MBPS)),
    };
    (capacity, said)
}

/// Runs until told to stop.
///
/// # Errors
/// When nothing can work: neither containers can be seen nor anybody be told, or the HTTP address is taken.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let root = cgroup_root(&settings.cgroup_root);
    let engine = engine_of(&settings);
    let blind = root.is_none().then(|| {
        format!("no cgroup v2 at {}: containers cannot be seen; boot with systemd.unified_cgroup_hierarchy=1, or name \
                 the place with --cgroup-root", settings.cgroup_root.display())
    });
    let node_id = uplink::node_of(&settings.identity);
    if let Some(why) = &blind {
        if settings.coordinators == Wanted::None || node_id.is_err() {
            bail!("nothing can be done here: {why}; and there is no coordinator that could be told");
        }
        tracing::error!("{why}; coordinators are told that this node is blind");
    }
    let shared = Shared::new(agent(&settings, node_id.ok(), blind.is_some(), engine.is_some()).await?);
    let served = Served { shared: shared.clone(), vitals: Arc::new(Mutex::default()), blind };
    let mut tasks = tokio::task::JoinSet::new();
    if let Some(address) = settings.http() {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot serve HTTP on {address} (--http-addr)"))?;
        let served = served.clone();
        tasks.spawn(async move { http::serve(listener, served).await.context("the HTTP interface broke") });
    }
    if settings.coordinators != Wanted::None {
        let seed = shared.lock().hello.epoch;
        let uplink = Uplink {
            shared: shared.clone(),
            identity: settings.identity.clone(),
            addresses: Addresses::new(settings.coordinators.clone(), engine.clone()),
            endpoints: uplink::real_endpoints(),
            seed,
        };
        tasks.spawn(async move {
            uplink.run().await;
            Ok(())
        });
    }
    let looping = Loop::start(&settings, root, engine, shared, served);
    tokio::select! {
        () = looping.run() => Ok(()),
        Some(ended) = tasks.join_next() => ended.context("a part of the agent failed")?,
        stopped = stop() => stopped,
    }
}

async fn stop() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("stopping");
    Ok(())
}

fn engine_of(settings: &Settings) -> Option<Engine> {
    let socket = settings.docker.0.as_ref()?;
    match Engine::at(socket) {
        Ok(engine) => Some(engine),
        Err(error) => {
            tracing::warn!("{error}: containers have no names, the coordinator finds out what they are");
            if settings.coordinators == Wanted::Auto {
                tracing::error!(
                    "without an engine there is no way to find coordinators: list them in --coordinators"
                );
            }
            None
        }
    }
}

async fn agent(
    settings: &Settings,
    node: Option<NodeId>,
    blind: bool,
    engine: bool,
) -> anyhow::Result<Agent> {
    let (capacity, link_mbps) = capacity(settings);
    if link_mbps.is_none() {
        tracing::warn!(
            "the driver does not say how fast the link is: {ASSUMED_MBPS} Mbit/s are taken as 100 %; say it with \
             --link-mbps, or per service with the label swarmguard.network.mbps"
        );
    }
    if capacity.cpu_millis == 0 || capacity.memory_bytes == 0 {
        bail!(
            "{} shows neither CPUs nor memory: is the node's /proc mounted there (--proc-root)?",
            settings.proc_root.display()
        );
    }
    let hello = Hello {
        // Replaced as soon as there is a certificate; nothing is sent before.
        node: node.or_else(|| "unknown".parse().ok()).context("no node ID")?,
        epoch: clock::wall_ms(),
        hostname: hostname(&settings.proc_root),
        version: env!("CARGO_PKG_VERSION").into(),
        cpu_millis: capacity.cpu_millis,
        memory_bytes: capacity.memory_bytes,
        link_mbps,
        blind,
    };
    let most = usize::try_from(settings.max_containers).unwrap_or(usize::MAX);
    let mut agent = Agent::new(hello, capacity, most);
    agent.expect_names(engine);
    if settings.coordinators == Wanted::None {
        agent.tell_nobody();
    }
    Ok(agent)
}

/// The node's host name: inside a container the own one is the container's.
fn hostname(proc_root: &Path) -> String {
    // A container has a UTS namespace of its own, and /proc/sys/kernel/hostname shows the reader's, so the first
    // process's environment would be needed; the file below is what is left, and right where both are one.
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let read = std::fs::read_to_string(proc_root.join("sys/kernel/hostname"));
    read.map_or(own, |text| text.trim().chars().take(255).collect())
}

/// Ten files per container: the usual 1,024 would do for a hundred containers.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}

/// From the engine to the loop.
enum Told {
    Named(ContainerId, Description),
    All(BTreeSet<ContainerId>),
    Happened(Happening),
    /// The engine answers, or no longer does, and is it the first time?
    Present(bool),
    Host(String),
}

struct Loop {
    root: Option<PathBuf>,
    proc_root: PathBuf,
    sampler: Sampler,
    shared: Shared,
    served: Served,
    watch: Option<Watch>,
    kernel: Option<KernelEvents>,
    stalls: mpsc::Receiver<ContainerId>,
    told: mpsc::Receiver<Told>,
    births: mpsc::Sender<ContainerId>,
}

impl Loop {
    fn start(
        settings: &Settings,
        root: Option<PathBuf>,
        engine: Option<Engine>,
        shared: Shared,
        served: Served,
    ) -> Self {
        let place = root.clone().unwrap_or_else(|| settings.cgroup_root.clone());
        let (networks, findings) =
            Networks::open(&place, &settings.proc_root, settings.bpf && root.is_some());
        for finding in findings {
            match finding.ok {
                true => tracing::info!("{}: {}", finding.what, finding.detail),
                false => tracing::warn!("{}: {}; instead: {}", finding.what, finding.detail, finding.instead),
            }
        }
        let (tell, told) = mpsc::channel(ENGINE_QUEUE);
        let (births, asked) = mpsc::channel(BIRTH_QUEUE);
        if let Some(engine) = engine {
            tokio::spawn(ask(engine, tell, asked));
        }
        let watch = Watch::new()
            .map_err(|error| tracing::warn!("no inotify ({error}): looking every second instead"))
            .ok();
        let mut sampler =
            Sampler::new(shared.clone(), networks, &settings.proc_root, settings.budget, settings.interval);
        let (stalling, stalls) = mpsc::channel(STALL_QUEUE);
        sampler = sampler.telling_stalls(stalling);
        if !settings.adaptive {
            sampler = sampler.without_idling();
        }
        let kernel = sampler.kernel_events().and_then(KernelEvents::new);
        let proc_root = settings.proc_root.clone();
        Self { root, proc_root, sampler, shared, served, watch, kernel, stalls, told, births }
    }

    async fn run(mut self) {
        let mut due = Instant::now();
        let mut walk_at = due;
        let mut look_at = due;
        let mut walking = None;
        loop {
            tokio::select! {
                biased;
                () = sleep_until(due) => {
                    let interval = self.sampler.tick(clock::now(), due.elapsed());
                    *self.served.vitals.lock().unwrap_or_else(PoisonError::into_inner) = self.sampler.vitals();
                    // No catching up, and always room for the rest of the loop.
                    due = (due + interval).max(Instant::now() + interval / 4);
                }
                told = self.told.recv(), if !self.told.is_closed() || !self.told.is_empty() => {
                    if let Some(told) = told && self.hear(told) {
                        walk_at = Instant::now();
                    }
                }
                () = sleep_until(walk_at), if walking.is_none() => {
                    walk_at = Instant::now() + WALK_INTERVAL;
                    walking = self.walk();
                }
                walked = finished(&mut walking) => self.walked(walked),
                () = kernel_told(self.kernel.as_mut()) => {
                    if self.hear_kernel() {
                        walk_at = Instant::now();
                    }
                }
                stalling = self.stalls.recv(), if !self.stalls.is_closed() => {
                    if let Some(id) = stalling {
                        self.sampler.stalled(&id);
                        due = Instant::now();
                    }
                }
                changed = changed(self.watch.as_ref()) => {
                    if let Err(error) = changed {
                        tracing::warn!("inotify broke ({error}): looking every second instead");
                        self.watch = None;
                    }
                    self.look();
                }
                () = sleep_until(look_at), if self.watch.is_none() => {
                    self.look();
                    look_at = Instant::now() + LOOK_INTERVAL;
                }
            }
        }
    }

    /// Answers whether a walk is wanted: the engine speaks of a container that is not known.
    fn hear(&mut self, told: Told) -> bool {
        let now = clock::now();
        match told {
            Told::Named(id, description) => self.sampler.describe(&id, description),
            Told::All(known) => self.sampler.retain_known(now, &known),
            Told::Present(yes) => self.shared.lock().expect_names(yes),
            Told::Host(name) => self.shared.lock().hello.hostname = name,
            Told::Happened(Happening { container, task, what }) => {
                let mut agent = self.shared.lock();
                let wanted = match what {
                    What::Oom => {
                        if let Some(handle) = agent.handle_of(&container) {
                            agent.oom(now, handle);
                        }
                        false
                    }
                    What::Change(change) => {
                        agent.engine_event(now, container.clone(), task, change);
                        change == ContainerChange::Started && !self.sampler.knows(&container)
                    }
                };
                drop(agent);
                self.shared.wake();
                return wanted;
            }
        }
        false
    }

    /// Takes what the kernel told. Answers whether something may have been missed, so that a walk is wanted.
    fn hear_kernel(&mut self) -> bool {
        let Some(root) = self.root.clone() else { return false };
        let Some((events, missed)) = self.kernel.as_mut().map(KernelEvents::take) else { return false };
        let now = clock::now();
        let mut born = BTreeMap::new();
        for event in events {
            match event {
                GroupEvent::Birth { path, .. } => {
                    let dir = root.join(path.trim_start_matches('/'));
                    if let Some(id) = container_at(&dir) {
                        born.insert(id, dir);
                    }
                }
                GroupEvent::Death { path, .. } => {
                    if let Some(id) = container_at(Path::new(&path)) {
                        born.remove(&id);
                        self.sampler.ended(&id);
                    }
                }
                GroupEvent::OutOfMemory { cgroup_id, pid, .. } => self.killed(now, cgroup_id, pid),
            }
        }
        let new = self.sampler.found(now, &born, None);
        if !new.is_empty() {
            self.after_births(new);
        }
        missed
    }

    /// A process was killed for want of memory, in a container's cgroup or somewhere below it.
    fn killed(&mut self, now: Time, cgroup_id: u64, pid: u32) {
        let below = || {
            let text = std::fs::read_to_string(self.proc_root.join(pid.to_string()).join("cgroup")).ok()?;
            let id = text.split(['/', '\n']).find_map(scan::container_of)?;
            self.sampler.knows(&id).then_some(id)
        };
        if let Some(id) = self.sampler.container_of(cgroup_id).cloned().or_else(below) {
            tracing::info!(container = %id, pid, "the kernel kills a process for want of memory");
            let mut agent = self.shared.lock();
            if let Some(handle) = agent.handle_of(&id) {
                agent.oom(now, handle);
            }
            drop(agent);
            self.shared.wake();
        }
    }

    /// Begins to walk, in a thread of its own: a large hierarchy takes longer than a sampling interval.
    fn walk(&self) -> Option<Walking> {
        let root = self.root.clone()?;
        let began = clock::now();
        Some(tokio::task::spawn_blocking(move || (began, scan::walk(&root))))
    }

    fn walked(&mut self, walked: Option<(Time, Found)>) {
        let Some((began, found)) = walked else { return };
        if found.cut_short {
            tracing::warn!("more than {} cgroups: some containers may not be seen", scan::MAX_DIRECTORIES);
        }
        let all_before = (!found.cut_short).then_some(began);
        let new = self.sampler.found(clock::now(), &found.containers, all_before);
        self.after_births(new);
    }

    fn look(&mut self) {
        let parents = self.parents();
        let new = self.sampler.look(clock::now(), &parents);
        self.after_births(new);
    }

    fn after_births(&mut self, new: Vec<ContainerId>) {
        for id in new {
            // A full queue only delays the name: the engine's list brings it.
            let _ = self.births.try_send(id);
        }
        let parents = self.parents();
        if let Some(watch) = &mut self.watch {
            watch.set(parents.iter().map(PathBuf::as_path));
        }
    }

    /// Where containers are, and where the first one of each cgroup driver would be.
    fn parents(&self) -> BTreeSet<PathBuf> {
        let mut parents = self.sampler.parents();
        if let Some(root) = &self.root {
            parents.extend(
                [root.join("system.slice"), root.join("docker")].into_iter().filter(|path| path.is_dir()),
            );
        }
        parents
    }
}

/// A walk under way, and when it began.
type Walking = tokio::task::JoinHandle<(Time, Found)>;

/// The end of a walk; waits for ever where there is none.
async fn finished(walking: &mut Option<Walking>) -> Option<(Time, Found)> {
    let Some(handle) = walking else { return std::future::pending().await };
    let found = handle.await.ok();
    *walking = None;
    found
}

/// The container whose cgroup is at `path`, unless it lies within another one's.
fn container_at(path: &Path) -> Option<ContainerId> {
    let mut names = path.components().filter_map(|part| part.as_os_str().to_str());
    let id = scan::container_of(names.next_back()?)?;
    names.all(|above| scan::container_of(above).is_none()).then_some(id)
}

/// The kernel's events as the loop waits for them.
struct KernelEvents {
    source: EventSource,
    ready: AsyncFd<OwnedFd>,
    lost: u64,
}

/// Most events taken at once; the rest waits in the kernel's ring.
const EVENTS_AT_ONCE: usize = 1_024;

impl KernelEvents {
    fn new(source: EventSource) -> Option<Self> {
        let ready = source.as_fd().try_clone_to_owned().and_then(|copy| {
            // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives.
            Ok(unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE) }?)
        });
        match ready {
            Ok(ready) => Some(Self { lost: source.lost(), source, ready }),
            Err(error) => {
                tracing::warn!("the kernel's events cannot be waited for: {error}");
                None
            }
        }
    }

    /// All events that are there, and whether some were lost.
    fn take(&mut self) -> (Vec<GroupEvent>, bool) {
        let mut events = Vec::new();
        while events.len() < EVENTS_AT_ONCE {
            let Some(event) = self.source.next_event() else { break };
            events.push(event);
        }
        let lost = self.source.lost();
        // With some left behind, no further word may come for them.
        let missed = events.len() >= EVENTS_AT_ONCE || self.lost != lost;
        self.lost = lost;
        (events, missed)
    }
}

async fn kernel_told(events: Option<&mut KernelEvents>) {
    let Some(events) = events else { return std::future::pending().await };
    match events.ready.readable().await {
        // Cleared before the ring is read: what comes in between wakes again.
        Ok(mut ready) => ready.clear_ready(),
        Err(error) => {
            tracing::warn!("the kernel's events broke off: {error}");
            std::future::pending::<()>().await;
        }
    }
}

async fn changed(watch: Option<&Watch>) -> std::io::Result<()> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// Talks to the engine for as long as the loop listens. The engine may go away and come back.
async fn ask(engine: Engine, tell: mpsc::Sender<Told>, mut births: mpsc::Receiver<ContainerId>) {
    let mut failures = 0_u32;
    loop {
        let error = match follow(&engine, &tell, &mut births, &mut failures).await {
            Ok(()) => return,
            Err(error) => error,
        };
        if failures == 0 {
            tracing::warn!("{error}: new containers stay without names until the engine is back");
        }
        if tell.send(Told::Present(false)).await.is_err() {
            return;
        }
        failures = failures.saturating_add(1);
        sleep(Duration::from_secs(u64::from(failures.min(10)))).await;
    }
}

/// Ends with `Ok` when the loop no longer listens.
async fn follow(
    engine: &Engine,
    tell: &mpsc::Sender<Told>,
    births: &mut mpsc::Receiver<ContainerId>,
    failures: &mut u32,
) -> Result<(), EngineError> {
    // The stream first: what happens while the list is made is heard of, too.
    let mut events = engine.events();
    let (_, name) = engine.node().await?;
    if std::mem::take(failures) > 0 {
        tracing::info!("the engine is back");
    }
    let said = match name {
        Some(name) => tell.send(Told::Host(name)).await,
        None => Ok(()),
    };
    if said.is_err() || tell.send(Told::Present(true)).await.is_err() {
        return Ok(());
    }
    let mut named = BTreeMap::new();
    let mut list_at = Instant::now();
    loop {
        tokio::select! {
            event = events.next() => {
                let event = event.ok_or(EngineError::Late { what: "events" })??;
                let id = event.container.clone();
                let what = event.what;
                if tell.send(Told::Happened(event)).await.is_err() { return Ok(()) }
                match what {
                    What::Change(ContainerChange::Died { .. }) => drop(named.remove(&id)),
                    // Asked about at its birth it had no process yet.
                    What::Change(ContainerChange::Started) if !named.contains_key(&id) => {
                        if let Ok(description) = engine.inspect(&id).await {
                            named.insert(id.clone(), ());
                            if tell.send(Told::Named(id, description)).await.is_err() { return Ok(()) }
                        }
                    }
                    What::Change(_) | What::Oom => {}
                }
            }
            () = sleep_until(list_at) => {
                list_at = Instant::now() + LIST_INTERVAL;
                let listed = engine.list().await?;
                named.retain(|id, ()| listed.contains_key(id));
                if tell.send(Told::All(listed.keys().cloned().collect())).await.is_err() { return Ok(()) }
                for (id, short) in listed {
                    if named.contains_key(&id) { continue }
                    let description = engine.inspect(&id).await.unwrap_or(short);
                    named.insert(id.clone(), ());
                    if tell.send(Told::Named(id, description)).await.is_err() { return Ok(()) }
                }
            }
            birth = births.recv() => {
                let Some(id) = birth else { return Ok(()) };
                // The cgroup is there before the engine calls the container started; its name is known already.
                if let Ok(description) = engine.inspect(&id).await {
                    let whole = description.pid.is_some();
                    if tell.send(Told::Named(id.clone(), description)).await.is_err() { return Ok(()) }
                    if whole { named.insert(id, ()); }
                }
            }
        }
    }
}
