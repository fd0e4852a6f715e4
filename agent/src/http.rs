//! The HTTP interface: `GET /metrics/containers` (JSON), `/metrics` and `/metrics/detail` (Prometheus), `/healthz`.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use swarmguard_common::time::Time;
use swarmguard_runtime::{
    clock,
    exposition::CONTENT_TYPE,
    health::Health as Verdict,
    http::{Asker, serve_figures},
    token::Token,
};

use crate::{metrics, sampler::Vitals, uplink::Shared};

/// Without a tick for this long the agent is not well.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// What this program is called where health checks ask for it.
pub const HEALTH_NAME: &str = "agent";
/// A wrong token is answered this much later, so that guessing is slow.
const GUESS_DELAY: Duration = Duration::from_millis(300);
/// Least time between two lines in the log about refusals.
const LOG_PAUSE: Duration = Duration::from_secs(10);

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

/// Who is answered besides processes on this node itself.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Whoever shows this token.
    pub token: Option<Token>,
    /// Everybody.
    pub open: bool,
}

/// All routes.
pub fn router(served: Served, access: Access) -> Router {
    let text = |write: Write| get(prometheus).with_state((served.clone(), write, Arc::default()));
    let (summary, detail) = (text(metrics::summary), text(metrics::containers));
    let guard = middleware::from_fn_with_state((access, Arc::default()), guard);
    Router::new()
        .route("/metrics/containers", get(containers))
        .route("/healthz", get(healthz))
        .with_state(served)
        .route("/metrics", summary)
        .route("/metrics/detail", detail)
        .layer(guard)
}

/// Serves until the process ends.
pub async fn serve(listener: tokio::net::TcpListener, served: Served, access: Access) {
    serve_figures(listener, TowerToHyperService::new(router(served, access))).await;
}

/// When a refusal was logged last.
type Logged = Arc<Mutex<Option<Time>>>;

/// What is read tells names and loads, and so is for this node itself and for whoever has the token. A page of somebody
/// else's that makes a browser on this node call us by its own name (DNS rebinding) is answered nothing.
async fn guard(
    State((access, logged)): State<(Access, Logged)>,
    request: Request,
    next: Next,
) -> Result<Response, (StatusCode, &'static str)> {
    let asker = request.extensions().get::<Asker>().map(|asker| asker.0.ip().to_canonical());
    let Err(refused) = access.judge(asker, request.headers()) else { return Ok(next.run(request).await) };
    if refused == Refused::WrongToken {
        tokio::time::sleep(GUESS_DELAY).await;
    }
    let mut logged = logged.lock().unwrap_or_else(PoisonError::into_inner);
    let now = clock::now();
    if logged.is_none_or(|last| now.since(last) >= LOG_PAUSE) {
        *logged = Some(now);
        tracing::warn!(peer = ?asker, why = ?refused, "a request over HTTP was refused");
    }
    Err(refused.answer())
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// Called by a name that is not ours.
    Name,
    /// From elsewhere, without a token, or where none is set up.
    NoToken,
    /// A token that is not ours.
    WrongToken,
}

impl Refused {
    fn answer(self) -> (StatusCode, &'static str) {
        match self {
            Self::Name => {
                (StatusCode::MISDIRECTED_REQUEST, "call the agent by an address, or by localhost\n")
            }
            Self::NoToken => (
                StatusCode::UNAUTHORIZED,
                "reading from elsewhere needs the reader's token (Authorization: Bearer <token>), which the agent is \
                 given with --reader-token-file\n",
            ),
            Self::WrongToken => (StatusCode::UNAUTHORIZED, "this is not the reader's token\n"),
        }
    }
}

impl Access {
    fn judge(&self, asker: Option<IpAddr>, headers: &HeaderMap) -> Result<(), Refused> {
        if !called_by_address(headers) {
            return Err(Refused::Name);
        }
        if self.open || asker.is_some_and(|ip| ip.is_loopback()) {
            return Ok(());
        }
        match (bearer(headers), &self.token) {
            (Some(offered), Some(token)) if token.matches(offered) => Ok(()),
            (Some(_), Some(_)) => Err(Refused::WrongToken),
            _ => Err(Refused::NoToken),
        }
    }
}

fn called_by_address(headers: &HeaderMap) -> bool {
    // HTTP/1.0 knows no such header, and no browser speaks it.
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let name = name.map_or(host, |(name, _)| name);
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    bare.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
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

/// The same for Swarm's own checks.
pub fn healthcheck(served: &Served) -> Verdict {
    let (well, health) = health(served);
    Verdict { well, said: serde_json::to_string(&health).unwrap_or_else(|error| error.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_not_ours() {
        let called = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().expect("a value"));
            called_by_address(&headers)
        };
        assert!(
            ["10.0.0.1:8082", "127.0.0.1", "localhost:8082", "[::1]:8082", "[fe80::1]"].map(called)
                == [true; 5]
        );
        assert!(["evil.example:8082", "worker-1", "", "localhost.evil"].map(called) == [false; 4]);
        assert!(called_by_address(&HeaderMap::new()));
    }

    #[test]
    fn strangers_need_the_token_and_this_node_does_not() {
        let elsewhere = Some(IpAddr::from([192, 0, 2, 1]));
        let here = Some(IpAddr::from([127, 0, 0, 1]));
        let bearing = |token: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, format!("bearer {token}").parse().expect("a value"));
            headers
        };
        let closed = Access::default();
        assert_eq!(closed.judge(here, &HeaderMap::new()), Ok(()));
        assert_eq!(closed.judge(elsewhere, &HeaderMap::new()), Err(Refused::NoToken));
        assert_eq!(closed.judge(elsewhere, &bearing("anything")), Err(Refused::NoToken));
        assert_eq!(closed.judge(None, &HeaderMap::new()), Err(Refused::NoToken), "who asks is not known");
        let guarded = Access { token: Some(Token::of("a-token-to-read-with")), open: false };
        assert_eq!(guarded.judge(elsewhere, &bearing("a-token-to-read-with")), Ok(()));
        assert_eq!(guarded.judge(elsewhere, &bearing("another")), Err(Refused::WrongToken));
        let open = Access { token: None, open: true };
        assert_eq!(open.judge(elsewhere, &HeaderMap::new()), Ok(()));
        let mut misled = HeaderMap::new();
        misled.insert(header::HOST, "evil.example".parse().expect("a value"));
        assert_eq!(open.judge(here, &misled), Err(Refused::Name));
    }
}
