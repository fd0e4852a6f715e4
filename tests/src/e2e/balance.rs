//! The balancer on a real Swarm: spread, a move, scaling both ways, dead coordinators, and every replica killed, under
//! load all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::body::Bytes;
use axum::http::{Method, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};
use swarmguard_common::time::Time;
use swarmguard_runtime::clock::now;

use super::demo::say;
use super::report;
use super::stage::{Stage, until};
use crate::http::Endpoint;
use crate::load::{Load, Plan, Stats};
use crate::tasks::{Seen, Tasks, Watcher};

/// How long anything may take to start, on slow machines too.
const START: Duration = Duration::from_secs(240);
/// How long a move or a scaling may take.
const ACTION: Duration = Duration::from_secs(240);
/// For how long every coordinator that comes up is killed again: longer than a balancer waits before it turns to DNS.
const COORDINATORS_DEAD: Duration = Duration::from_secs(15);
/// Requests over which the spread is judged: with three replicas drawn at random the busiest one is then less than 15 %
/// above the mean in 999 runs of 1,000.
const SPREAD_REQUESTS: u64 = 1_500;
/// Most that the busiest of equal replicas may have above the mean, in per cent.
const SPREAD_PERCENT: f64 = 15.0;
/// Longest time from a replica's return to the first answer.
const RECOVERY: Duration = Duration::from_secs(2);
/// Pause between requests while everything is dead.
const PROBE: Duration = Duration::from_millis(100);
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the scenario is told.
#[derive(Clone, Debug)]
pub struct Balance<'a> {
    /// The workload's service, deployed already, of web-stress.
    pub service: &'a str,
    /// The balancer's service.
    pub balancer: &'a str,
    /// Port that balancers listen on, on their nodes.
    pub port: u16,
    /// Requests a second.
    pub rate_hz: f64,
    /// The operator's token for commands.
    pub token: &'a str,
    /// Where the report goes.
    pub report: &'a Path,
    /// Only these of [`PARTS`]; all where there are none.
    pub only: &'a [String],
}

/// The parts of the scenario, in their order.
pub const PARTS: [&str; 5] = ["spread", "move", "scale", "coordinators", "outage"];

/// `report-balance.json`. Times are milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    scenario: &'static str,
    engine_version: String,
    nodes: usize,
    balancers: Vec<String>,
    /// From the first request until before every replica is killed.
    requests_sent: u64,
    requests_failed: u64,
    first_failures: Vec<String>,
    /// Requests by replica while nothing else happened.
    spread: BTreeMap<String, u64>,
    /// How much the busiest replica had above the mean.
    spread_percent: f64,
    moved: Phase,
    scaled_out: Phase,
    /// From when Swarm called the new replica healthy to its first answer.
    new_replica_first_answer_ms: Option<i64>,
    scaled_in: Phase,
    coordinators_dead: Phase,
    every_replica_killed: Outage,
    /// What was not as it must be.
    problems: Vec<String>,
}

/// A part of the scenario under load.
#[derive(Clone, Debug, Default, Serialize)]
struct Phase {
    took_ms: u64,
    requests: u64,
    failed: u64,
    what: String,
}

/// What clients heard while no replica lived.
#[derive(Clone, Debug, Default, Serialize)]
struct Outage {
    /// Answers by status; 0 is no answer.
    statuses: BTreeMap<u16, u64>,
    /// Of those with 503, without `Retry-After`.
    without_retry_after: u64,
    /// Slowest of them.
    slowest_ms: u64,
    /// From the kill to the first 503, the later of the balancers.
    first_503_ms: Option<u64>,
    /// From when Swarm called the first replica healthy again to the first answer of 200, by balancer.
    recovery_ms: BTreeMap<String, i64>,
}

impl Balance<'_> {
    /// Plays it; true where nothing was lost and everything was as it must be.
    ///
    /// # Errors
    /// Where the stage does not come up at all, or an order is not carried out.
    pub async fn play(&self, stage: &Stage) -> Result<bool> {
        say("waiting until the coordinator hears every agent");
        stage.ready(START).await?;
        let swarm = stage.cluster.swarm();
        let id = swarm.service_by_name(self.service).await?["ID"].as_str().context("no ID")?.to_owned();
        let label = |spec: &mut Value| spec["Labels"]["swarmguard.lb.port"] = json!("8080");
        swarm.update_service(&id, label).await?;
        let watcher = Watcher::start(swarm.clone(), &id);
        let balancers = self.balancers(stage).await?;
        let mut run = Run {
            order: self,
            stage,
            watcher,
            replicas: self.replicas(stage, &id).await?,
            targets: balancers.values().copied().collect(),
            report: Report {
                scenario: "balance",
                engine_version: swarm.version().await?,
                nodes: stage.cluster.nodes.len(),
                balancers: balancers.keys().cloned().collect(),
                ..Report::default()
            },
        };
        run.serving().await?;
        let load = Load::start(Plan {
            targets: run.targets.clone(),
            host: "web".to_owned(),
            path: "/".to_owned(),
            workers: 8,
            rate_hz: self.rate_hz,
            limit: PATIENCE,
        });
        let played = run.under_load(&load).await;
        let ended = played.is_ok();
        let stats = load.finish().await;
        run.conclude_load(&stats, played);
        if ended && self.plays("outage") {
            run.every_replica_killed(&balancers).await?;
        }
        run.conclude(self.report)
    }

    fn plays(&self, part: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|it| it == part)
    }

    /// Nodes that run a balancer, with its address, once all of them run.
    async fn balancers(&self, stage: &Stage) -> Result<BTreeMap<String, SocketAddr>> {
        let swarm = stage.cluster.swarm();
        let service = swarm.service_by_name(self.balancer).await?;
        let id = service["ID"].as_str().context("a service without ID")?;
        let wanted = service["Spec"]["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(1);
        let watcher = Watcher::start(swarm.clone(), id);
        let there = || async { Ok(watcher.serving().len() as u64 == wanted) };
        until("every balancer runs", START, there).await.with_context(|| newest(&watcher.tasks()))?;
        let nodes =
            watcher.serving().into_values().filter_map(|task| stage.cluster.node(&task.node).cloned());
        Ok(nodes.map(|node| (node.name, SocketAddr::new(node.ip, self.port))).collect())
    }

    async fn replicas(&self, stage: &Stage, id: &str) -> Result<usize> {
        let spec = stage.cluster.swarm().service_spec(id).await?;
        Ok(usize::try_from(spec["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(1))?)
    }
}

struct Run<'a> {
    order: &'a Balance<'a>,
    stage: &'a Stage,
    watcher: Watcher,
    replicas: usize,
    targets: Vec<SocketAddr>,
    report: Report,
}

impl Run<'_> {
    async fn serving(&self) -> Result<()> {
        self.count(self.replicas, START).await?;
        for target in &self.targets {
            let endpoint = Endpoint::Tcp(*target);
            let what = format!("the balancer at {target} answers for the service");
            until(&what, START, || async { Ok(endpoint.get_json("/").await.is_ok()) }).await?;
        }
        Ok(())
    }

    /// Waits until so many replicas serve and no action is under way.
    async fn count(&self, replicas: usize, limit: Duration) -> Result<()> {
        let what = format!("{replicas} replicas serve and nothing is under way");
        until(&what, limit, || async {
            if self.watcher.serving().len() != replicas {
                return Ok(false);
            }
            let actions = self.stage.coordinator.get("/api/v1/actions").await.unwrap_or_default();
            Ok(actions.as_array().is_some_and(Vec::is_empty))
        })
        .await
        .with_context(|| newest(&self.watcher.tasks()))
    }

    async fn under_load(&mut self, load: &Load) -> Result<()> {
        let order = self.order;
        if order.plays("spread") {
            self.spread(load).await?;
        }
        if order.plays("move") {
            self.moved(load).await?;
        }
        if order.plays("scale") {
            self.scaled_out(load).await?;
            self.scaled_in(load).await?;
        }
        if order.plays("coordinators") {
            self.coordinators_dead(load).await?;
        }
        // Something was answered in any case, or nothing would be proven by what did not fail.
        until("requests are answered", START, || async { Ok(load.stats().succeeded > 0) }).await
    }

    /// Every replica has answered already; then as many requests as it takes.
    async fn spread(&mut self, load: &Load) -> Result<()> {
        let all = || load.stats().replicas.len() == self.replicas;
        until("every replica has answered", START, || async { Ok(all()) }).await?;
        say(&format!("equal replicas: {SPREAD_REQUESTS} requests"));
        let before = load.stats();
        let enough = || async { Ok(load.stats().succeeded >= before.succeeded + SPREAD_REQUESTS) };
        until("enough requests are answered", START, enough).await?;
        let after = load.stats();
        let count = |stats: &Stats, host: &str| stats.replicas.get(host).map_or(0, |answers| answers.count);
        let hosts = after.replicas.keys();
        self.report.spread =
            hosts.map(|host| (host.clone(), count(&after, host) - count(&before, host))).collect();
        let spread = spread_percent(&self.report.spread);
        self.report.spread_percent = spread;
        say(&format!("the busiest of {} replicas has {spread:.1} % above the mean", self.replicas));
        if spread >= SPREAD_PERCENT {
            self.problem(format!("the busiest replica has {spread:.1} % above the mean"));
        }
        Ok(())
    }

    async fn moved(&mut self, load: &Load) -> Result<()> {
        let before = self.watcher.serving();
        let (_, victim) = self.stage.victim(&before)?;
        let source = self.stage.cluster.name(&victim.node).to_owned();
        say(&format!("moving one replica off {source}"));
        let phase = Since::new(load);
        self.command("migrate", &json!({"service": self.order.service, "source": source})).await?;
        until("a replica has left", ACTION, || async {
            Ok(!gone(&before, &self.watcher.tasks()).is_empty())
        })
        .await?;
        self.count(self.replicas, ACTION).await?;
        let tasks = self.watcher.tasks();
        let (left, came) = (self.nodes(&gone(&before, &tasks)), self.nodes(&new(&before, &tasks)));
        let what = format!("{} -> {}", left.join(", "), came.join(", "));
        if left != [source] || came.len() != 1 || came == left {
            self.problem(format!("one replica was to leave its node, what happened: {what}"));
        }
        self.report.moved = phase.end(load, what);
        Ok(())
    }

    async fn scaled_out(&mut self, load: &Load) -> Result<()> {
        let before = self.watcher.serving();
        let wanted = self.replicas + 1;
        say(&format!("scaling to {wanted}"));
        let phase = Since::new(load);
        self.command("scale", &json!({"service": self.order.service, "replicas": wanted})).await?;
        self.count(wanted, ACTION).await?;
        let came = new(&before, &self.watcher.tasks());
        let newest = came.first().context("no new replica was seen")?.clone();
        let answers = || load.stats().replicas.get(newest.host()).copied();
        until("the new replica answers", START, || async { Ok(answers().is_some()) }).await?;
        let first = answers().map(|answers| answers.first);
        self.report.new_replica_first_answer_ms =
            first.zip(newest.running).map(|(first, ran)| ms(ran, first));
        let node = self.stage.cluster.name(&newest.node).to_owned();
        self.report.scaled_out = phase.end(load, format!("a new replica on {node}"));
        Ok(())
    }

    async fn scaled_in(&mut self, load: &Load) -> Result<()> {
        let before = self.watcher.serving();
        say(&format!("scaling back to {}", self.replicas));
        let phase = Since::new(load);
        self.command("scale", &json!({"service": self.order.service, "replicas": self.replicas})).await?;
        self.count(self.replicas, ACTION).await?;
        let left = self.nodes(&gone(&before, &self.watcher.tasks()));
        self.report.scaled_in = phase.end(load, format!("a replica left {}", left.join(", ")));
        Ok(())
    }

    /// Coordinators are killed as often as Swarm brings them back.
    async fn coordinators_dead(&mut self, load: &Load) -> Result<()> {
        say(&format!("killing every coordinator for {} s", COORDINATORS_DEAD.as_secs()));
        let phase = Since::new(load);
        let mut killed = 0;
        while now() - phase.start < COORDINATORS_DEAD {
            killed += self.kill("swarmguard_coordinator").await?;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        ensure!(killed > 0, "no coordinator was found to kill");
        self.report.coordinators_dead = phase.end(load, format!("{killed} killed"));
        let answered = load.stats().succeeded;
        until("requests go on", START, || async { Ok(load.stats().succeeded > answered) }).await?;
        say("waiting until the coordinator is back");
        self.stage.ready(START).await
    }

    /// Kills every container of a service on every node; how many there were.
    async fn kill(&self, service: &str) -> Result<u32> {
        let mut killed = 0;
        for node in &self.stage.cluster.nodes {
            for id in node.engine.running_of(service).await? {
                // One that has ended by itself meanwhile is as dead.
                let path = format!("/containers/{id}/kill?signal=KILL");
                killed += u32::from(node.engine.post(&path, &Value::Null).await.is_ok());
            }
        }
        Ok(killed)
    }

    async fn every_replica_killed(&mut self, balancers: &BTreeMap<String, SocketAddr>) -> Result<()> {
        say("killing every replica");
        let known: BTreeSet<String> = self.watcher.tasks().into_keys().collect();
        let mut probes = Vec::new();
        for (name, address) in balancers {
            probes.push((name.clone(), tokio::spawn(probe(*address, now()))));
        }
        let killed = self.kill(self.order.service).await?;
        ensure!(killed as usize == self.replicas, "{killed} of {} replicas were killed", self.replicas);
        let mut outage = Outage::default();
        let mut backs = BTreeMap::new();
        for (name, probe) in probes {
            let seen = probe.await.context("a probe was cut short")??;
            for (status, count) in seen.statuses {
                *outage.statuses.entry(status).or_default() += count;
            }
            outage.without_retry_after += seen.without_retry_after;
            outage.slowest_ms = outage.slowest_ms.max(seen.slowest_ms);
            outage.first_503_ms = outage.first_503_ms.max(seen.first_503_ms);
            backs.insert(name, seen.back);
        }
        let tasks = self.watcher.tasks();
        let fresh = tasks.iter().filter(|(id, _)| !known.contains(*id));
        let first = fresh.filter_map(|(_, task)| task.running).min().context("no replica came back")?;
        outage.recovery_ms = backs.into_iter().map(|(name, back)| (name, ms(first, back))).collect();
        if outage.without_retry_after > 0 || outage.first_503_ms.is_none() {
            self.problem("without replicas the answer was no 503 with Retry-After".to_owned());
        }
        if outage.statuses.contains_key(&0) {
            self.problem("without replicas some requests got no answer".to_owned());
        }
        let limit = i64::try_from(RECOVERY.as_millis())?;
        if outage.recovery_ms.values().any(|took| *took > limit) {
            self.problem(format!("recovery took {:?} ms", outage.recovery_ms));
        }
        self.report.every_replica_killed = outage;
        Ok(())
    }

    fn nodes(&self, tasks: &[Seen]) -> Vec<String> {
        tasks.iter().map(|task| self.stage.cluster.name(&task.node).to_owned()).collect()
    }

    /// Gives an order; one that comes before the coordinator knows enough is given again.
    async fn command(&self, name: &str, body: &Value) -> Result<()> {
        let start = now();
        loop {
            let error = match self.stage.coordinator.command(self.order.token, name, body).await {
                Ok(answer) => {
                    say(answer["text"].as_str().unwrap_or("taken"));
                    return Ok(());
                }
                Err(error) => error,
            };
            if now() - start > Duration::from_secs(60) {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn problem(&mut self, text: String) {
        say(&format!("PROBLEM: {text}"));
        self.report.problems.push(text);
    }

    fn conclude_load(&mut self, stats: &Stats, played: Result<()>) {
        (self.report.requests_sent, self.report.requests_failed) = (stats.sent, stats.failed);
        let shown = |failure: &crate::load::Failure| {
            format!("{} {}: {}", failure.at_ms, failure.target, failure.cause)
        };
        self.report.first_failures = stats.failures.iter().take(20).map(shown).collect();
        if let Err(error) = played {
            self.problem(format!("{error:#}"));
        }
        if stats.failed > 0 || stats.succeeded == 0 {
            self.problem(format!("{} of {} requests failed", stats.failed, stats.sent));
        }
    }

    fn conclude(self, path: &Path) -> Result<bool> {
        let report = self.report;
        report::write(path, &report)?;
        println!("\n{}", report.text());
        println!("  report        {}", path.display());
        Ok(report.problems.is_empty())
    }
}

impl Report {
    /// For people.
    fn text(&self) -> String {
        let phase = |name: &str, phase: &Phase| {
            let Phase { took_ms, requests, failed, what } = phase;
            format!("  {name:13} {what}; {took_ms} ms, {requests} requests, {failed} failed")
        };
        let dead = &self.every_replica_killed;
        let after = |ms: Option<i64>| ms.map_or("never seen".to_owned(), |ms| format!("after {ms} ms"));
        let first_503 = after(dead.first_503_ms.and_then(|ms| ms.try_into().ok()));
        let mut lines = vec![
            format!("  engine        {} on {} nodes", self.engine_version, self.nodes),
            format!("  balancers     on {}", self.balancers.join(", ")),
            format!("  requests      {} sent, {} failed", self.requests_sent, self.requests_failed),
            format!("  spread        {:.1} % {:?}", self.spread_percent, self.spread),
            phase("moved", &self.moved),
            phase("scaled out", &self.scaled_out),
            format!("  new replica   first answer {}", after(self.new_replica_first_answer_ms)),
            phase("scaled in", &self.scaled_in),
            phase("coordinators", &self.coordinators_dead),
            format!(
                "  all killed    answers by status {:?}, first 503 {first_503}, recovery {:?} ms",
                dead.statuses, dead.recovery_ms
            ),
        ];
        lines.extend(self.first_failures.iter().map(|failure| format!("  failed        {failure}")));
        lines.extend(self.problems.iter().map(|problem| format!("  PROBLEM       {problem}")));
        lines.join("\n")
    }
}

/// What one balancer answered from the kill until it answered 200 again.
struct Probed {
    statuses: BTreeMap<u16, u64>,
    without_retry_after: u64,
    slowest_ms: u64,
    first_503_ms: Option<u64>,
    back: Time,
}

/// Asks until there was an outage and it is over.
async fn probe(address: SocketAddr, start: Time) -> Result<Probed> {
    let endpoint = Endpoint::Tcp(address);
    let mut seen = Probed {
        statuses: BTreeMap::new(),
        without_retry_after: 0,
        slowest_ms: 0,
        first_503_ms: None,
        back: start,
    };
    while now() - start < START {
        let asked = now();
        let answer = tokio::time::timeout(PATIENCE, endpoint.send(Method::GET, "/", Bytes::new())).await;
        let answer = answer.ok().and_then(Result::ok);
        let status = answer.as_ref().map_or(0, |answer| answer.status().as_u16());
        if status == StatusCode::OK.as_u16() {
            if seen.first_503_ms.is_some() {
                seen.back = now();
                return Ok(seen);
            }
        } else {
            *seen.statuses.entry(status).or_default() += 1;
            let took = u64::try_from((now() - asked).as_millis())?;
            seen.slowest_ms = seen.slowest_ms.max(took);
        }
        if status == StatusCode::SERVICE_UNAVAILABLE.as_u16() {
            seen.first_503_ms = seen.first_503_ms.or(u64::try_from((now() - start).as_millis()).ok());
            let told = answer.is_some_and(|answer| answer.headers().contains_key(header::RETRY_AFTER));
            seen.without_retry_after += u64::from(!told);
        }
        tokio::time::sleep(PROBE).await;
    }
    anyhow::bail!("{address} never came back, its answers by status were {:?}", seen.statuses)
}

/// Load since the beginning of a phase.
struct Since {
    start: Time,
    stats: Stats,
}

impl Since {
    fn new(load: &Load) -> Self {
        Since { start: now(), stats: load.stats() }
    }

    fn end(&self, load: &Load, what: String) -> Phase {
        let stats = load.stats();
        let took_ms = u64::try_from((now() - self.start).as_millis()).unwrap_or(u64::MAX);
        let (requests, failed) = (stats.sent - self.stats.sent, stats.failed - self.stats.failed);
        say(&format!("{what}; {requests} requests meanwhile, {failed} failed"));
        Phase { took_ms, requests, failed, what }
    }
}

/// Milliseconds from one time to another; negative where that was earlier.
fn ms(from: Time, to: Time) -> i64 {
    let ms = |time: Time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    ms(to) - ms(from)
}

/// The newest tasks in words, for the message of a failure.
fn newest(tasks: &Tasks) -> String {
    let mut tasks: Vec<&Seen> = tasks.values().collect();
    tasks.sort_by_key(|task| std::cmp::Reverse(task.created));
    let line = |task: &&Seen| format!("slot {}: {} ({}) {}", task.slot, task.state, task.desired, task.error);
    let lines: Vec<String> = tasks.iter().take(10).map(line).collect();
    format!("its newest tasks: {}", lines.join("; "))
}

/// Replicas that served before and have been told to stop.
fn gone(before: &Tasks, after: &Tasks) -> Vec<Seen> {
    let stopped = |id: &String| after.get(id).filter(|task| task.told_to_stop.is_some());
    before.keys().filter_map(stopped).cloned().collect()
}

/// Replicas that serve and did not before.
fn new(before: &Tasks, after: &Tasks) -> Vec<Seen> {
    let fresh = after.iter().filter(|(id, task)| task.serves() && !before.contains_key(*id));
    fresh.map(|(_, task)| task.clone()).collect()
}

/// How much the busiest has above the mean, in per cent.
fn spread_percent(counts: &BTreeMap<String, u64>) -> f64 {
    let most = counts.values().max().copied().unwrap_or(0);
    let sum: u64 = counts.values().sum();
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let over = most as f64 * counts.len() as f64 / sum.max(1) as f64;
    (over - 1.0) * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_the_busiest_ones_share_above_the_mean() {
        let of =
            |counts: &[u64]| counts.iter().enumerate().map(|(n, count)| (n.to_string(), *count)).collect();
        assert!((spread_percent(&of(&[100, 100, 130])) - 18.18).abs() < 0.01);
        assert!(spread_percent(&of(&[100, 100])).abs() < 1e-9);
        assert!((spread_percent(&of(&[100, 0])) - 100.0).abs() < 1e-9);
    }

    #[test]
    fn who_left_and_who_came_is_told_apart() {
        let serving = Seen { state: "running".into(), desired: "running".into(), ..Seen::default() };
        let stopped = Seen { told_to_stop: Some(Time::ZERO), desired: "shutdown".into(), ..serving.clone() };
        let before: Tasks = [("a".to_owned(), serving.clone()), ("b".to_owned(), serving.clone())].into();
        let mut after = before.clone();
        after.insert("a".to_owned(), stopped);
        after.insert("c".to_owned(), Seen { node: "n".into(), ..serving });
        assert_eq!((gone(&before, &after).len(), new(&before, &after).len()), (1, 1));
        assert_eq!(new(&before, &after)[0].node, "n");
        assert!(gone(&before, &before).is_empty() && new(&before, &before).is_empty());
    }
}
