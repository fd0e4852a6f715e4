//! A whole node in a temporary directory: sampler, state and HTTP interface over files that the test writes.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use swarmguard_agent::{
    discovery::scan,
    http::{self, Access, Served},
    model::Capacity,
    sampler::{Sampler, Vitals},
    sources::network::Networks,
    state::{Agent, Description, Told},
    uplink::Shared,
};
use swarmguard_common::{
    domain::{BasisPoints, Condition, ContainerId, Edge},
    time::Time,
    wire::agent::{Hello, ToAgent, ToCoordinator},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const MIB: u64 = 1 << 20;

thread_local! {
    /// Each test has its own clock, which only its ticks move.
    static NOW: Cell<Time> = const { Cell::new(Time::from_millis(1_000_000)) };
}

fn now() -> Time {
    NOW.with(Cell::get)
}

struct Node {
    root: tempfile::TempDir,
    shared: Shared,
    sampler: Sampler,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("cgroup/docker")).expect("made");
        fs::create_dir_all(root.path().join("cgroup/system.slice")).expect("made");
        let proc_root = root.path().join("proc");
        fs::create_dir_all(&proc_root).expect("made");
        fs::write(proc_root.join("stat"), "cpu  10 0 10 80 0 0 0 0 0 0\ncpu0 1\ncpu1 1\n").expect("written");
        fs::write(proc_root.join("meminfo"), "MemTotal: 1048576 kB\nMemAvailable: 786432 kB\n")
            .expect("written");
        let hello = Hello {
            node: "node1".parse().expect("an ID"),
            epoch: 5,
            hostname: "worker-1".into(),
            version: "0".into(),
            cpu_millis: 2_000,
            memory_bytes: 1_024 * MIB,
            link_mbps: None,
            blind: false,
        };
        let capacity = Capacity { cpu_millis: 2_000, memory_bytes: 1_024 * MIB, network_mbps: Some(100) };
        let shared = Shared::new(Agent::new(hello, capacity, 3));
        let (networks, findings) = Networks::open(&root.path().join("cgroup"), &proc_root, false);
        assert!(findings.iter().all(|finding| !finding.ok && !finding.instead.is_empty()));
        let full = BasisPoints::FULL;
        let sampler = Sampler::new(shared.clone(), networks, &proc_root, full, Duration::from_millis(100))
            .with_clock(now);
        Self { root, shared, sampler }
    }

    /// Makes a container's cgroup as an engine does, and answers its directory.
    fn container(&self, digit: char, scope: bool) -> PathBuf {
        let id = digit.to_string().repeat(64);
        let name = if scope { format!("system.slice/docker-{id}.scope") } else { format!("docker/{id}") };
        let dir = self.root.path().join("cgroup").join(name);
        fs::create_dir_all(&dir).expect("made");
        set(&dir, "cpu.stat", "usage_usec 1000\nnr_periods 0\nnr_throttled 0\n");
        set(&dir, "cpu.max", "max 100000\n");
        set(&dir, "memory.current", &format!("{}\n", 96 * MIB));
        set(&dir, "memory.stat", &format!("anon 1\ninactive_file {}\n", 32 * MIB));
        set(&dir, "memory.max", &format!("{}\n", 128 * MIB));
        set(&dir, "memory.events", "oom 0\noom_kill 0\n");
        for name in ["cpu.pressure", "memory.pressure", "io.pressure"] {
            set(&dir, name, "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
        }
        dir
    }

    fn walk(&mut self) -> usize {
        let found = scan::walk(&self.root.path().join("cgroup"));
        self.sampler.found(now(), &found.containers, Some(now())).len()
    }

    fn tick(&mut self) {
        self.sampler.tick(now(), Duration::ZERO);
        NOW.with(|clock| clock.set(now() + Duration::from_millis(100)));
    }

    /// With vitals of the real clock, which is the one that the HTTP side goes by.
    fn served(&self) -> Served {
        let vitals = Vitals { ticked_at: Some(swarmguard_runtime::clock::now()), ..self.sampler.vitals() };
        Served { shared: self.shared.clone(), vitals: Arc::new(Mutex::new(vitals)), blind: None }
    }
}

fn set(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).expect("written");
}

fn id(digit: char) -> ContainerId {
    digit.to_string().repeat(64).parse().expect("an ID")
}

async fn get(served: Served, path: &str) -> (String, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let server = tokio::spawn(http::serve(listener, served, Access::default()));
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    server.abort();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn a_node_with_both_cgroup_drivers_is_sampled_and_shown() {
    let mut node = Node::new();
    let (one, two) = (node.container('a', true), node.container('b', false));
    assert_eq!(node.walk(), 2);
    let description = Description {
        name: "web.1.t1".into(),
        service_name: Some("web".into()),
        service: Some("svc1".parse().expect("an ID")),
        ..Description::default()
    };
    node.sampler.describe(&id('a'), description);
    for step in 1..=20_u64 {
        // A whole CPU of two.
        set(
            &one,
            "cpu.stat",
            &format!("usage_usec {}\nnr_periods 0\nnr_throttled 0\n", 1_000 + step * 100_000),
        );
        node.tick();
    }
    let containers = http::figures(&node.shared).containers;
    assert_eq!(containers.len(), 2);
    let web = containers.iter().find(|it| it.service_name.as_deref() == Some("web")).expect("described");
    assert!(web.cpu_percent.is_some_and(|cpu| (47.0..=50.0).contains(&cpu)), "{web:?}");
    assert_eq!(
        (web.memory_mb, web.memory_percent),
        (Some(64.0), Some(50.0)),
        "inactive page cache is left out"
    );
    assert_eq!(web.network_rx_mbps, None, "no process to ask, so unknown, not idle");
    let other = containers.iter().find(|it| it.container_id == id('b').as_str()).expect("there");
    assert_eq!(other.cpu_percent, Some(0.0));

    let (head, body) = get(node.served(), "/metrics/containers").await;
    assert!(head.starts_with("HTTP/1.0 200") && head.contains("application/json"), "{head}");
    let json: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let keys = |value: &serde_json::Value| -> BTreeSet<String> {
        value.as_object().expect("an object").keys().cloned().collect()
    };
    assert_eq!(keys(&json), ["containers", "node", "timestamp"].map(String::from).into());
    assert_eq!(json["node"], "worker-1");
    let names = [
        "container_id",
        "container_name",
        "service_name",
        "cpu_percent",
        "memory_mb",
        "memory_percent",
        "network_rx_mbps",
        "network_tx_mbps",
    ];
    assert_eq!(keys(&json["containers"][0]), names.map(String::from).into());

    let (head, body) = get(node.served(), "/healthz").await;
    assert!(head.starts_with("HTTP/1.0 200") && body.contains("\"ok\""), "{head} {body}");
    let (_, metrics) = get(node.served(), "/metrics").await;
    for wanted in [
        "service_containers{service=\"web\"} 1\n",
        "service_memory_working_set_bytes{service=\"web\"} 67108864\n",
        "service_cpu_seconds_total{service=\"web\"} ",
        "process_resident_memory_bytes ",
        "sampling_interval_seconds ",
        "dropped_total{queue=\"alerts\"} 0\n",
    ] {
        assert!(metrics.contains(wanted), "{wanted} is missing in\n{metrics}");
    }
    assert!(metrics.ends_with("# EOF\n") && !metrics.contains("container_cpu"), "{metrics}");
    let (_, detail) = get(node.served(), "/metrics/detail").await;
    assert!(detail.contains("swarmguard_agent_container_cpu_seconds_total{service=\"web\","), "{detail}");

    // Restarted: the same name and another cgroup.
    let before = node.shared.lock().handle_of(&id('b'));
    fs::rename(&two, two.with_extension("old")).expect("moved");
    node.container('b', false);
    assert_eq!(node.walk(), 1);
    assert!(node.shared.lock().handle_of(&id('b')) > before);

    fs::remove_dir_all(&two).expect("removed");
    // Its birth was in this very moment, and a walk that began then may have missed it.
    node.walk();
    assert_eq!(node.shared.lock().containers().len(), 2);
    node.tick();
    node.walk();
    assert_eq!(node.shared.lock().containers().len(), 1);
}

#[test]
fn idle_containers_are_left_alone_until_something_moves() {
    let mut node = Node::new();
    let dir = node.container('a', false);
    let sum = node.root.path().join("cgroup/docker");
    set(&sum, "cpu.stat", "usage_usec 1000\n");
    node.walk();
    // For its first second a container is looked at every time.
    for _ in 0..60 {
        node.tick();
    }
    let idle = node.sampler.vitals();
    assert!(idle.idle_ticks >= 30 && idle.passes >= 24, "{idle:?}");
    let mut told = Vec::new();
    for step in 1..=10_u64 {
        let usage = 1_000 + step * 200_000;
        set(&sum, "cpu.stat", &format!("usage_usec {usage}\n"));
        set(&dir, "cpu.stat", &format!("usage_usec {usage}\n"));
        node.tick();
        if node.shared.lock().outbox().last_seq() > 0 {
            told.push(step);
        }
    }
    // Hold and two intervals, though it slept before.
    assert!(told.first().is_some_and(|step| *step <= 5), "{told:?}");
}

#[test]
fn a_changed_limit_a_kill_and_too_many_containers() {
    let mut node = Node::new();
    let dir = node.container('a', false);
    node.walk();
    let mut coordinator = Told::default();
    for _ in 0..12 {
        node.tick();
    }
    let first = node.shared.lock().messages(now(), &mut coordinator, 100);
    assert!(
        matches!(&first[..], [ToCoordinator::Task(task)] if task.cpu_limit_millis.is_none()),
        "{first:?}"
    );

    set(&dir, "cpu.max", "50000 100000\n");
    set(&dir, "memory.events", "oom 1\noom_kill 1\n");
    for _ in 0..120 {
        node.tick();
    }
    let then = node.shared.lock().messages(now(), &mut coordinator, 100);
    let limits: Vec<_> = then
        .iter()
        .filter_map(
            |message| if let ToCoordinator::Task(task) = message { task.cpu_limit_millis } else { None },
        )
        .collect();
    assert_eq!(limits, [500], "introduced anew with its limit: {then:?}");
    assert!(then.iter().any(|message| matches!(message, ToCoordinator::Gone { handle: 1 })), "{then:?}");
    let kills: Vec<_> = then
        .iter()
        .filter_map(|message| if let ToCoordinator::Alert(alert) = message { alert.parts() } else { None })
        .collect();
    assert!(kills.contains(&(Condition::OomKill, Edge::Raise)), "{kills:?}");

    for digit in ['b', 'c', 'd', 'e'] {
        node.container(digit, true);
    }
    node.walk();
    assert_eq!(node.shared.lock().containers().len(), 3, "--max-containers");
    assert_eq!(node.shared.lock().counts.refused, 2);
}

#[test]
fn utilisation_is_a_share_of_the_least_limit_above_a_container() {
    let mut node = Node::new();
    let dir = node.container('a', true);
    let slice = dir.parent().expect("a slice").to_owned();
    set(&slice, "cgroup.procs", "");
    set(&slice, "cpu.max", "40000 100000\n");
    set(&slice, "memory.max", &format!("{}\n", 80 * MIB));
    node.walk();
    for step in 0..30_u64 {
        // A fifth of a CPU: a tenth of the node, half of what the slice may use.
        set(&dir, "cpu.stat", &format!("usage_usec {}\n", 1_000 + step * 20_000));
        node.tick();
    }
    let figures = http::figures(&node.shared).containers;
    let close = |figure: Option<f64>, wanted: f64| figure.is_some_and(|it| (it - wanted).abs() < 1.0);
    // 64 MiB of working set; its own limit is 128 MiB.
    assert!(close(figures[0].cpu_percent, 50.0) && close(figures[0].memory_percent, 80.0), "{figures:?}");
    set(&slice, "cpu.max", "max 100000\n");
    for step in 30..200_u64 {
        set(&dir, "cpu.stat", &format!("usage_usec {}\n", 1_000 + step * 20_000));
        node.tick();
    }
    let figures = http::figures(&node.shared).containers;
    assert!(close(figures[0].cpu_percent, 10.0), "the slice's limit was lifted: {figures:?}");
}

#[test]
fn names_are_waited_for_but_not_for_ever() {
    let mut node = Node::new();
    node.shared.lock().expect_names(true);
    node.container('a', false);
    node.container('b', false);
    node.walk();
    node.tick();
    let mut coordinator = Told::default();
    assert!(node.shared.lock().messages(now(), &mut coordinator, 100).is_empty());
    // The later one is named first: handles on the wire count up all the same.
    node.sampler.describe(
        &id('b'),
        Description { task: Some("t2".parse().expect("an ID")), ..Description::default() },
    );
    let named = node.shared.lock().messages(now(), &mut coordinator, 100);
    assert!(
        matches!(&named[..], [ToCoordinator::Task(task)] if task.handle == 1 && task.container == id('b'))
    );
    for _ in 0..60 {
        node.tick();
    }
    let late = node.shared.lock().messages(now(), &mut coordinator, 100);
    assert!(
        matches!(&late[..], [ToCoordinator::Task(task)] if task.handle == 2 && task.task.is_none()),
        "{late:?}"
    );
    // A coordinator's word takes the place of the engine's.
    let membership = ("t1".parse().expect("an ID"), "svc1".parse().expect("an ID"));
    node.shared.lock().learn(ToAgent::Thresholds {
        default: Default::default(),
        services: Default::default(),
        containers: [(id('a'), membership)].into(),
    });
    let agent = node.shared.lock();
    let service =
        agent.containers().values().find(|it| it.id == id('a')).and_then(|it| it.service().cloned());
    assert_eq!(service.map(|it| it.to_string()), Some("svc1".into()));
}

#[test]
fn containers_of_another_engine_are_left_alone() {
    let mut node = Node::new();
    node.container('a', false);
    node.container('b', false);
    node.walk();
    for _ in 0..40 {
        node.tick();
    }
    node.sampler.retain_known(now(), &[id('a')].into());
    assert!(node.sampler.knows(&id('a')) && !node.sampler.knows(&id('b')));
    assert_eq!(node.walk(), 0, "and are not found again");
}
