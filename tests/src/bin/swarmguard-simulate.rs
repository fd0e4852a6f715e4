//! Runs simulated clusters by seed, in parallel, and says which seeds fail.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
};

use clap::Parser;
use swarmguard_tests::simulation::{self, Outcome};

/// Whole clusters with faults in simulated time. A failing seed repeats exactly.
#[derive(Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Tell everything that happens; for one seed.
    #[arg(long)]
    verbose: bool,
    /// Failing seeds to show before giving up.
    #[arg(long, default_value_t = 5)]
    most_failures: usize,
    /// Over real QUIC on a simulated network instead of a model of messages.
    #[cfg(feature = "quic")]
    #[arg(long)]
    quic: bool,
}

impl Arguments {
    fn run(&self, seed: u64) -> Outcome {
        #[cfg(feature = "quic")]
        if self.quic {
            return simulation::quic::run(seed, self.verbose);
        }
        simulation::run(seed, self.verbose)
    }

    fn again(&self, seed: u64) -> String {
        #[cfg(feature = "quic")]
        let quic = if self.quic { " --quic" } else { "" };
        #[cfg(not(feature = "quic"))]
        let quic = "";
        format!("swarmguard-simulate{quic} --from {seed} --seeds 1 --verbose")
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcomes = run_all(&arguments);
    let mut begun: BTreeMap<String, u64> = BTreeMap::new();
    for outcome in &outcomes {
        for (kind, count) in &outcome.actions {
            *begun.entry(kind.clone()).or_default() += count;
        }
        for line in &outcome.story {
            println!("{line}");
        }
    }
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.failures.is_empty()).collect();
    for outcome in failed.iter().take(arguments.most_failures) {
        println!("seed {} FAILED ({:?})", outcome.seed, outcome.scenario);
        for failure in &outcome.failures {
            println!("  {failure}");
        }
        println!("  again: {}", arguments.again(outcome.seed));
    }
    println!("counts: {begun:?}");
    println!("{} passed, {} failed", outcomes.len() - failed.len(), failed.len());
    if failed.is_empty() && !outcomes.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_all(arguments: &Arguments) -> Vec<Outcome> {
    let next = AtomicU64::new(arguments.from);
    let end = arguments.from.saturating_add(arguments.seeds);
    let work = || {
        let mut done = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return done;
            }
            done.push(arguments.run(seed));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}
