//! Simulation: whole brains and agents against the Swarm model, with faults, seeded, watched by checkers.
//!
//! A [`World`] holds everything; one step is [`TICK_MS`] of simulated time. All chance comes from one seed, so a
//! failure replays exactly: `swarmguard-simulate --from SEED --seeds 1 --verbose`.

mod agent;
mod chaos;
mod checks;
mod coordinator;
mod load;
mod network;
mod orders;
#[cfg(feature = "quic")]
pub mod quic;
mod sabotage;
mod scenario;

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::{
    domain::{NodeId, ServiceId, TaskId},
    time::Time,
};
use swarmguard_core::swarm::TaskState;

use crate::swarm_model::{SwarmModel, TICK_MS};
use agent::Agent;
use checks::Checks;
use coordinator::Coordinator;
use load::Load;
use network::Network;
pub use sabotage::Sabotage;
pub use scenario::{Class, Pattern, Scenario};

/// What one run found.
#[derive(Debug)]
pub struct Outcome {
    /// The seed that repeats it.
    pub seed: u64,
    /// What was tried.
    pub scenario: Scenario,
    /// What went wrong; empty when nothing did.
    pub failures: Vec<String>,
    /// Actions that were begun, by kind.
    pub actions: BTreeMap<String, u64>,
    /// Everything that happened, for people; only kept when asked for.
    pub story: Vec<String>,
}

/// Runs one seed.
pub fn run(seed: u64, verbose: bool) -> Outcome {
    run_sabotaged(seed, verbose, Sabotage::None)
}

/// What a seed tries.
pub fn scenario(seed: u64) -> Scenario {
    Scenario::draw(&mut fastrand::Rng::with_seed(seed))
}

/// Runs one seed with something broken on purpose, which a checker must notice.
pub fn run_sabotaged(seed: u64, verbose: bool, sabotage: Sabotage) -> Outcome {
    let mut world = World::new(seed, verbose, sabotage);
    world.run();
    world.outcome(seed)
}

/// One simulated cluster.
struct World {
    now: Time,
    rng: fastrand::Rng,
    scenario: Scenario,
    sabotage: Sabotage,
    swarm: SwarmModel,
    services: Vec<ServiceId>,
    load: Load,
    network: Network,
    agents: BTreeMap<NodeId, Agent>,
    coordinators: BTreeMap<NodeId, Coordinator>,
    checks: Checks,
    story: Story,
}

/// What is told of a run.
struct Story {
    start: Time,
    wanted: bool,
    lines: Vec<String>,
    tasks: BTreeMap<TaskId, (TaskState, TaskState)>,
}

impl Story {
    fn tell(&mut self, now: Time, text: impl FnOnce() -> String) {
        if self.wanted {
            let at = now - self.start;
            self.lines.push(format!("{:8.2}s {}", at.as_secs_f64(), text()));
        }
    }

    /// Tasks that became something else.
    fn tell_tasks(&mut self, now: Time, swarm: &SwarmModel) {
        if !self.wanted {
            return;
        }
        for task in swarm.tasks.values() {
            let is = (task.desired, task.state);
            if self.tasks.insert(task.id.clone(), is) != Some(is) {
                let node = task.node.as_ref().map_or("no node", NodeId::as_str);
                let told = format!(
                    "  {} slot {} of {} on {node}: {:?}, to be {:?}",
                    task.id, task.slot, task.service, task.state, task.desired
                );
                self.tell(now, || told);
            }
        }
    }
}

impl World {
    fn new(seed: u64, verbose: bool, sabotage: Sabotage) -> Self {
        Self::of(scenario(seed), seed, verbose, sabotage)
    }

    fn of(scenario: Scenario, seed: u64, verbose: bool, sabotage: Sabotage) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        // What the scenario was drawn with is not drawn again.
        Scenario::draw(&mut rng);
        let mut swarm = SwarmModel::new(rng.u64(..), scenario.managers, scenario.workers);
        let services: Vec<ServiceId> = scenario.create_services(&mut swarm, sabotage);
        let start = swarm.now;
        let load = Load::new(&scenario, start, &mut rng);
        let agents = swarm.nodes.keys().map(|node| (node.clone(), Agent::new(node.clone()))).collect();
        let managers: Vec<NodeId> =
            swarm.nodes.values().filter(|node| node.manager).map(|node| node.id.clone()).collect();
        let coordinators =
            managers.into_iter().map(|node| (node.clone(), Coordinator::new(node, &mut rng))).collect();
        let checks = Checks::new(&swarm, &services, &scenario);
        Self {
            now: start,
            network: Network::new(&scenario),
            story: Story { start, wanted: verbose, lines: Vec::new(), tasks: BTreeMap::new() },
            rng,
            scenario,
            sabotage,
            swarm,
            services,
            load,
            agents,
            coordinators,
            checks,
        }
    }

    fn outcome(&mut self, seed: u64) -> Outcome {
        Outcome {
            seed,
            failures: std::mem::take(&mut self.checks.failures),
            actions: std::mem::take(&mut self.checks.begun),
            story: std::mem::take(&mut self.story.lines),
            scenario: self.scenario.clone(),
        }
    }

    fn run(&mut self) {
        // The services come up before anything is watched or disturbed.
        self.step_for(Duration::from_secs(10));
        self.checks.start(&self.swarm);
        self.step_for(self.scenario.troubled);
        self.calm();
        self.step_for(self.scenario.calm);
        if self.checks.drains_ordered() {
            // Several replicas leave one after another.
            self.step_for(self.scenario.calm);
        }
        self.finish();
    }

    fn step_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end && self.checks.failures.is_empty() {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now = self.now + Duration::from_millis(TICK_MS);
        self.disturb();
        self.take_wishes_back();
        self.swarm.advance(self.now);
        self.story.tell_tasks(self.now, &self.swarm);
        self.run_agents();
        self.deliver();
        self.run_coordinators();
        self.checks.look(self.now, &self.swarm, &self.services);
    }

    /// Every fault ends and load becomes low: what was begun must come to its end.
    fn calm(&mut self) {
        self.network.heal();
        self.load.calm();
        for node in self.swarm.nodes.keys().cloned().collect::<Vec<_>>() {
            if !self.swarm.nodes[&node].up {
                self.swarm.power_on(&node);
            }
        }
        self.story.tell(self.now, || "calm: faults end, load is low".into());
    }

    fn finish(&mut self) {
        let alerts = self.coordinators.values().filter_map(|coordinator| {
            Some(coordinator.brain.as_ref()?.alerts(coordinator.clock(self.now)).len())
        });
        let alerts = alerts.sum();
        self.finish_with(alerts);
    }

    /// `alerts` stand in brains.
    fn finish_with(&mut self, alerts: usize) {
        if !self.checks.failures.is_empty() {
            return;
        }
        self.checks.finish(&self.swarm, &self.services, &self.scenario, alerts);
    }
}
