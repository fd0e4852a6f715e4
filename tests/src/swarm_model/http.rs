//! The model of Swarm behind the engine's HTTP API, on a unix socket: what a real client reads and writes, it reads and
//! writes here in the same words. It moves on with the clock of the process.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use swarmguard_common::domain::NodeId;
use swarmguard_core::command::{Command, CommandError, CommandResult};
use swarmguard_runtime::clock;
use tokio::{net::UnixListener, sync::broadcast, task::JoinHandle};

use super::{SwarmModel, TICK_MS};

/// Events that a reader may lag behind before it misses some.
const EVENTS: usize = 1_024;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// An engine whose swarm is a model.
pub struct ModelEngine {
    inner: Arc<Inner>,
    tasks: Vec<JoinHandle<()>>,
}

struct Inner {
    model: Mutex<SwarmModel>,
    own: NodeId,
    events: broadcast::Sender<Value>,
    /// Every request so far: method, path and query.
    requests: Mutex<Vec<String>>,
}

impl ModelEngine {
    /// Serves `model` as the engine of `own` at this socket, until it is dropped.
    ///
    /// # Panics
    /// Where the socket cannot be bound.
    pub fn serve(model: SwarmModel, own: NodeId, socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).expect("a socket");
        let inner = Arc::new(Inner {
            model: Mutex::new(model),
            own,
            events: broadcast::Sender::new(EVENTS),
            requests: Mutex::default(),
        });
        let served = Arc::clone(&inner);
        let accept = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let inner = Arc::clone(&served);
                let service = service_fn(move |request| {
                    let inner = Arc::clone(&inner);
                    async move { Ok::<_, Infallible>(inner.answer(request).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        let ticking = Arc::clone(&inner);
        let tick = tokio::spawn(async move {
            loop {
                ticking.with(|_| ());
                tokio::time::sleep(Duration::from_millis(TICK_MS)).await;
            }
        });
        Self { inner, tasks: vec![accept, tick] }
    }

    /// The model as it stands now.
    pub fn with<T>(&self, look: impl FnOnce(&mut SwarmModel) -> T) -> T {
        self.inner.with(look)
    }

    /// Every request so far: method, path and query.
    pub fn requests(&self) -> Vec<String> {
        self.inner.requests.lock().expect("unpoisoned").clone()
    }
}

impl Drop for ModelEngine {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Versions of all objects that have events, by type and ID.
fn versions(model: &SwarmModel) -> BTreeMap<(&'static str, String), u64> {
    let nodes = model.nodes.values().map(|node| (("node", node.id.to_string()), node.version));
    let services =
        model.services.values().map(|service| (("service", service.id.to_string()), service.version));
    let configs = model.configs.values().map(|config| (("config", config.id.clone()), config.version));
    nodes.chain(services).chain(configs).collect()
}

impl Inner {
    fn with<T>(&self, look: impl FnOnce(&mut SwarmModel) -> T) -> T {
        let mut model = self.model.lock().expect("unpoisoned");
        let before = versions(&model);
        model.advance(clock::now());
        let seen = look(&mut model);
        let after = versions(&model);
        let all: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for key in all {
            let action = match (before.get(key), after.get(key)) {
                (None, Some(_)) => "create",
                (Some(_), None) => "remove",
                (old, new) if old != new => "update",
                _ => continue,
            };
            let (kind, id) = key;
            // Nobody may listen.
            let _ = self
                .events
                .send(json!({"Type": kind, "Action": action, "Actor": {"ID": id}, "scope": "swarm"}));
        }
        seen
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let query = head.uri.query().unwrap_or_default().to_owned();
        self.requests.lock().expect("unpoisoned").push(format!("{} {}", head.method, head.uri));
        let Ok(body) = body.collect().await else { return said(400, "the request broke off") };
        let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        let path: Vec<&str> = head.uri.path().split('/').filter(|part| !part.is_empty()).collect();
        let path = path.strip_prefix(&["v1.41"]).unwrap_or(&path);
        let version = parameter(&query, "version").and_then(|text| text.parse().ok());
        match (&head.method, path) {
            (&Method::GET, ["_ping"]) => plain(200, Bytes::from_static(b"OK")),
            (&Method::GET, ["info"]) => {
                given(&json!({"Swarm": {"NodeID": self.own, "ControlAvailable": true}}))
            }
            (&Method::GET, ["version"]) => given(&json!({"Version": "20.10.24", "ApiVersion": "1.41"})),
            (&Method::GET, ["events"]) => self.stream(&Filters::of(&query)),
            (&Method::GET, [kind]) => self.list(kind, &Filters::of(&query)),
            (&Method::GET, [kind, id]) => self.one(kind, id),
            (&Method::POST, ["configs", "create"]) => self.create_config(&body),
            (&Method::POST, [kind, id, "update"]) => {
                let Some(version) = version else { return said(400, "invalid version: ''") };
                let done = self.command(kind, id, version, &body);
                answered(done, || given(&json!({"Warnings": null})))
            }
            (&Method::DELETE, ["configs", id]) => {
                let found = self.with(|model| model.configs.remove(*id).is_some());
                if found { plain(204, Bytes::new()) } else { said(404, &format!("config {id} not found")) }
            }
            _ => said(404, "page not found"),
        }
    }

    fn list(&self, kind: &str, filters: &Filters) -> Answer {
        let Some(mut all) = self.with(|model| model.engine_json(kind)) else {
            return said(404, "page not found");
        };
        all.retain(|object| filters.let_through(kind, object));
        given(&Value::Array(all))
    }

    fn one(&self, kind: &str, id: &str) -> Answer {
        let all = self.with(|model| model.engine_json(kind)).unwrap_or_default();
        let named = |object: &&Value| object["ID"] == id || object["Spec"]["Name"] == id;
        all.iter().find(named).map_or_else(|| said(404, &format!("{kind} {id} not found")), given)
    }

    fn create_config(&self, body: &Value) -> Answer {
        let Some(name) = body["Name"].as_str() else { return said(400, "name must be provided") };
        let command = Command::CreateRecord {
            name: name.into(),
            labels: labels(body),
            data: STANDARD.decode(body["Data"].as_str().unwrap_or_default()).unwrap_or_default(),
        };
        let done = self.with(|model| model.execute(&command));
        answered(done, || {
            let id = self.with(|model| {
                let made = model.configs.values().find(|config| config.name == name);
                made.map(|config| config.id.clone())
            });
            given(&json!({"ID": id}))
        })
    }

    fn command(&self, kind: &str, id: &str, version: u64, body: &Value) -> CommandResult {
        let gone = |_| CommandError::Gone(format!("{kind} {id} not found"));
        let command = match kind {
            "services" => {
                Command::WriteService { service: id.parse().map_err(gone)?, version, spec: body.clone() }
            }
            "nodes" => Command::WriteNode { node: id.parse().map_err(gone)?, version, spec: body.clone() },
            "configs" => Command::UpdateRecord {
                id: id.into(),
                version,
                name: body["Name"].as_str().unwrap_or_default().into(),
                labels: labels(body),
                data: STANDARD.decode(body["Data"].as_str().unwrap_or_default()).unwrap_or_default(),
            },
            _ => return Err(CommandError::Gone("page not found".into())),
        };
        self.with(|model| model.execute(&command))
    }

    fn stream(&self, filters: &Filters) -> Answer {
        let (wanted, events) = (filters.clone(), self.events.subscribe());
        let lines = stream::unfold(events, |mut events| async move {
            loop {
                match events.recv().await {
                    Ok(event) => return Some((event, events)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        let frames = lines.filter_map(move |event| {
            let line = wanted.let_through("events", &event).then(|| Bytes::from(format!("{event}\n")));
            async move { line.map(|line| Ok(Frame::data(line))) }
        });
        headed(200, BodyExt::boxed(StreamBody::new(frames)))
    }
}

/// `filters` of a request: names and allowed values, as a list or, as older clients write it, an object of them.
#[derive(Clone, Default)]
struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    fn of(query: &str) -> Self {
        let text = parameter(query, "filters").unwrap_or_default();
        let parsed: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap_or_default();
        let values = |value: Value| match value {
            Value::Array(list) => list.iter().filter_map(Value::as_str).map(Into::into).collect(),
            Value::Object(object) => object.keys().cloned().collect(),
            _ => Vec::new(),
        };
        Self(parsed.into_iter().map(|(name, value)| (name, values(value))).collect())
    }

    /// Names match by their beginning, as Swarm's do; everything else as a whole.
    fn let_through(&self, kind: &str, object: &Value) -> bool {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.0.iter().all(|(name, allowed)| {
            let value = match (kind, name.as_str()) {
                ("tasks", "service") => text(&object["ServiceID"]),
                ("tasks", "node") => text(&object["NodeID"]),
                // The API knows three: what is wanted now, what is over, what was accepted.
                ("tasks", "desired-state") => text(&object["DesiredState"]),
                ("events", "type") => text(&object["Type"]),
                ("events", "event") => text(&object["Action"]),
                ("events", "scope") => text(&object["scope"]),
                (_, "id") => text(&object["ID"]),
                (_, "name") => {
                    let found = text(&object["Spec"]["Name"]);
                    return allowed.iter().any(|prefix| found.starts_with(prefix));
                }
                _ => return true,
            };
            allowed.contains(&value)
        })
    }
}

/// A parameter of a query, its percent signs taken out.
fn parameter(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

fn labels(body: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(body["Labels"].clone()).unwrap_or_default()
}

/// As the engine puts what its swarm said.
fn answered(done: CommandResult, ok: impl FnOnce() -> Answer) -> Answer {
    match done {
        Ok(()) => ok(),
        Err(CommandError::Gone(why)) => said(404, &why),
        Err(CommandError::Conflict(why)) if why.contains("out of sequence") => {
            said(500, &format!("rpc error: code = Unknown desc = {why}"))
        }
        Err(CommandError::Conflict(why)) => {
            said(409, &format!("rpc error: code = AlreadyExists desc = {why}"))
        }
        Err(CommandError::Refused(why)) => said(400, &why),
        Err(CommandError::Unavailable(why)) => said(503, &why),
    }
}

fn said(status: u16, message: &str) -> Answer {
    plain(status, Bytes::from(json!({"message": message}).to_string()))
}

fn given(value: &Value) -> Answer {
    plain(200, Bytes::from(value.to_string()))
}

fn plain(status: u16, body: Bytes) -> Answer {
    headed(status, Full::new(body).boxed())
}

fn headed(status: u16, body: BoxBody<Bytes, Infallible>) -> Answer {
    let head = Response::builder().status(status).header("Api-Version", "1.41").header("Ostype", "linux");
    head.body(body).expect("a status and headers that are right")
}
