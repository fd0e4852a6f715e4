//! Replicas for the benchmark: a bounded number of requests at a time, each taking its time.
//!
//! They sleep instead of computing: on a machine with few cores the proxies would be starved otherwise, and what is
//! measured is where requests are sent, not how fast replicas compute.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use clap::ValueEnum;
use swarmguard_common::clock::{self, Time};

/// Requests that one replica works on at a time.
const SLOTS: u32 = 4;
/// Mean time that a request takes.
pub const MEAN: Duration = Duration::from_millis(8);
/// How much longer it takes where something is wrong.
const SLOWER: f64 = 10.0;

/// What is wrong with the first replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Nothing.
    Equal,
    /// It is always slow.
    Slow,
    /// A neighbour makes it slow half a second out of two.
    Bursts,
    /// It answers 500 at once.
    Errors,
}

/// Serves until killed.
pub fn serve(kind: Kind, ports: &[u16]) -> Result<()> {
    let mut threads = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port))?;
        let kind = if index == 0 { kind } else { Kind::Equal };
        let slots = Arc::new((Mutex::new(SLOTS), Condvar::new()));
        threads.push(std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let slots = Arc::clone(&slots);
                std::thread::spawn(move || connection(stream, kind, index, &slots));
            }
        }));
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn connection(mut stream: TcpStream, kind: Kind, index: usize, slots: &(Mutex<u32>, Condvar)) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 4_096];
    let mut filled = 0;
    let mut rng = fastrand::Rng::new();
    let good = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Replica: {index}\r\n\r\nok");
    let bad = format!("HTTP/1.1 500 Broken\r\nContent-Length: 2\r\nX-Replica: {index}\r\n\r\nno");
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
        if kind == Kind::Errors && !health {
            if stream.write_all(bad.as_bytes()).is_err() {
                return;
            }
            continue;
        }
        if !health {
            work(kind, slots, &mut rng);
        }
        if stream.write_all(good.as_bytes()).is_err() {
            return;
        }
    }
}

fn work(kind: Kind, (slots, freed): &(Mutex<u32>, Condvar), rng: &mut fastrand::Rng) {
    let lock = slots.lock().unwrap_or_else(PoisonError::into_inner);
    let mut free = freed.wait_while(lock, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
    *free -= 1;
    drop(free);
    // Exponential, cut at ten times the mean.
    let factor = (-(1.0 - rng.f64()).ln()).min(10.0) * if is_slow(kind, clock::now()) { SLOWER } else { 1.0 };
    std::thread::sleep(MEAN.mul_f64(factor));
    *slots.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    freed.notify_one();
}

fn is_slow(kind: Kind, now: Time) -> bool {
    match kind {
        Kind::Slow => true,
        Kind::Bursts => now.as_millis() % 2_000 < 500,
        Kind::Equal | Kind::Errors => false,
    }
}
