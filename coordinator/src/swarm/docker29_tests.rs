//! The client against Docker 29's API as it is published: versions before 1.44 are refused, events are lines of JSON
//! without the fields of old. No distribution has that engine yet, so it is played.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use ::http::{Request, Response};
use bytes::Bytes;
use hyper::{
    body::{Body, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixListener, sync::mpsc};

use super::*;

const HIGHEST: &str = "1.52";
const LOWEST_MINOR: u32 = 44;
const NODES: &str = r#"[{"ID":"n1","Version":{"Index":11},"Spec":{"Labels":{},"Role":"manager","Availability":"active"},
    "Description":{"Hostname":"node1","Platform":{"Architecture":"x86_64","OS":"linux"},
    "Resources":{"NanoCPUs":2000000000,"MemoryBytes":4294967296},"Engine":{"EngineVersion":"29.1.2"}},
    "Status":{"State":"ready","Addr":"10.78.0.11"},"ManagerStatus":{"Leader":true,"Reachability":"reachable"}}]"#;
const SERVICES: &str = r#"[{"ID":"s1","Version":{"Index":12},"Spec":{"Name":"web","Labels":{},"TaskTemplate":
    {"Placement":{},"ContainerSpec":{"OomScoreAdj":0}},"Mode":{"Replicated":{"Replicas":1}}},"Endpoint":{"Spec":{}}}]"#;
const EVENT: &str = concat!(
    r#"{"Type":"service","Action":"update","Actor":{"ID":"s1","Attributes":{"name":"web","updatestate.new":"updating"}},"#,
    r#""scope":"swarm","time":1795766854,"timeNano":1795766854611142834}"#,
    "\n"
);

/// What the engine sends, frame by frame; without an end where the sender lives.
struct Frames(mpsc::UnboundedReceiver<Bytes>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

type Streams = Arc<Mutex<Vec<mpsc::UnboundedSender<Bytes>>>>;

struct Engine29 {
    client: Arc<Client>,
    asked: Arc<Mutex<Vec<String>>>,
    /// One for each stream of events that is open.
    streams: Streams,
    _directory: tempfile::TempDir,
}

fn engine29() -> Engine29 {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("docker.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let (asked, streams) = (Arc::<Mutex<Vec<String>>>::default(), Streams::default());
    let (noted, opened) = (Arc::clone(&asked), Arc::clone(&streams));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (noted, opened) = (Arc::clone(&noted), Arc::clone(&opened));
            let answer = service_fn(move |request: Request<Incoming>| {
                let path = request.uri().path().to_owned();
                noted.lock().expect("not poisoned").push(path.clone());
                let response = answer(&path, &opened);
                async { Ok::<_, Infallible>(response) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    let client = Client::new(&format!("unix://{}", path.display())).expect("an address");
    Engine29 { client, asked, streams, _directory: directory }
}

/// The minor version that a path asks for; one without any asks for the highest.
fn minor(path: &str) -> Option<u32> {
    path.strip_prefix("/v1.")?.split('/').next()?.parse().ok()
}

fn answer(path: &str, streams: &Streams) -> Response<Frames> {
    let (send, frames) = mpsc::unbounded_channel();
    let respond = |status: u16, kind: &str| {
        let response = Response::builder().status(status).header("Api-Version", HIGHEST);
        response.header("Content-Type", kind).body(Frames(frames)).expect("a response")
    };
    let text = |text: &str| send.send(Bytes::from(text.to_owned())).expect("open");
    if let Some(minor) = minor(path).filter(|minor| *minor < LOWEST_MINOR) {
        text(&format!(
            r#"{{"message":"client version 1.{minor} is too old. Minimum supported API version is 1.44, please upgrade your client to a newer version"}}"#
        ));
        return respond(400, "application/json");
    }
    match path.strip_prefix("/v1.52").unwrap_or(path) {
        "/_ping" => text("OK"),
        "/info" => text(r#"{"Swarm":{"NodeID":"n1"},"ServerVersion":"29.1.2"}"#),
        "/nodes" => text(NODES),
        "/services" => text(SERVICES),
        "/tasks" | "/configs" => text("[]"),
        "/events" => {
            streams.lock().expect("not poisoned").push(send);
            return respond(200, "application/jsonl");
        }
        _ => {
            text(r#"{"message":"page not found"}"#);
            return respond(404, "application/json");
        }
    }
    respond(200, "application/json")
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not so after ten seconds: {what}");
}

#[tokio::test]
async fn the_swarm_is_read_at_the_engines_own_version_and_never_below_its_lowest() {
    let engine = engine29();
    let snapshot = engine.client.snapshot().await.expect("a reading");
    assert_eq!((snapshot.nodes.len(), snapshot.services.len(), snapshot.tasks.len()), (1, 1, 0));
    let asked = engine.asked.lock().expect("not poisoned").clone();
    assert!(asked.iter().all(|path| path == "/_ping" || path.starts_with("/v1.52/")), "{asked:?}");
    let service: swarmguard_common::domain::ServiceId = "s1".parse().expect("an ID");
    let spec = &snapshot.services[&service].spec;
    assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["OomScoreAdj"], 0, "unknown fields come along");
}

#[tokio::test]
async fn a_line_of_json_without_the_fields_of_old_counts_as_a_change() {
    let engine = engine29();
    let changes = SwarmApi::changes(&*engine.client);
    engine.client.watch();
    let opened = || engine.streams.lock().expect("not poisoned").first().cloned();
    until("the client listens", || opened().is_some()).await;
    let before = *changes.borrow();
    let stream = opened().expect("open");
    // In two pieces: a line may come cut anywhere.
    let (first, rest) = EVENT.split_at(40);
    stream.send(Bytes::from_static(first.as_bytes())).expect("open");
    stream.send(Bytes::from_static(rest.as_bytes())).expect("open");
    until("the change is counted", || *changes.borrow() > before).await;
    assert_eq!(engine.streams.lock().expect("not poisoned").len(), 1, "the stream was not opened anew");
}
