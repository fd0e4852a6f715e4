//! A client that sends all the time and counts every request that fails, with the time and the cause.
//!
//! Not wrk, hey or oha: those count failures but do not say when and why, and retry or reconnect silently. Half of the
//! workers here keep their connection as long as the server lets them, the other half make one for each request; a
//! request is never sent twice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use serde::Serialize;
use swarmguard_common::time::Time;
use swarmguard_runtime::clock::{now, wall_ms};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::http::handshake;

/// Failures kept with their details; more are only counted.
const FAILURES_KEPT: usize = 500;
/// Buckets of the latency histogram: bucket n ends at 2^n x 100 microseconds.
const BUCKETS: usize = 20;

/// What to send, and how much.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Servers, used in turns.
    pub targets: Vec<SocketAddr>,
    /// Host of every request.
    pub host: String,
    /// Path of every request.
    pub path: String,
    /// Workers; every other one keeps its connection.
    pub workers: u32,
    /// Requests a second of all workers together; a worker waits for its answer before it sends again.
    pub rate_hz: f64,
    /// A request unanswered for this long has failed.
    pub limit: Duration,
}

/// One request that failed.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// Wall clock in milliseconds.
    pub at_ms: u64,
    /// Monotonic time, to set it against other events of the same run.
    #[serde(skip)]
    pub at: Time,
    /// Where it was sent.
    pub target: String,
    /// On a connection used before?
    pub kept_alive: bool,
    /// What happened.
    pub cause: String,
}

/// When a replica answered.
#[derive(Clone, Copy, Debug)]
pub struct Answers {
    /// How often.
    pub count: u64,
    /// The first answer.
    pub first: Time,
    /// The last one.
    pub last: Time,
}

/// What has happened so far.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Requests whose sending began.
    pub sent: u64,
    /// Of these, answered with 200 in time.
    pub succeeded: u64,
    /// Of these, not.
    pub failed: u64,
    /// The first failures, with details.
    pub failures: Vec<Failure>,
    /// Connections made.
    pub connections: u64,
    /// Answers by replica, as the workload's `x-replica` header names it.
    pub replicas: BTreeMap<String, Answers>,
    histogram: [u64; BUCKETS],
}

impl Stats {
    /// Upper bound of the latency that `share` (0 to 1) of the answers stayed within; `None` before the first.
    pub fn latency(&self, share: f64) -> Option<Duration> {
        let total: u64 = self.histogram.iter().sum();
        let mut seen = 0_u64;
        for (bucket, count) in (0_u32..).zip(self.histogram) {
            seen += count;
            #[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^52")]
            if total > 0 && seen as f64 >= share * total as f64 {
                return Some(Duration::from_micros(100 << bucket));
            }
        }
        None
    }

    fn answered(&mut self, took: Duration, replica: Option<String>, at: Time) {
        self.succeeded += 1;
        let bucket =
            (0..BUCKETS - 1).find(|n| took <= Duration::from_micros(100 << n)).unwrap_or(BUCKETS - 1);
        self.histogram[bucket] += 1;
        if let Some(replica) = replica {
            let answers = self.replicas.entry(replica).or_insert(Answers { count: 0, first: at, last: at });
            answers.count += 1;
            answers.last = at;
        }
    }

    fn failed(&mut self, failure: Failure) {
        self.failed += 1;
        if self.failures.len() < FAILURES_KEPT {
            self.failures.push(failure);
        }
    }
}

/// A load under way.
#[derive(Debug)]
pub struct Load {
    stats: Arc<Mutex<Stats>>,
    stop: watch::Sender<bool>,
    workers: JoinSet<()>,
}

impl Load {
    /// Starts sending.
    pub fn start(plan: Plan) -> Self {
        let stats = Arc::new(Mutex::new(Stats::default()));
        let (stop, stopped) = watch::channel(false);
        let mut workers = JoinSet::new();
        let plan = Arc::new(plan);
        for index in 0..plan.workers.max(1) {
            let worker = Worker {
                plan: Arc::clone(&plan),
                stats: Arc::clone(&stats),
                keep: index % 2 == 0,
                turn: index as usize / 2,
                kept: None,
            };
            workers.spawn(worker.run(stopped.clone()));
        }
        Load { stats, stop, workers }
    }

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        lock(&self.stats).clone()
    }

    /// Stops sending, waits for the answers that are due, and says what happened.
    pub async fn finish(mut self) -> Stats {
        let _ = self.stop.send(true);
        while self.workers.join_next().await.is_some() {}
        self.stats()
    }
}

fn lock(stats: &Mutex<Stats>) -> std::sync::MutexGuard<'_, Stats> {
    stats.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Worker {
    plan: Arc<Plan>,
    stats: Arc<Mutex<Stats>>,
    keep: bool,
    turn: usize,
    kept: Option<(SocketAddr, SendRequest<Full<Bytes>>)>,
}

impl Worker {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let every =
            Duration::from_secs_f64(f64::from(self.plan.workers.max(1)) / self.plan.rate_hz.max(0.001));
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => return,
                _ = ticks.tick() => {}
            }
            // Not inside the select: a request once sent is waited for.
            self.request().await;
        }
    }

    async fn request(&mut self) {
        let start = now();
        lock(&self.stats).sent += 1;
        let target = self.next_target();
        let reused = self.kept.is_some();
        let outcome = match timeout(self.plan.limit, self.exchange(target)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {:?}", self.plan.limit)),
        };
        let at = now();
        let mut stats = lock(&self.stats);
        match outcome {
            Ok(replica) => stats.answered(at - start, replica, at),
            Err(cause) => {
                stats.failed(Failure {
                    at_ms: wall_ms(),
                    at,
                    target: target.to_string(),
                    kept_alive: reused,
                    cause,
                });
            }
        }
    }

    /// The kept connection's, or the next in turn.
    fn next_target(&mut self) -> SocketAddr {
        // A connection that the server has closed since the last answer is no connection any more; nothing was sent on it.
        self.kept = self.kept.take().filter(|(_, sender)| !sender.is_closed());
        if let Some((target, _)) = &self.kept {
            return *target;
        }
        self.turn = self.turn.wrapping_add(1);
        self.plan.targets[self.turn % self.plan.targets.len()]
    }

    /// Sends one request and reads its answer; the replica that gave it, or the cause of failure.
    async fn exchange(&mut self, target: SocketAddr) -> Result<Option<String>, String> {
        let mut sender = match self.kept.take() {
            Some((_, sender)) => sender,
            None => self.connect(target).await?,
        };
        let mut request = Request::get(&self.plan.path).header(header::HOST, &self.plan.host);
        if !self.keep {
            request = request.header(header::CONNECTION, "close");
        }
        let request = request.body(Full::default()).map_err(|error| format!("cannot ask: {error}"))?;
        // Resolves at once unless the connection is closing, in which case sending fails below and counts.
        let _ = sender.ready().await;
        let answer =
            sender.send_request(request).await.map_err(|error| format!("no answer: {}", chain(&error)))?;
        let status = answer.status();
        let closing = answer.headers().get(header::CONNECTION).is_some_and(|value| value == "close");
        let replica =
            answer.headers().get("x-replica").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body =
            answer.into_body().collect().await.map_err(|error| format!("cut off: {}", chain(&error)))?;
        if status != StatusCode::OK {
            let text: String = String::from_utf8_lossy(&body.to_bytes()).trim().chars().take(120).collect();
            return Err(format!("{status}: {text}"));
        }
        if self.keep && !closing {
            self.kept = Some((target, sender));
        }
        Ok(replica)
    }

    async fn connect(&self, target: SocketAddr) -> Result<SendRequest<Full<Bytes>>, String> {
        let stream = TcpStream::connect(target).await.map_err(|error| format!("cannot connect: {error}"))?;
        let _ = stream.set_nodelay(true);
        lock(&self.stats).connections += 1;
        handshake(stream).await.map_err(|error| format!("cannot connect: {}", chain(&error)))
    }
}

/// An error with its causes: hyper's own words leave out what happened underneath.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web_stress::{args, drain, routes};

    fn plan(target: SocketAddr) -> Plan {
        let limit = Duration::from_secs(30);
        let host = "web".to_owned();
        Plan { targets: vec![target], host, path: "/".to_owned(), workers: 8, rate_hz: 400.0, limit }
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..3000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("still not so after a minute: {what}");
    }

    fn workload() -> (SocketAddr, watch::Sender<bool>, tokio::task::JoinHandle<u32>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let serve = <args::Cli as clap::Parser>::parse_from(["web-stress"]).serve;
        let (drain, draining) = watch::channel(false);
        let app = routes::router(routes::App::new(&serve, tokio::time::Instant::now(), draining.clone()));
        let limits = drain::Limits { linger: Duration::from_secs(2), timeout: Duration::from_secs(60) };
        let mut told = draining.clone();
        let stop = async move { drop(told.wait_for(|told| *told).await) };
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        (addr, drain, tokio::spawn(drain::serve(listener, app, draining, stop, limits)))
    }

    #[tokio::test]
    async fn a_draining_workload_fails_no_request_that_it_took() {
        let (addr, drain, server) = workload();
        let load = Load::start(plan(addr));
        until("a hundred answers", || load.stats().succeeded > 100).await;
        drain.send(true).unwrap();
        // Both kinds of worker meanwhile get `Connection: close` and come back, until the listener closes.
        let before = load.stats();
        assert_eq!((before.failed, before.failures.len()), (0, 0), "{:?}", before.failures);
        assert_eq!(server.await.unwrap(), 0, "connections cut");
        let after = load.finish().await;
        assert!(after.succeeded > before.succeeded, "served nothing while draining");
        let dropped: Vec<_> =
            after.failures.iter().filter(|failure| !failure.cause.starts_with("cannot connect")).collect();
        assert!(dropped.is_empty(), "requests taken and not answered: {dropped:?}");
        assert_eq!(after.replicas.len(), 1);
    }

    #[tokio::test]
    async fn every_failure_is_counted_with_its_cause() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let load = Load::start(plan(closed));
        until("failures", || load.stats().failed > 20).await;
        let stats = load.finish().await;
        assert_eq!((stats.sent, stats.succeeded), (stats.failed, 0));
        assert!(
            stats.failures.iter().all(|failure| failure.cause.contains("refused")),
            "{:?}",
            stats.failures[0]
        );
        assert_eq!(stats.latency(0.5), None);
    }

    #[test]
    fn latencies_fall_into_buckets_whose_end_is_reported() {
        let mut stats = Stats::default();
        for ms in [1, 1, 1, 30] {
            stats.answered(Duration::from_millis(ms), None, Time::ZERO);
        }
        assert_eq!(stats.latency(0.5), Some(Duration::from_micros(1600)));
        assert_eq!(stats.latency(1.0), Some(Duration::from_micros(51_200)));
    }
}
