//! Agents as a coordinator hears them, over QUIC, of the nodes of a model of Swarm.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use swarmguard_common::{
    domain::{BasisPoints, Condition, Edge, NodeId, TaskId},
    wire::{
        agent::{Alert, Hello, NodeLoad, Report, TaskIntro, TaskLoad, ToAgent, ToCoordinator},
        codec,
    },
};
use swarmguard_runtime::{frame, identity::Identity, transport};
use swarmguard_tests::swarm_model::SwarmModel;

/// A connection to a coordinator and its control stream.
pub async fn connect(
    quic: SocketAddr,
    tls: rustls::ClientConfig,
) -> (quinn::Connection, quinn::SendStream, quinn::RecvStream) {
    let config = transport::client_config(tls).expect("usable");
    let endpoint = transport::bind("127.0.0.1:0".parse().expect("an address"), None).expect("bound");
    let connecting = endpoint.connect_with(config, quic, "swarm-manager").expect("startable");
    let connection = connecting.await.expect("let in");
    let (send, receive) = connection.open_bi().await.expect("opened");
    (connection, send, receive)
}

/// What runs on a node: the tasks that a look at the model shows there.
fn tasks_on(model: &SwarmModel, node: &NodeId) -> Vec<TaskIntro> {
    let here = model.tasks.values().filter(|task| task.node.as_ref() == Some(node));
    let intro = here.filter_map(|task| {
        Some(TaskIntro {
            handle: 0,
            container: task.container()?,
            task: Some(task.id.clone()),
            service: Some(task.service.clone()),
            cpu_limit_millis: None,
            memory_limit_bytes: None,
            healthcheck: Some(true),
            local_volumes: Vec::new(),
        })
    });
    intro.collect()
}

/// The agent of the `number`th node, until the test ends. `hot`: the node is short and its replicas are over 75 %.
/// `look` shows it the model. Answers what it is told about balancing at `connect()`.
pub async fn play(
    quic: SocketAddr,
    identity: &Identity,
    number: u64,
    hot: bool,
    look: impl Fn(&dyn Fn(&SwarmModel) -> Vec<TaskIntro>) -> Vec<TaskIntro> + Send + 'static,
) -> Arc<Mutex<Vec<ToAgent>>> {
    let (connection, mut send, mut receive) = connect(quic, identity.client_config().expect("usable")).await;
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
    tokio::spawn(async move {
        let mut handles: BTreeMap<TaskId, u32> = BTreeMap::new();
        for round in 1.. {
            let here = look(&|model| tasks_on(model, &node));
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
