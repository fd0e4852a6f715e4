//! Joining, superseding, dropping.

use swarmguard_common::domain::{Condition, Edge};

use super::{testing::*, *};

#[test]
fn a_replica_is_joined_with_its_figures_until_they_are_too_old() {
    let mut world = World::new(["n1", "n2"]);
    world.service(replicated("s1", 1)).task("t1", "s1", 1, "n2").read(0);
    world.report(100, "n2", 50, &[("t1", 40, 10, 5)]);
    let service = "s1".parse().expect("an ID");
    let load = |world: &World, ms| {
        let replicas = world.view.replicas(&service, at(ms));
        assert_eq!(replicas.len(), 1);
        replicas[0].load.map(|load| load.cpu)
    };
    assert_eq!(load(&world, 200), Some(percent(40)));
    assert_eq!(load(&world, 1_200), None, "the lease is suspect");
    for ms in [1_000, 2_000, 3_000] {
        world.report(ms, "n2", 50, &[]);
    }
    assert_eq!(load(&world, 3_100), None, "the lease is live, but the figure is three seconds old");
}

#[test]
fn older_reports_and_superseded_connections_are_dropped() {
    let mut world = World::new(["n1"]);
    world.report(100, "n1", 50, &[]);
    let stale = |world: &mut World, report| {
        let before = world.statistics.stale_reports;
        world.agent(200, "n1", AgentEvent::Report(report));
        world.statistics.stale_reports - before
    };
    let report = swarmguard_common::wire::agent::Report {
        epoch: 1,
        seq: 1,
        node: NodeLoad::default(),
        tasks: Vec::new(),
    };
    assert_eq!(stale(&mut world, report.clone()), 1, "seen before");
    assert_eq!(
        stale(&mut world, swarmguard_common::wire::agent::Report { epoch: 2, seq: 9, ..report.clone() }),
        1
    );
    let newer = AgentInput {
        node: "n1".parse().expect("an ID"),
        connection: ConnectionId(2),
        what: AgentEvent::Connected(hello("n1")),
    };
    assert_eq!(
        world.view.hear(at(300), newer, &mut world.statistics, &mut world.out),
        Heard::Came { again: true }
    );
    assert!(matches!(
        world.out.last(),
        Some(AgentOutput { connection: ConnectionId(1), what: AgentOrder::Close { .. } })
    ));
    assert_eq!(
        stale(&mut world, swarmguard_common::wire::agent::Report { seq: 99, ..report }),
        1,
        "old connection"
    );
}

#[test]
fn standing_alerts_survive_a_reconnect_of_the_same_agent_but_not_its_restart() {
    for (epoch, stands) in [(1, true), (2, false)] {
        let mut world = World::new(["n1"]);
        world.service(replicated("s1", 1)).task("t1", "s1", 1, "n1").read(0);
        world.alert(500, "n1", "t1", Condition::CpuHigh, Edge::Raise, 300);
        let mut again = hello("n1");
        again.epoch = epoch;
        let node: NodeId = "n1".parse().expect("an ID");
        let mut hear = |what| {
            let input = AgentInput { node: node.clone(), connection: ConnectionId(2), what };
            world.view.hear(at(900), input, &mut world.statistics, &mut world.out);
        };
        hear(AgentEvent::Connected(again));
        hear(AgentEvent::Message(ToCoordinator::Task(swarmguard_common::wire::agent::TaskIntro {
            handle: 1,
            container: "ct1".parse().expect("an ID"),
            task: None,
            service: None,
            cpu_limit_millis: None,
            memory_limit_bytes: None,
            healthcheck: None,
            local_volumes: Vec::new(),
        })));
        let standing = &world.view.agents[&node].containers[&"ct1".parse().expect("an ID")].standing;
        assert_eq!(standing.get(&Condition::CpuHigh).map(|standing| standing.since), stands.then(|| at(200)));
    }
}

#[test]
fn a_new_handle_of_the_same_container_ends_what_stood_under_the_old_one() {
    let mut world = World::new(["n1"]);
    world.service(replicated("s1", 1)).task("t1", "s1", 1, "n1").read(0);
    world.alert(500, "n1", "t1", Condition::Stalled, Edge::Raise, 300);
    assert!(world.view.any_alert());
    // As the agent does it: the introduction under a new handle first, then the end of the old one.
    let old = world.handle("t1");
    let mut intro = world.view.agents[&"n1".parse().expect("an ID")].containers
        [&"ct1".parse().expect("an ID")]
        .intro
        .clone();
    (intro.handle, intro.cpu_limit_millis) = (old + 1, Some(500));
    world.agent(600, "n1", AgentEvent::Message(ToCoordinator::Task(intro.clone())));
    world.agent(600, "n1", AgentEvent::Message(ToCoordinator::Gone { handle: old }));
    assert!(!world.view.any_alert(), "nobody will ever clear it");
    // The same introduction once more is no end.
    let alert = swarmguard_common::wire::agent::Alert {
        epoch: 1,
        seq: 9,
        handle: old + 1,
        condition: Condition::CpuHigh as u8,
        edge: Edge::Raise as u8,
        value: 9_000,
        age_ms: 300,
    };
    world.agent(700, "n1", AgentEvent::Message(ToCoordinator::Alert(alert)));
    world.agent(800, "n1", AgentEvent::Message(ToCoordinator::Task(intro)));
    assert!(world.view.any_alert());
}

#[test]
fn an_alert_that_a_heard_agent_no_longer_says_ends() {
    for (refreshed, starved, stands) in [(false, false, false), (true, false, true), (false, true, true)] {
        let mut world = World::new(["n1"]);
        world.service(replicated("s1", 1)).task("t1", "s1", 1, "n1").read(0);
        world.alert(1_000, "n1", "t1", Condition::OomKill, Edge::Raise, 0);
        for ms in (1_250..=7_000).step_by(250) {
            if refreshed && ms % 1_000 == 0 {
                world.alert(ms, "n1", "t1", Condition::OomKill, Edge::Refresh, 0);
            }
            world.report_with(ms, "n1", |report| report.node.starved = starved);
        }
        assert_eq!(world.view.any_alert(), stands, "refreshed {refreshed}, starved {starved}");
    }
    let mut world = World::new(["n1"]);
    world.service(replicated("s1", 1)).task("t1", "s1", 1, "n1").read(0);
    world.alert(1_000, "n1", "t1", Condition::CpuHigh, Edge::Raise, 0);
    world.read(60_000);
    assert!(world.view.any_alert(), "a silent agent ends nothing; its lease says what it is worth");
}

#[test]
fn an_image_may_bring_a_healthcheck_that_no_spec_shows() {
    for (seen, expected) in [(Some(true), Some(true)), (Some(false), Some(false)), (None, None)] {
        let mut world = World::new(["n1"]);
        let mut service = replicated("s1", 1);
        service.spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"].take();
        world.service(service.clone()).task("t1", "s1", 1, "n1").introduce("t1", "s1", "n1", seen).read(0);
        assert_eq!(world.view.healthcheck(&service, at(100)), expected);
    }
    let mut disabled = replicated("s1", 1);
    disabled.spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"] = serde_json::json!({"Test": ["NONE"]});
    assert_eq!(View::default().healthcheck(&disabled, at(0)), Some(false));
}
