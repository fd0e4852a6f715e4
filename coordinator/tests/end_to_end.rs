//! A whole coordinator in one process: real QUIC, real HTTP, real journal, the model of a swarm behind the seam, and
//! agents that say what a hot node's agent would say.

#[path = "support/agents.rs"]
mod agents;

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde_json::Value;
use swarmguard_common::{
    domain::{NodeId, ServiceId, TaskId},
    wire::{
        agent::ToAgent,
        connect::ReplicaState,
        routes::{FromRouteSource, ToRouteSource},
    },
};
use swarmguard_coordinator::{
    api::Access,
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
};
use swarmguard_tests::swarm_model::{SwarmModel, Workload};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::watch,
};

mod described;

const TOKEN: &str = "a-token-long-enough";
const OPERATOR: &str = "another-token-long-enough";

/// The model behind the seam; it moves on with the clock whenever it is asked.
struct ModelSwarm {
    model: Arc<Mutex<SwarmModel>>,
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
    world_with(own, &[("swarmguard.lb.port", "8080"), ("swarmguard.lb.connect", "true")]).await
}

/// The same with these labels instead of those that have it balanced.
async fn world_with(own: u64, balanced: &[(&str, &str)]) -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::create("cluster1").expect("made");
    for number in 1..=4 {
        let at = dir.path().join(number.to_string());
        std::fs::create_dir(&at).expect("made");
        let unit = if number == 1 || number == own { Unit::Manager } else { Unit::Worker };
        authority.issue(SwarmModel::node_id(number).as_str(), unit, &at).expect("issued");
    }
    let mut model = SwarmModel::new(7, 1, 3);
    let mut labels = vec![
        ("swarmguard.enable", "true"),
        ("swarmguard.act-after", "500ms"),
        ("swarmguard.network.mbps", "100"),
    ];
    labels.extend_from_slice(balanced);
    let service = model.create_service("web", 2, &labels, Workload::default());
    model.advance(clock::now());
    assert_eq!(model.serving(&service).count(), 2, "the model has settled");
    let own = SwarmModel::node_id(own);
    let swarm =
        Arc::new(ModelSwarm { model: Arc::new(Mutex::new(model)), own, changes: watch::Sender::new(0) });
    let at = if swarm.own == SwarmModel::node_id(1) { "1" } else { "2" };
    let assembly = Assembly {
        identity: identity(&dir.path().join(at)),
        swarm: Arc::clone(&swarm),
        brain: brain::Settings::new(format!("{}.1", swarm.own)),
        journal: journal::Settings { dir: Some(dir.path().join("state")), ..journal::Settings::default() },
        limits: Limits::default(),
        balancer_token: Some(Token::of(TOKEN)),
        access: Access { token: Some(Token::of(OPERATOR)), ..Access::default() },
        agent_check: None,
        notify: None,
        swarm_name: Some("prod".into()),
        quic: loopback(),
        api: loopback(),
        socket: Some(dir.path().join("api.sock")),
    };
    World { running: assembly.start().await.expect("started"), dir, swarm, service }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

fn identity(dir: &Path) -> Identity {
    Identity::load(&Source::Files(dir.into())).expect("loads")
}

/// The API's answer: status, and JSON where it is some.
async fn call(api: SocketAddr, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(api).await.expect("connected");
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
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

impl World {
    /// The agent of a node, until the test ends. `hot`: the node is short and its replica of the service over 75 %.
    /// Answers what it is told about balancing at `connect()`.
    async fn agent(&self, number: u64, hot: bool) -> Arc<Mutex<Vec<ToAgent>>> {
        let identity = identity(&self.dir.path().join(number.to_string()));
        let swarm = Arc::clone(&self.swarm);
        agents::play(self.running.quic, &identity, number, hot, move |look| swarm.with(|model| look(model)))
            .await
    }

    /// A balancer that says "drained" at once. Answers what it was told to drain, and whether that still ran then.
    async fn balancer(&self) -> tokio::sync::mpsc::Receiver<(TaskId, bool)> {
        let tls = anonymous_client_config(&self.dir.path().join("1/ca.pem")).expect("usable");
        let (connection, mut send, mut receive) = agents::connect(self.running.quic, tls).await;
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

    async fn http(&self, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, Value) {
        call(self.running.api, method, path, token, body).await
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

/// Balancers come before the first service that they are for: one that never hears that there is none yet is not ready,
/// and Swarm would start it again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_hears_that_there_is_nothing_to_balance() {
    let world = world_with(1, &[]).await;
    let tls = anonymous_client_config(&world.dir.path().join("1/ca.pem")).expect("usable");
    let (_connection, mut send, mut receive) = agents::connect(world.running.quic, tls).await;
    let hello = ToRouteSource::Hello { token: TOKEN.into(), name: "lb".into() };
    frame::write(&mut send, &hello).await.expect("written");
    let read = async {
        loop {
            match frame::read::<FromRouteSource>(&mut receive).await.expect("read") {
                // Revision 0 is what a coordinator says that has not read the swarm.
                Some(FromRouteSource::Routes(routes)) if routes.revision > 0 => return routes,
                Some(_) => {}
                None => panic!("the coordinator hung up"),
            }
        }
    };
    let routes = tokio::time::timeout(Duration::from_secs(20), read).await.expect("in time");
    assert!(routes.services.is_empty(), "{routes:?}");
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
    // Made once a second.
    let mut overview = world.get("/api/v1/overview").await;
    for _ in 0..100 {
        if overview["last_day"]["moved"] == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        overview = world.get("/api/v1/overview").await;
    }
    assert_eq!((&overview["swarm"]["name"], &overview["last_day"]["moved"]), (&"prod".into(), &1.into()));
    assert_eq!(overview["nodes"].as_array().map(Vec::len), Some(4));
    assert_eq!(
        (&overview["services"][0]["running"], &overview["services"][0]["wanted"]),
        (&2.into(), &2.into())
    );
    let placement = world.get("/api/v1/placement").await;
    let replicas: u64 =
        placement["cells"].as_array().into_iter().flatten().filter_map(|cell| cell[2].as_u64()).sum();
    assert_eq!(replicas, 2, "{placement:#}");
    let series = world.get("/api/v1/series?node=node1").await;
    assert!(series["cpu_percent"].as_array().is_some_and(|points| points.len() > 1), "{series:#}");
    let mut paths = vec!["overview", "placement", "health", "targets", "balancers", "history", "journal"];
    paths.extend(["nodes", "containers", "services", "leases", "alerts", "actions", "decisions", "status"]);
    for path in paths {
        let path = format!("/api/v1/{path}");
        assert_eq!(described::faults(&path, &world.get(&path).await), [""; 0], "{path}");
    }
    assert_eq!(described::faults("/api/v1/series", &series), [""; 0]);
    assert_eq!(described::faults("/api/v1/explain", &explained), [""; 0]);
    assert_eq!(described::faults("/healthz", &world.get("/healthz").await), [""; 0]);
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

    let (status, plan) = leading.http("POST", &format!("{path}?dry_run=true"), Some(OPERATOR), "{}").await;
    assert_eq!((status, &plan["dry_run"]), (200, &true.into()), "{plan}");
    let journal = leading.get("/api/v1/journal?kinds=operator").await;
    let asked = journal.as_array().expect("a list");
    assert!(!asked.is_empty() && asked.iter().all(|entry| entry["code"] == "pause"), "{journal:#}");
    let text = asked.last().and_then(|entry| entry["text"].as_str()).unwrap_or_default();
    assert!(text.contains("asked from 127.0.0.1: pause service=") && text.ends_with(": taken"), "{text}");
    assert_eq!(
        leading.get("/api/v1/overview").await["coordination"]["paused"],
        false,
        "a dry run does nothing"
    );

    // Who may use the engine reaches the socket, and needs no token.
    let mut stream = UnixStream::connect(leading.dir.path().join("api.sock")).await.expect("connected");
    let request = "POST /api/v1/commands/resume HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                   Swarmguard-Operator: anna@desk\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n\
                   {\"service\":\"web\"}";
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("text");
    assert!(answer.starts_with("HTTP/1.1 202") && answer.contains("anna@desk"), "{answer}");

    // No agent tells this one who lives, so it sends the command to the raft leader's: nothing is there.
    let following = world(2).await;
    let sent_on = async {
        loop {
            let (status, refused) = following.http("POST", path, Some(OPERATOR), "{}").await;
            if status != 409 {
                return (status, refused);
            }
            // Swarm is not read yet, or not who else there is to act.
            let code = refused["code"].as_str().unwrap_or_default();
            assert!(["not_ready", "not_leader"].contains(&code), "{refused:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (status, refused) =
        tokio::time::timeout(Duration::from_secs(60), sent_on).await.expect("it reads Swarm");
    assert_eq!((status, &refused["code"]), (502, &"leader_unreachable".into()), "{refused:#}");
}
