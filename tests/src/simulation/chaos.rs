//! Trouble: what breaks, and what operators do in between.

use std::time::Duration;

use serde_json::json;
use swarmguard_common::domain::NodeId;
use swarmguard_core::{action::node_name, swarm::Availability};

use super::{
    World,
    agent::Agent,
    scenario::{Class, Scenario},
};

impl Scenario {
    /// Whether a coordinator dies right after it sent this command.
    pub(super) fn crashes(&self, rng: &mut fastrand::Rng) -> bool {
        self.trouble_every.is_some() && rng.u8(0..12) == 0
    }
}

impl super::network::Network {
    /// Whether anything is cut or blind now.
    pub(super) fn is_troubled(&self, nodes: &[NodeId]) -> bool {
        nodes.iter().any(|one| self.is_blind(one) || nodes.iter().any(|other| self.is_cut(one, other)))
    }
}

impl World {
    /// Perhaps something goes wrong in this step.
    pub(super) fn disturb(&mut self) {
        let Some(every) = self
            .scenario
            .trouble_every
            .filter(|_| self.checks.is_watching() && !self.checks.is_calm(self.now))
        else {
            return;
        };
        let chance = Duration::from_millis(crate::swarm_model::TICK_MS).as_secs_f64() / every.as_secs_f64();
        if self.rng.f64() >= chance {
            return;
        }
        let kinds = if self.scenario.class == Class::OwnFaults { 9 } else { 16 };
        match self.rng.u8(0..kinds) {
            0 => self.crash_coordinator(),
            1 => self.restart_agent(),
            2 => self.partition_agent(),
            3 => self.blind_coordinator(),
            4 => self.elect(),
            5 => self.mend(),
            6 | 7 => self.operator_orders(),
            8 => self.operator_returns_node(),
            9 => self.power(),
            10 => self.operator_scales(),
            11 => self.operator_sets_node(),
            12 => self.operator_deploys(),
            13 => self.operator_relabels(),
            14 => self.kill_task(),
            _ => self.mend(),
        }
    }

    pub(super) fn any_node(&mut self) -> NodeId {
        let nodes: Vec<&NodeId> = self.swarm.nodes.keys().collect();
        nodes[self.rng.usize(0..nodes.len())].clone()
    }

    fn any_manager(&mut self) -> NodeId {
        let managers: Vec<&NodeId> = self.coordinators.keys().collect();
        managers[self.rng.usize(0..managers.len())].clone()
    }

    pub(super) fn any_service(&mut self) -> swarmguard_common::domain::ServiceId {
        self.services[self.rng.usize(0..self.services.len())].clone()
    }

    fn crash_coordinator(&mut self) {
        let node = self.any_manager();
        let down = Duration::from_millis(self.rng.u64(200..10_000));
        let survives = self.rng.bool();
        self.story.tell(self.now, || format!("the coordinator on {node} dies for {down:?}"));
        if let Some(coordinator) = self.coordinators.get_mut(&node) {
            coordinator.crash(self.now, down, survives);
        }
    }

    fn restart_agent(&mut self) {
        let node = self.any_node();
        self.story.tell(self.now, || format!("the agent on {node} starts anew"));
        self.agents.get_mut(&node).map(Agent::restart);
    }

    fn partition_agent(&mut self) {
        let (agent, coordinator) = (self.any_node(), self.any_manager());
        self.story.tell(self.now, || format!("{agent} and the coordinator on {coordinator} cannot talk"));
        self.network.cut(&agent, &coordinator);
    }

    fn blind_coordinator(&mut self) {
        let node = self.any_manager();
        self.story.tell(self.now, || format!("the coordinator on {node} gets no answer from Swarm"));
        self.network.set_blind(&node, true);
    }

    fn mend(&mut self) {
        let nodes: Vec<NodeId> = self.swarm.nodes.keys().cloned().collect();
        if self.network.is_troubled(&nodes) {
            self.story.tell(self.now, || "connections are mended".into());
        }
        self.network.mend();
        for node in nodes {
            self.network.set_blind(&node, false);
        }
    }

    fn elect(&mut self) {
        let candidates: Vec<NodeId> =
            self.coordinators.keys().filter(|node| self.swarm.nodes[*node].up).cloned().collect();
        if let Some(leader) = self.rng.choice(candidates) {
            self.story.tell(self.now, || format!("{leader} leads the managers"));
            self.swarm.elect(&leader);
        }
    }

    fn power(&mut self) {
        let node = self.any_node();
        let found = &self.swarm.nodes[&node];
        // A swarm without its only manager, or without its leader, is not what is tried here.
        if found.manager {
            return;
        }
        let up = found.up;
        self.story.tell(self.now, || format!("{node} {}", if up { "loses power" } else { "comes back" }));
        if up {
            self.swarm.power_cut(&node);
        } else {
            self.swarm.power_on(&node);
        }
    }

    fn operator_scales(&mut self) {
        let service = self.any_service();
        let index = self.services.iter().position(|one| *one == service).unwrap_or(0);
        let most = self.scenario.scale_max[index].unwrap_or(5);
        let least = if self.scenario.scale_max[index].is_some() { self.scenario.replicas[index] } else { 1 };
        let replicas = self.rng.u64(least..=most);
        // Swarm does not show that somebody asked for what a surge had set a moment ago.
        if self.swarm.services[&service].replicas() == replicas {
            return;
        }
        self.story.tell(self.now, || format!("an operator scales {service} to {replicas}"));
        let _ = self
            .swarm
            .operator_update(&service, |spec| spec["Mode"]["Replicated"]["Replicas"] = json!(replicas));
        self.checks.operator_scaled(&service, replicas);
    }

    /// `docker node update --availability`.
    fn operator_sets_node(&mut self) {
        let node = self.any_node();
        let availability = match self.rng.u8(0..5) {
            0 | 1 => Availability::Pause,
            2 => Availability::Drain,
            _ => Availability::Active,
        };
        self.story.tell(self.now, || format!("an operator sets {node} to {availability:?}"));
        let held = self.swarm.nodes[&node].availability() == Availability::Pause
            && self.swarm.configs.values().any(|config| config.name == node_name(&node));
        let _ = self.swarm.operator_availability(&node, availability);
        self.checks.operator_set(&node, availability, held);
    }

    fn operator_deploys(&mut self) {
        // `docker stack deploy`: the whole spec from the file again, replica count included, with another image.
        let service = self.any_service();
        let image = format!("web:{}", self.rng.u32(2..99));
        self.story.tell(self.now, || format!("an operator deploys {service} with {image}"));
        let mut spec = self.checks.operator_spec(&service);
        spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!(image);
        let replicas = spec["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(1);
        let written = spec.clone();
        let _ = self.swarm.operator_update(&service, move |now| *now = written);
        self.checks.operator_deployed(&service, spec);
        self.checks.operator_scaled(&service, replicas);
    }

    fn operator_relabels(&mut self) {
        let service = self.any_service();
        let note = self.rng.u32(0..1_000).to_string();
        self.story.tell(self.now, || format!("an operator labels {service} note={note}"));
        let _ = self.swarm.operator_update(&service, |spec| spec["Labels"]["note"] = json!(note));
        let mut spec = self.checks.operator_spec(&service);
        spec["Labels"]["note"] = json!(note);
        self.checks.operator_deployed(&service, spec);
    }

    fn kill_task(&mut self) {
        let service = self.any_service();
        let tasks: Vec<_> = self.swarm.serving(&service).map(|task| task.id.clone()).collect();
        if let Some(task) = self.rng.choice(tasks) {
            self.story.tell(self.now, || format!("{task} of {service} dies"));
            self.swarm.kill_task(&task);
        }
    }
}
