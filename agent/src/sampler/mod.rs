//! The sampling itself: at each tick read what is due of every container and of the node, and hand it to the state.
//! All IO of the hot path is here, and none of the judgement.

mod balancing;
mod handed;
mod watched;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use swarmguard_common::{
    domain::{BasisPoints, ContainerId},
    time::Time,
};
use swarmguard_runtime::clock;

use tokio::sync::mpsc;

use crate::{
    bpf::Programs,
    connect::Figures,
    discovery::scan,
    pace::{Budget, Pace, Tick},
    sources::{
        BUFFER_BYTES, KeptFile, cpu,
        group::{Gone, Group},
        is_gone,
        limits::LimitSource,
        network::{Networks, Tap},
        node::NodeSource,
        node_group::NodeGroup,
        own::{OwnSource, OwnUse},
        trigger::{MAX_TRIGGERS, Trigger},
    },
    state::{Agent, Description},
    uplink::Shared,
};

use balancing::Balancing;
use handed::Handed;
use watched::{Sources, Watched, YOUNG};

/// The node is read this often, as often as reports are sent.
const NODE_INTERVAL: Duration = Duration::from_millis(240);

/// Own consumption is measured this often.
const OWN_INTERVAL: Duration = Duration::from_secs(1);

/// A tick this late means that the node has no CPU left for us, and so long it counts.
const LATE: Duration = Duration::from_millis(100);
const STARVED_FOR: Duration = Duration::from_secs(5);

/// While there is one this young no pass is left out: it may end before the next one that is due.
const NEW: Duration = Duration::from_secs(1);

/// A container that an engine does not know after this long belongs to another engine on this kernel.
const FOREIGN_AFTER: Duration = Duration::from_secs(3);

/// Most directories whose sum is read to see whether anything moves; with more, every pass is a full one.
const MAX_SUMS: usize = 8;

/// Most containers of other engines remembered.
const MAX_FOREIGN: usize = 16_384;

/// What sampling costs and how it goes, for `/metrics` and `/healthz`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Vitals {
    /// The last tick.
    pub ticked_at: Option<Time>,
    /// The interval at present.
    pub interval: Duration,
    /// Full passes since the start.
    pub passes: u64,
    /// Ticks at which nothing could be the matter, so no pass was made.
    pub idle_ticks: u64,
    /// Ticks that came late.
    pub late_ticks: u64,
    /// This process's consumption.
    pub own: OwnUse,
    /// CPU use as a share of one CPU, averaged.
    pub own_share: Option<f64>,
    /// Sampling is slowed to stay within the budget.
    pub slowed: bool,
    /// Times that the kernel told of a container stalling for memory.
    pub stalls: u64,
    /// How balancing at `connect()` goes, where the kernel can.
    pub connect: Option<Figures>,
    /// When the node was starved last.
    pub starved_until: Option<Time>,
}

/// Samples containers and the node.
pub struct Sampler {
    shared: Shared,
    networks: Networks,
    limits: LimitSource,
    node: NodeSource,
    own: OwnSource,
    watched: BTreeMap<ContainerId, Watched>,
    foreign: BTreeSet<ContainerId>,
    sums: Option<Vec<(PathBuf, KeptFile)>>,
    buffer: Vec<u8>,
    gone: Vec<ContainerId>,
    /// What the kernel's own pass handed over, by cgroup.
    handed: Handed,
    pass_failed: bool,
    pace: Pace,
    budget: Budget,
    vitals: Vitals,
    node_at: Option<Time>,
    own_at: Option<Time>,
    reported: BTreeSet<&'static str>,
    clock: fn() -> Time,
    adaptive: bool,
    stalls: Option<mpsc::Sender<PathBuf>>,
    triggers: BTreeMap<PathBuf, Trigger>,
    new_until: Option<Time>,
    balancing: Balancing,
}

impl Sampler {
    /// Samples into `shared`, no faster than `fastest` and within `allowed`, a share of one CPU.
    pub fn new(
        shared: Shared,
        networks: Networks,
        proc_root: &Path,
        allowed: BasisPoints,
        fastest: Duration,
    ) -> Self {
        Self {
            shared,
            networks,
            limits: LimitSource::default(),
            node: NodeSource::open(proc_root),
            own: OwnSource::open(),
            watched: BTreeMap::new(),
            foreign: BTreeSet::new(),
            sums: None,
            buffer: vec![0; BUFFER_BYTES],
            gone: Vec::new(),
            handed: Handed::default(),
            pass_failed: false,
            pace: Pace::default(),
            budget: Budget::new(allowed, fastest),
            vitals: Vitals { interval: fastest, ..Vitals::default() },
            node_at: None,
            own_at: None,
            reported: BTreeSet::new(),
            clock: clock::now,
            adaptive: true,
            stalls: None,
            triggers: BTreeMap::new(),
            new_until: None,
            balancing: Balancing::default(),
        }
    }

    /// Tells the time of each sample by another clock.
    #[must_use]
    pub fn with_clock(self, clock: fn() -> Time) -> Self {
        Self { clock, ..self }
    }

    /// The node is this cgroup of its machine, where there is one.
    #[must_use]
    pub fn of_node(self, group: Option<NodeGroup>) -> Self {
        Self { node: self.node.within(group), ..self }
    }

    /// Samples everything at every tick, whether or not anything moves.
    #[must_use]
    pub fn without_idling(self) -> Self {
        Self { adaptive: false, ..self }
    }

    /// How it goes.
    pub fn vitals(&self) -> Vitals {
        self.vitals
    }

    /// The directories that hold containers now.
    pub fn parents(&self) -> BTreeSet<PathBuf> {
        self.watched.values().filter_map(|it| it.group.dir().parent()).map(Into::into).collect()
    }

    /// Whether this container is watched.
    pub fn knows(&self, id: &ContainerId) -> bool {
        self.watched.contains_key(id)
    }

    /// Takes what a walk or an event found, and watches what is new. Where a walk saw everything that was there at
    /// `all_before`, what it did not see is forgotten, unless it is younger. Answers the new ones.
    pub fn found(
        &mut self,
        now: Time,
        found: &BTreeMap<ContainerId, PathBuf>,
        all_before: Option<Time>,
    ) -> Vec<ContainerId> {
        if let Some(began) = all_before {
            let lost = self.watched.iter().filter(|(id, it)| !found.contains_key(*id) && it.since < began);
            self.gone.extend(lost.map(|(id, _)| id.clone()));
            self.foreign.retain(|id| found.contains_key(id));
        }
        // A container that was restarted has the same name and another cgroup.
        let again = found.iter().filter(|(id, dir)| {
            self.watched
                .get(*id)
                .is_some_and(|it| fs::metadata(dir).is_ok_and(|meta| meta.ino() != it.group.id()))
        });
        self.gone.extend(again.map(|(id, _)| id.clone()));
        self.bury();
        let mut new = Vec::new();
        for (id, dir) in found {
            if !self.watched.contains_key(id) && !self.foreign.contains(id) && self.begin(now, id, dir) {
                new.push(id.clone());
            }
        }
        if !new.is_empty() {
            self.new_until = Some(now + NEW);
            self.sums = None;
            self.shared.wake();
        }
        new
    }

    /// Looks where containers were before: cheaper than a walk.
    pub fn look(&mut self, now: Time, parents: &BTreeSet<PathBuf>) -> Vec<ContainerId> {
        let mut found = BTreeMap::new();
        for parent in parents {
            found.append(&mut scan::look(parent));
        }
        let lost = self.watched.iter().filter(|(id, it)| {
            let looked = it.group.dir().parent().is_some_and(|parent| parents.contains(parent));
            looked && !found.contains_key(*id)
        });
        self.gone.extend(lost.map(|(id, _)| id.clone()));
        self.bury();
        self.found(now, &found, None)
    }

    fn begin(&mut self, now: Time, id: &ContainerId, dir: &Path) -> bool {
        let group = match Group::open(dir) {
            Ok(group) => group,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return false,
            Err(error) => {
                if self.reported.insert("open") {
                    tracing::error!("cannot watch {}: {error}; others may be missing as well", dir.display());
                }
                return false;
            }
        };
        let limits = self.limits.read(now, dir);
        let Some(handle) = self.shared.lock().born(now, id, limits) else {
            if self.reported.insert("too many") {
                tracing::error!("more containers than --max-containers allows: the rest is not watched");
            }
            return false;
        };
        let tap = self.networks.watch(group.id(), dir, id.as_str(), None, false);
        if let Some(parent) = dir.parent() {
            self.listen_for_stalls(parent);
        }
        self.watched.insert(id.clone(), Watched::new(handle, group, tap, now));
        self.balancing.changes += 1;
        true
    }

    /// Has the kernel tell when a container in `parent` stalls for memory, where it can.
    fn listen_for_stalls(&mut self, parent: &Path) {
        let Some(fired) = &self.stalls else { return };
        if self.triggers.contains_key(parent) || self.triggers.len() >= MAX_TRIGGERS {
            return;
        }
        match Trigger::set(parent, fired) {
            Ok(trigger) => drop(self.triggers.insert(parent.into(), trigger)),
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                let why =
                    "mount the hierarchy writable to be woken by the kernel; stalls are sampled instead";
                tracing::info!("no pressure triggers ({error}): {why}");
                self.stalls = None;
            }
        }
    }

    /// A container in `parent` stalls for memory: the next tick looks at all of them closely, whatever the pace.
    pub fn stalled(&mut self, parent: &Path) {
        let within = self.watched.values_mut().filter(|it| it.group.dir().parent() == Some(parent));
        within.for_each(Watched::hurry);
        self.pace.hurry();
        self.vitals.stalls += 1;
    }

    /// Sends a directory with a container that stalls for memory to `stalls`, where the kernel offers that. Call within
    /// a runtime.
    #[must_use]
    pub fn telling_stalls(self, stalls: mpsc::Sender<PathBuf>) -> Self {
        Self { stalls: Some(stalls), ..self }
    }

    /// The engine named a container.
    pub fn describe(&mut self, id: &ContainerId, description: Description) {
        let (pid, shared_network) = (description.pid, description.shared_network);
        let handle = self.shared.lock().describe(id, description);
        let Some(watched) = self.watched.get_mut(id) else { return };
        if let Some(handle) = handle {
            watched.handle = handle;
        }
        if !matches!(watched.tap, Tap::Programs(_)) && (shared_network || pid.is_some()) {
            let (cgroup, dir) = (watched.group.id(), watched.group.dir().to_path_buf());
            watched.tap = self.networks.watch(cgroup, &dir, id.as_str(), pid, shared_network);
        }
        self.shared.wake();
    }

    /// The engine told all containers that it has: others are another engine's, which reports them itself.
    pub fn retain_known(&mut self, now: Time, known: &BTreeSet<ContainerId>) {
        let foreign =
            |(id, it): &(&ContainerId, &Watched)| !known.contains(*id) && now.since(it.since) > FOREIGN_AFTER;
        let foreign: Vec<ContainerId> =
            self.watched.iter().filter(foreign).map(|(id, _)| id.clone()).collect();
        for id in foreign {
            tracing::info!(container = %id, "not a container of this node's engine: left alone");
            if self.foreign.len() < MAX_FOREIGN {
                self.foreign.insert(id.clone());
            }
            self.gone.push(id);
        }
        self.bury();
    }

    /// The container with this cgroup.
    pub fn container_of(&self, cgroup_id: u64) -> Option<&ContainerId> {
        self.watched.iter().find(|(_, it)| it.group.id() == cgroup_id).map(|(id, _)| id)
    }

    /// Where the kernel tells births, deaths and kills, if it does.
    pub fn kernel_events(&mut self) -> Option<crate::bpf::EventSource> {
        self.networks.programs()?.events()
    }

    /// A container ended.
    pub fn ended(&mut self, id: &ContainerId) {
        self.gone.push(id.clone());
        self.bury();
    }

    fn bury(&mut self) {
        if self.gone.is_empty() {
            return;
        }
        let mut agent = self.shared.lock();
        for id in self.gone.drain(..) {
            if let Some(watched) = self.watched.remove(&id) {
                self.networks.forget(watched.group.id());
                agent.died(watched.handle);
            }
        }
        drop(agent);
        self.balancing.changes += 1;
        if !self.triggers.is_empty() {
            let parents = self.parents();
            self.triggers.retain(|parent, _| parents.contains(parent));
        }
        self.sums = None;
        self.shared.wake();
    }

    /// One tick, `late` after it was due. Answers when the next one is due.
    pub fn tick(&mut self, now: Time, late: Duration) -> Duration {
        if late >= LATE {
            self.vitals.late_ticks += 1;
            self.vitals.starved_until = Some(now + STARVED_FOR);
        }
        let alerts_before = self.shared.lock().outbox().last_seq();
        self.read_node(now);
        let used_usec = if self.adaptive { self.sum_of_all() } else { None };
        {
            let shared = self.shared.clone();
            let mut agent = shared.lock();
            let hot = !self.adaptive
                || self.new_until.is_some_and(|until| now < until)
                || self.watched.values().any(|watched| watched.hot);
            let alarming = if hot { None } else { agent.alarming() };
            let tick = Tick { used_usec, alarming, hot };
            if self.pace.due(now, tick) {
                self.vitals.passes += 1;
                self.pass(&mut agent);
            } else {
                self.vitals.idle_ticks += 1;
            }
        }
        self.bury();
        self.balance(now);
        self.measure_self(now);
        self.vitals.ticked_at = Some(now);
        if self.shared.lock().outbox().last_seq() != alerts_before {
            self.shared.wake();
        }
        self.vitals.interval
    }

    /// Reads every container once.
    fn pass(&mut self, agent: &mut Agent) {
        let handed_at = (self.clock)();
        self.kernel_pass();
        let Self { networks, limits, buffer, handed, watched, gone, clock, .. } = self;
        let mut from = Sources { networks, limits, buffer };
        for (id, watched) in watched {
            let sample = handed.get(watched.group.id(), &mut watched.place);
            // Each that is read by itself has its own time: reading files of many containers takes milliseconds.
            let now = if sample.is_some() { handed_at } else { clock() };
            if watched.sample(now, sample, agent, &mut from) == Err(Gone) {
                gone.push(id.clone());
            }
        }
    }

    /// Lets the kernel walk over all containers, where it can.
    fn kernel_pass(&mut self) {
        self.handed.clear();
        if self.pass_failed {
            return;
        }
        let Some(programs) = self.networks.programs() else { return };
        let handed = &mut self.handed;
        let result = programs.sample(&mut |sample| {
            handed.push(sample);
        });
        if let Err(error) = result {
            tracing::warn!("{error}: reading the files of each container instead");
            self.pass_failed = true;
            self.handed.clear();
        }
    }

    /// CPU time of everything in the directories that hold containers, in microseconds.
    fn sum_of_all(&mut self) -> Option<u64> {
        if self.sums.is_none() {
            let open = |parent: PathBuf| {
                let file = KeptFile::open(&parent.join(cpu::STAT)).ok()?;
                Some((parent, file))
            };
            self.sums = Some(self.parents().into_iter().filter_map(open).collect());
        }
        let sums = self.sums.as_ref().filter(|sums| !sums.is_empty() && sums.len() <= MAX_SUMS)?;
        let mut total = 0_u64;
        for (_, file) in sums {
            let stat = cpu::stat(file.read(&mut self.buffer).ok()?)?;
            total = total.wrapping_add(stat.usage_usec);
        }
        Some(total)
    }

    /// Says once what this kernel does not offer, after engines had time to set a container up.
    fn report_missing(&mut self, now: Time) {
        for (id, watched) in self.watched.iter().filter(|(_, it)| now.since(it.since) >= YOUNG) {
            for missing in watched.group.missing() {
                if self.reported.insert(missing) {
                    let lost = what_is_lost(missing);
                    tracing::warn!(container = %id, "the kernel offers no {missing} here: {lost}");
                }
            }
        }
    }

    fn read_node(&mut self, now: Time) {
        if self.node_at.is_some_and(|at| now.since(at) < NODE_INTERVAL) {
            return;
        }
        self.node_at = Some(now);
        let reading = self.node.read(now, &mut self.buffer);
        let starved = self.vitals.starved_until.is_some_and(|until| now < until);
        self.shared.lock().sample_node(now, reading, starved);
    }

    fn measure_self(&mut self, now: Time) {
        if self.own_at.is_some_and(|at| now.since(at) < OWN_INTERVAL) {
            return;
        }
        self.own_at = Some(now);
        self.report_missing(now);
        self.vitals.connect = self.networks.programs().and_then(Programs::balanced);
        self.vitals.own = self.own.read();
        self.budget.measure(now, self.vitals.own.cpu_usec);
        self.vitals.own_share = self.budget.share();
        self.vitals.interval = self.budget.interval();
        let slowed = self.budget.slowed();
        if slowed != self.vitals.slowed {
            let interval_ms = self.vitals.interval.as_millis();
            tracing::warn!(slowed, "sampling every {interval_ms} ms now, to stay within --budget");
        }
        self.vitals.slowed = slowed;
        let share = BasisPoints::from_ratio(self.vitals.own_share.unwrap_or(0.0));
        self.shared.lock().budget(now, slowed, share);
    }
}

fn what_is_lost(file: &str) -> &'static str {
    match file {
        "cpu.stat" => "CPU use stays unknown",
        "memory.current" => "memory use stays unknown",
        "memory.stat" => "memory use includes page cache that could be had back",
        "memory.events" => "kills for want of memory are heard of from the engine only",
        _ => "stalls stay unknown, alerts rest on use alone",
    }
}
