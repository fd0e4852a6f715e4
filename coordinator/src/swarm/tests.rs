//! The client against an engine that says what Docker 20.10.24 said.

use std::collections::BTreeMap;

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use swarmguard_core::swarm::{Availability, Mode, TaskState, UpdateState};
use swarmguard_tests::played_engine::{Fault, Objects, PlayedEngine, until};
use tokio::net::UnixListener;

use super::*;

const NODES: &str = r#"[{"ID":"fijrjyhz7f3on0fewoy2drmr1","Version":{"Index":1121},
    "Spec":{"Labels":{"zone":"a"},"Role":"manager","Availability":"pause","FromTomorrow":1},
    "Description":{"Hostname":"node3","Platform":{"Architecture":"x86_64","OS":"linux"},
    "Resources":{"NanoCPUs":2000000000,"MemoryBytes":25276530688},"Engine":{"EngineVersion":"20.10.24+dfsg1"}},
    "Status":{"State":"ready","Addr":"10.81.0.13"},"ManagerStatus":{"Leader":true,"Reachability":"reachable"}}]"#;
const SERVICES: &str = r#"[{"ID":"qr8husmffszycuwnxtqu984r6","Version":{"Index":106},
    "Spec":{"Name":"web","Labels":{"swarmguard.enable":"true"},"TaskTemplate":{"Placement":{},"FromTomorrow":[1]},
    "Mode":{"Replicated":{"Replicas":3}}},"PreviousSpec":null,"UpdateStatus":{"State":"completed"},
    "Endpoint":{"Spec":{"Mode":"vip"},"VirtualIPs":[{"NetworkID":"kx1q0","Addr":"10.0.1.2/24"},{"NetworkID":"late1"}]}},
    {"ID":"odd","Version":"none"},
    {"ID":"j1","Version":{"Index":7},"Spec":{"Name":"job","Mode":{"ReplicatedJob":{"MaxConcurrent":2,"TotalCompletions":5}}},
    "JobStatus":{"JobIteration":{"Index":3}}}]"#;
const TASKS: &str = r#"[{"ID":"2i8qhcfdfedsbppdbcljm6kw0","Version":{"Index":112},"CreatedAt":"2026-11-21T06:13:31.57Z",
    "Spec":{"Placement":{"Constraints":["node.platform.os==linux"]}},"ServiceID":"qr8husmffszycuwnxtqu984r6","Slot":3,
    "NodeID":"fijrjyhz7f3on0fewoy2drmr1","Status":{"State":"running","Message":"started","ContainerStatus":
    {"ContainerID":"fa0bb086ed3e1319ac5a72cc8b62164c3302d8c444f4100a912df4c9b75c416e","PID":1045}},
    "NetworksAttachments":[{"Network":{"ID":"in1","Spec":{"Name":"ingress","Ingress":true}},"Addresses":["10.0.0.7/24"]},
    {"Network":{"ID":"kx1q0","Spec":{"Name":"web"}},"Addresses":["10.0.1.7/24"]},{"Network":{},"Addresses":null}],"DesiredState":"running"},
    {"ID":"p1","ServiceID":"qr8husmffszycuwnxtqu984r6","Slot":4,"Status":{"State":"pending","Message":"pending task scheduling",
    "Err":"no suitable node"},"DesiredState":"running"},
    {"ID":"d1","ServiceID":"qr8husmffszycuwnxtqu984r6","Slot":3,"NodeID":"fijrjyhz7f3on0fewoy2drmr1",
    "Status":{"State":"failed"},"DesiredState":"shutdown"}]"#;
const CONFIGS: &str = r#"[{"ID":"c1","Version":{"Index":9},"Spec":{"Name":"swarmguard-act-abc","Labels":{"a":"b"},"Data":"aGVsbG8="}},
    {"ID":"c3","Version":{"Index":10},"Spec":{"Name":"swarmguard-settings","Labels":{"pause":"all"}}},
    {"ID":"c4","Version":{"Index":11},"Spec":{"Name":"swarmguard-job-j1","Labels":{}}},
    {"ID":"c2","Version":{"Index":9},"Spec":{"Name":"somebody-elses","Labels":{},"Data":"aGVsbG8="}}]"#;

type Said = Arc<Mutex<Vec<(String, Value)>>>;

/// An engine on a socket of its own; answers by path, and keeps what it was told.
struct FakeEngine {
    client: Arc<Client>,
    said: Said,
    _directory: tempfile::TempDir,
}

fn engine(answers: &[(&str, u16, &str)]) -> FakeEngine {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("docker.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let answers: Arc<BTreeMap<String, (u16, String)>> = Arc::new(
        answers.iter().map(|(path, status, body)| ((*path).into(), (*status, (*body).into()))).collect(),
    );
    let said = Said::default();
    let heard = Arc::clone(&said);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answers, heard) = (Arc::clone(&answers), Arc::clone(&heard));
            let answer = service_fn(move |request| answer(request, Arc::clone(&answers), Arc::clone(&heard)));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    let client = Client::new(&format!("unix://{}", path.display())).expect("an address");
    FakeEngine { client, said, _directory: directory }
}

async fn answer(
    request: Request<Incoming>,
    answers: Arc<BTreeMap<String, (u16, String)>>,
    heard: Said,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let path = parts.uri.path().to_string();
    let whole = format!("{} {}", parts.method, parts.uri);
    heard.lock().expect("not poisoned").push((whole, serde_json::from_slice(&body).unwrap_or_default()));
    let missing = (404, r#"{"message":"page not found"}"#.to_string());
    let (status, text) = answers.get(&path).unwrap_or(&missing);
    let response = Response::builder().status(*status).header("Api-Version", "1.41");
    Ok(response.body(Full::new(Bytes::from(text.clone()))).expect("a response"))
}

fn swarm() -> FakeEngine {
    engine(&[
        ("/_ping", 200, "OK"),
        ("/v1.41/info", 200, r#"{"Swarm":{"NodeID":"fijrjyhz7f3on0fewoy2drmr1"}}"#),
        ("/v1.41/nodes", 200, NODES),
        ("/v1.41/services", 200, SERVICES),
        ("/v1.41/tasks", 200, TASKS),
        ("/v1.41/configs", 200, CONFIGS),
    ])
}

#[tokio::test]
async fn a_snapshot_holds_what_is_judged_and_the_raw_specs() {
    let swarm = swarm();
    let snapshot = Client::snapshot(&swarm.client).await.expect("all there");
    assert!(snapshot.is_leader());
    let node = snapshot.nodes.values().next().expect("one node");
    assert_eq!((node.availability, node.ready, node.version), (Availability::Pause, true, 1121));
    assert_eq!(node.spec["FromTomorrow"], 1, "what is not known stays");
    let names: Vec<&str> = snapshot.services.values().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["job", "web"], "the odd one is left out, the others are not");
    let web = snapshot.services.values().find(|service| service.name == "web").expect("there");
    assert_eq!(
        (web.mode, web.version, web.update_state),
        (Mode::Replicated(3), 106, Some(UpdateState::Completed))
    );
    assert_eq!(web.previous_spec, None);
    assert!(web.policy.as_ref().is_ok_and(|policy| policy.enabled));
    let job = snapshot.services.values().find(|service| service.name == "job").expect("there");
    assert_eq!(
        (job.mode, job.job_iteration),
        (Mode::ReplicatedJob { concurrent: 2, completions: 5 }, Some(3))
    );
    let tasks: Vec<_> = snapshot.tasks.values().collect();
    assert_eq!(tasks.len(), 2, "the dead one is history");
    assert_eq!(
        tasks[0].addresses,
        ["10.0.1.7".parse::<std::net::IpAddr>().expect("an address")],
        "never the one on the ingress network"
    );
    assert_eq!(
        (&tasks[0].attachments, &web.virtual_addresses),
        (
            &vec![("kx1q0".parse().expect("an ID"), [10, 0, 1, 7].into())],
            &vec![("kx1q0".parse().expect("an ID"), [10, 0, 1, 2].into())]
        )
    );
    assert!(tasks[0].is_serving() && tasks[0].container.is_some());
    assert_eq!((tasks[1].state, tasks[1].node.as_ref()), (TaskState::Pending, None));
    assert_eq!(tasks[1].message, "no suitable node");
    let ours: Vec<&str> = snapshot.records.keys().map(String::as_str).collect();
    let expected = ["swarmguard-act-abc", "swarmguard-job-j1", "swarmguard-settings"];
    assert_eq!(
        ours, expected,
        "all configs of ours, the operator's settings and jobs included, and nobody else's"
    );
    assert_eq!(snapshot.records["swarmguard-act-abc"].data, b"hello");
}

#[tokio::test]
async fn writes_send_the_whole_spec_under_its_version() {
    let swarm = engine(&[("/_ping", 200, "OK"), ("/v1.41/services/s1/update", 200, "{}")]);
    let spec = json!({"Name": "web", "FromTomorrow": {"x": [1, null]}});
    let command =
        Command::WriteService { service: "s1".parse().expect("an ID"), version: 7, spec: spec.clone() };
    assert_eq!(Client::execute(&swarm.client, &command).await, Ok(()));
    let said = swarm.said.lock().expect("not poisoned").last().cloned();
    let expected = "POST /v1.41/services/s1/update?version=7&registryAuthFrom=spec".to_string();
    assert_eq!(said, Some((expected, spec)));
}

#[tokio::test]
async fn refusals_mean_what_the_engine_means_by_them() {
    let out_of_sequence = r#"{"message":"rpc error: code = Unknown desc = update out of sequence"}"#;
    let swarm = engine(&[
        ("/_ping", 200, "OK"),
        ("/v1.41/services/stale/update", 500, out_of_sequence),
        (
            "/v1.41/services/leaderless/update",
            500,
            r#"{"message":"rpc error: The swarm does not have a leader"}"#,
        ),
        ("/v1.41/services/worker/update", 503, r#"{"message":"This node is not a swarm manager."}"#),
        ("/v1.41/services/senseless/update", 400, r#"{"message":"invalid reservation"}"#),
        ("/v1.41/configs/create", 409, r#"{"message":"config x already exists"}"#),
    ]);
    let write = async |service: &str| {
        let service = service.parse().expect("an ID");
        let command = Command::WriteService { service, version: 1, spec: json!({}) };
        Client::execute(&swarm.client, &command).await
    };
    assert!(matches!(write("stale").await, Err(CommandError::Conflict(_))));
    assert!(matches!(write("missing").await, Err(CommandError::Gone(_))));
    assert!(matches!(write("leaderless").await, Err(CommandError::Unavailable(_))));
    assert!(matches!(write("worker").await, Err(CommandError::Unavailable(_))));
    assert!(matches!(write("senseless").await, Err(CommandError::Refused(_))));
    let create = Command::CreateRecord { name: "x".into(), labels: BTreeMap::new(), data: b"d".to_vec() };
    assert!(matches!(Client::execute(&swarm.client, &create).await, Err(CommandError::Conflict(_))));
    let remove = Command::RemoveRecord { id: "gone".into() };
    assert_eq!(Client::execute(&swarm.client, &remove).await, Ok(()), "gone is what was wanted");
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_unavailable_and_named() {
    let client = Client::new("unix:///nonexistent/docker.sock").expect("an address");
    let error = Client::snapshot(&client).await.expect_err("nobody listens");
    assert!(error.to_string().contains("/nonexistent/docker.sock"), "{error}");
    let remove = Command::RemoveRecord { id: "x".into() };
    assert!(matches!(Client::execute(&client, &remove).await, Err(CommandError::Unavailable(_))));
    assert!(matches!(Client::new("docker.sock"), Err(EngineError::Address(_))));
    assert!(matches!(Client::new("https://host:2376"), Err(EngineError::Address(_))));
}

/// A client that listens to the events of a played engine, after its first reading.
async fn listening(objects: Objects) -> (PlayedEngine, Arc<Client>) {
    let engine = PlayedEngine::serve(objects, true).await.expect("served");
    let client = Client::new(&engine.address()).expect("an address");
    client.watch();
    assert!(until(Duration::from_secs(5), || client.listening.load(Ordering::Relaxed)).await, "no events");
    Client::snapshot(&client).await.expect("readable");
    engine.take_traffic();
    (engine, client)
}

fn filtered(path: &str, filters: &Value) -> String {
    format!("/v1.41{path}{}", http::filters(filters))
}

#[tokio::test]
async fn at_rest_one_node_is_read_and_a_change_costs_what_changed() {
    let mut objects = Objects::new(3);
    objects.add_service("web", &json!({"swarmguard.enable": "true"}), 3);
    objects.add_service("db", &json!({}), 1);
    let (engine, client) = listening(objects).await;
    let before = Client::snapshot(&client).await.expect("readable");
    assert_eq!(engine.take_traffic().paths, ["/v1.41/nodes/n0"]);
    assert_eq!((before.tasks.len(), before.services.len(), before.nodes.len()), (4, 2, 3));

    let mut changes = client.changes();
    engine.change(|objects| {
        objects.services.get_mut("web").expect("there")["Version"]["Index"] = json!(900);
        objects.add_task("web4", "web", "n1", 4);
        objects.event("service", "update", "web", json!({}));
    });
    tokio::time::timeout(Duration::from_secs(5), changes.changed()).await.expect("told").expect("open");
    let after = Client::snapshot(&client).await.expect("readable");
    let mut paths = engine.take_traffic().paths;
    paths.sort();
    let tasks = json!({"desired-state": WANTED, "service": ["web"]});
    assert_eq!(paths, [filtered("/services", &json!({"id": ["web"]})), filtered("/tasks", &tasks)]);
    let web: ServiceId = "web".parse().expect("an ID");
    assert_eq!((after.services[&web].version, after.tasks_of(&web).count()), (900, 4));
    assert_eq!(after.services[&web].spec["TaskTemplate"]["FromTomorrow"], json!({"x": [1, null]}));
}

#[tokio::test]
async fn what_was_written_shows_in_the_next_snapshot_without_any_event() {
    let mut objects = Objects::new(1);
    objects.add_service("web", &json!({}), 1);
    let (engine, client) = listening(objects).await;
    let web: ServiceId = "web".parse().expect("an ID");
    let before = Client::snapshot(&client).await.expect("readable");
    let command = Command::WriteService {
        service: web.clone(),
        version: before.services[&web].version,
        spec: before.services[&web].spec.clone(),
    };
    Client::execute(&client, &command).await.expect("written");
    let create = Command::CreateRecord {
        name: "swarmguard-act-web".into(),
        labels: BTreeMap::new(),
        data: b"before".to_vec(),
    };
    Client::execute(&client, &create).await.expect("created");
    *client.marks() = Marks { services: [web.clone()].into(), records: true, ..Marks::default() };
    let after = Client::snapshot(&client).await.expect("readable");
    assert!(after.services[&web].version > before.services[&web].version);
    assert_eq!(after.services[&web].spec, before.services[&web].spec, "to the last field");
    assert_eq!(after.records["swarmguard-act-web"].data, b"before");
    drop(engine);
}

#[tokio::test]
async fn commands_mark_what_they_touch_before_they_are_answered() {
    let mut objects = Objects::new(1);
    objects.add_service("web", &json!({}), 1);
    let engine = PlayedEngine::serve(objects, true).await.expect("served");
    let client = Client::new(&engine.address()).expect("an address");
    let web: ServiceId = "web".parse().expect("an ID");
    engine.fault("POST /services", Fault::Lost, 1);
    let lost = Command::WriteService { service: web.clone(), version: 101, spec: json!({"Name": "web"}) };
    assert!(matches!(Client::execute(&client, &lost).await, Err(CommandError::Unavailable(_))));
    assert_eq!(*client.marks(), Marks { services: [web].into(), ..Marks::default() });
    let node = Command::WriteNode { node: "n0".parse().expect("an ID"), version: 1, spec: json!({}) };
    assert!(matches!(Client::execute(&client, &node).await, Err(CommandError::Conflict(_))));
    assert!(client.marks().nodes);
}

#[tokio::test]
async fn a_broken_answer_is_an_error_and_the_next_reading_has_it_all() {
    let mut objects = Objects::new(2);
    objects.add_service("web", &json!({}), 2);
    let (engine, client) = listening(objects).await;
    for (number, fault) in [Fault::Half, Fault::Lost].into_iter().enumerate() {
        let late = format!("late{number}");
        engine.fault("GET /", fault, 20);
        engine.change_silently(|objects| objects.add_task(&late, "web", "n1", 9));
        let error = Client::snapshot(&client).await.expect_err("cut off");
        assert!(matches!(error, EngineError::NoAnswer { .. }), "{error}");
        engine.no_more_faults();
        let snapshot = Client::snapshot(&client).await.expect("readable again");
        assert!(snapshot.tasks.keys().any(|task| task.as_str() == late), "read in full");
    }
    // The second answer belongs to no request: that connection is not used again.
    engine.fault("GET /", Fault::Twice, 3);
    for _ in 0..3 {
        Client::snapshot(&client).await.expect("readable");
    }
    engine.no_more_faults();
    engine.fault("GET /", Fault::Hang, 1);
    let hung = tokio::time::timeout(Duration::from_millis(200), Client::snapshot(&client)).await;
    assert!(hung.is_err(), "given up by whoever waits");
    engine.change_silently(|objects| objects.add_task("later", "web", "n1", 9));
    let snapshot = Client::snapshot(&client).await.expect("readable again");
    assert!(snapshot.tasks.keys().any(|task| task.as_str() == "later"), "what was given up is read in full");
}

#[tokio::test]
async fn the_past_of_nine_thousand_tasks_costs_nothing() {
    let mut objects = Objects::new(20);
    objects.task_padding = 3_000;
    for number in 0..90 {
        objects.add_service(&format!("s{number}"), &json!({}), 100);
    }
    for (id, task) in objects.tasks.clone() {
        for generation in 0..5 {
            let mut old = task.clone();
            (old.desired, old.state) = ("shutdown", "failed");
            objects.tasks.insert(format!("old{generation}{id}"), old);
        }
    }
    assert_eq!(objects.tasks.len(), 54_000);
    let (engine, client) = listening(objects).await;
    let snapshot = Client::snapshot(&client).await.expect("readable");
    assert_eq!(snapshot.tasks.len(), 9_000);
    let traffic = engine.take_traffic();
    assert_eq!(traffic.paths, ["/v1.41/nodes/n0"]);
    // One that stops is still shown, for it runs.
    engine.change(|objects| {
        objects.tasks.get_mut("s7t00003").expect("there").desired = "shutdown";
        objects.event("service", "update", "s7", json!({}));
    });
    assert!(until(Duration::from_secs(5), || client.marks().services.len() == 1).await);
    let snapshot = Client::snapshot(&client).await.expect("readable");
    let stopping = &snapshot.tasks[&"s7t00003".parse::<TaskId>().expect("an ID")];
    assert_eq!(
        (snapshot.tasks.len(), stopping.desired, stopping.is_serving()),
        (9_000, TaskState::Shutdown, false)
    );
    let traffic = engine.take_traffic();
    assert!(traffic.bytes < 500_000 && traffic.requests == 3, "{} bytes: {:?}", traffic.bytes, traffic.paths);
}
