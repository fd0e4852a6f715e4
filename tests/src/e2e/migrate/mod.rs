//! `bench migrate`: migrations one after another under load, each beside what the image itself took, and now and then the
//! same surge by bare API calls; then replicas that get hot, until one more of them runs.
//!
//! The coordinator, the agents and the balancers are the real ones, as deployed by stack files. Migrations are ordered by
//! the operator's API, which passes over cooldowns and thresholds and nothing else.

mod moves;
mod rig;
mod scale;
mod surge;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use self::moves::Move;
use self::rig::Rig;
use super::report;
use super::stage::Stage;
use crate::figures::{Report, Row, float};
use crate::load::Stats;

/// How to repeat it.
const COMMAND: &str = "cargo xtask bench migrate --json";
/// Peer of the rows.
const SURGE: &str = "bare API surge";
/// How long anything may take to start.
const START: Duration = Duration::from_secs(120);
/// How long one action may take.
const ACTION: Duration = Duration::from_secs(120);

/// What is measured, and on what.
#[derive(Clone, Debug)]
pub struct Migrate<'a> {
    /// The balancer's service, deployed already.
    pub balancer: &'a str,
    /// Overlay network that the balancers are on.
    pub network: &'a str,
    /// The balancers' port on their nodes.
    pub port: u16,
    /// Migrations.
    pub migrations: u32,
    /// After every so many migrations one surge by bare API calls; 0 for none.
    pub surge_every: u32,
    /// Replicas made hot, one after another.
    pub scales: u32,
    /// Requests a second.
    pub rate_hz: f64,
    /// The operator's token for commands.
    pub token: &'a str,
    /// Where rows go as JSON.
    pub json: Option<&'a Path>,
}

/// Everything that was seen, for whoever looks into an outlier: `<json>-runs.json`.
#[derive(Debug, Default, Serialize)]
struct Runs {
    moves: Vec<Move>,
    surges: Vec<surge::Surge>,
    scales: Vec<scale::Scale>,
    /// Requests while SwarmGuard moved replicas.
    requests: u64,
    failed: u64,
    /// Requests while replicas were moved by bare calls.
    surge_requests: u64,
    surge_failed: u64,
    first_failures: Vec<String>,
    /// Orders that were not carried out, and why.
    problems: Vec<String>,
}

impl Migrate<'_> {
    /// Measures and prints; true where every order was carried out and no request failed meanwhile.
    ///
    /// # Errors
    /// Where the stage does not come up, or a file cannot be written.
    pub async fn play(&self, stage: &Stage) -> Result<bool> {
        say("waiting until the coordinator hears every agent");
        stage.ready(START).await?;
        let mut runs = Runs::default();
        if self.migrations > 0 {
            self.move_back_and_forth(stage, &mut runs).await?;
        }
        if self.scales > 0 {
            let measured = scale::measure(self, stage, &mut runs.scales).await;
            runs.problems.extend(measured.err().map(|error| format!("scale-out: {error:#}")));
        }
        let mut figures = Report::new(COMMAND);
        runs.rows().into_iter().for_each(|row| figures.add(row));
        print!("{figures}");
        for line in runs.first_failures.iter().chain(&runs.problems) {
            println!("{line}");
        }
        if let Some(path) = self.json {
            figures.write(path)?;
            report::write(&path.with_file_name("migrate-runs.json"), &runs)?;
        }
        Ok(runs.failed == 0 && runs.problems.is_empty())
    }

    async fn move_back_and_forth(&self, stage: &Stage, runs: &mut Runs) -> Result<()> {
        let rig = Rig::build(self, stage).await?;
        for number in 1..=self.migrations {
            let before = rig.load.stats();
            match moves::one(&rig, number).await {
                Ok(one) => {
                    say(&format!("{number} of {}: {one}", self.migrations));
                    runs.moves.push(one);
                }
                Err(error) => {
                    say(&format!("{number} of {}: PROBLEM: {error:#}", self.migrations));
                    runs.problems.push(format!("migration {number}: {error:#}"));
                    ensure!(runs.problems.len() < 5, "five migrations failed: {}", runs.problems.join("; "));
                }
            }
            let surges = self.surge_every > 0 && number.is_multiple_of(self.surge_every);
            if surges {
                // Whose failure it is must be certain.
                rig.at_rest().await?;
            }
            let between = rig.load.stats();
            (runs.requests, runs.failed) = add((runs.requests, runs.failed), &before, &between);
            if surges {
                let one = surge::one(&rig).await?;
                say(&format!("    beside it, by bare calls: {one}"));
                runs.surges.push(one);
                rig.at_rest().await?;
                let after = rig.load.stats();
                (runs.surge_requests, runs.surge_failed) =
                    add((runs.surge_requests, runs.surge_failed), &between, &after);
            }
        }
        rig.at_rest().await.context("after the last migration")?;
        let stats = rig.end().await?;
        ensure!(stats.succeeded > 0, "no request was answered, so nothing is proven");
        let line = |failure: &crate::load::Failure| {
            format!("failed at {} on {}: {}", failure.at_ms, failure.target, failure.cause)
        };
        runs.first_failures = stats.failures.iter().take(10).map(line).collect();
        Ok(())
    }
}

fn add((sent, failed): (u64, u64), before: &Stats, after: &Stats) -> (u64, u64) {
    (sent + after.sent - before.sent, failed + after.failed - before.failed)
}

impl Runs {
    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        if !self.moves.is_empty() {
            self.move_rows(&mut rows);
        }
        if !self.scales.is_empty() {
            let figures: Vec<f64> = self.scales.iter().map(|one| one.less_act_after_ms).collect();
            rows.push(Row::of("scale.ms", "ms", "<= 2000", &figures));
            let figures: Vec<f64> = self.scales.iter().map(|one| one.from_load_ms).collect();
            rows.push(Row::of("scale.from_load_ms", "ms", "", &figures));
            let figures: Vec<f64> = self.scales.iter().map(|one| one.image_ms).collect();
            rows.push(Row::of("scale.image_ms", "ms", "", &figures));
        }
        rows
    }

    fn move_rows(&self, rows: &mut Vec<Row>) {
        let of = |figure: fn(&Move) -> f64| self.moves.iter().map(figure).collect::<Vec<f64>>();
        let theirs = |figure: fn(&surge::Surge) -> f64| self.surges.iter().map(figure).collect::<Vec<f64>>();
        let beside = |row: Row, peer: &[f64]| if peer.is_empty() { row } else { row.beside(SURGE, peer) };
        let overhead = theirs(|one| one.total_ms - one.image_ms);
        let row = Row::of("migrate.overhead_ms", "ms", "<= 1000", &of(Move::overhead_ms));
        rows.push(beside(row, &overhead));
        // What the settling time and the balancers' drain take is by design; what is left is ours.
        let row = Row::of("migrate.overhead_less_waits_ms", "ms", "", &of(Move::less_waits_ms));
        rows.push(beside(row, &overhead));
        let row = Row::of("migrate.total_ms", "ms", "", &of(|one| one.total_ms));
        rows.push(beside(row, &theirs(|one| one.total_ms)));
        let row = Row::of("migrate.image_ms", "ms", "", &of(|one| one.image_ms));
        rows.push(beside(row, &theirs(|one| one.image_ms)));
        for (index, (_, name)) in moves::PARTS.iter().enumerate() {
            let part: Vec<f64> = self.moves.iter().map(|one| one.parts_ms[index]).collect();
            rows.push(Row::of(&format!("migrate.part.{name}_ms"), "ms", "", &part));
        }
        let count = |number: u64| [float(usize::try_from(number).unwrap_or(usize::MAX))];
        let row = Row::of("migrate.failed", "requests", "0", &count(self.failed));
        let peer = if self.surges.is_empty() { Vec::new() } else { count(self.surge_failed).to_vec() };
        rows.push(beside(row, &peer));
        let row = Row::of("migrate.requests", "requests", "", &count(self.requests));
        let peer = if self.surges.is_empty() { Vec::new() } else { count(self.surge_requests).to_vec() };
        rows.push(beside(row, &peer));
        rows.push(Row::of("migrate.count", "moves", "300", &[float(self.moves.len())]));
    }
}

/// A line of progress.
fn say(text: &str) {
    println!("migrate: {text}");
}
