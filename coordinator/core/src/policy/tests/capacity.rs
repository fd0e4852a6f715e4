//! When capacity is needed although evidence is scarce: replicas that fail under load, agents that are silent; and when
//! the new ones have room, so that nothing more is needed.

use swarmguard_common::wire::agent::{ContainerChange, ContainerEvent, ToCoordinator};

use super::*;
use crate::agents::AgentEvent;

/// The task of each node uses this much of its own 2 CPUs, and is throttled as long as all of them are full.
fn load(world: &mut World, ms: u64, tasks: &[(&str, &str, u16)]) {
    refresh(world, ms);
    for (node, task, cpu) in tasks {
        let (handle, cpu) = (world.handle(task), *cpu);
        world.report_with(ms, node, |report| {
            report.node = NodeLoad { cpu: percent(50), memory: percent(20), ..NodeLoad::default() };
            report.tasks = vec![TaskLoad {
                handle,
                cpu: percent(cpu),
                memory: percent(10),
                network: percent(80),
                cpu_millis: u32::from(cpu) * 20,
                throttled: percent(if cpu > 95 { 95 } else { 0 }),
                ..TaskLoad::default()
            }];
        });
    }
}

fn replicas_wanted(world: &World, ms: u64) -> Option<u64> {
    match judge_at(world, ms, &situation()).intent {
        Some(Intent::ScaleOut { replicas, .. }) => Some(replicas),
        _ => None,
    }
}

#[test]
fn new_replicas_with_room_say_that_no_more_are_needed() {
    for (young, expected) in [(40, None), (100, Some(8))] {
        let mut world = World::new(["n1", "n2", "n3", "n4"]);
        world.service(scaled(replicated("s1", 2), "1", "20"));
        world.task("t1", "s1", 1, "n1").task("t2", "s1", 2, "n2").read(0);
        world.alert(500, "n1", "t1", Condition::CpuHigh, Edge::Raise, 300);
        world.alert(500, "n2", "t2", Condition::CpuHigh, Edge::Raise, 300);
        for ms in (500..=6_000).step_by(250) {
            load(&mut world, ms, &[("n1", "t1", 100), ("n2", "t2", 100)]);
        }
        // Two more have been added; the old ones still work off what waits at them.
        world.service(scaled(replicated("s1", 4), "1", "20"));
        world.swarm.services.values_mut().for_each(|service| service.version += 1);
        world.task("t3", "s1", 3, "n3").task("t4", "s1", 4, "n4");
        for ms in (6_000..=13_000).step_by(250) {
            if ms % 1_000 == 0 {
                world.read(ms);
            }
            let all = [("n1", "t1", 100), ("n2", "t2", 100), ("n3", "t3", young), ("n4", "t4", young)];
            load(&mut world, ms, &all);
        }
        assert_eq!(replicas_wanted(&world, 13_000), expected, "the new ones are at {young} %");
    }
}

#[test]
fn replicas_that_fail_under_load_are_demand_however_young_they_are() {
    for (cpu, failed, expected) in [(100, 2, Some(6)), (100, 1, None), (50, 2, None)] {
        let mut world = World::new(["n1", "n2", "n3", "n4"]);
        world.service(scaled(replicated("s1", 3), "1", "10"));
        for (task, slot, node) in [("t1", 1, "n1"), ("t2", 2, "n2"), ("t3", 3, "n3")] {
            world.task(task, "s1", slot, node);
        }
        world.read(0);
        for (task, node) in [("t1", "n1"), ("t2", "n2")].into_iter().take(failed) {
            let event = ContainerEvent {
                container: format!("c{task}").parse().expect("an ID"),
                task: None,
                what: ContainerChange::Unhealthy,
                age_ms: 0,
            };
            world.agent(9_000, node, AgentEvent::Message(ToCoordinator::Container(event.clone())));
            world.agent(9_500, node, AgentEvent::Message(ToCoordinator::Container(event)));
            world.swarm.tasks.get_mut(&task.parse().expect("an ID")).expect("there").desired =
                crate::swarm::TaskState::Shutdown;
        }
        // Those that come in their place have served for two seconds, the one in slot 2 not yet.
        world.task("t4", "s1", 1, "n1").read(10_000);
        for ms in (10_000..=12_000).step_by(250) {
            load(&mut world, ms, &[("n1", "t4", cpu), ("n3", "t3", cpu), ("n4", "t3", 0), ("n2", "t2", 0)]);
        }
        world.read(12_000);
        assert_eq!(replicas_wanted(&world, 12_050), expected, "{failed} failed, {cpu} % CPU");
        assert_eq!(replicas_wanted(&world, 75_000), None, "what failed long ago says nothing");
    }
}

#[test]
fn replicas_are_added_though_one_agent_is_silent() {
    let mut world = World::new(["n1", "n2", "n3", "n4"]);
    world.service(scaled(replicated("s1", 3), "1", "10"));
    world.task("t1", "s1", 1, "n1").task("t2", "s1", 2, "n2").task("t3", "s1", 3, "n3").read(0);
    world.alert(500, "n1", "t1", Condition::CpuHigh, Edge::Raise, 300);
    world.alert(500, "n2", "t2", Condition::CpuHigh, Edge::Raise, 300);
    for ms in (500..=9_000).step_by(250) {
        load(&mut world, ms, &[("n1", "t1", 100), ("n2", "t2", 100)]);
        world.report(ms, "n4", 10, &[]);
    }
    world.read(9_000);
    assert_eq!(replicas_wanted(&world, 9_050), Some(6), "what is not known is not idle");
}

#[test]
fn what_an_operator_set_is_not_taken_away_at_once() {
    let mut world = World::new(["n1", "n2", "n3"]);
    let of = |replicas| with_label(scaled(replicated("s1", replicas), "1", "5"), "scale.down.window", "20s");
    world.service(of(1)).task("t1", "s1", 1, "n1").read(0);
    world.service(of(3));
    world.swarm.services.values_mut().for_each(|service| service.version += 1);
    world.task("t2", "s1", 2, "n2").task("t3", "s1", 3, "n3").read(1_000);
    let mut rule_after = |from: u64, to: u64| {
        for ms in (from..=to).step_by(500) {
            for (node, task) in [("n1", "t1"), ("n2", "t2"), ("n3", "t3")] {
                world.report(ms, node, 10, &[(task, 10, 10, 1)]);
            }
            if ms % 10_000 == 0 {
                world.read(ms);
            }
            world.view.history.note_needed(
                &"s1".parse().expect("an ID"),
                at(ms),
                Some(1),
                Duration::from_secs(20),
            );
        }
        world.read(to);
        judge_at(&world, to, &situation()).judgement.rule.word()
    };
    assert_eq!(rule_after(1_500, 60_000), "set_by_hand");
    assert_eq!(rule_after(870_000, 905_000), "scale_in", "a quarter of an hour later it is as any other");
}
