//! From the engine's JSON to what is judged. The client of a real engine and the model of Swarm in tests both hand their
//! objects through here, so that what a test saw is what an engine would have shown.
//!
//! What is not known is not looked at; an object that cannot be understood is left out and counted, because one odd task
//! must not blind the coordinator to all the others.

use std::{
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, SeqAccess, Visitor},
};
use serde_json::Value;
use swarmguard_common::{
    domain::{NetworkId, TaskId},
    labels::ServicePolicy,
};

use super::{Availability, Failure, Mode, Node, RecordObject, Service, Task, TaskState, UpdateState};

/// Names of all config objects that SwarmGuard keeps in Swarm begin with this: action records, node leases, settings,
/// jobs. The engine is asked for these only, and all of them are handed on.
pub const OWN_CONFIGS: &str = "swarmguard-";

/// An object as the engine lists it.
pub trait FromEngine: Sized {
    /// The part of its JSON that is looked at.
    type Raw: DeserializeOwned;

    /// `None` where it is of no interest, such as a task that ended.
    fn from_raw(raw: Self::Raw) -> Option<Self>;
}

/// Reads one object.
///
/// # Errors
/// Where it is not one of its kind.
pub fn one<T: FromEngine>(object: Value) -> Result<Option<T>, serde_json::Error> {
    serde_json::from_value(object).map(T::from_raw)
}

/// Objects of one list.
#[derive(Debug)]
pub struct Listed<T> {
    /// Those of interest.
    pub items: Vec<T>,
    /// Why the first of those that were not understood was not; `None` where all were.
    pub odd: Option<String>,
}

/// Reads a list of objects. One object at a time: a large swarm's tasks as a tree would take several times the memory of
/// their text.
///
/// # Errors
/// Where it is not a list.
pub fn list<T: FromEngine>(bytes: &[u8]) -> Result<Listed<T>, serde_json::Error> {
    let mut items = Vec::new();
    // Nearly always all are understood: then what nobody looks at is skipped instead of made a tree of.
    if each(bytes, |raw: T::Raw| items.extend(T::from_raw(raw))).is_ok() {
        return Ok(Listed { items, odd: None });
    }
    items.clear();
    let mut odd = None;
    each(bytes, |object: Value| match one(object) {
        Ok(item) => items.extend(item),
        Err(error) => drop(odd.get_or_insert_with(|| error.to_string())),
    })?;
    Ok(Listed { items, odd })
}

fn each<T: DeserializeOwned>(bytes: &[u8], take: impl FnMut(T)) -> Result<(), serde_json::Error> {
    let mut text = serde_json::Deserializer::from_slice(bytes);
    text.deserialize_option(Each(take, PhantomData))?;
    text.end()
}

/// Hands over the items of a list as they are read.
struct Each<T, F>(F, PhantomData<T>);

impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for Each<T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    // `null` is an empty list to Go.
    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, list: D) -> Result<(), D::Error> {
        list.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(item) = list.next_element()? {
            (self.0)(item);
        }
        Ok(())
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    index: u64,
}

/// A node as `GET /nodes` gives it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RawNode {
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
    #[serde(rename = "GenericResources")]
    generic: Value,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct EngineDescription {
    engine_version: String,
    labels: Option<BTreeMap<String, String>>,
    plugins: Option<Vec<Plugin>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Plugin {
    #[serde(rename = "Type")]
    kind: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Status {
    state: String,
    addr: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManagerStatus {
    #[serde(default)]
    leader: bool,
    #[serde(default)]
    addr: String,
}

/// Where a node is reached. Old engines say 0.0.0.0 of a leader itself; what they say of its raft port is right then.
fn reached_at(status: &Status, manager: Option<&ManagerStatus>) -> Option<IpAddr> {
    let of_raft = manager.and_then(|manager| manager.addr.parse::<SocketAddr>().ok()).map(|addr| addr.ip());
    let usable = |address: &IpAddr| !address.is_unspecified();
    of_raft.filter(usable).or_else(|| status.addr.parse().ok().filter(usable))
}

impl FromEngine for Node {
    type Raw = RawNode;

    fn from_raw(raw: RawNode) -> Option<Self> {
        let plugins = raw.description.engine.plugins;
        let labels = raw.spec.get("Labels").and_then(|labels| serde_json::from_value(labels.clone()).ok());
        Some(Node {
            id: raw.id.parse().ok()?,
            version: raw.version.index,
            address: reached_at(&raw.status, raw.manager_status.as_ref()),
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
            plugins: plugins.into_iter().flatten().map(|plugin| (plugin.kind, plugin.name)).collect(),
            generic: super::generic_resources(&raw.description.resources.generic),
            spec: raw.spec,
        })
    }
}

/// A service as `GET /services` gives it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RawService {
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

impl FromEngine for Service {
    type Raw = RawService;

    fn from_raw(raw: RawService) -> Option<Self> {
        let labels = raw.spec.get("Labels").and_then(Value::as_object);
        let pairs =
            labels.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)));
        Some(Service {
            id: raw.id.parse().ok()?,
            version: raw.version.index,
            name: raw.spec.get("Name").and_then(Value::as_str).unwrap_or_default().into(),
            mode: mode(&raw.spec),
            policy: ServicePolicy::from_labels(pairs),
            previous_spec: raw.previous_spec.filter(|spec| !spec.is_null()),
            update_state: update_state(raw.update_status),
            job_iteration: raw
                .job_status
                .and_then(|status| status.job_iteration)
                .map(|version| version.index),
            virtual_addresses: virtual_addresses(raw.endpoint),
            spec: raw.spec,
        })
    }
}

fn update_state(status: Option<UpdateStatus>) -> Option<UpdateState> {
    let state = status.map(|status| status.state).filter(|state| !state.is_empty())?;
    serde_json::from_value(Value::String(state)).ok()
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
pub struct RawTask {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "ServiceID", default)]
    service: String,
    #[serde(default)]
    slot: u64,
    #[serde(rename = "NodeID", default)]
    node: String,
    #[serde(default)]
    version: Version,
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

impl FromEngine for Task {
    type Raw = RawTask;

    /// A task that still matters: wanted, or running though not wanted any more, or of a job.
    fn from_raw(raw: RawTask) -> Option<Self> {
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
}

/// Longest text kept of a failure, in bytes.
const MAX_FAILURE_BYTES: usize = 200;

/// A task that still matters, or one that came to nothing.
#[derive(Debug)]
pub enum AnyTask {
    /// One that still matters.
    Current(Task),
    /// One that failed or was rejected, and is past.
    Failed(TaskId, Failure),
}

impl FromEngine for AnyTask {
    type Raw = RawTask;

    fn from_raw(raw: RawTask) -> Option<Self> {
        let failed = matches!(raw.status.state, TaskState::Failed | TaskState::Rejected);
        // What becomes of a job is judged by the tasks themselves.
        if !failed || raw.desired_state <= TaskState::Running || raw.job_iteration.is_some() {
            return Task::from_raw(raw).map(Self::Current);
        }
        let TaskStatus { state, message, err, .. } = raw.status;
        let mut message = if err.is_empty() { message } else { err };
        while message.len() > MAX_FAILURE_BYTES {
            message.pop();
        }
        let failure = Failure {
            service: raw.service.parse().ok()?,
            slot: raw.slot,
            node: raw.node.parse().ok(),
            state,
            message,
            version: raw.version.index,
        };
        Some(Self::Failed(raw.id.parse().ok()?, failure))
    }
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
pub struct RawConfig {
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

impl FromEngine for RecordObject {
    type Raw = RawConfig;

    /// One of our own. What it holds is judged by who reads it: a record, the settings, a job.
    fn from_raw(raw: RawConfig) -> Option<Self> {
        raw.spec.name.starts_with(OWN_CONFIGS).then(|| RecordObject {
            id: raw.id,
            version: raw.version.index,
            name: raw.spec.name,
            labels: raw.spec.labels.unwrap_or_default(),
            // What is not base64 is not ours; the record then says that it cannot be read.
            data: STANDARD.decode(raw.spec.data).unwrap_or_default(),
        })
    }
}

/// The data of a config as the engine wants it.
pub fn encode(data: &[u8]) -> String {
    STANDARD.encode(data)
}
