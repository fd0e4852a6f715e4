//! A whole coordinator in one process: real QUIC, real HTTP, real journal, the model of a swarm behind the seam, and
//! agents that say what a hot node's agent would say.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde_json::Value;
use swarmguard_common::{
    domain::{BasisPoints, Condition, Edge, NodeId, ServiceId, TaskId},
    wire::{
        agent::{Alert, Hello, NodeLoad, Report, TaskIntro, TaskLoad, ToAgent, ToCoordinator},
        codec,
        connect::ReplicaState,
        routes::{FromRouteSource, ToRouteSource},
    },
};
use swarmguard_coordinator::{
    api::Plain,
    ingest::{Limits, token::Token},
    journal,
    seam::SwarmApi,
    start::{Assembly, Running},
};
use swarmguard_core::{
    brain,
    command::{Command, CommandResult},
    swarm::Snapshot,
};
use swarmguard_runtime::{
    clock, frame,
    identity::{Identity, Source, Unit, anonymous_client_config, issue::Authority},
    transport,
};
use swarmguard_tests::swarm_model::{SwarmModel, Workload};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

const TOKEN: &str = "a-token-long-enough";
const OPERATOR: &str = "another-token-long-enough";

/// The model behind the seam; it moves on with the clock whenever it is asked.
struct ModelSwarm {
    model: Mutex<SwarmModel>,
    own: NodeId,
    changes: watch::Sender<u64>,
}

impl ModelSwarm {
    fn with<T>(&self, look: impl FnOnce(&mut SwarmModel) -> T) -> T {
        let mut model = self.model.lock().expect("unpoisoned");
        model.advance(clock::now());
        look(&mut model)
    }
}

impl SwarmApi for ModelSwarm {
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, String>> {
        Box::pin(async { Ok(self.with(|model| model.snapshot(&self.own))) })
    }

    fn execute(&self, command: Command) -> BoxFuture<'_, CommandResult> {
        Box::pin(async move {
            let result = self.with(|model| model.execute(&command));
            self.changes.send_modify(|count| *count += 1);
            result
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

struct World {
    dir: tempfile::TempDir,
    swarm: Arc<ModelSwarm>,
    service: ServiceId,
    running: Running,
}

/// One manager and three workers; the service has two replicas, on different nodes, on a model that has settled.
async fn world(own: u64) -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::create("cluster1").expect("made");
    for number in 1..=4 {
        let at = dir.path().join(number.to_string());
        std::fs::create_dir(&at).expect("made");
        let unit = if number == 1 || number == own { Unit::Manager } else { Unit::Worker };
        authority.issue(SwarmModel::node_id(number).as_str(), unit, &at).expect("issued");
    }
    let mut model = SwarmModel::new(7, 1, 3);
    let labels = [
        ("swarmguard.enable", "true"),
        ("swarmguard.act-after", "500ms"),
        ("swarmguard.network.mbps", "100"),
        ("swarmguard.lb.port", "8080"),
        ("swarmguard.lb.connect", "true"),
    ];
    let service = model.create_service("web", 2, &labels, Workload::default());
    model.advance(clock::now());
    assert_eq!(model.serving(&service).count(), 2, "the model has settled");
    let own = SwarmModel::node_id(own);
    let swarm = Arc::new(ModelSwarm { model: Mutex::new(model), own, changes: watch::Sender::new(0) });
    let at = if swarm.own == SwarmModel::node_id(1) { "1" } else { "2" };
    let assembly = Assembly {
        identity: identity(&dir.path().join(at)),
        swarm: Arc::clone(&swarm),
        brain: brain::Settings::new(format!("{}.1", swarm.own)),
        journal: journal::Settings { dir: Some(dir.path().join("state")), ..journal::Settings::default() },
        limits: Limits::default(),
        balancer_token: Some(Token::of(TOKEN)),
        operator_token: Some(Token::of(OPERATOR)),
        plain: Plain::Reads,
        quic: loopback(),
        api: loopback(),
    };
    World { running: assembly.start().await.expect("started"), dir, swarm, service }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

fn identity(dir: &Path) -> Identity {
    Identity::load(&Source::Files(dir.into())).expect("loads")
}

impl World {
    async fn connect(
        &self,
        tls: rustls::ClientConfig,
    ) -> (quinn::Connection, quinn::SendStream, quinn::RecvStream) {
        let config = transport::client_config(tls).expect("usable");
        let endpoint = transport::bind(loopback(), None).expect("bound");
        let connecting =
            endpoint.connect_with(config, self.running.quic, "swarm-manager").expect("startable");
        let connection = connecting.await.expect("let in");
        let (send, receive) = connection.open_bi().await.expect("opened");
        (connection, send, receive)
    }

    /// The agent of a node, until the test ends. `hot`: the node is short and its replica of the service over 75 %.
    /// Answers what it is told about balancing at `connect()`.
    async fn agent(&self, number: u64, hot: bool) -> Arc<Mutex<Vec<ToAgent>>> {
        let identity = identity(&self.dir.path().join(number.to_string()));
        let (connection, mut send, mut receive) =
            self.connect(identity.client_config().expect("usable")).await;
        let node = SwarmModel::node_id(number);
        let hello = Hello {
            node: node.clone(),
            epoch: 1,
            hostname: format!("host{number}"),
            version: "test".into(),
            cpu_millis: 4_000,
            memory_bytes: 8 << 30,
            link_mbps: Some(1_000),
            blind: false,
        };
        frame::write(&mut send, &ToCoordinator::Hello(hello)).await.expect("written");
        // What it is told is read, as an agent would.
        let told = Arc::<Mutex<Vec<ToAgent>>>::default();
        let hear = Arc::clone(&told);
        tokio::spawn(async move {
            while let Ok(Some(message)) = frame::read::<ToAgent>(&mut receive).await {
                if matches!(message, ToAgent::Connect(_) | ToAgent::ConnectStill { .. }) {
                    hear.lock().expect("unpoisoned").push(message);
                }
            }
        });
        let (swarm, service) = (Arc::clone(&self.swarm), self.service.clone());
        tokio::spawn(async move {
            let mut handles: BTreeMap<TaskId, u32> = BTreeMap::new();
            for round in 1.. {
                let here: Vec<TaskIntro> = swarm.with(|model| {
                    let here = model.tasks.values().filter(|task| task.node.as_ref() == Some(&node));
                    here.filter_map(|task| intro(task.container()?, &task.id, &service)).collect()
                });
                for mut task in here {
                    let next = u32::try_from(handles.len()).expect("few") + 1;
                    let id = task.task.clone().expect("set");
                    if handles.contains_key(&id) {
                        continue;
                    }
                    task.handle = *handles.entry(id).or_insert(next);
                    let handle = task.handle;
                    frame::write(&mut send, &ToCoordinator::Task(task)).await.expect("written");
                    if hot {
                        let alert = alert(handle.into(), handle, Edge::Raise, 300);
                        frame::write(&mut send, &alert).await.expect("written");
                    }
                }
                // What stands is said again every second.
                if hot && round % 4 == 0 {
                    for handle in handles.values() {
                        let seq = round * 1_000 + u64::from(*handle);
                        let age_ms = u32::try_from(round * 250).expect("minutes");
                        let alert = alert(seq, *handle, Edge::Refresh, age_ms);
                        if frame::write(&mut send, &alert).await.is_err() {
                            return;
                        }
                    }
                }
                let report = load(round, hot, handles.values());
                let sent = connection.send_datagram(codec::encode(&report).expect("small").into());
                if sent.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        });
        told
    }

    /// A balancer that says "drained" at once. Answers what it was told to drain, and whether that still ran then.
    async fn balancer(&self) -> tokio::sync::mpsc::Receiver<(TaskId, bool)> {
        let tls = anonymous_client_config(&self.dir.path().join("1/ca.pem")).expect("usable");
        let (connection, mut send, mut receive) = self.connect(tls).await;
        let hello = ToRouteSource::Hello { token: TOKEN.into(), name: "lb".into() };
        frame::write(&mut send, &hello).await.expect("written");
        let (tell, told) = tokio::sync::mpsc::channel(64);
        let swarm = Arc::clone(&self.swarm);
        tokio::spawn(async move {
            let _open = connection;
            while let Ok(Some(message)) = frame::read::<FromRouteSource>(&mut receive).await {
                let FromRouteSource::Drain { tasks } = message else { continue };
                for task in &tasks {
                    let runs = swarm.with(|model| model.tasks.get(task).is_some_and(|task| task.serves()));
                    tell.try_send((task.clone(), runs)).expect("few");
                }
                frame::write(&mut send, &ToRouteSource::Drained { tasks }).await.expect("written");
            }
        });
        told
    }

    /// The API's answer: status, and JSON where it is some.
    async fn http(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.running.api).await.expect("connected");
        let authorization =
            token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{authorization}\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.http("GET", path, None, "").await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// Codes of the journal so far, oldest first.
    async fn codes(&self) -> Vec<String> {
        let journal = self.get("/api/v1/journal?limit=1000").await;
        let entries = journal.as_array().expect("a list");
        entries.iter().filter_map(|entry| Some(entry["code"].as_str()?.to_owned())).collect()
    }

    async fn until_code(&self, code: &str) {
        for _ in 0..1_200 {
            if self.codes().await.iter().any(|one| one == code) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{code} never stood in the journal: {:#}", self.get("/api/v1/journal?limit=1000").await);
    }
}

fn intro(
    container: swarmguard_common::domain::ContainerId,
    task: &TaskId,
    service: &ServiceId,
) -> Option<TaskIntro> {
    Some(TaskIntro {
        handle: 0,
        container,
        task: Some(task.clone()),
        service: Some(service.clone()),
        cpu_limit_millis: None,
        memory_limit_bytes: None,
        healthcheck: Some(true),
    })
}

fn alert(seq: u64, handle: u32, edge: Edge, age_ms: u32) -> ToCoordinator {
    let condition = Condition::CpuHigh as u8;
    ToCoordinator::Alert(Alert { epoch: 1, seq, handle, condition, edge: edge as u8, value: 9_200, age_ms })
}

fn load<'a>(seq: u64, hot: bool, handles: impl Iterator<Item = &'a u32>) -> Report {
    let cpu = Some(BasisPoints(if hot { 9_200 } else { 1_000 }));
    let low = Some(BasisPoints(500));
    let task = |handle: &u32| TaskLoad {
        handle: *handle,
        cpu,
        memory: low,
        network: low,
        // Of the one CPU that the model's nodes have.
        cpu_millis: if hot { 900 } else { 50 },
        memory_kib: 64 * 1_024,
        psi_cpu: low,
        psi_memory: low,
        ..TaskLoad::default()
    };
    let psi_cpu = Some(BasisPoints(if hot { 6_000 } else { 100 }));
    let node =
        NodeLoad { cpu, memory: low, network: low, psi_cpu, psi_memory: low, psi_io: low, starved: false };
    Report { epoch: 1, seq, node, tasks: handles.map(task).collect() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_replica_leaves_its_node_and_the_journal_tells_how() {
    let world = world(1).await;
    let homes: Vec<NodeId> = world
        .swarm
        .with(|model| model.serving(&world.service).filter_map(|task| task.node.clone()).collect());
    let mut told = world.balancer().await;
    let mut routes = Vec::new();
    for number in 1..=4 {
        routes.push(world.agent(number, SwarmModel::node_id(number) == homes[0]).await);
    }
    world.until_code("done").await;

    let codes = world.codes().await;
    let place =
        |code: &str| codes.iter().position(|one| one == code).unwrap_or_else(|| panic!("{code}: {codes:?}"));
    assert!(place("cpu_high_raise") < place("migrate"), "{codes:?}");
    assert!(place("migrate") < place("successor_healthy"), "{codes:?}");
    assert!(place("successor_healthy") < place("balancers_drained"), "{codes:?}");
    assert!(place("balancers_drained") < place("removed"), "{codes:?}");

    let (drained, ran) = told.recv().await.expect("told");
    assert!(ran, "drained before it was stopped");
    let (violations, now): (Vec<String>, Vec<NodeId>) = world.swarm.with(|model| {
        assert!(model.tasks.get(&drained).is_none_or(|task| !task.serves()));
        let homes = model.serving(&world.service).filter_map(|task| task.node.clone()).collect();
        (model.violations.clone(), homes)
    });
    assert_eq!(violations, Vec::<String>::new());
    assert_eq!(now.len(), 2);
    assert!(!now.contains(&homes[0]), "{now:?}");

    let heard: Vec<ToAgent> =
        routes.iter().flat_map(|told| told.lock().expect("unpoisoned").clone()).collect();
    let states: Vec<ReplicaState> = heard
        .iter()
        .filter_map(|message| if let ToAgent::Connect(routes) = message { Some(routes) } else { None })
        .flat_map(|routes| &routes.fronts)
        .flat_map(|front| &front.replicas)
        .filter(|replica| replica.task == drained)
        .map(|replica| replica.state)
        .collect();
    assert_eq!(states.first(), Some(&ReplicaState::Usable), "agents knew it");
    assert!(states.contains(&ReplicaState::Draining), "and were told that it goes: {states:?}");
    assert!(
        heard.iter().any(|message| matches!(message, ToAgent::ConnectStill { .. })),
        "routes are renewed"
    );

    let history = world.get("/api/v1/history").await;
    assert_eq!(
        (history[0]["what"].as_str(), history[0]["outcome"].as_str()),
        (Some("migrate"), Some("done"))
    );
    assert!(history[0]["mttr_ms"].as_f64().is_some_and(|mttr| mttr > 500.0), "{history:#}");
    let explained = world.get("/api/v1/explain?service=web").await;
    assert_eq!(explained["name"].as_str(), Some("web"), "{explained:#}");
    for path in ["nodes", "containers", "services", "leases", "alerts", "actions", "decisions", "status"] {
        let answer = world.get(&format!("/api/v1/{path}")).await;
        assert!(
            answer.as_array().is_none_or(|list| path == "actions" || !list.is_empty()),
            "{path}: {answer:#}"
        );
    }
    world.running.until(async {}).await.expect("ends in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_taken_with_the_token_and_only_where_the_leader_is() {
    let leading = world(1).await;
    let path = "/api/v1/commands/pause";
    let taken = async {
        loop {
            let (status, answer) = leading.http("POST", path, Some(OPERATOR), "{\"service\":\"web\"}").await;
            if status == 202 {
                return;
            }
            // Names are known, and commands taken, once Swarm was read.
            assert!(matches!(status, 404 | 409), "{answer:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), taken).await.expect("taken");
    leading.until_code("pause").await;
    let (status, _) = leading.http("POST", path, Some("not-the-token-at-all"), "{}").await;
    assert_eq!(status, 401);

    let following = world(2).await;
    let ready = async {
        loop {
            let (status, refused) = following.http("POST", path, Some(OPERATOR), "{}").await;
            assert_eq!(status, 409, "{refused:#}");
            if refused["code"] != "not_ready" {
                return refused;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(60), ready).await.expect("it reads Swarm");
    assert_eq!(
        (refused["code"].as_str(), refused["leader"].is_string()),
        (Some("not_leader"), true),
        "{refused:#}"
    );
}
