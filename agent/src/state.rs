//! What the agent knows and has to say: containers, their figures and conditions, alerts on their way. No IO and no
//! clock: sources feed it, the uplink and the HTTP side read it, a simulation can do both.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use swarmguard_common::{
    clock::Time,
    domain::{BasisPoints, Condition, ContainerId, Edge, ServiceId, TaskId},
    kernel::GroupCounters,
    labels::Thresholds,
    wire::agent::{
        Alert, ContainerChange, ContainerEvent, Hello, NodeLoad, Report, TaskIntro, TaskLoad, ToAgent,
        ToCoordinator,
    },
};

use crate::{
    conditions::{Change, Conditions, Values},
    model::{
        Capacity, Ewma, FastRates, Limits, NodeRates, SlowRates, fast_rates, in_flight, median_us,
        network_share, node_rates, ratio, slow_rates, working_set,
    },
    sources::{
        group::{FastReading, SlowReading},
        network::NetworkReading,
        node::NodeReading,
    },
    uplink::outbox::{Kept, Outbox},
};

/// Smoothing of the figures that are reported and shown. Ten times that of the conditions: whoever plans with a figure
/// wants the last second, not the last tenth of one.
pub const REPORT_SMOOTHING: Duration = Duration::from_millis(500);

/// Smoothing of the node's pressure figures, which are told as of the last second.
const PRESSURE_SMOOTHING: Duration = Duration::from_secs(1);

/// How long a new container waits to be named by the engine before it is introduced without names.
pub const NAME_PATIENCE: Duration = Duration::from_secs(2);

/// Most containers watched unless configured otherwise.
pub const DEFAULT_MAX_CONTAINERS: usize = 2_048;

/// Most containers that ended and are remembered because alerts of theirs are still on their way.
const MAX_GRAVES: usize = 1_024;

/// Most engine events kept for coordinators, and how long one is of use.
const MAX_EVENTS: usize = 1_024;
const EVENT_LIFE: Duration = Duration::from_secs(10);

/// A report is sent this often in a second, and cold containers take turns so that each is in one of them.
const TURNS: u32 = 4;

/// What the engine says of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// The engine's name of it, without the leading slash.
    pub name: String,
    /// From the label `com.docker.swarm.task.id`.
    pub task: Option<TaskId>,
    /// From the label `com.docker.swarm.service.id`.
    pub service: Option<ServiceId>,
    /// From the label `com.docker.swarm.service.name`.
    pub service_name: Option<String>,
    /// Whether it has a healthcheck, its image's included.
    pub healthcheck: Option<bool>,
    /// Its first process, in the node's numbering.
    pub pid: Option<u32>,
    /// Uses the node's network, or another container's.
    pub shared_network: bool,
}

/// One container.
#[derive(Debug)]
pub struct Container {
    /// The engine's ID.
    pub id: ContainerId,
    /// As the engine says; `None` until it did.
    pub description: Option<Description>,
    /// Its own limits.
    pub limits: Limits,
    /// Newest figures.
    pub figures: Figures,
    /// Its conditions.
    pub conditions: Conditions,
    born: Time,
    fast: Option<(Time, FastReading, Option<NetworkReading>)>,
    slow: Option<(Time, SlowReading)>,
    requests: Option<GroupCounters>,
    smooth_cpu: Ewma,
    smooth_rx: Ewma,
    smooth_tx: Ewma,
    learnt: Option<(TaskId, ServiceId)>,
}

/// A container's newest figures, smoothed over [`REPORT_SMOOTHING`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// CPU in use, in thousandths of a CPU.
    pub cpu_millis: Option<f64>,
    /// CPU utilisation, 0 to 1.
    pub cpu: Option<f64>,
    /// Working set, bytes.
    pub memory_bytes: Option<u64>,
    /// Memory utilisation, 0 to 1.
    pub memory: Option<f64>,
    /// Received, bytes a second.
    pub rx_bytes_per_s: Option<f64>,
    /// Sent, bytes a second.
    pub tx_bytes_per_s: Option<f64>,
    /// Network utilisation, 0 to 1.
    pub network: Option<f64>,
    /// PSI and the like.
    pub slow: SlowRates,
    /// Share of periods held back by `cpu.max`.
    pub throttled: Option<f64>,
    /// Requests in flight.
    pub in_flight: Option<u32>,
    /// Median latency of answers, in microseconds.
    pub latency_us: Option<u32>,
}

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
    containers: BTreeMap<u32, Container>,
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
    over_budget: Option<(Time, Time)>,
}

/// What one coordinator has been told in one connection. A new connection starts with a new one.
///
/// Containers are introduced in the order in which they become known by name, which is not the order of their birth;
/// on the wire handles may only count up. So each connection numbers them anew.
#[derive(Debug, Default)]
pub struct Told {
    alert: u64,
    event: u64,
    /// Handle in the connection by handle here.
    introduced: BTreeMap<u32, u32>,
    last_handle: u32,
    turn: u32,
}

impl Told {
    /// For a connection to a coordinator that has acknowledged alerts up to `acknowledged`.
    pub fn after(acknowledged: u64) -> Self {
        Self { alert: acknowledged, ..Self::default() }
    }

    fn introduce(&mut self, handle: u32) -> u32 {
        self.last_handle += 1;
        self.introduced.insert(handle, self.last_handle);
        self.last_handle
    }
}

impl Agent {
    /// An agent that knows nothing yet.
    pub fn new(hello: Hello, capacity: Capacity, max_containers: usize) -> Self {
        Self {
            hello,
            capacity,
            node: NodeLoad::default(),
            counts: Counts::default(),
            containers: BTreeMap::new(),
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
        let container = Container {
            id: id.clone(),
            description: None,
            limits,
            figures: Figures::default(),
            conditions: Conditions::default(),
            born: now,
            fast: None,
            slow: None,
            requests: None,
            smooth_cpu: Ewma::new(REPORT_SMOOTHING),
            smooth_rx: Ewma::new(REPORT_SMOOTHING),
            smooth_tx: Ewma::new(REPORT_SMOOTHING),
            learnt: self.memberships.get(id).cloned(),
        };
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
        if let Some(container) = self.containers.remove(&handle) {
            self.bury(handle, &container);
        }
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
        self.bury(handle, &container);
        // Whatever stood under the old handle ended with it, so it is to be raised anew.
        container.conditions = Conditions::default();
        Some(self.admit(container))
    }

    /// Takes a fast sample of a container.
    pub fn sample(&mut self, now: Time, handle: u32, reading: FastReading, network: Option<NetworkReading>) {
        let Some(container) = self.containers.get_mut(&handle) else { return };
        self.counts.samples += 1;
        let service = container.service();
        let thresholds =
            service.and_then(|service| self.services.get(service)).copied().unwrap_or(self.defaults);
        let values = container.take_fast(now, reading, network, self.capacity, &thresholds);
        let outbox = &mut self.outbox;
        let counts = &mut self.counts;
        container.conditions.step(now, &values, &thresholds, |change| push(outbox, counts, handle, change));
    }

    /// Takes a slow sample of a container.
    pub fn sample_slow(&mut self, now: Time, handle: u32, reading: SlowReading) {
        let Some(container) = self.containers.get_mut(&handle) else { return };
        let before = container.slow.replace((now, reading));
        let Some((at, before)) = before else { return };
        container.figures.slow = slow_rates(&before, &reading, now.since(at));
        container.take_requests();
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
        let (edge, since, told) = match (exceeded, self.over_budget) {
            (true, None) => (Edge::Raise, now, now),
            (true, Some((since, told))) if now.since(told) >= crate::conditions::REFRESH => {
                (Edge::Refresh, since, now)
            }
            (false, Some(_)) => (Edge::Clear, now, now),
            _ => return,
        };
        self.over_budget = exceeded.then_some((since, told));
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

    /// A coordinator is newly connected: tells everything that stands once more, to all alike.
    pub fn tell_standing(&mut self, now: Time) {
        let (outbox, counts) = (&mut self.outbox, &mut self.counts);
        for (handle, container) in &self.containers {
            container.conditions.standing(|change| push(outbox, counts, *handle, change));
        }
        if let Some((since, _)) = self.over_budget {
            let change = Change {
                condition: Condition::AgentOverBudget,
                edge: Edge::Refresh,
                value: BasisPoints::FULL,
                since,
            };
            push(outbox, counts, 0, change);
            self.over_budget = Some((since, now));
        }
    }

    /// What a coordinator is to be told next, reliably, at most `most` messages. Order: what an alert speaks of is
    /// introduced before it, and is gone after it.
    pub fn messages(&mut self, now: Time, told: &mut Told, most: usize) -> Vec<ToCoordinator> {
        let mut out = Vec::new();
        self.introduce_new(now, told, most, &mut out);
        self.tell_alerts(now, told, most, &mut out);
        let sent_all = told.alert >= self.outbox.last_seq() || self.outbox.after(told.alert).next().is_none();
        if sent_all {
            told.introduced.retain(|own, handle| {
                let alive = self.containers.contains_key(own);
                if !alive {
                    out.push(ToCoordinator::Gone { handle: *handle });
                }
                alive
            });
        }
        self.tell_events(now, told, most, &mut out);
        out
    }

    fn introduce_new(&self, now: Time, told: &mut Told, most: usize, out: &mut Vec<ToCoordinator>) {
        for (handle, container) in &self.containers {
            let named = container.description.is_some() || !self.expects_names;
            let ready = named || now.since(container.born) >= NAME_PATIENCE;
            if ready && out.len() < most && !told.introduced.contains_key(handle) {
                out.push(ToCoordinator::Task(intro(told.introduce(*handle), container)));
            }
        }
    }

    fn tell_alerts(&self, now: Time, told: &mut Told, most: usize, out: &mut Vec<ToCoordinator>) {
        for kept in self.outbox.after(told.alert) {
            if out.len() >= most {
                return;
            }
            told.alert = kept.seq;
            let handle = match told.introduced.get(&kept.handle) {
                _ if kept.handle == 0 => 0,
                Some(handle) => *handle,
                None => {
                    let alive = self.containers.get(&kept.handle).map(|container| intro(0, container));
                    // There may have been no room for the grave; nobody could make sense of the alert then.
                    let Some(intro) = alive.or_else(|| self.graves.get(&kept.handle).cloned()) else {
                        continue;
                    };
                    let handle = told.introduce(kept.handle);
                    out.push(ToCoordinator::Task(TaskIntro { handle, ..intro }));
                    handle
                }
            };
            out.push(ToCoordinator::Alert(self.alert(now, kept, handle)));
        }
    }

    fn alert(&self, now: Time, kept: &Kept, handle: u32) -> Alert {
        Alert {
            epoch: self.hello.epoch,
            seq: kept.seq,
            handle,
            condition: kept.condition as u8,
            edge: kept.edge as u8,
            value: kept.value.0,
            age_ms: age_ms(now, kept.since),
        }
    }

    fn tell_events(&mut self, now: Time, told: &mut Told, most: usize, out: &mut Vec<ToCoordinator>) {
        while self.events.front().is_some_and(|(_, at, _)| now.since(*at) > EVENT_LIFE) {
            self.events.pop_front();
        }
        let heard = told.event;
        for (seq, at, event) in self.events.iter().filter(|(seq, ..)| *seq > heard) {
            if out.len() >= most {
                return;
            }
            told.event = *seq;
            out.push(ToCoordinator::Container(ContainerEvent { age_ms: age_ms(now, *at), ..event.clone() }));
        }
    }

    /// The loads for one report interval of a connection: hot containers every time, the others in turns. Only
    /// containers that were introduced are in it.
    pub fn loads(&self, told: &mut Told) -> (NodeLoad, Vec<TaskLoad>) {
        told.turn = (told.turn + 1) % TURNS;
        let chosen = told.introduced.iter().filter_map(|(own, handle)| {
            let container = self.containers.get(own)?;
            let due = handle % TURNS == told.turn || container.conditions.hot();
            (due && container.fast.is_some()).then(|| container.load(*handle))
        });
        (self.node, chosen.collect())
    }

    /// A report with the next number.
    pub fn report(&mut self, node: NodeLoad, tasks: Vec<TaskLoad>) -> Report {
        self.report_seq += 1;
        Report { epoch: self.hello.epoch, seq: self.report_seq, node, tasks }
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

    /// Alerts on their way.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The lowest CPU use, in thousandths of a CPU, at which some container could be over its threshold; `None`
    /// without containers.
    pub fn least_alarming_millis(&self) -> Option<f64> {
        let alarming = self.containers.values().map(|container| {
            let thresholds =
                container.service().and_then(|service| self.services.get(service)).unwrap_or(&self.defaults);
            f64::from(self.capacity.limited(container.limits).cpu_millis) * thresholds.cpu_high.ratio()
        });
        alarming.min_by(f64::total_cmp)
    }
}

impl Container {
    /// The service that it belongs to, by its label, else as a coordinator said.
    pub fn service(&self) -> Option<&ServiceId> {
        let named = self.description.as_ref().and_then(|description| description.service.as_ref());
        named.or(self.learnt.as_ref().map(|(_, service)| service))
    }

    fn take_fast(
        &mut self,
        now: Time,
        reading: FastReading,
        network: Option<NetworkReading>,
        node: Capacity,
        thresholds: &Thresholds,
    ) -> Values {
        let mbps = thresholds.network_mbps.or(node.network_mbps);
        let mine = node.limited(self.limits);
        let before = self.fast.replace((now, reading, network));
        let span = before.map_or(Duration::ZERO, |(at, ..)| now.since(at));
        let rates = before.map_or_else(FastRates::default, |(_, old, old_network)| {
            let traffic = |reading: Option<NetworkReading>| reading.map(|reading| reading.traffic);
            fast_rates((&old, traffic(old_network)), (&reading, traffic(network)), span)
        });
        let inactive = self.slow.and_then(|(_, slow)| slow.inactive_file_bytes);
        let memory_bytes = working_set(reading.memory_bytes, inactive);
        #[expect(clippy::cast_precision_loss, reason = "a share needs no more than 53 bits")]
        let memory = ratio(memory_bytes.map(|bytes| bytes as f64), mine.memory_bytes as f64);
        let cpu_of = |millis| ratio(millis, f64::from(mine.cpu_millis));
        let values = Values {
            cpu: cpu_of(rates.cpu_millis),
            memory,
            network: network_share(&rates, mbps),
            // Waiting on the run queue is what PSI sums up; where PSI is off it stands in.
            psi_cpu: self.figures.slow.psi_cpu.or(self.figures.slow.run_queue.map(|share| share.min(1.0))),
            psi_memory: self.figures.slow.psi_memory,
            span,
        };
        let cpu_millis = self.smooth_cpu.update(now, rates.cpu_millis);
        let smooth = FastRates {
            rx_bytes_per_s: self.smooth_rx.update(now, rates.rx_bytes_per_s),
            tx_bytes_per_s: self.smooth_tx.update(now, rates.tx_bytes_per_s),
            ..rates
        };
        self.figures = Figures {
            cpu_millis,
            cpu: cpu_of(cpu_millis),
            memory_bytes,
            memory,
            rx_bytes_per_s: smooth.rx_bytes_per_s,
            tx_bytes_per_s: smooth.tx_bytes_per_s,
            network: network_share(&smooth, mbps),
            throttled: rates.throttled,
            ..self.figures
        };
        values
    }

    /// Latency over the time since the last slow sample; requests in flight now.
    fn take_requests(&mut self) {
        let counters = self
            .fast
            .and_then(|(_, _, network)| network?.counters.filter(|_| network.is_some_and(|it| it.requests)));
        let before = std::mem::replace(&mut self.requests, counters);
        self.figures.in_flight = counters.as_ref().map(in_flight);
        self.figures.latency_us = before.zip(counters).and_then(|(a, b)| median_us(&a.answers, &b.answers));
    }

    fn load(&self, handle: u32) -> TaskLoad {
        let points = |ratio: Option<f64>| ratio.map(BasisPoints::from_ratio);
        let figures = &self.figures;
        TaskLoad {
            handle,
            cpu: points(figures.cpu),
            memory: points(figures.memory),
            network: points(figures.network),
            cpu_millis: whole(figures.cpu_millis.unwrap_or(0.0)),
            memory_kib: u32::try_from(figures.memory_bytes.unwrap_or(0) / 1_024).unwrap_or(u32::MAX),
            psi_cpu: points(figures.slow.psi_cpu),
            psi_memory: points(figures.slow.psi_memory),
            throttled: points(figures.throttled),
            in_flight: figures.in_flight,
            latency_us: figures.latency_us,
        }
    }
}

fn intro(handle: u32, container: &Container) -> TaskIntro {
    let description = container.description.as_ref();
    let learnt = container.learnt.as_ref();
    TaskIntro {
        handle,
        container: container.id.clone(),
        task: description.and_then(|it| it.task.clone()).or_else(|| learnt.map(|(task, _)| task.clone())),
        service: description
            .and_then(|it| it.service.clone())
            .or_else(|| learnt.map(|(_, service)| service.clone())),
        cpu_limit_millis: container.limits.cpu_millis,
        memory_limit_bytes: container.limits.memory_bytes,
        healthcheck: description.and_then(|it| it.healthcheck),
    }
}

fn push(outbox: &mut Outbox, counts: &mut Counts, handle: u32, change: Change) {
    counts.alerts += 1;
    outbox.push(handle, change.condition, change.edge, change.value, change.since);
}

fn age_ms(now: Time, since: Time) -> u32 {
    u32::try_from(now.since(since).as_millis()).unwrap_or(u32::MAX)
}

fn whole(value: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range first")]
    let whole = value.round().clamp(0.0, f64::from(u32::MAX)) as u32;
    whole
}
