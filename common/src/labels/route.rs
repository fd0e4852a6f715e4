//! The labels `swarmguard.lb.*`: how the balancer is to treat a service.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::value::{Reader, bounded, duration, one_of, yes_or_no};

/// How a replica is picked for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// In turn.
    RoundRobin,
    /// Fewest requests in flight.
    #[default]
    Lease,
    /// Lowest weighted sum of CPU, memory and network.
    Metrics,
    /// Requests in flight x 10 + the score of [`Self::Metrics`].
    Hybrid,
    /// Hot or cold by requests in flight, then by latency (Prequal's rule).
    Hcl,
}

impl Algorithm {
    /// Every algorithm with the word that names it.
    pub const ALL: [(&'static str, Self); 5] = [
        ("round-robin", Self::RoundRobin),
        ("lease", Self::Lease),
        ("metrics", Self::Metrics),
        ("hybrid", Self::Hybrid),
        ("hcl", Self::Hcl),
    ];
}

/// What a balanced service's labels say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteLabels {
    /// `swarmguard.lb.port`: the port on which its replicas serve HTTP.
    pub port: u16,
    /// `swarmguard.lb.host`: requests for these host names, comma-separated; any where empty.
    pub hosts: Vec<String>,
    /// `swarmguard.lb.path`: requests whose path begins so; longest prefix first.
    pub path: String,
    /// `swarmguard.lb.algorithm`; the balancer's own default where `None`.
    pub algorithm: Option<Algorithm>,
    /// `swarmguard.lb.weight`: share among services that match the same host and path.
    pub weight: u32,
    /// `swarmguard.lb.sticky`: a cookie keeps a client at its replica.
    pub sticky: bool,
    /// `swarmguard.lb.health`: path of the active health check.
    pub health_path: String,
    /// `swarmguard.lb.rate`: most requests a second over all clients; no limit where `None`.
    pub rate: Option<u32>,
    /// `swarmguard.lb.client-rate`: most requests a second of one client address; no limit where `None`.
    pub client_rate: Option<u32>,
    /// `swarmguard.lb.max-in-flight`: most requests in flight at one replica.
    pub max_in_flight: u32,
    /// `swarmguard.lb.timeout`: until the first byte of the answer.
    pub timeout: Duration,
    /// `swarmguard.lb.slow-start`: over this time a new replica's share grows.
    pub slow_start: Duration,
    /// `swarmguard.lb.http2`: replicas speak HTTP/2 in clear text (gRPC).
    pub http2: bool,
    /// `swarmguard.lb.upgrade`: protocols that a connection may be upgraded to, in lower case.
    pub upgrades: Vec<String>,
}

impl RouteLabels {
    /// What holds where the labels say nothing but the port: every request, by the balancer's own algorithm.
    pub fn of_port(port: u16) -> Self {
        Self {
            port,
            hosts: Vec::new(),
            path: "/".into(),
            algorithm: None,
            weight: 1,
            sticky: false,
            health_path: "/health".into(),
            rate: None,
            client_rate: None,
            max_in_flight: 1_024,
            timeout: Duration::from_secs(60),
            slow_start: Duration::from_secs(10),
            http2: false,
            upgrades: vec!["websocket".into()],
        }
    }
}

/// Reads the labels; `None` where the service is not balanced.
pub(super) fn read(read: &mut Reader<'_>) -> Option<RouteLabels> {
    let mut port = 0;
    read.take("lb.port", |text| bounded(text, 1, u16::MAX), &mut port);
    let mut route = RouteLabels::of_port(port);
    if port == 0 {
        if read.any_left("lb.") {
            read.refuse(
                "lb.port",
                "needed by the other lb labels: the port on which replicas serve HTTP".into(),
            );
        }
        return None;
    }
    read.take("lb.host", hosts, &mut route.hosts);
    read.take("lb.path", path, &mut route.path);
    read.take("lb.algorithm", |text| one_of(text, &Algorithm::ALL).map(Some), &mut route.algorithm);
    read.take("lb.weight", |text| bounded(text, 0, 1_000), &mut route.weight);
    read.take("lb.sticky", yes_or_no, &mut route.sticky);
    read.take("lb.health", path, &mut route.health_path);
    read.take("lb.rate", |text| bounded(text, 1, 10_000_000).map(Some), &mut route.rate);
    read.take("lb.client-rate", |text| bounded(text, 1, 10_000_000).map(Some), &mut route.client_rate);
    read.take("lb.max-in-flight", |text| bounded(text, 1, 1_000_000), &mut route.max_in_flight);
    read.take("lb.timeout", |text| duration(text, 0, 86_400), &mut route.timeout);
    read.take("lb.slow-start", |text| duration(text, 0, 3_600), &mut route.slow_start);
    read.take("lb.http2", yes_or_no, &mut route.http2);
    read.take("lb.upgrade", upgrades, &mut route.upgrades);
    Some(route)
}

/// Host names as they are compared: in lower case, without the root's dot. `*.example.org` stands for every name below
/// it, `*` for every name; a `*` anywhere else would match nothing, or more than was meant.
fn hosts(text: &str) -> Result<Vec<String>, String> {
    text.split(',').map(host).collect()
}

fn host(text: &str) -> Result<String, String> {
    let lower = text.trim().to_ascii_lowercase();
    let host = lower.strip_suffix('.').unwrap_or(&lower);
    let name = host.strip_prefix("*.").unwrap_or(host);
    // Names of Swarm services have underscores, and clients within the swarm ask for them by these names.
    let part = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if host == "*" || (host.len() <= 253 && name.split('.').all(part)) {
        return Ok(host.into());
    }
    let what = if text.contains(':') {
        "which is named without a port"
    } else if text.contains('*') {
        "in which a * may only stand alone or for all that comes before the first dot"
    } else {
        "of letters, digits, - and _, with a dot between its parts"
    };
    Err(format!(
        "comma-separated host names such as www.example.org or *.example.org; {text:?} is no name {what}"
    ))
}

/// Protocols as `Upgrade` names them (RFC 9110, 7.8). Clear-text HTTP/2 is refused: what follows it would be requests
/// that nobody has looked at.
fn upgrades(text: &str) -> Result<Vec<String>, String> {
    let protocols: Vec<String> = text.split(',').map(|word| word.trim().to_ascii_lowercase()).collect();
    if protocols == ["none"] {
        return Ok(Vec::new());
    }
    let token = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/' | b'+');
    let legal = |word: &String| {
        (1..=64).contains(&word.len())
            && word.bytes().all(token)
            && !matches!(word.as_str(), "h2c" | "h2" | "none")
    };
    if protocols.len() <= 16 && protocols.iter().all(legal) {
        return Ok(protocols);
    }
    Err("none, or protocols such as websocket, comma-separated; never h2c".into())
}

fn path(text: &str) -> Result<String, String> {
    let legal =
        text.starts_with('/') && text.len() <= 1_024 && text.bytes().all(|byte| byte.is_ascii_graphic());
    if legal { Ok(text.into()) } else { Err("a path that begins with /".into()) }
}
