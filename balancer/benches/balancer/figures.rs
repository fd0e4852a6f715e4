//! What an agent says about a replica: its CPU as a share of its limit, on the replica's own address.
//!
//! Served from outside the replica's control group, as the real agent is: one inside would fall silent just when the
//! replica is busy.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use swarmguard_runtime::clock;

use crate::{cgroup::Group, peers::cpu_of};

/// Memory in use, in per cent: the same everywhere, so that it decides nothing.
const MEMORY_PERCENT: f64 = 20.0;

/// An agent; it ends when dropped.
pub struct Agent {
    stop: Arc<AtomicBool>,
    address: SocketAddr,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Agent {
    /// Serves figures of `group` at `address`, each over the time since the last one asked for.
    pub fn start(address: SocketAddr, group: Arc<Group>) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut before, mut at) = (used_ns(&group), clock::now());
            for stream in listener.incoming() {
                if stopped.load(Relaxed) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                let (now, used) = (clock::now(), used_ns(&group));
                let allowed = now.since(at).as_secs_f64() * 1e9 * f64::from(group.percent) / 100.0;
                #[expect(clippy::cast_precision_loss, reason = "seconds of CPU time")]
                let cpu = (used.saturating_sub(before) as f64 / allowed.max(1.0) * 100.0).min(100.0);
                (before, at) = (used, now);
                // A balancer that does not ask or listen gets nothing; there is nobody else to tell.
                let _ = answer(&mut stream, cpu);
            }
        });
        Ok(Self { stop, address, thread: Some(thread) })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // Wakes the thread up.
        let _ = std::net::TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn used_ns(group: &Group) -> u64 {
    group.processes().into_iter().map(cpu_of).sum()
}

fn answer(stream: &mut std::net::TcpStream, cpu: f64) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut buffer = [0; 2_048];
    let mut filled = 0;
    while !buffer[..filled].ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer[filled..])? {
            0 => return Ok(()),
            count => filled += count,
        }
    }
    let body = serde_json::json!({ "node": "bench", "containers": [{
        "service_name": "bench", "cpu_percent": cpu, "memory_percent": MEMORY_PERCENT,
        "network_rx_mbps": 0.0, "network_tx_mbps": 0.0,
    }] });
    let body = body.to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len())
}
