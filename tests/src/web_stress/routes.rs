//! The paths that web-stress answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::args::{Serve, Sink};
use super::cpu::CpuPlan;
use super::loads::Loads;
use super::memory::MemoryPlan;
use super::network::{self, NetworkPlan};
use super::query::{BadQuery, Key, Values, parse};

const TARGET: Key =
    Key { name: "target", what: "per cent of the CPU allowance", min: 0.0, max: 100.0, default: Some(80.0) };
const DURATION: Key = Key { name: "duration", what: "seconds", min: 0.0, max: 86_400.0, default: Some(60.0) };
const RAMP: Key = Key { name: "ramp", what: "seconds", min: 0.0, max: 86_400.0, default: Some(0.0) };
const MB: Key = Key { name: "mb", what: "MiB", min: 1.0, max: 1_048_576.0, default: None };
const MBPS: Key = Key { name: "mbps", what: "megabits a second", min: 0.001, max: 100_000.0, default: None };
/// In a combined load each part may be left out.
const NO_TARGET: Key = Key { default: Some(0.0), ..TARGET };
const NO_MB: Key = Key { min: 0.0, default: Some(0.0), ..MB };
const NO_MBPS: Key = Key { min: 0.0, default: Some(0.0), ..MBPS };

/// What the handlers share.
#[derive(Debug)]
pub struct App {
    host: String,
    node: Option<String>,
    task: Option<String>,
    slot: Option<String>,
    sink: Sink,
    /// CPUs that 100 % of a CPU load stand for.
    cpus: f64,
    started: Instant,
    health_delay: Duration,
    requests: AtomicU64,
    loads: Loads,
    draining: watch::Receiver<bool>,
}

impl App {
    /// `started` is when the process began; `draining` turns true on SIGTERM.
    pub fn new(serve: &Serve, started: Instant, draining: watch::Receiver<bool>) -> Arc<Self> {
        let env = |name| std::env::var(name).ok().filter(|text: &String| !text.is_empty());
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Arc::new(App {
            host,
            node: env("NODE_HOSTNAME"),
            task: env("TASK_ID"),
            slot: env("TASK_SLOT"),
            sink: serve.network_sink,
            cpus: serve.allowance(),
            started,
            health_delay: serve.start_delay + serve.health_delay,
            requests: AtomicU64::new(0),
            loads: Loads::default(),
            draining,
        })
    }
}

/// All paths.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(root))
        .route("/health", get(health))
        .route("/stress/cpu", any(stress_cpu))
        .route("/stress/memory", any(stress_memory))
        .route("/stress/network", any(stress_network))
        .route("/stress/combined", any(stress_combined))
        .route("/stress/stop", any(stress_stop))
        .fallback(unknown)
        .layer(from_fn_with_state(Arc::clone(&app), on_every_answer))
        .with_state(app)
}

/// Counts, names the replica, and once draining asks the client to come back on another connection.
async fn on_every_answer(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    app.requests.fetch_add(1, Ordering::Relaxed);
    let mut answer = next.run(request).await;
    if let Ok(host) = HeaderValue::from_str(&app.host) {
        answer.headers_mut().insert(HeaderName::from_static("x-replica"), host);
    }
    if *app.draining.borrow() {
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

async fn root(State(app): State<Arc<App>>) -> Response {
    answer(
        StatusCode::OK,
        &json!({
            "service": "web-stress",
            "hostname": app.host,
            "node": app.node,
            "task": app.task,
            "slot": app.slot,
            "uptime_s": app.started.elapsed().as_secs_f64(),
            "requests": app.requests.load(Ordering::Relaxed),
            "allowance_cpus": app.cpus,
        }),
    )
}

async fn health(State(app): State<Arc<App>>) -> Response {
    if *app.draining.borrow() {
        return answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "draining"}));
    }
    if app.started.elapsed() < app.health_delay {
        return answer(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "starting"}));
    }
    answer(StatusCode::OK, &json!({"status": "healthy"}))
}

async fn stress_cpu(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    let values = match read(&app, query, &[TARGET, DURATION, RAMP]) {
        Ok(values) => values,
        Err(refusal) => return *refusal,
    };
    start_cpu(&app, &values).map_or_else(refused, |started| answer(StatusCode::OK, &started))
}

async fn stress_memory(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    let values = match read(&app, query, &[MB, DURATION, RAMP]) {
        Ok(values) => values,
        Err(refusal) => return *refusal,
    };
    start_memory(&app, &values).map_or_else(refused, |started| answer(StatusCode::OK, &started))
}

async fn stress_network(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    let values = match read(&app, query, &[MBPS, DURATION]) {
        Ok(values) => values,
        Err(refusal) => return *refusal,
    };
    match start_network(&app, &values).await {
        Ok(Network::Told(started)) => answer(StatusCode::OK, &started),
        Ok(Network::Streams(body)) => stream(body),
        Err(error) => refused(error),
    }
}

async fn stress_combined(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    let values = match read(&app, query, &[NO_TARGET, NO_MB, NO_MBPS, DURATION, RAMP]) {
        Ok(values) => values,
        Err(refusal) => return *refusal,
    };
    combine(&app, &values).await.unwrap_or_else(refused)
}

async fn combine(app: &App, values: &Values) -> std::io::Result<Response> {
    let mut started = Vec::new();
    if values.get("target") > 0.0 {
        started.push(start_cpu(app, values)?);
    }
    if values.get("mb") > 0.0 {
        started.push(start_memory(app, values)?);
    }
    if values.get("mbps") > 0.0 {
        match start_network(app, values).await? {
            Network::Told(told) => started.push(told),
            Network::Streams(body) => return Ok(stream(body)),
        }
    }
    if started.is_empty() {
        let allowed = "at least one of target, mb, mbps above 0".to_owned();
        return Ok(bad(&BadQuery { key: "target".to_owned(), value: "0".to_owned(), allowed }));
    }
    Ok(answer(StatusCode::OK, &json!({ "host": app.host, "started": started })))
}

async fn stress_stop(State(app): State<Arc<App>>, RawQuery(query): RawQuery) -> Response {
    match read(&app, query, &[]) {
        Ok(_) => {
            app.loads.stop();
            answer(StatusCode::OK, &json!({ "host": app.host, "stopped": true }))
        }
        Err(refusal) => *refusal,
    }
}

async fn unknown() -> Response {
    const PATHS: &str =
        "/, /health, /stress/cpu, /stress/memory, /stress/network, /stress/combined, /stress/stop";
    answer(StatusCode::NOT_FOUND, &json!({ "error": "no such path", "allowed": PATHS }))
}

/// Checks a query, and that this is the replica it is meant for: behind a load balancer a caller can only ask again
/// until the right one answers.
fn read(app: &App, query: Option<String>, keys: &[Key]) -> Result<Values, Box<Response>> {
    let values = parse(&query.unwrap_or_default(), keys).map_err(|error| Box::new(bad(&error)))?;
    match &values.host {
        Some(host) if *host != app.host => Err(Box::new(answer(
            StatusCode::MISDIRECTED_REQUEST,
            &json!({ "error": "another replica was meant", "host": app.host, "meant": host }),
        ))),
        _ => Ok(values),
    }
}

fn start_cpu(app: &App, values: &Values) -> std::io::Result<Value> {
    let plan = CpuPlan {
        target_percent: values.get("target"),
        allowance_cpus: app.cpus,
        duration: seconds(values, "duration"),
        ramp: seconds(values, "ramp"),
    };
    app.loads.burn(plan)?;
    Ok(json!({
        "host": app.host, "load": "cpu", "target": plan.target_percent, "allowance_cpus": plan.allowance_cpus,
        "workers": plan.workers(), "duration_s": plan.duration.as_secs_f64(), "ramp_s": plan.ramp.as_secs_f64(),
    }))
}

fn start_memory(app: &App, values: &Values) -> std::io::Result<Value> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the key's bounds fit a u32")]
    let mb = values.get("mb").round() as u32;
    let plan = MemoryPlan { mb, duration: seconds(values, "duration"), ramp: seconds(values, "ramp") };
    app.loads.hold(plan)?;
    Ok(json!({
        "host": app.host, "load": "memory", "mb": plan.mb,
        "duration_s": plan.duration.as_secs_f64(), "ramp_s": plan.ramp.as_secs_f64(),
    }))
}

/// How a network load shows: at once, or for as long as it lasts.
enum Network {
    Told(Value),
    Streams(Body),
}

async fn start_network(app: &App, values: &Values) -> std::io::Result<Network> {
    let plan = NetworkPlan { mbps: values.get("mbps"), duration: seconds(values, "duration") };
    let peer = match app.sink {
        Sink::Body => return Ok(Network::Streams(network::body(plan, app.loads.body_stop()))),
        Sink::Gateway => network::gateway()?,
        Sink::Udp(peer) => peer,
    };
    app.loads.send(plan, peer).await?;
    Ok(Network::Told(json!({
        "host": app.host, "load": "network", "mbps": plan.mbps, "peer": peer.to_string(),
        "duration_s": plan.duration.as_secs_f64(),
    })))
}

fn seconds(values: &Values, key: &str) -> Duration {
    Duration::from_secs_f64(values.get(key))
}

fn bad(error: &BadQuery) -> Response {
    let BadQuery { key, value, allowed } = error;
    answer(
        StatusCode::BAD_REQUEST,
        &json!({ "error": error.to_string(), "key": key, "value": value, "allowed": allowed }),
    )
}

fn refused(error: std::io::Error) -> Response {
    answer(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": format!("cannot start the load: {error}") }))
}

fn stream(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response()
}

fn answer(status: StatusCode, value: &Value) -> Response {
    let mut text = value.to_string();
    text.push('\n');
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}
