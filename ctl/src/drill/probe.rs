//! Requests that never stop while something is broken on purpose, each counted.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use swarmguard_common::time::Time;
use swarmguard_runtime::clock;
use tokio::task::JoinHandle;

use crate::engine::connect::tcp;

/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);
/// Usual requests a second.
const USUAL_RATE: u32 = 20;
/// Most requests in flight; one that finds no place is late, and so failed.
const IN_FLIGHT: usize = 256;
/// Failures that are told apart.
const MAX_REASONS: usize = 8;

/// Where requests go, and how many a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path with its query.
    pub path: String,
    /// Requests a second.
    pub rate: u32,
}

/// Reads `URL` or `URL@50rps`.
///
/// # Errors
/// With what is allowed.
pub fn target(text: &str) -> Result<Target, String> {
    let allowed = || "http://host[:port][/path], with @50rps behind it for 50 requests a second".to_owned();
    let (url, rate) = match text.rsplit_once('@') {
        Some((url, rate)) => {
            let rate = rate.strip_suffix("rps").and_then(|rate| rate.parse().ok());
            (url, rate.filter(|rate| (1..=1_000).contains(rate)).ok_or("1rps to 1000rps are allowed")?)
        }
        None => (text, USUAL_RATE),
    };
    let rest = url.strip_prefix("http://").ok_or_else(allowed)?;
    let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !place.ends_with(']') => (host, port.parse().map_err(|_| allowed())?),
        _ => (place, 80),
    };
    let host = host.trim_matches(['[', ']']);
    if host.is_empty() || path.contains(char::is_whitespace) {
        return Err(allowed());
    }
    Ok(Target { host: host.into(), port, path: format!("/{path}"), rate })
}

/// What came of the requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// All that have ended.
    pub sent: u64,
    /// Of those, without an answer below 500.
    pub failed: u64,
    /// Longest time between two answers.
    pub longest_gap: Duration,
    /// Why they failed, with how many.
    pub reasons: Vec<(String, u64)>,
    last_answer: Option<Time>,
}

impl Counts {
    fn take(&mut self, result: Result<(), String>, now: Time) {
        self.sent += 1;
        match result {
            Ok(()) => {
                if let Some(last) = self.last_answer {
                    self.longest_gap = self.longest_gap.max(now.since(last));
                }
                self.last_answer = Some(now);
            }
            Err(why) => {
                self.failed += 1;
                if let Some((_, count)) = self.reasons.iter_mut().find(|(known, _)| *known == why) {
                    *count += 1;
                } else if self.reasons.len() < MAX_REASONS {
                    self.reasons.push((why, 1));
                }
            }
        }
    }

    /// Share of requests that failed, in per cent.
    pub fn error_percent(&self) -> f64 {
        if self.sent == 0 { 0.0 } else { self.failed as f64 * 100.0 / self.sent as f64 }
    }

    /// Availability in per cent, with the bounds that hold in 95 of 100 drills like this one (Wilson's interval).
    pub fn availability(&self) -> Option<(f64, f64, f64)> {
        const Z: f64 = 1.96;
        if self.sent == 0 {
            return None;
        }
        let (n, share) = (self.sent as f64, (self.sent - self.failed) as f64 / self.sent as f64);
        let middle = (share + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let half = Z / (1.0 + Z * Z / n) * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
        Some((share * 100.0, (middle - half).max(0.0) * 100.0, (middle + half).min(1.0) * 100.0))
    }
}

/// Sends until it is dropped.
pub struct Probe {
    counts: Arc<Mutex<Counts>>,
    sending: JoinHandle<()>,
}

impl Probe {
    /// Begins to send.
    pub fn start(target: Target) -> Self {
        let counts = Arc::<Mutex<Counts>>::default();
        let sending = tokio::spawn(send(target, Arc::clone(&counts)));
        Self { counts, sending }
    }

    /// What came of it so far.
    pub fn counts(&self) -> Counts {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.sending.abort();
    }
}

async fn send(target: Target, counts: Arc<Mutex<Counts>>) {
    let places = Arc::new(tokio::sync::Semaphore::new(IN_FLIGHT));
    let mut rhythm = tokio::time::interval(Duration::from_secs(1) / target.rate);
    let target = Arc::new(target);
    loop {
        rhythm.tick().await;
        let counts = Arc::clone(&counts);
        let count = move |result| {
            counts.lock().unwrap_or_else(PoisonError::into_inner).take(result, clock::now());
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            count(Err(format!("{IN_FLIGHT} requests wait for an answer")));
            continue;
        };
        let target = Arc::clone(&target);
        tokio::spawn(async move {
            let asked = tokio::time::timeout(PATIENCE, ask(&target)).await;
            count(asked.unwrap_or_else(|_| Err(format!("no answer within {}s", PATIENCE.as_secs()))));
            drop(place);
        });
    }
}

/// One request on a connection of its own, as a new client's.
async fn ask(target: &Target) -> Result<(), String> {
    let stream = tcp(&target.host, target.port).await?;
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let connection = tokio::spawn(async move { drop(connection.await) });
    let request = Request::get(&target.path)
        .header(header::HOST, &target.host)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request).await.map_err(text)?;
    let status = answer.status();
    let read = answer.into_body().collect().await.map(drop).map_err(text);
    connection.abort();
    read?;
    if status.is_server_error() { Err(format!("status {}", status.as_u16())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_with_their_rate() {
        let of = |text: &str| target(text).map(|found| (found.host, found.port, found.path, found.rate));
        let own = |host: &str, port, path: &str, rate| Ok((host.into(), port, path.into(), rate));
        assert_eq!(of("http://shop.example/cart?x=1@50rps"), own("shop.example", 80, "/cart?x=1", 50));
        assert_eq!(of("http://10.0.0.1:8081"), own("10.0.0.1", 8081, "/", 20));
        assert_eq!(of("http://[::1]:80/a"), own("::1", 80, "/a", 20));
        for bad in [
            "https://shop",
            "shop",
            "http://",
            "http://a:x",
            "http://a@0rps",
            "http://a@9",
            "http://a@2000rps",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn gaps_failures_and_bounds_are_counted() {
        let mut counts = Counts::default();
        for ms in [0, 100, 900, 1_000] {
            counts.take(Ok(()), Time::from_millis(ms));
        }
        counts.take(Err("refused".into()), Time::from_millis(500));
        assert_eq!((counts.sent, counts.failed, counts.longest_gap), (5, 1, Duration::from_millis(800)));
        assert!((counts.error_percent() - 20.0).abs() < 1e-9);
        let all = Counts { sent: 1_000, ..Counts::default() };
        let (share, low, high) = all.availability().expect("some");
        assert!((share - 100.0).abs() < 1e-9 && (low - 99.617).abs() < 0.01 && high > 99.99, "{low} {high}");
        assert_eq!(Counts::default().availability(), None);
    }
}
