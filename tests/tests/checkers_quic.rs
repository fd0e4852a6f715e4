//! Every checker of the simulation over QUIC can fail, and a run is determined by its seed.
//!
//! Needs a tokio whose own chance can be seeded: `cargo xtask test --only simulation-quic` compiles it so.
#![cfg(all(feature = "quic", tokio_unstable))]

use swarmguard_tests::simulation::{Class, Pattern, Sabotage, Scenario, quic};

/// Seeds that are tried for each sabotage, at most.
const SEEDS: u64 = 4_000;
/// Runs for each sabotage, at most.
const RUNS: usize = 8;

/// Whether a scenario has what the sabotage is about.
fn suits(sabotage: Sabotage, scenario: &Scenario) -> bool {
    let hot = scenario.class == Class::OwnFaults
        && scenario.workload.failing_starts == 0
        && scenario.pattern == Pattern::HotNode;
    let calm = scenario.trouble_every.is_none();
    match sabotage {
        // Somebody must fall silent.
        Sabotage::RepeatsReports => scenario.class == Class::OwnFaults && !calm,
        _ => hot && calm,
    }
}

#[test]
fn each_sabotage_is_noticed_by_the_checker_that_is_meant_for_it() {
    for (sabotage, words) in Sabotage::OF_QUIC {
        let seeds = (1..SEEDS).filter(|seed| suits(sabotage, &quic::scenario(*seed)));
        let mut said = Vec::new();
        let noticed = seeds.take(RUNS).any(|seed| {
            let failures = quic::run_sabotaged(seed, false, sabotage).failures;
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

/// The story ends with a digest of every datagram: when it was sent, by whom, to whom, and what became of it.
#[test]
fn the_same_seed_sends_the_same_datagrams() {
    let troubled = |seed: &u64| {
        let scenario = quic::scenario(*seed);
        scenario.trouble_every.is_some() && scenario.managers == 3 && scenario.loss > 50
    };
    let seed = (1..SEEDS).find(troubled).expect("every other is");
    let one = quic::run(seed, true);
    let two = quic::run(seed, true);
    assert!(one.story.len() > 20, "{:?}", one.story);
    let differ = one.story.iter().zip(&two.story).find(|(one, two)| one != two);
    assert_eq!(differ, None, "seed {seed}");
    assert_eq!(one.story.len(), two.story.len());
}
