//! The table of scores, the rows of figures, and the check of bounds.

use swarmguard_gym::{
    Policy, Run,
    scenario::{Goal, Scenario},
    score::Score,
};
use swarmguard_tests::figures::{Report, Row, median};

use crate::Runs;

pub fn heading() {
    println!(
        "{:<28} {:<12} {:>8} {:>6} {:>6} {:>8} {:>9} {:>8} {:>6}",
        "scenario", "policy", "late %", "cost", "act/h", "useless", "relief s", "node %", "kills"
    );
}

fn middle(runs: &[Run], of: impl Fn(&Score) -> f64) -> f64 {
    median(&runs.iter().map(|run| of(&run.score)).collect::<Vec<_>>())
}

pub fn scenario(scenario: &Scenario, policies: &[Policy], runs: &Runs) {
    for (index, policy) in policies.iter().enumerate() {
        let Some(runs) = runs.get(policy) else { continue };
        println!(
            "{:<28} {:<12} {:>8.2} {:>6.2} {:>6.1} {:>8.1} {:>9.0} {:>8.0} {:>6.0}",
            if index == 0 { scenario.name.as_str() } else { "" },
            policy.word(),
            middle(runs, |score| score.late_percent),
            middle(runs, |score| score.cost),
            middle(runs, |score| score.actions_per_hour),
            middle(runs, |score| score.useless_per_hour),
            middle(runs, |score| score.relief_s),
            middle(runs, |score| score.worst_node_percent),
            middle(runs, |score| score.kills),
        );
    }
}

/// The median of what a bound is about.
fn median_of(goal: &Goal, runs: &[Run]) -> f64 {
    middle(runs, |score| score.of(goal.bound))
}

/// Says which bounds SwarmGuard misses; answers how many of them are not known to be missed.
pub fn goals(scenario: &Scenario, runs: &Runs) -> usize {
    let Some(runs) = runs.get(&Policy::SwarmGuard) else { return 0 };
    let mut missed = 0;
    for goal in &scenario.goals {
        let value = median_of(goal, runs);
        match (goal.holds(value), scenario.known_misses.get(&goal.key)) {
            (true, None) => {}
            (true, Some(_)) => {
                println!("    bound {} holds now ({value:.2}): take it out of [known_misses]", goal.key);
            }
            (false, Some(why)) => {
                println!("    bound {} = {} is missed ({value:.2}), known: {why}", goal.key, goal.value);
            }
            (false, None) => {
                println!("    bound {} = {} is missed ({value:.2})", goal.key, goal.value);
                missed += 1;
            }
        }
    }
    missed
}

/// Name, unit, what is aimed at, and which score.
type Figure = (&'static str, &'static str, &'static str, fn(&Score) -> f64);

/// Figures of SwarmGuard beside the best peer's.
pub fn rows(scenario: &Scenario, policies: &[Policy], runs: &Runs, report: &mut Report) {
    let Some(own) = runs.get(&Policy::SwarmGuard) else { return };
    let figures: [Figure; 6] = [
        ("late_percent", "%", "<= best peer", |score| score.late_percent),
        ("cost", "x oracle", "<= hpa", |score| score.cost),
        ("actions_per_hour", "1/h", "", |score| score.actions_per_hour),
        ("useless_per_hour", "1/h", "<= 1", |score| score.useless_per_hour),
        ("relief_s", "s", "", |score| score.relief_s),
        ("worst_node_percent", "%", "", |score| score.worst_node_percent),
    ];
    for (name, unit, target, of) in figures {
        let all = |runs: &[Run]| runs.iter().map(|run| of(&run.score)).collect::<Vec<_>>();
        let row = Row::of(&format!("judge.{}.{name}", scenario.name), unit, target, &all(own));
        let peers = policies.iter().filter(|policy| **policy != Policy::SwarmGuard);
        let best = peers
            .filter_map(|policy| Some((policy.word(), all(runs.get(policy)?))))
            .filter(|(word, _)| name != "cost" || *word == "hpa")
            .min_by(|a, b| median(&a.1).total_cmp(&median(&b.1)));
        report.add(match best {
            Some((peer, theirs)) => row.beside(peer, &theirs),
            None => row,
        });
    }
}
