//! Nodes that return, and jobs whose node does not.

use super::*;

#[test]
fn a_node_that_returned_gets_one_replica_of_what_crowds_elsewhere() {
    let table = [
        ("true", true, 60, Some("rebalance")),
        ("true", true, 10, None),
        ("true", true, 3_600, None),
        ("true", false, 60, None),
        ("false", true, 60, None),
    ];
    for (label, away, seconds, expected) in table {
        let mut world = World::new(["n1", "n2", "n3"]);
        world.service(with_label(replicated("s1", 3), "rebalance", label));
        // n1 has one, n2 two; n3 was away.
        world.task("t1", "s1", 1, "n1").task("t2", "s1", 2, "n2").task("t3", "s1", 3, "n2");
        let n3: NodeId = "n3".parse().expect("an ID");
        world.swarm.nodes.get_mut(&n3).expect("there").ready = !away;
        world.read(0);
        world.swarm.nodes.get_mut(&n3).expect("there").ready = true;
        world.read(1_000);
        let end = 1_000 + seconds * 1_000;
        for ms in (end - 8_000..=end).step_by(250) {
            world.report(ms, "n1", 20, &[("t1", 10, 10, 1)]);
            world.report(ms, "n2", 20, &[("t2", 10, 10, 1), ("t3", 10, 10, 1)]);
            world.report(ms, "n3", 5, &[]);
        }
        world.read(end);
        let verdict = judge_at(&world, end + 100, &situation());
        let rule = (verdict.judgement.conclusion == Conclusion::Act).then_some(verdict.judgement.rule.word());
        assert_eq!(rule, expected, "{verdict:?}");
        if rule.is_some() {
            let Some(Intent::Migrate { source, target, .. }) = verdict.intent else {
                panic!("{:?}", verdict.intent)
            };
            assert_eq!((source.as_str(), target), ("n2", Some(n3)));
        }
    }
}

#[test]
fn a_service_that_was_moved_in_vain_is_not_rebalanced() {
    for (in_vain, expected) in [(false, "rebalance"), (true, "moved_in_vain")] {
        let mut world = World::new(["n1", "n2", "n3"]);
        world.service(with_label(replicated("s1", 3), "rebalance", "true"));
        world.task("t1", "s1", 1, "n1").task("t2", "s1", 2, "n2").task("t3", "s1", 3, "n2");
        let n3: NodeId = "n3".parse().expect("an ID");
        world.swarm.nodes.get_mut(&n3).expect("there").ready = false;
        // The only manager would not be left.
        world.swarm.nodes.get_mut(&"n2".parse().expect("an ID")).expect("there").manager = true;
        world.read(0);
        let intent = Intent::Migrate {
            service: "s1".parse().expect("an ID"),
            source: "n1".parse().expect("an ID"),
            target: Some("n2".parse().expect("an ID")),
        };
        let record = tombstone(&world, intent, 7);
        world.record(record);
        world.swarm.nodes.get_mut(&n3).expect("there").ready = true;
        world.read(1_000);
        let run = |world: &mut World, from: u64, to: u64, cpu: u16| {
            for ms in (from..=to).step_by(250) {
                refresh(world, ms);
                world.report(ms, "n1", 20, &[("t1", 10, 10, 1)]);
                world.report(ms, "n2", cpu, &[("t2", cpu, 10, 1), ("t3", 10, 10, 1)]);
                world.report(ms, "n3", 5, &[]);
            }
            world.read(to);
        };
        if in_vain {
            world.alert(10_000, "n2", "t2", Condition::CpuHigh, Edge::Raise, 0);
            run(&mut world, 10_250, 14_000, 90);
            world.alert(14_100, "n2", "t2", Condition::CpuHigh, Edge::Clear, 0);
        }
        run(&mut world, 92_000, 100_000, 10);
        let verdict = judge_at(&world, 100_100, &situation());
        assert_eq!(verdict.judgement.rule.word(), expected, "{verdict:?}");
    }
}

#[test]
fn our_own_pause_is_no_absence() {
    let mut world = World::new(["n1", "n2", "n3"]);
    let n3: NodeId = "n3".parse().expect("an ID");
    for availability in [Availability::Pause, Availability::Active] {
        world.swarm.nodes.get_mut(&n3).expect("there").availability = availability;
        world.read(if availability == Availability::Pause { 0 } else { 1_000 });
    }
    assert_eq!(world.view.history.returned(&n3), None);
    for availability in [Availability::Drain, Availability::Active] {
        world.swarm.nodes.get_mut(&n3).expect("there").availability = availability;
        world.read(if availability == Availability::Drain { 2_000 } else { 3_000 });
    }
    assert_eq!(world.view.history.returned(&n3), Some(at(3_000)));
}

#[test]
fn a_node_that_is_had_back_before_it_is_seen_drained_returned() {
    let n3: NodeId = "n3".parse().expect("an ID");
    let emptied = |given_up: bool| {
        let mut world = World::new(["n1", "n2", "n3"]);
        world.read(0);
        let mut drain = tombstone(&world, Intent::Drain { node: n3.clone() }, 1);
        drain.labels.insert("swarmguard.state".into(), "releasing".into());
        if given_up {
            drain.labels.insert("swarmguard.undone".into(), "cancelled: by somebody".into());
        }
        world.record(drain);
        for (availability, ms) in [(Availability::Pause, 1_000), (Availability::Active, 2_000)] {
            world.swarm.nodes.get_mut(&n3).expect("there").availability = availability;
            world.read(ms);
        }
        world.view.history.returned(&n3)
    };
    assert_eq!(emptied(false), Some(at(2_000)));
    assert_eq!(emptied(true), None, "a drain that is taken back");
}

// Jobs.

/// A job of one task on n2, which is lost (or not) for this long.
fn job_world(lost: bool, seconds: u64) -> World {
    let mut world = World::new(["n1", "n2"]);
    let mut job = replicated("s1", 1);
    job.mode = Mode::ReplicatedJob { concurrent: 1, completions: 1 };
    job.job_iteration = Some(4);
    world.service(job).task("t1", "s1", 0, "n2");
    let task = world.swarm.tasks.get_mut(&"t1".parse().expect("an ID")).expect("there");
    task.desired = crate::swarm::TaskState::Complete;
    task.job_iteration = Some(4);
    world.read(0);
    world.swarm.nodes.get_mut(&"n2".parse().expect("an ID")).expect("there").ready = !lost;
    world.read(1_000);
    for ms in (1_000..=1_000 + seconds * 1_000).step_by(250) {
        world.report(ms, "n1", 10, &[]);
        if !lost {
            world.report(ms, "n2", 10, &[("t1", 50, 10, 1)]);
        }
    }
    world.read(1_000 + seconds * 1_000);
    world
}

fn judge_job(world: &World, seconds: u64, attempts: u32) -> (&'static str, bool) {
    let service = &world.swarm.services[&"s1".parse().expect("an ID")];
    let (judgement, again) =
        jobs::judge(&world.view, service, attempts, at(1_000 + seconds * 1_000)).expect("an enabled job");
    (judgement.rule.word(), again.is_some())
}

#[test]
fn a_job_runs_again_when_its_node_stays_lost_and_only_so_often() {
    assert_eq!(judge_job(&job_world(false, 20), 20, 0), ("job", false));
    assert_eq!(judge_job(&job_world(true, 2), 2, 0), ("job", false));
    assert_eq!(judge_job(&job_world(true, 10), 10, 0), ("job_again", true));
    assert_eq!(judge_job(&job_world(true, 10), 10, 2), ("job_again", true));
    assert_eq!(judge_job(&job_world(true, 10), 10, 3), ("job_retries", false));
}

#[test]
fn a_job_that_goes_on_elsewhere_or_is_done_is_left_alone() {
    let mut world = job_world(true, 10);
    let mut other = world.swarm.tasks[&"t1".parse().expect("an ID")].clone();
    (other.id, other.slot) = ("t2".parse().expect("an ID"), 1);
    other.node = Some("n1".parse().expect("an ID"));
    world.swarm.tasks.insert(other.id.clone(), other.clone());
    world.read(11_000);
    assert_eq!(judge_job(&world, 10, 0), ("job_goes_on", false));
    other.state = crate::swarm::TaskState::Complete;
    world.swarm.tasks.insert(other.id.clone(), other);
    world.read(11_000);
    assert_eq!(judge_job(&world, 10, 0), ("job_again", true));
    world.swarm.tasks.get_mut(&"t1".parse().expect("an ID")).expect("there").state =
        crate::swarm::TaskState::Complete;
    world.read(11_000);
    assert_eq!(judge_job(&world, 10, 0), ("job", false));
}
