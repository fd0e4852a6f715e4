//! Scaling out and in, and draining a node.

use std::collections::BTreeSet;

use swarmguard_common::domain::{NodeId, TaskId};
use swarmguard_core::{
    action::{Intent, Outcome},
    swarm::Availability,
};
use swarmguard_tests::swarm_model::{SwarmModel, Workload};

use super::stage::{Fault, Meddling, Stage};

#[test]
fn scaling_in_removes_a_replica_of_the_chosen_node_and_no_other() {
    for (nodes, replicas) in [(3, 2), (3, 3), (2, 4), (3, 7)] {
        let commands = {
            let mut stage = Stage::new(1, nodes, replicas, Workload::default());
            let intent = Intent::ScaleIn { service: stage.service.clone(), node: stage.source.clone() };
            stage.run(intent, usize::MAX, Fault::None).commands
        };
        for at in 0..=commands {
            for fault in [Fault::CrashBefore, Fault::CrashAfter] {
                let mut stage = Stage::new(at as u64, nodes, replicas, Workload::default());
                let intent = Intent::ScaleIn { service: stage.service.clone(), node: stage.source.clone() };
                let ending = stage.run(intent, at, fault);
                let story = format!("{replicas} on {nodes}, {fault:?} at {at}: {:?}", stage.codes);
                stage.check_clean(&story);
                stage.check_node(&story, Availability::Active);
                assert_eq!(ending.outcome, Some(Outcome::Done), "{story}");
                let serving = stage.serving();
                let gone: BTreeSet<&TaskId> = stage.tasks.difference(&serving).collect();
                assert_eq!((gone.len(), serving.len() as u64), (1, replicas - 1), "{story}");
                assert!(gone.is_subset(&stage.on_source.iter().collect()), "{story}: the wrong one went");
                assert!(stage.least as u64 >= replicas - 1, "{story}: capacity fell to {}", stage.least);
                stage.check_spec_with(&story, replicas - 1);
            }
        }
    }
}

#[test]
fn scaling_out_goes_to_the_target_where_steering_can_reach_it() {
    for target in 1..=5 {
        let target = SwarmModel::node_id(target);
        let mut stage = Stage::new(3, 5, 2, Workload::default());
        let hosts: BTreeSet<NodeId> =
            stage.model.serving(&stage.service).filter_map(|task| task.node.clone()).collect();
        let intent =
            Intent::ScaleOut { service: stage.service.clone(), replicas: 3, target: Some(target.clone()) };
        let ending = stage.run(intent, usize::MAX, Fault::None);
        let story = format!("to {target}: {:?}", stage.codes);
        assert_eq!(ending.outcome, Some(Outcome::Done), "{story}");
        stage.check_clean(&story);
        stage.check_node(&story, Availability::Active);
        let serving = stage.serving();
        assert!(stage.tasks.is_subset(&serving), "{story}: nobody is replaced");
        let new = serving.difference(&stage.tasks).next().expect("one more");
        if !hosts.contains(&target) {
            assert_eq!(stage.model.tasks[new].node.as_ref(), Some(&target), "{story}");
        }
    }
}

#[test]
fn a_drain_moves_every_service_first_and_drains_then() {
    let commands = {
        let mut stage = Stage::new(1, 3, 3, Workload::default());
        let node = stage.source.clone();
        stage.run(Intent::Drain { node }, usize::MAX, Fault::None).commands
    };
    for at in 0..=commands {
        let mut stage = Stage::new(at as u64, 3, 3, Workload::default());
        let node = stage.source.clone();
        let ending = stage.run(Intent::Drain { node }, at, Fault::CrashAfter);
        let story = format!("crash at {at}: {:?}", stage.codes);
        assert_eq!(ending.outcome, Some(Outcome::Done), "{story}");
        stage.check_clean(&story);
        stage.check_node(&story, Availability::Drain);
        stage.check_spec(&story);
        stage.check_replicas(&story, None);
        let left = stage.model.serving(&stage.service).any(|task| task.node.as_ref() == Some(&stage.source));
        assert!(!left, "{story}: a replica stayed");
    }
}

#[test]
fn scaling_out_by_one_without_a_target_replaces_nobody() {
    let mut stage = Stage::together(5, 4, 3, Workload::default());
    let intent = Intent::ScaleOut { service: stage.service.clone(), replicas: 4, target: None };
    let ending = stage.run(intent, usize::MAX, Fault::None);
    stage.pass(60_000);
    let story = format!("{:?}", stage.codes);
    assert_eq!(ending.outcome, Some(Outcome::Done), "{story}");
    stage.check_clean(&story);
    stage.check_node(&story, Availability::Active);
    stage.check_spec_with(&story, 4);
    assert!(stage.tasks.is_subset(&stage.serving()), "{story}");
    assert_eq!((stage.serving().len(), stage.least), (4, 3), "{story}");
}

#[test]
fn one_more_replica_that_an_operator_asks_for_after_the_removal_stays() {
    // The removal is the seventh call; the next two write the same spec again and end the action.
    for at in [7, 8] {
        let mut stage = Stage::new(at as u64, 4, 2, Workload::default());
        let ending = stage.run(stage.migrate(), at, Fault::Operator(Meddling::ScaleByOne));
        stage.pass(20_000);
        let story = format!("at {at}: {:?} {:?}", ending.outcome, stage.codes);
        stage.check_clean(&story);
        assert_eq!(stage.model.services[&stage.service].replicas(), 3, "{story}");
        assert_eq!(stage.serving().len(), 3, "{story}");
    }
}
