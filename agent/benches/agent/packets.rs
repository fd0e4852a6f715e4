//! What counting costs per packet: the same traffic with and without the programs at the sender's cgroup, in turns, by
//! the sender's own CPU time; and the kernel's own accounting of the program.
//!
//! The sender is in a network namespace of its own, and nobody listens at the far end of its wire.

use std::{
    net::UdpSocket,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use swarmguard_agent::bpf::Programs;

use crate::{
    groups::Groups,
    kernel,
    process::cpu,
    programs,
    report::{Report, Row, Spread},
};

const ROW: &str = "agent.net_ns_per_packet";
const PACKETS: u32 = 200_000;

/// Enters a cgroup, sends, and prints nanoseconds of CPU time per packet. The namespace was entered before.
pub fn send(dir: &Path, packets: u32) -> Result<()> {
    std::fs::write(dir.join("cgroup.procs"), std::process::id().to_string())?;
    // Sockets belong to the cgroup that made them.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let before = cpu(std::process::id())?;
    for _ in 0..packets {
        socket.send_to(&[0; 512], "10.99.0.2:9")?;
    }
    let used = cpu(std::process::id())? - before;
    println!("{}", used.as_secs_f64() * 1e9 / f64::from(packets));
    Ok(())
}

fn sent(namespace: &str, dir: &Path) -> Result<f64> {
    let output = Command::new("ip")
        .args(["netns", "exec", namespace])
        .arg(std::env::current_exe()?)
        .arg("send")
        .arg(dir)
        .arg(PACKETS.to_string())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run ip (Debian: iproute2)")?;
    ensure!(output.status.success(), "the sender ended with {}", output.status);
    String::from_utf8(output.stdout)?.trim().parse().context("the sender printed no number")
}

/// Measures in turns.
pub fn measure(rounds: usize, root: &Path, report: &mut Report) -> Result<()> {
    let Some(mut programs) = programs(root, ROW, report) else { return Ok(()) };
    let groups = Groups::make(root, 50)?;
    for index in 1..groups.len() {
        let other = groups.path(index);
        programs.watch(kernel::id(&other), &other)?;
    }
    let dir = groups.path(0);
    let id = kernel::id(&dir);
    let wire = kernel::Wire::new();
    let (mut with, mut without, mut added, mut accounted) =
        (Spread::default(), Spread::default(), Spread::default(), Spread::default());
    for _ in 0..rounds.max(5) {
        let bare = sent(&wire.a, &dir)?;
        programs.watch(id, &dir)?;
        let counted = sent(&wire.a, &dir)?;
        let all = programs.counters(id).context("the container has no counters")?.net.tx_packets;
        ensure!(all >= u64::from(PACKETS), "{all} of {PACKETS} packets were counted");
        // Measuring itself costs, so the kernel's own figure is of traffic of its own.
        let measuring = programs.measure()?;
        let before = runs(&programs);
        sent(&wire.a, &dir)?;
        let after = runs(&programs);
        drop(measuring);
        programs.forget(id);
        with.add(counted);
        without.add(bare);
        added.add(counted - bare);
        accounted.add((after.1 - before.1) as f64 / (after.0 - before.0).max(1) as f64);
    }
    report.add(Row::new("agent.net_sent_ns", "ns", &with).beside("without programs", &without));
    report.add(Row::new(ROW, "ns", &added));
    report.add(Row::new("agent.net_accounted_ns", "ns", &accounted));
    Ok(())
}

/// Runs and nanoseconds so far of the program that sees what is sent.
fn runs(programs: &Programs) -> (u64, u64) {
    let costs = programs.costs();
    let egress = costs.iter().filter(|cost| cost.name.contains("egress"));
    egress.fold((0, 0), |sum, cost| (sum.0 + cost.runs, sum.1 + cost.total_ns))
}
