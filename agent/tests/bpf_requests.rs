//! Requests in flight and time to answer, against a server that is known to take its time.

#[expect(dead_code, reason = "each test binary uses a part of it")]
mod kernel;

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use kernel::{DEADLINE, Group, Process, Wire};
use swarmguard_agent::bpf::{Options, Programs};
use swarmguard_common::kernel::GroupCounters;
use swarmguard_runtime::clock;

const CLIENTS: u64 = 4;
const REQUESTS: u64 = 10;
const DELAY: Duration = Duration::from_millis(30);
/// How long the last request of each client stays open, so that it can be seen in flight.
const LAST: Duration = Duration::from_millis(1500);

/// Answers each request after a delay. `s`: slow; `d`: never, the connection ends instead.
fn serve(host: &str) -> io::Result<()> {
    let listener = TcpListener::bind((host, 8001))?;
    let mut threads = Vec::new();
    for _ in 0..CLIENTS {
        let (mut stream, _) = listener.accept()?;
        threads.push(thread::spawn(move || -> io::Result<()> {
            let mut request = [0u8; 4096];
            loop {
                let got = stream.read(&mut request)?;
                match request.get(..got).and_then(<[u8]>::first) {
                    None => return Ok(()),
                    Some(b'd') => {
                        thread::sleep(LAST);
                        return Ok(());
                    }
                    Some(_) => {
                        thread::sleep(DELAY);
                        stream.write_all(&[b'y'; 30_000])?;
                    }
                }
            }
        }));
    }
    threads
        .into_iter()
        .try_for_each(|one| one.join().map_err(|_| io::Error::other("a server thread panicked"))?)
}

fn ask(host: &'static str) -> io::Result<()> {
    let client = move || -> io::Result<()> {
        let start = clock::now();
        let mut stream = loop {
            match TcpStream::connect((host, 8001)) {
                Ok(stream) => break stream,
                Err(error) if clock::now().since(start) > DEADLINE => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        let mut answer = vec![0u8; 30_000];
        for _ in 0..REQUESTS {
            // Larger than a segment: one request all the same.
            stream.write_all(&[b's'; 4096])?;
            stream.read_exact(&mut answer)?;
        }
        stream.write_all(b"d")?;
        let rest = stream.read(&mut answer)?;
        if rest == 0 { Ok(()) } else { Err(io::Error::other("the last request was answered")) }
    };
    let all: Vec<_> = (0..CLIENTS).map(|_| thread::spawn(client)).collect();
    all.into_iter().try_for_each(|one| one.join().map_err(|_| io::Error::other("a client panicked"))?)
}

fn in_flight(counters: &GroupCounters) -> u64 {
    counters.requests_started - counters.answers.count - counters.requests_dropped
}

fn requests_over(host: &'static str) {
    let Some((facts, root)) = kernel::facts_or_skip("bpf_requests") else { return };
    if !kernel::ip_or_skip("bpf_requests") {
        return;
    }
    let mut programs =
        Programs::load(&root, &facts, Options::default()).expect("this kernel takes the programs");
    if !programs.follows_requests() {
        kernel::skip("bpf_requests", &format!("{:?}", programs.findings()));
        return;
    }
    let wire = Wire::new();
    let groups = Group::new(&root);
    let (server, client) = (groups.child("server"), groups.child("client"));
    for path in [&server, &client] {
        programs.watch(kernel::id(path), path).expect("a fresh cgroup");
    }
    let serving = Process::spawn(&server, Some(&wire.b), || serve(host));
    let asking = Process::spawn(&client, Some(&wire.a), || ask(host));

    let start = clock::now();
    let mut most = 0;
    while most < CLIENTS && clock::now().since(start) < DEADLINE {
        let now = programs.counters(kernel::id(&server)).expect("watched");
        most = most.max(in_flight(&now));
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(most, CLIENTS, "all clients wait at the same time, and nobody else does");
    asking.finish();
    serving.finish();

    let counters = programs.counters(kernel::id(&server)).expect("watched");
    println!("{host}: {counters:?}");
    assert_eq!(counters.requests_started, CLIENTS * (REQUESTS + 1));
    assert_eq!(counters.answers.count, CLIENTS * REQUESTS);
    assert_eq!(counters.requests_dropped, CLIENTS);
    let mean = Duration::from_nanos(counters.answers.total_ns / counters.answers.count);
    assert!(mean >= DELAY, "no answer took less than the server's delay: {mean:?}");
    assert_eq!(counters.answers.slots.iter().map(|count| u64::from(*count)).sum::<u64>(), CLIENTS * REQUESTS);
    let client = programs.counters(kernel::id(&client)).expect("watched");
    assert_eq!(client.requests_started, 0, "who asks serves nothing");
}

#[test]
fn requests_over_ipv4() {
    requests_over("10.99.0.2");
}

#[test]
fn requests_over_ipv6() {
    requests_over("fd99::2");
}
