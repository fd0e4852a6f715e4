//! A command given to a coordinator that does not act, while the raft leader's is gone and another stands in for it.

use swarmguard_common::wire::{
    agent::{HeardCoordinator, Hello, NodeLoad, Report, ToCoordinator},
    codec,
};

use super::*;

/// The raft leader, whose coordinator is gone; the one that stands in for it; the one that is asked.
const GONE: u64 = 1;
const STANDS_IN: u64 = 2;
const ASKED: u64 = 3;
const WORKER: u64 = 4;

/// The address that the model gives a node.
fn address(swarm: &SwarmModel, number: u64) -> std::net::IpAddr {
    let snapshot = swarm.snapshot(&SwarmModel::node_id(number));
    snapshot.nodes[&SwarmModel::node_id(number)].address.expect("the model has one")
}

async fn coordinator(dir: &Path, model: &Arc<Mutex<SwarmModel>>, number: u64, api: SocketAddr) -> Running {
    let own = SwarmModel::node_id(number);
    let swarm = ModelSwarm { model: Arc::clone(model), own, changes: watch::Sender::new(0) };
    let assembly = Assembly {
        identity: identity(&dir.join(number.to_string())),
        brain: brain::Settings::new(format!("{}.1", swarm.own)),
        swarm: Arc::new(swarm),
        journal: journal::Settings::default(),
        limits: Limits::default(),
        balancer_token: None,
        access: Access { token: Some(Token::of(OPERATOR)), open_reads: true, ..Access::default() },
        swarm_name: None,
        quic: loopback(),
        api,
        socket: None,
    };
    assembly.start().await.expect("started")
}

/// The agent of the worker at one coordinator: it hears the two that live.
async fn witness(dir: &Path, quic: SocketAddr) {
    let tls = identity(&dir.join(WORKER.to_string())).client_config().expect("usable");
    let (connection, mut send, mut receive) = agents::connect(quic, tls).await;
    let node = SwarmModel::node_id(WORKER);
    let hello = Hello {
        node,
        epoch: 1,
        hostname: "host4".into(),
        version: "test".into(),
        cpu_millis: 1_000,
        memory_bytes: 1 << 30,
        link_mbps: None,
        blind: false,
    };
    frame::write(&mut send, &ToCoordinator::Hello(hello)).await.expect("written");
    let heard = |number| HeardCoordinator {
        node: SwarmModel::node_id(number),
        able: true,
        acting: number == STANDS_IN,
    };
    let hears = ToCoordinator::Hears(vec![heard(STANDS_IN), heard(ASKED)]);
    frame::write(&mut send, &hears).await.expect("written");
    tokio::spawn(async move { while let Ok(Some(_)) = frame::read::<ToAgent>(&mut receive).await {} });
    tokio::spawn(async move {
        for seq in 1.. {
            let report = Report { epoch: 1, seq, node: NodeLoad::default(), tasks: Vec::new() };
            if connection.send_datagram(codec::encode(&report).expect("small").into()).is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    });
}

async fn overview(api: SocketAddr) -> Value {
    call(api, "GET", "/api/v1/overview", None, "").await.1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_reaches_the_one_that_stands_in_for_the_raft_leaders() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::create("cluster1").expect("made");
    for number in [GONE, STANDS_IN, ASKED, WORKER] {
        let at = dir.path().join(number.to_string());
        std::fs::create_dir(&at).expect("made");
        let unit = if number == WORKER { Unit::Worker } else { Unit::Manager };
        authority.issue(SwarmModel::node_id(number).as_str(), unit, &at).expect("issued");
    }
    let mut model = SwarmModel::new(7, 3, 1);
    assert_eq!(model.leader, SwarmModel::node_id(GONE));
    model.create_service("web", 2, &[("swarmguard.enable", "true")], Workload::default());
    model.advance(clock::now());
    let (of_stands_in, of_asked) = (address(&model, STANDS_IN), address(&model, ASKED));
    let model = Arc::new(Mutex::new(model));
    let stands_in = coordinator(dir.path(), &model, STANDS_IN, SocketAddr::new(of_stands_in, 0)).await;
    // The port is the same on all managers.
    let api = SocketAddr::new(of_asked, stands_in.api.port());
    let asked = coordinator(dir.path(), &model, ASKED, api).await;
    for running in [&stands_in, &asked] {
        witness(dir.path(), running.quic).await;
    }

    let host = model.lock().expect("unpoisoned").hostname(&SwarmModel::node_id(STANDS_IN));
    let (acts, path) = (Value::from(host.as_str()), "/api/v1/commands/pause");
    let settled = async {
        loop {
            let told = [overview(stands_in.api).await, overview(asked.api).await];
            if told.iter().all(|told| told["coordination"]["acts"] == acts) {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(60), settled).await.expect("both know who acts");
    let acting = told.map(|told| told["coordination"]["acting"].clone());
    assert_eq!(acting, [Value::from(true), Value::from(false)]);

    let (status, answer) = call(asked.api, "POST", path, Some(OPERATOR), "{\"service\":\"web\"}").await;
    assert_eq!(status, 202, "{answer:#}");
    let (_, journal) = call(stands_in.api, "GET", "/api/v1/journal?kinds=operator", None, "").await;
    let text = journal[0]["text"].as_str().unwrap_or_default();
    assert!(text.contains("through") && text.ends_with(": taken"), "{journal:#}");
    let (_, journal) = call(asked.api, "GET", "/api/v1/journal?kinds=operator", None, "").await;
    assert_eq!(journal, Value::Array(Vec::new()), "it only passed the command on");
}
