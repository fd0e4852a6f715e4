//! What the agent knows and has to say: containers, their figures and conditions, alerts on their way. No IO and no
//! clock: sources feed it, the uplink and the HTTP side read it, a simulation can do both.

mod container;
mod telling;
mod totals;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use swarmguard_common::{
    domain::{BasisPoints, Condition, ContainerId, Edge, ServiceId, TaskId},
    labels::Thresholds,
    time::Time,
    wire::agent::{ContainerChange, ContainerEvent, Hello, NodeLoad, TaskIntro, ToAgent},
};

use crate::{
    conditions::{Change, Conditions},
    connect::Heard,
    model::{Capacity, Ewma, Limits, NodeRates, node_rates},
    pace::Alarming,
    sources::{
        group::{FastReading, SlowReading},
        network::NetworkReading,
        node::NodeReading,
    },
    uplink::outbox::Outbox,
};

use container::intro;
pub use container::{Container, Description, Figures, REPORT_SMOOTHING};
pub use telling::{NAME_PATIENCE, Told};
pub use totals::{Counted, ServiceSums, Totals};

/// Smoothing of the node's pressure figures, which are told as of the last second.
const PRESSURE_SMOOTHING: Duration = Duration::from_secs(1);

/// Most containers watched unless configured otherwise.
pub const DEFAULT_MAX_CONTAINERS: usize = 2_048;

/// Most containers that ended and are remembered because alerts of theirs are still on their way.
const MAX_GRAVES: usize = 1_024;

/// Most engine events kept for coordinators.
const MAX_EVENTS: usize = 1_024;

/// Counters of the state itself, for `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Containers seen since the start.
    pub seen: u64,
    /// Containers not watched because there were too many.
    pub refused: u64,
    /// Samples taken.
    pub samples: u64,
    /// Alert edges told.
    pub alerts: u64,
    /// Engine events not kept because there were too many.
    pub events_dropped: u64,
}

/// The agent samples more slowly than it should: since when, when that was told last, and what it used of a CPU then.
#[derive(Clone, Copy, Debug)]
struct OverBudget {
    since: Time,
    told: Time,
    share: BasisPoints,
}

/// Everything.
#[derive(Debug)]
pub struct Agent {
    /// What introduces this agent.
    pub hello: Hello,
    /// What the node has.
    pub capacity: Capacity,
    /// The node's newest figures.
    pub node: NodeLoad,
    /// Counters.
    pub counts: Counts,
    /// Routes for balancing at `connect()`.
    pub connect: Heard,
    containers: BTreeMap<u32, Container>,
    ended: totals::Ended,
    graves: BTreeMap<u32, TaskIntro>,
    next_handle: u32,
    max_containers: usize,
    outbox: Outbox,
    report_seq: u64,
    defaults: Thresholds,
    services: BTreeMap<ServiceId, Thresholds>,
    memberships: BTreeMap<ContainerId, (TaskId, ServiceId)>,
    events: VecDeque<(u64, Time, ContainerEvent)>,
    last_event: u64,
    expects_names: bool,
    node_reading: Option<(Time, NodeReading)>,
    /// CPU, network, and the three pressures.
    smooth_node: [Ewma; 5],
    over_budget: Option<OverBudget>,
}

impl Agent {
    /// An agent that knows nothing yet.
    pub fn new(hello: Hello, capacity: Capacity, max_containers: usize) -> Self {
        Self {
            hello,
            capacity,
            node: NodeLoad::default(),
            counts: Counts::default(),
            connect: Heard::default(),
            containers: BTreeMap::new(),
            ended: totals::Ended::default(),
            graves: BTreeMap::new(),
            next_handle: 1,
            max_containers,
            outbox: Outbox::default(),
            report_seq: 0,
            defaults: Thresholds::default(),
            services: BTreeMap::new(),
            memberships: BTreeMap::new(),
            events: VecDeque::new(),
            last_event: 0,
            expects_names: false,
            node_reading: None,
            smooth_node: [
                Ewma::new(REPORT_SMOOTHING),
                Ewma::new(REPORT_SMOOTHING),
                Ewma::new(PRESSURE_SMOOTHING),
                Ewma::new(PRESSURE_SMOOTHING),
                Ewma::new(PRESSURE_SMOOTHING),
            ],
            over_budget: None,
        }
    }

    /// There are no coordinators: alerts show in figures only.
    pub fn tell_nobody(&mut self) {
        self.outbox.for_nobody();
    }

    /// Says whether an engine will name containers: their introduction then waits for it, up to [`NAME_PATIENCE`].
    pub fn expect_names(&mut self, yes: bool) {
        self.expects_names = yes;
    }

    /// A container came to life. `None` when there are too many already; a known one keeps its handle.
    pub fn born(&mut self, now: Time, id: &ContainerId, limits: Limits) -> Option<u32> {
        if let Some(handle) = self.handle_of(id) {
            return Some(handle);
        }
        if self.containers.len() >= self.max_containers {
            self.counts.refused += 1;
            return None;
        }
        self.counts.seen += 1;
        let container = Container::new(now, id, limits, self.memberships.get(id).cloned());
        Some(self.admit(container))
    }

    fn admit(&mut self, container: Container) -> u32 {
        let handle = self.next_handle;
        self.next_handle = self.next_handle.wrapping_add(1).max(1);
        self.containers.insert(handle, container);
        handle
    }

    /// A container ended.
    pub fn died(&mut self, handle: u32) {
        let Some(container) = self.containers.remove(&handle) else { return };
        if let Some(service) = self.service_of(&container) {
            let others = self.containers.values().any(|other| self.service_of(other) == Some(service));
            let service = service.to_owned();
            self.ended.add(&service, &container.totals(), others);
        }
        self.bury(handle, &container);
    }

    /// Remembers a container for as long as alerts of its are on their way.
    fn bury(&mut self, handle: u32, container: &Container) {
        let outbox = &self.outbox;
        self.graves.retain(|handle, _| outbox.mentions(*handle));
        if outbox.mentions(handle) && self.graves.len() < MAX_GRAVES {
            self.graves.insert(handle, intro(handle, container));
        }
    }

    /// The engine told about a container. One that was introduced otherwise gets a new handle, for an introduction
    /// holds for a whole connection.
    pub fn describe(&mut self, id: &ContainerId, description: Description) -> Option<u32> {
        let handle = self.handle_of(id)?;
        let container = self.containers.get_mut(&handle)?;
        let before = intro(handle, container);
        let first = container.description.is_none();
        container.description = Some(description);
        let changed = intro(handle, container) != before;
        // Before its first description it was not introduced, unless patience ran out.
        if changed && !(first && self.expects_names) { self.renew(handle) } else { Some(handle) }
    }

    /// A container's limits were read again. Answers its handle, which is a new one when they changed.
    pub fn limit(&mut self, handle: u32, limits: Limits) -> Option<u32> {
        let container = self.containers.get_mut(&handle)?;
        if container.limits == limits {
            return Some(handle);
        }
        container.limits = limits;
        self.renew(handle)
    }

    fn renew(&mut self, handle: u32) -> Option<u32> {
        let mut container = self.containers.remove(&handle)?;
        // Whatever stood under the old handle ended with it, so it is to be raised anew. It is not remembered like one that
        // died: told of the old handle after the new one, a coordinator would take the container for gone.
        container.conditions = Conditions::default();
        Some(self.admit(container))
    }

    /// Takes a fast sample of a container. Answers whether a condition of it stands, or may soon.
    pub fn sample(
        &mut self,
        now: Time,
        handle: u32,
        reading: FastReading,
        network: Option<NetworkReading>,
    ) -> bool {
        let Some(container) = self.containers.get_mut(&handle) else { return false };
        self.counts.samples += 1;
        let service = container.service();
        let thresholds =
            service.and_then(|service| self.services.get(service)).copied().unwrap_or(self.defaults);
        let values = container.take_fast(now, reading, network, self.capacity, &thresholds);
        let outbox = &mut self.outbox;
        let counts = &mut self.counts;
        container.conditions.step(now, &values, &thresholds, |change| push(outbox, counts, handle, change));
        container.conditions.hot()
    }

    /// Takes a slow sample of a container.
    pub fn sample_slow(&mut self, now: Time, handle: u32, reading: SlowReading) {
        let Some(container) = self.containers.get_mut(&handle) else { return };
        container.take_slow(now, reading);
        if container.figures.slow.oom_kills > 0 {
            self.oom(now, handle);
        }
    }

    /// A process of a container was killed for want of memory.
    pub fn oom(&mut self, now: Time, handle: u32) {
        let Some(container) = self.containers.get_mut(&handle) else { return };
        let (outbox, counts) = (&mut self.outbox, &mut self.counts);
        container.conditions.oom(now, |change| push(outbox, counts, handle, change));
    }

    /// Takes a reading of the node.
    pub fn sample_node(&mut self, now: Time, reading: NodeReading, starved: bool) {
        let before = self.node_reading.replace((now, reading));
        let rates = before.map_or_else(NodeRates::default, |(at, before)| {
            node_rates(&before, &reading, now.since(at), self.capacity.network_mbps)
        });
        let points = |ratio: Option<f64>| ratio.map(BasisPoints::from_ratio);
        let moving = [rates.cpu, rates.network, rates.psi[0], rates.psi[1], rates.psi[2]];
        let mut means = [None; 5];
        for ((mean, smooth), value) in means.iter_mut().zip(&mut self.smooth_node).zip(moving) {
            *mean = points(smooth.update(now, value));
        }
        let [cpu, network, psi_cpu, psi_memory, psi_io] = means;
        self.node =
            NodeLoad { cpu, memory: points(rates.memory), network, psi_cpu, psi_memory, psi_io, starved };
    }

    /// The agent slowed its sampling to stay within its budget, or is back at its full rate.
    pub fn budget(&mut self, now: Time, exceeded: bool, share: BasisPoints) {
        let (edge, since) = match self.over_budget {
            None if exceeded => (Edge::Raise, now),
            Some(it) if exceeded && now.since(it.told) >= crate::conditions::REFRESH => {
                (Edge::Refresh, it.since)
            }
            Some(_) if !exceeded => (Edge::Clear, now),
            _ => return,
        };
        self.over_budget = exceeded.then_some(OverBudget { since, told: now, share });
        let change = Change { condition: Condition::AgentOverBudget, edge, value: share, since };
        push(&mut self.outbox, &mut self.counts, 0, change);
    }

    /// The engine told that something happened to a container.
    pub fn engine_event(
        &mut self,
        now: Time,
        container: ContainerId,
        task: Option<TaskId>,
        what: ContainerChange,
    ) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
            self.counts.events_dropped += 1;
        }
        self.last_event += 1;
        self.events.push_back((self.last_event, now, ContainerEvent { container, task, what, age_ms: 0 }));
    }

    /// A coordinator said something. Acknowledgements are for [`Self::acknowledge`], over all coordinators.
    pub fn learn(&mut self, message: ToAgent) {
        let ToAgent::Thresholds { default, services, containers } = message else { return };
        self.defaults = default;
        self.services = services;
        self.memberships = containers;
        for container in self.containers.values_mut() {
            container.learnt = self.memberships.get(&container.id).cloned();
        }
    }

    /// Every coordinator has the alerts up to and including `seq`.
    pub fn acknowledge(&mut self, seq: u64) {
        self.outbox.forget(seq);
        if self.outbox.is_empty() {
            self.graves.clear();
        }
    }

    /// The containers by handle.
    pub fn containers(&self) -> &BTreeMap<u32, Container> {
        &self.containers
    }

    /// The handle of a container.
    pub fn handle_of(&self, id: &ContainerId) -> Option<u32> {
        self.containers.iter().find(|(_, container)| container.id == *id).map(|(handle, _)| *handle)
    }

    /// The service a container belongs to, by its label or as a coordinator said, and the service's name.
    pub fn service_of<'a>(&self, container: &'a Container) -> Option<&'a str> {
        container.description.as_ref().and_then(|description| description.service_name.as_deref())
    }

    /// The node's files as they were read last.
    pub fn node_reading(&self) -> NodeReading {
        self.node_reading.map(|(_, reading)| reading).unwrap_or_default()
    }

    /// Alerts on their way.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The least that could bring some container over a threshold of its; `None` without containers.
    pub fn alarming(&self) -> Option<Alarming> {
        let alarming = self.containers.values().map(|container| {
            let thresholds =
                container.service().and_then(|service| self.services.get(service)).unwrap_or(&self.defaults);
            let mine = self.capacity.limited(container.limits);
            #[expect(clippy::cast_precision_loss, reason = "a bound needs no more than 53 bits")]
            let (whole, used) =
                (mine.memory_bytes as f64, container.figures.memory_bytes.map(|used| used as f64));
            Alarming {
                cpu_millis: f64::from(mine.cpu_millis) * thresholds.cpu_high.ratio(),
                // Where it is not known there is no condition that it could bring about.
                memory_bytes: used
                    .map_or(f64::INFINITY, |used| (whole * thresholds.memory_high.ratio() - used).max(0.0)),
                hold: Duration::from_millis(u64::from(thresholds.hold_ms)),
            }
        });
        alarming.reduce(|a, b| Alarming {
            cpu_millis: a.cpu_millis.min(b.cpu_millis),
            memory_bytes: a.memory_bytes.min(b.memory_bytes),
            hold: a.hold.min(b.hold),
        })
    }
}

fn push(outbox: &mut Outbox, counts: &mut Counts, handle: u32, change: Change) {
    counts.alerts += 1;
    outbox.push(handle, change.condition, change.edge, change.value, change.since);
}
