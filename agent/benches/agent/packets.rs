//! What counting costs per packet: one process sends from two sockets in turns, one of a container that is counted and one
//! of a container that is not, by its own CPU time; beside it what a program costs that does nothing, and the kernel's own
//! accounting of ours.
//!
//! In turns of a few milliseconds, because sending costs thirty times what counting adds, and varies by as much from one
//! process to the next. The sender is in a network namespace of its own, and nobody listens at the far end of its wire.

use std::{
    net::UdpSocket,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use swarmguard_agent::bpf::Programs;

use swarmguard_tests::figures::{Report, Row, median};

use crate::{empty::Empty, groups::Groups, kernel, process::cpu, programs};

const ROW: &str = "agent.net_ns_per_packet";
/// Packets in a row from one socket.
const TURN: u32 = 1_000;
/// Turns of each socket.
const TURNS: u32 = 300;

/// Nanoseconds of CPU time for a packet, as the sender prints them.
struct Sent {
    counted: f64,
    bare: f64,
    /// The median of the differences between neighbouring turns.
    added: f64,
}

/// Makes a socket in each of two cgroups, enters a network namespace, sends from both in turns, and prints nanoseconds of
/// CPU time per packet: of the first, of the second, and what the first takes more.
pub fn send(counted: &Path, bare: &Path, namespace: &str) -> Result<()> {
    // Not by `ip netns exec`, which mounts a /sys of its own that has no cgroups.
    kernel::enter(Some(namespace))?;
    // Sockets belong to the cgroup that made them; the process stays in the one that counts.
    let [other, socket] = [bare, counted].map(|dir| -> Result<UdpSocket> {
        std::fs::write(dir.join("cgroup.procs"), std::process::id().to_string())?;
        Ok(UdpSocket::bind("0.0.0.0:0")?)
    });
    let (other, socket) = (other?, socket?);
    let (mut with, mut without, mut added) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..TURNS {
        // Whoever is first differs, for the second finds warmer caches.
        let (theirs, ours) = if turn % 2 == 0 {
            let theirs = turn_of(&other)?;
            (theirs, turn_of(&socket)?)
        } else {
            let ours = turn_of(&socket)?;
            (turn_of(&other)?, ours)
        };
        with.push(ours);
        without.push(theirs);
        added.push(ours - theirs);
    }
    println!("{} {} {}", median(&with), median(&without), median(&added));
    Ok(())
}

fn turn_of(socket: &UdpSocket) -> Result<f64> {
    let before = cpu(std::process::id())?;
    for _ in 0..TURN {
        socket.send_to(&[0; 512], "10.99.0.2:9")?;
    }
    let used = cpu(std::process::id())? - before;
    Ok(used.as_secs_f64() * 1e9 / f64::from(TURN))
}

fn sent(namespace: &str, counted: &Path, bare: &Path) -> Result<Sent> {
    let output = Command::new(std::env::current_exe()?)
        .arg("send")
        .args([counted, bare])
        .arg(namespace)
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the sender ended with {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let figures = text.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    let [counted, bare, added] = figures[..] else { anyhow::bail!("the sender printed {text:?}") };
    Ok(Sent { counted, bare, added })
}

/// Measures in turns.
pub fn measure(rounds: usize, root: &Path, report: &mut Report) -> Result<()> {
    let Some(mut programs) = programs(root, ROW, report) else { return Ok(()) };
    let groups = Groups::make(root, 50)?;
    for index in 2..groups.len() {
        let other = groups.path(index);
        programs.watch(kernel::id(&other), &other)?;
    }
    let (dir, bare) = (groups.path(0), groups.path(1));
    let id = kernel::id(&dir);
    let wire = kernel::Wire::new();
    let (mut with, mut without, mut added) = (Vec::new(), Vec::new(), Vec::new());
    let (mut nothing, mut empty, mut accounted) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds.max(5) {
        nothing.push(sent(&wire.a, &dir, &bare)?.added);
        let attached = Empty::attach(&dir)?;
        empty.push(sent(&wire.a, &dir, &bare)?.added);
        drop(attached);
        programs.watch(id, &dir)?;
        let figures = sent(&wire.a, &dir, &bare)?;
        let (sent_packets, all) = (u64::from(TURN * TURNS), counted(&mut programs, id)?);
        ensure!(all >= sent_packets, "{all} of {sent_packets} packets were counted");
        // Measuring itself costs, so the kernel's own figure is of traffic of its own.
        let measuring = programs.measure()?;
        let before = runs(&programs);
        sent(&wire.a, &dir, &bare)?;
        let after = runs(&programs);
        drop(measuring);
        programs.forget(id);
        with.push(figures.counted);
        without.push(figures.bare);
        added.push(figures.added);
        accounted.push((after.1 - before.1) as f64 / (after.0 - before.0).max(1) as f64);
    }
    report.announce(Row::of("agent.net_sent_ns", "ns", "", &with).beside("not counted", &without));
    report.announce(Row::of(ROW, "ns", "<= 100", &added).beside("an empty program", &empty));
    report.announce(Row::of("agent.net_control_ns", "ns", "", &nothing));
    report.announce(Row::of("agent.net_accounted_ns", "ns", "", &accounted));
    Ok(())
}

fn counted(programs: &mut Programs, id: u64) -> Result<u64> {
    Ok(programs.counters(id).context("the container has no counters")?.net.tx_packets)
}

/// Runs and nanoseconds so far of the program that sees what is sent.
fn runs(programs: &Programs) -> (u64, u64) {
    let costs = programs.costs();
    let egress = costs.iter().filter(|cost| cost.name.contains("egress"));
    egress.fold((0, 0), |sum, cost| (sum.0 + cost.runs, sum.1 + cost.total_ns))
}
