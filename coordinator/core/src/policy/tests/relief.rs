//! Nodes that are short although none of their replicas is hot.

use super::*;

/// n2 runs one replica each of four services that use this much of it; their other replicas are on n3. n1 is free.
fn crowded(services: impl Fn(&str) -> Service, each_millis: u32, node_cpu: u16, other: u16) -> World {
    let mut world = World::new(["n1", "n2", "n3"]);
    for index in 1..=4 {
        let id = format!("s{index}");
        world.service(services(&id));
        world.task(&format!("a{index}"), &id, 1, "n2").task(&format!("b{index}"), &id, 2, "n3");
    }
    world.read(0);
    for ms in (0..=12_000).step_by(250) {
        world.report(ms, "n1", other, &[]);
        world.report(ms, "n3", other, &[]);
        let handles: Vec<u32> = (1..=4).map(|index| world.handle(&format!("a{index}"))).collect();
        world.report_with(ms, "n2", |report| {
            report.node = NodeLoad { cpu: percent(node_cpu), memory: percent(20), ..NodeLoad::default() };
            let load = |handle| TaskLoad {
                handle,
                cpu: percent(50),
                memory: percent(5),
                network: percent(1),
                cpu_millis: each_millis,
                memory_kib: 100_000,
                ..TaskLoad::default()
            };
            report.tasks = handles.into_iter().map(load).collect();
        });
    }
    world.read(12_000);
    world
}

fn moves(world: &World) -> Vec<Verdict> {
    let verdicts = decide(&world.view, &situation(), at(12_050));
    verdicts.into_iter().filter(|verdict| verdict.intent.is_some()).collect()
}

#[test]
fn a_node_that_four_small_replicas_fill_is_relieved_of_one() {
    let world = crowded(|id| replicated(id, 2), 960, 97, 10);
    let moves = moves(&world);
    let [only] = moves.as_slice() else { panic!("{moves:?}") };
    assert_eq!(only.judgement.rule.word(), "relief");
    assert!(only.judgement.target.is_some());
    assert_eq!(only.judgement.node, Some("n2".parse().expect("an ID")));
    assert!((only.judgement.signals["gain_points"] - 24.0).abs() < 0.1, "{only:?}");
}

#[test]
fn relief_is_only_for_a_short_node_and_where_it_pays() {
    let none = |world: World, why: &str| assert_eq!(moves(&world), [], "{why}");
    none(crowded(|id| replicated(id, 2), 840, 84, 10), "it is not short");
    none(crowded(|id| replicated(id, 2), 960, 97, 60), "the others have no room");
    none(crowded(|id| replicated(id, 2), 360, 90, 10), "nine points are not worth a move");
    none(crowded(|id| with_label(replicated(id, 2), "migrate", "off"), 960, 97, 10), "none may move");
}

#[test]
fn what_is_starved_counts_with_what_it_asks_for() {
    // Each gets 7 % of a node that something outside Swarm fills, and waits for nine tenths of the time.
    let relieved = |waits: u16| {
        let mut world = crowded(|id| replicated(id, 2), 280, 100, 10);
        for ms in (12_250..=23_500).step_by(250) {
            world.report(ms, "n1", 10, &[]);
            world.report(ms, "n3", 10, &[]);
            let handles: Vec<u32> = (1..=4).map(|index| world.handle(&format!("a{index}"))).collect();
            world.report_with(ms, "n2", |report| {
                report.node = NodeLoad { cpu: percent(100), memory: percent(20), ..NodeLoad::default() };
                let load = |handle| TaskLoad {
                    handle,
                    cpu: percent(7),
                    memory: percent(5),
                    network: percent(1),
                    cpu_millis: 280,
                    memory_kib: 100_000,
                    psi_cpu: percent(waits),
                    ..TaskLoad::default()
                };
                report.tasks = handles.into_iter().map(load).collect();
            });
        }
        for container in world.view.agents.values_mut().flat_map(|agent| agent.containers.values_mut()) {
            container.intro.cpu_limit_millis = None;
        }
        world.read(23_500);
        let verdicts = decide(&world.view, &situation(), at(23_550));
        verdicts.iter().filter(|verdict| verdict.intent.is_some()).count()
    };
    assert_eq!((relieved(90), relieved(10)), (1, 0));
}

#[test]
fn the_shortage_is_said_of_every_service_there() {
    let world = crowded(|id| with_label(replicated(id, 2), "migrate", "off"), 960, 97, 10);
    for verdict in decide(&world.view, &situation(), at(12_050)) {
        assert!(verdict.judgement.text.contains("host-n2 is short, 97 % of its CPU"), "{verdict:?}");
    }
}

/// `s1` with a memory limit of 512 MiB, whose replica on n2 grows by so much a minute for four minutes, from 200 MiB.
fn leaking(label: Option<&str>, mib_a_minute: u64) -> Verdict {
    let mut world = World::new(["n1", "n2", "n3"]);
    let service = replicated("s1", 2);
    world.service(match label {
        Some(label) => with_label(service, "replace", label),
        None => service,
    });
    world.task("t1", "s1", 1, "n2").task("t2", "s1", 2, "n3").read(0);
    let n2 = world.view.agents.get_mut(&"n2".parse().expect("an ID")).expect("there");
    n2.containers.values_mut().for_each(|it| it.intro.memory_limit_bytes = Some(512 << 20));
    let handle = world.handle("t1");
    for ms in (0..=240_000_u64).step_by(500) {
        let memory_kib = 200 * 1_024 + u32::try_from(mib_a_minute * 1_024 * ms / 60_000).expect("small");
        world.report(ms, "n1", 10, &[]);
        world.report(ms, "n3", 10, &[("t2", 5, 5, 1)]);
        world.report_with(ms, "n2", |report| {
            report.node = NodeLoad { cpu: percent(10), memory: percent(20), ..NodeLoad::default() };
            report.tasks = vec![TaskLoad {
                handle,
                cpu: percent(5),
                memory: percent(60),
                network: percent(1),
                cpu_millis: 100,
                memory_kib,
                ..TaskLoad::default()
            }];
        });
    }
    world.read(240_000);
    judge_at(&world, 240_050, &situation())
}

#[test]
fn a_leak_is_replaced_before_the_kernel_kills_it() {
    let verdict = leaking(Some("leak"), 60);
    assert_eq!(verdict.judgement.rule.word(), "leak", "{verdict:?}");
    assert_eq!(verdict.judgement.node, Some("n2".parse().expect("an ID")));
    assert!(verdict.judgement.text.contains("of 512 MiB"), "{}", verdict.judgement.text);
    assert_eq!(leaking(Some("leak"), 40).judgement.rule.word(), "leak_holding", "it has 228 s left");
    for (label, grows) in [(None, 60), (Some("leak"), 0), (Some("leak"), 2), (Some("leak"), 40)] {
        let verdict = leaking(label, grows);
        assert_eq!(verdict.judgement.conclusion, Conclusion::Calm, "{label:?}, {grows} MiB: {verdict:?}");
    }
}
