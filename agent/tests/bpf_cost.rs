//! What counting costs per packet, both ways, by the kernel's own accounting of its programs.
//!
//! Figures are printed, not asserted: they are the machine's. What is asserted is that counting at the container
//! costs no more than looking the container up.

#[expect(dead_code, reason = "each test binary uses a part of it")]
mod kernel;

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use kernel::{Group, Process, Wire};
use swarmguard_agent::bpf::{NetworkMode, Options, Programs};
use swarmguard_runtime::clock;

const PACKETS: u64 = 20_000;

fn send() -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for _ in 0..PACKETS {
        // Nobody listens, which an unconnected socket is not told.
        socket.send_to(&[0; 512], "10.99.0.2:9")?;
    }
    Ok(())
}

/// ns per run of the program that counts what is sent, the best of some rounds.
fn cost(mode: NetworkMode, requests: bool, name: &str) -> Option<f64> {
    let (facts, root) = kernel::facts_or_skip("bpf_cost")?;
    let options = Options { network: mode, requests, ..Options::default() };
    let mut programs = Programs::load(&root, &facts, options).expect("this kernel takes the programs");
    let wire = Wire::new();
    let groups = Group::new(&root);
    let container = groups.child("container");
    // Other containers make the table as full as it is on a busy node.
    for number in 0..50 {
        let path = groups.child(&format!("c{number}"));
        programs.watch(kernel::id(&path), &path).expect("a fresh cgroup");
    }
    programs.watch(kernel::id(&container), &container).expect("a fresh cgroup");
    let measuring = programs.measure().expect("from 5.8 on");
    let mut best = f64::INFINITY;
    let mut before = programs.costs();
    for _ in 0..5 {
        Process::spawn(&container, Some(&wire.a), send).finish();
        let now = programs.costs();
        for (new, old) in now.iter().zip(&before).filter(|(new, _)| new.name == name) {
            assert!(new.runs - old.runs >= PACKETS, "{new:?}");
            best = best.min((new.total_ns - old.total_ns) as f64 / (new.runs - old.runs) as f64);
        }
        before = now;
    }
    drop(measuring);
    assert!(best.is_finite(), "no program {name}");
    for cost in programs.costs().iter().filter(|cost| cost.runs > 0) {
        println!("{mode:?} {}: {} runs, {} ns each", cost.name, cost.runs, cost.total_ns / cost.runs);
    }
    let sent = programs.network(kernel::id(&container)).expect("watched").tx_packets;
    assert_eq!(sent, 5 * PACKETS);
    Some(best)
}

#[test]
fn counting_at_the_container_costs_no_more_than_looking_it_up() {
    if !kernel::ip_or_skip("bpf_cost") {
        return;
    }
    let (Some(attached), Some(requests), Some(root)) = (
        cost(NetworkMode::Attached, false, "group_egress"),
        cost(NetworkMode::Attached, true, "group_egress_requests"),
        cost(NetworkMode::Root, false, "root_egress"),
    ) else {
        return;
    };
    println!(
        "ns per packet: {attached:.0} at the container, {requests:.0} with requests, {root:.0} at the root"
    );
    assert!(attached <= root, "{attached} ns against {root} ns");
}

/// A pass against the reading of kept descriptors, which is the cheapest that files allow. Both as this build makes
/// them; both are system calls for the most part.
#[test]
fn a_pass_costs_less_than_the_files() {
    const CONTAINERS: usize = 100;
    const ROUNDS: u32 = 50;
    let Some((facts, root)) = kernel::facts_or_skip("bpf_cost") else { return };
    let mut programs =
        Programs::load(&root, &facts, Options::default()).expect("this kernel takes the programs");
    if !programs.has_pass() {
        kernel::skip("bpf_cost", "no iterator here");
        return;
    }
    let groups = Group::new(&root);
    let mut files = Vec::new();
    for number in 0..CONTAINERS {
        let path = groups.child(&format!("c{number}"));
        programs.watch(kernel::id(&path), &path).expect("a fresh cgroup");
        // memory.current only where the controller is.
        let names = ["cpu.stat", "memory.current", "cpu.pressure"];
        files.extend(names.iter().filter_map(|name| File::open(path.join(name)).ok()));
    }
    let (mut by_pass, mut by_files, mut handed) = (Duration::MAX, Duration::MAX, 0);
    let mut text = [0u8; 1024];
    for _ in 0..ROUNDS {
        let start = clock::now();
        programs.sample(&mut |_| handed += 1).expect("a whole pass");
        by_pass = by_pass.min(clock::now().since(start));
        let start = clock::now();
        for file in &files {
            assert!(file.read_at(&mut text, 0).expect("a file of a living cgroup") > 0);
        }
        by_files = by_files.min(clock::now().since(start));
    }
    assert_eq!(handed, CONTAINERS * ROUNDS as usize);
    let each = |all: Duration| all.as_secs_f64() * 1e6 / CONTAINERS as f64;
    let count = files.len() / CONTAINERS;
    println!("us per container: {:.2} by a pass, {:.2} by {count} files", each(by_pass), each(by_files));
    assert!(by_pass < by_files, "{by_pass:?} against {by_files:?}");
}
