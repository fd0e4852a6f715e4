//! The engine of a manager of a large swarm, played: what the coordinator asks of it is counted.

use serde_json::{Value, json};
use swarmguard_tests::played_engine::{Objects, PlayedEngine, Task};

use crate::{Scale, node_id};

/// Services; each container number of each node belongs to one of them.
const SERVICES: usize = 1_000;

/// Bytes that bring the text of a task to what an engine writes for one with few settings.
const TASK_PADDING: usize = 680;

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

/// Serves the whole swarm.
pub async fn serve(scale: Scale) -> anyhow::Result<PlayedEngine> {
    let mut objects = Objects::default();
    objects.own_node = node_id(0)?.to_string();
    objects.task_padding = TASK_PADDING;
    for number in 0..scale.agents {
        objects.nodes.insert(node_id(number)?.to_string(), node(number)?);
    }
    for number in 0..SERVICES {
        objects.services.insert(service_id(number), service(number, scale));
    }
    for node in 0..scale.agents {
        for container in 0..scale.containers {
            let task = Task {
                service: service_id(service_of(node, container)),
                node: node_id(node)?.to_string(),
                desired: "running",
                state: "running",
                slot: u64::try_from(container)? + 1,
                container: container_id(node, container),
            };
            objects.tasks.insert(task_id(node, container), task);
        }
    }
    Ok(PlayedEngine::serve(objects, false).await?)
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
