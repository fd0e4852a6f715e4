//! Scripted scenarios whose outcome is known from swarmkit's source and from real engines.

use std::collections::BTreeSet;

use swarmguard_core::command::{Command, CommandError};

use super::*;

fn setup(workers: u64, replicas: u64) -> (SwarmModel, ServiceId) {
    let mut model = SwarmModel::new(7, 1, workers);
    let service = model.create_service("web", replicas, &[], Workload::default());
    settle(&mut model, 10);
    assert_eq!(model.serving(&service).count() as u64, replicas);
    (model, service)
}

fn settle(model: &mut SwarmModel, seconds: u64) {
    let until = model.now + Duration::from_secs(seconds);
    model.advance(until);
}

fn serving(model: &SwarmModel, service: &ServiceId) -> BTreeSet<TaskId> {
    model.serving(service).map(|task| task.id.clone()).collect()
}

/// The least number of serving replicas while `seconds` pass.
fn least_serving(model: &mut SwarmModel, service: &ServiceId, seconds: u64) -> usize {
    (0..seconds * 1_000 / TICK_MS)
        .map(|_| {
            let until = model.now + Duration::from_millis(TICK_MS);
            model.advance(until);
            model.serving(service).count()
        })
        .min()
        .unwrap_or(0)
}

fn a_node_in_use(model: &SwarmModel, service: &ServiceId) -> NodeId {
    model.serving(service).find_map(|task| task.node.clone()).expect("a replica runs somewhere")
}

fn exclude(spec: &mut Value, node: &NodeId) {
    spec["TaskTemplate"]["Placement"]["Constraints"] = json!([format!("node.id!={node}")]);
}

#[test]
fn a_constraint_only_update_replaces_only_the_tasks_on_nodes_that_no_longer_match() {
    let (mut model, service) = setup(3, 4);
    let source = a_node_in_use(&model, &service);
    let before = serving(&model, &service);
    let on_source: BTreeSet<TaskId> = model.tasks_on(&source).map(|task| task.id.clone()).collect();
    let change = |spec: &mut Value| {
        exclude(spec, &source);
        spec["UpdateConfig"] = json!({"Parallelism": 1, "Order": "start-first"});
    };
    model.operator_update(&service, change).expect("current version");
    assert!(least_serving(&mut model, &service, 20) >= 4, "start-first never falls below");
    let after = serving(&model, &service);
    assert_eq!(before.difference(&after).cloned().collect::<BTreeSet<_>>(), on_source);
    model
        .operator_update(&service, |spec| spec["TaskTemplate"]["Placement"] = json!({}))
        .expect("current version");
    settle(&mut model, 20);
    assert_eq!(serving(&model, &service), after, "taking the constraint off moves nothing");
}

#[test]
fn force_update_replaces_every_task_and_stop_first_costs_capacity() {
    let (mut model, service) = setup(2, 3);
    let before = serving(&model, &service);
    model
        .operator_update(&service, |spec| spec["TaskTemplate"]["ForceUpdate"] = json!(1))
        .expect("current version");
    assert!(least_serving(&mut model, &service, 60) < 3);
    assert!(serving(&model, &service).is_disjoint(&before));
}

#[test]
fn any_write_to_the_source_node_in_mid_migration_kills_the_old_task_unless_it_is_paused() {
    for paused in [false, true] {
        let (mut model, service) = setup(2, 1);
        let source = a_node_in_use(&model, &service);
        if paused {
            model.operator_availability(&source, Availability::Pause).expect("current version");
            settle(&mut model, 1);
        }
        let change = |spec: &mut Value| {
            exclude(spec, &source);
            spec["UpdateConfig"] = json!({"Parallelism": 1, "Order": "start-first"});
        };
        model.operator_update(&service, change).expect("current version");
        settle(&mut model, 1);
        let (version, spec) = (model.nodes[&source].version, model.nodes[&source].spec.clone());
        model.execute(&Command::WriteNode { node: source.clone(), version, spec }).expect("current version");
        let least = least_serving(&mut model, &service, 20);
        assert_eq!(least == 0, !paused, "paused: {paused}");
    }
}

#[test]
fn a_marked_slot_is_the_one_that_a_scale_down_removes() {
    for seed in 0..20 {
        let mut model = SwarmModel::new(seed, 1, 3);
        let service = model.create_service("web", 5, &[], Workload::default());
        settle(&mut model, 10);
        let source = a_node_in_use(&model, &service);
        let before = serving(&model, &service);
        let mark = |spec: &mut Value| {
            exclude(spec, &source);
            spec["TaskTemplate"]["Placement"]["Platforms"] = json!([{"OS": "none", "Architecture": "none"}]);
            spec["UpdateConfig"] =
                json!({"Parallelism": 1, "Order": "start-first", "FailureAction": "pause"});
        };
        model.operator_update(&service, mark).expect("current version");
        settle(&mut model, 1);
        assert_eq!(model.wanted(&service).filter(|task| task.state == TaskState::Pending).count(), 1);
        let remove = |spec: &mut Value| {
            spec["TaskTemplate"]["Placement"] = json!({});
            spec["Mode"]["Replicated"]["Replicas"] = json!(4);
        };
        model.operator_update(&service, remove).expect("current version");
        settle(&mut model, 20);
        let gone: Vec<_> = before.difference(&serving(&model, &service)).cloned().collect();
        assert_eq!(gone.len(), 1, "seed {seed}");
        assert_eq!(model.serving(&service).count(), 4);
    }
}

#[test]
fn a_second_write_in_mid_update_stops_the_old_task_before_the_new_one_runs() {
    let (mut model, service) = setup(2, 1);
    let source = a_node_in_use(&model, &service);
    let change = |spec: &mut Value| {
        exclude(spec, &source);
        spec["UpdateConfig"] = json!({"Parallelism": 1, "Order": "start-first"});
    };
    model.operator_update(&service, change).expect("current version");
    settle(&mut model, 1);
    model.operator_update(&service, |spec| spec["Labels"]["note"] = json!("x")).expect("current version");
    assert_eq!(least_serving(&mut model, &service, 20), 0);
}

#[test]
fn scaling_down_takes_from_the_node_with_most_copies() {
    let (mut model, service) = setup(1, 5);
    model
        .operator_update(&service, |spec| spec["Mode"]["Replicated"]["Replicas"] = json!(2))
        .expect("current version");
    settle(&mut model, 20);
    let nodes: BTreeSet<_> = model.serving(&service).filter_map(|task| task.node.clone()).collect();
    assert_eq!(nodes.len(), 2, "two replicas on two nodes stay balanced");
}

#[test]
fn a_lost_node_is_noticed_late_and_its_tasks_are_replaced() {
    let (mut model, service) = setup(2, 2);
    let lost = a_node_in_use(&model, &service);
    model.power_cut(&lost);
    settle(&mut model, 10);
    assert!(model.nodes[&lost].ready, "three heartbeats are not missed yet");
    settle(&mut model, 30);
    assert!(!model.nodes[&lost].ready);
    assert_eq!(model.serving(&service).count(), 2);
}

#[test]
fn drain_stops_first() {
    let (mut model, service) = setup(2, 1);
    let source = a_node_in_use(&model, &service);
    model.operator_availability(&source, Availability::Drain).expect("current version");
    assert_eq!(least_serving(&mut model, &service, 20), 0);
    assert_eq!(model.serving(&service).count(), 1);
}

#[test]
fn stale_versions_and_taken_names_are_conflicts() {
    let (mut model, service) = setup(1, 1);
    let spec = model.services[&service].spec.clone();
    let write = Command::WriteService { service, version: 3, spec };
    assert!(matches!(model.execute(&write), Err(CommandError::Conflict(_))));
    let create = Command::CreateRecord { name: "lease".into(), labels: BTreeMap::new(), data: Vec::new() };
    assert_eq!(model.execute(&create), Ok(()));
    assert!(matches!(model.execute(&create), Err(CommandError::Conflict(_))));
}
