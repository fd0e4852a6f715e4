//! Every action against the model of Swarm, interrupted at every single command: by a crash before it was sent, by a
//! crash after it was carried out but before anybody knew, and by an operator, a node or a container in between.

mod rollback;
mod scaling;
mod stage;

use swarmguard_core::{
    action::{self, Outcome, spec},
    rule::Rule,
    swarm::Availability,
};
use swarmguard_tests::swarm_model::{SwarmModel, Workload};

use stage::{Fault, MEDDLING, Meddling, Stage};

/// Nodes and replicas: a single one, one each, several on the source, many.
const SHAPES: [(u64, u64); 5] = [(3, 1), (3, 2), (3, 3), (2, 4), (3, 7)];

#[test]
fn a_surge_moves_one_replica_and_leaves_everything_as_it_was() {
    for (nodes, replicas) in SHAPES {
        let mut stage = Stage::new(1, nodes, replicas, Workload::default());
        let ending = stage.run(stage.migrate(), usize::MAX, Fault::None);
        let story = format!("{replicas} on {nodes}: {:?}", stage.codes);
        assert_eq!(ending.outcome, Some(Outcome::Done), "{story}");
        stage.check_all(&story, ending.outcome.as_ref());
        let phases = [
            "surged",
            "successor_running",
            "successor_healthy",
            "settled",
            "marked",
            "balancers_drained",
            "removed",
            "spec_closed",
            "done",
        ];
        let mut heard = stage.codes.iter();
        for phase in phases {
            assert!(heard.any(|code| code == phase), "{story}: {phase} is missing or out of order");
        }
    }
}

#[test]
fn nothing_is_paused_where_swarms_own_order_keeps_the_successor_off_the_source() {
    for (nodes, replicas) in [(3, 1), (3, 2), (4, 3)] {
        let mut stage = Stage::new(1, nodes, replicas, Workload::default());
        let ending = stage.run(stage.migrate(), usize::MAX, Fault::None);
        let story = format!("{replicas} on {nodes}: {:?}", stage.codes);
        assert_eq!((ending.outcome, stage.paused_ms), (Some(Outcome::Done), 0), "{story}");
        assert!(ending.commands <= 11, "{story}: {} calls", ending.commands);
    }
}

#[test]
fn where_it_does_not_the_source_is_paused_for_moments_only() {
    let slow = Workload { prepare_ms: 20_000, healthy_ms: 60_000, ..Workload::default() };
    // Three on three: until the successor has a node. Four on two: again from mark to removal. A look at Swarm takes 150 ms
    // here, and each of the few calls needs one.
    for ((nodes, replicas), most_ms) in [((3, 3), 700), ((2, 4), 2_400)] {
        let mut stage = Stage::new(1, nodes, replicas, slow);
        let ending = stage.run(stage.migrate(), usize::MAX, Fault::None);
        let story = format!("{replicas} on {nodes}: {:?}", stage.codes);
        assert_eq!(ending.outcome, Some(Outcome::Done), "{story}");
        assert!(stage.paused_ms > 0 && stage.paused_ms <= most_ms, "{story}: paused {} ms", stage.paused_ms);
        stage.check_all(&story, ending.outcome.as_ref());
    }
}

#[test]
fn the_only_manager_is_never_paused() {
    let on_manager = |seed: u64, nodes: u64, replicas: u64| {
        let stage = Stage::with_managers(seed, 1, nodes, replicas, Workload::default());
        (stage.source == SwarmModel::node_id(1)).then_some(stage)
    };
    for (nodes, replicas) in [(2, 2), (2, 4), (3, 3), (3, 7)] {
        let mut found = (0..50).filter_map(|seed| on_manager(seed, nodes, replicas));
        for mut stage in found.by_ref().take(5) {
            let own = SwarmModel::node_id(1);
            let begun = action::begin(&stage.order(stage.migrate()), &stage.model.snapshot(&own));
            let Ok(_) = begun else {
                assert_eq!(begun.map_err(|refusal| refusal.code), Err(Rule::OnlyManager));
                continue;
            };
            let ending = stage.run(stage.migrate(), usize::MAX, Fault::None);
            let story = format!("{replicas} on {nodes}: {:?} {:?}", ending.outcome, stage.codes);
            assert_eq!(stage.paused_ms, 0, "{story}");
            // Where nodes rank alike the successor may land on it, and is taken back.
            stage.check_all(&story, ending.outcome.as_ref());
        }
    }
}

#[test]
fn the_enforcer_may_look_at_the_source_at_any_moment() {
    for (nodes, replicas) in [(3, 1), (3, 3), (2, 4)] {
        for at in 0..20 {
            let mut stage = Stage::new(at as u64, nodes, replicas, Workload::default());
            let ending = stage.run(stage.migrate(), at, Fault::Operator(Meddling::NodeLabel));
            let story = format!("{replicas} on {nodes}, at {at}: {:?} {:?}", ending.outcome, stage.codes);
            stage.check_all(&story, ending.outcome.as_ref());
        }
    }
}

#[test]
fn a_coordinator_that_dies_at_any_command_leaves_nothing_broken() {
    for (nodes, replicas) in SHAPES {
        let commands = {
            let mut stage = Stage::new(1, nodes, replicas, Workload::default());
            stage.run(stage.migrate(), usize::MAX, Fault::None).commands
        };
        assert!(commands >= 9, "a surge takes nine calls at least, not {commands}");
        for at in 0..commands {
            for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::LostAnswer] {
                let mut stage = Stage::new(at as u64, nodes, replicas, Workload::default());
                let ending = stage.run(stage.migrate(), at, fault);
                let story = format!("{replicas} on {nodes}, {fault:?} at {at}: {:?}", stage.codes);
                stage.check_all(&story, ending.outcome.as_ref());
                assert!(ending.outcome.is_some(), "{story}");
            }
        }
    }
}

#[test]
fn whatever_others_do_in_between_is_respected_and_nothing_of_ours_is_left() {
    for (nodes, replicas) in [(3, 1), (3, 3), (2, 4)] {
        for at in 0..20 {
            for meddling in MEDDLING {
                let mut stage = Stage::new(at as u64, nodes, replicas, Workload::default());
                let ending = stage.run(stage.migrate(), at, Fault::Operator(meddling));
                if at >= ending.commands {
                    continue;
                }
                // Rollouts go on, and managers believe in a silent node for 15 s before they replace its tasks.
                stage.pass(40_000);
                let story = format!(
                    "{replicas} on {nodes}, {meddling:?} at {at}: {:?} {:?}",
                    ending.outcome, stage.codes
                );
                check_meddled(&stage, meddling, replicas, &story);
            }
        }
    }
}

fn check_meddled(stage: &Stage, meddling: Meddling, replicas: u64, story: &str) {
    stage.check_clean(story);
    let drained = meddling == Meddling::SourceDrained;
    stage.check_node(story, if drained { Availability::Drain } else { Availability::Active });
    let Some(service) = stage.model.services.get(&stage.service) else {
        assert_eq!(meddling, Meddling::ServiceRemoved, "{story}");
        return;
    };
    let expected = if meddling == Meddling::Scale { replicas + 2 } else { replicas };
    assert_eq!(service.replicas(), expected, "{story}");
    assert_eq!(stage.serving().len() as u64, expected, "{story}");
    let previous = service.previous_spec.as_ref().and_then(spec::replicas);
    assert_ne!(previous, Some(replicas + 1), "{story}: a rollback would bring our replica back");
    match meddling {
        Meddling::NewImage => {
            assert_eq!(service.spec["TaskTemplate"]["ContainerSpec"]["Image"], "web:2", "{story}");
        }
        Meddling::ServiceLabel => assert_eq!(service.spec["Labels"]["note"], "x", "{story}"),
        Meddling::Scale => {}
        _ => stage.check_spec(story),
    }
    // What the operator does may cost capacity by itself: a stop-first rollout, a drained or dead node, a dead task.
    let harmless = matches!(
        meddling,
        Meddling::Scale
            | Meddling::DeployAgain
            | Meddling::ServiceLabel
            | Meddling::NodeLabel
            | Meddling::RecordsRemoved
            | Meddling::TargetSilent
    );
    if harmless {
        assert!(stage.least as u64 >= replicas, "{story}: capacity fell to {}", stage.least);
    }
}

#[test]
fn a_successor_that_never_becomes_healthy_is_taken_back_without_touching_the_others() {
    for (nodes, replicas) in SHAPES {
        let sick = Workload { failing_starts: 1_000, ..Workload::default() };
        let slow = Workload { healthy_ms: 400_000, ..Workload::default() };
        for (name, workload) in [("sick", sick), ("slow", slow)] {
            let mut stage = Stage::new(5, nodes, replicas, workload);
            let ending = stage.run(stage.migrate(), usize::MAX, Fault::None);
            let story = format!("{replicas} on {nodes}, {name}: {:?}", stage.codes);
            assert!(matches!(ending.outcome, Some(Outcome::Undone { .. })), "{story}: {:?}", ending.outcome);
            stage.check_clean(&story);
            stage.check_node(&story, Availability::Active);
            stage.check_spec(&story);
            if name == "sick" {
                assert_eq!(stage.serving(), stage.tasks, "{story}");
            }
            assert_eq!(stage.serving().len(), stage.tasks.len(), "{story}");
            assert!(stage.least >= stage.tasks.len(), "{story}: capacity fell to {}", stage.least);
        }
    }
}

/// Nodes and replicas for drivers that send all commands of a look at once.
const TOGETHER: [(u64, u64); 4] = [(4, 1), (4, 2), (4, 3), (4, 5)];

#[test]
fn commands_sent_together_end_alike_also_where_starts_are_slow() {
    let slow = Workload { healthy_ms: 15_000, prepare_ms: 3_000, ..Workload::default() };
    let usual = TOGETHER.map(|shape| (shape, Workload::default()));
    for ((nodes, replicas), workload) in usual.into_iter().chain([((4, 2), slow)]) {
        let mut stage = Stage::together(1, nodes, replicas, workload);
        let ending = stage.run(stage.migrate(), usize::MAX, Fault::None);
        stage.pass(60_000);
        let story = format!("{replicas} on {nodes}: {:?}", stage.codes);
        assert_eq!(ending.outcome, Some(Outcome::Done), "{story}");
        stage.check_all(&story, ending.outcome.as_ref());
    }
}

#[test]
fn drivers_that_send_together_may_die_and_leaders_change_at_any_command() {
    for (nodes, replicas) in [(4, 1), (4, 2), (4, 3)] {
        let commands = {
            let mut stage = Stage::together(1, nodes, replicas, Workload::default());
            stage.run(stage.migrate(), usize::MAX, Fault::None).commands
        };
        let faults = [Fault::CrashBefore, Fault::CrashAfter, Fault::Operator(Meddling::NewLeader)];
        for (at, fault) in (0..commands).flat_map(|at| faults.map(|fault| (at, fault))) {
            let mut stage = Stage::together(at as u64, nodes, replicas, Workload::default());
            let ending = stage.run(stage.migrate(), at, fault);
            stage.pass(60_000);
            let story = format!("{replicas} on {nodes}, {fault:?} at {at}: {:?}", stage.codes);
            assert!(ending.outcome.is_some(), "{story}: it never ended");
            stage.check_all(&story, ending.outcome.as_ref());
            let gone = stage.tasks.difference(&stage.serving()).count();
            assert!(gone <= 1, "{story}: {gone} tasks went");
        }
    }
}
