//! The HTTP interface: `GET /metrics/containers` (JSON), `/metrics` and `/metrics/detail` (Prometheus), `/healthz`.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use swarmguard_common::time::Time;
use swarmguard_runtime::{clock, exposition::CONTENT_TYPE, http::serve_figures};

use crate::{metrics, sampler::Vitals, uplink::Shared};

/// Without a tick for this long the agent is not well.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// The text of `/metrics` is given out again until so many times as long has passed as writing it took. Anybody may ask,
/// and what answering costs is charged to the budget: so it is half a per cent of a CPU at most, and a stranger cannot
/// slow sampling down.
const REST: u32 = 200;

/// What the handlers look at.
#[derive(Clone)]
pub struct Served {
    /// The agent's state.
    pub shared: Shared,
    /// How sampling goes.
    pub vitals: Arc<Mutex<Vitals>>,
    /// Whether containers cannot be seen at all, and why.
    pub blind: Option<String>,
}

impl Served {
    /// How sampling goes.
    pub fn vitals(&self) -> Vitals {
        *self.vitals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer of `GET /metrics/containers`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Containers {
    /// Host name of the node.
    pub node: String,
    /// Seconds since the Unix epoch.
    pub timestamp: u64,
    /// All containers that are watched.
    pub containers: Vec<ContainerFigures>,
}

/// One container. Figures that are not known are `null`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerFigures {
    /// The engine's ID.
    pub container_id: String,
    /// The engine's name.
    pub container_name: Option<String>,
    /// Swarm's name of the service.
    pub service_name: Option<String>,
    /// CPU utilisation, 0 to 100: of `cpu.max`, or of the node.
    pub cpu_percent: Option<f64>,
    /// Working set in MiB.
    pub memory_mb: Option<f64>,
    /// Memory utilisation, 0 to 100: of `memory.max`, or of the node.
    pub memory_percent: Option<f64>,
    /// Received, Mbit/s.
    pub network_rx_mbps: Option<f64>,
    /// Sent, Mbit/s.
    pub network_tx_mbps: Option<f64>,
}

/// The answer of `GET /healthz`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Health {
    /// `ok`, `blind` or `stuck`.
    pub status: String,
    /// Containers watched.
    pub containers: usize,
    /// Coordinators connected to.
    pub coordinators_connected: usize,
    /// Coordinators that there are.
    pub coordinators: usize,
    /// Interval of sampling at present, in milliseconds.
    pub sampling_interval_ms: u64,
    /// What the agent uses of one CPU, in per cent.
    pub own_cpu_percent: Option<f64>,
    /// What does not work, in words.
    pub problems: Vec<String>,
}

/// All routes.
pub fn router(served: Served) -> Router {
    let text = |write: Write| get(prometheus).with_state((served.clone(), write, Arc::default()));
    let (summary, detail) = (text(metrics::summary), text(metrics::containers));
    Router::new()
        .route("/metrics/containers", get(containers))
        .route("/healthz", get(healthz))
        .with_state(served)
        .route("/metrics", summary)
        .route("/metrics/detail", detail)
}

/// Serves until the process ends.
pub async fn serve(listener: tokio::net::TcpListener, served: Served) {
    serve_figures(listener, TowerToHyperService::new(router(served))).await;
}

async fn containers(State(served): State<Served>) -> Json<Containers> {
    Json(figures(&served.shared))
}

/// The figures of all containers now.
pub fn figures(shared: &Shared) -> Containers {
    let agent = shared.lock();
    let round = |value: f64| (value * 100.0).round() / 100.0;
    let containers = agent.containers().values().map(|container| {
        let figures = &container.figures;
        let percent = |ratio: Option<f64>| ratio.map(|ratio| round((ratio * 100.0).clamp(0.0, 100.0)));
        let mbps = |bytes_per_s: Option<f64>| bytes_per_s.map(|bytes| round(bytes * 8.0 / 1_000_000.0));
        #[expect(clippy::cast_precision_loss, reason = "MiB with two decimals need no more than 53 bits")]
        let mib = figures.memory_bytes.map(|bytes| round(bytes as f64 / 1_048_576.0));
        let description = container.description.as_ref();
        ContainerFigures {
            container_id: container.id.to_string(),
            container_name: description.map(|it| it.name.clone()),
            service_name: agent.service_of(container).map(Into::into),
            cpu_percent: percent(figures.cpu),
            memory_mb: mib,
            memory_percent: percent(figures.memory),
            network_rx_mbps: mbps(figures.rx_bytes_per_s),
            network_tx_mbps: mbps(figures.tx_bytes_per_s),
        }
    });
    Containers {
        node: agent.hello.hostname.clone(),
        timestamp: clock::wall_ms() / 1_000,
        containers: containers.collect(),
    }
}

/// The newest text, and until when it is given out.
type Text = Arc<Mutex<Option<(Time, String)>>>;
/// Writes it.
type Write = fn(&Served) -> String;

async fn prometheus(State((served, write, newest)): State<(Served, Write, Text)>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], fresh_text(&served, write, &newest))
}

fn fresh_text(served: &Served, write: Write, newest: &Text) -> String {
    // Held while it is written, so that many who ask at once cost one text.
    let mut newest = newest.lock().unwrap_or_else(PoisonError::into_inner);
    let began = clock::now();
    if let Some((until, text)) = newest.as_ref()
        && began < *until
    {
        return text.clone();
    }
    let text = write(served);
    let now = clock::now();
    *newest = Some((now + now.since(began) * REST, text.clone()));
    text
}

async fn healthz(State(served): State<Served>) -> (StatusCode, Json<Health>) {
    let (well, health) = health(&served);
    (if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(health))
}

/// Whether the agent does what it can, and how it is. A node without coordinators is well: restarting helps nothing.
pub fn health(served: &Served) -> (bool, Health) {
    let vitals = served.vitals();
    let stuck = vitals.ticked_at.is_none_or(|at| clock::now().since(at) > STUCK_AFTER);
    let links = served.shared.links();
    let mut problems: Vec<String> = served.blind.iter().cloned().collect();
    problems.extend(links.identity_error.clone());
    problems.extend(links.by_address.iter().filter(|(_, link)| !link.connected).map(|(address, link)| {
        format!(
            "no connection to coordinator {address}: {}",
            link.last_error.as_deref().unwrap_or("not tried yet")
        )
    }));
    let status = match (stuck, &served.blind) {
        (true, _) => "stuck",
        (false, Some(_)) => "blind",
        (false, None) => "ok",
    };
    let health = Health {
        status: status.into(),
        containers: served.shared.lock().containers().len(),
        coordinators_connected: links.by_address.values().filter(|link| link.connected).count(),
        coordinators: links.by_address.len(),
        sampling_interval_ms: u64::try_from(vitals.interval.as_millis()).unwrap_or(u64::MAX),
        own_cpu_percent: vitals.own_share.map(|share| (share * 10_000.0).round() / 100.0),
        problems,
    };
    (!stuck, health)
}

/// Asks the agent at `address` for its health, without any of the machinery above: it runs in a fresh process every
/// few seconds.
///
/// # Errors
/// When there is no answer, or not a good one.
pub fn ask(address: SocketAddr) -> anyhow::Result<String> {
    use anyhow::{Context as _, bail};
    use std::io::{Read as _, Write as _};

    let mut target = address;
    if target.ip().is_unspecified() {
        target.set_ip(if target.is_ipv4() {
            [127, 0, 0, 1].into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    let patience = Duration::from_secs(20);
    let mut stream = std::net::TcpStream::connect_timeout(&target, patience)
        .with_context(|| format!("no agent answers at {target}"))?;
    stream.set_read_timeout(Some(patience))?;
    write!(stream, "GET /healthz HTTP/1.0\r\nHost: {target}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(64 * 1_024).read_to_string(&mut answer).context("the agent's answer broke off")?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    if answer.split(' ').nth(1) != Some("200") {
        bail!("the agent is not well: {body}");
    }
    Ok(body)
}
