//! The way to the coordinator's API: through the engine of a manager, or by address.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    engine::{
        Engine,
        connect::{AnyStream, client_tls, secure, tcp},
        exec::Exec,
        http::{Answer, Sender, handshake},
    },
    failure::{Exit, Failure, Outcome},
};

/// Server name in the certificates of managers.
const SERVER_NAME: &str = "swarm-manager";
/// The program in the coordinator's container.
const BRIDGE: [&str; 2] = ["/swarmguard-coordinator", "stdio"];
/// Never ends.
const EVENTS: &str = "/api/v1/events";
/// Longest event that is taken, in bytes.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// Addresses of coordinators' APIs, and what is shown to them.
#[derive(Clone, Debug, Default)]
pub struct ByAddress {
    /// `http://host:port` or `https://host:port`; the first that answers is used.
    pub urls: Vec<String>,
    /// The swarm's root certificate.
    pub ca: Option<PathBuf>,
    /// The operator's token.
    pub token: Option<String>,
    /// An operator's certificate and key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug)]
enum Way {
    Engine { engine: Arc<Engine>, container: Mutex<String> },
    Address(ByAddress),
}

/// A coordinator's API.
#[derive(Debug)]
pub struct Coordinator {
    way: Way,
    /// Who gives commands, for the journal.
    who: String,
    idle: Mutex<Option<Sender>>,
}

/// An error as the API words it.
#[derive(Debug, Deserialize)]
struct Problem {
    code: String,
    detail: String,
    #[serde(default)]
    otherwise: Option<String>,
}

impl Coordinator {
    /// By address.
    pub fn by_address(address: ByAddress) -> Self {
        Self { way: Way::Address(address), who: String::new(), idle: Mutex::default() }
    }

    /// Through a manager's engine: in the container of the coordinator beside it.
    ///
    /// # Errors
    /// When the engine is no manager's, SwarmGuard is not installed, or no coordinator runs here.
    pub async fn through(engine: Arc<Engine>, who: String) -> Outcome<Self> {
        let container = Mutex::new(container(&engine).await?);
        Ok(Self { way: Way::Engine { engine, container }, who, idle: Mutex::default() })
    }

    /// Reads JSON of a known shape.
    ///
    /// # Errors
    /// When the coordinator refuses it, does not answer, or says something else.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Outcome<T> {
        let answer = self.checked(Method::GET, path, None).await?;
        serde_json::from_slice(&answer.body).map_err(|error| {
            Failure::failed(format!("{path}: the coordinator's answer is not understood: {error}"))
                .hint("coordinator and command line should be of the same version: swarmguard version")
        })
    }

    /// Reads again only where it changed: `None` where it is still as `tag` names it.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_if_changed(
        &self,
        path: &str,
        tag: Option<&str>,
    ) -> Outcome<Option<(Bytes, Option<String>)>> {
        let headers: Vec<(&str, &str)> = tag.iter().map(|tag| ("if-none-match", *tag)).collect();
        let answer = self.send(Method::GET, path, &headers, None).await?;
        if answer.status == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let answer = checked(path, answer)?;
        let tag = answer.headers.get("etag").and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
        Ok(Some((answer.body, tag)))
    }

    /// Gives a command; what the coordinator says.
    ///
    /// # Errors
    /// When it is not taken: nothing was done then.
    pub async fn command(&self, name: &str, body: &Value) -> Outcome<Value> {
        let path = format!("/api/v1/commands/{name}");
        let answer = self.checked(Method::POST, &path, Some(body)).await?;
        serde_json::from_slice(&answer.body)
            .map_err(|error| Failure::failed(format!("{path}: the answer is no JSON: {error}")))
    }

    async fn checked(&self, method: Method, path: &str, body: Option<&Value>) -> Outcome<Answer> {
        checked(path, self.send(method, path, &[], body).await?)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Outcome<Answer> {
        self.answered(method, path, headers, body.map(|body| Bytes::from(body.to_string()))).await
    }

    async fn answered(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Bytes>,
    ) -> Outcome<Answer> {
        let own = self.headers();
        let mut headers: Vec<(&str, &str)> = headers.to_vec();
        headers.extend(own.iter().map(|(name, value)| (*name, value.as_str())));
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut sender) = kept.filter(|_| method == Method::GET)
            && let Ok(answer) = sender.send(method.clone(), path, &headers, body.clone()).await
        {
            self.keep(sender);
            return Ok(answer);
        }
        let (mut sender, exec) = self.connect().await?;
        match sender.send(method, path, &headers, body).await {
            Ok(answer) => {
                self.keep(sender);
                Ok(answer)
            }
            Err(why) => Err(self.broken(exec, &why).await),
        }
    }

    /// Events as they come.
    ///
    /// # Errors
    /// When the coordinator refuses, or cannot be reached.
    pub async fn events(&self, path: &str) -> Outcome<Events> {
        let own = self.headers();
        let mut headers: Vec<(&str, &str)> =
            own.iter().map(|(name, value)| (*name, value.as_str())).collect();
        headers.push(("accept", "text/event-stream"));
        let (mut sender, exec) = self.connect().await?;
        let answer = match sender.open(Method::GET, path, &headers, None).await {
            Ok(answer) => answer,
            Err(why) => return Err(self.broken(exec, &why).await),
        };
        let (parts, body) = answer.into_parts();
        if !parts.status.is_success() {
            let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let answer = Answer { status: parts.status, headers: HeaderMap::new(), body };
            return Err(checked(path, answer).err().unwrap_or_else(|| Failure::failed("no events")));
        }
        Ok(Events { body, buffer: BytesMut::new(), _sender: sender })
    }

    /// Passes a request on as it is; the answer comes as it is, piece by piece, whatever its status.
    ///
    /// # Errors
    /// When the coordinator cannot be reached.
    pub async fn pass(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Bytes>,
    ) -> Outcome<Response<UnsyncBoxBody<Bytes, hyper::Error>>> {
        if !headers.contains(&("accept", "text/event-stream")) && !path.starts_with(EVENTS) {
            let answer = self.answered(method, path, headers, body).await?;
            let body = Full::new(answer.body).map_err(|never| match never {}).boxed_unsync();
            let mut whole = Response::new(body);
            *whole.status_mut() = answer.status;
            *whole.headers_mut() = answer.headers;
            return Ok(whole);
        }
        let own = self.headers();
        let mut headers = headers.to_vec();
        headers.extend(own.iter().map(|(name, value)| (*name, value.as_str())));
        let (mut sender, exec) = self.connect().await?;
        match sender.open(method, path, &headers, body).await {
            // The connection lasts as long as its answer.
            Ok(answer) => Ok(answer.map(|body| Held { body, _sender: sender }.boxed_unsync())),
            Err(why) => Err(self.broken(exec, &why).await),
        }
    }

    fn headers(&self) -> Vec<(&'static str, String)> {
        match &self.way {
            Way::Engine { .. } => vec![("swarmguard-operator", self.who.clone())],
            Way::Address(address) => {
                address.token.iter().map(|token| ("authorization", format!("Bearer {token}"))).collect()
            }
        }
    }

    async fn connect(&self) -> Outcome<(Sender, Option<Exec>)> {
        match &self.way {
            Way::Engine { engine, container: known } => {
                let id = known.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let (exec, stream) = match Exec::start(engine, &id, &BRIDGE).await {
                    Ok(started) => started,
                    // It was replaced since, as in an upgrade: its successor is asked.
                    Err(failure) if matches!(failure.code.as_deref(), Some("404" | "409")) => {
                        let id = container(engine).await?;
                        known.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&id);
                        Exec::start(engine, &id, &BRIDGE).await?
                    }
                    Err(failure) => return Err(failure),
                };
                match handshake(stream).await {
                    Ok(sender) => Ok((sender, Some(exec))),
                    Err(why) => Err(self.broken(Some(exec), &why).await),
                }
            }
            Way::Address(address) => {
                let mut failure = Failure::usage("--coordinator names no address");
                for url in &address.urls {
                    match open(address, url).await {
                        Ok(stream) => {
                            let sender = handshake(stream).await.map_err(|why| unreachable(url, &why))?;
                            return Ok((sender, None));
                        }
                        Err(why) => failure = why,
                    }
                }
                Err(failure)
            }
        }
    }

    fn keep(&self, sender: Sender) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    }

    /// Why a connection through the engine broke: what the program in the container said.
    async fn broken(&self, exec: Option<Exec>, why: &str) -> Failure {
        let (Way::Engine { engine, .. }, Some(exec)) = (&self.way, exec) else {
            return Failure::unreachable(format!("the coordinator's connection broke: {why}"));
        };
        let (words, code) = exec.ended(engine).await;
        if words.contains("unrecognized subcommand") {
            return Failure::unreachable(
                "the coordinator here is too old for this command line: it has no `stdio`",
            )
            .hint("upgrade it (swarmguard upgrade), or use --coordinator with its address and a token");
        }
        if matches!(code, Some(126 | 127)) {
            return Failure::unreachable(format!(
                "{} cannot be run in the coordinator's container: {words}",
                BRIDGE[0]
            ));
        }
        let said =
            if words.is_empty() { why.to_owned() } else { words.trim_start_matches("error: ").to_owned() };
        Failure::unreachable(format!("the coordinator beside this engine does not answer: {said}"))
            .hint("docker service logs swarmguard_coordinator; another manager's coordinator can be asked with --host")
    }
}

/// The container of the coordinator beside this engine.
async fn container(engine: &Engine) -> Outcome<String> {
    let ours = json!({"label": ["swarmguard.role=coordinator"]});
    let services = engine.list("/services", &ours).await?;
    let Some(service) = services.first() else {
        return Err(Failure::unreachable(
            "SwarmGuard is not installed in this swarm: no service has the label swarmguard.role=coordinator",
        )
        .hint("swarmguard install"));
    };
    let (id, name) = (text(&service["ID"]), text(&service["Spec"]["Name"]));
    let here = json!({"label": [format!("com.docker.swarm.service.id={id}")], "status": ["running"]});
    let containers = engine.list("/containers/json", &here).await?;
    match containers.first().map(|container| text(&container["Id"])) {
        Some(container) => Ok(container.into()),
        None => Err(absent(engine, id, name).await),
    }
}

async fn absent(engine: &Engine, service: &str, name: &str) -> Failure {
    let running = json!({"service": [service], "desired-state": ["running"]});
    let tasks = engine.list("/tasks", &running).await.unwrap_or_default();
    let on: Vec<&str> = tasks
        .iter()
        .filter(|task| task["Status"]["State"] == "running")
        .map(|task| text(&task["NodeID"]))
        .collect();
    let nodes = engine.list("/nodes", &json!({})).await.unwrap_or_default();
    let hosts: Vec<&str> = nodes
        .iter()
        .filter(|node| on.contains(&text(&node["ID"])))
        .map(|node| text(&node["Description"]["Hostname"]))
        .collect();
    let failure = Failure::unreachable(format!("no container of {name} runs beside this engine"));
    if hosts.is_empty() {
        failure.hint(format!("docker service ps {name} --no-trunc says why none runs"))
    } else {
        failure.hint(format!("coordinators run on {}: --host ssh://{}", hosts.join(", "), hosts[0]))
    }
}

async fn open(address: &ByAddress, url: &str) -> Outcome<AnyStream> {
    let (tls, rest) = match url.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        _ => {
            return Err(Failure::usage(format!("--coordinator: {url:?} is no address"))
                .hint("https://manager:7480, or http:// for reading only"));
        }
    };
    let place = rest.trim_end_matches('/');
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() => (host.trim_matches(['[', ']']), port.parse().ok()),
        _ => (place, Some(7_480)),
    };
    let port = port.ok_or_else(|| Failure::usage(format!("--coordinator: {url:?} has no sensible port")))?;
    let stream = tcp(host, port).await.map_err(|why| unreachable(url, &why))?;
    if !tls {
        return Ok(Box::new(stream));
    }
    let ca = address.ca.as_ref().ok_or_else(|| {
        Failure::usage("--coordinator with https needs the swarm's root certificate: --ca FILE")
            .hint("docker info --format '{{.Swarm.Cluster.TLSInfo.TrustRoot}}' on a manager prints it")
    })?;
    let own = address.certificate.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
    let stream =
        secure(stream, client_tls(ca, own)?, SERVER_NAME).await.map_err(|why| unreachable(url, &why))?;
    Ok(Box::new(stream))
}

fn unreachable(url: &str, why: &str) -> Failure {
    Failure::unreachable(format!("cannot reach the coordinator at {url}: {why}"))
        .hint("is that a manager's address, and is port 7480 open from here?")
}

fn checked(path: &str, answer: Answer) -> Outcome<Answer> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    let Ok(Problem { code, detail, otherwise }) = serde_json::from_slice(&answer.body) else {
        let words = String::from_utf8_lossy(&answer.body);
        return Err(Failure::failed(format!("{path}: {}: {}", answer.status, words.trim())));
    };
    let failure = match answer.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::unreachable(detail),
        StatusCode::CONFLICT => Failure::new(Exit::Refused, detail),
        StatusCode::SERVICE_UNAVAILABLE => Failure::unreachable(detail).hint("try again in a moment"),
        StatusCode::NOT_FOUND if code == "unknown_path" => Failure::unreachable(format!(
            "the coordinator does not know {path}: it is older than this command line"
        ))
        .hint("swarmguard upgrade"),
        StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Failure::usage(detail),
        _ => Failure::failed(detail),
    };
    let failure = failure.code(code);
    Err(match otherwise {
        Some(otherwise) if !otherwise.is_empty() => failure.needs(otherwise),
        _ => failure,
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A body that keeps its connection open.
struct Held {
    body: Incoming,
    _sender: Sender,
}

impl Body for Held {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its kind; `message` where none is named.
    pub name: String,
    /// Its content.
    pub data: String,
}

/// Events as they come.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    buffer: BytesMut,
    _sender: Sender,
}

impl Events {
    /// The next one; `None` when the connection has ended.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(block) = take_block(&mut self.buffer) {
                if let Some(event) = parse(&block) {
                    return Some(event);
                }
            }
            if self.buffer.len() > MAX_EVENT_BYTES {
                return None;
            }
            let frame = self.body.frame().await?.ok()?;
            if let Some(data) = frame.data_ref() {
                self.buffer.extend_from_slice(data);
            }
        }
    }
}

/// What stands before the next empty line.
fn take_block(buffer: &mut BytesMut) -> Option<BytesMut> {
    let end = buffer.windows(2).position(|pair| pair == b"\n\n")?;
    let block = buffer.split_to(end);
    let _ = buffer.split_to(2);
    Some(block)
}

/// Comments alone (a server's sign of life) are no event.
fn parse(block: &[u8]) -> Option<Event> {
    let mut event = Event { name: "message".into(), data: String::new() };
    let mut some = false;
    for line in String::from_utf8_lossy(block).lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut event.name),
            "data" => {
                if some {
                    event.data.push('\n');
                }
                event.data.push_str(value);
                some = true;
            }
            _ => {}
        }
    }
    some.then_some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_put_together_from_pieces() {
        let text = b": alive\n\nid: 7\nevent: action\ndata: {\"a\":1}\n\ndata: one\ndata: two\n\nevent: half";
        let mut found = Vec::new();
        let mut buffer = BytesMut::new();
        for piece in text.chunks(5) {
            buffer.extend_from_slice(piece);
            while let Some(block) = take_block(&mut buffer) {
                found.extend(parse(&block));
            }
        }
        let event = |name: &str, data: &str| Event { name: name.into(), data: data.into() };
        assert_eq!(found, [event("action", "{\"a\":1}"), event("message", "one\ntwo")]);
    }

    fn answer(status: u16, body: &str) -> Failure {
        let status = StatusCode::from_u16(status).expect("a status");
        let answer = Answer { status, headers: HeaderMap::new(), body: body.to_owned().into() };
        checked("/api/v1/x", answer).expect_err("an error")
    }

    #[test]
    fn a_refusal_says_the_rule_and_what_would_change_it() {
        let refused =
            answer(409, r#"{"code":"local_volumes","detail":"it has a volume","otherwise":"waive it"}"#);
        assert_eq!((refused.exit, refused.code.as_deref()), (Exit::Refused, Some("local_volumes")));
        assert_eq!(refused.needs.as_deref(), Some("waive it"));
        assert_eq!(answer(401, r#"{"code":"token_needed","detail":"a token"}"#).exit, Exit::Unreachable);
        assert_eq!(answer(404, r#"{"code":"unknown_service","detail":"none"}"#).exit, Exit::Usage);
        assert!(answer(404, r#"{"code":"unknown_path","detail":"none"}"#).what.contains("older"));
        assert_eq!(answer(502, "bad gateway").exit, Exit::Failed);
    }
}
