//! An engine over HTTP on a unix socket: services, nodes and tasks as JSON that a test sets, a container of the
//! coordinator, and an exec that joins its stream to the coordinator's socket as `swarmguard-coordinator stdio` does.

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};

/// What a test sets and sees.
#[derive(Debug)]
pub struct State {
    pub services: Vec<Value>,
    pub nodes: Vec<Value>,
    pub tasks: Vec<Value>,
    pub configs: Vec<Value>,
    pub info: Value,
    /// Changes: method and path, body.
    pub said: Vec<(String, Value)>,
    /// What the program in the container says instead of serving, with its exit code.
    pub broken: Option<(String, i64)>,
}

/// The engine.
pub struct Played {
    pub socket: PathBuf,
    pub state: Arc<Mutex<State>>,
}

/// A service as the engine lists it.
pub fn service(id: &str, name: &str, labels: &Value) -> Value {
    json!({
        "ID": id, "Version": {"Index": 7}, "UpdatedAt": "2026-01-01T00:00:00Z",
        "Spec": {"Name": name, "Labels": labels, "FromTomorrow": [1], "Mode": {"Replicated": {"Replicas": 1}},
            "TaskTemplate": {"ContainerSpec": {"Image": "shop:1", "Healthcheck": {"Test": ["CMD", "x"]}}}},
    })
}

impl Played {
    pub async fn start(socket: PathBuf, api: PathBuf) -> Self {
        let role = json!({"swarmguard.role": "coordinator"});
        let state = State {
            services: vec![
                service("c0", "swarmguard_coordinator", &role),
                service("w1", "shop_web", &json!({})),
            ],
            nodes: vec![
                json!({"ID": "n1", "Version": {"Index": 3}, "Spec": {"Role": "manager", "Availability": "drain"},
                "Description": {"Hostname": "m1", "Platform": {"OS": "linux"}, "Engine": {"EngineVersion": "28.5.2"}},
                "Status": {"State": "ready", "Addr": "10.0.0.1"}}),
            ],
            tasks: Vec::new(),
            configs: Vec::new(),
            info: json!({"CgroupVersion": "2", "KernelVersion": "6.1.0-30-amd64", "CpuCfsQuota": true,
                "Swarm": {"LocalNodeState": "active", "ControlAvailable": true, "NodeID": "n1"}}),
            said: Vec::new(),
            broken: None,
        };
        let state = Arc::new(Mutex::new(state));
        let listener = UnixListener::bind(&socket).expect("a socket");
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, api) = (Arc::clone(&shared), api.clone());
                let answer = service_fn(move |request| answer(request, Arc::clone(&state), api.clone()));
                let served =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), answer).with_upgrades();
                tokio::spawn(served);
            }
        });
        Self { socket, state }
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().expect("unpoisoned"))
    }
}

async fn answer(
    mut request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    api: PathBuf,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let upgraded = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let path = parts.uri.path().trim_start_matches("/v1.41").to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let mut state = state.lock().expect("unpoisoned");
    if parts.method != http::Method::GET && !path.contains("exec") {
        state.said.push((format!("{} {path}?{query}", parts.method), body.clone()));
    }
    let labelled = |services: &[Value]| {
        let ours = |service: &&Value| service["Spec"]["Labels"].get("swarmguard.role").is_some();
        if query.contains("swarmguard.role") {
            services.iter().filter(ours).cloned().collect::<Vec<_>>()
        } else if query.contains("namespace") {
            Vec::new()
        } else {
            services.to_vec()
        }
    };
    let made = match (&parts.method, path.as_str()) {
        (&http::Method::POST, "/services/create") => Some(make_service(&mut state, &body)),
        (&http::Method::POST, "/configs/create") => Some(make_config(&mut state, &body)),
        (&http::Method::DELETE, path) => Some(remove(&mut state, path)),
        _ => None,
    };
    if let Some((status, found)) = made {
        let answer = Response::builder().status(status).header("api-version", "1.41");
        return Ok(answer.body(Full::from(found.to_string())).expect("sound"));
    }
    let found = match path.as_str() {
        "/_ping" => json!("OK"),
        "/networks/host" => json!({"Id": "host1"}),
        "/info" => state.info.clone(),
        "/version" => json!({"Version": "28.5.2"}),
        "/swarm" => json!({"Spec": {"EncryptionConfig": {"AutoLockManagers": false}}}),
        "/services" => Value::Array(labelled(&state.services)),
        "/nodes" => Value::Array(state.nodes.clone()),
        "/tasks" => Value::Array(state.tasks.clone()),
        "/configs" => Value::Array(state.configs.clone()),
        "/containers/json" => json!([{"Id": "box1"}]),
        "/containers/box1/exec" => json!({"Id": "e1"}),
        "/exec/e1/start" => {
            let broken = state.broken.clone();
            tokio::spawn(async move {
                let Ok(upgraded) = upgraded.await else { return };
                join(TokioIo::new(upgraded), api, broken).await;
            });
            let upgrade = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
            let upgrade = upgrade.header("connection", "Upgrade").header("upgrade", "tcp");
            return Ok(upgrade.body(Full::default()).expect("sound"));
        }
        "/exec/e1/json" => match &state.broken {
            Some((_, code)) => json!({"Running": false, "ExitCode": code}),
            None => json!({"Running": true, "ExitCode": null}),
        },
        path if path.starts_with("/services/") && path.ends_with("/update") => json!({}),
        path if path.starts_with("/nodes/") && path.ends_with("/update") => json!({}),
        _ => {
            let text = json!({"message": format!("nothing at {path}")}).to_string();
            return Ok(Response::builder().status(404).body(Full::from(text)).expect("sound"));
        }
    };
    let answer = Response::builder().header("api-version", "1.41");
    Ok(answer.body(Full::from(found.to_string())).expect("sound"))
}

/// A job is complete as soon as it is made.
fn make_service(state: &mut State, body: &Value) -> (u16, Value) {
    let id = format!("made{}", state.services.len());
    state
        .tasks
        .push(json!({"ID": format!("task-of-{id}"), "ServiceID": id, "Status": {"State": "complete"}}));
    state.services.push(json!({"ID": id, "Version": {"Index": 1}, "Spec": body}));
    (201, json!({"ID": id}))
}

/// There is one of a name.
fn make_config(state: &mut State, body: &Value) -> (u16, Value) {
    if state.configs.iter().any(|config| config["Spec"]["Name"] == body["Name"]) {
        return (409, json!({"message": "rpc error: code = AlreadyExists desc = config already exists"}));
    }
    let id = format!("config{}", state.said.len());
    state.configs.push(json!({"ID": id, "Spec": body}));
    (201, json!({"ID": id}))
}

fn remove(state: &mut State, path: &str) -> (u16, Value) {
    let id = path.rsplit('/').next().unwrap_or_default();
    state.services.retain(|service| service["ID"] != id);
    state.configs.retain(|config| config["ID"] != id);
    state.tasks.retain(|task| task["ServiceID"] != id);
    (200, json!({}))
}

/// Input as it is, output in pieces with heads.
async fn join(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite,
    api: PathBuf,
    broken: Option<(String, i64)>,
) {
    let (mut from, mut to) = tokio::io::split(stream);
    let piece = |kind: u8, bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).expect("small").to_be_bytes();
        [&[kind, 0, 0, 0], &length[..], bytes].concat()
    };
    if let Some((words, _)) = broken {
        let _ = to.write_all(&piece(2, words.as_bytes())).await;
        let _ = to.shutdown().await;
        return;
    }
    let (mut answers, mut questions) =
        UnixStream::connect(api).await.expect("the coordinator listens").into_split();
    let inwards = async {
        let _ = tokio::io::copy(&mut from, &mut questions).await;
        let _ = questions.shutdown().await;
        std::future::pending::<()>().await;
    };
    let outwards = async {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = answers.read(&mut buffer).await {
            if to.write_all(&piece(1, &buffer[..length])).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::select! {
        () = inwards => {}
        () = outwards => {}
    }
}
