//! The Swarm tier: what must be true on three real nodes, one scenario after the other.
//!
//! Not `#[test]` functions: they share one cluster and must not run side by side, they need root and minutes, and each
//! is to be named with its time, also when somebody runs one of them on a cluster of their own.

mod changes;
mod kill;
mod moves;
mod operator;
mod refusals;

use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::LocalBoxFuture;
use swarmguard_runtime::clock::now;

use super::gossip::{self, LostByEngines};
use super::heat::{self, HEAT};
use super::stage::{InVain, Stage};
use super::trial::{Trial, nothing_failed};

/// Requests a second during a scenario: an emulated node can answer no more beside all else that it does.
const RATE_HZ: f64 = 10.0;
/// Longest wait for the journal to say something, once a replica is hot.
const SAYS: Duration = Duration::from_secs(120);
/// Longest wait for a whole migration.
const MOVES: Duration = Duration::from_secs(300);
/// Longest wait until nothing is left behind.
const SETTLES: Duration = Duration::from_secs(180);

/// One scenario.
struct Scenario {
    name: &'static str,
    play: for<'a> fn(&'a Stage, u16) -> LocalBoxFuture<'a, Result<()>>,
}

const SCENARIOS: &[Scenario] = &[
    Scenario { name: "migration", play: |stage, port| Box::pin(moves::one_replica(stage, port)) },
    Scenario { name: "several-replicas", play: |stage, port| Box::pin(moves::several_replicas(stage, port)) },
    Scenario { name: "two-on-one-node", play: |stage, port| Box::pin(moves::two_on_one_node(stage, port)) },
    Scenario { name: "slow-start", play: |stage, port| Box::pin(moves::slow_start(stage, port)) },
    Scenario { name: "observe", play: |stage, port| Box::pin(refusals::observe(stage, port)) },
    Scenario { name: "no-healthcheck", play: |stage, port| Box::pin(refusals::no_healthcheck(stage, port)) },
    Scenario { name: "stale-alert", play: |stage, port| Box::pin(refusals::stale_alert(stage, port)) },
    Scenario { name: "scale", play: |stage, port| Box::pin(changes::scales_both_ways(stage, port)) },
    Scenario { name: "drain", play: |stage, port| Box::pin(changes::drains_and_returns(stage, port)) },
    Scenario { name: "killed-leased", play: |stage, port| Box::pin(kill::at(stage, port, "leased")) },
    Scenario { name: "killed-surging", play: |stage, port| Box::pin(kill::at(stage, port, "surging")) },
    Scenario { name: "killed-marking", play: |stage, port| Box::pin(kill::at(stage, port, "marking")) },
    Scenario { name: "killed-draining", play: |stage, port| Box::pin(kill::at(stage, port, "draining")) },
    Scenario { name: "killed-over", play: |stage, port| Box::pin(kill::at(stage, port, "over")) },
];

/// The one that ends with SwarmGuard removed, and so is played after all others.
const OPERATOR: &str = "operator";

/// Plays the scenarios named in `only` (all where it is empty) and prints a line for each. Returns how many passed and
/// how many failed.
///
/// # Errors
/// Where a name is unknown or the stage is not fit to play on.
pub async fn play(stage: &Stage, only: &[String]) -> Result<(u32, u32)> {
    let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).chain([OPERATOR]).collect();
    if let Some(unknown) = only.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("no scenario is called {unknown}, allowed: {}", names.join(", "));
    }
    stage.ready(Duration::from_secs(180)).await?;
    let engine = stage.cluster.swarm().version().await?;
    let (mut passed, mut failed) = (0, 0);
    // A port of its own for each, so that nothing of the one before is in the way.
    for (port, scenario) in (31_000_u16..).zip(SCENARIOS) {
        if !only.is_empty() && !only.iter().any(|name| name == scenario.name) {
            continue;
        }
        // Also what an interrupted run has left.
        clean(stage, scenario.name).await?;
        let start = now();
        let mut outcome = (scenario.play)(stage, port).await;
        // Emulated nodes starve where the machine has other things to do: what came too late, and requests that the
        // engines' own logs say they lost, are tried once more. Another lost request, a wrong move or anything left behind
        // is not.
        if let Err(error) = &outcome
            && (error.is::<InVain>() || error.is::<LostByEngines>())
        {
            println!("swarm {engine}: {} once more, because: {error:#}", scenario.name);
            clean(stage, scenario.name).await?;
            outcome = (scenario.play)(stage, port).await;
        }
        let seconds = (now() - start).as_secs_f64();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("swarm {engine}: {} ok ({seconds:.1} s)", scenario.name);
            }
            Err(error) => {
                failed += 1;
                println!("swarm {engine}: {} FAILED ({seconds:.1} s)\n{error:#}", scenario.name);
            }
        }
        clean(stage, scenario.name).await?;
    }
    if only.is_empty() || only.iter().any(|name| name == OPERATOR) {
        let start = now();
        let outcome = operator::whole_life(stage).await;
        let seconds = (now() - start).as_secs_f64();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("swarm {engine}: {OPERATOR} ok ({seconds:.1} s)");
            }
            Err(error) => {
                failed += 1;
                println!("swarm {engine}: {OPERATOR} FAILED ({seconds:.1} s)\n{error:#}");
            }
        }
    }
    Ok((passed, failed))
}

/// Removes what a scenario left, also a failed one, so that the next one starts on a calm swarm.
async fn clean(stage: &Stage, name: &str) -> Result<()> {
    let swarm = stage.cluster.swarm();
    if let Ok(service) = swarm.service_by_name(name).await
        && let Some(id) = service["ID"].as_str()
    {
        swarm.delete(&format!("/services/{id}")).await?;
    }
    for node in &stage.cluster.nodes {
        heat::leave(node).await?;
    }
    refusals::set_observe(stage, false).await?;
    stage.ready(Duration::from_secs(120)).await
}

/// Ends a trial that must not have lost a request.
async fn end(trial: Trial<'_>) -> Result<()> {
    let (picture, stage) = (trial.picture(), trial.stage);
    let stats = trial.end().await?;
    let Err(error) = nothing_failed(&stats) else { return Ok(()) };
    match gossip::explanation(&stage.cluster, &stats)? {
        Some(lost) => Err(error.context(lost)),
        None => Err(error.context(picture)),
    }
}
