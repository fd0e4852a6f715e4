//! The API's strictness: what it refuses, how it says so, and over which transport.

use std::{net::SocketAddr, path::Path};

use axum::{
    Extension,
    body::Body,
    http::{Method, Request, Response, StatusCode, header},
};
use futures_util::{StreamExt, future::BoxFuture};
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use swarmguard_common::{
    api::SwarmName,
    domain::Role,
    journal::{Entry, Kind},
};
use swarmguard_core::{
    brain::{Brain, Settings},
    command::{Command, CommandResult},
    swarm::Snapshot,
};
use swarmguard_runtime::identity::{Identity, Source, Unit, issue::Authority};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsConnector;

use super::*;
use crate::{
    ingest::{Ingest, Limits, hub::Hub, token::Token},
    journal,
    run::{Parts, Runner},
    seam::SwarmApi,
};

const TOKEN: &str = "a-token-long-enough";

/// A swarm without an answer.
struct Nowhere;

impl SwarmApi for Nowhere {
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, String>> {
        Box::pin(async { Err("there is no engine here".into()) })
    }

    fn execute(&self, command: Command) -> BoxFuture<'_, CommandResult> {
        unreachable!("nothing is to be done: {command:?}")
    }

    fn changes(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

pub(super) struct World {
    api: Api,
    journal: Journal,
    stop: watch::Sender<bool>,
}

pub(super) fn world(token: Option<&str>, plain: Plain) -> World {
    guarded(Access { token: token.map(Token::of), plain, open_reads: true, ..Access::default() })
}

fn guarded(access: Access) -> World {
    let metrics = Metrics::new();
    let (journal, notices) = journal::open(&journal::Settings::default(), Arc::clone(&metrics));
    let hub = Arc::new(Hub::default());
    let (_, inputs) =
        Ingest::new(Limits::default(), "c".into(), None, Arc::clone(&hub), Arc::clone(&metrics));
    let glance = Glance::new(SwarmName { id: "c".into(), name: None });
    let (runner, handle) = Runner::new(Parts {
        brain: Brain::new(Settings::new("node1.1")),
        swarm: Arc::new(Nowhere),
        inputs,
        hub,
        journal: journal.clone(),
        notices,
        metrics: Arc::clone(&metrics),
        glance: Arc::clone(&glance),
    });
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(runner.run(stopped));
    World { api: Api::new(handle, journal.clone(), metrics, access, glance, None), journal, stop }
}

pub(super) fn via(peer: &str, tls: bool) -> Via {
    Via { peer: format!("{peer}:1").parse().expect("an address"), tls, operator: None, manager: None }
}

impl World {
    pub(super) async fn call(&self, via: Via, request: Request<Body>) -> Response<Body> {
        let service = TowerToHyperService::new(router(self.api.clone()).layer(Extension(via)));
        service.call(request).await.expect("infallible")
    }

    /// Status and code of an answer that must be a problem.
    async fn problem(&self, via: Via, request: Request<Body>) -> (u16, String, String) {
        let answer = self.call(via, request).await;
        let status = answer.status().as_u16();
        assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/problem+json");
        let body = answer.into_body().collect().await.expect("whole").to_bytes();
        let problem: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(problem["status"], status, "{problem}");
        let text = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
        (status, text("code"), text("detail"))
    }

    /// A command from loopback with the right token.
    async fn command(&self, name: &str, body: &str) -> (u16, String, String) {
        self.problem(via("127.0.0.1", false), post(&format!("/api/v1/commands/{name}"), Some(TOKEN), body))
            .await
    }
}

pub(super) fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).expect("valid")
}

fn post(path: &str, token: Option<&str>, body: &str) -> Request<Body> {
    let mut request = Request::builder().method(Method::POST).uri(path);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.to_owned())).expect("valid")
}

fn entry(text: &str) -> Entry {
    serde_json::from_value(serde_json::json!({
        "at_ms": 1, "kind": "refusal", "code": "cooldown", "text": text
    }))
    .expect("an entry")
}

#[tokio::test]
async fn what_is_not_known_is_an_error_and_not_an_empty_answer() {
    let world = world(None, Plain::Reads);
    for (path, status, code) in [
        ("/api/v1/none", 404, "unknown_path"),
        ("/api/v1/nodes?x=1", 400, "bad_query"),
        ("/api/v1/journal?limit=0", 400, "bad_query"),
        ("/api/v1/journal?limit=1001", 400, "bad_query"),
        ("/api/v1/journal?since=-1", 400, "bad_query"),
        ("/api/v1/journal?since=9007199254740992", 400, "bad_query"),
        ("/api/v1/decisions?since=9007199254740992", 400, "bad_query"),
        ("/api/v1/events?since=9007199254740992", 400, "bad_query"),
        ("/api/v1/journal?kind=everything", 400, "bad_query"),
        ("/api/v1/decisions?kind=alert", 400, "bad_query"),
        ("/api/v1/explain", 400, "bad_query"),
        ("/api/v1/explain?service=none", 404, "unknown_service"),
        ("/api/v1/events?from=1", 400, "bad_query"),
        ("/api/v1/events?kinds=alert,none", 400, "bad_query"),
        ("/api/v1/events?service=no%20such", 404, "unknown_service"),
        ("/api/v1/journal?node=no%20such", 404, "unknown_node"),
        ("/api/v1/series", 400, "bad_query"),
        ("/api/v1/series?node=a&service=b", 400, "bad_query"),
        ("/api/v1/series?service=none", 404, "unknown_service"),
        ("/api/v1/overview?x=1", 400, "bad_query"),
        ("/api/v1/commands/pause", 405, "method_not_allowed"),
    ] {
        let (answered, said, detail) = world.problem(via("10.0.0.1", false), get(path)).await;
        assert_eq!((answered, said.as_str()), (status, code), "{path}: {detail}");
    }
    let long = "0".repeat(257);
    for path in ["journal", "decisions"] {
        let path = format!("/api/v1/{path}?action={long}");
        let (answered, said, _) = world.problem(via("10.0.0.1", false), get(&path)).await;
        assert_eq!((answered, said.as_str()), (400, "bad_query"), "{path}");
    }
    let answer = world.call(via("10.0.0.1", false), get("/api/v1/nodes")).await;
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn commands_are_checked_to_the_last_field() {
    let world = world(Some(TOKEN), Plain::Reads);
    for (name, body, status, code, says) in [
        ("explode", "{}", 404, "unknown_command", "migrate, scale"),
        ("pause", "", 400, "bad_body", "not JSON"),
        ("pause", "[]", 400, "bad_body", "object"),
        ("pause", "{\"servcie\":\"web\"}", 400, "bad_body", "servcie"),
        ("pause", "{\"command\":\"drain\"}", 400, "bad_body", "command"),
        ("pause", "{\"service\":\"web\"}", 404, "unknown_service", "web"),
        ("pause", "{\"service\":7}", 400, "bad_body", "string"),
        ("drain", "{}", 400, "bad_body", "node"),
        ("drain", "{\"node\":\"w1\"}", 404, "unknown_node", "w1"),
        ("scale", "{\"replicas\":-1}", 400, "bad_body", "-1"),
        ("observe", "{\"on\":\"yes\"}", 400, "bad_body", "boolean"),
        ("cancel", "{\"task\":\"x\"}", 400, "bad_body", "task"),
        ("cancel", "{\"action\":\"x\"}", 409, "not_ready", "Swarm"),
        ("pause", "{}", 409, "not_ready", "Swarm"),
    ] {
        let (answered, said, detail) = world.command(name, body).await;
        assert_eq!((answered, said.as_str()), (status, code), "{name} {body}: {detail}");
        assert!(detail.contains(says), "{name} {body}: {detail}");
    }
    let (status, code, _) = world.command("pause", &" ".repeat(MAX_BODY_BYTES + 1)).await;
    assert_eq!((status, code.as_str()), (413, "bad_body"));
    let mut form = post("/api/v1/commands/pause", Some(TOKEN), "service=web");
    form.headers_mut()
        .insert(header::CONTENT_TYPE, "application/x-www-form-urlencoded".parse().expect("valid"));
    let (status, code, _) = world.problem(via("127.0.0.1", false), form).await;
    assert_eq!((status, code.as_str()), (415, "not_json"));
    let query = post("/api/v1/commands/pause?service=web&dry_run=true", Some(TOKEN), "{}");
    let (status, code, _) = world.problem(via("127.0.0.1", false), query).await;
    assert_eq!((status, code.as_str()), (400, "bad_query"));
}

#[tokio::test]
async fn commands_need_the_token_and_a_transport_that_hides_it() {
    let pause = |token| post("/api/v1/commands/pause", token, "{}");
    let reads = world(Some(TOKEN), Plain::Reads);
    for (from, tls, token, status, code) in [
        ("10.0.0.1", false, Some(TOKEN), 403, "tls_needed"),
        ("10.0.0.1", true, None, 401, "token_needed"),
        ("10.0.0.1", true, Some("a-token-long-enouch"), 401, "wrong_token"),
        ("10.0.0.1", true, Some(TOKEN), 409, "not_ready"),
        ("127.0.0.1", false, Some(TOKEN), 409, "not_ready"),
    ] {
        let (answered, said, _) = reads.problem(via(from, tls), pause(token)).await;
        assert_eq!((answered, said.as_str()), (status, code), "{from} {tls} {token:?}");
    }
    let named = Via { operator: Some("anna".into()), ..via("10.0.0.1", true) };
    assert_eq!(reads.problem(named, pause(None)).await.0, 409, "a certificate is as good as the token");

    let all = world(Some(TOKEN), Plain::All);
    assert_eq!(all.problem(via("10.0.0.1", false), pause(Some(TOKEN))).await.0, 409);
    let none = world(Some(TOKEN), Plain::None);
    assert_eq!(none.problem(via("10.0.0.1", false), get("/api/v1/nodes")).await.1, "tls_needed");
    assert_eq!(none.call(via("127.0.0.1", false), get("/healthz")).await.status(), StatusCode::OK);
    assert_eq!(none.call(via("10.0.0.1", true), get("/api/v1/nodes")).await.status(), StatusCode::OK);

    let disabled = world(None, Plain::Reads);
    let (status, code, detail) = disabled.problem(via("127.0.0.1", false), pause(Some(TOKEN))).await;
    assert_eq!((status, code.as_str()), (403, "commands_disabled"));
    assert!(detail.contains("SWARMGUARD_OPERATOR_TOKEN_FILE"), "{detail}");
    assert!(disabled.api.0.metrics.text().contains("api_refused_total{reason=\"not_enabled\"} 1"));
}

#[tokio::test]
async fn reads_are_closed_unless_somebody_is_known_or_they_were_opened() {
    let access = Access {
        token: Some(Token::of(TOKEN)),
        reader_token: Some(Token::of("a-token-to-read-with")),
        ..Access::default()
    };
    let world = guarded(access);
    let ask = |path, token: Option<&str>| {
        let mut request = get(path);
        if let Some(token) = token {
            let value = format!("Bearer {token}").parse().expect("valid");
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        request
    };
    for (from, tls, token, status, code) in [
        ("10.0.0.1", false, None, 401, "token_needed"),
        ("10.0.0.1", true, None, 401, "token_needed"),
        ("10.0.0.1", false, Some(TOKEN), 403, "tls_needed"),
        ("10.0.0.1", true, Some("a-token-to-read-wits"), 401, "wrong_token"),
    ] {
        for path in ["/api/v1/nodes", "/api/v1/events", "/api/v1/overview", "/metrics"] {
            let (answered, said, _) = world.problem(via(from, tls), ask(path, token)).await;
            assert_eq!((answered, said.as_str()), (status, code), "{path} from {from}, {tls}, {token:?}");
        }
    }
    let manager = Via { manager: Some("node2".into()), ..via("10.0.0.1", true) };
    let operator = Via { operator: Some("anna".into()), ..via("10.0.0.1", true) };
    for (via, token) in [
        (via("127.0.0.1", false), None),
        (via("10.0.0.1", false), Some("a-token-to-read-with")),
        (via("10.0.0.1", true), Some(TOKEN)),
        (manager, None),
        (operator, None),
    ] {
        let answer = world.call(via.clone(), ask("/api/v1/nodes", token)).await;
        assert_eq!(answer.status(), StatusCode::OK, "{via:?} {token:?}");
    }
    // To read is not to command.
    let (_, code, _) = world
        .problem(via("10.0.0.1", true), post("/api/v1/commands/pause", Some("a-token-to-read-with"), "{}"))
        .await;
    assert_eq!(code, "wrong_token");
    let health = world.call(via("10.0.0.1", false), get("/healthz")).await;
    let body = health.into_body().collect().await.expect("whole").to_bytes();
    assert_eq!(&body[..], br#"{"status":"blind"}"#, "who is not known is told no more");
}

#[tokio::test]
async fn a_name_that_is_not_ours_is_answered_nothing() {
    let world =
        guarded(Access { open_reads: true, hosts: vec!["guard.example".into()], ..Access::default() });
    for (host, status) in [
        ("evil.example", 421),
        ("localhost.evil.example:7480", 421),
        ("10.0.0.1:7480", 200),
        ("[fd00::1]:7480", 200),
        ("localhost:7480", 200),
        ("Guard.Example", 200),
    ] {
        let mut request = get("/api/v1/nodes");
        request.headers_mut().insert(header::HOST, host.parse().expect("valid"));
        let answer = world.call(via("127.0.0.1", false), request).await;
        assert_eq!(answer.status(), status, "{host}");
    }
    assert!(world.api.0.metrics.text().contains("api_refused_total{reason=\"host\"} 2"));
}

#[tokio::test]
async fn one_address_does_not_take_all_event_streams() {
    let world = world(None, Plain::Reads);
    let mut held = Vec::new();
    for _ in 0..MAX_STREAMS_PER_ADDRESS {
        held.push(world.call(via("10.0.0.1", false), get("/api/v1/events")).await);
    }
    assert!(held.iter().all(|answer| answer.status() == StatusCode::OK));
    let (status, code, detail) = world.problem(via("10.0.0.1", false), get("/api/v1/events")).await;
    assert_eq!((status, code.as_str()), (503, "too_many_streams"));
    assert!(detail.contains("10.0.0.1"), "{detail}");
    assert_eq!(world.call(via("10.0.0.2", false), get("/api/v1/events")).await.status(), StatusCode::OK);
    held.pop();
    assert_eq!(world.call(via("10.0.0.1", false), get("/api/v1/events")).await.status(), StatusCode::OK);
}

/// A stream of refusals for a client that has everything up to `seen`.
async fn events(world: &World, seen: u64) -> axum::body::BodyDataStream {
    let mut request = get("/api/v1/events?kind=refusal");
    request.headers_mut().insert("last-event-id", seen.into());
    world.call(via("10.0.0.1", false), request).await.into_body().into_data_stream()
}

/// The next event; generous, because the machine may be busy.
async fn heard(stream: &mut axum::body::BodyDataStream) -> String {
    let frame = tokio::time::timeout(Duration::from_secs(60), stream.next()).await.expect("in time");
    String::from_utf8_lossy(&frame.expect("open").expect("whole")).into_owned()
}

#[tokio::test]
async fn a_client_that_was_away_for_long_misses_nothing() {
    let world = world(None, Plain::Reads);
    let first = world.journal.append(entry("one")).id;
    let many = 2 * crate::journal::MAX_READ as u64 + 10;
    for _ in 0..many {
        world.journal.append(entry("while it was away"));
    }
    let mut stream = events(&world, first).await;
    for id in first + 1..=first + many {
        let event = heard(&mut stream).await;
        assert!(event.contains(&format!("id: {id}\n")), "{id} was next: {event}");
    }
    world.journal.append(entry("and then"));
    assert!(heard(&mut stream).await.contains("and then"));
}

#[tokio::test]
async fn a_client_that_comes_from_another_journal_is_told_so_and_hears_what_comes() {
    let world = world(None, Plain::Reads);
    let mut stream = events(&world, 1_000_000).await;
    let event = heard(&mut stream).await;
    assert!(event.contains("event: dropped") && event.contains("null"), "{event}");
    world.journal.append(entry("one"));
    assert!(heard(&mut stream).await.contains("one"));
}

#[tokio::test]
async fn events_go_on_where_the_client_was_and_say_what_it_missed() {
    let world = world(None, Plain::Reads);
    let first = world.journal.append(entry("one")).id;
    let mut stream = events(&world, first - 1).await;
    let mut next = async || heard(&mut stream).await;
    let event = next().await;
    assert!(event.contains(&format!("id: {first}")) && event.contains("event: refusal"), "{event}");
    world.journal.append(Entry { kind: Kind::Alert, ..entry("another kind") });
    world.journal.append(entry("two"));
    assert!(next().await.contains("two"));
    for _ in 0..3_000 {
        world.journal.append(entry("too many"));
    }
    assert!(next().await.contains("event: dropped"));
    assert!(next().await.contains("too many"));
}

#[tokio::test]
async fn when_the_loop_has_ended_nothing_waits_for_ever() {
    let world = world(None, Plain::Reads);
    assert_eq!(world.call(via("127.0.0.1", false), get("/healthz")).await.status(), StatusCode::OK);
    world.stop.send(true).expect("it runs");
    let gone = async {
        while world.call(via("127.0.0.1", false), get("/healthz")).await.status() == StatusCode::OK {}
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("in time");
    assert_eq!(world.problem(via("127.0.0.1", false), get("/healthz")).await.1, "busy");
}

fn identity(dir: &Path) -> Identity {
    Identity::load(&Source::Files(dir.into())).expect("loads")
}

/// The answer to an operator with a certificate who pauses all automation.
async fn paused_by(operator: &Identity, address: SocketAddr) -> String {
    let mut config = operator.client_config().expect("usable");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(address).await.expect("connected");
    let name = "swarm-manager".try_into().expect("a name");
    let mut secure = TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("trusted");
    let command = "POST /api/v1/commands/pause HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                   Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    secure.write_all(command.as_bytes()).await.expect("written");
    let mut answer = String::new();
    secure.read_to_string(&mut answer).await.expect("text");
    answer
}

#[tokio::test]
async fn one_port_speaks_https_and_http_and_knows_operators_by_their_certificate() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::create("c").expect("made");
    for (name, unit) in [("m1", Unit::Manager), ("anna", Unit::Operator)] {
        std::fs::create_dir(dir.path().join(name)).expect("made");
        authority.issue(name, unit, &dir.path().join(name)).expect("issued");
    }
    let own = identity(&dir.path().join("m1"));
    let world = world(None, Plain::Reads);
    let (_tls, tls) = watch::channel(server::tls_config(own.server_config().expect("usable")));
    let (_stop, stopped) = watch::channel(false);
    let mut addresses = Vec::new();
    for cluster in ["c", "another"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        addresses.push(listener.local_addr().expect("bound"));
        let (router, cluster) = (router(world.api.clone()), cluster.to_owned());
        tokio::spawn(server::serve(listener, router, cluster, tls.clone(), stopped.clone()));
    }
    let [address, elsewhere] = addresses[..] else { unreachable!("two were bound") };

    let ask = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut plain = TcpStream::connect(address).await.expect("connected");
    plain.write_all(ask.as_bytes()).await.expect("written");
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.expect("text");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let anna = identity(&dir.path().join("anna"));
    assert!(anna.own.may(Role::Operator));
    let answer = paused_by(&anna, address).await;
    // Taken as far as the judgement, which has read no Swarm: no token was asked for.
    assert!(answer.contains("409") && answer.contains("not_ready"), "{answer}");
    let answer = paused_by(&anna, elsewhere).await;
    assert!(answer.contains("403"), "an operator of one swarm is nobody in another: {answer}");

    let mut noise = TcpStream::connect(address).await.expect("connected");
    noise.write_all(&[0x16, 3, 1, 0, 4, 9, 9, 9, 9]).await.expect("written");
    let mut rest = Vec::new();
    // Reset or closed, both will do.
    let _ = noise.read_to_end(&mut rest).await;
    assert!(!rest.starts_with(b"HTTP"), "{rest:?}");
}
