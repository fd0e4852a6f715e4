//! One container: its requests, what it burns besides, its memory, and the counters that a kernel would keep of it.

use std::time::Duration;

use swarmguard_common::{
    domain::{ContainerId, ServiceId, TaskId},
    kernel::Waits,
};

use super::station::Station;
use crate::{
    Time,
    number::{count, micros, real, real_len},
    scenario::ServiceSpec,
};

/// Page cache grows to what a container would like to have within about this long, in seconds.
const CACHE_FILLS_S: f64 = 120.0;
/// From this share of `memory.max` that cannot be had back, reclaim makes tasks wait.
const TIGHT: f64 = 0.92;

/// What a kernel counts of a cgroup; all of it only grows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// CPU time, microseconds.
    pub cpu_us: f64,
    /// Periods of `cpu.max`, and those in which it held tasks back.
    pub periods: (u64, u64),
    /// `cpu.pressure`, some, microseconds.
    pub psi_cpu_us: f64,
    /// `memory.pressure`, some.
    pub psi_memory_us: f64,
    /// Time that tasks waited on a run queue, nanoseconds.
    pub run_queue_ns: f64,
    /// Bytes received, and sent.
    pub bytes: (f64, f64),
    /// Requests begun.
    pub started: u64,
    /// Requests whose connection ended without an answer.
    pub dropped: u64,
    /// Answers, by how long they took.
    pub answers: Waits,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
}

/// A container.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its task.
    pub task: TaskId,
    /// Its service, as Swarm calls it.
    pub service_id: ServiceId,
    /// The same by index.
    pub service: usize,
    /// Its node by index.
    pub node: usize,
    /// The engine's ID.
    pub container: ContainerId,
    /// When it started.
    pub born: Time,
    /// Since when Swarm sends it requests.
    pub serving_since: Option<Time>,
    /// Told to stop, and no longer shown by Swarm: when it is gone at the latest.
    pub gone_at: Option<Time>,
    /// Burns so many CPUs until then.
    pub spins: Option<(f64, Time)>,
    /// Requests.
    pub station: Station,
    /// What a kernel counts.
    pub counters: Counters,
    /// Leaked so far, bytes.
    pub leaked: f64,
    /// Page cache, bytes.
    pub cache: f64,
    /// Bytes that cannot be had back.
    pub need: f64,
    /// CPUs used in the last step.
    pub used: f64,
    /// CPUs that it would have used, had its node had enough; within its limit.
    pub wanted: f64,
    /// CPUs that its tasks asked for, its limit aside.
    pub asked: f64,
    /// CPUs of work besides requests in this step.
    pub burn: f64,
    pub(super) next_check: Time,
    pub(super) failed_checks: u64,
}

impl Replica {
    pub(super) fn new(
        now: Time,
        task: TaskId,
        service_id: ServiceId,
        service: usize,
        node: usize,
        container: ContainerId,
    ) -> Self {
        Self {
            task,
            service_id,
            service,
            node,
            container,
            born: now,
            serving_since: None,
            gone_at: None,
            spins: None,
            station: Station::default(),
            counters: Counters::default(),
            leaked: 0.0,
            cache: 0.0,
            need: 0.0,
            used: 0.0,
            wanted: 0.0,
            asked: 0.0,
            burn: 0.0,
            next_check: now,
            failed_checks: 0,
        }
    }

    /// The most CPUs that it may use.
    pub fn cap(&self, spec: &ServiceSpec, node_cpus: f64) -> f64 {
        spec.cpus.unwrap_or(node_cpus).min(node_cpus)
    }

    /// Requests at work at once.
    pub fn workers(&self, spec: &ServiceSpec, node_cpus: f64) -> usize {
        let default = || count(self.cap(spec, node_cpus).ceil()).max(1);
        usize::try_from(spec.workers.unwrap_or_else(default)).unwrap_or(usize::MAX)
    }

    /// How much slower than usual it works now, and what warming up burns.
    pub fn warmth(&self, now: Time, spec: &ServiceSpec) -> (f64, f64) {
        let age = now - self.born;
        if age >= spec.warm_up {
            return (1.0, 0.0);
        }
        let left = 1.0 - age.as_secs_f64() / spec.warm_up.as_secs_f64();
        (1.0 + (spec.warm_up_slowdown - 1.0) * left, spec.warm_up_cpus)
    }

    /// Whether it still warms up.
    pub fn is_warm(&self, now: Time, spec: &ServiceSpec) -> bool {
        now - self.born >= spec.warm_up
    }

    /// CPUs that a spinning replica burns.
    pub fn spin(&mut self, now: Time) -> f64 {
        self.spins = self.spins.filter(|(_, until)| *until > now);
        self.spins.map_or(0.0, |(cpus, _)| cpus)
    }

    /// Memory after a step; whether the kernel kills it.
    pub(super) fn grow(&mut self, spec: &ServiceSpec, step: Duration, node_room: f64) -> bool {
        let seconds = step.as_secs_f64();
        self.leaked += spec.leak / 60.0 * seconds;
        self.need =
            real(spec.heap) + self.leaked + real(spec.heap_per_request) * real_len(self.station.in_flight());
        let limit = spec.memory.map_or(f64::INFINITY, real);
        let room = (limit - self.need).min(node_room).max(0.0);
        let target = real(spec.cache).min(room);
        let grown = self.cache + real(spec.cache) * seconds / CACHE_FILLS_S;
        self.cache = grown.min(target);
        if limit.is_finite() {
            let tight = (self.need / limit - TIGHT) / (1.0 - TIGHT);
            self.counters.psi_memory_us += tight.clamp(0.0, 1.0) * 0.6 * real(micros(step));
        }
        let kills = self.need > limit;
        if kills {
            self.counters.oom_kills += 1;
        }
        kills
    }
}
