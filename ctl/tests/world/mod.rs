//! A whole coordinator in this process, agents that say what they would, and an engine over HTTP that lists services and
//! runs `swarmguard-coordinator stdio`, so that the real `swarmguard` can be driven against them.

pub mod engine;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use swarmguard_common::{
    domain::{BasisPoints, NodeId, ServiceId, TaskId},
    wire::{
        agent::{Hello, NodeLoad, Report, TaskIntro, TaskLoad, ToAgent, ToCoordinator},
        codec,
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
    identity::{Identity, Source, Unit, issue::Authority},
    transport,
};
use swarmguard_tests::swarm_model::{SwarmModel, Workload};
use tokio::sync::watch;

/// The operator's token.
pub const TOKEN: &str = "an-operators-token-long-enough";

/// The model behind the seam; it moves on with the clock whenever it is asked.
pub struct ModelSwarm {
    model: Mutex<SwarmModel>,
    own: NodeId,
    changes: watch::Sender<u64>,
}

impl ModelSwarm {
    /// Looks at the model as it is now.
    pub fn with<T>(&self, look: impl FnOnce(&mut SwarmModel) -> T) -> T {
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

/// Everything, until it is dropped.
pub struct World {
    pub dir: tempfile::TempDir,
    pub swarm: Arc<ModelSwarm>,
    pub service: ServiceId,
    pub running: Running,
    pub engine: engine::Played,
}

/// One manager and three workers; `shop_web` has two replicas, on different nodes; agents are heard.
pub async fn world() -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::create("cluster1").expect("made");
    for number in 1..=4 {
        let at = dir.path().join(number.to_string());
        std::fs::create_dir(&at).expect("made");
        let unit = if number == 1 { Unit::Manager } else { Unit::Worker };
        authority.issue(SwarmModel::node_id(number).as_str(), unit, &at).expect("issued");
    }
    let mut model = SwarmModel::new(7, 1, 3);
    let labels = [("swarmguard.enable", "true"), ("swarmguard.network.mbps", "100")];
    let service = model.create_service("shop_web", 2, &labels, Workload::default());
    model.advance(clock::now());
    assert_eq!(model.serving(&service).count(), 2, "the model has settled");
    let own = SwarmModel::node_id(1);
    let swarm = Arc::new(ModelSwarm { model: Mutex::new(model), own, changes: watch::Sender::new(0) });
    let socket = dir.path().join("api.sock");
    let assembly = Assembly {
        identity: identity(&dir.path().join("1")),
        swarm: Arc::clone(&swarm),
        brain: brain::Settings::new(format!("{}.1", swarm.own)),
        journal: journal::Settings { dir: Some(dir.path().join("state")), ..journal::Settings::default() },
        limits: Limits::default(),
        balancer_token: None,
        access: Access { token: Some(Token::of(TOKEN)), ..Access::default() },
        agent_check: None,
        notify: None,
        swarm_name: Some("prod".into()),
        quic: loopback(),
        api: loopback(),
        socket: Some(socket.clone()),
    };
    let running = assembly.start().await.expect("started");
    let engine = engine::Played::start(dir.path().join("docker.sock"), socket).await;
    let world = World { dir, swarm, service, running, engine };
    for number in 1..=4 {
        world.agent(number).await;
    }
    world
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

fn identity(dir: &Path) -> Identity {
    Identity::load(&Source::Files(dir.into())).expect("loads")
}

/// What the program answered.
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl World {
    /// The agent of a calm node, until the test ends.
    async fn agent(&self, number: u64) {
        let identity = identity(&self.dir.path().join(number.to_string()));
        let tls = identity.client_config().expect("usable");
        let config = transport::client_config(tls).expect("usable");
        let endpoint = transport::bind(loopback(), None).expect("bound");
        let connecting =
            endpoint.connect_with(config, self.running.quic, "swarm-manager").expect("startable");
        let connection = connecting.await.expect("let in");
        let (mut send, mut receive) = connection.open_bi().await.expect("opened");
        let node = SwarmModel::node_id(number);
        let hello = Hello {
            node: node.clone(),
            epoch: 1,
            hostname: format!("host{number}"),
            version: env!("CARGO_PKG_VERSION").into(),
            cpu_millis: 4_000,
            memory_bytes: 8 << 30,
            link_mbps: Some(1_000),
            blind: false,
        };
        frame::write(&mut send, &ToCoordinator::Hello(hello)).await.expect("written");
        tokio::spawn(async move { while let Ok(Some(_)) = frame::read::<ToAgent>(&mut receive).await {} });
        let (swarm, service) = (Arc::clone(&self.swarm), self.service.clone());
        tokio::spawn(async move {
            let mut handles: BTreeMap<TaskId, u32> = BTreeMap::new();
            for seq in 1.. {
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
                    frame::write(&mut send, &ToCoordinator::Task(task)).await.expect("written");
                }
                let report = calm(seq, handles.values());
                if connection.send_datagram(codec::encode(&report).expect("small").into()).is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        });
    }

    /// Runs the program against the played engine.
    pub async fn run(&self, args: &[&str]) -> Said {
        let host = format!("unix://{}", self.engine.socket.display());
        run(args, &[("DOCKER_HOST", &host)]).await
    }

    /// Waits until the coordinator has read Swarm.
    pub async fn ready(&self) {
        for _ in 0..100 {
            if self.run(&["services", "-q"]).await.out == "shop_web\n" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the coordinator does not list shop_web: {}", self.run(&["services"]).await.err);
    }

    /// Runs it until it ends so.
    pub async fn run_until(&self, args: &[&str], code: i32) -> Said {
        for _ in 0..100 {
            let said = self.run(args).await;
            if said.code == code {
                return said;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let said = self.run(args).await;
        panic!("{args:?} ends with {}: {}{}", said.code, said.out, said.err);
    }
}

/// Runs the program with just this environment.
pub async fn run(args: &[&str], env: &[(&str, &str)]) -> Said {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_swarmguard"));
    command.env_clear().env("DOCKER_CONFIG", "/nonexistent").env("USER", "anna").envs(env.iter().copied());
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(120), command.output()).await;
    let output = output.expect("it ends").expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said {
        code: output.status.code().expect("no signal"),
        out: text(&output.stdout),
        err: text(&output.stderr),
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
        local_volumes: Vec::new(),
    })
}

fn calm<'a>(seq: u64, handles: impl Iterator<Item = &'a u32>) -> Report {
    let low = Some(BasisPoints(1_000));
    let task = |handle: &u32| TaskLoad {
        handle: *handle,
        cpu: low,
        memory: low,
        network: low,
        cpu_millis: 200,
        memory_kib: 64 * 1_024,
        ..TaskLoad::default()
    };
    let node = NodeLoad {
        cpu: low,
        memory: low,
        network: low,
        psi_cpu: Some(BasisPoints(0)),
        psi_memory: Some(BasisPoints(0)),
        psi_io: Some(BasisPoints(0)),
        starved: false,
    };
    Report { epoch: 1, seq, node, tasks: handles.map(task).collect() }
}
