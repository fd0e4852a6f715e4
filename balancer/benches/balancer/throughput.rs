//! What one request costs, and so what one core can do: keep-alive connections, small answers.

use std::{collections::BTreeMap, io::Write as _, process::Command};

use anyhow::{Context as _, Result, bail};

use swarmguard_tests::figures::{Report, Row};

use crate::peers::{self, Front, Peer, Running};

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
    p999_ms: Vec<f64>,
}

/// What is asked, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// Small answers over HTTP/1.1.
    Small,
    /// Answers of 64 KiB.
    Large,
    /// Small answers, HTTP/2 in front.
    Http2,
}

impl Load {
    const ALL: [(&'static str, Self); 3] =
        [("rps", Self::Small), ("body64k", Self::Large), ("h2", Self::Http2)];

    fn target(self) -> &'static str {
        if self == Self::Small { ">= 1.3 x peer" } else { ">= peer" }
    }

    fn run(self, proxy: &Running, cpu: u32, seconds: u32) -> Result<Done> {
        match self {
            Self::Small => wrk(proxy, "/", cpu, seconds),
            Self::Large => wrk(proxy, "/large", cpu, seconds),
            Self::Http2 => h2load(proxy, cpu, seconds),
        }
    }
}

/// Every contender in turns.
pub fn measure(rounds: u32, seconds: u32, report: &mut Report) -> Result<()> {
    let (own, other) =
        if std::thread::available_parallelism().is_ok_and(|it| it.get() > 1) { (0, 1) } else { (0, 0) };
    let backend = start_backend(other)?;
    let replicas = [backend.address];
    for (name, load) in Load::ALL {
        let front = if load == Load::Http2 { Front::Http2 } else { Front::Http1 };
        let mut proxies = Vec::new();
        for peer in CONTENDERS {
            proxies.push((peers::start_speaking(&peer, front, &replicas, Some(own))?, peer));
        }
        let all = measured(load, &proxies, other, rounds, seconds)?;
        let [lease, _, nginx, haproxy] = &CONTENDERS;
        for (suffix, peer) in [("nginx", nginx), ("haproxy", haproxy)] {
            let (ours, theirs) = (&all[lease].per_core, &all[peer].per_core);
            let row = Row::of(&format!("lb.{name}_vs_{suffix}"), "req/s", load.target(), ours);
            report.add(row.beside(&peer.name(), theirs));
        }
        for (peer, figures) in &all {
            let name = format!("{name}.{}", peer.name().replace(' ', "_"));
            let cost = Row::of(&format!("lb.cpu_us.{name}"), "us", "", &figures.cpu_us);
            report.add(cost.plausible(1.0..=10_000.0));
            report.add(Row::of(&format!("lb.wall_rps.{name}"), "req/s", "", &figures.wall));
            if load != Load::Http2 {
                report.add(Row::of(&format!("lb.p50.{name}"), "ms", "", &figures.p50_ms));
                report.add(Row::of(&format!("lb.p99.{name}"), "ms", "", &figures.p99_ms));
                report.add(Row::of(&format!("lb.p999.{name}"), "ms", "", &figures.p999_ms));
            }
        }
    }
    Ok(())
}

fn measured(
    load: Load,
    proxies: &[(Running, Peer)],
    cpu: u32,
    rounds: u32,
    seconds: u32,
) -> Result<BTreeMap<Peer, Figures>> {
    let mut all: BTreeMap<Peer, Figures> = BTreeMap::new();
    for (proxy, _) in proxies {
        load.run(proxy, cpu, 1)?;
    }
    for _ in 0..rounds {
        for (proxy, peer) in proxies {
            let before = proxy.cpu_ns();
            let done =
                load.run(proxy, cpu, seconds).with_context(|| format!("{} under {load:?}", peer.name()))?;
            #[expect(clippy::cast_precision_loss, reason = "a few seconds of CPU time")]
            let cpu_us = (proxy.cpu_ns() - before) as f64 / 1e3 / done.requests;
            let figures = all.entry(peer.clone()).or_default();
            figures.cpu_us.push(cpu_us);
            figures.per_core.push(1e6 / cpu_us);
            figures.wall.push(done.per_second);
            figures.p50_ms.push(done.p50_ms);
            figures.p99_ms.push(done.p99_ms);
            figures.p999_ms.push(done.p999_ms);
        }
    }
    Ok(all)
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
    p999_ms: f64,
}

fn wrk(proxy: &Running, path: &str, cpu: u32, seconds: u32) -> Result<Done> {
    // wrk's own table ends at 99 %.
    let mut script = tempfile::NamedTempFile::new()?;
    script.write_all(SCRIPT.as_bytes())?;
    let output = Command::new("taskset")
        .args(["-c", &cpu.to_string(), "wrk", "-t1"])
        .arg(format!("-c{CONNECTIONS}"))
        .arg(format!("-d{seconds}s"))
        .arg("-s")
        .arg(script.path())
        .arg(format!("http://{}{path}", proxy.address))
        .output()
        .context("cannot run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("requests failed: {text}");
    }
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let read = line.and_then(|value| value.trim().parse::<f64>().ok());
        read.with_context(|| format!("wrk does not say {name}: {text}"))
    };
    Ok(Done {
        requests: number("requests")?,
        per_second: number("requests")? / (number("duration_us")? / 1e6),
        p50_ms: number("p50_us")? / 1e3,
        p99_ms: number("p99_us")? / 1e3,
        p999_ms: number("p999_us")? / 1e3,
    })
}

/// HTTP/2 by prior knowledge: 8 connections of 8 streams.
fn h2load(proxy: &Running, cpu: u32, seconds: u32) -> Result<Done> {
    let output = Command::new("taskset")
        .args(["-c", &cpu.to_string(), "h2load", "-t1", "-c8", "-m8"])
        .arg(format!("--duration={seconds}"))
        .arg(format!("http://{}/", proxy.address))
        .output()
        .context("cannot run h2load")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (requests, per_second) =
        h2_figures(&text).with_context(|| format!("requests failed, or h2load says nothing: {text}"))?;
    let nan = f64::NAN;
    Ok(Done { requests, per_second, p50_ms: nan, p99_ms: nan, p999_ms: nan })
}

/// Requests that succeeded, and those in a second; `None` where any failed.
fn h2_figures(text: &str) -> Option<(f64, f64)> {
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let counts = line("requests: ")?;
    let count = |name: &str| {
        let part = counts.split(',').find_map(|part| part.trim().strip_suffix(name))?;
        part.trim().parse::<f64>().ok()
    };
    if count("failed")? + count("errored")? + count("timeout")? > 0.0
        || !line("status codes: ")?.contains(", 0 5xx")
    {
        return None;
    }
    let rate = line("finished in ")?.split(',').find_map(|part| part.trim().strip_suffix(" req/s"))?;
    Some((count("succeeded")?, rate.parse().ok()?))
}

/// What wrk says at its end.
const SCRIPT: &str = "done = function(summary, latency, requests)\n\
                      print('requests=' .. summary.requests)\n\
                      print('duration_us=' .. summary.duration)\n\
                      print('p50_us=' .. latency:percentile(50))\n\
                      print('p99_us=' .. latency:percentile(99))\n\
                      print('p999_us=' .. latency:percentile(99.9))\n\
                      end\n";
