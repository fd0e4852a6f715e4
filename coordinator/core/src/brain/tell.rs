//! What agents are told: the thresholds of what runs on their nodes, and which of their alerts are known.

use std::collections::BTreeMap;

use swarmguard_common::{domain::NodeId, labels::Thresholds, wire::agent::ToAgent};

use crate::{
    agents::{AgentOrder, AgentOutput},
    view::View,
};

/// Thresholds of this many services fit a frame with room to spare.
const MAX_THRESHOLDS: usize = 512;
/// Containers named to one agent, likewise.
const MAX_NAMED: usize = 1_024;

/// Tells each connected agent the thresholds of what runs on its node, where they changed.
pub(super) fn all_thresholds(view: &mut View, default: Thresholds, out: &mut Vec<AgentOutput>) {
    let nodes: Vec<NodeId> = view.agents.keys().cloned().collect();
    for node in &nodes {
        thresholds(view, node, default, out);
    }
}

/// Tells one agent, likewise.
pub(super) fn thresholds(view: &mut View, node: &NodeId, default: Thresholds, out: &mut Vec<AgentOutput>) {
    let Some(snapshot) = view.snapshot.clone() else { return };
    let Some(connection) = view.agents.get(node).and_then(|agent| agent.connection) else { return };
    let mut services = BTreeMap::new();
    let mut containers = BTreeMap::new();
    for task in view.tasks_on(node) {
        if let Some(container) = &task.container
            && containers.len() < MAX_NAMED
        {
            containers.insert(container.clone(), (task.id.clone(), task.service.clone()));
        }
        if let Some(Ok(policy)) = snapshot.services.get(&task.service).map(|service| &service.policy)
            && policy.thresholds != default
            && services.len() < MAX_THRESHOLDS
        {
            services.insert(task.service.clone(), policy.thresholds);
        }
    }
    let message = ToAgent::Thresholds { default, services, containers };
    if let Some(agent) = view.agents.get_mut(node)
        && agent.thresholds_sent.as_ref() != Some(&message)
    {
        agent.thresholds_sent = Some(message.clone());
        out.push(AgentOutput { connection, what: AgentOrder::Send(message) });
    }
}

/// Acknowledges what an agent said, unless it was told already.
pub(super) fn acknowledge(view: &mut View, node: &NodeId, out: &mut Vec<AgentOutput>) {
    let Some(agent) = view.agents.get_mut(node) else { return };
    let Some(connection) = agent.connection else { return };
    if let Some(seq) = agent.acknowledgement() {
        out.push(AgentOutput { connection, what: AgentOrder::Send(ToAgent::Acknowledge { seq }) });
    }
}

#[cfg(test)]
mod tests {
    use swarmguard_common::wire::agent::ToCoordinator;

    use super::*;
    use crate::{
        agents::AgentEvent,
        view::{Heard, testing::*},
    };

    #[test]
    fn an_alert_sent_again_counts_once_and_is_acknowledged_again() {
        let mut world = World::new(["n1"]);
        world.service(replicated("s1", 1)).task("t1", "s1", 1, "n1").read(0);
        let alert = swarmguard_common::wire::agent::Alert {
            epoch: 1,
            seq: 5,
            handle: 1,
            condition: 0,
            edge: 0,
            value: 9_000,
            age_ms: 300,
        };
        let node: NodeId = "n1".parse().expect("an ID");
        let send = |world: &mut World| {
            world.out.clear();
            let heard = world.agent(500, "n1", AgentEvent::Message(ToCoordinator::Alert(alert)));
            acknowledge(&mut world.view, &node, &mut world.out);
            (matches!(heard, Heard::Edge(_)), world.out.len())
        };
        assert_eq!(send(&mut world), (true, 1));
        assert_eq!(send(&mut world), (false, 1));
        assert_eq!((world.statistics.alerts, world.statistics.duplicate_alerts), (1, 1));
    }

    #[test]
    fn thresholds_are_told_once_and_again_when_they_change() {
        let mut world = World::new(["n1"]);
        world.service(with_label(replicated("s1", 1), "cpu.high", "60")).task("t1", "s1", 1, "n1").read(0);
        let tell = |world: &mut World| {
            world.out.clear();
            all_thresholds(&mut world.view, Thresholds::default(), &mut world.out);
            world.out.len()
        };
        assert_eq!((tell(&mut world), tell(&mut world)), (1, 0));
        world.service(with_label(replicated("s1", 1), "cpu.high", "50")).read(100);
        assert_eq!(tell(&mut world), 1);
    }
}
