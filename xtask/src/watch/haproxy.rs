//! Debian's HAProxy beside a coordinator that acts: it asks each second part for weights (`agent-check`), requests go
//! through it all the time, a replica gets hot and is moved. None may fail, and the hot one must get less.
//!
//! The swarm behind the coordinator is played; for each of its nodes there is a listener here that takes requests only while
//! a replica is wanted and runs there. HAProxy sends nothing twice, so whoever is stopped too early shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::fixtures::{self, Going};
use super::stage::{Ended, free_port};
use crate::clock::Stopwatch;
use crate::test::{Counts, Log};

/// Nodes of the played swarm.
const NODES: u8 = 5;
/// The service that is balanced; the replica of it on the second node gets hot.
const SERVICE: &str = "shop_web";
const HOT: u8 = 2;
/// Clients that send one request after the other.
const CLIENTS: usize = 4;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the nodes take: requests by node, and on which of them a replica serves.
#[derive(Default)]
struct Swarm {
    requests: BTreeMap<u8, u64>,
    serving: BTreeSet<u8>,
}

type Shared = Arc<Mutex<Swarm>>;

fn locked(shared: &Shared) -> std::sync::MutexGuard<'_, Swarm> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Requests that clients sent, and those that failed.
#[derive(Default)]
struct Sent {
    all: AtomicU64,
    failed: AtomicU64,
}

/// Plays it.
///
/// # Errors
/// Where a program does not start; what does not hold is counted.
pub fn play(played: &Path, install: bool, log: &mut Log) -> Result<Counts> {
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    let shared: Shared = Arc::default();
    let mut command = Command::new(played);
    command.args(["--nodes", &NODES.to_string(), "--hot-after", "15", "--agent-check", "127.0.0.1:0"]);
    command.args(["--serving", SERVICE]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut coordinator = Ended::start(&mut command)?;
    let output = coordinator.0.stdout.take().context("a program without output")?;
    let mut lines = BufReader::new(output).lines();
    let mut told = |word: &str| -> Result<SocketAddr> {
        let line = lines.next().with_context(|| format!("the coordinator did not say {word:?}"))??;
        let address = line.strip_prefix(word).with_context(|| format!("{line:?} instead of {word:?}"))?;
        Ok(address.parse()?)
    };
    let (asked, api) = (told("agent-check ")?, told("listening ")?);
    let follower = Arc::clone(&shared);
    std::thread::spawn(move || {
        for line in lines.map_while(std::result::Result::ok) {
            if let Some(nodes) = line.strip_prefix("serving ") {
                locked(&follower).serving = nodes.split(',').filter_map(|node| node.parse().ok()).collect();
            }
        }
    });

    let mut nodes = Vec::new();
    for node in 1..=NODES {
        nodes.push((node, listen(node, &shared)?));
    }
    let front = SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let config = dir.path().join("haproxy.cfg");
    fs::write(&config, configuration(front, asked, &nodes)).context("cannot write HAProxy's settings")?;
    let mut haproxy = Command::new("haproxy");
    crate::bench::with_proxies(&mut haproxy, install)?;
    let errors = fs::File::create(dir.path().join("haproxy.log")).context("cannot write HAProxy's log")?;
    let _haproxy = Ended::start(haproxy.arg("-f").arg(&config).args(["-db", "-q"]).stderr(errors))?;

    // Nothing is moved yet, so that what the hot one gets can be seen.
    command_of(api, "pause", &json!({}))?;
    until("the service is reached", || get(front).is_ok_and(|status| status == 200))?;
    // Until HAProxy has heard of every node.
    std::thread::sleep(Duration::from_secs(2));
    let (going, sent) = (Going::new(), Arc::new(Sent::default()));
    for _ in 0..CLIENTS {
        client(front, &going, &sent);
    }
    ensure!(locked(&shared).serving.contains(&HOT), "no replica of {SERVICE} is on node {HOT}");
    let calm = share(&shared, Duration::from_secs(2));
    let mut hot = calm;
    let waiting = Stopwatch::start();
    while hot > calm / 2.0 && waiting.elapsed() < PATIENCE {
        hot = share(&shared, Duration::from_secs(1));
    }
    command_of(api, "resume", &json!({}))?;
    until("the hot replica has left", || !locked(&shared).serving.contains(&HOT))?;
    std::thread::sleep(Duration::from_secs(3));
    going.end();
    std::thread::sleep(Duration::from_millis(300));
    let (all, failed) = (sent.all.load(Relaxed), sent.failed.load(Relaxed));
    log.line(&format!(
        "HAProxy: the hot replica's share fell from {:.0} % to {:.0} %; {failed} of {all} requests failed while it moved",
        calm * 100.0,
        hot * 100.0
    ))?;
    // It had its part before, or nothing was shown.
    let held = [calm > 0.1 && hot <= calm / 2.0, failed == 0 && all > 200];
    let passed = u32::try_from(held.iter().filter(|held| **held).count())?;
    Ok(Counts { passed, failed: 2 - passed })
}

fn configuration(front: SocketAddr, asked: SocketAddr, nodes: &[(u8, SocketAddr)]) -> String {
    let mut text = format!(
        "defaults\n  mode http\n  timeout connect 2s\n  timeout client 10s\n  timeout server 10s\n  retries 0\n\
         frontend all\n  bind {front}\n  default_backend {SERVICE}\n\
         backend {SERVICE}\n  balance roundrobin\n"
    );
    for (node, address) in nodes {
        text.push_str(&format!(
            "  server node{node} {address} weight 100 agent-check agent-addr {} agent-port {} agent-inter 200ms agent-send \"{SERVICE} node{node}\\n\"\n",
            asked.ip(),
            asked.port()
        ));
    }
    text
}

/// A node: while a replica is wanted and runs there its port takes requests, and refuses connections otherwise.
fn listen(node: u8, shared: &Shared) -> Result<SocketAddr> {
    let address = SocketAddr::from((Ipv4Addr::new(127, 0, 1, node), free_port()?));
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        loop {
            if !locked(&shared).serving.contains(&node) {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            // Closed again as soon as Swarm wants the replica no more.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            if listener.set_nonblocking(true).is_err() {
                continue;
            }
            while locked(&shared).serving.contains(&node) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                *locked(&shared).requests.entry(node).or_default() += 1;
                std::thread::spawn(move || {
                    let _ = stream.set_nonblocking(false);
                    fixtures::respond(stream, 0);
                });
            }
        }
    });
    Ok(address)
}

/// The share of the hot node in the requests of a while.
fn share(shared: &Shared, over: Duration) -> f64 {
    let before = locked(shared).requests.clone();
    std::thread::sleep(over);
    let after = locked(shared).requests.clone();
    let new = |node: &u8| after.get(node).unwrap_or(&0) - before.get(node).unwrap_or(&0);
    let all: u64 = after.keys().map(new).sum();
    #[expect(clippy::cast_precision_loss, reason = "requests of a second")]
    let share = new(&HOT) as f64 / all.max(1) as f64;
    share
}

fn client(to: SocketAddr, going: &Going, sent: &Arc<Sent>) {
    let (going, sent) = (going.clone(), Arc::clone(sent));
    std::thread::spawn(move || {
        while going.on() {
            sent.all.fetch_add(1, Relaxed);
            if !get(to).is_ok_and(|status| status == 200) {
                sent.failed.fetch_add(1, Relaxed);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

/// One request over a connection of its own; its status.
fn get(to: SocketAddr) -> Result<u16> {
    exchange(to, "GET / HTTP/1.0\r\nHost: shop\r\n\r\n")
}

fn command_of(api: SocketAddr, name: &str, body: &serde_json::Value) -> Result<()> {
    let body = body.to_string();
    let request = format!(
        "POST /api/v1/commands/{name} HTTP/1.0\r\nHost: {api}\r\nAuthorization: Bearer a-token-long-enough\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let waiting = Stopwatch::start();
    loop {
        let status = exchange(api, &request)?;
        if status < 300 {
            return Ok(());
        }
        // It does not act yet.
        ensure!(waiting.elapsed() < PATIENCE, "the command {name} was answered {status}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn exchange(to: SocketAddr, request: &str) -> Result<u16> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no answer of HTTP")
}

fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let waiting = Stopwatch::start();
    while !condition() {
        ensure!(waiting.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
