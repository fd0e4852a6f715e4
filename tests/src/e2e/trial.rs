//! One service under constant load, watched from all sides: requests, tasks, journal, spec and availability.
//!
//! The demo and every scenario of the Swarm tier are made of this, so that what the demo shows is what the tests prove.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use swarmguard_common::journal::{Entry, Kind};
use swarmguard_common::time::Time;
use swarmguard_runtime::clock::{now, wall_ms};

use super::heat;
use super::service::Web;
use super::stage::{Stage, until};
use crate::api::{Heard, Journal, is_about};
use crate::load::{Load, Plan, Stats};
use crate::tasks::{Seen, Watcher};

/// How long a service may take to be there at first, on slow machines too.
const START: Duration = Duration::from_secs(180);

/// A service and everything that watches it.
#[derive(Debug)]
pub struct Trial<'a> {
    /// Where it runs.
    pub stage: &'a Stage,
    /// The service's ID.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its published port.
    pub port: u16,
    /// Its tasks.
    pub watcher: Watcher,
    /// The journal from the start of the trial.
    pub journal: Journal,
    /// The requests.
    pub load: Load,
    /// Its spec at the start.
    pub spec: Value,
    /// Every node's availability at the start.
    pub availability: BTreeMap<String, String>,
    wall_offset_ms: i64,
    start: Time,
}

/// A replica that left its node, and when.
#[derive(Clone, Debug)]
pub struct Move {
    /// The replica that was told to stop.
    pub old: Seen,
    /// The one that took its place.
    pub new: Seen,
    /// When both were done: the new one healthy, the old one told to stop.
    pub done: Time,
    /// How long both served, milliseconds; negative would be a gap.
    pub overlap_ms: i64,
}

impl<'a> Trial<'a> {
    /// Creates a service, waits until it serves everywhere, and starts to send and to watch.
    ///
    /// # Errors
    /// Where it cannot be created or does not come to serve.
    pub async fn begin(stage: &'a Stage, web: &Web, rate_hz: f64) -> Result<Trial<'a>> {
        stage.cluster.swarm().create_service(&stage.spec(web)).await?;
        Self::adopt(stage, &web.name, web.port, rate_hz).await
    }

    /// Takes on a service that is there already, published on `port` and of web-stress.
    ///
    /// # Errors
    /// Where it does not come to serve, or the coordinator does not answer.
    pub async fn adopt(stage: &'a Stage, name: &str, port: u16, rate_hz: f64) -> Result<Trial<'a>> {
        let engine = stage.cluster.swarm();
        let service = engine.service_by_name(name).await?;
        let id = service["ID"].as_str().context("a service without ID")?.to_owned();
        let replicas = service["Spec"]["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(1);
        let watcher = Watcher::start(engine.clone(), &id);
        stage.serving(&watcher, name, usize::try_from(replicas)?, port, START).await?;
        let mut availability = BTreeMap::new();
        for node in &stage.cluster.nodes {
            availability.insert(node.id.clone(), stage.cluster.availability(&node.id).await?);
        }
        let journal = Journal::follow(stage.coordinator.clone()).await?;
        let load = Load::start(Plan {
            targets: stage.targets(port),
            host: name.to_owned(),
            path: "/".to_owned(),
            workers: 8,
            rate_hz,
            limit: Duration::from_secs(20),
        });
        let spec = engine.service_spec(&id).await?;
        let start = now();
        let wall_offset_ms = i64::try_from(wall_ms())? - i64::try_from(start.as_millis())?;
        let name = name.to_owned();
        Ok(Trial {
            stage,
            service: id,
            name,
            port,
            watcher,
            journal,
            load,
            spec,
            availability,
            wall_offset_ms,
            start,
        })
    }

    /// Tells one replica to be busy; returns when it was told.
    ///
    /// # Errors
    /// Where it is not reached.
    pub async fn heat(&self, victim: &Seen, path: &str) -> Result<Time> {
        let doors = self.stage.doors(&self.name, self.port);
        heat::tell(&doors, victim.host(), path).await?;
        Ok(now())
    }

    /// The same on a node that others use as well, so that it runs short.
    ///
    /// # Errors
    /// Where the replica is not reached; the engine's.
    pub async fn heat_crowded(&self, victim: &Seen, path: &str) -> Result<Time> {
        heat::crowd(self.stage, &victim.node).await?;
        self.heat(victim, path).await
    }

    /// Waits until `victim` was told to stop and as many replicas as before serve, none of them on its node that was
    /// not there before.
    ///
    /// # Errors
    /// After `limit`, with the tasks and the end of the journal.
    pub async fn moved(&self, victim: &str, limit: Duration) -> Result<Move> {
        let replicas = self.replicas();
        let done = || async {
            let tasks = self.watcher.tasks();
            let gone = tasks.get(victim).is_some_and(|task| task.told_to_stop.is_some());
            Ok(gone && tasks.values().filter(|task| task.serves()).count() == replicas)
        };
        let what = format!("the replica {victim} of {} has moved", self.name);
        until(&what, limit, done).await.with_context(|| self.picture())?;
        self.the_move(victim).with_context(|| self.picture())
    }

    /// What the watcher saw of the move of `victim`.
    fn the_move(&self, victim: &str) -> Result<Move> {
        let tasks = self.watcher.tasks();
        let old = tasks.get(victim).context("the replica was never seen")?.clone();
        let successors = tasks.values().filter(|task| task.serves() && task.running > old.running);
        let new = successors.max_by_key(|task| task.running).context("no successor serves")?.clone();
        ensure!(new.node != old.node, "the successor runs on the same node");
        let (ran, told) = new.running.zip(old.told_to_stop).context("the move was not seen whole")?;
        let ms = |time: Time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        Ok(Move { old, new, done: ran.max(told), overlap_ms: ms(told) - ms(ran) })
    }

    /// Waits until spec, previous spec, availabilities and action records are as if nothing had happened.
    ///
    /// # Errors
    /// After `limit`, with what differs.
    pub async fn settled(&self, limit: Duration) -> Result<()> {
        let start = now();
        loop {
            let left = self.left_behind().await?;
            if left.is_empty() {
                return Ok(());
            }
            if now() - start > limit {
                anyhow::bail!(
                    "left behind after {} s: {}\n{}",
                    limit.as_secs(),
                    left.join("; "),
                    self.picture()
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// What is not as it was at the start.
    ///
    /// # Errors
    /// The engine's.
    pub async fn left_behind(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        let engine = self.stage.cluster.swarm();
        let service = engine.get(&format!("/services/{}", self.service)).await?;
        if service["Spec"] != self.spec {
            left.push(format!("the spec was {} and is {}", self.spec, service["Spec"]));
        }
        let previous = &service["PreviousSpec"];
        if !previous.is_null() && previous != &self.spec {
            left.push(format!("a rollback would bring {previous}"));
        }
        for (id, before) in &self.availability {
            let after = self.stage.cluster.availability(id).await?;
            if after != *before {
                left.push(format!("{} was {before} and is {after}", self.stage.cluster.name(id)));
            }
        }
        let serving = self.watcher.serving().len();
        if serving != self.replicas() {
            left.push(format!("{serving} replicas serve, not {}", self.replicas()));
        }
        Ok(left)
    }

    /// Replicas that the spec asked for at the start.
    pub fn replicas(&self) -> usize {
        let replicas = self.spec["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(1);
        usize::try_from(replicas).unwrap_or(usize::MAX)
    }

    /// Waits for a journal entry about this service.
    ///
    /// # Errors
    /// After `limit`.
    pub async fn entry(&self, what: &str, limit: Duration, fits: impl Fn(&Entry) -> bool) -> Result<Heard> {
        let find = || self.journal.find(|entry| is_about(entry, &self.service) && fits(entry));
        until(&format!("the journal says: {what}"), limit, || async { Ok(find().is_some()) })
            .await
            .with_context(|| self.picture())?;
        find().context("a journal entry vanished")
    }

    /// When an entry was written, on this process's clock. The coordinator's wall clock may differ from ours; the
    /// smallest delay seen between an entry's time and its arrival tells by how much.
    pub fn time_of(&self, entry: &Entry) -> Time {
        let entries = self.journal.entries(0);
        let ms = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let skew = entries
            .iter()
            .map(|heard| ms(heard.at.as_millis()) + self.wall_offset_ms - ms(heard.entry.at_ms))
            .min()
            .unwrap_or_default();
        let local = ms(entry.at_ms) + skew - self.wall_offset_ms;
        Time::from_millis(u64::try_from(local).unwrap_or_default())
    }

    /// The first sample over a threshold after `heated`, by the first such alert about this service: the alert says how
    /// old that sample was.
    pub fn first_sample(&self, heated: Time) -> Option<(Time, Heard)> {
        let alert = self.journal.entries(0).into_iter().find(|heard| {
            let entry = &heard.entry;
            let raised = entry.kind == Kind::Alert && entry.code.ends_with("_high_raise");
            raised && heard.at >= heated && is_about(entry, &self.service)
        })?;
        let age = alert.entry.figures.get("age_ms").copied().unwrap_or_default().max(0.0);
        let first = self.time_of(&alert.entry).before(Duration::from_secs_f64(age / 1000.0));
        Some((first.max(heated), alert))
    }

    /// The first decision about this service after `heated`.
    pub fn decision(&self, heated: Time) -> Option<Heard> {
        let mut entries = self.journal.entries(0).into_iter();
        entries.find(|heard| {
            heard.entry.kind == Kind::Decision && heard.at >= heated && is_about(&heard.entry, &self.service)
        })
    }

    /// Seconds since the trial began, for lines of narration.
    pub fn elapsed(&self) -> Duration {
        now() - self.start
    }

    /// Ends the load and removes the service.
    ///
    /// # Errors
    /// The engine's.
    pub async fn end(self) -> Result<Stats> {
        let stats = self.load.finish().await;
        self.stage.cluster.swarm().delete(&format!("/services/{}", self.service)).await?;
        Ok(stats)
    }

    /// Tasks and the last of the journal, for the message of a failure.
    pub fn picture(&self) -> String {
        let mut lines = vec![format!(
            "service {} {:.1} s into the trial; its tasks:",
            self.name,
            self.elapsed().as_secs_f64()
        )];
        for (id, task) in self.watcher.tasks() {
            let node = self.stage.cluster.name(&task.node);
            lines.push(format!(
                "  {id} slot {} {node}: {} (desired {}) {}",
                task.slot, task.state, task.desired, task.error
            ));
        }
        let stats = self.load.stats();
        lines.push(format!("requests: {} sent, {} failed", stats.sent, stats.failed));
        lines.extend(
            stats.failures.iter().take(5).map(|failure| format!("  {}: {}", failure.target, failure.cause)),
        );
        lines.push("end of the journal, without alerts and leases:".to_owned());
        let entries = self.journal.entries(0);
        // On a busy machine those come by the dozen, and hide what was decided and done.
        let told: Vec<_> =
            entries.iter().filter(|heard| !matches!(heard.entry.kind, Kind::Alert | Kind::Lease)).collect();
        let tail = told.len().saturating_sub(40);
        lines.extend(told[tail..].iter().map(|heard| format!("  {}", crate::api::line(&heard.entry))));
        lines.join("\n")
    }
}

/// Fails if any request of the trial failed.
///
/// # Errors
/// With the first failures.
pub fn nothing_failed(stats: &Stats) -> Result<()> {
    ensure!(stats.sent > 0 && stats.succeeded > 0, "no request was answered, so nothing is proven");
    let first: Vec<_> = stats
        .failures
        .iter()
        .take(5)
        .map(|failure| format!("{} ({}): {}", failure.at_ms, failure.target, failure.cause))
        .collect();
    ensure!(
        stats.failed == 0,
        "{} of {} requests failed, first: {}",
        stats.failed,
        stats.sent,
        first.join("; ")
    );
    Ok(())
}
