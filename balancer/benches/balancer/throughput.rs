//! What one request costs, and so what one core can do: keep-alive connections, small answers.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    peers::{self, Peer, Running},
    report::{Report, median},
};

const CONTENDERS: [Peer; 4] =
    [Peer::SwarmGuard("lease"), Peer::SwarmGuard("hcl"), Peer::Nginx, Peer::HaProxy("leastconn")];

/// Connections of the client.
const CONNECTIONS: u32 = 64;

#[derive(Default)]
struct Figures {
    cpu_us: Vec<f64>,
    per_core: Vec<f64>,
    wall: Vec<f64>,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
}

/// Every contender in turns.
pub fn measure(rounds: u32, seconds: u32, report: &mut Report) -> Result<()> {
    let (own, other) =
        if std::thread::available_parallelism().is_ok_and(|it| it.get() > 1) { (0, 1) } else { (0, 0) };
    let backend = start_backend(other)?;
    let replicas = [backend.address.port()];
    let mut proxies = Vec::new();
    for peer in CONTENDERS {
        proxies.push((peers::start(&peer, &replicas, Some(own))?, peer));
    }
    let mut all: BTreeMap<Peer, Figures> = BTreeMap::new();
    for (proxy, _) in &proxies {
        load(proxy, other, 1)?;
    }
    for _ in 0..rounds {
        for (proxy, peer) in &proxies {
            let before = proxy.cpu_ns();
            let done = load(proxy, other, seconds)?;
            #[expect(clippy::cast_precision_loss, reason = "a few seconds of CPU time")]
            let cpu_us = (proxy.cpu_ns() - before) as f64 / 1e3 / done.requests;
            let figures = all.entry(peer.clone()).or_default();
            figures.cpu_us.push(cpu_us);
            figures.per_core.push(1e6 / cpu_us);
            figures.wall.push(done.per_second);
            figures.p50_ms.push(done.p50_ms);
            figures.p99_ms.push(done.p99_ms);
        }
    }
    let [lease, _, nginx, haproxy] = &CONTENDERS;
    for (name, peer) in [("lb.rps_vs_nginx", nginx), ("lb.rps_vs_haproxy", haproxy)] {
        let (ours, theirs) = (&all[lease].per_core, &all[peer].per_core);
        report.compare(name, "req/s", ours, &peer.name(), theirs);
    }
    for (peer, figures) in &all {
        let name = peer.name().replace(' ', "_");
        report.add(format!("lb.cpu_us.{name}"), "us", &figures.cpu_us);
        report.add(format!("lb.wall_rps.{name}"), "req/s", &figures.wall);
        report.add(format!("lb.p50.{name}"), "ms", &figures.p50_ms);
        report.add(format!("lb.p99.{name}"), "ms", &figures.p99_ms);
    }
    debug_assert!(median(&all[lease].cpu_us) > 0.0);
    Ok(())
}

/// nginx as the replica: it costs least and never is what is measured.
fn start_backend(cpu: u32) -> Result<Running> {
    peers::start_static(cpu).context("cannot start the replica")
}

struct Done {
    requests: f64,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

fn load(proxy: &Running, cpu: u32, seconds: u32) -> Result<Done> {
    let output = Command::new("taskset")
        .args(["-c", &cpu.to_string(), "wrk", "-t1", "--latency"])
        .arg(format!("-c{CONNECTIONS}"))
        .arg(format!("-d{seconds}s"))
        .arg(format!("http://{}/", proxy.address))
        .output()
        .context("cannot run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("requests failed: {text}");
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let after =
        |word: &str| words.iter().position(|it| *it == word).and_then(|at| words.get(at + 1)).copied();
    let before =
        |word: &str| words.iter().position(|it| *it == word).and_then(|at| words.get(at - 1)).copied();
    let number = |text: Option<&str>| text.and_then(|it| it.parse::<f64>().ok());
    Ok(Done {
        requests: number(before("requests")).context("no number of requests")?,
        per_second: number(after("Requests/sec:")).context("no rate")?,
        p50_ms: after("50%").and_then(milliseconds).context("no median")?,
        p99_ms: after("99%").and_then(milliseconds).context("no tail")?,
    })
}

fn milliseconds(text: &str) -> Option<f64> {
    let units = [("us", 1e-3), ("ms", 1.0), ("s", 1e3)];
    units.iter().find_map(|(unit, scale)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * scale))
}
