//! What a run is worth: tests.

use std::sync::Arc;

use super::*;
use crate::world::{Policy, play};

fn parse(text: &str) -> Arc<Scenario> {
    Arc::new(Scenario::parse("test", "test.toml", text).expect("it is right"))
}

#[test]
fn a_service_with_room_scores_full_marks_with_nobody_deciding() {
    let calm = parse(
        "length = \"3m\"\n[[nodes]]\ncount = 2\n[[services]]\nname = \"web\"\nreplicas = 2\ncpu_time = \"10ms\"\n\
         demand = [{ level = 50 }]\n",
    );
    let score = play(&calm, Policy::Nothing, 1).score;
    assert_eq!((score.late_percent, score.relief_s, score.actions, score.kills), (0.0, 0.0, 0.0, 0.0));
    assert!((score.cost - 1.0).abs() < 0.02, "{}", score.cost);
}

#[test]
fn the_oracle_has_as_many_replicas_as_the_demand_needs_in_time() {
    let step = parse(
        "length = \"2m\"\njitter = 0\n[[nodes]]\ncount = 4\n[[services]]\nname = \"web\"\nreplicas = 1\ncpus = 1\n\
         healthy = \"5s\"\ncpu_time = \"10ms\"\nlabels = { \"swarmguard.enable\" = \"true\", \"swarmguard.scale.min\" = \
         \"1\", \"swarmguard.scale.max\" = \"8\" }\ndemand = [{ level = 50 }, { shape = \"step\", level = 170, start = \
         \"60s\" }]\n",
    );
    let run = play(&step, Policy::Nothing, 1);
    assert_eq!(run.oracle[0][30], 1, "half a CPU");
    assert_eq!(run.oracle[0][58], 3, "2.2 CPUs at 75 %, a start ahead");
    assert!(run.score.relief_s > 50.0, "nobody helps: {}", run.score.relief_s);
    assert!(run.score.late_percent > 40.0, "{}", run.score.late_percent);
}

#[test]
fn a_peer_that_scales_is_scored_for_it() {
    let step = parse(
        "length = \"6m\"\njitter = 0\n[[nodes]]\ncount = 4\n[[services]]\nname = \"web\"\nreplicas = 2\ncpus = 1\n\
         cpu_time = \"10ms\"\nlabels = { \"swarmguard.enable\" = \"true\", \"swarmguard.scale.min\" = \"2\", \
         \"swarmguard.scale.max\" = \"8\" }\ndemand = [{ level = 100 }, { shape = \"step\", level = 200, start = \"60s\" }]\n",
    );
    let run = play(&step, Policy::Hpa, 1);
    let outs = run.acts.all.iter().filter(|act| act.kind == Kind::Out).count();
    assert!(outs >= 1, "{:?}", run.acts.all);
    assert_eq!(run.score.useless_per_hour, 0.0, "{:?}", run.acts.all);
    assert!((4.0..=5.0).contains(&run.score.end_replicas[0]), "3 CPUs at 75 %: {:?}", run.score.end_replicas);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let noisy = parse(
        "length = \"2m\"\n[[nodes]]\ncount = 3\n[[services]]\nname = \"web\"\nreplicas = 2\ncpus = 1\ncpu_time = \"10ms\"\n\
         labels = { \"swarmguard.enable\" = \"true\", \"swarmguard.scale.min\" = \"1\", \"swarmguard.scale.max\" = \"6\" }\n\
         demand = [{ level = 250 }]\n",
    );
    for policy in Policy::ALL {
        let told = |run: crate::world::Run| format!("{:?} {:?}", run.score, run.acts.all);
        assert_eq!(told(play(&noisy, policy, 3)), told(play(&noisy, policy, 3)), "{policy:?}");
    }
}
