//! Faults of drills on this kernel: what they do, and that nothing of them outlives the process, however it ends. In a
//! network namespace of their own; skipped without the right to make one.

use std::{
    io::{BufRead as _, BufReader},
    net::UdpSocket,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::thread::UnshareFlags;
use swarmguard_runtime::clock;

const AGENT: &str = env!("CARGO_BIN_EXE_swarmguard-agent");

/// Enters a network namespace of this thread's own, with loopback up; `false` where that is not allowed.
fn enter_namespace() -> bool {
    // SAFETY: of the namespaces only that of the network is left, which no memory or descriptor depends on.
    if unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.is_err() {
        println!("skipped: no right to make a network namespace");
        return false;
    }
    Command::new("ip").args(["link", "set", "lo", "up"]).status().is_ok_and(|status| status.success())
}

/// The agent's drill, once it says that the fault is made.
fn begun(args: &[&str]) -> Child {
    let mut command = Command::new(AGENT);
    let mut child = command.arg("drill").args(args).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("readable");
    assert!(line.starts_with("drill: "), "{args:?}: {line}");
    child
}

/// How many of a hundred packets from 127.0.0.1 to an address arrive.
fn arriving(to: &str) -> usize {
    let there = UdpSocket::bind((to, 0)).expect("bound");
    there.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
    let here = UdpSocket::bind("127.0.0.1:0").expect("bound");
    for number in 0..100_u8 {
        // A filter on the way out refuses, one on the way in only drops.
        let _ = here.send_to(&[number], there.local_addr().expect("bound"));
    }
    let mut buffer = [0; 8];
    (0..100).filter(|_| there.recv(&mut buffer).is_ok()).count()
}

#[test]
fn a_cut_ends_with_the_process_that_made_it_also_where_that_is_killed() {
    thread::spawn(|| {
        if !enter_namespace() {
            return;
        }
        assert_eq!(arriving("127.0.0.2"), 100);
        let mut cut = begun(&["cut", "--peer", "127.0.0.2,::2", "--for", "60s"]);
        assert_eq!(arriving("127.0.0.2"), 0, "cut off");
        assert_eq!(arriving("127.0.0.3"), 100, "from that one only");
        cut.kill().expect("SIGKILL");
        cut.wait().expect("gone");
        assert_eq!(arriving("127.0.0.2"), 100, "the kernel has taken the filters away");

        let mut loss = begun(&["cut", "--peer", "127.0.0.2", "--percent", "30", "--for", "60s"]);
        // From and to, in and out: a packet on loopback passes two hooks.
        let through = arriving("127.0.0.2");
        assert!((25..75).contains(&through), "{through} of 100 pass where 49 should");
        loss.kill().expect("SIGKILL");
        loss.wait().expect("gone");
        assert_eq!(arriving("127.0.0.2"), 100);

        let began = clock::now();
        let mut short = begun(&["cut", "--peer", "127.0.0.2", "--for", "1s"]);
        assert!(short.wait().expect("ends").success());
        assert!(clock::now() - began < Duration::from_secs(20), "it ends by itself");
        assert_eq!(arriving("127.0.0.2"), 100);
    })
    .join()
    .expect("as it should be");
}

#[test]
fn memory_processors_and_disk_are_held_and_freed() {
    let resident = |child: &Child| {
        let text = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it lives");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory").trim();
        line.trim_end_matches(" kB").parse::<u64>().expect("a number") / 1_024
    };
    let mut memory = begun(&["memory", "--mib", "64", "--for", "60s"]);
    assert!(resident(&memory) >= 64, "{} MiB", resident(&memory));
    let mut cpu = begun(&["cpu", "--threads", "1", "--for", "60s"]);
    let used = |child: &Child| {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("it lives");
        text.rsplit(") ")
            .next()
            .expect("fields")
            .split(' ')
            .nth(11)
            .expect("utime")
            .parse::<u64>()
            .expect("ticks")
    };
    let before = used(&cpu);
    thread::sleep(Duration::from_secs(1));
    assert!(used(&cpu) > before + 5, "it computes");
    let dir = tempfile::tempdir().expect("a directory");
    let free = || rustix::fs::statvfs(dir.path()).expect("known").f_bfree;
    let began = free();
    let on = dir.path().display().to_string();
    let mut disk = begun(&["disk", "--mib", "256", "--on", &on, "--for", "60s"]);
    let block = rustix::fs::statvfs(dir.path()).expect("known").f_frsize;
    assert!(began.saturating_sub(free()) * block > 200 << 20, "the disk has less");
    for child in [&mut memory, &mut cpu, &mut disk] {
        child.kill().expect("SIGKILL");
        child.wait().expect("gone");
    }
    assert!(began.saturating_sub(free()) * block < 128 << 20, "the disk has it again");
    assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0);
}
