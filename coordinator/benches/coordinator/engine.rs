//! An engine that answers what a manager of a large swarm would answer, from memory: what the coordinator makes of it is
//! measured, what it costs to say is not.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::{Scale, node_id};

/// Services; each container number of each node belongs to one of them.
const SERVICES: usize = 1_000;

struct Answers {
    info: Bytes,
    nodes: Bytes,
    services: Bytes,
    tasks: Bytes,
}

/// Which service a container is of; alerts are raised for containers 0, each of a service of its own.
pub fn service_of(node: usize, container: usize) -> usize {
    (node + container * 20) % SERVICES
}

/// The ID of a service.
pub fn service_id(number: usize) -> String {
    format!("svc{number:022}")
}

/// The ID of the container with this number on this node.
pub fn container_id(node: usize, container: usize) -> String {
    format!("{node:032x}{container:032x}")
}

/// The ID of its task.
pub fn task_id(node: usize, container: usize) -> String {
    format!("task{node:010}x{container:010}")
}

/// Serves on a socket in `dir`.
pub async fn serve(dir: &Path, scale: Scale) -> anyhow::Result<PathBuf> {
    let socket = dir.join("engine.sock");
    let listener =
        UnixListener::bind(&socket).with_context(|| format!("cannot bind {}", socket.display()))?;
    let answers = Answers {
        info: bytes(&json!({"Swarm": {"NodeID": node_id(0)?.to_string()}})),
        nodes: bytes(&Value::Array((0..scale.agents).map(node).collect::<anyhow::Result<_>>()?)),
        services: bytes(&Value::Array((0..SERVICES).map(|number| service(number, scale)).collect())),
        tasks: tasks(scale)?,
    };
    eprintln!("the engine's list of tasks has {} MiB", answers.tasks.len() >> 20);
    let router = Router::new().fallback(answer).with_state(Arc::new(answers));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(socket)
}

async fn answer(State(answers): State<Arc<Answers>>, uri: Uri) -> Response {
    if uri.path() == "/_ping" {
        return ([("Api-Version", "1.41")], "OK").into_response();
    }
    let path = uri.path().strip_prefix("/v1.41").unwrap_or_default();
    match path {
        "/info" => answers.info.clone().into_response(),
        "/nodes" => answers.nodes.clone().into_response(),
        "/services" => answers.services.clone().into_response(),
        "/tasks" => answers.tasks.clone().into_response(),
        "/configs" => "[]".into_response(),
        // Nothing ever happens here.
        "/events" => Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>())
            .into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn bytes(value: &Value) -> Bytes {
    value.to_string().into()
}

fn node(number: usize) -> anyhow::Result<Value> {
    let mut node = json!({
        "ID": node_id(number)?.to_string(),
        "Version": {"Index": 10 + number},
        "Spec": {"Labels": {"zone": "a"}, "Role": if number == 0 { "manager" } else { "worker" }, "Availability": "active"},
        "Description": {
            "Hostname": format!("host{number}"),
            "Platform": {"Architecture": "x86_64", "OS": "linux"},
            "Resources": {"NanoCPUs": 8_000_000_000_i64, "MemoryBytes": 33_554_432_000_i64},
            "Engine": {"EngineVersion": "20.10.24"},
        },
        "Status": {"State": "ready", "Addr": "10.0.0.1"},
    });
    if number == 0 {
        node["ManagerStatus"] = json!({"Leader": true, "Reachability": "reachable", "Addr": "10.0.0.1:2377"});
    }
    Ok(node)
}

fn service(number: usize, scale: Scale) -> Value {
    let replicas = scale.agents * scale.containers / SERVICES;
    json!({
        "ID": service_id(number),
        "Version": {"Index": 5_000 + number},
        "CreatedAt": "2026-01-01T00:00:00.000000000Z",
        "Spec": {
            "Name": format!("stack_service{number}"),
            "Labels": {
                "com.docker.stack.namespace": "stack",
                "swarmguard.enable": "true",
                "swarmguard.act-after": "0s",
                "swarmguard.network.mbps": "100",
            },
            "TaskTemplate": {
                "ContainerSpec": {"Image": "registry.example/web:1@sha256:0000", "Healthcheck": {"Test": ["CMD", "/x"]}},
                "Resources": {}, "Placement": {}, "ForceUpdate": 0, "Runtime": "container",
            },
            "Mode": {"Replicated": {"Replicas": replicas}},
            "EndpointSpec": {"Mode": "vip"},
        },
        "Endpoint": {"Spec": {"Mode": "vip"}},
    })
}

/// As an engine writes them, with the fields that nobody here reads.
fn tasks(scale: Scale) -> anyhow::Result<Bytes> {
    let mut text = String::from("[");
    for node in 0..scale.agents {
        let node_id = node_id(node)?.to_string();
        for container in 0..scale.containers {
            let service = service_of(node, container);
            let task = json!({
                "ID": task_id(node, container),
                "Version": {"Index": 9_000},
                "CreatedAt": "2026-01-01T00:00:00.000000000Z",
                "UpdatedAt": "2026-01-01T00:00:05.000000000Z",
                "Labels": {},
                "Spec": {
                    "ContainerSpec": {
                        "Image": "registry.example/web:1@sha256:0000",
                        "Labels": {"com.docker.stack.namespace": "stack"},
                        "Env": ["LEVEL=info", "REGION=here"],
                        "Init": false,
                        "Healthcheck": {"Test": ["CMD", "/x"]},
                        "DNSConfig": {}, "Isolation": "default",
                    },
                    "Resources": {"Limits": {}, "Reservations": {}},
                    "Placement": {"Platforms": [{"Architecture": "amd64", "OS": "linux"}]},
                    "Networks": [{"Target": "net0000000000000000000001", "Aliases": ["web"]}],
                    "ForceUpdate": 0,
                },
                "ServiceID": service_id(service),
                "Slot": container + 1,
                "NodeID": node_id,
                "Status": {
                    "Timestamp": "2026-01-01T00:00:05.000000000Z", "State": "running", "Message": "started",
                    "ContainerStatus": {"ContainerID": container_id(node, container), "PID": 4_242, "ExitCode": 0},
                    "PortStatus": {},
                },
                "DesiredState": "running",
                "NetworksAttachments": [{"Addresses": ["10.0.1.7/24"]}],
            });
            if text.len() > 1 {
                text.push(',');
            }
            text.push_str(&task.to_string());
        }
    }
    text.push(']');
    Ok(text.into())
}
