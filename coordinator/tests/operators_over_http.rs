//! Every command of an operator through the real client, against an engine over HTTP: what was said stands in Swarm, and
//! a coordinator that starts anew reads it there.

#[path = "support/agents.rs"]
mod agents;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use serde_json::{Value, json};
use swarmguard_common::domain::{NodeId, ServiceId};
use swarmguard_coordinator::{
    api::{Access, Plain},
    ingest::{Limits, token::Token},
    journal,
    start::{Assembly, Running},
    swarm::Client,
};
use swarmguard_core::{brain, swarm::Availability};
use swarmguard_runtime::{
    clock,
    identity::{Identity, Source, Unit, issue::Authority},
};
use swarmguard_tests::swarm_model::{SwarmModel, Workload, http::ModelEngine};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// One manager, the others workers.
const NODES: u64 = 4;

const OPERATOR: &str = "a-token-long-enough";

/// Most looks for something to become true, one in [`LOOK`].
const LOOKS: u32 = 600;
const LOOK: Duration = Duration::from_millis(100);

struct Stage {
    dir: tempfile::TempDir,
    engine: Arc<ModelEngine>,
    service: ServiceId,
}

/// One manager and three workers that have settled, with a service of two replicas.
fn stage() -> Stage {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::create("cluster1").expect("made");
    for number in 1..=NODES {
        let at = dir.path().join(number.to_string());
        std::fs::create_dir(&at).expect("made");
        let unit = if number == 1 { Unit::Manager } else { Unit::Worker };
        authority.issue(SwarmModel::node_id(number).as_str(), unit, &at).expect("issued");
    }
    let mut model = SwarmModel::new(7, 1, NODES - 1);
    let labels = [("swarmguard.enable", "true"), ("swarmguard.migrate", "surge")];
    let service = model.create_service("web", 2, &labels, Workload::default());
    model.advance(clock::now());
    assert_eq!(model.serving(&service).count(), 2, "the model has settled");
    let engine = ModelEngine::serve(model, SwarmModel::node_id(1), &dir.path().join("docker.sock"));
    Stage { dir, engine: Arc::new(engine), service }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

impl Stage {
    /// A coordinator that knows nothing yet.
    async fn coordinator(&self, life: u32) -> Coordinator {
        let socket = format!("unix://{}", self.dir.path().join("docker.sock").display());
        let client = Client::new(&socket).expect("an address");
        client.watch();
        let assembly = Assembly {
            identity: identity(&self.dir.path().join("1")),
            swarm: Arc::new(client),
            brain: brain::Settings::new(format!("life.{life}")),
            journal: journal::Settings::default(),
            limits: Limits::default(),
            balancer_token: None,
            access: Access { token: Some(Token::of(OPERATOR)), plain: Plain::All, ..Access::default() },
            agent_check: None,
            notify: None,
            swarm_name: None,
            socket: None,
            quic: loopback(),
            api: loopback(),
        };
        let coordinator = Coordinator(assembly.start().await.expect("started"));
        for number in 1..=NODES {
            let identity = identity(&self.dir.path().join(number.to_string()));
            let engine = Arc::clone(&self.engine);
            let look = move |look: &dyn Fn(&SwarmModel) -> _| engine.with(|model| look(model));
            agents::play(coordinator.0.quic, &identity, number, false, look).await;
        }
        coordinator.until("it acts", "status", |status| status["acting"] == true).await;
        let all_known = |nodes: &Value| {
            nodes.as_array().is_some_and(|nodes| nodes.iter().all(|node| node["load"].is_object()))
        };
        coordinator.until("all nodes are known", "nodes", all_known).await;
        coordinator
    }

    fn settings(&self) -> Vec<String> {
        self.engine.with(|model| {
            let settings = model.configs.values().find(|config| config.name == "swarmguard-settings");
            settings.map(|config| config.labels.keys().cloned().collect()).unwrap_or_default()
        })
    }

    async fn until(&self, what: &str, done: impl Fn(&SwarmModel) -> bool) {
        for _ in 0..LOOKS {
            if self.engine.with(|model| done(model)) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
        panic!("never: {what}");
    }
}

fn identity(dir: &Path) -> Identity {
    Identity::load(&Source::Files(dir.into())).expect("loads")
}

fn nodes_of(model: &SwarmModel, service: &ServiceId) -> Vec<NodeId> {
    model.serving(service).filter_map(|task| task.node.clone()).collect()
}

struct Coordinator(Running);

impl Coordinator {
    async fn http(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.0.api).await.expect("connected");
        let request = format!(
            "{method} /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: Bearer {OPERATOR}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    async fn order(&self, command: &str, body: Value) {
        let (status, answer) = self.http("POST", &format!("commands/{command}"), &body).await;
        assert_eq!(status, 202, "{command} {body}: {answer:#}");
    }

    async fn until(&self, what: &str, path: &str, done: impl Fn(&Value) -> bool) {
        let mut seen = Value::Null;
        for _ in 0..LOOKS {
            seen = self.http("GET", path, &Value::Null).await.1;
            if done(&seen) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
        panic!("never: {what}: {seen:#}");
    }

    /// No action is under way; tombstones may stand.
    async fn until_idle(&self) {
        let over = |actions: &Value| {
            actions.as_array().is_some_and(|list| list.iter().all(|action| action["state"] == "over"))
        };
        self.until("no action is under way", "actions", over).await;
    }

    async fn end(self) {
        self.0.until(async {}).await.expect("ends in order");
    }
}

fn is_paused(services: &Value) -> bool {
    services[0]["paused"] == true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_and_observing_are_kept_in_swarm_and_read_by_the_next_coordinator() {
    let stage = stage();
    let first = stage.coordinator(1).await;
    first.order("pause", json!({})).await;
    first.order("pause", json!({"service": "web"})).await;
    first.order("observe", json!({"on": true})).await;
    let service_key = format!("swarmguard.pause.{}", stage.service);
    stage
        .until("all of it written", |model| {
            let settings = model.configs.values().find(|config| config.name == "swarmguard-settings");
            settings.is_some_and(|config| config.labels.len() == 3)
        })
        .await;
    assert_eq!(stage.settings(), ["swarmguard.observe", "swarmguard.pause-all", service_key.as_str()]);
    first.end().await;

    // Nothing but Swarm knows of it now.
    let second = stage.coordinator(2).await;
    second.until("the pause was read", "services", is_paused).await;
    let observes = |explained: &Value| explained["observe"] == true;
    second.until("observing was read", "explain?service=web", observes).await;
    second.order("resume", json!({})).await;
    second.order("resume", json!({"service": "web"})).await;
    second.order("observe", json!({"on": false})).await;
    stage
        .until("all of it taken back", |model| {
            let settings = model.configs.values().find(|config| config.name == "swarmguard-settings");
            settings.is_some_and(|config| config.labels.is_empty())
        })
        .await;
    second.until("the pause is over", "services", |services| !is_paused(services)).await;
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_in_goes_on_where_the_last_coordinator_ended() {
    let stage = stage();
    let first = stage.coordinator(1).await;
    first.order("scale", json!({"service": "web", "replicas": 4})).await;
    stage.until("four replicas", |model| model.serving(&stage.service).count() == 4).await;
    first.until_idle().await;
    first.order("scale", json!({"service": "web", "replicas": 2})).await;
    stage
        .until("the steps written", |model| {
            let settings = model.configs.values().find(|config| config.name == "swarmguard-settings");
            settings
                .is_some_and(|config| config.labels.keys().any(|key| key.starts_with("swarmguard.scale.")))
        })
        .await;
    first.end().await;

    let second = stage.coordinator(2).await;
    stage.until("two replicas", |model| model.serving(&stage.service).count() == 2).await;
    second.until_idle().await;
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_drains_and_cancels_reach_swarm_and_leave_it_as_it_was() {
    let stage = stage();
    let before = stage.engine.with(|model| model.services[&stage.service].spec.clone());
    let coordinator = stage.coordinator(1).await;
    let homes = stage.engine.with(|model| nodes_of(model, &stage.service));
    coordinator.order("migrate", json!({"service": "web", "source": homes[0]})).await;
    stage
        .until("the replica left", |model| {
            let nodes = nodes_of(model, &stage.service);
            nodes.len() == 2 && !nodes.contains(&homes[0])
        })
        .await;
    coordinator.until_idle().await;

    let homes = stage.engine.with(|model| nodes_of(model, &stage.service));
    coordinator.order("migrate", json!({"service": "web", "source": homes[0]})).await;
    coordinator.order("cancel", json!({"service": "web"})).await;
    coordinator.until_idle().await;
    let after = stage.engine.with(|model| nodes_of(model, &stage.service));
    assert_eq!(after.iter().filter(|node| homes.contains(node)).count(), 2, "taken back: {after:?}");

    coordinator.order("drain", json!({"node": homes[1]})).await;
    stage
        .until("drained", |model| {
            model.nodes[&homes[1]].availability() == Availability::Drain
                && !nodes_of(model, &stage.service).contains(&homes[1])
        })
        .await;
    coordinator.until_idle().await;
    let (spec, violations) =
        stage.engine.with(|model| (model.services[&stage.service].spec.clone(), model.violations.clone()));
    assert_eq!(spec, before, "the spec is as it was");
    assert_eq!(violations, Vec::<String>::new());
    coordinator.end().await;
}
