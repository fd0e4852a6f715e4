//! What goes wrong around the brain, and what operators take back: failing writes, a lost lead, actions that are stuck,
//! a target that nobody hears.

use serde_json::json;

use super::*;
use crate::{action::Before, swarm::UpdateState};

fn service_id(id: &str) -> ServiceId {
    id.parse().expect("an ID")
}

fn lead(stage: &mut Stage, leader: &str) {
    for node in stage.world.swarm.nodes.values_mut() {
        node.leader = node.id.as_str() == leader;
    }
    stage.ms += 250;
    stage.snapshot();
}

#[test]
fn a_command_that_is_refused_again_and_again_is_put_off_and_said_once_a_minute() {
    let mut stage = hot();
    stage.commands.clear();
    stage.refuses = true;
    stage.pass(40_000, 90);
    let tried = stage.commands.len();
    assert!((4..=12).contains(&tried), "{tried} attempts in 40 s: {:?}", stage.commands);
    assert_eq!(stage.codes(Kind::Notice), ["command_failed"]);
    stage.pass(40_000, 90);
    assert_eq!(stage.codes(Kind::Notice), ["command_failed"; 2], "it stands, and is said again");
    stage.refuses = false;
    stage.commands.clear();
    stage.pass(14_000, 90);
    assert!(stage.commands.len() > 2, "it goes on where it was: {:?}", stage.commands);
}

#[test]
fn a_wish_that_was_not_written_does_not_come_back_later() {
    let pause = || OperatorCommand::Pause { service: Some(service_id("s1")) };
    // Another coordinator led meanwhile; or none of our writes came through for long.
    for lost_the_lead in [true, false] {
        let mut stage = Stage::new(replicated("s1", 2), settings());
        stage.pass(1_000, 20);
        stage.refuses = true;
        stage.brain.operator(at(stage.ms), "ops", pause()).expect("taken");
        stage.drain();
        if lost_the_lead {
            lead(&mut stage, "n2");
        } else {
            stage.pass(32_000, 20);
        }
        stage.refuses = false;
        lead(&mut stage, "n1");
        stage.pass(15_000, 20);
        assert!(stage.world.swarm.records.is_empty(), "{:?}", stage.world.swarm.records);
        assert!(stage.codes(Kind::Notice).contains(&"wish_given_up"), "{:?}", stage.entries);
        assert!(!stage.brain.services(at(stage.ms)).iter().any(|service| service.paused));
    }
}

#[test]
fn an_observer_judges_jobs_and_does_nothing_about_them() {
    let mut job = replicated("s1", 1);
    job.mode = crate::swarm::Mode::ReplicatedJob { concurrent: 1, completions: 1 };
    job.job_iteration = Some(0);
    let mut stage = Stage::new(with_label(job, "job.retries", "2"), Settings { observe: true, ..settings() });
    stage.world.swarm.tasks.retain(|task, _| task.as_str() == "t1");
    let task = stage.world.swarm.tasks.values_mut().next().expect("t1");
    (task.desired, task.job_iteration) = (crate::swarm::TaskState::Complete, Some(0));
    stage.world.swarm.nodes.get_mut(&"n2".parse().expect("an ID")).expect("there").ready = false;
    for _ in 0..20 {
        stage.ms += 1_000;
        stage.snapshot();
    }
    assert_eq!(stage.commands, []);
    assert_eq!(stage.codes(Kind::Decision), ["job_again"], "{:?}", stage.entries);
    let explanation = stage.brain.explain(at(stage.ms), &service_id("s1")).expect("there");
    assert_eq!(explanation.verdict.expect("judged").rule, "job_again");
}

/// An action being undone that waits: somebody rolls out another image on top of its surge.
fn stuck_undo(stage: &mut Stage, id: &str, held_node: Option<&str>) {
    let mut service = replicated(id, 3);
    let before = replicated(id, 2).spec;
    service.spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!("web:2");
    service.update_state = Some(UpdateState::Updating);
    stage.world.service(service);
    for slot in 1..=3 {
        stage.world.task(&format!("{id}t{slot}"), id, slot, "n3");
    }
    let before = Before {
        version: 1,
        spec: before,
        previous_spec: None,
        replicas: 2,
        peak: 3,
        after: 2,
        tasks: Vec::new(),
        steer_off: Vec::new(),
        pauses: false,
        availability: held_node.map(|_| crate::swarm::Availability::Active),
        reason: String::new(),
    };
    let mut put = |name: String, kind: &str, state: &str| {
        let labels = [
            ("kind", kind),
            ("state", state),
            ("holder", "n1.1"),
            ("token", id),
            ("service", id),
            ("source", held_node.unwrap_or("n3")),
            ("undone", "foreign_change"),
        ];
        let labels = labels.iter().map(|(key, value)| (format!("swarmguard.{key}"), (*value).into()));
        let record = RecordObject {
            id: format!("r-{name}"),
            version: 1,
            name: name.clone(),
            labels: labels.collect(),
            data: serde_json::to_vec(&before).expect("plain"),
        };
        stage.world.record(record);
    };
    put(format!("swarmguard-act-{id}"), "migrate", "undoing");
    if let Some(node) = held_node {
        put(format!("swarmguard-node-{node}"), "node", "leased");
    }
}

#[test]
fn undos_that_wait_for_others_do_not_keep_services_from_moving() {
    let mut stage = Stage::new(replicated("s1", 2), settings());
    stuck_undo(&mut stage, "s2", None);
    stuck_undo(&mut stage, "s3", None);
    stage.snapshot();
    stage.pass(1_000, 90);
    stage.alert(Edge::Raise);
    stage.pass(4_000, 90);
    assert_eq!(stage.codes(Kind::Decision), ["migrate"], "{:?}", stage.entries);
    let waits = stage.codes(Kind::Action).iter().filter(|code| **code == "undo_waits").count();
    assert_eq!(waits, 2, "said once each");
}

#[test]
fn an_undo_that_still_holds_its_node_counts() {
    let mut stage = Stage::new(replicated("s1", 2), Settings { max_actions: 1, ..settings() });
    stuck_undo(&mut stage, "s2", Some("n3"));
    // It would be given back in the first step.
    stage.refuses = true;
    stage.snapshot();
    stage.pass(1_000, 90);
    stage.alert(Edge::Raise);
    stage.pass(4_000, 90);
    assert_eq!(stage.codes(Kind::Decision), [] as [&str; 0], "{:?}", stage.entries);
    assert!(stage.codes(Kind::Refusal).contains(&"limit"), "{:?}", stage.codes(Kind::Refusal));
}

fn refused(stage: &mut Stage, command: OperatorCommand) -> String {
    stage.brain.operator(at(stage.ms), "ops", command).expect_err("not to be taken").code
}

#[test]
fn an_operator_cannot_move_to_a_node_that_nobody_hears_or_to_where_it_is() {
    let mut stage = Stage::new(replicated("s1", 2), settings());
    stage.pass(2_000, 20);
    let migrate = |target: &str| OperatorCommand::Migrate {
        service: service_id("s1"),
        source: Some("n2".parse().expect("an ID")),
        target: Some(target.parse().expect("an ID")),
    };
    assert_eq!(refused(&mut stage, migrate("n2")), "same_node");
    stage.n1_silent = true;
    stage.pass(5_000, 20);
    assert_eq!(refused(&mut stage, migrate("n1")), "not_believed");
    let scale = OperatorCommand::Scale {
        service: service_id("s1"),
        replicas: 3,
        node: Some("n1".parse().expect("an ID")),
    };
    assert_eq!(refused(&mut stage, scale), "not_believed");
    stage.n1_silent = false;
    stage.pass(1_000, 20);
    stage.brain.operator(at(stage.ms), "ops", migrate("n1")).expect("heard again");
}

fn cancel(service: Option<&str>, node: Option<&str>, action: Option<&str>) -> OperatorCommand {
    OperatorCommand::Cancel {
        service: service.map(service_id),
        node: node.map(|id| id.parse().expect("an ID")),
        action: action.map(Into::into),
    }
}

#[test]
fn what_is_under_way_is_taken_back_by_service_node_or_token() {
    for by in ["service", "node", "action"] {
        let mut stage = hot();
        let token = stage.entries.iter().find_map(|entry| entry.action.clone()).expect("decided");
        let command = match by {
            "service" => cancel(Some("s1"), None, None),
            "node" => cancel(None, Some("n2"), None),
            _ => cancel(None, None, Some(&token)),
        };
        let accepted = stage.brain.operator(at(stage.ms), "ops", command.clone()).expect("taken");
        assert_eq!(accepted.action.as_ref(), Some(&token));
        stage.drain();
        stage.pass(10_000, 20);
        let undone = stage.entries.iter().find(|entry| entry.code == "undone").expect("undone");
        assert!(undone.text.starts_with("cancelled") && undone.text.contains("ops"), "{}", undone.text);
        assert_eq!(refused(&mut stage, command), "nothing_under_way");
    }
}

#[test]
fn an_action_is_taken_back_also_where_its_lease_is_only_being_taken() {
    let mut stage = Stage::new(replicated("s1", 2), settings());
    stage.pass(2_000, 20);
    let migrate = OperatorCommand::Migrate {
        service: service_id("s1"),
        source: Some("n2".parse().expect("an ID")),
        target: None,
    };
    let begun = stage.brain.operator(at(stage.ms), "ops", migrate).expect("taken");
    let command = cancel(None, None, begun.action.as_deref());
    stage.brain.operator(at(stage.ms), "ops", command).expect("taken");
    stage.drain();
    stage.pass(10_000, 20);
    assert!(stage.codes(Kind::Action).contains(&"undone"), "{:?}", stage.entries);
    assert!(!stage.codes(Kind::Action).contains(&"source_paused"), "{:?}", stage.entries);
}

#[test]
fn a_cancel_names_one_thing_and_comes_in_time() {
    let mut stage = hot();
    assert_eq!(refused(&mut stage, cancel(None, None, None)), "which_action");
    assert_eq!(refused(&mut stage, cancel(Some("s1"), Some("n2"), None)), "which_action");
    assert_eq!(refused(&mut stage, cancel(None, None, Some("no-such-token"))), "nothing_under_way");
    let record = stage.world.swarm.records.get_mut("swarmguard-act-s1").expect("under way");
    record.labels.insert("swarmguard.state".into(), "closing".into());
    record.version += 1_000;
    stage.refuses = true;
    stage.ms += 250;
    stage.snapshot();
    assert_eq!(refused(&mut stage, cancel(Some("s1"), None, None)), "too_late");
}

#[test]
fn a_record_that_appears_after_its_order_was_given_up_is_removed_and_not_stepped() {
    let mut stage = Stage::new(replicated("s1", 2), settings());
    stage.pass(1_000, 20);
    // The engine takes the order and says nothing for a long time.
    stage.hangs = true;
    let by_hand = OperatorCommand::Scale { service: service_id("s1"), replicas: 3, node: None };
    stage.brain.operator(at(stage.ms), "ops", by_hand).expect("taken");
    stage.pass(15_000, 20);
    assert!(stage.codes(Kind::Refusal).contains(&"lease_not_taken"), "{:?}", stage.entries);
    assert!(stage.world.swarm.records.is_empty());
    stage.hangs = false;
    let late = stage.late.remove(0);
    assert_eq!(stage.carry_out(&late), Ok(()), "45 s later the engine does it");
    stage.commands.clear();
    stage.pass(10_000, 20);
    let removed = |command: &Command| matches!(command, Command::RemoveRecord { .. });
    assert!(stage.commands.iter().all(removed) && stage.commands.len() == 1, "{:?}", stage.commands);
    assert!(stage.world.swarm.records.is_empty());
    assert!(stage.codes(Kind::Notice).contains(&"late_answer"), "{:?}", stage.entries);
}

#[test]
fn an_alert_that_flutters_takes_at_most_two_rows_in_ten_seconds() {
    let mut stage = Stage::new(replicated("s1", 2), settings());
    stage.pass(1_000, 20);
    for _ in 0..500 {
        stage.alert(Edge::Raise);
        stage.alert(Edge::Clear);
    }
    stage.drain();
    let rows = stage.codes(Kind::Alert);
    assert!((1..=2).contains(&rows.len()), "{rows:?}");
}
