//! The swarm at a glance, its health, its last minutes, and where Prometheus is to scrape. Nothing here asks the loop
//! more often than once a second, however many ask.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use swarmguard_common::{
    api::{Balancers, Health, Overview, Series, SeriesOf, TargetGroup, Targets},
    time::Time,
};
use swarmguard_runtime::clock;

use super::{
    Api,
    commands::find_node,
    problem::Problem,
    read::{Nothing, query},
};

/// Port of the agents' figures.
const AGENT_PORT: u16 = 8082;
/// The placement is made anew after this time.
const PLACEMENT_FRESH: Duration = Duration::from_secs(1);

/// An answer that many are given.
#[derive(Clone, Debug)]
struct Tagged {
    body: Bytes,
    tag: HeaderValue,
}

/// Answers that were made lately.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// By the moment of the overview.
    overview: Mutex<Option<(u64, Tagged)>>,
    placement: Mutex<Option<(Time, Tagged)>>,
}

impl Tagged {
    /// `news` is what a client that has it already needs not be sent.
    fn of(answer: &impl Serialize, news: &impl Serialize) -> Self {
        let digest = Sha256::digest(json(news));
        let tag: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let tag = HeaderValue::from_str(&format!("W/\"{tag}\"")).unwrap_or(HeaderValue::from_static("*"));
        Self { body: json(answer).into(), tag }
    }

    fn answer(self, asked: &HeaderMap) -> Response {
        let has_it = asked.get_all(header::IF_NONE_MATCH).iter().any(|value| {
            let tags = value.to_str().unwrap_or_default().split(',');
            tags.map(str::trim).any(|tag| tag == "*" || tag.as_bytes() == self.tag.as_bytes())
        });
        let headers =
            [(header::ETAG, self.tag), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
        if has_it {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        let kind = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        (headers, kind, self.body).into_response()
    }
}

/// Maps of ours have text as keys and numbers are finite, so this does not fail.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn early() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "the coordinator has just started, try again")
}

impl Api {
    fn newest(&self) -> Result<Arc<Overview>, Problem> {
        self.0.glance.newest().ok_or_else(early)
    }
}

pub(super) async fn overview(
    State(api): State<Api>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let Nothing {} = query(&uri)?;
    let newest = api.newest()?;
    let mut made = api.0.made.overview.lock().unwrap_or_else(PoisonError::into_inner);
    let tagged = match &*made {
        Some((at, tagged)) if *at == newest.at_ms => tagged.clone(),
        _ => {
            let tagged = Tagged::of(&*newest, &newest.without_ages());
            *made = Some((newest.at_ms, tagged.clone()));
            tagged
        }
    };
    drop(made);
    Ok(tagged.answer(&headers))
}

pub(super) async fn placement(
    State(api): State<Api>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let Nothing {} = query(&uri)?;
    let made = || api.0.made.placement.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = made().clone();
    if let Some((at, tagged)) = kept
        && clock::now().since(at) < PLACEMENT_FRESH
    {
        return Ok(tagged.answer(&headers));
    }
    let placement = api.ask(|brain, facts| brain.placement(facts.now)).await?;
    let tagged = Tagged::of(&placement, &placement);
    *made() = Some((clock::now(), tagged.clone()));
    Ok(tagged.answer(&headers))
}

pub(super) async fn health(State(api): State<Api>, uri: Uri) -> Result<Json<Health>, Problem> {
    let Nothing {} = query(&uri)?;
    Ok(Json(api.newest()?.health.clone()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    node: Option<String>,
    service: Option<String>,
}

pub(super) async fn series(State(api): State<Api>, uri: Uri) -> Result<Json<Series>, Problem> {
    let of = match query(&uri)? {
        Whose { node: Some(node), service: None } => SeriesOf::Node(api.node(node).await?),
        Whose { node: None, service: Some(service) } => SeriesOf::Service(api.service(service).await?),
        Whose { .. } => {
            let detail = "name one of the two: ?node=<ID or host name> or ?service=<ID or name>";
            return Err(Problem::bad_request("bad_query", detail));
        }
    };
    api.0.glance.series(of).map(Json).ok_or_else(early)
}

pub(super) async fn balancers(State(api): State<Api>, uri: Uri) -> Result<Json<Balancers>, Problem> {
    let Nothing {} = query(&uri)?;
    Ok(Json((*api.0.glance.balancers()).clone()))
}

/// In the form of Prometheus' `http_sd_configs`.
pub(super) async fn targets(State(api): State<Api>, uri: Uri) -> Result<Json<Targets>, Problem> {
    let Nothing {} = query(&uri)?;
    let port = api.0.forward.as_ref().map_or(super::PORT, |forward| forward.port);
    let nodes = api.ask(|_, facts| {
        let snapshot = facts.snapshot.as_ref();
        let nodes = snapshot.into_iter().flat_map(|snapshot| snapshot.nodes.values());
        let found = nodes.filter_map(|node| Some((node.address?, node.hostname.clone(), node.manager)));
        found.collect::<Vec<(IpAddr, String, bool)>>()
    });
    let group = |address: IpAddr, port: u16, job: &str, node: &str| TargetGroup {
        targets: vec![std::net::SocketAddr::new(address, port).to_string()],
        labels: BTreeMap::from([("job".into(), job.into()), ("node".into(), node.into())]),
    };
    let mut all = Vec::new();
    for (address, hostname, manager) in nodes.await? {
        all.push(group(address, AGENT_PORT, "swarmguard-agent", &hostname));
        if manager {
            all.push(group(address, port, "swarmguard-coordinator", &hostname));
        }
    }
    Ok(Json(all))
}

impl Api {
    /// A node by ID or by host name.
    pub(super) async fn node(&self, wanted: String) -> Result<swarmguard_common::domain::NodeId, Problem> {
        let shown: String = wanted.chars().take(80).collect();
        let found = self.ask(move |_, facts| find_node(facts, &wanted)).await??;
        found.and_then(|id| id.parse().ok()).ok_or_else(|| {
            Problem::new(
                StatusCode::NOT_FOUND,
                "unknown_node",
                format!("no node has the ID or host name {shown:?}"),
            )
        })
    }
}
