//! Conditions and uplink against a coordinator that the test plays itself, over loopback QUIC with real certificates.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use swarmguard_agent::{
    model::{Capacity, Limits},
    sources::{cpu::CpuStat, group::FastReading},
    state::{Agent, Description},
    uplink::{self, Shared, Uplink, addresses::Addresses},
};
use swarmguard_common::{
    domain::{BasisPoints, Condition, ContainerId, Edge},
    labels::Thresholds,
    wire::{
        agent::{Alert, ContainerChange, Hello, Report, ToAgent, ToCoordinator},
        codec,
    },
};
use swarmguard_runtime::{
    clock, frame,
    identity::{Identity, Source, Unit, issue::Authority},
    transport,
};
use tokio::time::timeout;

/// Generous: it only ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

struct Certificates {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Certificates {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self { dir, authority: Authority::create("cluster1").expect("an authority") }
    }

    fn issue(&self, name: &str, unit: Unit) -> Source {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        self.authority.issue(name, unit, &path).expect("a certificate");
        Source::Files(path)
    }
}

/// The far end, played step by step.
struct Coordinator {
    endpoint: Endpoint,
}

struct Peer {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    hello: Hello,
}

impl Coordinator {
    fn listen(identity: &Source, address: SocketAddr) -> Self {
        let identity = Identity::load(identity).expect("loads");
        let config = transport::server_config(identity.server_config().expect("TLS")).expect("QUIC");
        Self { endpoint: transport::bind(address, Some(config)).expect("a port") }
    }

    fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().expect("bound")
    }

    async fn accept(&self) -> Peer {
        let accept = async {
            let connection = self.endpoint.accept().await.expect("open").await.expect("a handshake");
            let (mut send, mut receive) = connection.accept_bi().await.expect("a control stream");
            let hello =
                frame::read::<ToCoordinator>(&mut receive).await.expect("a frame").expect("not the end");
            let ToCoordinator::Hello(hello) = hello else { panic!("hello comes first, not {hello:?}") };
            frame::write(&mut send, &ToAgent::Welcome { version: "test".into() }).await.expect("written");
            Peer { connection, send, receive, hello }
        };
        timeout(PATIENCE, accept).await.expect("an agent comes")
    }
}

impl Peer {
    async fn next(&mut self) -> ToCoordinator {
        let read = frame::read::<ToCoordinator>(&mut self.receive);
        timeout(PATIENCE, read).await.expect("in time").expect("a frame").expect("not the end")
    }

    async fn next_alert(&mut self) -> Alert {
        loop {
            if let ToCoordinator::Alert(alert) = self.next().await {
                return alert;
            }
        }
    }

    async fn alert_of(&mut self, condition: Condition, edge: Edge) -> Alert {
        loop {
            let alert = self.next_alert().await;
            if alert.parts() == Some((condition, edge)) {
                return alert;
            }
        }
    }

    async fn say(&mut self, message: ToAgent) {
        frame::write(&mut self.send, &message).await.expect("written");
    }

    async fn report(&self) -> Report {
        let datagram =
            timeout(PATIENCE, self.connection.read_datagram()).await.expect("in time").expect("connected");
        codec::decode(&datagram).expect("a report")
    }
}

fn container() -> ContainerId {
    "ab".repeat(32).parse().expect("an ID")
}

fn shared() -> Shared {
    let hello = Hello {
        node: "unknown".parse().expect("an ID"),
        epoch: 77,
        hostname: "worker-1".into(),
        version: "0".into(),
        cpu_millis: 2_000,
        memory_bytes: 1 << 30,
        link_mbps: None,
        blind: false,
    };
    let capacity = Capacity { cpu_millis: 2_000, memory_bytes: 1 << 30, network_mbps: Some(100) };
    Shared::new(Agent::new(hello, capacity, 16))
}

fn start(shared: &Shared, identity: &Source, coordinators: &[SocketAddr]) -> tokio::task::JoinHandle<()> {
    let list: Vec<String> = coordinators.iter().map(ToString::to_string).collect();
    let uplink = Uplink {
        shared: shared.clone(),
        identity: identity.clone(),
        addresses: Addresses::new(list.join(",").parse().expect("addresses"), None),
        endpoints: uplink::real_endpoints(),
        seed: 1,
    };
    tokio::spawn(uplink.run())
}

/// A container that uses a share of the node, sampled as fast as the test goes, at times ten a second apart.
struct Workload {
    shared: Shared,
    handle: u32,
    used_usec: u64,
    now: swarmguard_common::time::Time,
}

impl Workload {
    fn new(shared: &Shared) -> Self {
        // In the past, so that ages are not negative while the test is ahead of time.
        let now = clock::now().before(Duration::from_secs(600));
        let handle = shared.lock().born(now, &container(), Limits::default()).expect("room");
        Self { shared: shared.clone(), handle, used_usec: 0, now }
    }

    fn run(&mut self, percent: u64, samples: u32) {
        for _ in 0..samples {
            self.now = self.now + Duration::from_millis(100);
            // Of two CPUs, over a tenth of a second.
            self.used_usec += percent * 2_000;
            let cpu = Some(CpuStat { usage_usec: self.used_usec, periods: None });
            let reading = FastReading { cpu, memory_bytes: Some(1 << 20) };
            self.shared.lock().sample(self.now, self.handle, reading, None);
        }
        self.shared.wake();
    }
}

/// An agent and its one coordinator, connected.
struct Pair {
    coordinator: Coordinator,
    peer: Peer,
    shared: Shared,
    uplink: tokio::task::JoinHandle<()>,
    /// Read again now and then.
    _certificates: Certificates,
}

impl Pair {
    async fn connected() -> Self {
        let certificates = Certificates::new();
        let manager = certificates.issue("manager1", Unit::Manager);
        let coordinator = Coordinator::listen(&manager, "127.0.0.1:0".parse().expect("an address"));
        let shared = shared();
        let uplink = start(&shared, &certificates.issue("node1", Unit::Worker), &[coordinator.address()]);
        let peer = coordinator.accept().await;
        Self { coordinator, peer, shared, uplink, _certificates: certificates }
    }
}

#[tokio::test]
async fn alerts_arrive_are_acknowledged_and_sent_again_after_a_reconnect() {
    let Pair { coordinator, mut peer, shared, uplink, _certificates } = Pair::connected().await;
    assert_eq!(peer.hello.node.to_string(), "node1", "the certificate names the node");
    assert_eq!((peer.hello.epoch, peer.hello.hostname.as_str()), (77, "worker-1"));

    let mut load = Workload::new(&shared);
    load.run(10, 3);
    let ToCoordinator::Task(intro) = peer.next().await else { panic!("the container is introduced") };
    assert_eq!((intro.handle, intro.container), (1, container()));
    load.run(95, 6);
    let raise = peer.next_alert().await;
    assert_eq!(raise.parts(), Some((Condition::CpuHigh, Edge::Raise)));
    assert_eq!((raise.epoch, raise.handle), (77, intro.handle));
    assert!((9_000..=10_000).contains(&raise.value), "{raise:?}");

    // Not acknowledged and cut off: the same alert comes again, after the introduction, under its number.
    peer.connection.close(0_u32.into(), b"test");
    let mut peer = coordinator.accept().await;
    let ToCoordinator::Task(again) = peer.next().await else { panic!("the container is introduced anew") };
    assert_eq!(again.container, container());
    let repeated = peer.next_alert().await;
    assert_eq!((repeated.seq, repeated.condition, repeated.edge), (raise.seq, raise.condition, raise.edge));
    assert!(repeated.age_ms >= raise.age_ms, "its age goes on: {repeated:?}");
    let standing = peer.next_alert().await;
    assert_eq!(
        standing.parts(),
        Some((Condition::CpuHigh, Edge::Refresh)),
        "what stands is told to a new connection"
    );

    // Acknowledged: it is forgotten and does not come a third time.
    peer.say(ToAgent::Acknowledge { seq: standing.seq }).await;
    let forgotten = async {
        while !shared.lock().outbox().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, forgotten).await.expect("acknowledged alerts are forgotten");
    peer.connection.close(0_u32.into(), b"test");
    let mut peer = coordinator.accept().await;
    let next = peer.next_alert().await;
    assert!(next.seq > standing.seq, "{next:?} was acknowledged");

    load.run(10, 6);
    let clear = peer.alert_of(Condition::CpuHigh, Edge::Clear).await;
    assert!(clear.seq > next.seq);
    shared.lock().died(load.handle);
    shared.wake();
    let gone = peer.next().await;
    assert!(matches!(gone, ToCoordinator::Gone { .. }), "{gone:?}");
    uplink.abort();
}

#[tokio::test]
async fn an_alert_of_a_container_that_ended_is_still_told_after_a_reconnect() {
    let certificates = Certificates::new();
    let coordinator = Coordinator::listen(
        &certificates.issue("manager1", Unit::Manager),
        "127.0.0.1:0".parse().expect("an address"),
    );
    let shared = shared();
    let mut load = Workload::new(&shared);
    load.run(100, 8);
    shared.lock().died(load.handle);
    let uplink = start(&shared, &certificates.issue("node1", Unit::Worker), &[coordinator.address()]);
    let mut peer = coordinator.accept().await;
    let messages = [peer.next().await, peer.next().await, peer.next().await];
    let [ToCoordinator::Task(intro), ToCoordinator::Alert(alert), ToCoordinator::Gone { handle }] = messages
    else {
        panic!("introduction, alert and end, not {messages:?}");
    };
    assert_eq!((alert.handle, handle), (intro.handle, intro.handle));
    uplink.abort();
}

#[tokio::test]
async fn a_container_whose_limits_changed_unheard_is_told_under_its_new_handle_alone() {
    let certificates = Certificates::new();
    let coordinator = Coordinator::listen(
        &certificates.issue("manager1", Unit::Manager),
        "127.0.0.1:0".parse().expect("an address"),
    );
    let shared = shared();
    let mut load = Workload::new(&shared);
    load.run(100, 8);
    let limits = Limits { cpu_millis: Some(1_000), memory_bytes: None };
    load.handle = shared.lock().limit(load.handle, limits).expect("there");
    let uplink = start(&shared, &certificates.issue("node1", Unit::Worker), &[coordinator.address()]);
    let mut peer = coordinator.accept().await;
    let ToCoordinator::Task(intro) = peer.next().await else { panic!("the container is introduced") };
    assert_eq!(intro.cpu_limit_millis, Some(1_000));
    load.run(100, 8);
    let next = peer.next().await;
    let ToCoordinator::Alert(alert) = next else { panic!("{next:?} is of the handle that it had before") };
    assert_eq!((alert.handle, alert.edge), (intro.handle, Edge::Raise as u8));
    uplink.abort();
}

#[tokio::test]
async fn reports_renew_the_lease_and_thresholds_are_obeyed() {
    let Pair { coordinator: _coordinator, mut peer, shared, uplink, _certificates } = Pair::connected().await;
    let (first, second) = (peer.report().await, peer.report().await);
    assert_eq!(first.epoch, 77);
    assert!(second.seq > first.seq && first.tasks.is_empty());

    let mut load = Workload::new(&shared);
    let description = Description { service: Some("svc1".parse().expect("an ID")), ..Description::default() };
    load.handle = shared.lock().describe(&container(), description).expect("known");
    let low = Thresholds { cpu_high: BasisPoints::from_percent(20), ..Thresholds::default() };
    let services = [("svc1".parse().expect("an ID"), low)].into_iter().collect();
    peer.say(ToAgent::Thresholds {
        default: Thresholds::default(),
        services,
        containers: Default::default(),
    })
    .await;
    // Thresholds travel; a load of 30 % is an alert as soon as they are there, and never before.
    let raised = async {
        loop {
            load.run(30, 1);
            if shared.lock().outbox().last_seq() > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, raised).await.expect("the service's threshold is 20 %");
    let alert = peer.alert_of(Condition::CpuHigh, Edge::Raise).await;
    assert!((2_900..=3_100).contains(&alert.value), "{alert:?}");
    let with_container = async {
        loop {
            let report = peer.report().await;
            if let Some(task) = report.tasks.first() {
                return *task;
            }
        }
    };
    let task = timeout(PATIENCE, with_container).await.expect("hot containers are in every report");
    assert_eq!(task.handle, alert.handle);
    assert!(task.cpu.is_some_and(|cpu| (2_000..=3_100).contains(&cpu.0)), "{task:?}");
    uplink.abort();
}

#[tokio::test]
async fn foreign_certificates_are_refused_on_both_sides() {
    let (ours, foreign) = (Certificates::new(), Certificates::new());
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");

    // A coordinator of another cluster, and a worker of ours that poses as coordinator.
    for identity in [foreign.issue("manager1", Unit::Manager), ours.issue("node2", Unit::Worker)] {
        let impostor = Coordinator::listen(&identity, any);
        let shared = shared();
        let uplink = start(&shared, &ours.issue("node1", Unit::Worker), &[impostor.address()]);
        let incoming =
            timeout(PATIENCE, impostor.endpoint.accept()).await.expect("the agent tries").expect("open");
        let refused = match incoming.await {
            Err(_) => true,
            // The handshake may be over on this side before the agent's refusal arrives.
            Ok(connection) => timeout(PATIENCE, connection.accept_bi()).await.expect("in time").is_err(),
        };
        assert!(refused, "the agent spoke to an impostor");
        let counted = async {
            while shared.links().by_address.values().all(|link| link.failures == 0) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, counted).await.expect("the failure is counted");
        assert!(shared.links().by_address.values().all(|link| !link.connected));
        uplink.abort();
    }

    // An agent of another cluster.
    let coordinator = Coordinator::listen(&ours.issue("manager1", Unit::Manager), any);
    let shared = shared();
    let uplink = start(&shared, &foreign.issue("node1", Unit::Worker), &[coordinator.address()]);
    let incoming =
        timeout(PATIENCE, coordinator.endpoint.accept()).await.expect("the agent tries").expect("open");
    assert!(incoming.await.is_err(), "its certificate is not of this cluster");
    uplink.abort();
}

#[tokio::test]
async fn every_coordinator_is_told_and_alerts_wait_for_the_slowest() {
    let certificates = Certificates::new();
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let identity = certificates.issue("manager1", Unit::Manager);
    let (one, two) = (Coordinator::listen(&identity, any), Coordinator::listen(&identity, any));
    let shared = shared();
    let uplink = start(&shared, &certificates.issue("node1", Unit::Worker), &[one.address(), two.address()]);
    let (mut first, mut second) = (one.accept().await, two.accept().await);
    Workload::new(&shared).run(100, 6);
    let (a, b) = (first.next_alert().await, second.next_alert().await);
    assert_eq!((a.seq, a.condition, a.edge), (b.seq, b.condition, b.edge), "numbered alike");
    first.say(ToAgent::Acknowledge { seq: a.seq }).await;
    let known = async {
        while shared.links().by_address[&one.address()].acknowledged < a.seq {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, known).await.expect("acknowledged");
    assert!(!shared.lock().outbox().is_empty(), "the second has not acknowledged it");
    second.say(ToAgent::Acknowledge { seq: b.seq }).await;
    let forgotten = async {
        while shared.lock().outbox().after(0).any(|kept| kept.seq <= a.seq) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, forgotten).await.expect("both have it");
    uplink.abort();
}

#[tokio::test]
async fn the_agents_own_budget_is_alerted_and_told_again_to_who_comes_later() {
    let Pair { coordinator, mut peer, shared, uplink, _certificates } = Pair::connected().await;
    let used = BasisPoints(97);
    shared.lock().budget(clock::now(), true, used);
    shared.wake();
    let raise = peer.alert_of(Condition::AgentOverBudget, Edge::Raise).await;
    assert_eq!((raise.handle, raise.value), (0, used.0), "it speaks of no container, and says how much");
    peer.connection.close(0_u32.into(), b"test");

    let mut peer = coordinator.accept().await;
    let standing = peer.alert_of(Condition::AgentOverBudget, Edge::Refresh).await;
    assert_eq!(standing.value, used.0);
    shared.lock().budget(clock::now(), false, BasisPoints(60));
    shared.wake();
    let clear = peer.alert_of(Condition::AgentOverBudget, Edge::Clear).await;
    assert_eq!(clear.value, 60);
    uplink.abort();
}

#[tokio::test]
async fn what_the_engine_tells_is_pushed_to_every_coordinator_once() {
    let certificates = Certificates::new();
    let manager = certificates.issue("manager1", Unit::Manager);
    let listen = || Coordinator::listen(&manager, "127.0.0.1:0".parse().expect("an address"));
    let coordinators = [listen(), listen()];
    let shared = shared();
    let addresses = coordinators.each_ref().map(Coordinator::address);
    let uplink = start(&shared, &certificates.issue("node1", Unit::Worker), &addresses);
    let mut peers = [coordinators[0].accept().await, coordinators[1].accept().await];
    let died = ContainerChange::Died { status: 137 };
    let told = [ContainerChange::Started, ContainerChange::Unhealthy, ContainerChange::Healthy, died];
    for what in told {
        let task = Some("task1".parse().expect("an ID"));
        shared.lock().engine_event(clock::now(), container(), task, what);
        shared.wake();
    }
    for peer in &mut peers {
        let mut heard = Vec::new();
        while heard.len() < told.len() {
            if let ToCoordinator::Container(event) = peer.next().await {
                assert_eq!((&event.container, event.task.is_some()), (&container(), true));
                heard.push(event.what);
            }
        }
        assert_eq!(heard, told);
    }
    uplink.abort();
}

#[tokio::test]
async fn a_renewed_certificate_is_used() {
    let certificates = Certificates::new();
    let coordinator = Coordinator::listen(
        &certificates.issue("manager1", Unit::Manager),
        "127.0.0.1:0".parse().expect("an address"),
    );
    let source = certificates.issue("node1", Unit::Worker);
    let Source::Files(dir) = &source else { panic!("files") };
    let shared = shared();
    // Time is not waited for but stepped: the look at the files comes every ten seconds.
    let uplink = start(&shared, &source, &[coordinator.address()]);
    let peer = coordinator.accept().await;
    assert_eq!(peer.hello.node.to_string(), "node1");
    let serial = |peer: &Peer| {
        let chain = peer.connection.peer_identity().expect("a certificate");
        chain.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().expect("rustls")[0].to_vec()
    };
    let before = serial(&peer);
    renew(&certificates.authority, dir);
    let peer = coordinator.accept().await;
    assert_ne!(serial(&peer), before, "the connection was made anew with the new certificate");
    uplink.abort();
}

fn renew(authority: &Authority, dir: &Path) {
    let next: PathBuf = dir.join("next");
    std::fs::create_dir(&next).expect("a directory");
    authority.issue("node1", Unit::Worker, &next).expect("a certificate");
    for name in ["key.pem", "cert.pem", "ca.pem"] {
        std::fs::rename(next.join(name), dir.join(name)).expect("replaced");
    }
}

#[test]
fn shared_state_can_be_sent_between_threads() {
    fn check<T: Send + Sync + 'static>(_: Option<T>) {}
    check(None::<Shared>);
    check(None::<Arc<Uplink>>);
}

#[tokio::test]
async fn routes_for_connect_are_learnt_from_each_coordinator() {
    use swarmguard_common::wire::connect::{ConnectReplica, ConnectRoutes, Front, ReplicaState};
    let Pair { coordinator: _coordinator, mut peer, shared, uplink, _certificates } = Pair::connected().await;
    assert_eq!(shared.lock().connect.version(clock::now()), 0, "nobody has spoken of it");
    let replica = ConnectReplica {
        task: "t1".parse().expect("an ID"),
        address: [10, 0, 1, 7].into(),
        node: "w1".parse().expect("an ID"),
        state: ReplicaState::Usable,
    };
    let front = Front {
        service: "s1".parse().expect("an ID"),
        network: "n1".parse().expect("an ID"),
        address: [10, 0, 1, 2].into(),
        replicas: vec![replica],
    };
    let routes = ConnectRoutes { revision: 1, acting: true, fronts: vec![front], ..ConnectRoutes::default() };
    peer.say(ToAgent::Connect(routes.clone())).await;
    peer.say(ToAgent::ConnectStill { revision: 1 }).await;
    let learnt = async {
        while shared.lock().connect.routes().as_ref() != Some(&routes) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, learnt).await.expect("the agent learns the routes");
    // Cut off, they hold until their lease ends, and no longer.
    uplink.abort();
    let mut agent = shared.lock();
    let lapsed = clock::now() + Duration::from_secs(60);
    agent.connect.version(lapsed);
    assert_eq!(agent.connect.routes(), None);
}
