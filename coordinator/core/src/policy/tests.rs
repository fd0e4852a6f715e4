//! The rules, one by one: a hot replica on a short node with room elsewhere, and what changes when one thing changes.

mod absence;
mod capacity;
mod places;
mod relief;
mod rounds;
mod scaling;
mod words;

use serde_json::json;
use swarmguard_common::{
    domain::{BasisPoints, Condition, Edge},
    wire::agent::{NodeLoad, Report, TaskLoad},
};

use super::*;
use crate::{
    action::{Intent, Order, action_name, begin},
    command::Command,
    swarm::{Availability, RecordObject, UpdateState},
    view::testing::*,
};

/// How hot the world is: CPU, memory, network of the replica, CPU of its node, CPU of the other node.
#[derive(Clone, Copy)]
struct Heat {
    cpu: u16,
    memory: u16,
    network: u16,
    node: u16,
    other: u16,
}

const HOT: Heat = Heat { cpu: 90, memory: 10, network: 5, node: 95, other: 10 };

/// `s1` with two replicas on n2 and n3, the one on n2 hot for 5 s.
fn hot_world(service: Service, heat: Heat) -> World {
    let mut world = World::new(["n1", "n2", "n3"]);
    world.service(service).task("t1", "s1", 1, "n2").task("t2", "s1", 2, "n3").read(0);
    let condition = if heat.cpu >= 75 { Condition::CpuHigh } else { Condition::MemoryHigh };
    world.alert(1_000, "n2", "t1", condition, Edge::Raise, 300);
    run(&mut world, 0, 6_000, heat);
    world
}

fn run(world: &mut World, from: u64, to: u64, heat: Heat) {
    for ms in (from..=to).step_by(250) {
        refresh(world, ms);
        world.report(ms, "n1", heat.other, &[]);
        world.report(ms, "n2", heat.node, &[("t1", heat.cpu, heat.memory, heat.network)]);
        world.report(ms, "n3", 10, &[("t2", 5, 5, 1)]);
    }
    world.read(to);
}

/// `s1` with both of its replicas hot for 5 s; n1 is free.
fn all_hot(service: Service, heat: Heat) -> World {
    let mut world = World::new(["n1", "n2", "n3"]);
    world.service(service).task("t1", "s1", 1, "n2").task("t2", "s1", 2, "n3").read(0);
    world.alert(1_000, "n2", "t1", Condition::CpuHigh, Edge::Raise, 300);
    world.alert(1_000, "n3", "t2", Condition::CpuHigh, Edge::Raise, 300);
    for ms in (0..=6_000).step_by(250) {
        refresh(&mut world, ms);
        world.report(ms, "n1", heat.other, &[]);
        for (node, task) in [("n2", "t1"), ("n3", "t2")] {
            world.report(ms, node, heat.node, &[(task, heat.cpu, heat.memory, heat.network)]);
        }
    }
    world.read(6_000);
    world
}

#[test]
fn a_replica_that_fills_its_node_may_try_an_idle_one_once() {
    // It uses nine tenths of its node by itself, and its load may come along: or a fresh replica leaves it behind.
    let judged = |other: u16, service: Service| {
        let mut world = World::new(["n1", "n2", "n3"]);
        world.service(service).task("t1", "s1", 1, "n2").task("t2", "s1", 2, "n3").read(0);
        world.alert(1_000, "n2", "t1", Condition::CpuHigh, Edge::Raise, 300);
        for ms in (0..=6_000).step_by(250) {
            refresh(&mut world, ms);
            world.report(ms, "n1", other, &[]);
            world.report(ms, "n3", 30, &[("t2", 5, 5, 1)]);
            let handle = world.handle("t1");
            world.report_with(ms, "n2", |report| {
                report.node = NodeLoad { cpu: percent(95), memory: percent(20), ..NodeLoad::default() };
                report.tasks = vec![TaskLoad {
                    handle,
                    cpu: percent(90),
                    memory: percent(10),
                    network: percent(1),
                    cpu_millis: 3_600,
                    ..TaskLoad::default()
                }];
            });
        }
        world.read(6_000);
        judge_at(&world, 6_100, &situation()).judgement.rule.word()
    };
    assert_eq!(judged(5, replicated("s1", 2)), "migrate");
    assert_eq!(judged(14, replicated("s1", 2)), "nowhere_better", "there it would be at 104 %");
}

/// A node's figures for three seconds, as long as they take to count; the other nodes are idle. Answers when it is over.
fn hold(world: &mut World, from: u64, node: &str, change: impl Fn(&mut Report)) -> u64 {
    let to = from + 3_000;
    for ms in (from..=to).step_by(250) {
        refresh(world, ms);
        for other in ["n1", "n2", "n3"].into_iter().filter(|other| *other != node) {
            world.report_with(ms, other, |report| {
                report.node = NodeLoad { cpu: percent(10), memory: percent(20), ..NodeLoad::default() };
            });
        }
        world.report_with(ms, node, &change);
    }
    world.read(to);
    to
}

/// Agents say every second what stands.
fn refresh(world: &mut World, ms: u64) {
    if !ms.is_multiple_of(1_000) {
        return;
    }
    let mut standing = Vec::new();
    for (node, agent) in &world.view.agents {
        for container in agent.containers.values() {
            let id = container.intro.task.as_ref().expect("introduced with it").to_string();
            standing.extend(
                container.standing.keys().map(|condition| (node.to_string(), id.clone(), *condition)),
            );
        }
    }
    for (node, id, condition) in standing {
        world.alert(ms, &node, &id, condition, Edge::Refresh, 0);
    }
}

fn situation() -> Situation {
    Situation { max_actions: 2, max_actions_per_node: 1, ..Situation::default() }
}

fn judge_at(world: &World, ms: u64, situation: &Situation) -> Verdict {
    let verdicts = decide(&world.view, situation, at(ms));
    verdicts.into_iter().find(|verdict| verdict.service.as_str() == "s1").expect("it is enabled")
}

fn rule(world: &World) -> (Conclusion, &'static str) {
    let verdict = judge_at(world, 6_100, &situation());
    assert_eq!(verdict.intent.is_some(), verdict.judgement.conclusion == Conclusion::Act, "{verdict:?}");
    (verdict.judgement.conclusion, verdict.judgement.rule.word())
}

fn scaled(service: Service, min: &str, max: &str) -> Service {
    with_label(with_label(service, "scale.min", min), "scale.max", max)
}

#[test]
fn hot_with_little_network_on_a_short_node_migrates_to_the_emptier_node() {
    let world = hot_world(replicated("s1", 2), HOT);
    let verdict = judge_at(&world, 6_100, &situation());
    assert_eq!(
        verdict.intent,
        Some(Intent::Migrate {
            service: "s1".parse().expect("an ID"),
            source: "n2".parse().expect("an ID"),
            target: Some("n1".parse().expect("an ID")),
        }),
        "{verdict:?}"
    );
    assert_eq!(verdict.judgement.signals["cpu_percent"], 90.0);
    assert_eq!(verdict.judgement.signals["node_cpu_percent"], 95.0);
    assert_eq!(verdict.judgement.task, Some("t1".parse().expect("an ID")));
    assert!(!verdict.judgement.otherwise.is_empty());
}

#[test]
fn demand_of_all_replicas_tells_load_from_node() {
    let plain = || replicated("s1", 2);
    let scaling = || scaled(plain(), "1", "5");
    for network in [5, 35, 50, 65, 90] {
        let heat = Heat { network, ..HOT };
        assert_eq!(rule(&hot_world(scaling(), heat)).1, "migrate", "one is hot, network at {network} %");
    }
    for network in [36, 50, 65] {
        let heat = Heat { network, ..HOT };
        assert_eq!(rule(&all_hot(scaling(), heat)).1, "scale_out", "all are hot, network at {network} %");
    }
    // What may not scale, or no further, can still move.
    assert_eq!(rule(&all_hot(plain(), Heat { network: 65, ..HOT })).1, "migrate");
    assert_eq!(rule(&all_hot(scaled(plain(), "1", "2"), Heat { network: 65, ..HOT })).1, "migrate");
    // Others use more of the nodes than it does: there it is better off elsewhere.
    assert_eq!(rule(&all_hot(scaling(), HOT)).1, "migrate");
    assert_eq!(rule(&all_hot(scaling(), Heat { node: 86, ..HOT })).1, "scale_out");
}

#[test]
fn every_refusal_to_move_falls_through_to_more_replicas() {
    let spec = |pointer: &str, value: serde_json::Value| {
        let mut service = scaled(replicated("s1", 2), "1", "5");
        let (parent, key) = pointer.rsplit_once('/').expect("a path");
        service.spec.pointer_mut(parent).expect("there")[key] = value;
        service
    };
    let table = [
        with_label(scaled(replicated("s1", 2), "1", "5"), "migrate", "off"),
        spec("/TaskTemplate/ContainerSpec/Healthcheck", json!({"Test": ["NONE"]})),
        spec("/TaskTemplate/ContainerSpec/Mounts", json!([{"Type": "bind"}])),
        spec("/TaskTemplate/ContainerSpec/Env", json!(["A={{.Task.Slot}}"])),
    ];
    for service in table {
        let refused = rule(&all_hot(with_label(service.clone(), "scale.max", "2"), HOT));
        assert_eq!(refused.0, Conclusion::Refuse, "it may neither move nor scale");
        let world = all_hot(service, HOT);
        let verdict = judge_at(&world, 6_100, &situation());
        assert_eq!(verdict.judgement.rule.word(), "scale_out", "{verdict:?}");
        assert!(verdict.judgement.text.contains("it does not move"), "{}", verdict.judgement.text);
    }
    // As it was moved in vain.
    let mut world = all_hot(scaled(replicated("s1", 2), "1", "5"), HOT);
    world.view.history.note_moved_for_tests(
        &"s1".parse().expect("an ID"),
        &"n2".parse().expect("an ID"),
        at(0),
    );
    assert_eq!(rule(&world), (Conclusion::Act, "scale_out"));
}

#[test]
fn demand_is_the_services_and_not_one_replicas() {
    for (service, expected) in [
        (replicated("s1", 2), (Conclusion::Refuse, "outlier")),
        (scaled(replicated("s1", 2), "1", "10"), (Conclusion::Refuse, "outlier")),
    ] {
        let world = hot_world(service, Heat { node: 50, ..HOT });
        assert_eq!(rule(&world), expected, "one spins, its sibling is idle");
    }
}

#[test]
fn memory_at_rest_never_scales_out() {
    let memory = Heat { cpu: 2, memory: 88, network: 0, node: 10, other: 10 };
    let mut world = World::new(["n1", "n2", "n3"]);
    world.service(scaled(replicated("s1", 2), "2", "6"));
    world.task("t1", "s1", 1, "n2").task("t2", "s1", 2, "n3").read(0);
    for (node, task) in [("n2", "t1"), ("n3", "t2")] {
        world.alert(1_000, node, task, Condition::MemoryHigh, Edge::Raise, 300);
    }
    for ms in (0..=6_000).step_by(250) {
        refresh(&mut world, ms);
        world.report(ms, "n1", 10, &[]);
        for (node, task) in [("n2", "t1"), ("n3", "t2")] {
            world.report(ms, node, memory.node, &[(task, memory.cpu, memory.memory, memory.network)]);
        }
    }
    world.read(6_000);
    let verdict = judge_at(&world, 6_100, &situation());
    assert_eq!(verdict.judgement.rule.word(), "limit_bound", "{verdict:?}");
    assert!(verdict.judgement.otherwise.contains("memory limit"), "{}", verdict.judgement.otherwise);
}

#[test]
fn a_replica_that_has_just_started_is_no_evidence() {
    let mut world = World::new(["n1", "n2", "n3"]);
    world.service(scaled(replicated("s1", 2), "2", "10")).read(0);
    // Both are replaced: one rolling update, and each warms up at full CPU.
    world.task("t1", "s1", 1, "n2").task("t2", "s1", 2, "n3").read(1_000);
    world.alert(1_500, "n2", "t1", Condition::CpuHigh, Edge::Raise, 300);
    world.alert(1_500, "n3", "t2", Condition::CpuHigh, Edge::Raise, 300);
    for ms in (1_500..=90_000).step_by(250) {
        refresh(&mut world, ms);
        world.report(ms, "n1", 10, &[]);
        world.report(ms, "n2", 60, &[("t1", 99, 10, 5)]);
        world.report(ms, "n3", 60, &[("t2", 99, 10, 5)]);
        if ms % 1_000 == 0 {
            world.read(ms);
            let verdict = judge_at(&world, ms, &situation());
            assert_eq!(verdict.judgement.conclusion, Conclusion::Calm, "{ms} ms: {verdict:?}");
        }
    }
    assert_eq!(judge_at(&world, 90_000, &situation()).judgement.rule.word(), "warming_up");
}

#[test]
fn overload_that_fails_a_check_is_when_to_add() {
    let mut world = all_hot(scaled(replicated("s1", 3), "1", "10"), Heat { network: 80, ..HOT });
    world.task("t3", "s1", 3, "n1");
    world.swarm.tasks.get_mut(&"t3".parse().expect("an ID")).expect("there").state =
        crate::swarm::TaskState::Starting;
    world.read(6_050);
    let verdict = judge_at(&world, 6_100, &situation());
    assert_eq!(
        verdict.intent,
        Some(Intent::ScaleOut {
            service: "s1".parse().expect("an ID"),
            replicas: 4,
            target: Some("n1".parse().expect("an ID"))
        }),
        "{verdict:?}"
    );
}

#[test]
fn waiting_at_an_own_limit_is_no_shortage_of_the_node() {
    let mut world = all_hot(scaled(replicated("s1", 2), "1", "5"), Heat { node: 45, ..HOT });
    for ms in (6_250..=9_500).step_by(250) {
        refresh(&mut world, ms);
        world.report(ms, "n1", 10, &[]);
        for (node, task) in [("n2", "t1"), ("n3", "t2")] {
            let handle = world.handle(task);
            world.report_with(ms, node, |report| {
                report.node = NodeLoad {
                    cpu: percent(45),
                    memory: percent(20),
                    psi_cpu: percent(75),
                    ..NodeLoad::default()
                };
                report.tasks = vec![TaskLoad {
                    handle,
                    cpu: percent(90),
                    memory: percent(10),
                    network: percent(5),
                    cpu_millis: 1_800,
                    psi_cpu: percent(57),
                    ..TaskLoad::default()
                }];
            });
        }
    }
    world.read(9_500);
    let verdict = judge_at(&world, 9_500, &situation());
    assert_eq!(verdict.judgement.rule.word(), "scale_out", "{verdict:?}");
    assert_eq!(verdict.judgement.signals["act_after_ms"], 3_000.0, "haste would not help");
}

#[test]
fn nothing_is_done_before_its_time() {
    let world = hot_world(replicated("s1", 2), HOT);
    // The condition began at 700 ms; 3 s later, and not before, something is done.
    let mut early = World::new(["n1", "n2", "n3"]);
    early.service(replicated("s1", 2)).task("t1", "s1", 1, "n2").task("t2", "s1", 2, "n3").read(0);
    early.alert(1_000, "n2", "t1", Condition::CpuHigh, Edge::Raise, 300);
    run(&mut early, 0, 3_500, HOT);
    assert_eq!(judge_at(&early, 3_600, &situation()).judgement.rule.word(), "holding");
    let stalled = |world: &mut World| {
        world.alert(1_100, "n2", "t1", Condition::Stalled, Edge::Raise, 300);
    };
    stalled(&mut early);
    assert_eq!(
        judge_at(&early, 3_600, &situation()).judgement.rule.word(),
        "migrate",
        "stalls shorten it to 1 s"
    );
    assert_eq!(rule(&world), (Conclusion::Act, "migrate"));
}

#[test]
fn each_condition_stands_for_itself() {
    // Memory has been high for 5 s, at the replica's own limit; CPU for 0.4 s, on a node that is short of it.
    let hot = Heat { cpu: 90, memory: 90, network: 5, node: 95, other: 10 };
    let mut world = hot_world(replicated("s1", 2), Heat { cpu: 10, node: 20, ..hot });
    // The target is not short of memory for it.
    let n1 = world.view.agents.get_mut(&"n1".parse().expect("an ID")).expect("there");
    n1.hello.memory_bytes *= 10;
    world.swarm.nodes.get_mut(&"n1".parse().expect("an ID")).expect("there").memory_bytes *= 10;
    for ms in [6_250, 6_500] {
        world.report(ms, "n1", 10, &[]);
        world.report(ms, "n2", hot.node, &[("t1", hot.cpu, hot.memory, hot.network)]);
    }
    world.alert(6_550, "n2", "t1", Condition::CpuHigh, Edge::Raise, 300);
    let verdict = judge_at(&world, 6_600, &situation());
    assert_eq!(verdict.judgement.rule.word(), "limit_bound", "{verdict:?}");
    assert!(verdict.judgement.text.contains("own memory"), "{}", verdict.judgement.text);
    assert_eq!(verdict.judgement.signals["stands_ms"], 5_900.0);
    run(&mut world, 6_750, 9_500, hot);
    assert_eq!(judge_at(&world, 9_500, &situation()).judgement.rule.word(), "migrate", "3 s of high CPU");
}

#[test]
fn a_burst_neither_turns_a_migration_into_scaling_nor_a_node_short() {
    let service = || scaled(replicated("s1", 2), "1", "5");
    let mut world = hot_world(service(), HOT);
    for ms in [6_250, 6_500, 6_750, 7_000] {
        world.report(ms, "n1", 10, &[]);
        world.report(ms, "n2", 95, &[("t1", 90, 10, 90)]);
        assert_eq!(judge_at(&world, ms, &situation()).judgement.rule.word(), "migrate", "{ms} ms");
    }
    // At its own limit on a node that is busy for a second.
    let mut world = hot_world(replicated("s1", 2), Heat { node: 30, ..HOT });
    for ms in [6_250, 6_500, 6_750, 7_000] {
        world.report(ms, "n1", 10, &[]);
        world.report(ms, "n3", 10, &[("t2", 5, 5, 1)]);
        world.report(ms, "n2", 95, &[("t1", 90, 10, 5)]);
        assert_eq!(judge_at(&world, ms, &situation()).judgement.rule.word(), "outlier", "{ms} ms");
    }
}

#[test]
fn a_step_of_load_is_told_from_a_short_node_as_soon_as_it_may_be_acted_on() {
    for (stalled, act_at) in [(false, 3_000), (true, 1_000)] {
        let mut world = World::new(["n1", "n2", "n3"]);
        world.service(scaled(replicated("s1", 2), "1", "5"));
        world.task("t1", "s1", 1, "n2").task("t2", "s1", 2, "n3").read(0);
        // As an agent smooths a step to 80 % over half a second.
        let network = [0, 31, 50, 62, 69, 73, 76, 78];
        for (index, ms) in (0..=6_000 + act_at).step_by(250).enumerate() {
            let hot = ms >= 6_000;
            let network = if hot { *network.get(index - 24).unwrap_or(&80) } else { 5 };
            if ms == 6_500 {
                for (node, task) in [("n2", "t1"), ("n3", "t2")] {
                    world.alert(ms, node, task, Condition::CpuHigh, Edge::Raise, 500);
                    if stalled {
                        world.alert(ms, node, task, Condition::Stalled, Edge::Raise, 200);
                    }
                }
            }
            refresh(&mut world, ms);
            world.report(ms, "n1", 10, &[]);
            for (node, task) in [("n2", "t1"), ("n3", "t2")] {
                let node_cpu = if hot { 95 } else { 10 };
                world.report(ms, node, node_cpu, &[(task, if hot { 90 } else { 5 }, 10, network)]);
            }
            if ms % 1_000 == 0 {
                world.read(ms);
            }
        }
        let verdict = judge_at(&world, 6_000 + act_at, &situation());
        assert_eq!(verdict.judgement.rule.word(), "scale_out", "stalled {stalled}: {verdict:?}");
    }
}

#[test]
fn stalls_shorten_the_default_but_not_what_an_operator_said() {
    for (label, expected) in [(None, "migrate"), (Some("3s"), "holding"), (Some("500ms"), "migrate")] {
        let service = replicated("s1", 2);
        let service = match label {
            Some(label) => with_label(service, "act-after", label),
            None => service,
        };
        let mut world = World::new(["n1", "n2", "n3"]);
        world.service(service).task("t1", "s1", 1, "n2").task("t2", "s1", 2, "n3").read(0);
        world.alert(1_000, "n2", "t1", Condition::CpuHigh, Edge::Raise, 0);
        world.alert(1_000, "n2", "t1", Condition::Stalled, Edge::Raise, 0);
        run(&mut world, 0, 2_500, HOT);
        assert_eq!(
            judge_at(&world, 2_600, &situation()).judgement.rule.word(),
            expected,
            "act-after {label:?}"
        );
    }
}

#[test]
fn what_cooled_down_is_calm_before_the_agent_says_so() {
    let warm = Heat { node: 80, ..HOT };
    let mut world = hot_world(replicated("s1", 2), warm);
    world.report(6_050, "n2", 80, &[("t1", 60, 10, 5)]);
    assert_eq!(rule(&world).0, Conclusion::Calm);
    let mut world = hot_world(replicated("s1", 2), warm);
    world.alert(6_050, "n2", "t1", Condition::CpuHigh, Edge::Clear, 0);
    assert_eq!(rule(&world).0, Conclusion::Calm);
}

#[test]
fn a_foreign_rollout_stands_above_everything() {
    type Change = fn(&mut World);
    let table: [(&str, Change); 5] = [
        ("updating", |world| {
            let mut service = replicated("s1", 2);
            service.update_state = Some(UpdateState::Updating);
            world.service(service);
        }),
        ("a slot with two tasks", |world| {
            world.task("t3", "s1", 1, "n3");
        }),
        ("a replica that does not run", |world| {
            world.swarm.tasks.get_mut(&"t2".parse().expect("an ID")).expect("there").state =
                crate::swarm::TaskState::Starting;
        }),
        ("fewer tasks than replicas", |world| {
            world.service(replicated("s1", 3));
        }),
        ("somebody else's change", |world| {
            let mut service = replicated("s1", 2);
            service.version = 11;
            world.service(service);
        }),
    ];
    for (what, change) in table {
        let mut world = hot_world(replicated("s1", 2), HOT);
        change(&mut world);
        world.read(6_050);
        assert_eq!(rule(&world), (Conclusion::Refuse, "rollout"), "{what}");
    }
}

#[test]
fn somebody_elses_change_keeps_us_off_for_a_while_only() {
    let mut world = hot_world(replicated("s1", 2), HOT);
    let mut service = replicated("s1", 2);
    service.version = 11;
    world.service(service).read(6_050);
    run(&mut world, 6_250, 12_000, HOT);
    assert_eq!(judge_at(&world, 12_100, &situation()).judgement.rule.word(), "migrate");
}

#[test]
fn stale_alerts_name_both_nodes() {
    let mut world = hot_world(replicated("s1", 2), HOT);
    let task = world.swarm.tasks.get_mut(&"t1".parse().expect("an ID")).expect("there");
    task.node = Some("n3".parse().expect("an ID"));
    world.read(6_050);
    let verdict = judge_at(&world, 6_100, &situation());
    assert_eq!(verdict.judgement.rule.word(), "stale_alert");
    assert!(
        verdict.judgement.text.contains("host-n2") && verdict.judgement.text.contains("host-n3"),
        "{verdict:?}"
    );
}

#[test]
fn nodes_that_are_silent_or_blind_are_neither_source_nor_target() {
    let world = hot_world(replicated("s1", 2), HOT);
    assert_eq!(judge_at(&world, 7_500, &situation()).judgement.rule.word(), "no_lease", "source silent");
    let mut world = hot_world(replicated("s1", 2), HOT);
    for ms in (6_250..=9_000).step_by(250) {
        world.report(ms, "n2", 95, &[("t1", 90, 10, 5)]);
    }
    assert_eq!(
        judge_at(&world, 9_100, &situation()).judgement.rule.word(),
        "nowhere_better",
        "all targets silent"
    );
    let mut world = hot_world(replicated("s1", 2), HOT);
    for agent in world.view.agents.values_mut() {
        agent.hello.blind = true;
    }
    assert_eq!(rule(&world).1, "no_lease");
}

#[test]
fn unknown_is_not_idle() {
    let mut world = hot_world(replicated("s1", 2), HOT);
    let forget = |report: &mut Report, world_handle: u32, change: fn(&mut TaskLoad)| {
        report.node = NodeLoad { cpu: percent(95), memory: percent(20), ..NodeLoad::default() };
        let mut load =
            TaskLoad { handle: world_handle, cpu: percent(90), cpu_millis: 3_600, ..TaskLoad::default() };
        change(&mut load);
        report.tasks = vec![load];
    };
    let handle = world.handle("t1");
    world.report_with(6_050, "n2", |report| forget(report, handle, |_| {}));
    assert_eq!(rule(&world), (Conclusion::Refuse, "network_unknown"));
    world.report_with(6_060, "n2", |report| forget(report, handle, |load| load.cpu = None));
    assert_eq!(rule(&world), (Conclusion::Refuse, "no_data"));
}

/// The tombstone of an action, as it is found in Swarm.
fn tombstone(world: &World, intent: Intent, version: u64) -> RecordObject {
    let order = Order {
        intent,
        token: format!("past-{version}"),
        holder: "h".into(),
        cooldown: Duration::from_secs(600),
        reason: String::new(),
        avoid: Vec::new(),
        closed: Vec::new(),
    };
    let mut snapshot = world.snapshot();
    // Nothing of it hangs on which node is a manager.
    snapshot.nodes.values_mut().for_each(|node| node.manager = true);
    let step = begin(&order, &snapshot).expect("it can begin");
    let crate::action::Next::Do(Command::CreateRecord { name, mut labels, data }) = step.next else {
        panic!("not a lease: {step:?}")
    };
    labels.insert("swarmguard.state".into(), "over".into());
    RecordObject { id: format!("r{version}"), version, name, labels, data }
}
