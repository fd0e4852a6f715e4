//! What a drill is refused for. Pure, so that each rail has its test: a drill that takes down what it should only shake is
//! worse than none.

use super::{
    facts::{Facts, Node, Service},
    fault::Fault,
};

/// Health below which nothing is shaken.
pub const LEAST_HEALTH: u8 = 90;

/// How the coordinator sees the swarm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Health, of a hundred.
    pub health: u8,
    /// Actions under way, in words.
    pub actions: Vec<String>,
    /// Automation is paused.
    pub paused: bool,
}

/// What the operator takes upon himself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// The last healthy replica may go.
    pub outage: bool,
    /// The raft leader may be hit.
    pub leader: bool,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A stable word.
    pub code: &'static str,
    /// What stands against it.
    pub text: String,
    /// What it would need.
    pub needs: String,
}

fn refuse(code: &'static str, text: String, needs: impl Into<String>) -> Result<(), Refusal> {
    Err(Refusal { code, text, needs: needs.into() })
}

/// Whether the drill may begin.
///
/// # Errors
/// The first rail that stands against it.
pub fn check(facts: &Facts, judged: &Judged, fault: &Fault, allowed: Allowed) -> Result<(), Refusal> {
    swarm_is_calm(facts, judged)?;
    let Some(node) = facts.node(fault.node()) else {
        return refuse("unknown_node", format!("there is no node {}", fault.node()), "a node of this swarm");
    };
    if !node.ready {
        return refuse("node_not_ready", format!("{} is not ready", node.name), "a node that is ready");
    }
    opted_in(facts, node, fault)?;
    managers_stay(facts, node, fault, allowed)?;
    replicas_stay(facts, node, fault, allowed)
}

/// Nothing is under way and nothing is wrong already.
fn swarm_is_calm(facts: &Facts, judged: &Judged) -> Result<(), Refusal> {
    if judged.paused {
        return refuse("paused", "automation is paused".into(), "swarmguard resume");
    }
    if let Some(action) = judged.actions.first() {
        return refuse(
            "action_running",
            format!("{action} is under way"),
            "the end of it, or swarmguard cancel",
        );
    }
    if let Some((service, state)) = facts.services.iter().find_map(|one| Some((one, one.update.as_ref()?))) {
        let text = format!("{} has a rollout under way ({state})", service.name);
        return refuse("foreign_rollout", text, "the end of the rollout");
    }
    if judged.health < LEAST_HEALTH {
        let text = format!("the swarm's health is {}", judged.health);
        return refuse("unhealthy", text, format!("{LEAST_HEALTH} at least: swarmguard health"));
    }
    Ok(())
}

/// Everybody who is hit has agreed to it.
fn opted_in(facts: &Facts, node: &Node, fault: &Fault) -> Result<(), Refusal> {
    let hit: Vec<&Service> = match fault {
        Fault::KillTask { service, .. } => facts.service(service).into_iter().collect(),
        Fault::KillCoordinator { .. } => Vec::new(),
        _ => facts.users_on(node),
    };
    if let Some(service) = hit.iter().find(|service| !service.opted_in) {
        let text = format!("{} runs on {} and has not opted in to drills", service.name, node.name);
        return refuse("not_opted_in", text, format!("the label swarmguard.drill=true on {}", service.name));
    }
    Ok(())
}

/// The swarm keeps its quorum, and its leader unless that is meant.
fn managers_stay(facts: &Facts, node: &Node, fault: &Fault, allowed: Allowed) -> Result<(), Refusal> {
    if !node.manager {
        return Ok(());
    }
    if matches!(fault, Fault::Disk { .. }) {
        let text = format!("{} is a manager, whose raft log must be written", node.name);
        return refuse("manager_disk", text, "a worker");
    }
    let instant = fault.is_instant();
    let cut = matches!(fault, Fault::KillNode { .. } | Fault::Cut { .. });
    if cut {
        let all = facts.nodes.iter().filter(|one| one.manager).count();
        let left = facts.nodes.iter().filter(|one| one.manager && one.ready && one.id != node.id).count();
        if left < all / 2 + 1 {
            let text = format!("without {} {left} of {all} managers are left, no majority", node.name);
            return refuse("quorum", text, "more managers that are ready, or a worker");
        }
    }
    if matches!(fault, Fault::KillCoordinator { .. }) {
        let coordinators = facts.services.iter().find(|one| one.part.as_deref() == Some("coordinator"));
        let others = coordinators.is_some_and(|service| {
            facts.tasks_of(&service.id).any(|task| task.running && task.node != node.id)
        });
        if !others && !allowed.outage {
            let text =
                format!("the coordinator on {} is the only one: nobody acts until it is back", node.name);
            return refuse("last_coordinator", text, "--allow-outage");
        }
    }
    if node.leader && !allowed.leader && !matches!(fault, Fault::KillTask { .. }) {
        let what = if instant { "runs beside" } else { "is" };
        let text = format!("{} {what} the raft leader", node.name);
        return refuse("leader", text, "--leader");
    }
    Ok(())
}

/// A replica that serves is left of each service, and at most a third of them goes.
fn replicas_stay(facts: &Facts, node: &Node, fault: &Fault, allowed: Allowed) -> Result<(), Refusal> {
    let hit: Vec<(&Service, usize)> = match fault {
        Fault::KillTask { service, .. } => {
            facts.service(service).map(|service| (service, 1)).into_iter().collect()
        }
        _ if fault.takes_replicas() => {
            let here =
                |service: &Service| facts.tasks_of(&service.id).filter(|task| task.node == node.id).count();
            facts.users_on(node).into_iter().map(|service| (service, here(service))).collect()
        }
        _ => Vec::new(),
    };
    for (service, count) in hit {
        // A global service has one on each node by its nature, a job runs again.
        if service.wanted.is_none() || service.job {
            continue;
        }
        let running = facts.running(&service.id);
        if running <= count && !allowed.outage {
            let text = format!(
                "{count} of {running} running replicas of {} would go: none would serve",
                service.name
            );
            return refuse("last_replica", text, "more replicas, on other nodes, or --allow-outage");
        }
        if count > (running / 3).max(1) && !allowed.outage {
            let text =
                format!("{count} of {running} replicas of {} would go, more than a third", service.name);
            return refuse("too_many_replicas", text, "replicas spread over more nodes, or --allow-outage");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::facts::Task;

    /// Three managers (m1 leads) and w1; `web` has three replicas, on m2, m3 and w1.
    fn facts() -> Facts {
        let node = |name: &str, manager| Node {
            id: format!("id-{name}"),
            name: name.into(),
            manager,
            leader: name == "m1",
            ready: true,
            ..Node::default()
        };
        let task = |service: &str, node: &str| Task {
            service: service.into(),
            node: format!("id-{node}"),
            running: true,
            ..Task::default()
        };
        let part =
            |id: &str, part: &str| Service { id: id.into(), part: Some(part.into()), ..Service::default() };
        let web = Service {
            id: "web".into(),
            name: "web".into(),
            opted_in: true,
            wanted: Some(3),
            ..Service::default()
        };
        Facts {
            nodes: vec![node("m1", true), node("m2", true), node("m3", true), node("w1", false)],
            services: vec![web, part("c", "coordinator"), part("a", "agent")],
            tasks: [
                ("web", "m2"),
                ("web", "m3"),
                ("web", "w1"),
                ("c", "m1"),
                ("c", "m2"),
                ("c", "m3"),
                ("a", "w1"),
            ]
            .map(|(service, node)| task(service, node))
            .to_vec(),
            ..Facts::default()
        }
    }

    fn judged() -> Judged {
        Judged { health: 100, ..Judged::default() }
    }

    fn kill(service: &str) -> Fault {
        Fault::KillTask { service: service.into(), node: "w1".into(), container: "x".into() }
    }

    fn cpu(node: &str) -> Fault {
        Fault::Cpu { node: node.into(), threads: 1 }
    }

    fn code(facts: &Facts, fault: &Fault, allowed: Allowed) -> &'static str {
        check(facts, &judged(), fault, allowed).err().map_or("allowed", |refusal| refusal.code)
    }

    const NOTHING: Allowed = Allowed { outage: false, leader: false };

    #[test]
    fn a_calm_swarm_that_has_opted_in_may_be_drilled() {
        let facts = facts();
        let node = || "w1".to_owned();
        let cut = Fault::Cut { node: node(), from: Vec::new(), percent: 100 };
        let disk = Fault::Disk { node: node(), mib: 1 };
        for fault in [kill("web"), cpu("w1"), cut, disk, Fault::KillNode { node: node() }] {
            assert_eq!(code(&facts, &fault, NOTHING), "allowed", "{fault:?}");
        }
    }

    #[test]
    fn nothing_is_shaken_that_is_moving_or_unwell() {
        let facts = facts();
        let of = |judged: Judged| check(&facts, &judged, &cpu("w1"), NOTHING).expect_err("refused").code;
        assert_eq!(of(Judged { health: 89, ..judged() }), "unhealthy");
        assert_eq!(of(Judged { paused: true, ..judged() }), "paused");
        assert_eq!(of(Judged { actions: vec!["migrate web".into()], ..judged() }), "action_running");
        let mut rolling = facts.clone();
        rolling.services[0].update = Some("updating".into());
        assert_eq!(code(&rolling, &cpu("w1"), NOTHING), "foreign_rollout");
        let mut down = facts;
        down.nodes[3].ready = false;
        assert_eq!(code(&down, &cpu("w1"), NOTHING), "node_not_ready");
    }

    #[test]
    fn every_service_on_the_node_must_have_agreed() {
        let mut facts = facts();
        facts.services.push(Service {
            id: "db".into(),
            name: "db".into(),
            wanted: Some(1),
            ..Service::default()
        });
        facts.tasks.push(Task {
            service: "db".into(),
            node: "id-w1".into(),
            running: true,
            ..Task::default()
        });
        assert_eq!(code(&facts, &cpu("w1"), NOTHING), "not_opted_in");
        assert_eq!(code(&facts, &kill("web"), NOTHING), "allowed", "only web is hit");
        assert_eq!(code(&facts, &kill("db"), NOTHING), "not_opted_in");
    }

    #[test]
    fn the_swarm_keeps_its_quorum_its_leader_and_somebody_who_acts() {
        let mut facts = facts();
        let cut = |node: &str| Fault::Cut { node: node.into(), from: Vec::new(), percent: 10 };
        let leader = Allowed { leader: true, ..NOTHING };
        assert_eq!(code(&facts, &cut("m2"), NOTHING), "allowed");
        assert_eq!(code(&facts, &cut("m1"), NOTHING), "leader");
        assert_eq!(code(&facts, &cut("m1"), leader), "allowed");
        assert_eq!(code(&facts, &Fault::Disk { node: "m2".into(), mib: 1 }, NOTHING), "manager_disk");
        let coordinator = |node: &str| Fault::KillCoordinator { node: node.into(), container: "x".into() };
        assert_eq!(code(&facts, &coordinator("m2"), NOTHING), "allowed");
        assert_eq!(code(&facts, &coordinator("m1"), NOTHING), "leader");
        facts.nodes[2].ready = false;
        assert_eq!(code(&facts, &cut("m2"), NOTHING), "quorum");
        assert_eq!(code(&facts, &cut("m2"), leader), "quorum", "nothing allows that");
        facts.tasks.retain(|task| task.service != "c" || task.node == "id-m2");
        assert_eq!(code(&facts, &coordinator("m2"), NOTHING), "last_coordinator");
    }

    #[test]
    fn a_replica_that_serves_is_left_and_two_thirds_stay() {
        let mut facts = facts();
        let outage = Allowed { outage: true, ..NOTHING };
        facts.tasks[0].running = false;
        facts.tasks[1].running = false;
        assert_eq!(code(&facts, &kill("web"), NOTHING), "last_replica");
        assert_eq!(code(&facts, &kill("web"), outage), "allowed");
        let mut crowded = self::facts();
        crowded.tasks[0].node = "id-w1".into();
        let node = Fault::KillNode { node: "w1".into() };
        assert_eq!(code(&crowded, &node, NOTHING), "too_many_replicas", "two of three");
        assert_eq!(code(&crowded, &cpu("w1"), NOTHING), "allowed", "a neighbour takes no replica");
    }
}
