//! Agents without a node: they say what a thousand of them would say, in the same rhythm.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use swarmguard_common::{
    domain::BasisPoints,
    time::Time,
    wire::{
        HEARTBEAT_INTERVAL_MS,
        agent::{Alert, Hello, NodeLoad, Report, TaskIntro, TaskLoad, ToAgent, ToCoordinator},
        codec,
    },
};
use swarmguard_runtime::{
    clock, frame,
    identity::{Identity, Source},
    transport,
};
use swarmguard_tests::figures::float;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::Mutex,
};

use crate::{
    Scale,
    engine::{container_id, service_id, service_of, task_id},
    node_id,
};

/// UDP sockets that the agents share.
const ENDPOINTS: usize = 16;
/// Times that one of them tries to connect.
const ATTEMPTS: u32 = 5;
/// Between two alerts that are timed.
const ALERT_GAP: Duration = Duration::from_millis(50);
/// Longest that a decision may take to be counted at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// One agent.
pub struct Agent {
    send: Arc<Mutex<quinn::SendStream>>,
    hot: Arc<AtomicBool>,
    epoch: u64,
}

/// An alert of high CPU.
pub fn alert(epoch: u64, seq: u64, handle: u32) -> Alert {
    Alert { epoch, seq, handle, condition: 0, edge: 0, value: 9_150, age_ms: 300 }
}

/// Connects all agents and lets them report.
pub async fn start(dir: &Path, scale: Scale, to: SocketAddr) -> anyhow::Result<Vec<Agent>> {
    let local = "127.0.0.1:0".parse()?;
    let endpoints: Vec<quinn::Endpoint> =
        (0..ENDPOINTS).map(|_| transport::bind(local, None)).collect::<Result<_, _>>()?;
    let mut crowd = Vec::with_capacity(scale.agents);
    for number in 0..scale.agents {
        let identity = Identity::load(&Source::Files(dir.join(number.to_string())))?;
        let config = transport::client_config(identity.client_config()?)?;
        let connection = admitted(&endpoints[number % ENDPOINTS], &config, to).await;
        let connection = connection.with_context(|| format!("agent {number} was not let in"))?;
        crowd.push(introduce(connection, number, scale).await?);
    }
    Ok(crowd)
}

/// Connects, again where the machine was too busy to answer in time: as agents do.
async fn admitted(
    endpoint: &quinn::Endpoint,
    config: &quinn::ClientConfig,
    to: SocketAddr,
) -> anyhow::Result<quinn::Connection> {
    for _ in 1..ATTEMPTS {
        match endpoint.connect_with(config.clone(), to, "swarm-manager")?.await {
            Err(quinn::ConnectionError::TimedOut) => {}
            other => return Ok(other?),
        }
    }
    Ok(endpoint.connect_with(config.clone(), to, "swarm-manager")?.await?)
}

async fn introduce(connection: quinn::Connection, number: usize, scale: Scale) -> anyhow::Result<Agent> {
    let (mut send, mut receive) = connection.open_bi().await?;
    let epoch = 1_734_567_890_123;
    let hello = Hello {
        node: node_id(number)?,
        epoch,
        hostname: format!("host{number}"),
        version: "bench".into(),
        cpu_millis: 8_000,
        memory_bytes: 32 << 30,
        link_mbps: Some(1_000),
        blind: false,
    };
    frame::write(&mut send, &ToCoordinator::Hello(hello)).await?;
    for container in 0..scale.containers {
        let intro = TaskIntro {
            handle: u32::try_from(container)? + 1,
            container: container_id(number, container).parse()?,
            task: Some(task_id(number, container).parse()?),
            service: Some(service_id(service_of(number, container)).parse()?),
            cpu_limit_millis: None,
            memory_limit_bytes: None,
            healthcheck: Some(true),
            local_volumes: Vec::new(),
        };
        frame::write(&mut send, &ToCoordinator::Task(intro)).await?;
    }
    tokio::spawn(async move { while let Ok(Some(_)) = frame::read::<ToAgent>(&mut receive).await {} });
    let hot = Arc::new(AtomicBool::new(false));
    tokio::spawn(report(connection, epoch, scale, number, Arc::clone(&hot)));
    Ok(Agent { send: Arc::new(Mutex::new(send)), hot, epoch })
}

/// Every 250 ms: the node, and a quarter of the containers in turns.
async fn report(
    connection: quinn::Connection,
    epoch: u64,
    scale: Scale,
    number: usize,
    hot: Arc<AtomicBool>,
) {
    let heartbeat = Duration::from_millis(HEARTBEAT_INTERVAL_MS);
    // Agents do not beat in time with each other.
    let number = u32::try_from(number).unwrap_or(0);
    tokio::time::sleep(heartbeat * (number % 250) / 250).await;
    let mut rhythm = tokio::time::interval(heartbeat);
    let share = scale.containers.div_ceil(4);
    for seq in 1_u64.. {
        rhythm.tick().await;
        let hot = hot.load(Ordering::Relaxed);
        let turn = usize::try_from(seq % 4).unwrap_or(0) * share;
        let handles = (turn..turn + share).filter(|handle| *handle < scale.containers);
        // What is hot comes every time.
        let first = hot.then_some(0).into_iter().filter(|_| turn != 0);
        let tasks = first.chain(handles).map(|handle| task(handle, hot && handle == 0)).collect();
        let cpu = Some(BasisPoints(if hot { 9_300 } else { 2_000 }));
        let low = Some(BasisPoints(700));
        let psi_cpu = Some(BasisPoints(if hot { 5_000 } else { 100 }));
        let node = NodeLoad {
            cpu,
            memory: low,
            network: low,
            psi_cpu,
            psi_memory: low,
            psi_io: low,
            starved: false,
        };
        let Ok(bytes) = codec::encode(&Report { epoch, seq, node, tasks }) else { return };
        if connection.send_datagram(bytes.into()).is_err() {
            return;
        }
    }
}

fn task(container: usize, hot: bool) -> TaskLoad {
    let low = Some(BasisPoints(500));
    TaskLoad {
        handle: u32::try_from(container).unwrap_or(0) + 1,
        cpu: Some(BasisPoints(if hot { 9_150 } else { 900 })),
        memory: low,
        network: low,
        cpu_millis: if hot { 7_000 } else { 70 },
        memory_kib: 120_000,
        psi_cpu: low,
        psi_memory: low,
        throttled: None,
        in_flight: Some(3),
        latency_us: Some(4_000),
        latency_p95_us: Some(9_000),
    }
}

/// Raises one alert after the other, each of another service, and times how long it takes until the journal's stream
/// tells of a decision about that service, in milliseconds.
pub async fn time_alerts(crowd: &[Agent], scale: Scale, api: SocketAddr) -> anyhow::Result<Vec<f64>> {
    let wanted = scale.alerts.min(crowd.len());
    crowd.iter().take(wanted).for_each(|agent| agent.hot.store(true, Ordering::Relaxed));
    // The view must have heard of it before anything can be concluded from it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let sent: Arc<Mutex<BTreeMap<String, Time>>> = Arc::default();
    let listening = tokio::spawn(listen(api, Arc::clone(&sent), wanted));
    tokio::time::sleep(Duration::from_millis(500)).await;
    for (number, agent) in crowd.iter().take(wanted).enumerate() {
        let service = service_id(service_of(number, 0));
        sent.lock().await.insert(service, clock::now());
        let message = ToCoordinator::Alert(alert(agent.epoch, 1, 1));
        frame::write(&mut *agent.send.lock().await, &message).await?;
        tokio::time::sleep(ALERT_GAP).await;
    }
    let figures =
        tokio::time::timeout(PATIENCE, listening).await.context("not every alert led to a decision")???;
    if figures.len() < wanted {
        bail!("only {} of {wanted} alerts led to a decision", figures.len());
    }
    Ok(figures)
}

async fn listen(
    api: SocketAddr,
    sent: Arc<Mutex<BTreeMap<String, Time>>>,
    wanted: usize,
) -> anyhow::Result<Vec<f64>> {
    let mut stream = TcpStream::connect(api).await?;
    stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    let mut lines = BufReader::new(stream).lines();
    let (mut figures, mut others) = (Vec::with_capacity(wanted), 0);
    while figures.len() < wanted {
        let Some(line) = lines.next_line().await? else { bail!("the stream ended") };
        let Some(data) = line.strip_prefix("data:") else { continue };
        let entry: serde_json::Value = serde_json::from_str(data.trim()).unwrap_or_default();
        if !matches!(entry["kind"].as_str(), Some("decision" | "refusal")) {
            continue;
        }
        let service = entry["service"].as_str().unwrap_or_default();
        match sent.lock().await.remove(service) {
            Some(at) => figures.push(clock::now().since(at).as_secs_f64() * 1_000.0),
            None => others += 1,
        }
    }
    eprintln!("{} decisions timed, {} other entries", float(figures.len()), float(others));
    Ok(figures)
}
