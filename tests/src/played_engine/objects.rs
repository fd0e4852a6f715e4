//! The objects of a played swarm, and Docker's answers about them.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Value, json};

/// A task, and how long its text is: real ones have some 3 KiB, most of it spec.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its service.
    pub service: String,
    /// Its node.
    pub node: String,
    /// What Swarm wants.
    pub desired: &'static str,
    /// What is.
    pub state: &'static str,
    /// Number of the replica.
    pub slot: u64,
    /// Its container.
    pub container: String,
}

/// Everything that the engine knows.
#[derive(Debug, Default)]
pub struct Objects {
    /// The node that the engine is.
    pub own_node: String,
    /// Nodes as JSON, by ID.
    pub nodes: BTreeMap<String, Value>,
    /// Services as JSON, by ID.
    pub services: BTreeMap<String, Value>,
    /// Tasks by ID.
    pub tasks: BTreeMap<String, Task>,
    /// Configs as JSON, by ID.
    pub configs: BTreeMap<String, Value>,
    /// Bytes added to the text of each task.
    pub task_padding: usize,
    index: u64,
    events: Vec<Value>,
}

impl Objects {
    /// A swarm of this many nodes, `n0` and so on; the first is the only manager, and the engine is its own.
    pub fn new(nodes: usize) -> Self {
        let mut objects = Self { own_node: "n0".into(), index: 100, ..Self::default() };
        for number in 0..nodes {
            objects.nodes.insert(format!("n{number}"), node(number));
        }
        objects
    }

    /// A replicated service with its tasks, one on each node in turns, all running.
    pub fn add_service(&mut self, name: &str, labels: &Value, replicas: usize) {
        self.index += 1;
        let spec = json!({
            "Name": name,
            "Labels": labels,
            "TaskTemplate": {"ContainerSpec": {"Image": "web:1", "Healthcheck": {"Test": ["CMD", "/ok"]}}, "Placement": {},
                "FromTomorrow": {"x": [1, null]}},
            "Mode": {"Replicated": {"Replicas": replicas}},
        });
        let service = json!({"ID": name, "Version": {"Index": self.index}, "Spec": spec, "Endpoint": {}});
        self.services.insert(name.into(), service);
        for number in 0..replicas {
            let node = format!("n{}", number % self.nodes.len().max(1));
            self.add_task(&format!("{name}t{number:05}"), name, &node, number as u64 + 1);
        }
        self.event("service", "create", name, json!({"name": name}));
    }

    /// A task that runs.
    pub fn add_task(&mut self, id: &str, service: &str, node: &str, slot: u64) {
        let task = Task {
            service: service.into(),
            node: node.into(),
            desired: "running",
            state: "running",
            slot,
            container: format!("c{id}"),
        };
        self.tasks.insert(id.into(), task);
    }

    /// An event.
    pub fn event(&mut self, kind: &str, action: &str, id: &str, attributes: Value) {
        self.events
            .push(json!({"Type": kind, "Action": action, "Actor": {"ID": id, "Attributes": attributes}}));
    }

    pub(super) fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    /// The config of this name.
    pub fn config(&self, name: &str) -> Option<&Value> {
        self.configs.values().find(|config| config["Spec"]["Name"] == name)
    }

    pub(super) fn answer(&mut self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
        let answer = match (method, parts.as_slice()) {
            ("GET", ["_ping"]) => return (200, b"OK".to_vec()),
            ("GET", ["info"]) => Ok(json!({"Swarm": {"NodeID": self.own_node, "ControlAvailable": true}})),
            ("GET", ["nodes"]) => return (200, list(self.nodes.values())),
            ("GET", ["nodes", id]) => found(self.nodes.get(*id)),
            ("GET", ["services"]) => {
                let ids = filter(query, "id");
                let wanted = |id: &str| ids.is_empty() || ids.iter().any(|prefix| id.starts_with(prefix));
                return (200, list(self.services.iter().filter(|(id, _)| wanted(id)).map(|(_, one)| one)));
            }
            ("GET", ["tasks"]) => return self.list_tasks(query),
            ("GET", ["configs"]) => {
                let names = filter(query, "name");
                let wanted = |config: &&Value| {
                    let name = config["Spec"]["Name"].as_str().unwrap_or_default();
                    names.is_empty() || names.iter().any(|prefix| name.starts_with(prefix))
                };
                return (200, list(self.configs.values().filter(wanted)));
            }
            ("POST", ["configs", "create"]) => self.create_config(body),
            ("POST", ["configs", id, "update"]) => self.update("config", id, query, body),
            ("DELETE", ["configs", id]) => {
                let gone = self.configs.remove(*id);
                if gone.is_some() {
                    self.event("config", "remove", id, json!({}));
                }
                found(gone.as_ref()).map(|_| Value::Null)
            }
            ("POST", ["services", id, "update"]) => self.update("service", id, query, body),
            ("POST", ["nodes", id, "update"]) => self.update("node", id, query, body),
            _ => Err((404, "page not found".into())),
        };
        match answer {
            Ok(answer) => (200, answer.to_string().into_bytes()),
            Err((status, message)) => (status, json!({ "message": message }).to_string().into_bytes()),
        }
    }

    fn list_tasks(&self, query: &str) -> (u16, Vec<u8>) {
        let (states, services, ids) =
            (filter(query, "desired-state"), filter(query, "service"), filter(query, "id"));
        // As Docker: it looks each of them up first.
        if let Some(gone) = services.iter().find(|service| !self.services.contains_key(*service)) {
            let message = json!({ "message": format!("service {gone} not found") });
            return (404, message.to_string().into_bytes());
        }
        let mut text = String::from("[");
        let padding = "x".repeat(self.task_padding);
        for (id, task) in &self.tasks {
            let wanted = (states.is_empty() || states.iter().any(|state| state == task.desired))
                && (services.is_empty() || services.contains(&task.service))
                && (ids.is_empty() || ids.iter().any(|prefix| id.starts_with(prefix)));
            if !wanted {
                continue;
            }
            let comma = if text.len() > 1 { "," } else { "" };
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "{comma}{{\"ID\":\"{id}\",\"ServiceID\":\"{}\",\"Slot\":{},\"NodeID\":\"{}\",\"DesiredState\":\"{}\",\
                 \"Spec\":{{\"Env\":\"{padding}\"}},\"Status\":{{\"State\":\"{}\",\"Message\":\"started\",\
                 \"ContainerStatus\":{{\"ContainerID\":\"{}\"}}}}}}",
                task.service, task.slot, task.node, task.desired, task.state, task.container
            );
        }
        text.push(']');
        (200, text.into_bytes())
    }

    fn create_config(&mut self, spec: Value) -> Result<Value, (u16, String)> {
        let name = spec["Name"].as_str().unwrap_or_default().to_owned();
        if self.config(&name).is_some() {
            return Err((
                409,
                format!("rpc error: code = AlreadyExists desc = config {name} already exists"),
            ));
        }
        self.index += 1;
        let id = format!("cfg{}", self.index);
        let config = json!({"ID": id, "Version": {"Index": self.index}, "Spec": spec});
        self.configs.insert(id.clone(), config);
        self.event("config", "create", &id, json!({ "name": name }));
        Ok(json!({ "ID": id }))
    }

    fn update(&mut self, kind: &str, id: &str, query: &str, spec: Value) -> Result<Value, (u16, String)> {
        let objects = match kind {
            "config" => &mut self.configs,
            "service" => &mut self.services,
            _ => &mut self.nodes,
        };
        let Some(object) = objects.get_mut(id) else { return Err((404, format!("{kind} {id} not found"))) };
        let version = query.split('&').find_map(|pair| pair.strip_prefix("version="));
        if version != Some(object["Version"]["Index"].to_string().as_str()) {
            return Err((500, "rpc error: code = Unknown desc = update out of sequence".into()));
        }
        self.index += 1;
        object["Version"]["Index"] = json!(self.index);
        if kind == "service" {
            object["PreviousSpec"] = object["Spec"].take();
        }
        let name = spec["Name"].clone();
        object["Spec"] = spec;
        self.event(kind, "update", id, json!({ "name": name }));
        Ok(json!({}))
    }
}

fn found(object: Option<&Value>) -> Result<Value, (u16, String)> {
    object.cloned().ok_or((404, "not found".into()))
}

fn list<'a>(objects: impl Iterator<Item = &'a Value>) -> Vec<u8> {
    let texts: Vec<String> = objects.map(ToString::to_string).collect();
    format!("[{}]", texts.join(",")).into_bytes()
}

/// The values of one filter.
fn filter(query: &str, name: &str) -> Vec<String> {
    let Some(filters) = query.split('&').find_map(|pair| pair.strip_prefix("filters=")) else {
        return Vec::new();
    };
    let filters: Value = serde_json::from_str(&unescaped(filters)).unwrap_or(Value::Null);
    let values = filters[name].as_array().into_iter().flatten();
    values.filter_map(|value| Some(value.as_str()?.to_owned())).collect()
}

fn unescaped(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        let digits = (byte == b'%').then(|| [rest.next().unwrap_or(0), rest.next().unwrap_or(0)]);
        let code = digits
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(&digits).unwrap_or_default(), 16).ok());
        bytes.push(code.unwrap_or(byte));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn node(number: usize) -> Value {
    let mut node = json!({
        "ID": format!("n{number}"),
        "Version": {"Index": 10 + number},
        "Spec": {"Labels": {}, "Role": if number == 0 { "manager" } else { "worker" }, "Availability": "active"},
        "Description": {
            "Hostname": format!("host{number}"),
            "Platform": {"Architecture": "x86_64", "OS": "linux"},
            "Resources": {"NanoCPUs": 4_000_000_000_i64, "MemoryBytes": 8_589_934_592_i64},
            "Engine": {"EngineVersion": "20.10.24"},
        },
        "Status": {"State": "ready", "Addr": "10.0.0.1"},
    });
    if number == 0 {
        node["ManagerStatus"] = json!({"Leader": true, "Reachability": "reachable", "Addr": "10.0.0.1:2377"});
    }
    node
}
