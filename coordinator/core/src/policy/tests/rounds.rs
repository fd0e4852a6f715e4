//! Several services in one round, and what was done before.

use super::*;

/// `s1` and `s2` with a hot replica each, on n2 and n3; n1 and n4 are idle, n4 a little less so.
fn two_hot_services(cpu_millis: u32) -> World {
    let mut world = World::new(["n1", "n2", "n3", "n4"]);
    for (service, [hot, other]) in [("s1", ["t1", "t2"]), ("s2", ["t3", "t4"])] {
        let node = if service == "s1" { "n2" } else { "n3" };
        world.service(replicated(service, 2)).task(hot, service, 1, node).task(other, service, 2, "n4");
    }
    world.read(0);
    world.alert(1_000, "n2", "t1", Condition::CpuHigh, Edge::Raise, 300);
    world.alert(1_000, "n3", "t3", Condition::CpuHigh, Edge::Raise, 300);
    for ms in (0..=6_000).step_by(250) {
        refresh(&mut world, ms);
        world.report(ms, "n1", 5, &[]);
        world.report(ms, "n4", 8, &[("t2", 2, 5, 1), ("t4", 2, 5, 1)]);
        for (node, task) in [("n2", "t1"), ("n3", "t3")] {
            let handle = world.handle(task);
            world.report_with(ms, node, |report| {
                report.node = NodeLoad { cpu: percent(95), memory: percent(20), ..NodeLoad::default() };
                report.tasks = vec![TaskLoad {
                    handle,
                    cpu: percent(90),
                    memory: percent(10),
                    network: percent(1),
                    cpu_millis,
                    ..TaskLoad::default()
                }];
            });
        }
    }
    world.read(6_000);
    world
}

fn targets(verdicts: &[Verdict]) -> Vec<Option<&str>> {
    verdicts.iter().map(|verdict| verdict.judgement.target.as_ref().map(NodeId::as_str)).collect()
}

#[test]
fn two_actions_of_one_round_do_not_fill_the_same_node() {
    let world = two_hot_services(2_400);
    let verdicts = decide(&world.view, &situation(), at(6_100));
    assert!(verdicts.iter().all(|verdict| verdict.judgement.rule.word() == "migrate"), "{verdicts:?}");
    assert_eq!(targets(&verdicts), [Some("n1"), Some("n4")], "each would take 60 % of it");
    // Only one node: the second waits.
    let mut world = two_hot_services(2_400);
    world.swarm.nodes.get_mut(&"n4".parse().expect("an ID")).expect("there").availability =
        Availability::Drain;
    world.read(6_050);
    let verdicts = decide(&world.view, &situation(), at(6_100));
    let rules: Vec<&str> = verdicts.iter().map(|verdict| verdict.judgement.rule.word()).collect();
    assert_eq!(rules, ["migrate", "nowhere_better"], "{verdicts:?}");
}

#[test]
fn what_an_action_under_way_brings_counts_before_it_shows() {
    let mut world = two_hot_services(2_400);
    let target = |world: &World, situation: &Situation| {
        let verdict = judge_at(world, 6_100, situation);
        verdict.judgement.target.map(|target| target.to_string())
    };
    assert_eq!(target(&world, &situation()).as_deref(), Some("n1"));
    let mut arriving = situation();
    arriving.under_way = 1;
    let (s2, n3) = ("s2".parse().expect("an ID"), "n3".parse().expect("an ID"));
    arriving.arrives("n1".parse().expect("an ID"), &s2, Some(&n3));
    assert_eq!(target(&world, &arriving).as_deref(), Some("n4"), "n1 is as good as full");
    // Unknown is not nothing.
    world.swarm.tasks.retain(|_, task| task.service != s2);
    world.read(6_050);
    assert_eq!(target(&world, &arriving).as_deref(), Some("n4"));
}

#[test]
fn limits_pauses_and_running_actions_hold_everything_back() {
    let world = hot_world(replicated("s1", 2), HOT);
    let with = |change: &dyn Fn(&mut Situation)| {
        let mut situation = situation();
        change(&mut situation);
        judge_at(&world, 6_100, &situation).judgement.rule.word()
    };
    assert_eq!(with(&|situation| situation.under_way = 2), "limit");
    let n2 = || ("n2".parse().expect("an ID"), 1);
    assert_eq!(with(&|situation| situation.leaving.extend([n2()])), "limit_node");
    assert_eq!(with(&|situation| situation.paused_all = true), "paused");
    assert_eq!(with(&|situation| situation.paused.extend(["s1".parse().expect("an ID")])), "paused");
    let busy = with(&|situation| situation.busy.extend([("s1".parse().expect("an ID"), "a-1".into())]));
    assert_eq!(busy, "action_running");
    let observed = judge_at(&world, 6_100, &Situation { observe: true, ..situation() });
    assert!(observed.observed && observed.intent.is_some());
    let labelled = hot_world(with_label(replicated("s1", 2), "observe", "true"), HOT);
    assert!(judge_at(&labelled, 6_100, &situation()).observed);
}

#[test]
fn cooldown_then_ten_minutes_where_it_was_moved_in_vain() {
    let moved_to = |target: &str| {
        let mut world = World::new(["n1", "n2", "n3"]);
        world.service(replicated("s1", 2)).task("t1", "s1", 1, "n2").task("t2", "s1", 2, "n3").read(0);
        let intent = Intent::Migrate {
            service: "s1".parse().expect("an ID"),
            source: "n3".parse().expect("an ID"),
            target: Some(target.parse().expect("an ID")),
        };
        let record = tombstone(&world, intent, 7);
        assert_eq!(record.name, action_name(&"s1".parse().expect("an ID")));
        world.record(record).read(100);
        world
    };
    let later = |mut world: World, seconds: u64| {
        let start = seconds * 1_000;
        world.alert(start, "n2", "t1", Condition::CpuHigh, Edge::Raise, 300);
        run(&mut world, start, start + 6_000, HOT);
        judge_at(&world, start + 6_100, &situation()).judgement.rule.word()
    };
    assert_eq!(later(moved_to("n2"), 20), "cooldown");
    assert_eq!(later(moved_to("n2"), 120), "moved_in_vain");
    assert_eq!(later(moved_to("n2"), 700), "migrate");
    assert_eq!(later(moved_to("n1"), 120), "migrate", "another replica of the service, where it always was");
}

/// `s1` was moved from n3 to n2 at the beginning, is hot there from 70 s to 76 s, and is calm again.
fn moved_in_vain_world(service: Service) -> World {
    let mut world = World::new(["n1", "n2", "n3"]);
    world.service(service).task("t1", "s1", 1, "n2").task("t2", "s1", 2, "n3").read(0);
    let intent = Intent::Migrate {
        service: "s1".parse().expect("an ID"),
        source: "n3".parse().expect("an ID"),
        target: Some("n2".parse().expect("an ID")),
    };
    let record = tombstone(&world, intent, 7);
    world.record(record).read(100);
    world.alert(70_000, "n2", "t1", Condition::CpuHigh, Edge::Raise, 300);
    run(&mut world, 70_250, 76_000, HOT);
    world.alert(76_100, "n2", "t1", Condition::CpuHigh, Edge::Clear, 0);
    world
}

#[test]
fn moved_in_vain_ties_the_whole_service() {
    let mut world = moved_in_vain_world(replicated("s1", 2));
    // Now the other replica is hot, on a node that nothing was moved to.
    world.alert(80_000, "n3", "t2", Condition::CpuHigh, Edge::Raise, 300);
    for ms in (80_250..=86_000).step_by(250) {
        refresh(&mut world, ms);
        world.report(ms, "n1", 10, &[]);
        world.report(ms, "n2", 10, &[("t1", 5, 5, 1)]);
        world.report(ms, "n3", 95, &[("t2", 90, 10, 5)]);
    }
    world.read(86_000);
    let verdict = judge_at(&world, 86_100, &situation());
    assert_eq!(verdict.judgement.rule.word(), "moved_in_vain", "{verdict:?}");
    assert!(verdict.judgement.text.contains("host-n2"), "{}", verdict.judgement.text);
}

#[test]
fn a_later_move_does_not_make_an_earlier_one_good() {
    let mut world = moved_in_vain_world(replicated("s1", 2));
    let intent = Intent::Migrate {
        service: "s1".parse().expect("an ID"),
        source: "n3".parse().expect("an ID"),
        target: Some("n1".parse().expect("an ID")),
    };
    world.swarm.records.clear();
    let record = tombstone(&world, intent, 8);
    world.record(record).read(100_000);
    world.alert(170_000, "n2", "t1", Condition::CpuHigh, Edge::Raise, 300);
    run(&mut world, 170_250, 176_000, HOT);
    assert_eq!(judge_at(&world, 176_100, &situation()).judgement.rule.word(), "moved_in_vain");
}

proptest::proptest! {
    /// Whatever figures are missing, no action rests on one that is not there.
    #[test]
    fn no_verdict_acts_on_missing_data(
        cpu in proptest::option::of(0_u16..=100),
        memory in proptest::option::of(0_u16..=100),
        network in proptest::option::of(0_u16..=100),
        node_cpu in proptest::option::of(0_u16..=100),
        silent_ms in 0_u64..8_000,
        scale in proptest::bool::ANY,
    ) {
        let service = if scale { scaled(replicated("s1", 2), "1", "5") } else { replicated("s1", 2) };
        let mut world = hot_world(service, HOT);
        let handle = world.handle("t1");
        let share = |value: Option<u16>| value.map(BasisPoints::from_percent);
        world.report_with(6_050, "n2", |report| {
            report.node = NodeLoad { cpu: share(node_cpu), memory: percent(20), ..NodeLoad::default() };
            report.tasks = vec![TaskLoad {
                handle,
                cpu: share(cpu),
                memory: share(memory),
                network: share(network),
                cpu_millis: 3_600,
                ..TaskLoad::default()
            }];
        });
        let verdict = judge_at(&world, 6_100 + silent_ms, &situation());
        if verdict.intent.is_some() {
            proptest::prop_assert!(cpu.is_some() && network.is_some() && node_cpu.is_some(), "{verdict:?}");
            proptest::prop_assert!(silent_ms < 1_000, "acted on figures {silent_ms} ms old: {verdict:?}");
        }
    }
}
