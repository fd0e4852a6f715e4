//! The loop around the sampler: ticks, and everything that makes containers come and go in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::PoisonError,
    time::Duration,
};

use swarmguard_common::{domain::ContainerId, time::Time, wire::agent::ContainerChange};
use swarmguard_runtime::clock;
use tokio::sync::mpsc;

use super::alarm::Alarm;
use super::kernel::{KernelEvents, kernel_told};
use crate::{
    bpf::GroupEvent,
    config::Settings,
    discovery::{
        engine::{Engine, Happening, What},
        follow::{Told, ask},
        scan::{self, Found},
        watch::Watch,
    },
    http::Served,
    sampler::Sampler,
    sources::{network::Networks, node_group::NodeGroup},
    uplink::Shared,
};

/// The whole hierarchy is walked this often; in between, births and deaths are heard of.
const WALK_INTERVAL: Duration = Duration::from_secs(10);

/// Directories that hold containers are looked at this often where inotify is not to be had.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Messages of the engine that wait for the loop.
const ENGINE_QUEUE: usize = 1_024;

/// Directories with containers that the kernel told to stall.
const STALL_QUEUE: usize = 64;

/// Containers that wait to be asked about.
const BIRTH_QUEUE: usize = 4_096;

pub(super) struct Loop {
    root: Option<PathBuf>,
    proc_root: PathBuf,
    sampler: Sampler,
    shared: Shared,
    served: Served,
    watch: Option<Watch>,
    kernel: Option<KernelEvents>,
    stalls: mpsc::Receiver<PathBuf>,
    told: mpsc::Receiver<Told>,
    births: mpsc::Sender<ContainerId>,
    /// When the next tick is due, and the earliest time at which events may have it.
    alarm: Alarm,
    rested: Time,
    walk_at: Time,
    look_at: Time,
}

impl Loop {
    /// Loads the programs and begins to follow the engine.
    pub(super) fn start(
        settings: &Settings,
        root: Option<PathBuf>,
        group: Option<NodeGroup>,
        engine: Option<Engine>,
        shared: Shared,
        served: Served,
    ) -> std::io::Result<Self> {
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
        sampler = sampler.of_node(group).telling_stalls(stalling);
        if !settings.adaptive {
            sampler = sampler.without_idling();
        }
        let kernel = sampler.kernel_events().and_then(KernelEvents::new);
        let (proc_root, now) = (settings.proc_root.clone(), clock::now());
        Ok(Self {
            root,
            proc_root,
            sampler,
            shared,
            served,
            watch,
            kernel,
            stalls,
            told,
            births,
            alarm: Alarm::new()?,
            rested: now,
            walk_at: now,
            look_at: now,
        })
    }

    /// Samples and listens, for ever.
    ///
    /// # Errors
    /// When the timer breaks.
    pub(super) async fn run(mut self) -> std::io::Result<()> {
        let mut walking = None;
        loop {
            tokio::select! {
                biased;
                rang = self.alarm.wait() => {
                    rang?;
                    self.tick()?;
                    if walking.is_none() && self.walk_at <= clock::now() {
                        self.walk_at = clock::now() + WALK_INTERVAL;
                        walking = self.walk();
                    }
                }
                told = self.told.recv(), if !self.told.is_closed() || !self.told.is_empty() => {
                    if let Some(told) = told && self.hear(told) {
                        self.walk_at = clock::now();
                    }
                }
                walked = finished(&mut walking) => self.walked(walked)?,
                () = kernel_told(self.kernel.as_mut()) => {
                    if self.hear_kernel()? {
                        self.walk_at = clock::now();
                    }
                }
                stalling = self.stalls.recv(), if !self.stalls.is_closed() => {
                    if let Some(parent) = stalling {
                        self.sampler.stalled(&parent);
                        self.hurry()?;
                    }
                }
                changed = changed(self.watch.as_ref()) => {
                    if let Err(error) = changed {
                        tracing::warn!("inotify broke ({error}): looking every second instead");
                        self.watch = None;
                    }
                    self.look()?;
                }
            }
        }
    }

    fn tick(&mut self) -> std::io::Result<()> {
        let (now, due) = (clock::now(), self.alarm.due());
        // Woken too early: it is set already.
        if now < due {
            return Ok(());
        }
        let interval = self.sampler.tick(now, now.since(due));
        *self.served.vitals.lock().unwrap_or_else(PoisonError::into_inner) = self.sampler.vitals();
        if self.watch.is_none() && self.look_at <= now {
            self.look_at = now + LOOK_INTERVAL;
            self.look()?;
        }
        // No catching up, and always room for the rest of the loop.
        self.rested = clock::now() + interval / 4;
        self.alarm.set((due + interval).max(self.rested))
    }

    /// Has the next tick as soon as may be: something is there that may be gone when it would be due. A storm of such
    /// events makes ticks four times as frequent, and no more.
    fn hurry(&mut self) -> std::io::Result<()> {
        if self.rested < self.alarm.due() { self.alarm.set(self.rested) } else { Ok(()) }
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
    fn hear_kernel(&mut self) -> std::io::Result<bool> {
        let Some(root) = self.root.clone() else { return Ok(false) };
        let Some((events, missed)) = self.kernel.as_mut().map(KernelEvents::take) else { return Ok(false) };
        let now = clock::now();
        let mut born = BTreeMap::new();
        for event in events {
            match event {
                GroupEvent::Birth { path, .. } => {
                    let dir = root.join(path.trim_start_matches('/'));
                    if let Some(id) = scan::container_at(&dir) {
                        born.insert(id, dir);
                    }
                }
                GroupEvent::Death { path, .. } => {
                    if let Some(id) = scan::container_at(Path::new(&path)) {
                        born.remove(&id);
                        self.sampler.ended(&id);
                    }
                }
                GroupEvent::OutOfMemory { cgroup_id, pid, .. } => self.killed(now, cgroup_id, pid),
            }
        }
        let new = self.sampler.found(now, &born, None);
        if !new.is_empty() {
            self.after_births(new)?;
        }
        Ok(missed)
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

    fn walked(&mut self, walked: Option<(Time, Found)>) -> std::io::Result<()> {
        let Some((began, found)) = walked else { return Ok(()) };
        if found.cut_short {
            tracing::warn!("more than {} cgroups: some containers may not be seen", scan::MAX_DIRECTORIES);
        }
        let all_before = (!found.cut_short).then_some(began);
        let new = self.sampler.found(clock::now(), &found.containers, all_before);
        self.after_births(new)
    }

    fn look(&mut self) -> std::io::Result<()> {
        let parents = self.parents();
        let new = self.sampler.look(clock::now(), &parents);
        self.after_births(new)
    }

    fn after_births(&mut self, new: Vec<ContainerId>) -> std::io::Result<()> {
        if !new.is_empty() {
            self.hurry()?;
        }
        for id in new {
            // A full queue only delays the name: the engine's list brings it.
            let _ = self.births.try_send(id);
        }
        let parents = self.parents();
        if let Some(watch) = &mut self.watch {
            watch.set(parents.iter().map(PathBuf::as_path));
        }
        Ok(())
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

async fn changed(watch: Option<&Watch>) -> std::io::Result<()> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}
