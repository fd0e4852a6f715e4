//! A client that sends at a given rate whatever comes back (open loop), so that a proxy that stalls is not sent less.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use swarmguard_runtime::clock;

/// Connections, and so the most requests in flight.
const CONNECTIONS: usize = 192;
/// An answer that takes longer is a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Time from when a request was due to its answer, sorted, in milliseconds; answers with status below 500 only.
    pub latencies_ms: Vec<f64>,
    /// Requests that failed or were answered with a status of 500 and above.
    pub failed: u64,
    /// Requests by replica.
    pub replicas: BTreeMap<String, u64>,
}

impl Outcome {
    /// A quantile of the latencies, 0 to 1.
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        let last = self.latencies_ms.len().saturating_sub(1);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index"
        )]
        let at = (last as f64 * quantile).round() as usize;
        self.latencies_ms.get(at).copied().unwrap_or(f64::NAN)
    }

    /// Share of requests that failed, in per cent.
    pub fn failed_percent(&self) -> f64 {
        let answered = u64::try_from(self.latencies_ms.len()).unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let share = self.failed as f64 / (answered + self.failed).max(1) as f64;
        share * 100.0
    }

    /// How much more than the mean the busiest replica got, in per cent.
    pub fn spread_percent(&self) -> f64 {
        let most = self.replicas.values().max().copied().unwrap_or(0);
        let sum: u64 = self.replicas.values().sum();
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let over = most as f64 * self.replicas.len() as f64 / sum.max(1) as f64;
        (over - 1.0) * 100.0
    }
}

/// Sends `rate` requests a second for `length`, evenly.
pub fn run(address: SocketAddr, rate: u32, length: Duration) -> Result<Outcome> {
    let total = u64::from(rate) * length.as_secs();
    let next = Arc::new(AtomicU64::new(0));
    let outcome = Arc::new(Mutex::new(Outcome::default()));
    let begin = clock::now() + Duration::from_millis(100);
    let gap = Duration::from_secs(1) / rate;
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (next, outcome) = (Arc::clone(&next), Arc::clone(&outcome));
            std::thread::spawn(move || {
                let mut stream = None;
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= total {
                        return;
                    }
                    let due = begin + gap.saturating_mul(u32::try_from(number).unwrap_or(u32::MAX));
                    std::thread::sleep(due.since(clock::now()));
                    let answer = ask(&mut stream, address);
                    let took = clock::now().since(due).as_secs_f64() * 1e3;
                    let mut all = outcome.lock().unwrap_or_else(PoisonError::into_inner);
                    match answer {
                        Ok((status, replica)) => {
                            *all.replicas.entry(replica).or_default() += 1;
                            if status < 500 {
                                all.latencies_ms.push(took);
                            } else {
                                all.failed += 1;
                            }
                        }
                        Err(_) => {
                            stream = None;
                            all.failed += 1;
                        }
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        let _ = thread.join();
    }
    let mut outcome = std::mem::take(&mut *outcome.lock().unwrap_or_else(PoisonError::into_inner));
    outcome.latencies_ms.sort_by(f64::total_cmp);
    Ok(outcome)
}

fn ask(kept: &mut Option<TcpStream>, address: SocketAddr) -> Result<(u16, String)> {
    let stream = match kept {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            kept.insert(stream)
        }
    };
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
    let mut buffer = [0; 2_048];
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..])?;
        anyhow::ensure!(count > 0, "closed");
        filled += count;
        let text = std::str::from_utf8(&buffer[..filled])?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let value = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.find_map(|(key, value)| key.eq_ignore_ascii_case(name).then(|| value.to_owned()))
        };
        let length: usize = value("content-length").context("no length")?.parse()?;
        if body.len() < length {
            continue;
        }
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        return Ok((status, value("x-replica").unwrap_or_default()));
    }
}
