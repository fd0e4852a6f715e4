//! One container as the agent knows it: what it is, its newest figures, and how samples become them.

use std::time::Duration;

use swarmguard_common::{
    domain::{BasisPoints, ContainerId, ServiceId, TaskId},
    kernel::GroupCounters,
    labels::Thresholds,
    time::Time,
    wire::agent::{TaskIntro, TaskLoad},
};

use super::totals::{Counted, Totals};
use crate::{
    conditions::{Conditions, Values},
    model::{
        Capacity, Ewma, FastRates, Limits, SlowRates, fast_rates, in_flight, median_us, needed,
        network_share, percentile_us, queued, rate, ratio, slow_rates,
    },
    sources::{
        group::{FastReading, SlowReading},
        network::NetworkReading,
    },
};

/// Smoothing of the figures that are reported and shown. Ten times that of the conditions: whoever plans with a figure
/// wants the last second, not the last tenth of one.
pub const REPORT_SMOOTHING: Duration = Duration::from_millis(500);

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
    /// Where it has volumes of its own that go with it, as its image asks for them.
    pub local_volumes: Vec<String>,
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
    /// What it may use.
    pub limits: Limits,
    /// Newest figures.
    pub figures: Figures,
    /// Its conditions.
    pub conditions: Conditions,
    pub(super) born: Time,
    pub(super) fast: Option<(Time, FastReading)>,
    /// As it was read last, and when.
    network: Option<(Time, NetworkReading)>,
    slow: Option<(Time, SlowReading)>,
    requests: Option<GroupCounters>,
    smooth_cpu: Ewma,
    smooth_rx: Ewma,
    smooth_tx: Ewma,
    pub(super) learnt: Option<(TaskId, ServiceId)>,
    /// What its counters said when they were first read.
    pub(super) first: Totals,
}

/// A container's newest figures, smoothed over [`REPORT_SMOOTHING`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// CPU in use, in thousandths of a CPU.
    pub cpu_millis: Option<f64>,
    /// CPU utilisation, 0 to 1.
    pub cpu: Option<f64>,
    /// Memory that is needed, bytes: all but page cache.
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
    /// What 95 of 100 answers did not exceed, in microseconds.
    pub latency_p95_us: Option<u32>,
}

impl Container {
    pub(super) fn new(
        now: Time,
        id: &ContainerId,
        limits: Limits,
        learnt: Option<(TaskId, ServiceId)>,
    ) -> Self {
        Self {
            id: id.clone(),
            description: None,
            limits,
            figures: Figures::default(),
            conditions: Conditions::default(),
            born: now,
            fast: None,
            network: None,
            slow: None,
            requests: None,
            smooth_cpu: Ewma::new(REPORT_SMOOTHING),
            smooth_rx: Ewma::new(REPORT_SMOOTHING),
            smooth_tx: Ewma::new(REPORT_SMOOTHING),
            learnt,
            first: Totals::default(),
        }
    }

    /// Its counters as they were read last.
    pub(super) fn counters(&self) -> Totals {
        let mut counters = Totals::default();
        let cpu = self.fast.and_then(|(_, fast)| fast.cpu);
        counters.set(Counted::Cpu, cpu.map(|cpu| cpu.usage_usec));
        counters.set(Counted::Periods, cpu.and_then(|cpu| cpu.periods).map(|(periods, _)| periods));
        counters.set(Counted::Throttled, cpu.and_then(|cpu| cpu.periods).map(|(_, throttled)| throttled));
        let traffic = self.network.map(|(_, network)| network.traffic);
        counters.set(Counted::Received, traffic.map(|traffic| traffic.rx_bytes));
        counters.set(Counted::Sent, traffic.map(|traffic| traffic.tx_bytes));
        let slow = self.slow.map(|(_, slow)| slow).unwrap_or_default();
        counters.set(Counted::StalledCpu, slow.psi_cpu.map(|psi| psi.some_usec));
        counters.set(Counted::StalledMemory, slow.psi_memory.map(|psi| psi.some_usec));
        counters.set(Counted::StalledIo, slow.psi_io.map(|psi| psi.some_usec));
        counters.set(Counted::OomKills, slow.oom_kills);
        counters.set(Counted::RunQueue, slow.run_queue.map(|waits| waits.total_ns));
        counters
    }

    /// The task that it runs, by its label, else as a coordinator said.
    pub fn task(&self) -> Option<&TaskId> {
        let named = self.description.as_ref().and_then(|description| description.task.as_ref());
        named.or(self.learnt.as_ref().map(|(task, _)| task))
    }

    /// The service that it belongs to, by its label, else as a coordinator said.
    pub fn service(&self) -> Option<&ServiceId> {
        let named = self.description.as_ref().and_then(|description| description.service.as_ref());
        named.or(self.learnt.as_ref().map(|(_, service)| service))
    }

    pub(super) fn take_fast(
        &mut self,
        now: Time,
        reading: FastReading,
        network: Option<NetworkReading>,
        node: Capacity,
        thresholds: &Thresholds,
    ) -> Values {
        let mbps = thresholds.network_mbps.or(node.network_mbps);
        let mine = node.limited(self.limits);
        let before = self.fast.replace((now, reading));
        let span = before.map_or(Duration::ZERO, |(at, _)| now.since(at));
        let rates = before.map_or_else(FastRates::default, |(_, old)| fast_rates(&old, &reading, span));
        let (rx_bytes_per_s, tx_bytes_per_s) = self.take_network(now, network);
        let rates = FastRates { rx_bytes_per_s, tx_bytes_per_s, ..rates };
        let page_cache = self.slow.and_then(|(_, slow)| slow.page_cache_bytes);
        let memory_bytes = needed(reading.memory_bytes, page_cache);
        #[expect(clippy::cast_precision_loss, reason = "a share needs no more than 53 bits")]
        let memory = ratio(memory_bytes.map(|bytes| bytes as f64), mine.memory_bytes as f64);
        let cpu_of = |millis| ratio(millis, f64::from(mine.cpu_millis));
        let values = Values {
            cpu: cpu_of(rates.cpu_millis),
            memory,
            network: network_share(&rates, mbps),
            psi_cpu: self.figures.slow.psi_cpu,
            queued: queued(self.figures.slow.run_queue, self.figures.cpu_millis),
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
        if before.is_none() {
            self.first.fill(&self.counters());
        }
        values
    }

    pub(super) fn take_slow(&mut self, now: Time, reading: SlowReading) {
        let before = self.slow.replace((now, reading));
        self.first.fill(&self.counters());
        let Some((at, before)) = before else { return };
        self.figures.slow = slow_rates(&before, &reading, now.since(at));
        self.take_requests();
    }

    /// Received and sent, bytes a second. What is left unread has moved nothing, so the next rate is over the time since
    /// then: over the whole silence a burst would look smaller than it is.
    fn take_network(&mut self, now: Time, network: Option<NetworkReading>) -> (Option<f64>, Option<f64>) {
        if let (Some(reading), Some((at, _))) = (network, self.network.as_mut())
            && reading.unread
        {
            *at = now;
            return (Some(0.0), Some(0.0));
        }
        let before = std::mem::replace(&mut self.network, network.map(|reading| (now, reading)));
        let Some(((at, old), new)) = before.zip(network) else { return (None, None) };
        let over = now.since(at);
        (
            rate(old.traffic.rx_bytes, new.traffic.rx_bytes, over),
            rate(old.traffic.tx_bytes, new.traffic.tx_bytes, over),
        )
    }

    /// Latency over the time since the last slow sample; requests in flight now.
    fn take_requests(&mut self) {
        let counters = self.network.and_then(|(_, network)| network.counters.filter(|_| network.requests));
        let before = std::mem::replace(&mut self.requests, counters);
        self.figures.in_flight = counters.as_ref().map(in_flight);
        let answers = before.zip(counters).map(|(a, b)| (a.answers, b.answers));
        self.figures.latency_us = answers.and_then(|(a, b)| median_us(&a, &b));
        self.figures.latency_p95_us = answers.and_then(|(a, b)| percentile_us(&a, &b, 95));
    }

    pub(super) fn load(&self, handle: u32) -> TaskLoad {
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
            latency_p95_us: figures.latency_p95_us,
        }
    }
}

pub(super) fn intro(handle: u32, container: &Container) -> TaskIntro {
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
        local_volumes: description.map(|it| it.local_volumes.clone()).unwrap_or_default(),
    }
}

fn whole(value: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the range first")]
    let whole = value.round().clamp(0.0, f64::from(u32::MAX)) as u32;
    whole
}
