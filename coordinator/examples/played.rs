//! A whole coordinator with a played swarm behind it, for browsers, API checkers and screenshots: real QUIC, real HTTP,
//! real judgement; the swarm is the model, and its agents and balancer are played.
//!
//! `cargo run -p swarmguard-coordinator --example played -- --nodes 5 --services 14 --port 7480`

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser;
use futures_util::future::BoxFuture;
use swarmguard_common::{
    domain::{BasisPoints, Condition, Edge, NodeId, ServiceId, TaskId},
    wire::{
        agent::{Alert, Hello, NodeLoad, Report, TaskIntro, TaskLoad, ToAgent, ToCoordinator},
        codec,
        routes::{
            BalancerStats, FromRouteSource, ReplicaState, ReplicaStats, Routes, ServiceStats, ToRouteSource,
        },
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
    transport,
};
use swarmguard_tests::swarm_model::{SwarmModel, Workload};
use tokio::sync::watch;

const BALANCER_TOKEN: &str = "the-balancers-token";
/// Between two reports of an agent.
const EVERY: Duration = Duration::from_millis(250);
/// Names of the first services; further ones are numbered.
const NAMES: [&str; 14] = [
    "shop_web",
    "shop_api",
    "shop_cart",
    "shop_search",
    "shop_db",
    "blog_web",
    "blog_comments",
    "mail_smtp",
    "mail_queue",
    "metrics_grafana",
    "metrics_prometheus",
    "auth_keycloak",
    "media_resize",
    "batch_report",
];

/// Plays a swarm behind a real coordinator
#[derive(Parser)]
struct Cli {
    /// Nodes, the first of which is the manager
    #[arg(long, default_value_t = 5)]
    nodes: u64,
    /// Services
    #[arg(long, default_value_t = 14)]
    services: usize,
    /// TCP port of the API on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The operator's token
    #[arg(long, default_value = "a-token-long-enough")]
    token: String,
    /// Where the nodes' certificates are laid, one directory a number; a temporary one where absent
    #[arg(long)]
    dir: Option<std::path::PathBuf>,
    /// Of how many nodes, the last ones, somebody else runs the agent, with the certificates of --dir
    #[arg(long, default_value_t = 0)]
    real: u64,
    /// Where HAProxy asks; the address is then told
    #[arg(long)]
    agent_check: Option<SocketAddr>,
    /// Tell, whenever it changes, on which nodes (their numbers) a replica of this service is wanted and runs
    #[arg(long)]
    serving: Option<String>,
    /// Seconds until a node gets short and its hottest replica has to leave
    #[arg(long, default_value_t = 8)]
    hot_after: u64,
}

/// The model behind the seam; it moves on with the clock whenever it is asked.
struct ModelSwarm {
    model: Mutex<SwarmModel>,
    own: NodeId,
    changes: watch::Sender<u64>,
}

impl ModelSwarm {
    fn with<T>(&self, look: impl FnOnce(&mut SwarmModel) -> T) -> T {
        let mut model = self.model.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        model.advance(clock::now());
        look(&mut model)
    }
}

impl SwarmApi for ModelSwarm {
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, String>> {
        Box::pin(async {
            let mut snapshot = self.with(|model| model.snapshot(&self.own));
            // Nobody is there; but whoever is told where to look should be told something.
            for (number, node) in (1..).zip(snapshot.nodes.values_mut()) {
                node.address = Some(std::net::IpAddr::from([10, 77, 0, number]));
            }
            Ok(snapshot)
        })
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

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let temporary = tempfile::tempdir()?;
    let dir = cli.dir.as_deref().unwrap_or(temporary.path());
    let authority = Authority::create("k2v9x7played0swarm1t4q8w3")?;
    for number in 1..=cli.nodes {
        let at = dir.join(number.to_string());
        std::fs::create_dir_all(&at)?;
        let unit = if number == 1 { Unit::Manager } else { Unit::Worker };
        authority.issue(SwarmModel::node_id(number).as_str(), unit, &at)?;
    }
    let mut model = SwarmModel::new(7, 1, cli.nodes - 1);
    let services: Vec<ServiceId> = (0..cli.services).map(|number| create(&mut model, number)).collect();
    model.advance(clock::now());
    let own = SwarmModel::node_id(1);
    let swarm = Arc::new(ModelSwarm { model: Mutex::new(model), own, changes: watch::Sender::new(0) });
    let assembly = Assembly {
        identity: identity(dir, 1)?,
        swarm: Arc::clone(&swarm),
        brain: brain::Settings::new(format!("{}.1", swarm.own)),
        journal: journal::Settings::default(),
        limits: Limits::default(),
        balancer_token: Some(Token::of(BALANCER_TOKEN)),
        access: Access { token: Some(Token::of(&cli.token)), ..Access::default() },
        agent_check: cli.agent_check,
        notify: None,
        swarm_name: Some("prod".into()),
        quic: SocketAddr::from(([127, 0, 0, 1], 0)),
        api: SocketAddr::from(([127, 0, 0, 1], cli.port)),
        socket: None,
    };
    let running = assembly.start().await?;
    for number in 1..=cli.nodes - cli.real {
        let player = Player {
            number,
            node: SwarmModel::node_id(number),
            swarm: Arc::clone(&swarm),
            service: services.first().cloned().context("at least one service")?,
            hot_after: Duration::from_secs(cli.hot_after),
        };
        tokio::spawn(player.play(connect(&running, identity(dir, number)?.client_config()?).await?));
    }
    let tls = anonymous_client_config(&dir.join("1/ca.pem"))?;
    tokio::spawn(balance(connect(&running, tls).await?));
    if let Some(asked) = running.agent_check {
        println!("agent-check {asked}");
    }
    if cli.real > 0 {
        println!("agents {}", running.quic);
    }
    println!("listening {}", running.api);
    if let Some(service) = cli.serving.clone() {
        tokio::spawn(tell_serving(Arc::clone(&swarm), service));
    }
    running.until(async { drop(tokio::signal::ctrl_c().await) }).await
}

/// Says on which nodes a service can be reached.
async fn tell_serving(swarm: Arc<ModelSwarm>, service: String) {
    let mut told = String::new();
    loop {
        let nodes = swarm.with(|model| {
            let snapshot = model.snapshot(&swarm.own);
            let wanted = snapshot.services.values().find(|one| one.name == service).map(|one| one.id.clone());
            let tasks = snapshot.tasks.values().filter(|task| Some(&task.service) == wanted.as_ref());
            let nodes = tasks.filter(|task| task.is_serving()).filter_map(|task| task.node.clone());
            nodes.collect::<std::collections::BTreeSet<_>>()
        });
        let numbers = (1..=250_u64).filter(|number| nodes.contains(&SwarmModel::node_id(*number)));
        let line = numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(",");
        if line != told {
            println!("serving {line}");
            told = line;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn create(model: &mut SwarmModel, number: usize) -> ServiceId {
    let name = NAMES.get(number).map_or_else(|| format!("app{number:03}_web"), |name| (*name).to_owned());
    let mut labels = vec![("swarmguard.act-after", "1s"), ("swarmguard.network.mbps", "100")];
    if number % 4 != 3 {
        labels.push(("swarmguard.enable", "true"));
        if number.is_multiple_of(4) {
            labels.extend([
                ("swarmguard.lb.port", "8080"),
                ("swarmguard.scale.min", "2"),
                ("swarmguard.scale.max", "12"),
            ]);
        }
    }
    if number == 6 {
        labels.push(("swarmguard.cpu.high", "none"));
    }
    let replicas = [3, 2, 4, 1, 1, 6][number % 6];
    model.create_service(&name, replicas, &labels, Workload::default())
}

fn identity(dir: &Path, number: u64) -> anyhow::Result<Identity> {
    Ok(Identity::load(&Source::Files(dir.join(number.to_string())))?)
}

type Link = (quinn::Connection, quinn::SendStream, quinn::RecvStream);

async fn connect(running: &Running, tls: rustls::ClientConfig) -> anyhow::Result<Link> {
    let endpoint = transport::bind(SocketAddr::from(([127, 0, 0, 1], 0)), None)?;
    let connection =
        endpoint.connect_with(transport::client_config(tls)?, running.quic, "swarm-manager")?.await?;
    let (send, receive) = connection.open_bi().await?;
    Ok((connection, send, receive))
}

/// One node's agent.
struct Player {
    number: u64,
    node: NodeId,
    swarm: Arc<ModelSwarm>,
    /// Gets hot on node 2.
    service: ServiceId,
    hot_after: Duration,
}

impl Player {
    async fn play(self, (connection, mut send, mut receive): Link) -> anyhow::Result<()> {
        let hello = Hello {
            node: self.node.clone(),
            epoch: 1,
            hostname: format!("node{}", self.number),
            version: env!("CARGO_PKG_VERSION").into(),
            cpu_millis: 4_000,
            memory_bytes: 8 << 30,
            link_mbps: Some(1_000),
            blind: false,
        };
        frame::write(&mut send, &ToCoordinator::Hello(hello)).await?;
        tokio::spawn(async move { while let Ok(Some(_)) = frame::read::<ToAgent>(&mut receive).await {} });
        let (mut handles, mut raised) = (BTreeMap::<TaskId, (u32, bool)>::new(), BTreeMap::<u32, u64>::new());
        let (begin, mut seq) = (clock::now(), 0);
        for round in 1.. {
            for (container, task, service) in self.here() {
                if handles.contains_key(&task) {
                    continue;
                }
                let handle = u32::try_from(handles.len())? + 1;
                handles.insert(task.clone(), (handle, service == self.service));
                let intro = TaskIntro {
                    handle,
                    container,
                    task: Some(task),
                    service: Some(service),
                    cpu_limit_millis: None,
                    memory_limit_bytes: None,
                    healthcheck: Some(true),
                    local_volumes: Vec::new(),
                };
                frame::write(&mut send, &ToCoordinator::Task(intro)).await?;
            }
            let alive: Vec<TaskId> = self.here().into_iter().map(|(_, task, _)| task).collect();
            let hot = self.number == 2 && clock::now().since(begin) > self.hot_after;
            for (task, (handle, is_ours)) in &handles {
                let stands = hot && *is_ours && alive.contains(task);
                let since = raised.get(handle).copied();
                let edge = match (stands, since) {
                    (true, None) => Edge::Raise,
                    (true, Some(since)) if (round - since) % 4 == 0 => Edge::Refresh,
                    _ => continue,
                };
                let since = *raised.entry(*handle).or_insert(round);
                seq += 1;
                let age_ms = u32::try_from((round - since) * 250 + 300)?;
                let (condition, edge) = (Condition::CpuHigh as u8, edge as u8);
                let alert = Alert { epoch: 1, seq, handle: *handle, condition, edge, value: 9_200, age_ms };
                frame::write(&mut send, &ToCoordinator::Alert(alert)).await?;
            }
            let still_hot =
                handles.iter().any(|(task, (_, is_ours))| hot && *is_ours && alive.contains(task));
            let report = self.report(round, still_hot, &handles);
            // One that does not fit is left out, as an agent's would be sent in turns.
            let _ = connection.send_datagram(codec::encode(&report)?.into());
            tokio::time::sleep(EVERY).await;
        }
        Ok(())
    }

    fn here(&self) -> Vec<(swarmguard_common::domain::ContainerId, TaskId, ServiceId)> {
        self.swarm.with(|model| {
            let here = model.tasks.values().filter(|task| task.node.as_ref() == Some(&self.node));
            here.filter_map(|task| Some((task.container()?, task.id.clone(), task.service.clone()))).collect()
        })
    }

    /// Slow waves, different for each node and replica; at most as many replicas as fit a datagram, in turns.
    fn report(&self, round: u64, hot: bool, handles: &BTreeMap<TaskId, (u32, bool)>) -> Report {
        let wave = |seed: u64, least: u64, most: u64| {
            #[expect(clippy::cast_precision_loss, reason = "rounds and small seeds")]
            let phase = (round as f64) / (40.0 + (seed % 7) as f64 * 9.0) + seed as f64;
            #[expect(clippy::cast_precision_loss, reason = "hundredths of per cent")]
            let value = least as f64 + (most - least) as f64 * (phase.sin() + 1.0) / 2.0;
            BasisPoints::from_ratio(value / 10_000.0)
        };
        let turn = usize::try_from(round).unwrap_or(0) * 12;
        let count = handles.len().clamp(1, 12);
        let tasks = handles.values().cycle().skip(turn % handles.len().max(1)).take(count);
        let tasks = tasks.map(|(handle, is_ours)| {
            let seed = u64::from(*handle) * 13 + self.number * 5;
            let busy = hot && *is_ours;
            TaskLoad {
                handle: *handle,
                cpu: Some(if busy { BasisPoints(9_200) } else { wave(seed, 300, 4_200 + (seed % 5) * 500) }),
                memory: Some(wave(seed + 3, 1_500, 5_200)),
                network: Some(BasisPoints(400)),
                cpu_millis: if busy { 3_400 } else { 120 + u32::from(wave(seed, 0, 9_000).0) / 20 },
                memory_kib: 90 * 1_024 + u32::try_from(seed % 9).unwrap_or(0) * 20_000,
                psi_cpu: Some(if busy { BasisPoints(5_500) } else { BasisPoints(60) }),
                psi_memory: Some(BasisPoints(0)),
                in_flight: Some(u32::from(wave(seed + 1, 0, 900).0 / 100)),
                latency_us: Some(1_800 + u32::from(wave(seed + 2, 0, 6_000).0)),
                ..TaskLoad::default()
            }
        });
        let node = NodeLoad {
            cpu: Some(if hot { BasisPoints(9_400) } else { wave(self.number * 3, 1_800, 4_400) }),
            memory: Some(wave(self.number + 40, 3_500, 5_000)),
            network: Some(wave(self.number + 20, 200, 1_500)),
            psi_cpu: Some(if hot { BasisPoints(6_000) } else { wave(self.number, 0, 300) }),
            psi_memory: Some(BasisPoints(0)),
            psi_io: Some(BasisPoints(20)),
            starved: false,
        };
        Report { epoch: 1, seq: round, node, tasks: tasks.collect() }
    }
}

/// A balancer that sends nearly as much to each replica, says "drained" at once, and tells its figures every second.
async fn balance((connection, mut send, mut receive): Link) -> anyhow::Result<()> {
    let hello = ToRouteSource::Hello { token: BALANCER_TOKEN.into(), name: "balancer on node1".into() };
    frame::write(&mut send, &hello).await?;
    let (heard_in, mut heard) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok(Some(message)) = frame::read::<FromRouteSource>(&mut receive).await {
            if heard_in.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut routes = Routes::default();
    let mut sent: BTreeMap<TaskId, u64> = BTreeMap::new();
    let mut every = tokio::time::interval(Duration::from_secs(1));
    for second in 1.. {
        loop {
            tokio::select! {
                _ = every.tick() => break,
                message = heard.recv() => match message.context("the coordinator is gone")? {
                    FromRouteSource::Routes(newest) => routes = newest,
                    FromRouteSource::Drain { tasks } => {
                        frame::write(&mut send, &ToRouteSource::Drained { tasks }).await?;
                    }
                    FromRouteSource::Resume { .. } => {}
                },
            }
        }
        let services = routes.services.values().take(40).map(|service| {
            let replicas = service.replicas.iter().enumerate().map(|(index, replica)| {
                let requests = sent.entry(replica.task.clone()).or_default();
                let share = 40 + (index as u64 * 7 + second) % 9;
                *requests += if replica.ready && !replica.draining { share } else { 0 };
                let state = match (replica.draining, replica.ready) {
                    (true, _) => ReplicaState::Draining,
                    (false, false) => ReplicaState::Unready,
                    (false, true) => ReplicaState::Serving,
                };
                ReplicaStats {
                    task: replica.task.clone(),
                    state,
                    requests: *requests,
                    failures: 0,
                    in_flight: u32::try_from(share % 6).unwrap_or(0),
                    p50_us: Some(1_900 + u32::try_from(share).unwrap_or(0) * 11),
                    p99_us: Some(9_000 + u32::try_from(share).unwrap_or(0) * 90),
                }
            });
            let replicas: Vec<ReplicaStats> = replicas.collect();
            let requests = replicas.iter().map(|replica| replica.requests).sum();
            ServiceStats { name: service.name.clone(), requests, replicas, ..ServiceStats::default() }
        });
        let services = services.collect();
        let stats = BalancerStats { uptime_ms: second * 1_000, ready: true, connections: 128, services };
        frame::write(&mut send, &ToRouteSource::Stats(stats)).await?;
    }
    drop(connection);
    Ok(())
}
