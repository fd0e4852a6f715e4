//! What operators order of SwarmGuard itself, through the coordinator that leads: moves and drains by hand, pauses,
//! observing, and taking back what is under way. And what they do to nodes that were drained.

use swarmguard_common::domain::NodeId;
use swarmguard_core::{
    brain::{Accepted, OperatorCommand},
    swarm::Availability,
};

use super::World;

/// Nodes that must stay open to new tasks when one more is drained.
const OPEN_NODES: usize = 2;
/// Between two attempts to take everything back that would keep the rules from putting things right.
const RESUME_EVERY_MS: u64 = 1_000;
/// Name of the record that keeps operators' wishes.
const SETTINGS: &str = "swarmguard-settings";

impl World {
    /// An operator says something to the coordinator beside the leader; whether it is taken is the brain's to say.
    pub(super) fn operator_orders(&mut self) {
        match self.rng.u8(0..9) {
            0 | 1 => self.order_drain(),
            2 | 3 => self.order_move(),
            4 | 5 => self.order_cancel(),
            6 => {
                let service = self.rng.bool().then(|| self.any_service());
                self.order(OperatorCommand::Pause { service });
            }
            7 => self.resume_everything(),
            _ => {
                let on = self.rng.bool();
                self.order(OperatorCommand::Observe { on });
            }
        }
    }

    fn order(&mut self, command: OperatorCommand) -> Option<Accepted> {
        let leader = self.swarm.leader.clone();
        let coordinator = self.coordinators.get_mut(&leader)?;
        let now = coordinator.clock(self.now);
        let answer = coordinator.brain.as_mut()?.operator(now, "ops", command.clone());
        self.story.tell(self.now, || format!("an operator orders {command:?}: {answer:?}"));
        answer.ok()
    }

    fn order_drain(&mut self) {
        let node = self.any_node();
        let open = self
            .swarm
            .nodes
            .values()
            .filter(|other| other.id != node && other.up && other.availability() == Availability::Active);
        if open.count() < OPEN_NODES {
            return;
        }
        if let Some(token) =
            self.order(OperatorCommand::Drain { node: node.clone() }).and_then(|accepted| accepted.action)
        {
            self.checks.drain_ordered(&node, token);
        }
    }

    fn order_move(&mut self) {
        let service = self.any_service();
        let hosts: Vec<NodeId> = self.swarm.serving(&service).filter_map(|task| task.node.clone()).collect();
        let source = self.rng.choice(hosts);
        let target = self.rng.bool().then(|| self.any_node());
        self.order(OperatorCommand::Migrate { service, source, target });
    }

    fn order_cancel(&mut self) {
        let (mut service, mut node, mut action) = (None, None, None);
        match self.rng.u8(0..3) {
            0 => service = Some(self.any_service()),
            1 => node = Some(self.any_node()),
            _ => {
                let under_way = self.swarm.configs.values().filter(|config| {
                    config.labels.get("swarmguard.state").is_some_and(|state| state != "over")
                });
                let tokens: Vec<String> =
                    under_way.filter_map(|config| config.labels.get("swarmguard.token").cloned()).collect();
                action = self.rng.choice(tokens);
            }
        }
        self.order(OperatorCommand::Cancel { service, node, action });
    }

    /// `docker node update --availability active` of a node that was drained.
    pub(super) fn operator_returns_node(&mut self) {
        let drained = self.swarm.nodes.values().filter(|node| {
            node.availability() == Availability::Drain && self.checks.meant(&node.id) == Availability::Drain
        });
        let drained: Vec<NodeId> = drained.map(|node| node.id.clone()).collect();
        if let Some(node) = self.rng.choice(drained) {
            self.story.tell(self.now, || format!("an operator sets {node} to active again"));
            let _ = self.swarm.operator_availability(&node, Availability::Active);
            self.checks.operator_set(&node, Availability::Active, false);
        }
    }

    fn resume_everything(&mut self) {
        self.order(OperatorCommand::Resume { service: None });
        for service in self.services.clone() {
            self.order(OperatorCommand::Resume { service: Some(service) });
        }
        self.order(OperatorCommand::Observe { on: false });
    }

    /// In the calm operators take back what keeps the rules from acting, until Swarm shows it.
    pub(super) fn take_wishes_back(&mut self) {
        let since = self.now.as_millis() % RESUME_EVERY_MS;
        let stands = |name: &str| {
            self.swarm.configs.values().any(|config| config.name == name && !config.labels.is_empty())
        };
        if self.checks.is_calm(self.now) && since < crate::swarm_model::TICK_MS && stands(SETTINGS) {
            self.resume_everything();
        }
    }
}
