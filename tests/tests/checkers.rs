//! Every checker of the simulation can fail: the product broken in one place makes the one speak that is meant for it.

use swarmguard_tests::simulation::{self, Class, Pattern, Sabotage, Scenario};

/// Seeds that are tried for each sabotage, at most.
const SEEDS: u64 = 4_000;
/// Runs for each sabotage, at most.
const RUNS: usize = 60;

/// Whether a scenario has what the sabotage is about.
fn suits(sabotage: Sabotage, scenario: &Scenario) -> bool {
    let calm = scenario.class == Class::OwnFaults
        && scenario.trouble_every.is_none()
        && scenario.workload.failing_starts == 0;
    let hot = calm && scenario.pattern == Pattern::HotNode;
    let demand = calm && scenario.pattern == Pattern::Demand;
    match sabotage {
        // Only where operators order drains.
        Sabotage::NeverDrains => scenario.trouble_every.is_some(),
        // Only where replicas may die.
        Sabotage::NeverResumes => scenario.class == Class::Interference,
        Sabotage::Overshoots | Sabotage::NeverClears => hot || demand,
        Sabotage::Hasty => demand,
        _ => hot,
    }
}

#[test]
fn each_sabotage_is_noticed_by_the_checker_that_is_meant_for_it() {
    for (sabotage, words) in Sabotage::ALL {
        let seeds = (1..SEEDS).filter(|seed| suits(sabotage, &simulation::scenario(*seed)));
        let mut said = Vec::new();
        let noticed = seeds.take(RUNS).any(|seed| {
            let failures = simulation::run_sabotaged(seed, false, sabotage).failures;
            let heard = failures.iter().any(|failure| failure.contains(words));
            said.extend(failures);
            heard
        });
        assert!(
            noticed,
            "{sabotage:?}: nobody said {words:?}, but {:#?}",
            said.iter().take(5).collect::<Vec<_>>()
        );
    }
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let one = simulation::run(7, true);
    let two = simulation::run(7, true);
    assert!(one.story.len() > 20, "{:?}", one.story);
    assert_eq!(one.story, two.story);
}
