//! Clients that mean harm, or behave as if they did: what they cost in memory, and what everybody else notices.
//!
//! Each attack goes on while a healthy client asks for something small, again and again; its p99 is compared with a calm
//! run of the same proxy. Memory is the most that the proxy and its children had (`VmRSS`).

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::{
    net::{AddressFamily, SocketType, bind, connect, socket},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use swarmguard_runtime::clock;
use swarmguard_tests::figures::{Report, Row};

use crate::peers::{self, Front, Peer, Running};

const CONTENDERS: [Peer; 3] = [Peer::SwarmGuard("lease"), Peer::Nginx, Peer::HaProxy("leastconn")];

/// Answers that nobody reads, in bytes.
const BIG: usize = 1_024 * 1_024;
/// Connections that a proxy is told to allow.
const MOST: u32 = 22_000;
/// Between two requests of the healthy client.
const PAUSE: Duration = Duration::from_millis(4);

/// What is done to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Attack {
    Calm,
    /// 3,000 heads of 60 kB that do not end.
    SlowHeads,
    /// 500 bodies that come a few bytes a second.
    SlowBodies,
    /// 500 answers of 1 MiB that are not read.
    Unread,
    /// 20,000 connections that say nothing.
    Connections,
    /// 500 upgraded connections.
    Tunnels,
    /// 20 HTTP/2 connections with 100 answers of 1 MiB each that are not read.
    Streams,
    /// 2,000 streams of events that say something three times a second.
    Events,
}

impl Attack {
    const ALL: [(&'static str, Self); 8] = [
        ("calm", Self::Calm),
        ("slow_heads", Self::SlowHeads),
        ("slow_bodies", Self::SlowBodies),
        ("unread", Self::Unread),
        ("connections", Self::Connections),
        ("tunnels", Self::Tunnels),
        ("streams", Self::Streams),
        ("events", Self::Events),
    ];

    fn count(self) -> u32 {
        match self {
            Self::Calm => 0,
            Self::SlowHeads => 3_000,
            Self::SlowBodies | Self::Unread | Self::Tunnels => 500,
            Self::Connections => 20_000,
            Self::Streams => 20,
            Self::Events => 2_000,
        }
    }

    /// What each connection says at first.
    fn opening(self) -> Vec<u8> {
        match self {
            Self::Calm | Self::Connections => Vec::new(),
            Self::SlowHeads => {
                let mut head = b"GET / HTTP/1.1\r\nHost: x\r\nA: ".to_vec();
                head.resize(60_000, b'a');
                head
            }
            Self::SlowBodies => {
                b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()
            }
            Self::Unread => b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            Self::Tunnels => {
                b"GET /tunnel HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
                    .to_vec()
            }
            Self::Streams => streams(),
            Self::Events => b"GET /events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".to_vec(),
        }
    }
}

/// Preface, settings with a window of 2 GiB, the same for the connection, and 100 requests.
fn streams() -> Vec<u8> {
    let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
        all.extend_from_slice(&length[1..]);
        all.extend_from_slice(&[kind, flags]);
        all.extend_from_slice(&stream.to_be_bytes());
        all.extend_from_slice(payload);
    };
    frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    frame(8, 0, 0, &0x7fff_0000_u32.to_be_bytes());
    for number in 0..100 {
        // :method GET, :scheme http, :path /big, :authority x, all without Huffman coding.
        frame(1, 5, 2 * number + 1, b"\x82\x86\x04\x04/big\x01\x01x");
    }
    all
}

/// Every attack on every contender, in turns.
pub fn measure(rounds: u32, seconds: u32, report: &mut Report) -> Result<()> {
    more_files()?;
    let replica = Backend::start()?;
    let mut memory: BTreeMap<(Attack, Peer), Vec<f64>> = BTreeMap::new();
    let mut p99: BTreeMap<(Attack, Peer), Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds {
        for peer in CONTENDERS {
            for (name, attack) in Attack::ALL {
                eprintln!("{} under {name}", peer.name());
                let proxy = peers::start_for(&peer, Front::Http1, &[replica.address], MOST)?;
                // Those that do not tell the protocols apart are attacked at a listener of its own.
                let front = match (attack, &peer) {
                    (Attack::Streams, Peer::Nginx | Peer::HaProxy(_)) => {
                        Some(peers::start_for(&peer, Front::Http2, &[replica.address], MOST)?)
                    }
                    _ => None,
                };
                let attacked = front.as_ref().unwrap_or(&proxy);
                let (mib, ms) = one(&proxy, attacked, attack, seconds)?;
                memory.entry((attack, peer.clone())).or_default().push(mib);
                p99.entry((attack, peer.clone())).or_default().push(ms);
            }
        }
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if files < u64::from(MOST) * 2 {
        report.skip(
            "lb.hostile at 20,000 connections",
            &format!("a process may have {files} open files here (nofile)"),
        );
    }
    let ours = &CONTENDERS[0];
    let of = |all: &BTreeMap<(Attack, Peer), Vec<f64>>, peer: &Peer| -> Vec<f64> {
        let values = (0..rounds as usize).map(|round| {
            let every =
                all.iter().filter(|((_, it), _)| it == peer).filter_map(|(_, values)| values.get(round));
            every.copied().fold(0.0, f64::max)
        });
        values.collect()
    };
    report.add(Row::of("lb.hostile_rss_mib", "MiB", "< 192", &of(&memory, ours)));
    for (name, attack) in Attack::ALL {
        for peer in &CONTENDERS {
            let key = (attack, peer.clone());
            let (Some(mib), Some(ms)) = (memory.get(&key), p99.get(&key)) else { continue };
            let who = peer.word();
            report.add(Row::of(&format!("lb.hostile_rss_mib.{name}.{who}"), "MiB", "", mib));
            let calm = p99.get(&(Attack::Calm, peer.clone())).context("calm comes first")?;
            let row = Row::of(&format!("lb.hostile_p99.{name}.{who}"), "ms", "<= 2 x calm", ms);
            report.add(row.beside("calm", calm));
            if peer != ours
                && let Some(own) = p99.get(&(attack, ours.clone()))
            {
                let row = Row::of(&format!("lb.hostile_p99.{name}.vs_{who}"), "ms", "", own);
                report.add(row.beside(&peer.name(), ms));
            }
        }
    }
    Ok(())
}

fn one(proxy: &Running, attacked: &Running, attack: Attack, seconds: u32) -> Result<(f64, f64)> {
    let done = Arc::new(AtomicBool::new(false));
    let most = Arc::new(AtomicU64::new(0));
    let (pids, seen, ended) = (attacked.processes(), Arc::clone(&most), Arc::clone(&done));
    let watching = std::thread::spawn(move || {
        while !ended.load(Relaxed) {
            let now: u64 = pids.iter().map(|pid| resident_kib(*pid)).sum();
            seen.fetch_max(now, Relaxed);
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let attackers = attack_all(attacked.address, attack, &done);
    let latencies = healthy(proxy.address, Duration::from_secs(seconds.into()));
    done.store(true, Relaxed);
    let connections = attackers.join().map_err(|_| anyhow::anyhow!("the attackers panicked"))??;
    drop(connections);
    let _ = watching.join();
    #[expect(clippy::cast_precision_loss, reason = "MiB")]
    let mib = most.load(Relaxed) as f64 / 1_024.0;
    Ok((mib, latencies))
}

/// Opens all connections at once and keeps them, some busy; ends when told so.
fn attack_all(
    address: SocketAddr,
    attack: Attack,
    done: &Arc<AtomicBool>,
) -> JoinHandle<Result<Vec<TcpStream>>> {
    let done = Arc::clone(done);
    std::thread::spawn(move || {
        let opening = attack.opening();
        let mut all = Vec::new();
        for number in 0..attack.count() {
            if done.load(Relaxed) {
                break;
            }
            // Attackers have addresses of their own; a proxy may have closed what they opened.
            let Ok(mut stream) = from(number, address) else { continue };
            stream.set_nonblocking(true)?;
            let _ = stream.write(&opening);
            all.push(stream);
        }
        while !done.load(Relaxed) {
            if attack == Attack::SlowBodies {
                for stream in &mut all {
                    let _ = stream.write(b"2\r\nab\r\n");
                }
            }
            if attack == Attack::SlowHeads {
                for stream in &mut all {
                    let _ = stream.write(b"a");
                }
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(all)
    })
}

/// A connection from one of a few hundred loopback addresses.
fn from(number: u32, to: SocketAddr) -> Result<TcpStream> {
    let [_, _, high, low] = (number % 500 + 1).to_be_bytes();
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&fd, &SocketAddrV4::new(Ipv4Addr::new(127, 9, high, low), 0))?;
    connect(&fd, &to)?;
    Ok(TcpStream::from(fd))
}

/// Asks all the time; the p99 in milliseconds, what failed counted as ten seconds.
fn healthy(address: SocketAddr, length: Duration) -> f64 {
    // The attack needs a moment.
    std::thread::sleep(Duration::from_millis(1_500));
    let end = clock::now() + length;
    let (mut kept, mut all) = (None, Vec::new());
    let mut number = 0_u32;
    while clock::now() < end {
        let begin = clock::now();
        // A new connection now and then, as clients come and go.
        if number.is_multiple_of(20) {
            kept = None;
        }
        number += 1;
        let answered = ask(&mut kept, address);
        if answered.is_err() {
            kept = None;
        }
        all.push(if answered.is_ok() { clock::now().since(begin).as_secs_f64() * 1e3 } else { 10_000.0 });
        std::thread::sleep(PAUSE);
    }
    all.sort_by(f64::total_cmp);
    all.get(all.len() * 99 / 100).copied().unwrap_or(f64::NAN)
}

fn ask(kept: &mut Option<TcpStream>, address: SocketAddr) -> Result<()> {
    let stream = match kept {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            kept.insert(stream)
        }
    };
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut byte = [0; 512];
    while !answer.ends_with(b"ok\n") {
        let count = stream.read(&mut byte)?;
        anyhow::ensure!(count > 0, "closed");
        answer.extend_from_slice(&byte[..count]);
    }
    anyhow::ensure!(answer.starts_with(b"HTTP/1.1 200"), "refused");
    Ok(())
}

/// A replica that answers small and big, reads bodies, and upgrades.
struct Backend {
    address: SocketAddr,
}

impl Backend {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let _ = std::thread::Builder::new().stack_size(64 * 1_024).spawn(move || serve(stream));
            }
        });
        Ok(Self { address })
    }
}

fn serve(mut stream: TcpStream) -> Option<()> {
    let _ = stream.set_nodelay(true);
    let mut read = Vec::new();
    let mut buffer = [0; 4_096];
    loop {
        let end = loop {
            if let Some(at) = read.windows(4).position(|it| it == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read(&mut buffer).ok()? {
                0 => return None,
                count => read.extend_from_slice(&buffer[..count]),
            }
        };
        let head: Vec<u8> = read.drain(..end).collect();
        if head.starts_with(b"GET /big") {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n").ok()?;
            stream.write_all(&vec![b'x'; BIG]).ok()?;
        } else if head.starts_with(b"GET /tunnel") {
            stream
                .write_all(b"HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                .ok()?;
            while stream.read(&mut buffer).ok()? > 0 {}
            return stream.shutdown(Shutdown::Both).ok();
        } else if head.starts_with(b"GET /events") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").ok()?;
            loop {
                stream.write_all(b"data: something happened\n\n").ok()?;
                std::thread::sleep(Duration::from_millis(300));
            }
        } else if head.starts_with(b"POST") {
            while stream.read(&mut buffer).ok()? > 0 {}
            return None;
        } else {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n").ok()?;
        }
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

/// As many open files as this user may have; children inherit it.
fn more_files() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("cannot open as many files as the attacks need")
}
