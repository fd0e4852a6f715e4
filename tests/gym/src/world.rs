//! One run: a scenario, a seed, and whoever decides.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use swarmguard_common::domain::{NodeId, ServiceId};
use swarmguard_core::swarm::Availability;
use swarmguard_tests::swarm_model::{SwarmModel, TICK_MS, Workload};

use crate::{
    Time,
    controller::{Acts, Controller, Nothing, Stage},
    machines::{Machines, STEP},
    number::millis,
    peers::{Hpa, Kpa, LowNodeLoad, Prototype},
    record::Record,
    scenario::{Scenario, ServiceSpec, What},
    score::{self, Score},
    swarmguard::SwarmGuard,
};

/// Each service comes up for so long before time begins, in simulated time; its replicas are healthy then.
const COMES_UP: Duration = Duration::from_secs(2);

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// SwarmGuard.
    SwarmGuard,
    /// Kubernetes' HPA v2.
    Hpa,
    /// Knative's KPA.
    Kpa,
    /// The prototype.
    Prototype,
    /// Koordinator's LowNodeLoad.
    LowNodeLoad,
    /// Nobody.
    Nothing,
}

impl Policy {
    /// All of them, SwarmGuard first.
    pub const ALL: [Self; 6] =
        [Self::SwarmGuard, Self::Hpa, Self::Kpa, Self::Prototype, Self::LowNodeLoad, Self::Nothing];

    /// For tables and the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::SwarmGuard => "swarmguard",
            Self::Hpa => "hpa",
            Self::Kpa => "kpa",
            Self::Prototype => "prototype",
            Self::LowNodeLoad => "lownodeload",
            Self::Nothing => "nothing",
        }
    }

    fn controller(self, machines: &Machines, own: &NodeId, seed: u64) -> Box<dyn Controller> {
        match self {
            Self::SwarmGuard => Box::new(SwarmGuard::new(machines, own.clone(), seed)),
            Self::Hpa => Box::new(Hpa::new(machines, seed)),
            Self::Kpa => Box::new(Kpa::new(machines)),
            Self::Prototype => Box::new(Prototype::new(machines, seed)),
            Self::LowNodeLoad => Box::new(LowNodeLoad::new(machines, seed)),
            Self::Nothing => Box::new(Nothing),
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Run {
    /// Its scores.
    pub score: Score,
    /// Second by second.
    pub record: Record,
    /// What was done.
    pub acts: Acts,
    /// How many replicas an oracle would have had, by service and second.
    pub oracle: Vec<Vec<u64>>,
    /// What no client of Swarm may do.
    pub violations: Vec<String>,
}

/// Plays a scenario.
pub fn play(scenario: &Arc<Scenario>, policy: Policy, seed: u64) -> Run {
    let mut world = World::new(scenario, policy, seed);
    world.run();
    world.finish()
}

struct World {
    scenario: Arc<Scenario>,
    swarm: SwarmModel,
    machines: Machines,
    controller: Box<dyn Controller>,
    acts: Acts,
    record: Record,
    start: Time,
    nodes: Vec<NodeId>,
    services: Vec<ServiceId>,
    next_event: usize,
    updates: u64,
}

impl World {
    fn new(scenario: &Arc<Scenario>, policy: Policy, seed: u64) -> Self {
        let count = u64::try_from(scenario.nodes.len()).unwrap_or(1);
        // The first node is the manager. It takes tasks as any other does.
        let mut swarm = SwarmModel::new(seed, 1, count - 1);
        let nodes: Vec<NodeId> = (1..=count).map(SwarmModel::node_id).collect();
        for (id, spec) in nodes.iter().zip(&scenario.nodes) {
            if let Some(node) = swarm.nodes.get_mut(id) {
                node.nano_cpus = i64::try_from(crate::number::count(spec.cpus * 1e9)).unwrap_or(i64::MAX);
                node.memory_bytes = i64::try_from(spec.memory).unwrap_or(i64::MAX);
                for (key, value) in &spec.labels {
                    node.spec["Labels"][key] = json!(value);
                }
            }
        }
        let services: Vec<ServiceId> =
            scenario.services.iter().map(|spec| create(&mut swarm, &nodes, spec)).collect();
        for (id, spec) in services.iter().zip(&scenario.services) {
            if let Some(service) = swarm.services.get_mut(id) {
                service.workload = workload(spec);
            }
        }
        let start = swarm.now;
        let machines = Machines::new(scenario.clone(), seed, start, &nodes, &services);
        let controller = policy.controller(&machines, &nodes[0], seed);
        Self {
            scenario: scenario.clone(),
            record: Record::new(start, nodes.len()),
            swarm,
            machines,
            controller,
            acts: Acts::default(),
            start,
            nodes,
            services,
            next_event: 0,
            updates: 0,
        }
    }

    fn run(&mut self) {
        let (tick, end) = (Duration::from_millis(TICK_MS), self.start + self.scenario.length);
        let mut now = self.start;
        while now < end {
            now = now + tick;
            self.happen(now);
            self.swarm.advance(now);
            let measured = millis(now - self.start).is_multiple_of(millis(STEP));
            if measured {
                self.machines.step(now, &mut self.swarm);
                self.record.step(&mut self.machines, &self.swarm);
            }
            let up: Vec<bool> = self.nodes.iter().map(|id| self.swarm.nodes[id].up).collect();
            let mut stage = Stage {
                now,
                swarm: &mut self.swarm,
                machines: &self.machines,
                up: &up,
                measured,
                acts: &mut self.acts,
            };
            self.controller.step(&mut stage);
        }
    }

    fn happen(&mut self, now: Time) {
        while let Some(event) = self.scenario.events.get(self.next_event).cloned() {
            if self.start + event.at > now {
                return;
            }
            self.next_event += 1;
            self.acts.say(now, format!("event: {:?}", event.what));
            self.happens(&event.what, now);
            self.controller.happens(&event.what, now);
        }
    }

    fn happens(&mut self, what: &What, now: Time) {
        let set = |swarm: &mut SwarmModel, node: &NodeId, availability| {
            // Nobody else writes nodes in between: it cannot be out of date.
            let _ = swarm.operator_availability(node, availability);
        };
        match *what {
            What::PowerOff(node) => self.swarm.power_cut(&self.nodes[node]),
            What::PowerOn(node) => self.swarm.power_on(&self.nodes[node]),
            What::Activate(node) => set(&mut self.swarm, &self.nodes[node], Availability::Active),
            What::Pause(node) => set(&mut self.swarm, &self.nodes[node], Availability::Pause),
            What::Drain(node) => set(&mut self.swarm, &self.nodes[node], Availability::Drain),
            What::Scale { service, replicas } => {
                let id = &self.services[service];
                let _ = self
                    .swarm
                    .operator_update(id, |spec| spec["Mode"]["Replicated"]["Replicas"] = json!(replicas));
            }
            What::Update { service, parallelism, start_first } => {
                self.updates += 1;
                let (number, order) = (self.updates, if start_first { "start-first" } else { "stop-first" });
                let _ = self.swarm.operator_update(&self.services[service], |spec| {
                    spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!(format!("web:{}", number + 1));
                    spec["UpdateConfig"] = json!({"Parallelism": parallelism, "Order": order});
                });
            }
            What::FailingStarts { service, share } => {
                if let Some(service) = self.swarm.services.get_mut(&self.services[service]) {
                    service.workload.failing_starts = permille(share);
                }
            }
            What::Spin { service, cpus, length } => self.machines.spin(now, service, cpus, length),
            What::Kill { service } => {
                let task = self.swarm.serving(&self.services[service]).next().map(|task| task.id.clone());
                if let Some(task) = task {
                    self.swarm.kill_task(&task);
                }
            }
            What::Mute { node, length } => self.machines.nodes[node].mute_until = now + length,
            What::Lie { node, length } => self.machines.nodes[node].lies_until = now + length,
            What::Restart | What::PauseAll | What::ResumeAll => {}
        }
    }

    fn finish(mut self) -> Run {
        let score = score::score(&self.scenario, &self.machines, &self.record, &mut self.acts);
        let seconds = self.record.seconds.len();
        let oracle = (0..self.services.len())
            .map(|service| {
                let at = |second| score::oracle(&self.scenario, &self.machines, service, second);
                (0..seconds).map(at).collect()
            })
            .collect();
        Run { score, record: self.record, acts: self.acts, oracle, violations: self.swarm.violations }
    }
}

/// A service with its replicas up, where the scenario wants them.
fn create(swarm: &mut SwarmModel, nodes: &[NodeId], spec: &ServiceSpec) -> ServiceId {
    let closed = |index: usize| !spec.start_on.is_empty() && !spec.start_on.contains(&index);
    let set = |swarm: &mut SwarmModel, availability| {
        for (_, node) in nodes.iter().enumerate().filter(|(index, _)| closed(*index)) {
            // Nobody else writes nodes yet.
            let _ = swarm.operator_availability(node, availability);
        }
    };
    set(swarm, Availability::Pause);
    let service = swarm.create_service_of(spec.to_spec(), first_start(spec));
    swarm.advance(swarm.now + COMES_UP);
    set(swarm, Availability::Active);
    service
}

fn permille(share: f64) -> u16 {
    u16::try_from(crate::number::count(share * 1_000.0)).unwrap_or(1_000)
}

fn workload(spec: &ServiceSpec) -> Workload {
    Workload {
        prepare_ms: millis(spec.pull),
        healthy_ms: millis(spec.healthy),
        stop_ms: millis(spec.stop),
        failing_starts: permille(spec.failing_starts),
        runs_ms: None,
    }
}

/// What runs at the beginning is there already, however long a start takes.
fn first_start(spec: &ServiceSpec) -> Workload {
    Workload { prepare_ms: 0, healthy_ms: 100, failing_starts: 0, ..workload(spec) }
}
