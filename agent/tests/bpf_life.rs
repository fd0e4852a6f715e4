//! The whole agent in this process, on real cgroups: what lives for a moment is seen, what is gone leaves nothing
//! behind, and the kernel wakes the agent when a container stalls for memory.

#[expect(dead_code, reason = "each test binary uses a part of it")]
mod kernel;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use clap::Parser as _;
use kernel::{DEADLINE, Group, Process};
use swarmguard_agent::{config::Cli, run};
use swarmguard_runtime::clock;

/// One agent at a time: descriptors and memory are those of the process.
static TURN: Mutex<()> = Mutex::new(());

/// An agent that samples this machine for as long as the process lives, asked over HTTP like any other.
struct Agent {
    http: SocketAddr,
    _turn: MutexGuard<'static, ()>,
    stop: tokio::sync::oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Agent {
    fn start(root: &Path) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let http = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let arguments = [
            "swarmguard-agent".into(),
            format!("--http-addr={http}"),
            format!("--cgroup-root={}", root.display()),
            "--docker=none".into(),
            "--coordinators=none".into(),
            "--budget=100".into(),
        ];
        let settings = Cli::try_parse_from(arguments).expect("sensible settings").settings;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    ended = run::run(settings) => panic!("the agent ended: {ended:?}"),
                    _ = stopped => {}
                }
            });
        });
        let agent = Self { http, _turn: turn, stop, thread };
        agent.wait("it answers", || agent.get("/healthz").is_some_and(|text| text.contains("\"ok\"")));
        agent
    }

    fn stop(self) {
        let _ = self.stop.send(());
        self.thread.join().expect("the agent ends");
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.http).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").expect("the agent answers");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value: f64 = line.expect(name).parse().expect("a number");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let value = value as u64;
        value
    }

    fn seen(&self) -> u64 {
        self.metric("swarmguard_agent_containers_seen_total")
    }

    fn watched(&self) -> u64 {
        self.metric("swarmguard_agent_containers")
    }

    fn wait(&self, what: &str, mut until: impl FnMut() -> bool) {
        let end = clock::now() + DEADLINE;
        while !until() {
            assert!(clock::now() < end, "{what}: not within {DEADLINE:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The name that a container's cgroup would have.
fn name(number: usize) -> String {
    format!("{number:064x}")
}

#[test]
fn a_container_that_lives_200_ms_is_seen_and_its_use_measured() {
    let Some((_, root)) = kernel::facts_or_skip("bpf_life") else { return };
    let agent = Agent::start(&root);
    let groups = Group::new(&root);
    // The agent has looked around, and the directory is none that it knows.
    thread::sleep(Duration::from_millis(300));
    for round in 1..=3 {
        let (seen, samples) = (agent.seen(), agent.metric("swarmguard_agent_samples_total"));
        let watched = agent.watched();
        let dir = groups.child(&name(round));
        let life = Duration::from_millis(200);
        Process::spawn(&dir, None, || {
            let end = clock::now() + life;
            while clock::now() < end {
                std::hint::spin_loop();
            }
            Ok(())
        })
        .finish();
        fs::remove_dir(&dir).expect("empty");
        agent.wait("it is gone", || agent.watched() == watched);
        // The text of /metrics may be from a moment ago.
        agent.wait("it was seen", || agent.seen() > seen);
        assert_eq!(agent.seen() - seen, 1, "round {round}");
        // Two make a rate.
        agent.wait("two samples", || agent.metric("swarmguard_agent_samples_total") >= samples + 2);
    }
    agent.stop();
}

/// What a process holds: descriptors, mappings, resident KiB.
fn held() -> (usize, usize, u64) {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps").lines().count();
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib = line.trim().trim_end_matches(" kB").parse().expect("a number");
    (fs::read_dir("/proc/self/fd").expect("descriptors").count(), maps, kib)
}

#[test]
fn five_hundred_containers_come_and_go_and_leave_nothing() {
    const CONTAINERS: usize = 500;
    /// More containers in all than the programs' maps have room for.
    const CYCLES: usize = 10;
    let Some((_, root)) = kernel::facts_or_skip("bpf_life") else { return };
    let agent = Agent::start(&root);
    let groups = Group::new(&root);
    let others = agent.watched();
    let mut before = None;
    for cycle in 0..CYCLES {
        let seen = agent.seen();
        let dirs: Vec<PathBuf> = (0..CONTAINERS).map(|number| groups.child(&name(number))).collect();
        agent.wait("all are watched", || agent.watched() == others + CONTAINERS as u64);
        assert_eq!(agent.seen() - seen, CONTAINERS as u64);
        if cycle + 1 == CYCLES {
            // Each still has counters of its own: no entry of an earlier one is in the way.
            agent.wait("all have figures", || {
                let text = agent.get("/metrics/containers").unwrap_or_default();
                text.matches("\"network_rx_mbps\":0.0").count() >= CONTAINERS
            });
        }
        dirs.iter().for_each(|dir| fs::remove_dir(dir).expect("empty"));
        agent.wait("all are gone", || agent.watched() == others);
        // The first time caches and pools grow to their size.
        let now = held();
        let (descriptors, maps, kib) = *before.get_or_insert(now);
        println!("after {} containers: {now:?}", (cycle + 1) * CONTAINERS);
        assert!(now.0 <= descriptors + 3, "descriptors: {now:?} after {before:?}");
        assert!(now.1 <= maps + 8, "mappings: {now:?} after {before:?}");
        assert!(now.2 <= kib + 3_072, "memory: {now:?} after {before:?}");
    }
    agent.stop();
}

#[test]
fn a_container_that_stalls_for_memory_wakes_the_agent() {
    const MIB: usize = 1 << 20;
    let Some((_, root)) = kernel::facts_or_skip("bpf_life") else { return };
    let groups = Group::new(&root);
    let dir = groups.child(&name(1));
    if fs::write(dir.join("memory.high"), (8 * MIB).to_string()).is_err() {
        kernel::skip("bpf_life", "no memory controller of cgroup v2");
        return;
    }
    let agent = Agent::start(&root);
    agent.wait("it is watched", || agent.watched() >= 1);
    let before = agent.metric("swarmguard_agent_stalls_total");
    // Above memory.high the kernel makes a process wait, which is a stall by definition.
    let greedy = Process::spawn(&dir, None, || {
        let held: Vec<Vec<u8>> = (0..256).map(|_| vec![1; MIB]).collect();
        std::hint::black_box(&held);
        thread::sleep(DEADLINE);
        Ok(())
    });
    agent.wait("the kernel tells", || agent.metric("swarmguard_agent_stalls_total") > before);
    drop(greedy);
    agent.stop();
}
