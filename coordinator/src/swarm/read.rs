//! From the engine's JSON to a snapshot. What is not known is not looked at; an object that cannot be understood is left
//! out and counted, because one odd task must not blind the coordinator to all the others.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::Value;
use swarmguard_common::{domain::NetworkId, labels::ServicePolicy};
use swarmguard_core::{
    action::is_record,
    swarm::{Availability, Mode, Node, RecordObject, Service, Task, TaskState},
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    index: u64,
}

/// A node as `GET /nodes` gives it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawNode {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    spec: Value,
    #[serde(default)]
    description: Description,
    #[serde(default)]
    status: Status,
    manager_status: Option<ManagerStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Description {
    hostname: String,
    platform: Platform,
    resources: Resources,
    engine: EngineDescription,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Platform {
    architecture: String,
    #[serde(rename = "OS")]
    os: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Resources {
    #[serde(rename = "NanoCPUs")]
    nano_cpus: i64,
    #[serde(rename = "MemoryBytes")]
    memory_bytes: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct EngineDescription {
    engine_version: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Status {
    state: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManagerStatus {
    #[serde(default)]
    leader: bool,
}

pub(super) fn node(raw: RawNode) -> Option<Node> {
    let labels = raw.spec.get("Labels").and_then(|labels| serde_json::from_value(labels.clone()).ok());
    Some(Node {
        id: raw.id.parse().ok()?,
        version: raw.version.index,
        hostname: raw.description.hostname,
        manager: raw.spec.get("Role").and_then(Value::as_str) == Some("manager")
            || raw.manager_status.is_some(),
        leader: raw.manager_status.is_some_and(|status| status.leader),
        ready: raw.status.state == "ready",
        unknown: raw.status.state == "unknown",
        availability: match raw.spec.get("Availability").and_then(Value::as_str) {
            Some("pause") => Availability::Pause,
            Some("drain") => Availability::Drain,
            _ => Availability::Active,
        },
        labels: labels.unwrap_or_default(),
        engine_labels: raw.description.engine.labels.unwrap_or_default(),
        engine_version: raw.description.engine.engine_version,
        os: raw.description.platform.os,
        architecture: raw.description.platform.architecture,
        nano_cpus: raw.description.resources.nano_cpus,
        memory_bytes: raw.description.resources.memory_bytes,
        spec: raw.spec,
    })
}

/// A service as `GET /services` gives it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawService {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    spec: Value,
    previous_spec: Option<Value>,
    update_status: Option<UpdateStatus>,
    job_status: Option<JobStatus>,
    #[serde(default)]
    endpoint: Endpoint,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    #[serde(rename = "VirtualIPs")]
    virtual_ips: Option<Vec<VirtualIp>>,
}

#[derive(Deserialize)]
struct VirtualIp {
    #[serde(rename = "NetworkID", default)]
    network: String,
    #[serde(rename = "Addr", default)]
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct UpdateStatus {
    #[serde(default)]
    state: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct JobStatus {
    job_iteration: Option<Version>,
}

pub(super) fn service(raw: RawService) -> Option<Service> {
    let labels = raw.spec.get("Labels").and_then(Value::as_object);
    let pairs = labels.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)));
    Some(Service {
        id: raw.id.parse().ok()?,
        version: raw.version.index,
        name: raw.spec.get("Name").and_then(Value::as_str).unwrap_or_default().into(),
        mode: mode(&raw.spec),
        policy: ServicePolicy::from_labels(pairs),
        previous_spec: raw.previous_spec.filter(|spec| !spec.is_null()),
        update_state: raw.update_status.map(|status| status.state).filter(|state| !state.is_empty()),
        job_iteration: raw.job_status.and_then(|status| status.job_iteration).map(|version| version.index),
        virtual_addresses: virtual_addresses(raw.endpoint),
        spec: raw.spec,
    })
}

fn virtual_addresses(endpoint: Endpoint) -> Vec<(NetworkId, Ipv4Addr)> {
    let all = endpoint.virtual_ips.unwrap_or_default();
    // A network without an address is one that has not got it yet.
    let known = |one: VirtualIp| Some((one.network.parse().ok()?, version_4(&one.address)?));
    all.into_iter().filter_map(known).collect()
}

fn mode(spec: &Value) -> Mode {
    let mode = &spec["Mode"];
    let number = |value: &Value| value.as_u64().unwrap_or(1);
    if mode.get("Global").is_some() {
        Mode::Global
    } else if mode.get("GlobalJob").is_some() {
        Mode::GlobalJob
    } else if let Some(job) = mode.get("ReplicatedJob") {
        Mode::ReplicatedJob {
            concurrent: number(&job["MaxConcurrent"]),
            completions: number(&job["TotalCompletions"]),
        }
    } else {
        // Swarm's own default where nothing is said: one replica.
        Mode::Replicated(number(&mode["Replicated"]["Replicas"]))
    }
}

/// A task as `GET /tasks` gives it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawTask {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "ServiceID", default)]
    service: String,
    #[serde(default)]
    slot: u64,
    #[serde(rename = "NodeID", default)]
    node: String,
    desired_state: TaskState,
    status: TaskStatus,
    networks_attachments: Option<Vec<Attachment>>,
    job_iteration: Option<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TaskStatus {
    state: TaskState,
    #[serde(default)]
    message: String,
    #[serde(default)]
    err: String,
    container_status: Option<ContainerStatus>,
}

#[derive(Deserialize)]
struct ContainerStatus {
    #[serde(rename = "ContainerID", default)]
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attachment {
    #[serde(default)]
    network: AttachedTo,
    addresses: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AttachedTo {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Spec")]
    spec: NetworkSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkSpec {
    ingress: bool,
}

/// A task that still matters: wanted, or running though not wanted any more, or of a job.
pub(super) fn task(raw: RawTask) -> Option<Task> {
    let wanted = raw.desired_state <= TaskState::Running;
    let lingers = raw.status.state <= TaskState::Running && !raw.node.is_empty();
    if !wanted && !lingers && raw.job_iteration.is_none() {
        return None;
    }
    let (mut addresses, mut attachments) = (Vec::new(), Vec::new());
    // On the ingress network Swarm lets nothing through but what comes by the routing mesh: no way to a replica.
    let attached = raw.networks_attachments.unwrap_or_default().into_iter();
    for attached in attached.filter(|attached| !attached.network.spec.ingress) {
        let cidrs = attached.addresses.unwrap_or_default();
        addresses.extend(cidrs.iter().filter_map(|cidr| address::<IpAddr>(cidr)));
        if let Ok(network) = attached.network.id.parse::<NetworkId>() {
            attachments.extend(cidrs.iter().filter_map(|cidr| Some((network.clone(), version_4(cidr)?))));
        }
    }
    let TaskStatus { state, message, err, container_status } = raw.status;
    Some(Task {
        id: raw.id.parse().ok()?,
        service: raw.service.parse().ok()?,
        slot: raw.slot,
        node: raw.node.parse().ok(),
        desired: raw.desired_state,
        state,
        container: container_status.and_then(|status| status.id.parse().ok()),
        addresses,
        attachments,
        message: if err.is_empty() { message } else { err },
        job_iteration: raw.job_iteration.map(|version| version.index),
    })
}

/// The address of one in CIDR notation.
fn address<T: std::str::FromStr>(cidr: &str) -> Option<T> {
    cidr.split('/').next()?.parse().ok()
}

fn version_4(cidr: &str) -> Option<Ipv4Addr> {
    address(cidr)
}

/// A config as `GET /configs` gives it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RawConfig {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    spec: ConfigSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigSpec {
    name: String,
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    data: String,
}

/// A config that is one of our records.
pub(super) fn record(raw: RawConfig) -> Option<RecordObject> {
    is_record(&raw.spec.name).then(|| RecordObject {
        id: raw.id,
        version: raw.version.index,
        name: raw.spec.name,
        labels: raw.spec.labels.unwrap_or_default(),
        // What is not base64 is not ours; the record then says that it cannot be read.
        data: STANDARD.decode(raw.spec.data).unwrap_or_default(),
    })
}

pub(super) fn encode(data: &[u8]) -> String {
    STANDARD.encode(data)
}
