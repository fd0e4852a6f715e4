//! The demo: one replica made hot, and what SwarmGuard does about it, told as it happens.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use swarmguard_common::time::Time;
use swarmguard_runtime::clock::now;

use super::heat;
use super::report::{self, Real, Report};
use super::stage::{Front, Stage, until};
use super::trial::{Move, Trial};
use crate::api::{is_about, line};
use crate::tasks::{Seen, Tasks};

/// What the demo is told.
#[derive(Clone, Debug)]
pub struct Demo<'a> {
    /// The workload's service, deployed already.
    pub service: &'a str,
    /// Its published port.
    pub port: u16,
    /// Requests a second.
    pub rate_hz: f64,
    /// What the replica is told.
    pub heat: &'a str,
    /// What the nodes are, for the report.
    pub nodes_are: &'a str,
    /// How the programs were built, for the report.
    pub programs: &'a str,
    /// Where the report goes.
    pub report: &'a Path,
    /// How long the whole repair may take before the demo gives up.
    pub limit: Duration,
}

impl Demo<'_> {
    /// Plays it; true where the replica moved, nothing failed, and spec and availability are as before.
    ///
    /// # Errors
    /// Where the stage does not come up at all; a failed repair is a report, not an error.
    pub async fn play(&self, stage: &Stage) -> Result<bool> {
        say("waiting until the coordinator hears every agent");
        stage.ready(Duration::from_secs(180)).await?;
        say("waiting until the workload serves wherever requests come in");
        let trial = Trial::adopt(stage, self.service, self.port, self.rate_hz).await?;
        let before = trial.watcher.tasks();
        let (victim_id, victim) = stage.victim(&before)?;
        let source = stage.cluster.name(&victim.node).to_owned();
        say(&format!("traffic: {} requests a second, each failure counted", self.rate_hz));
        let mut narrator = Narrator::default();
        narrator.listen(&trial, Duration::from_secs(4), || false).await;
        say(&format!("a neighbour begins to use {source}"));
        heat::crowd(stage, &victim.node).await?;
        say(&format!("heating the replica on {source}: {}", self.heat));
        let heated = trial.heat(&victim, self.heat).await?;
        let gone = || told_to_stop(&trial, &victim_id);
        narrator.listen(&trial, self.limit, gone).await;
        let moved = trial.moved(&victim_id, Duration::from_secs(30)).await;
        // The old replica drains, the pause ends, the last write is made; requests go on throughout.
        let settled = trial.settled(Duration::from_secs(60)).await;
        let ended = || trial.watcher.tasks().get(&victim_id).is_some_and(|task| task.ended.is_some());
        narrator.listen(&trial, Duration::from_secs(30), ended).await;
        narrator.listen(&trial, Duration::from_secs(3), || false).await;
        for problem in [moved.as_ref().err(), settled.as_ref().err()].into_iter().flatten() {
            say(&format!("{problem:#}"));
        }
        self.conclude(trial, heated, &victim, moved.ok(), settled.is_ok()).await
    }

    async fn conclude(
        &self,
        trial: Trial<'_>,
        heated: Time,
        victim: &Seen,
        moved: Option<Move>,
        settled: bool,
    ) -> Result<bool> {
        let stage = trial.stage;
        let first = trial.first_sample(heated);
        let decision = trial.decision(heated);
        let between = |from: Option<Time>, to: Option<Time>| {
            let ms = (to? - from?).as_millis();
            u64::try_from(ms).ok()
        };
        let first_at = first.as_ref().map(|(at, _)| *at);
        let alert_at = first.as_ref().map(|(_, alert)| trial.time_of(&alert.entry));
        let decided_at = decision.as_ref().map(|heard| trial.time_of(&heard.entry));
        let after = stage.cluster.swarm().service_spec(&trial.service).await?;
        let availability = stage.cluster.availability(&victim.node).await?;
        let replicas =
            |spec: &serde_json::Value| spec["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(0);
        let placement = |spec: &serde_json::Value| spec["TaskTemplate"]["Placement"].clone();
        let (before, journal) = (trial.spec.clone(), trial.journal.entries(0));
        if let Some(node) = stage.cluster.node(&victim.node) {
            heat::leave(node).await?;
        }
        let stats = trial.load.finish().await;
        let report = Report {
            scenario: "migration".to_owned(),
            engine_version: stage.cluster.swarm().version().await?,
            nodes: stage.cluster.nodes.len(),
            real: Real {
                nodes: self.nodes_are.to_owned(),
                requests: match &stage.front {
                    Front::Mesh => "through Swarm's routing mesh".to_owned(),
                    Front::Balancers { targets, .. } => {
                        format!("through {} SwarmGuard balancers on their nodes' own ports", targets.len())
                    }
                },
                programs: self.programs.to_owned(),
            },
            requests_sent: stats.sent,
            requests_failed: stats.failed,
            detect_ms: between(first_at, alert_at),
            decide_ms: between(alert_at, decided_at),
            repaired_ms: between(first_at, moved.as_ref().map(|moved| moved.done)),
            overlap_ms: moved.as_ref().map(|moved| moved.overlap_ms),
            source: Some(stage.cluster.name(&victim.node).to_owned()),
            target: moved.as_ref().map(|moved| stage.cluster.name(&moved.new.node).to_owned()),
            replicas_before: replicas(&before),
            replicas_after: replicas(&after),
            placement_before: placement(&before),
            placement_after: placement(&after),
            availability_after: Some(availability),
            journal: journal.into_iter().map(|heard| heard.entry).collect(),
        };
        report::write(self.report, &report)?;
        println!("\n{}", report.text());
        if let Some((p50, p99)) = stats.latency(0.5).zip(stats.latency(0.99)) {
            println!("  latency       half within {p50:?}, 99 % within {p99:?}");
        }
        for failure in stats.failures.iter().take(10) {
            println!("  failed        {} {} {}", failure.at_ms, failure.target, failure.cause);
        }
        println!("  report        {}", self.report.display());
        Ok(moved.is_some() && settled && stats.failed == 0 && stats.succeeded > 0)
    }
}

fn told_to_stop(trial: &Trial<'_>, task: &str) -> bool {
    trial.watcher.tasks().get(task).is_some_and(|task| task.told_to_stop.is_some())
}

/// One line of narration.
pub fn say(text: &str) {
    println!("demo: {text}");
}

/// Prints what is new: journal entries, changes of tasks, and now and then the traffic.
#[derive(Debug, Default)]
struct Narrator {
    entries: usize,
    tasks: Tasks,
}

impl Narrator {
    /// Listens until `done` or `limit`.
    async fn listen(&mut self, trial: &Trial<'_>, limit: Duration, done: impl Fn() -> bool) {
        let mut next_traffic = now() + Duration::from_secs(3);
        let watch = async {
            loop {
                self.print(trial);
                if now() >= next_traffic {
                    next_traffic = now() + Duration::from_secs(5);
                    let stats = trial.load.stats();
                    say(&format!("traffic: {} sent, {} failed", stats.sent, stats.failed));
                }
                if done() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        // Running out of time is judged by who asked.
        let _ = tokio::time::timeout(limit, watch).await;
    }

    fn print(&mut self, trial: &Trial<'_>) {
        let news = trial.journal.entries(self.entries);
        self.entries += news.len();
        // A busy node stalls its tasks on and off; the story is told by thresholds, decisions and steps.
        let news: Vec<_> =
            news.into_iter().filter(|heard| !heard.entry.code.starts_with("stalled")).collect();
        for heard in news
            .iter()
            .filter(|heard| heard.entry.service.is_none() || is_about(&heard.entry, &trial.service))
        {
            println!("  {}", line(&heard.entry));
        }
        let tasks = trial.watcher.tasks();
        for (id, task) in &tasks {
            let old = self.tasks.get(id);
            if old.is_none_or(|old| (&old.state, &old.desired) != (&task.state, &task.desired)) {
                let node = trial.stage.cluster.name(&task.node);
                let node = if node.is_empty() { "no node yet" } else { node };
                println!(
                    "  task {} slot {} on {node}: {} (desired {})",
                    &id[..id.len().min(6)],
                    task.slot,
                    task.state,
                    task.desired
                );
            }
        }
        self.tasks = tasks;
    }
}

/// Waits for the workload before the demo, so that a slow start is told as such.
///
/// # Errors
/// After three minutes.
pub async fn workload(stage: &Stage, service: &str) -> Result<()> {
    until("the workload is known", Duration::from_secs(180), || async {
        Ok(stage.cluster.swarm().service_by_name(service).await.is_ok())
    })
    .await
}
