//! Scaling: spare replicas, windows, bounds, spikes, steps.

use super::*;

/// `s1` with three replicas that use this much CPU, memory and network each, reported for `seconds`.
fn spare_world(service: Service, each: (u16, u16, u16), seconds: u64) -> World {
    let mut world = World::new(["n1", "n2", "n3"]);
    world
        .service(service)
        .task("t1", "s1", 1, "n1")
        .task("t2", "s1", 2, "n2")
        .task("t3", "s1", 3, "n3")
        .read(0);
    spend(&mut world, each, 0, seconds * 1_000);
    world
}

fn spend(world: &mut World, (cpu, memory, network): (u16, u16, u16), from: u64, to: u64) {
    for ms in (from..=to).step_by(500) {
        for (node, task, node_cpu) in [("n1", "t1", 10), ("n2", "t2", 60), ("n3", "t3", 20)] {
            world.report(ms, node, node_cpu, &[(task, cpu, memory, network)]);
        }
        note(world, ms);
    }
    world.read(to);
}

fn note(world: &mut World, ms: u64) {
    let id = "s1".parse().expect("an ID");
    let service = world.swarm.services[&id].clone();
    let policy = service.policy.clone().expect("sensible");
    let needed = match spare(&world.view, &service, &policy, at(ms)) {
        Spare::Needed { replicas, .. } => Some(replicas),
        Spare::Unknown(_) => None,
    };
    world.view.history.note_needed(&id, at(ms), needed, policy.down_window);
}

fn scaling() -> Service {
    with_label(scaled(replicated("s1", 3), "1", "5"), "scale.down.window", "20s")
}

fn rule_at(world: &World, ms: u64) -> &'static str {
    judge_at(world, ms, &situation()).judgement.rule.word()
}

#[test]
fn spare_for_the_whole_window_loses_the_replica_of_the_fullest_node() {
    let world = spare_world(scaling(), (20, 50, 5), 10);
    assert_eq!(rule_at(&world, 10_100), "spare_holding");
    let world = spare_world(scaling(), (20, 50, 5), 21);
    let verdict = judge_at(&world, 21_100, &situation());
    assert_eq!(
        verdict.intent,
        Some(Intent::ScaleIn { service: "s1".parse().expect("an ID"), node: "n2".parse().expect("an ID") }),
        "{verdict:?}"
    );
}

#[test]
fn the_sum_over_all_must_fit_the_others_with_margin() {
    // Two of three could carry (75 - 10) x 2 = 130 %: 3 x 43 = 129 is spare, 3 x 44 = 132 is not.
    for (each, expected) in [
        ((43, 50, 5), "scale_in"),
        ((44, 50, 5), "calm"),
        ((20, 95, 5), "scale_in"),
        ((20, 50, 36), "scale_in"),
        ((20, 50, 37), "calm"),
    ] {
        assert_eq!(rule_at(&spare_world(scaling(), each, 21), 21_100), expected, "{each:?}");
    }
    let with_memory = with_label(scaling(), "scale.memory", "true");
    assert_eq!(rule_at(&spare_world(with_memory, (20, 60, 5), 21), 21_100), "calm");
}

#[test]
fn a_figure_that_is_missing_or_a_busy_moment_begins_the_window_anew() {
    let mut world = spare_world(scaling(), (20, 50, 5), 15);
    // A second in which t3 says nothing is bridged; four are not.
    for ms in (15_000..=19_000).step_by(500) {
        world.report(ms, "n1", 10, &[("t1", 20, 50, 5)]);
        world.report(ms, "n2", 10, &[("t2", 20, 50, 5)]);
        world.report(ms, "n3", 10, &[]);
        note(&mut world, ms);
    }
    assert_eq!(rule_at(&world, 19_050), "unknown");
    spend(&mut world, (20, 50, 5), 19_500, 30_000);
    assert_eq!(rule_at(&world, 30_100), "spare_holding");
}

#[test]
fn bounds_come_first_and_cooldowns_hold() {
    let at_least = with_label(scaled(replicated("s1", 3), "3", "5"), "scale.down.window", "20s");
    assert_eq!(rule_at(&spare_world(at_least, (20, 50, 5), 21), 21_100), "at_min");
    let below = scaled(replicated("s1", 3), "4", "5");
    assert_eq!(rule_at(&spare_world(below, (20, 50, 5), 5), 5_100), "below_min");
    let above = scaled(replicated("s1", 3), "1", "2");
    assert_eq!(rule_at(&spare_world(above, (70, 50, 5), 5), 5_100), "above_max");
    let mut world = World::new(["n1", "n2", "n3"]);
    world
        .service(with_label(scaling(), "scale.down.cooldown", "60s"))
        .task("t1", "s1", 1, "n1")
        .task("t2", "s1", 2, "n2")
        .task("t3", "s1", 3, "n3")
        .read(0);
    let intent =
        Intent::ScaleIn { service: "s1".parse().expect("an ID"), node: "n1".parse().expect("an ID") };
    let record = tombstone(&world, intent, 3);
    world.record(record).read(100);
    spend(&mut world, (20, 50, 5), 500, 25_000);
    assert_eq!(rule_at(&world, 25_100), "down_cooldown");
    spend(&mut world, (20, 50, 5), 25_500, 61_000);
    assert_eq!(rule_at(&world, 61_100), "scale_in");
}

#[test]
fn a_spike_of_two_seconds_does_nothing() {
    let mut world = spare_world(scaled(replicated("s1", 3), "1", "5"), (50, 50, 70), 10);
    world.alert(10_800, "n2", "t2", Condition::CpuHigh, Edge::Raise, 300);
    for ms in (10_500..=12_500).step_by(250) {
        world.report(ms, "n1", 50, &[("t1", 50, 50, 70)]);
        world.report(ms, "n2", 100, &[("t2", 100, 50, 70)]);
        world.report(ms, "n3", 50, &[("t3", 50, 50, 70)]);
        assert_ne!(judge_at(&world, ms, &situation()).judgement.conclusion, Conclusion::Act);
    }
    world.alert(12_600, "n2", "t2", Condition::CpuHigh, Edge::Clear, 0);
    spend(&mut world, (50, 50, 70), 12_750, 16_000);
    assert_eq!(judge_at(&world, 16_100, &situation()).judgement.conclusion, Conclusion::Calm);
}

#[test]
fn as_many_at_once_as_demand_asks_for_and_labels_allow() {
    // Both at their limits: at least 2 / 0.75 are needed, and where much waits besides, far more.
    for (step, throttled, expected) in
        [("1", 0, 3), ("auto", 0, 3), ("4", 95, 4), ("1", 95, 3), ("auto", 95, 4)]
    {
        let service = with_label(scaled(replicated("s1", 2), "1", "9"), "scale.step", step);
        let mut world = all_hot(service, Heat { cpu: 100, network: 80, ..HOT });
        for ms in (6_250..=9_500).step_by(250) {
            refresh(&mut world, ms);
            world.report(ms, "n1", 10, &[]);
            for (node, task) in [("n2", "t1"), ("n3", "t2")] {
                let handle = world.handle(task);
                world.report_with(ms, node, |report| {
                    report.node = NodeLoad { cpu: percent(60), memory: percent(20), ..NodeLoad::default() };
                    report.tasks = vec![TaskLoad {
                        handle,
                        cpu: percent(100),
                        memory: percent(10),
                        network: percent(80),
                        cpu_millis: 2_000,
                        throttled: percent(throttled),
                        ..TaskLoad::default()
                    }];
                });
            }
        }
        world.read(9_500);
        let verdict = judge_at(&world, 9_500, &situation());
        let Some(Intent::ScaleOut { replicas, target, .. }) = verdict.intent else { panic!("{verdict:?}") };
        assert_eq!(replicas, expected, "{step}, throttled {throttled} %");
        assert_eq!(target.is_some(), expected == 3, "several are not steered to one node");
    }
}

#[test]
fn requests_in_flight_and_latency_ask_for_replicas_too() {
    let judged = |on: &str, in_flight: u32, p95_us: u32| {
        let service = with_label(scaled(replicated("s1", 2), "1", "9"), "scale.on", on);
        let mut world = World::new(["n1", "n2", "n3"]);
        world.service(service).task("t1", "s1", 1, "n2").task("t2", "s1", 2, "n3").read(0);
        for ms in (0..=9_000).step_by(250) {
            world.report(ms, "n1", 10, &[]);
            for (node, task) in [("n2", "t1"), ("n3", "t2")] {
                let handle = world.handle(task);
                world.report_with(ms, node, |report| {
                    report.node = NodeLoad { cpu: percent(20), memory: percent(20), ..NodeLoad::default() };
                    report.tasks = vec![TaskLoad {
                        handle,
                        cpu: percent(20),
                        memory: percent(10),
                        network: percent(5),
                        cpu_millis: 400,
                        in_flight: Some(in_flight),
                        latency_p95_us: Some(p95_us),
                        ..TaskLoad::default()
                    }];
                });
            }
            let id = "s1".parse().expect("an ID");
            let service = world.swarm.services[&id].clone();
            let policy = service.policy.clone().expect("sensible");
            let over = is_over(&world.view, &service, &policy, at(ms));
            world.view.history.note_over(&id, at(ms), over);
        }
        world.read(9_000);
        match judge_at(&world, 9_050, &situation()).intent {
            Some(Intent::ScaleOut { replicas, .. }) => replicas,
            _ => 2,
        }
    };
    assert_eq!(judged("cpu", 90, 900_000), 2, "it is not asked for");
    assert_eq!(judged("cpu,in-flight:20", 21, 0), 2, "within the tolerance");
    assert_eq!(judged("cpu,in-flight:20", 30, 0), 3);
    assert_eq!(judged("in-flight:20", 90, 0), 4, "at most as many again");
    assert_eq!(judged("latency-p95:200ms", 0, 150_000), 2);
    assert_eq!(judged("latency-p95:200ms", 0, 250_000), 3);
}

#[test]
fn attempts_that_fail_are_made_ever_more_rarely() {
    let since = |failed, seconds| {
        migrate::backing_off("step up", failed, Duration::from_secs(seconds)).map(|reason| reason.rule.word())
    };
    assert_eq!(since(0, 0), None);
    assert_eq!((since(1, 29), since(1, 30)), (Some("back_off"), None));
    assert_eq!((since(2, 299), since(2, 300)), (Some("back_off"), None), "the cause is the service's own");
    assert_eq!((since(3, 599), since(3, 600)), (Some("back_off"), None));
    assert_eq!((since(40, 3_599), since(40, 3_600)), (Some("back_off"), None));
}

#[test]
fn a_node_without_memory_or_whose_tasks_wait_gets_no_new_replica() {
    // The mean of two replicas is 36 % of a node's memory; n1 has most room by CPU.
    let verdict = |memory: u16, psi_cpu: u16, psi_memory: u16| {
        let service = scaled(replicated("s1", 2), "1", "9");
        let mut world = hot_world(service, Heat { network: 80, ..HOT });
        let hot = [("n2", "t1", 95, 90, 5_760_000), ("n3", "t2", 40, 90, 0)];
        for ms in (6_250..=9_500).step_by(250) {
            refresh(&mut world, ms);
            for (node, task, node_cpu, cpu, memory_kib) in hot {
                let handle = world.handle(task);
                world.report_with(ms, node, |report| {
                    report.node =
                        NodeLoad { cpu: percent(node_cpu), memory: percent(20), ..NodeLoad::default() };
                    report.tasks = vec![TaskLoad {
                        handle,
                        cpu: percent(cpu),
                        memory: percent(10),
                        network: percent(80),
                        cpu_millis: 1_800,
                        memory_kib,
                        ..TaskLoad::default()
                    }];
                });
            }
            world.report_with(ms, "n1", |report| {
                report.node = NodeLoad {
                    cpu: percent(5),
                    memory: percent(memory),
                    psi_cpu: percent(psi_cpu),
                    psi_memory: percent(psi_memory),
                    ..NodeLoad::default()
                };
            });
        }
        world.read(9_500);
        let verdict = judge_at(&world, 9_500, &situation());
        assert_eq!(verdict.judgement.rule.word(), "scale_out", "{verdict:?}");
        verdict.judgement.target.expect("a target").to_string()
    };
    assert_eq!(verdict(20, 0, 0), "n1");
    assert_eq!(verdict(95, 0, 0), "n3", "and 36 % are too much");
    assert_eq!(verdict(20, 30, 0), "n1", "tasks that wait at their own limits while CPUs are idle");
    assert_eq!(verdict(20, 0, 30), "n3", "its tasks wait for memory");
}
