//! The nodes and what runs on them: arrivals of requests, their spreading over replicas, CPUs and their limits, memory,
//! back ends, checks. It reads which tasks Swarm runs where and tells Swarm which of them died. Pure and seeded.

mod chance;
mod replica;
mod share;
pub mod station;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use swarmguard_common::{
    domain::{NodeId, ServiceId, TaskId},
    kernel::Waits,
};
use swarmguard_core::swarm::TaskState;
use swarmguard_tests::swarm_model::SwarmModel;

use crate::{
    Time,
    number::{count, micros, real, real_len},
    scenario::{Balance, Scenario, ServiceSpec},
};
use chance::{draw, poisson};
pub use replica::{Counters, Replica};
use station::{Allowance, Outcome};

/// One step: a period of `cpu.max`, and the agent's sampling interval.
pub const STEP: Duration = Duration::from_millis(100);
/// Between the removal from Swarm's load balancing and SIGTERM.
const DRAIN: Duration = Duration::from_secs(2);
/// Work besides requests that got less than this share of what it wanted counts as late.
const STARVED: f64 = 0.8;

/// A node as it runs.
#[derive(Clone, Debug)]
pub struct Node {
    /// Swarm's ID.
    pub id: NodeId,
    /// CPU time used by all, microseconds.
    pub busy_us: f64,
    /// `/proc/pressure/cpu`, some, microseconds.
    pub psi_cpu_us: f64,
    /// `/proc/pressure/memory`, some.
    pub psi_memory_us: f64,
    /// Bytes that cannot be had back, of all.
    pub need: f64,
    /// Bytes both ways.
    pub bytes: (f64, f64),
    /// CPUs used in the last step.
    pub used: f64,
    /// CPUs wanted in the last step, by containers within their limits and by what is outside Swarm.
    pub wanted: f64,
    /// Its agent is silent until then.
    pub mute_until: Time,
    /// Its agent lies until then.
    pub lies_until: Time,
    /// Used more than there was in the last step, CPUs: paid back in the next.
    debt: f64,
    calm_until: Time,
}

/// What was asked of a service and what came of it since this was taken last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Requests that came.
    pub came: u64,
    /// Answered in time.
    pub good: u64,
    /// Answered too late.
    pub late: u64,
    /// Refused, given up or lost.
    pub failed: u64,
}

impl Tally {
    /// All that came to an end.
    pub fn ended(&self) -> u64 {
        self.good + self.late + self.failed
    }

    /// Share of these that was late or failed.
    pub fn bad_share(&self) -> f64 {
        if self.ended() == 0 { 0.0 } else { real(self.late + self.failed) / real(self.ended()) }
    }

    /// Both together.
    pub fn add(&mut self, other: &Self) {
        self.came += other.came;
        self.good += other.good;
        self.late += other.late;
        self.failed += other.failed;
    }
}

/// A service as it runs.
#[derive(Clone, Debug)]
pub struct Service {
    /// Swarm's ID.
    pub id: ServiceId,
    /// Since it was taken last.
    pub tally: Tally,
    /// Whose turn it is.
    turn: usize,
    /// Requests a second, in the last step.
    pub rate: f64,
    /// CPUs that all of it asks for: requests and shared work, at speed 1.
    pub offered: f64,
}

#[derive(Clone, Debug, Default)]
struct Backend {
    backlog: f64,
    calls: u64,
}

/// Something that a container's end was noticed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It started.
    Started(TaskId),
    /// Swarm takes it for healthy.
    Healthy(TaskId),
    /// It ended, with this status.
    Ended(TaskId, i32),
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Machines {
    scenario: Arc<Scenario>,
    rng: fastrand::Rng,
    seed: u64,
    start: Time,
    demand_factor: f64,
    /// In the order of the scenario.
    pub nodes: Vec<Node>,
    /// In the order of the scenario.
    pub services: Vec<Service>,
    backends: Vec<Backend>,
    /// Containers that run.
    pub replicas: BTreeMap<TaskId, Replica>,
    /// Containers that started, became healthy or ended in the last step, with their nodes.
    pub changes: Vec<(usize, Change)>,
    /// Containers that the kernel or a failed check ended so far.
    pub kills: u64,
    by_node: BTreeMap<NodeId, usize>,
    by_service: BTreeMap<ServiceId, usize>,
}

impl Machines {
    /// For nodes and services of the model in the order of the scenario.
    pub fn new(
        scenario: Arc<Scenario>,
        seed: u64,
        start: Time,
        nodes: &[NodeId],
        services: &[ServiceId],
    ) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed);
        let node = |id: &NodeId| Node {
            id: id.clone(),
            busy_us: 0.0,
            psi_cpu_us: 0.0,
            psi_memory_us: 0.0,
            need: 0.0,
            bytes: (0.0, 0.0),
            used: 0.0,
            wanted: 0.0,
            mute_until: Time::ZERO,
            lies_until: Time::ZERO,
            debt: 0.0,
            calm_until: Time::ZERO,
        };
        let service = |id: &ServiceId| Service {
            id: id.clone(),
            tally: Tally::default(),
            turn: 0,
            rate: 0.0,
            offered: 0.0,
        };
        let demand_factor = 1.0 + scenario.jitter * (rng.f64() * 2.0 - 1.0);
        Self {
            seed,
            start,
            demand_factor,
            nodes: nodes.iter().map(node).collect(),
            services: services.iter().map(service).collect(),
            backends: vec![Backend::default(); scenario.backends.len()],
            replicas: BTreeMap::new(),
            changes: Vec::new(),
            kills: 0,
            by_node: nodes.iter().cloned().zip(0..).collect(),
            by_service: services.iter().cloned().zip(0..).collect(),
            rng,
            scenario,
        }
    }

    /// The scenario.
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// What the file says of a service.
    pub fn spec(&self, service: usize) -> &ServiceSpec {
        &self.scenario.services[service]
    }

    /// A node's index.
    pub fn node_index(&self, node: &NodeId) -> Option<usize> {
        self.by_node.get(node).copied()
    }

    /// A service's index.
    pub fn service_index(&self, service: &ServiceId) -> Option<usize> {
        self.by_service.get(service).copied()
    }

    /// CPUs that a service asks for at a time, in seconds from the start: what no replica count changes.
    pub fn offered_at(&self, service: usize, t: f64) -> f64 {
        let spec = self.spec(service);
        let rate = self.rate_at(service, t);
        let most = spec.backend.map_or(f64::INFINITY, |backend| self.scenario.backends[backend].capacity);
        rate.min(most) * spec.cpu_time.as_secs_f64() + spec.work.at(t, self.seed) * self.demand_factor
    }

    fn rate_at(&self, service: usize, t: f64) -> f64 {
        self.spec(service).demand.at(t, self.seed ^ real_seed(service)) * self.demand_factor
    }

    /// One step, which ends now.
    pub fn step(&mut self, now: Time, swarm: &mut SwarmModel) {
        self.changes.clear();
        self.follow(now, swarm);
        let serving = self.serving(now, swarm);
        let arrivals = self.arrive(now, &serving);
        self.work(now, &arrivals);
        self.answer_backends();
        self.remember(now, swarm);
    }

    /// Containers come and go as Swarm says.
    fn follow(&mut self, now: Time, swarm: &SwarmModel) {
        for task in swarm.tasks.values() {
            let runs = (TaskState::Starting..=TaskState::Running).contains(&task.state);
            let (Some(node), true) = (&task.node, runs) else { continue };
            let up = swarm.nodes.get(node).is_some_and(|node| node.up);
            if !up || self.replicas.contains_key(&task.id) {
                continue;
            }
            let (Some(node), Some(service), Some(container)) =
                (self.node_index(node), self.service_index(&task.service), task.container())
            else {
                continue;
            };
            let mut replica =
                Replica::new(now, task.id.clone(), task.service.clone(), service, node, container);
            if now - self.start <= STEP {
                // What is there at the beginning has run for long.
                replica.born = Time::ZERO;
                replica.cache = real(self.scenario.services[service].cache);
            }
            self.changes.push((node, Change::Started(task.id.clone())));
            self.replicas.insert(task.id.clone(), replica);
        }
        let mut ended = Vec::new();
        for replica in self.replicas.values_mut() {
            let up = swarm.nodes.get(&self.nodes[replica.node].id).is_some_and(|node| node.up);
            let state = swarm.tasks.get(&replica.task).map(|task| task.state);
            let runs = state.is_some_and(|state| (TaskState::Starting..=TaskState::Running).contains(&state));
            if up && !runs && state.is_none() {
                // Swarm has forgotten it; its node stops it all the same.
                let stop = self.scenario.services[replica.service].stop;
                let gone_at = *replica.gone_at.get_or_insert(now + DRAIN + stop);
                if now < gone_at {
                    continue;
                }
            }
            if !up || !runs {
                let status = if state.is_none_or(|state| state == TaskState::Shutdown) { 0 } else { 137 };
                ended.push((replica.task.clone(), status));
            }
        }
        for (task, status) in ended {
            if let Some(mut replica) = self.replicas.remove(&task) {
                self.services[replica.service].tally.failed += replica.station.lose_all();
                self.changes.push((replica.node, Change::Ended(task, status)));
            }
        }
    }

    /// Replicas that get requests, by service.
    fn serving(&mut self, now: Time, swarm: &SwarmModel) -> Vec<Vec<TaskId>> {
        let mut serving = vec![Vec::new(); self.services.len()];
        for replica in self.replicas.values_mut() {
            let serves = swarm.tasks.get(&replica.task).is_some_and(|task| task.serves());
            if serves {
                if replica.serving_since.is_none() {
                    replica.serving_since = Some(now);
                    self.changes.push((replica.node, Change::Healthy(replica.task.clone())));
                }
                serving[replica.service].push(replica.task.clone());
            }
        }
        serving
    }

    /// Requests of the step, by the replica that gets them.
    fn arrive(&mut self, now: Time, serving: &[Vec<TaskId>]) -> BTreeMap<TaskId, Vec<(u64, u64)>> {
        let mut inboxes: BTreeMap<TaskId, Vec<(u64, u64)>> = BTreeMap::new();
        let (end, step) = (now.as_micros(), micros(STEP));
        let t = (now - self.start).as_secs_f64() - STEP.as_secs_f64() / 2.0;
        for (service, there) in serving.iter().enumerate() {
            let rate = self.rate_at(service, t);
            let offered = self.offered_at(service, t);
            let work = self.spec(service).work.at(t, self.seed) * self.demand_factor;
            let burn = self.spec(service).burn.at(t, self.seed);
            self.services[service].rate = rate;
            self.services[service].offered = offered;
            for replica in self.replicas.values_mut().filter(|replica| replica.service == service) {
                let shares = replica.serving_since.is_some() && there.contains(&replica.task);
                replica.burn = burn + if shares { work / real_len(there.len().max(1)) } else { 0.0 };
            }
            let came = poisson(&mut self.rng, rate * STEP.as_secs_f64());
            self.services[service].tally.came += came;
            if there.is_empty() {
                self.services[service].tally.failed += came;
                // Work that nobody does is late, once a step.
                self.services[service].tally.late += u64::from(work > 0.0);
                continue;
            }
            let mut times: Vec<u64> = (0..came).map(|_| end - self.rng.u64(1..=step)).collect();
            times.sort_unstable();
            let spec = &self.scenario.services[service];
            for at in times {
                let work_ns = draw(&mut self.rng, spec);
                let chosen = match spec.balance {
                    Balance::RoundRobin => {
                        let state = &mut self.services[service];
                        state.turn = state.turn.wrapping_add(1);
                        &there[state.turn % there.len()]
                    }
                    Balance::Least => {
                        let load = |task: &&TaskId| {
                            let waiting = self.replicas.get(*task).map_or(0, |it| it.station.in_flight());
                            waiting + inboxes.get(*task).map_or(0, Vec::len)
                        };
                        there.iter().min_by_key(load).unwrap_or(&there[0])
                    }
                };
                inboxes.entry(chosen.clone()).or_default().push((at, work_ns));
            }
        }
        inboxes
    }

    /// CPUs are shared and used.
    fn work(&mut self, now: Time, arrivals: &BTreeMap<TaskId, Vec<(u64, u64)>>) {
        let mut on: Vec<Vec<TaskId>> = vec![Vec::new(); self.nodes.len()];
        for replica in self.replicas.values() {
            on[replica.node].push(replica.task.clone());
        }
        for (node, tasks) in on.iter().enumerate() {
            self.work_on(now, node, tasks, arrivals);
        }
    }

    fn work_on(
        &mut self,
        now: Time,
        index: usize,
        tasks: &[TaskId],
        arrivals: &BTreeMap<TaskId, Vec<(u64, u64)>>,
    ) {
        let scenario = self.scenario.clone();
        let spec = &scenario.nodes[index];
        let t = (now - self.start).as_secs_f64();
        let outside = spec.outside.at(t, self.seed ^ real_seed(index)).min(spec.cpus * 4.0);
        let step_us = real(micros(STEP));
        // What each is sure to want in this step: what is at work and waits, and what is on its way.
        let mut claims = Vec::new();
        for task in tasks {
            let Some(replica) = self.replicas.get_mut(task) else { continue };
            let service = &scenario.services[replica.service];
            let workers = replica.workers(service, spec.cpus);
            let coming: u64 = arrivals.get(task).into_iter().flatten().map(|(_, work)| *work).sum();
            let (slow, warming) = replica.warmth(now, service);
            replica.burn += warming + replica.spin(now);
            let coming = (real(coming) * slow / spec.speed / 1_000.0 / step_us).min(real_len(workers));
            let asked =
                (real_len(replica.station.wants(workers)) + coming).min(real_len(workers)) + replica.burn;
            replica.asked = asked.min(spec.cpus);
            // Tasks that run are no claim for all of the step: they may be done before its end.
            let speed = spec.speed / slow;
            let left = replica.station.claims(workers, step_us * 1_000.0 * speed);
            let claim = (left + coming).min(real_len(workers)) + replica.burn;
            replica.wanted = claim.min(replica.cap(service, spec.cpus));
            claims.push(replica.wanted);
        }
        // What is outside counts as so many containers when CPUs are scarce.
        let weight = usize::try_from(spec.outside_weight).unwrap_or(1);
        claims.extend(std::iter::repeat_n(outside / real_len(weight), weight));
        let whole = (spec.cpus - self.nodes[index].debt).max(spec.cpus / 2.0);
        let shares = share::fair(&claims, whole);
        let wanted: f64 = claims.iter().sum();
        let spare = (whole - shares.iter().sum::<f64>()).max(0.0);
        let busy = (wanted / spec.cpus).min(1.5);
        let contended = share::waits(busy, spec.cpus);
        let outside_used: f64 = shares.iter().skip(tasks.len()).sum();
        let mut used = outside_used;
        let mut untroubled = 1.0 - contended;
        let free = real(spec.memory) - self.nodes[index].need;
        for (task, share) in tasks.iter().zip(&shares) {
            let Some(replica) = self.replicas.get_mut(task) else { continue };
            let service = &scenario.services[replica.service];
            let cap = replica.cap(service, spec.cpus);
            let workers = replica.workers(service, spec.cpus);
            let allowed = Allowance {
                from_us: now.before(STEP).as_micros(),
                until_us: now.as_micros(),
                cpus: (share + spare).min(cap),
                burn: replica.burn,
                speed: spec.speed / replica.warmth(now, service).0,
                workers,
                queue: usize::try_from(service.queue).unwrap_or(usize::MAX),
                timeout_us: micros(service.timeout),
                backend_us: service.backend.map(|backend| {
                    let state = &self.backends[backend];
                    let spec = &scenario.backends[backend];
                    micros(spec.time) + count(state.backlog / spec.capacity * 1e6)
                }),
            };
            let inbox = arrivals.get(task).map(Vec::as_slice).unwrap_or_default();
            let mut out = Outcome::default();
            replica.station.run(&allowed, inbox, &mut out);
            replica.used = out.used_us / step_us;
            used += replica.used;
            let given = if replica.burn > 0.0 { replica.used.min(replica.burn) / replica.burn } else { 1.0 };
            note_counters(replica, service, &out, cap, contended, spec.cpus);
            if service.cpus.is_some() {
                untroubled *= 1.0 - throttled_share(replica.asked, cap, spec.cpus);
            }
            let tally = &mut self.services[replica.service].tally;
            let goal = micros(service.goal);
            for took in &out.answered_us {
                if *took <= goal { tally.good += 1 } else { tally.late += 1 }
            }
            tally.failed += out.failed;
            if replica.burn > 0.0 && service.demand.is_nothing() && replica.serving_since.is_some() {
                tally.came += 1;
                if given >= STARVED { tally.good += 1 } else { tally.late += 1 }
            }
            if let Some(backend) = service.backend {
                self.backends[backend].calls += out.calls;
            }
            let bytes = service.bytes * real(out.started);
            self.nodes[index].bytes.0 += bytes * 0.2;
            self.nodes[index].bytes.1 += bytes * 0.8;
            let room = free + replica.need;
            if replica.grow(service, STEP, room.max(0.0)) {
                replica.failed_checks = u64::MAX;
            }
        }
        let node = &mut self.nodes[index];
        node.debt = (used - whole).clamp(0.0, spec.cpus / 2.0);
        node.used = used.min(spec.cpus);
        node.wanted = wanted;
        node.busy_us += node.used * step_us;
        node.psi_cpu_us += (1.0 - untroubled.max(0.0)) * step_us;
        let need: f64 = tasks.iter().filter_map(|task| self.replicas.get(task)).map(|it| it.need).sum();
        node.need = need + real(spec.outside_memory);
        let tight = (node.need / real(spec.memory) - 0.95) / 0.05;
        node.psi_memory_us += tight.clamp(0.0, 1.0) * 0.6 * step_us;
        if node.need > real(spec.memory) && now >= node.calm_until {
            // The kernel kills the largest, and has a moment's peace.
            node.calm_until = now + Duration::from_secs(1);
            let largest = tasks.iter().filter_map(|task| self.replicas.get(task));
            let largest = largest.max_by(|a, b| a.need.total_cmp(&b.need)).map(|it| it.task.clone());
            if let Some(replica) = largest.and_then(|task| self.replicas.get_mut(&task)) {
                replica.counters.oom_kills += 1;
                replica.failed_checks = u64::MAX;
            }
        }
    }

    fn answer_backends(&mut self) {
        for (backend, spec) in self.backends.iter_mut().zip(&self.scenario.backends) {
            let calls = real(std::mem::take(&mut backend.calls));
            backend.backlog = (backend.backlog + calls - spec.capacity * STEP.as_secs_f64()).max(0.0);
        }
    }

    /// Failed checks and kills reach Swarm.
    fn remember(&mut self, now: Time, swarm: &mut SwarmModel) {
        let mut dead = BTreeSet::new();
        for replica in self.replicas.values_mut() {
            let service = &self.scenario.services[replica.service];
            if let Some(timeout) = service.health_timeout
                && replica.failed_checks != u64::MAX
                && now >= replica.next_check
            {
                replica.next_check = now + service.health_interval;
                let slow = replica.station.longest_wait_us(now.as_micros()) > micros(timeout);
                let counts = replica.serving_since.is_some();
                replica.failed_checks = if slow && counts { replica.failed_checks + 1 } else { 0 };
                if replica.failed_checks >= service.health_retries {
                    replica.failed_checks = u64::MAX;
                }
            }
            if replica.failed_checks == u64::MAX && replica.gone_at.is_none() {
                dead.insert(replica.task.clone());
            }
        }
        for task in dead {
            swarm.kill_task(&task);
            self.kills += 1;
        }
    }

    /// One replica of a service burns CPUs for a while.
    pub fn spin(&mut self, now: Time, service: usize, cpus: f64, length: Duration) {
        let serving =
            self.replicas.values_mut().filter(|it| it.service == service && it.serving_since.is_some());
        if let Some(replica) = serving.min_by_key(|replica| replica.born) {
            replica.spins = Some((cpus, now + length));
        }
    }

    /// What came of a service's requests since this was asked last.
    pub fn take_tally(&mut self, service: usize) -> Tally {
        std::mem::take(&mut self.services[service].tally)
    }
}

/// Share of a period in which `cpu.max` holds all tasks back that want to run.
fn throttled_share(asked: f64, cap: f64, node_cpus: f64) -> f64 {
    let at_once = asked.ceil().min(node_cpus);
    if asked <= cap || at_once <= 0.0 { 0.0 } else { (1.0 - cap / at_once).clamp(0.0, 1.0) }
}

fn note_counters(
    replica: &mut Replica,
    service: &ServiceSpec,
    out: &Outcome,
    cap: f64,
    contended: f64,
    node_cpus: f64,
) {
    let step_us = real(micros(STEP));
    let counters = &mut replica.counters;
    counters.cpu_us += out.used_us;
    let mut stalled = if replica.used > 0.01 { contended } else { 0.0 };
    if service.cpus.is_some() {
        let throttled = throttled_share(replica.asked, cap, node_cpus);
        counters.periods.0 += 1;
        counters.periods.1 += u64::from(throttled > 0.0);
        stalled = 1.0 - (1.0 - stalled) * (1.0 - throttled);
    }
    counters.psi_cpu_us += stalled * step_us;
    counters.run_queue_ns += (replica.asked - replica.used).max(0.0) * step_us * 1_000.0;
    let bytes = service.bytes * real(out.started);
    counters.bytes.0 += bytes * 0.2;
    counters.bytes.1 += bytes * 0.8;
    counters.started += out.started;
    counters.dropped += out.failed;
    for took in &out.answered_us {
        let ns = took.saturating_mul(1_000);
        counters.answers.count += 1;
        counters.answers.total_ns += ns;
        counters.answers.slots[Waits::slot(ns)] += 1;
    }
}

fn real_seed(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(0).wrapping_add(1).wrapping_mul(0x2545_f491_4f6c_dd1d)
}
