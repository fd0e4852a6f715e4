//! Every scenario of the judgement keeps its bounds with few seeds, as a median; what is known to be missed is missed, or
//! must be taken off that list.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use swarmguard_gym::{Policy, Run, play, scenario::Scenario};

/// More would tell little: a bound leaves room for chance.
const SEEDS: u64 = 1;

fn scenarios() -> Vec<Arc<Scenario>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/judgement");
    Scenario::load_all(&dir).expect("all of them are right").into_iter().map(Arc::new).collect()
}

#[test]
fn every_row_of_the_design_has_its_scenario() {
    let scenarios = scenarios();
    assert!(scenarios.len() >= 30, "{} scenarios", scenarios.len());
    let covered: Vec<&str> = scenarios.iter().flat_map(|it| it.covers.iter().map(String::as_str)).collect();
    let rows = (1..=15).map(|row| format!("row {row}")).chain((1..=11).map(|row| format!("J{row}")));
    let missing: Vec<String> = rows.filter(|row| !covered.contains(&row.as_str())).collect();
    assert!(missing.is_empty(), "no scenario covers {missing:?}");
    for scenario in &scenarios {
        assert!(!scenario.about.is_empty(), "{} says nothing about itself", scenario.name);
        assert!(!scenario.goals.is_empty(), "{} has no bounds", scenario.name);
    }
}

#[test]
fn bounds_are_kept() {
    let scenarios = scenarios();
    let next = AtomicUsize::new(0);
    let faults: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                while let Some(scenario) = scenarios.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = check(scenario);
                    faults.lock().expect("no other thread panicked").extend(found);
                }
            });
        }
    });
    let faults = faults.into_inner().expect("no thread panicked");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn check(scenario: &Arc<Scenario>) -> Vec<String> {
    let runs: Vec<Run> = (1..=SEEDS).map(|seed| play(scenario, Policy::SwarmGuard, seed)).collect();
    let mut faults = Vec::new();
    for run in &runs {
        faults.extend(run.violations.iter().map(|it| format!("{}: {it}", scenario.name)));
    }
    for goal in &scenario.goals {
        let scores: Vec<f64> = runs.iter().map(|run| run.score.of(goal.bound)).collect();
        let score = swarmguard_tests::figures::median(&scores);
        let fault = match (goal.holds(score), scenario.known_misses.contains_key(&goal.key)) {
            (true, true) => "is kept now: take it out of [known_misses]",
            (false, false) => "is missed",
            _ => continue,
        };
        faults.push(format!("{}: {} = {} {fault} ({score:.2})", scenario.name, goal.key, goal.value));
    }
    faults
}
