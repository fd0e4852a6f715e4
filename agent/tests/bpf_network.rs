//! Counters against known loads on a real kernel, both ways of counting.
//!
//! A process in a nested cgroup and a network namespace of its own exchanges a known amount with another over
//! a pair of interfaces, and some with itself over loopback, which must not count.

#[expect(dead_code, reason = "each test binary uses a part of it")]
mod kernel;

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use kernel::{DEADLINE, Group, Process, Wire};
use swarmguard_agent::bpf::{NetworkMode, Options, Programs};
use swarmguard_common::kernel::NetCounters;

const DATAGRAMS: u64 = 3200;
const DATAGRAM: usize = 1000;
/// An answer comes after each batch, so that no receive buffer overflows.
const BATCH: u64 = 32;
const ANSWER: usize = 100;
const STREAM: u64 = 8 << 20;
const STREAM_BACK: usize = 2 << 20;

/// What one side sends over one address family; the other receives the same.
fn there(header: u64, mss: u64) -> u64 {
    DATAGRAMS * (DATAGRAM as u64 + header + 8) + STREAM + STREAM.div_ceil(mss) * (header + 32)
}

fn back(header: u64, mss: u64) -> u64 {
    DATAGRAMS / BATCH * (ANSWER as u64 + header + 8)
        + STREAM_BACK as u64
        + (STREAM_BACK as u64).div_ceil(mss) * (header + 32)
}

fn within(what: &str, got: u64, want: u64, share: f64) {
    let off = (got as f64 - want as f64).abs() / want as f64;
    assert!(off <= share, "{what}: counted {got}, expected {want} ({:.2} % off)", off * 100.0);
}

fn address(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse::<IpAddr>().expect("an address"), port)
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let pause = Duration::from_millis(20);
    let mut left = DEADLINE.as_millis() / pause.as_millis();
    loop {
        match TcpStream::connect(to) {
            Ok(stream) => return Ok(stream),
            Err(error) if left == 0 => return Err(error),
            Err(_) => left -= 1,
        }
        thread::sleep(pause);
    }
}

fn send_all(to: &str) -> io::Result<()> {
    // TCP first: once it is through, the other side's UDP socket exists too.
    let mut stream = connect(address(to, 7001))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let block = vec![1u8; 65_536];
    for _ in 0..STREAM / block.len() as u64 {
        stream.write_all(&block)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let got = io::copy(&mut stream, &mut io::sink())?;
    let socket = UdpSocket::bind(if to.contains(':') { "[::]:0" } else { "0.0.0.0:0" })?;
    socket.set_read_timeout(Some(DEADLINE))?;
    let mut answer = [0u8; 256];
    for _ in 0..DATAGRAMS / BATCH {
        for _ in 0..BATCH {
            socket.send_to(&block[..DATAGRAM], address(to, 7002))?;
        }
        socket.recv(&mut answer)?;
    }
    if got == STREAM_BACK as u64 { Ok(()) } else { Err(io::Error::other(format!("{got} bytes came back"))) }
}

fn serve(hosts: &[&str]) -> io::Result<()> {
    for host in hosts {
        let udp = UdpSocket::bind(address(host, 7002))?;
        udp.set_read_timeout(Some(DEADLINE))?;
        let listener = TcpListener::bind(address(host, 7001))?;
        let (mut stream, _) = listener.accept()?;
        io::copy(&mut stream, &mut io::sink())?;
        stream.write_all(&vec![2u8; STREAM_BACK])?;
        drop(stream);
        let mut buffer = [0u8; 2048];
        for _ in 0..DATAGRAMS / BATCH {
            let mut from = None;
            for _ in 0..BATCH {
                from = Some(udp.recv_from(&mut buffer)?.1);
            }
            udp.send_to(&buffer[..ANSWER], from.expect("a batch has a sender"))?;
        }
    }
    Ok(())
}

/// Megabytes over loopback and to the own address, which routes over loopback too.
fn talk_to_self() -> io::Result<()> {
    for host in ["127.0.0.1", "::1", "10.99.0.1"] {
        let listener = TcpListener::bind(address(host, 7003))?;
        let sender = thread::spawn(move || connect(address(host, 7003))?.write_all(&vec![3u8; 1 << 20]));
        let (mut stream, _) = listener.accept()?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        sender.join().map_err(|_| io::Error::other("the sender panicked"))??;
    }
    Ok(())
}

fn counts_agree(test: &str, mode: NetworkMode) {
    let Some((facts, root)) = kernel::facts_or_skip(test) else { return };
    if !kernel::ip_or_skip(test) {
        return;
    }
    let options = Options { network: mode, ..Options::default() };
    let mut programs = Programs::load(&root, &facts, options).expect("this kernel takes the programs");
    let wire = Wire::new();
    let groups = Group::new(&root);
    let (client, server, idle) = (groups.child("client"), groups.child("server"), groups.child("idle"));
    // Deep below, as where a container has an init system that makes cgroups of its own.
    let nested = groups.child("client/a/b");
    for path in [&client, &server, &idle] {
        programs.watch(kernel::id(path), path).expect("a fresh cgroup can be watched");
        assert_eq!(programs.network(kernel::id(path)), Some(NetCounters::default()));
    }
    assert_eq!(programs.watched(), 3);

    let listening = Process::spawn(&server, Some(&wire.b), || serve(&["10.99.0.2", "fd99::2"]));
    let sending = Process::spawn(&nested, Some(&wire.a), || {
        talk_to_self()?;
        send_all("10.99.0.2")?;
        send_all("fd99::2")
    });
    sending.finish();
    listening.finish();

    let sent = there(20, 1448) + there(40, 1428);
    let returned = back(20, 1448) + back(40, 1428);
    let mine = programs.network(kernel::id(&client)).expect("watched");
    let theirs = programs.network(kernel::id(&server)).expect("watched");
    within("client sent", mine.tx_bytes, sent, 0.02);
    within("client received", mine.rx_bytes, returned, 0.02);
    within("server received", theirs.rx_bytes, sent, 0.02);
    within("server sent", theirs.tx_bytes, returned, 0.02);
    // Acknowledgements come on top, at most one for each segment.
    let datagrams = 2 * DATAGRAMS;
    let segments = 2 * STREAM.div_ceil(1448);
    assert!(mine.tx_packets >= datagrams + segments, "{mine:?}");
    assert!(mine.tx_packets <= datagrams + segments * 2, "{mine:?}");
    assert_eq!(programs.network(kernel::id(&idle)), Some(NetCounters::default()), "an idle neighbour");

    // A second watch changes nothing; forgetting gives everything back.
    programs.watch(kernel::id(&client), &client).expect("watched already");
    assert_eq!(programs.network(kernel::id(&client)), Some(mine));
    for path in [&client, &server, &idle] {
        programs.forget(kernel::id(path));
        programs.forget(kernel::id(path));
        assert_eq!(programs.network(kernel::id(path)), None);
    }
    programs.watch(kernel::id(&client), &client).expect("it is still there");
    assert_eq!(programs.network(kernel::id(&client)), Some(NetCounters::default()), "a new start");
    programs.forget(kernel::id(&client));
    assert_eq!(programs.watched(), 0);
    println!("{test}: sent {} of {sent}, received {} of {returned}", mine.tx_bytes, mine.rx_bytes);
}

#[test]
fn counts_at_the_container_agree_with_what_was_sent() {
    counts_agree("counts_at_the_container", NetworkMode::Attached);
}

#[test]
fn counts_at_the_root_agree_with_what_was_sent() {
    counts_agree("counts_at_the_root", NetworkMode::Root);
}

/// A container that goes leaves nothing behind, watched or forgotten: neither descriptors nor map entries.
#[test]
fn five_hundred_containers_come_and_go() {
    let Some((facts, root)) = kernel::facts_or_skip("five_hundred_containers_come_and_go") else { return };
    for mode in [NetworkMode::Attached, NetworkMode::Root] {
        let options = Options { network: mode, ..Options::default() };
        let mut programs = Programs::load(&root, &facts, options).expect("this kernel takes the programs");
        let descriptors = || std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let before = descriptors();
        let groups = Group::new(&root);
        for round in 0..500 {
            let path = groups.child(&format!("c{round}"));
            let id = kernel::id(&path);
            programs.watch(id, &path).expect("a fresh cgroup can be watched");
            assert_eq!(programs.network(id), Some(NetCounters::default()));
            // The engine removes the cgroup first, the agent hears of it afterwards.
            std::fs::remove_dir(&path).expect("an empty cgroup");
            programs.forget(id);
            assert_eq!(programs.network(id), None);
        }
        assert_eq!(programs.watched(), 0);
        // Other tests of this binary run beside this one and have descriptors of their own.
        assert!(descriptors() < before + 100, "{mode:?}: {before} descriptors became {}", descriptors());
        if mode == NetworkMode::Attached {
            let gone = groups.path.join("gone");
            assert!(programs.watch(1, &gone).is_err(), "there is nothing to attach to");
        }
    }
}
