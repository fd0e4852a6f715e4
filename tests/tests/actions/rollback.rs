//! `docker service rollback` and SwarmGuard's own writes: what the operator means is done, however many of ours came in
//! between.

use serde_json::{Value, json};
use swarmguard_core::action::{self, Intent, Outcome, spec};
use swarmguard_tests::swarm_model::Workload;

use super::stage::{Fault, Meddling, Stage};

/// A service whose operator set `V=1` and then `V=2`.
fn stage(seed: u64) -> Stage {
    let mut stage = Stage::new(seed, 4, 2, Workload::default());
    for version in ["1", "2"] {
        let change = |spec: &mut Value| {
            spec["TaskTemplate"]["ContainerSpec"]["Env"] = json!([format!("V={version}")]);
        };
        stage.model.operator_update(&stage.service.clone(), change).expect("current version");
        stage.pass(20_000);
    }
    stage.renew();
    stage
}

fn env(spec: &Value) -> &Value {
    &spec["TaskTemplate"]["ContainerSpec"]["Env"][0]
}

/// Moves of ours, each with two or three writes of the service: one, two and seven actions in between.
#[test]
fn a_rollback_after_our_own_writes_is_understood_and_carried_out() {
    for moves in [1, 2, 7] {
        let mut stage = stage(moves);
        for _ in 0..moves {
            stage.renew();
            let ending = stage.run(stage.migrate(), usize::MAX, Fault::None);
            assert_eq!(ending.outcome, Some(Outcome::Done), "{moves} moves: {:?}", stage.codes);
        }
        let service = stage.service.clone();
        let story = format!("{moves} moves");
        assert!(!stage.is_rollback_owed(), "{story}: nobody asked yet");
        stage.model.operator_rollback(&service).expect("there is a previous spec");
        stage.pass(1_000);
        assert_eq!(
            env(&stage.model.services[&service].spec),
            "V=2",
            "{story}: Swarm goes back to our own write"
        );
        assert!(stage.is_rollback_owed(), "{story}");
        let ending = stage.run(Intent::Rollback { service: service.clone() }, usize::MAX, Fault::None);
        stage.pass(30_000);
        assert_eq!(ending.outcome, Some(Outcome::Done), "{story}");
        let found = &stage.model.services[&service];
        assert_eq!(env(&found.spec), "V=1", "{story}");
        assert_eq!(
            found.previous_spec.as_ref().map(env),
            Some(&json!("V=2")),
            "{story}: as after any rollback"
        );
        assert!(!stage.is_rollback_owed(), "{story}: it is done");
        assert!(stage.model.configs.is_empty(), "{story}: {:?}", stage.model.configs);
    }
}

#[test]
fn a_rollback_in_the_middle_of_an_action_is_carried_out_after_it() {
    for at in 0..12 {
        let mut stage = stage(at as u64);
        let ending = stage.run(stage.migrate(), at, Fault::Operator(Meddling::Rollback));
        let service = stage.service.clone();
        stage.pass(20_000);
        let story = format!("at {at}: {:?} {:?}", ending.outcome, stage.codes);
        if stage.is_rollback_owed() {
            let ending = stage.run(Intent::Rollback { service: service.clone() }, usize::MAX, Fault::None);
            assert_eq!(ending.outcome, Some(Outcome::Done), "{story}");
            stage.pass(30_000);
        }
        if at < ending.commands {
            assert_eq!(env(&stage.model.services[&service].spec), "V=1", "{story}");
        }
        assert!(!stage.is_rollback_owed(), "{story}");
        assert!(!spec::is_marked(&stage.model.services[&service].spec), "{story}");
    }
}

#[test]
fn what_was_kept_goes_with_the_operators_next_change() {
    let mut stage = stage(3);
    let ending = stage.run(stage.migrate(), usize::MAX, Fault::None);
    assert_eq!(ending.outcome, Some(Outcome::Done));
    let kept: Vec<&str> = stage.model.configs.values().map(|config| config.name.as_str()).collect();
    assert_eq!(kept, [action::previous_name(&stage.service)]);
    let service = stage.service.clone();
    stage
        .model
        .operator_update(&service, |spec| spec["Labels"]["note"] = json!("x"))
        .expect("current version");
    stage.watch();
    assert!(stage.model.configs.is_empty(), "{:?}", stage.model.configs);
}
