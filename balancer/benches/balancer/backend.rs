//! Replicas for the benchmark: processes of this program, each in a control group of its own that limits its CPU. A
//! request costs CPU time, a bounded number of them are worked on at a time.

use std::{
    hint::black_box,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use swarmguard_runtime::clock;

use crate::{
    cgroup::Group,
    figures::Agent,
    peers::{self, Running},
};

/// Replicas of the service.
const REPLICAS: u8 = 4;
/// Requests that one replica works on at a time.
const SLOTS: u32 = 4;
/// CPU time that a request takes, on average.
const MEAN: Duration = Duration::from_millis(1);
/// What each replica may use, in per cent of one CPU. Together less than one of two CPUs: the other is for whatever
/// balances and for the client.
const LIMIT: u32 = 20;
/// What the slow one may use.
const SLOW_LIMIT: u32 = 10;
/// How much more CPU time its requests take: with half of the limit it does a quarter of what the others do.
const SLOW_FACTOR: f64 = 2.0;
/// Threads of the neighbour that eats the replica's CPU.
const NEIGHBOURS: u32 = 12;
/// The neighbour eats for this long …
const BURST: Duration = Duration::from_millis(500);
/// … out of this long.
const CYCLE: Duration = Duration::from_secs(2);

/// What is wrong with the first replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Nothing.
    Equal,
    /// It is always slow.
    Slow,
    /// A neighbour in its control group eats its CPU half a second out of two.
    Bursts,
    /// It answers 500 at once.
    Errors,
    /// Not a replica at all: the neighbour.
    Neighbour,
}

/// All replicas of a run, their neighbour, and the agents that tell about them. Fields are dropped in this order: groups
/// last, for they must be empty.
pub struct Replicas {
    agents: Vec<Agent>,
    running: Vec<Running>,
    /// Where they listen, each on a loopback address of its own.
    pub addresses: Vec<SocketAddr>,
    /// Port of the agents, on the same addresses.
    pub metrics_port: u16,
    groups: Vec<Arc<Group>>,
}

impl Replicas {
    /// Starts them; `rounds_a_ms` is what [`calibrate`] found.
    pub fn start(kind: Kind, rounds_a_ms: u64) -> Result<Self> {
        let metrics_port = peers::free_port()?;
        let mut all = Self {
            agents: Vec::new(),
            running: Vec::new(),
            addresses: Vec::new(),
            metrics_port,
            groups: Vec::new(),
        };
        for index in 0..REPLICAS {
            let kind = if index == 0 { kind } else { Kind::Equal };
            let group = Arc::new(Group::new(if kind == Kind::Slow { SLOW_LIMIT } else { LIMIT })?);
            all.groups.push(Arc::clone(&group));
            let ip = Ipv4Addr::new(127, 0, 1, index + 1);
            let address = SocketAddr::from((ip, peers::free_port()?));
            let running = peers::start_replica(kind, address, rounds_a_ms)?;
            group.add(running.pid())?;
            all.running.push(running);
            if kind == Kind::Bursts {
                let neighbour = peers::start_replica(
                    Kind::Neighbour,
                    SocketAddr::from((ip, peers::free_port()?)),
                    rounds_a_ms,
                )?;
                group.add(neighbour.pid())?;
                all.running.push(neighbour);
            }
            all.addresses.push(address);
            all.agents.push(Agent::start(SocketAddr::from((ip, metrics_port)), group)?);
        }
        Ok(all)
    }
}

/// Rounds of [`spin`] that take a millisecond of an idle CPU: the best of several tries, for the machine may be busy.
pub fn calibrate() -> Result<u64> {
    const ROUNDS: u64 = 2_000_000;
    let best = (0..20).map(|_| {
        let begin = clock::now();
        spin(ROUNDS);
        clock::now().since(begin)
    });
    let best = best.min().filter(|it| !it.is_zero()).context("the clock stands still")?;
    Ok(u64::try_from(u128::from(ROUNDS) * 1_000_000 / best.as_nanos())?)
}

fn spin(rounds: u64) {
    let mut state = 1_u64;
    for round in 0..rounds {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round));
    }
}

/// Serves as one replica until killed.
pub fn serve(kind: Kind, address: SocketAddr, rounds_a_ms: u64) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    if kind == Kind::Neighbour {
        return Err(eat(rounds_a_ms));
    }
    let slots = Arc::new((Mutex::new(SLOTS), Condvar::new()));
    for stream in listener.incoming().map_while(Result::ok) {
        let slots = Arc::clone(&slots);
        std::thread::spawn(move || connection(stream, kind, address, rounds_a_ms, &slots));
    }
    Ok(())
}

/// Eats CPU in bursts for ever.
fn eat(rounds_a_ms: u64) -> anyhow::Error {
    let bursts = move || {
        loop {
            let since = clock::now().as_millis() % u64::try_from(CYCLE.as_millis()).unwrap_or(u64::MAX);
            if Duration::from_millis(since) < BURST {
                spin(rounds_a_ms / 2);
            } else {
                std::thread::sleep(CYCLE - Duration::from_millis(since));
            }
        }
    };
    let threads: Vec<std::thread::JoinHandle<()>> =
        (0..NEIGHBOURS).map(|_| std::thread::spawn(bursts)).collect();
    for thread in threads {
        let _ = thread.join();
    }
    anyhow::anyhow!("the neighbour ended by itself")
}

fn connection(
    mut stream: TcpStream,
    kind: Kind,
    address: SocketAddr,
    rounds_a_ms: u64,
    slots: &(Mutex<u32>, Condvar),
) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 4_096];
    let mut filled = 0;
    let mut rng = fastrand::Rng::new();
    let good = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Replica: {address}\r\n\r\nok");
    let bad = format!("HTTP/1.1 500 Broken\r\nContent-Length: 2\r\nX-Replica: {address}\r\n\r\nno");
    loop {
        match stream.read(&mut buffer[filled..]) {
            Ok(count @ 1..) => filled += count,
            _ => return,
        }
        if !buffer[..filled].ends_with(b"\r\n\r\n") {
            continue;
        }
        let health = buffer.starts_with(b"GET /health ");
        filled = 0;
        let answer = if kind == Kind::Errors && !health { &bad } else { &good };
        if !health && kind != Kind::Errors {
            work(kind, rounds_a_ms, slots, &mut rng);
        }
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn work(kind: Kind, rounds_a_ms: u64, (slots, freed): &(Mutex<u32>, Condvar), rng: &mut fastrand::Rng) {
    let lock = slots.lock().unwrap_or_else(PoisonError::into_inner);
    let mut free = freed.wait_while(lock, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
    *free -= 1;
    drop(free);
    // Exponential, cut at five times the mean.
    let factor = (-(1.0 - rng.f64()).ln()).min(5.0) * if kind == Kind::Slow { SLOW_FACTOR } else { 1.0 };
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few million rounds"
    )]
    let rounds = (rounds_a_ms as f64 * MEAN.as_secs_f64() * 1e3 * factor) as u64;
    spin(rounds);
    *slots.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    freed.notify_one();
}
