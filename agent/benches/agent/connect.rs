//! What balancing at `connect()` costs: a connection with one request to a replica's own address, from a cgroup without
//! programs, beside the same to a virtual address, from one with them; in turns, and the kernel's own accounting.
//!
//! Over the loopback network, where a connection costs least, so that what is added weighs most.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use swarmguard_agent::{bpf::Programs, connect::Planner};
use swarmguard_common::wire::connect::{ConnectReplica, ConnectRoutes, Front, ReplicaState};
use swarmguard_runtime::clock;

use swarmguard_tests::figures::{Report, Row};

use crate::{groups::Groups, kernel, programs};

const ROW: &str = "agent.connect_overhead";
const VIP: Ipv4Addr = Ipv4Addr::new(127, 99, 0, 1);
const REPLICAS: u8 = 4;
const REQUESTS: u32 = 4_000;
const REQUEST: [u8; 64] = [b'q'; 64];
const ANSWER: [u8; 512] = [b'a'; 512];

fn replica(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 99, 2, number)
}

/// Enters a cgroup, connects and asks, and prints the median of nanoseconds that one took.
pub fn ask(dir: &Path, port: u16, direct: bool, requests: u32) -> Result<()> {
    std::fs::write(dir.join("cgroup.procs"), std::process::id().to_string())?;
    let mut took = Vec::with_capacity(requests as usize);
    let replicas = (1..=REPLICAS).cycle();
    for (_, number) in (0..requests).zip(replicas) {
        let to = SocketAddr::from((if direct { replica(number) } else { VIP }, port));
        let began = clock::now();
        let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
        stream.write_all(&REQUEST)?;
        let mut answer = Vec::with_capacity(ANSWER.len());
        stream.read_to_end(&mut answer)?;
        drop(stream);
        took.push(clock::now().since(began).as_nanos());
        ensure!(answer.len() == ANSWER.len(), "an answer of {} bytes", answer.len());
    }
    took.sort_unstable();
    println!("{}", took.get(took.len() / 2).context("no requests")?);
    Ok(())
}

fn asked(dir: &Path, port: u16, direct: bool) -> Result<f64> {
    let output = Command::new(std::env::current_exe()?)
        .args(["ask".as_ref(), dir.as_os_str()])
        .args([port.to_string(), direct.to_string(), REQUESTS.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the client ended with {}", output.status);
    String::from_utf8(output.stdout)?.trim().parse().context("the client printed no number")
}

/// Answers one request of each connection, for as long as the program runs.
fn serve(listener: TcpListener) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A client that went away is missed by itself.
            let _ = stream.read_exact(&mut REQUEST.clone()).and_then(|()| stream.write_all(&ANSWER));
        }
    });
}

/// Measures in turns.
pub fn measure(rounds: usize, root: &Path, report: &mut Report) -> Result<()> {
    let Some(mut programs) = programs(root, ROW, report) else { return Ok(()) };
    let first = TcpListener::bind((replica(1), 0))?;
    let port = first.local_addr()?.port();
    serve(first);
    for number in 2..=REPLICAS {
        serve(TcpListener::bind((replica(number), port))?);
    }
    let groups = Groups::make(root, 2)?;
    let (bare, balanced) = (groups.path(0), groups.path(1));
    let id = kernel::id(&balanced);
    let plan = Planner::default().plan(Some(&routes()?), &BTreeMap::from([("c1".parse()?, id)]));
    if !programs.balance(&plan, &|_| Some(balanced.as_path()))? {
        report.skip(ROW, &format!("{:?}", programs.findings()));
        return Ok(());
    }
    let (mut direct, mut through, mut ratio, mut accounted) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds.max(9) {
        // Whoever is first differs, for the second finds warmer caches.
        let (straight, directed) = if round % 2 == 0 {
            let straight = asked(&bare, port, true)?;
            (straight, asked(&balanced, port, false)?)
        } else {
            let directed = asked(&balanced, port, false)?;
            (asked(&bare, port, true)?, directed)
        };
        direct.push(straight / 1e3);
        through.push(directed / 1e3);
        ratio.push(directed / straight);
    }
    let figures = programs.balanced().context("loaded a moment ago")?;
    let all = u64::from(REQUESTS) * rounds.max(9) as u64;
    ensure!((figures.directed, figures.open) == (all, 0), "not all were directed and ended: {figures:?}");
    // Measuring itself costs, so the kernel's own figure is of traffic of its own.
    for _ in 0..3 {
        let measuring = programs.measure()?;
        let before = total_ns(&programs);
        asked(&balanced, port, false)?;
        accounted.push((total_ns(&programs) - before) as f64 / f64::from(REQUESTS));
        drop(measuring);
    }
    report.announce(Row::of("agent.connect_request_us", "us", "", &through).beside("direct", &direct));
    report.announce(Row::of(ROW, "x direct", "<= 1.05", &ratio));
    report.announce(Row::of("agent.connect_accounted_ns", "ns", "", &accounted));
    Ok(())
}

fn routes() -> Result<ConnectRoutes> {
    let replicas = (1..=REPLICAS).map(|number| {
        Ok(ConnectReplica {
            task: format!("t{number}").parse()?,
            address: replica(number),
            node: "w1".parse()?,
            state: ReplicaState::Usable,
        })
    });
    let replicas = replicas.collect::<Result<_>>()?;
    let front = Front { service: "s1".parse()?, network: "n1".parse()?, address: VIP, replicas };
    let containers = [("c1".parse()?, vec![front.network.clone()])].into();
    Ok(ConnectRoutes { revision: 1, acting: true, fronts: vec![front], containers })
}

/// Nanoseconds so far of the programs that a connection runs.
fn total_ns(programs: &Programs) -> u64 {
    let costs = programs.costs();
    costs.iter().filter(|cost| cost.name.starts_with("connect_")).map(|cost| cost.total_ns).sum()
}
