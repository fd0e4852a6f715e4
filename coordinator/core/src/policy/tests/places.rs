//! What may move at all, where it may go, and whose move helps.

use super::*;

#[test]
fn refusals_by_what_the_service_is() {
    let spec = |pointer: &str, value: serde_json::Value| {
        let mut service = replicated("s1", 2);
        let (parent, key) = pointer.rsplit_once('/').expect("a path");
        service.spec.pointer_mut(parent).expect("there")[key] = value;
        service
    };
    let table = [
        (with_label(replicated("s1", 2), "cpu.high", "lots"), "labels"),
        (with_label(replicated("s1", 2), "role", "balancer"), "own_service"),
        (with_label(replicated("s1", 2), "migrate", "off"), "migrate_off"),
        (spec("/TaskTemplate/ContainerSpec/Healthcheck", json!({"Test": ["NONE"]})), "no_healthcheck"),
        (spec("/TaskTemplate/ContainerSpec/Mounts", json!([{"Type": "bind"}])), "local_volumes"),
        (spec("/TaskTemplate/ContainerSpec/Env", json!(["A={{.Task.Slot}}"])), "slot_templates"),
        (spec("/TaskTemplate/Placement", json!({"Constraints": ["node.id==n2"]})), "nowhere_better"),
        (
            spec("/TaskTemplate/Placement", json!({"MaxReplicas": 1, "Constraints": ["node.id!=n1"]})),
            "nowhere_better",
        ),
    ];
    for (service, expected) in table {
        let world = hot_world(service, HOT);
        assert_eq!(rule(&world), (Conclusion::Refuse, expected));
    }
}

#[test]
fn singletons_move_only_where_their_label_says_so() {
    for (service, expected) in [
        (replicated("s1", 1), (Conclusion::Refuse, "singleton")),
        (with_label(replicated("s1", 1), "migrate", "surge"), (Conclusion::Act, "migrate")),
    ] {
        let mut world = World::new(["n1", "n2"]);
        world.service(service).task("t1", "s1", 1, "n2").read(0);
        world.alert(1_000, "n2", "t1", Condition::CpuHigh, Edge::Raise, 300);
        for ms in (0..=6_000).step_by(250) {
            refresh(&mut world, ms);
            world.report(ms, "n1", 10, &[]);
            world.report(ms, "n2", 95, &[("t1", 90, 10, 5)]);
        }
        world.read(6_000);
        assert_eq!(rule(&world), expected);
    }
}

#[test]
fn nowhere_better_to_go() {
    let full = Heat { other: 50, ..HOT };
    for (service, expected) in [
        (replicated("s1", 2), (Conclusion::Refuse, "nowhere_better")),
        (scaled(replicated("s1", 2), "1", "5"), (Conclusion::Act, "scale_out")),
    ] {
        let mut world = World::new(["n1", "n2", "n3"]);
        world.service(service).task("t1", "s1", 1, "n2").task("t2", "s1", 2, "n3").read(0);
        world.alert(1_000, "n2", "t1", Condition::CpuHigh, Edge::Raise, 300);
        for ms in (0..=6_000).step_by(250) {
            refresh(&mut world, ms);
            world.report(ms, "n1", full.other, &[]);
            world.report(ms, "n2", 95, &[("t1", 90, 10, 5)]);
            world.report(ms, "n3", full.other, &[("t2", 90, 5, 1)]);
        }
        world.read(6_000);
        assert_eq!(rule(&world), expected);
    }
}

#[test]
fn drained_and_paused_nodes_are_no_targets() {
    for availability in [Availability::Pause, Availability::Drain] {
        let mut world = hot_world(replicated("s1", 2), HOT);
        for id in ["n1", "n3"] {
            world.swarm.nodes.get_mut(&id.parse().expect("an ID")).expect("there").availability =
                availability;
        }
        world.read(6_050);
        assert_eq!(rule(&world), (Conclusion::Refuse, "nowhere_better"));
    }
}

#[test]
fn at_its_own_limit_on_a_node_with_room_moving_would_not_help() {
    for (service, expected) in [
        (replicated("s1", 2), (Conclusion::Refuse, "limit_bound")),
        (scaled(replicated("s1", 2), "1", "5"), (Conclusion::Act, "scale_out")),
    ] {
        assert_eq!(rule(&all_hot(service, Heat { node: 50, ..HOT })), expected);
    }
}

#[test]
fn memory_at_its_own_limit_likewise_and_on_a_short_node_it_moves() {
    let memory = Heat { cpu: 10, memory: 90, network: 5, node: 20, other: 10 };
    let mut world = hot_world(replicated("s1", 2), memory);
    assert_eq!(rule(&world).1, "limit_bound", "the node has memory left");
    let handle = world.handle("t1");
    let end = hold(&mut world, 6_250, "n2", |report| {
        report.node = NodeLoad { cpu: percent(20), memory: percent(92), ..NodeLoad::default() };
        report.tasks = vec![TaskLoad {
            handle,
            cpu: percent(10),
            memory: percent(85),
            network: percent(5),
            memory_kib: 4_000_000,
            ..TaskLoad::default()
        }];
    });
    assert_eq!(judge_at(&world, end, &situation()).judgement.rule.word(), "migrate");
}

#[test]
fn the_victim_stays_and_the_culprit_is_named() {
    // s1 is at 90 % of its small allowance on a short node; s2 uses most of that node.
    let mut world = hot_world(replicated("s1", 2), HOT);
    world.service(replicated("s2", 1)).task("t9", "s2", 1, "n2").read(6_000);
    let (small, large) = (world.handle("t1"), world.handle("t9"));
    let end = hold(&mut world, 6_250, "n2", |report| {
        report.node = NodeLoad { cpu: percent(98), memory: percent(20), ..NodeLoad::default() };
        let load = |handle, cpu, cpu_millis| TaskLoad {
            handle,
            cpu: percent(cpu),
            memory: percent(10),
            network: percent(1),
            cpu_millis,
            ..TaskLoad::default()
        };
        report.tasks = vec![load(small, 90, 400), load(large, 80, 3_200)];
    });
    let verdict = judge_at(&world, end, &situation());
    assert_eq!(verdict.judgement.rule.word(), "victim");
    assert!(verdict.judgement.text.contains("name-s2"), "{}", verdict.judgement.text);
}

#[test]
fn of_two_hot_services_on_a_node_the_heavier_moves_and_the_other_waits() {
    let mut world = hot_world(replicated("s1", 2), HOT);
    let s2 = with_label(replicated("s2", 2), "warm-up", "0s");
    world.service(s2).task("t8", "s2", 1, "n2").task("t9", "s2", 2, "n3").read(6_000);
    // A new service is left alone at first.
    run(&mut world, 6_250, 12_000, HOT);
    world.alert(8_000, "n2", "t8", Condition::CpuHigh, Edge::Raise, 300);
    let (one, two) = (world.handle("t1"), world.handle("t8"));
    let end = hold(&mut world, 12_250, "n2", |report| {
        report.node = NodeLoad { cpu: percent(99), memory: percent(20), ..NodeLoad::default() };
        let load = |handle, cpu_millis| TaskLoad {
            handle,
            cpu: percent(90),
            memory: percent(10),
            network: percent(1),
            cpu_millis,
            ..TaskLoad::default()
        };
        report.tasks = vec![load(one, 1_500), load(two, 2_400)];
    });
    let verdicts = decide(&world.view, &situation(), at(end));
    let rules: Vec<(&str, &str)> =
        verdicts.iter().map(|verdict| (verdict.service.as_str(), verdict.judgement.rule.word())).collect();
    assert_eq!(rules, [("s2", "migrate"), ("s1", "limit_node")]);
}
