//! What the world offers to hosts and their driver: its own agents and coordinators do not run here, they only say what
//! is to happen to those that do.

use std::time::Duration;

use swarmguard_common::{domain::NodeId, time::Time};
use swarmguard_core::command::{Command, CommandId, CommandResult};
use tokio::sync::oneshot;

use super::super::{World, coordinator::Call};
use crate::swarm_model::TICK_MS;

impl World {
    /// The life that the agent of a node is in.
    pub(super) fn epoch_of(&self, node: &NodeId) -> u64 {
        self.agents.get(node).map_or(0, |agent| agent.epoch)
    }

    /// A coordinator starts; answers which life that is.
    pub(super) fn coordinator_starts(&mut self, node: &NodeId) -> u64 {
        let Some(coordinator) = self.coordinators.get_mut(node) else { return 0 };
        coordinator.incarnation += 1;
        coordinator.incarnation
    }

    /// Whether a coordinator is to run, and something that is another after each crash.
    pub(super) fn coordinator_is(&self, node: &NodeId) -> (bool, u64) {
        let Some(coordinator) = self.coordinators.get(node) else { return (false, 0) };
        (self.swarm.nodes[node].up && self.now >= coordinator.starts_at, coordinator.starts_at.as_micros())
    }

    /// A coordinator sends a command, and perhaps dies of it.
    pub(super) fn call(&mut self, node: &NodeId, call: Call) {
        let dies = self.scenario.crashes(&mut self.rng)
            && self.checks.is_watching()
            && !self.checks.is_calm(self.now);
        let Some(coordinator) = self.coordinators.get_mut(node) else { return };
        coordinator.calls.push_back(call);
        if dies {
            let (down, survives) = (Duration::from_millis(self.rng.u64(500..8_000)), self.rng.bool());
            self.story.tell(self.now, || format!("{node}: crashes with a command in flight"));
            coordinator.crash(self.now, down, survives);
        }
    }

    /// One step of everything but the machines.
    pub(super) fn turn(&mut self) {
        self.now = self.now + Duration::from_millis(TICK_MS);
        self.disturb();
        self.swarm.advance(self.now);
        self.story.tell_tasks(self.now, &self.swarm);
        self.load.choose(self.now, &self.swarm, &self.services);
        self.restart_agents();
        for node in self.coordinators.keys().cloned().collect::<Vec<_>>() {
            if let Some(mut coordinator) = self.coordinators.remove(&node) {
                self.run_calls(&mut coordinator);
                self.coordinators.insert(node, coordinator);
            }
        }
    }

    /// Agents of nodes that are back begin another life.
    fn restart_agents(&mut self) {
        for (node, agent) in &mut self.agents {
            agent.power(self.swarm.nodes[node].up);
        }
    }

    /// The checkers look; `found` is what those of the wire have found.
    pub(super) fn look(&mut self, found: Vec<String>) {
        let now = self.now;
        for text in found {
            self.checks.fail(now, text);
        }
        self.checks.look(now, &self.swarm, &self.services);
    }

    /// Whether nothing is under way any more.
    pub(super) fn is_settled(&self) -> bool {
        let over = self.swarm.configs.values().all(|config| {
            config.labels.values().any(|value| value == "over") || config.name.contains("settings")
        });
        over && self.services.iter().all(|service| {
            let wanted =
                self.swarm.services.get(service).map_or(0, crate::swarm_model::ModelService::replicas);
            self.swarm.serving(service).count() as u64 == wanted
        })
    }
}

impl Call {
    /// A command whose answer goes to whoever sent it.
    pub(super) fn from_outside(
        command: Command,
        acts_at: Time,
        answers_at: Time,
        reply: oneshot::Sender<CommandResult>,
    ) -> Self {
        Self { id: CommandId(0), command, acts_at, answers_at, result: None, reply: Some(reply) }
    }
}
