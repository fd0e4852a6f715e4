//! What can be read.

use axum::{
    Json,
    extract::{Query, State},
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, de::DeserializeOwned};
use swarmguard_common::{
    api::{Explanation, Status, StatusWord},
    domain::{NodeId, ServiceId},
    journal::{Entry, Kind},
    time::Time,
};
use swarmguard_core::brain::{
    ActionStatus, AlertStatus, Brain, ContainerStatus, LeaseStatus, NodeStatus, ServiceStatus,
};
use swarmguard_runtime::exposition::CONTENT_TYPE;

use super::{Api, problem::Problem};
use crate::{
    journal::{self, MAX_READ, history::ActionRow, kind_word},
    run::Facts,
};

/// Entries answered where nothing else is asked for.
const USUAL_LIMIT: usize = 100;

/// Parses the query strictly: an unknown or malformed parameter is an error, not an empty answer.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    match Query::<T>::try_from_uri(uri) {
        Ok(Query(query)) => Ok(query),
        Err(error) => Err(Problem::bad_request("bad_query", error.body_text())),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfService {
    service: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    limit: Option<usize>,
    since: Option<u64>,
    kind: Option<Kind>,
    kinds: Option<Kinds>,
    service: Option<String>,
    node: Option<String>,
    action: Option<String>,
}

/// Several kinds, comma-separated.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Kinds(Vec<Kind>);

impl TryFrom<String> for Kinds {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let of_word = |word: &str| {
            Kind::ALL.into_iter().find(|kind| kind_word(*kind) == word).ok_or_else(|| {
                let known = Kind::ALL.map(kind_word).join(", ");
                let shown: String = word.chars().take(40).collect();
                format!("kinds: {shown:?} is none of {known}")
            })
        };
        text.split(',').map(of_word).collect::<Result<_, _>>().map(Self)
    }
}

impl Kinds {
    /// Those and the one that was named apart; all where nothing was named.
    pub(super) fn with(kinds: Option<Self>, kind: Option<Kind>) -> Vec<Kind> {
        let mut all = kinds.unwrap_or_default().0;
        all.extend(kind);
        all.sort();
        all.dedup();
        all
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    limit: Option<usize>,
}

fn limit(wanted: Option<usize>) -> Result<usize, Problem> {
    match wanted {
        None => Ok(USUAL_LIMIT),
        Some(wanted) if (1..=MAX_READ).contains(&wanted) => Ok(wanted),
        Some(wanted) => {
            Err(Problem::bad_request("bad_query", format!("limit={wanted}: 1 to {MAX_READ} are allowed")))
        }
    }
}

/// Largest number of an entry that may be named: beyond it JSON's readers lose digits.
const MAX_ENTRY: u64 = (1 << 53) - 1;

/// The number of the entry after which to begin.
pub(super) fn after(since: Option<u64>) -> Result<Option<u64>, Problem> {
    match since {
        Some(since) if since > MAX_ENTRY => {
            Err(Problem::bad_request("bad_query", format!("since={since}: 0 to {MAX_ENTRY} are allowed")))
        }
        since => Ok(since),
    }
}

/// Longest token of an action that is looked for; real ones have a few dozen characters.
const MAX_TOKEN: usize = 256;

/// The token of the action whose entries are wanted.
fn token(action: Option<String>) -> Result<Option<String>, Problem> {
    match action {
        Some(action) if action.chars().count() > MAX_TOKEN => Err(Problem::bad_request(
            "bad_query",
            format!("action: at most {MAX_TOKEN} characters are allowed"),
        )),
        action => Ok(action),
    }
}

impl Api {
    async fn list<T: Send + 'static>(
        &self,
        uri: &Uri,
        of: impl FnOnce(&Brain, Time) -> Vec<T> + Send + 'static,
    ) -> Result<Json<Vec<T>>, Problem> {
        let Nothing {} = query(uri)?;
        Ok(Json(self.ask(move |brain, facts| of(brain, facts.now)).await?))
    }

    /// A service by ID or by name.
    pub(super) async fn service(&self, wanted: String) -> Result<ServiceId, Problem> {
        let shown: String = wanted.chars().take(80).collect();
        self.ask(move |_, facts| find_service(facts, &wanted)).await?.ok_or_else(|| {
            Problem::new(
                StatusCode::NOT_FOUND,
                "unknown_service",
                format!("no service has the ID or name {shown:?}"),
            )
        })
    }

    pub(super) async fn filter(&self, service: Option<String>) -> Result<Option<ServiceId>, Problem> {
        match service {
            None => Ok(None),
            // One that is gone still has entries under its ID.
            Some(wanted) => match self.service(wanted.clone()).await {
                Ok(service) => Ok(Some(service)),
                Err(problem) => wanted.parse().map(Some).map_err(|_| problem),
            },
        }
    }
}

impl Api {
    /// A node by name, or by an ID that may be gone.
    pub(super) async fn node_filter(&self, node: Option<String>) -> Result<Option<NodeId>, Problem> {
        match node {
            None => Ok(None),
            Some(wanted) => match self.node(wanted.clone()).await {
                Ok(node) => Ok(Some(node)),
                Err(problem) => wanted.parse().map(Some).map_err(|_| problem),
            },
        }
    }
}

pub(super) fn find_service(facts: &Facts, wanted: &str) -> Option<ServiceId> {
    let snapshot = facts.snapshot.as_ref()?;
    let by_id = wanted.parse().ok().filter(|id| snapshot.services.contains_key(id));
    by_id.or_else(|| {
        snapshot.services.values().find(|service| service.name == wanted).map(|one| one.id.clone())
    })
}

pub(super) async fn nodes(State(api): State<Api>, uri: Uri) -> Result<Json<Vec<NodeStatus>>, Problem> {
    api.list(&uri, Brain::nodes).await
}

pub(super) async fn services(State(api): State<Api>, uri: Uri) -> Result<Json<Vec<ServiceStatus>>, Problem> {
    api.list(&uri, Brain::services).await
}

pub(super) async fn leases(State(api): State<Api>, uri: Uri) -> Result<Json<Vec<LeaseStatus>>, Problem> {
    api.list(&uri, Brain::leases).await
}

pub(super) async fn alerts(State(api): State<Api>, uri: Uri) -> Result<Json<Vec<AlertStatus>>, Problem> {
    api.list(&uri, Brain::alerts).await
}

pub(super) async fn actions(State(api): State<Api>, uri: Uri) -> Result<Json<Vec<ActionStatus>>, Problem> {
    api.list(&uri, Brain::actions).await
}

pub(super) async fn containers(
    State(api): State<Api>,
    uri: Uri,
) -> Result<Json<Vec<ContainerStatus>>, Problem> {
    let OfService { service } = query(&uri)?;
    let service = api.filter(service).await?;
    let mut found = api.ask(|brain, facts| brain.containers(facts.now)).await?;
    if service.is_some() {
        found.retain(|container| container.service == service);
    }
    Ok(Json(found))
}

pub(super) async fn explain(State(api): State<Api>, uri: Uri) -> Result<Json<Explanation>, Problem> {
    let OfService { service } = query(&uri)?;
    let wanted =
        service.ok_or_else(|| Problem::bad_request("bad_query", "name a service: ?service=<ID or name>"))?;
    let service = api.service(wanted).await?;
    let found = api.ask(move |brain, facts| brain.explain(facts.now, &service)).await?;
    found
        .map(Json)
        .ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "unknown_service", "nothing is known of it yet"))
}

type Entries = Json<Vec<Entry>>;

async fn entries(api: &Api, query: journal::Query) -> Entries {
    Json(api.0.journal.read(query).await.into_iter().map(std::sync::Arc::unwrap_or_clone).collect())
}

pub(super) async fn journal(State(api): State<Api>, uri: Uri) -> Result<Entries, Problem> {
    let Page { limit: wanted, since, kind, kinds, service, node, action } = query(&uri)?;
    let (service, node) = (api.filter(service).await?, api.node_filter(node).await?);
    let kinds = Kinds::with(kinds, kind);
    let query = journal::Query {
        since: after(since)?,
        limit: limit(wanted)?,
        kinds,
        service,
        node,
        action: token(action)?,
    };
    Ok(entries(&api, query).await)
}

/// Decisions to act and decisions not to.
pub(super) async fn decisions(State(api): State<Api>, uri: Uri) -> Result<Entries, Problem> {
    let Page { limit: wanted, since, kind, kinds, service, node, action } = query(&uri)?;
    let mut kinds = Kinds::with(kinds, kind);
    if kinds.iter().any(|kind| !matches!(kind, Kind::Decision | Kind::Refusal)) {
        return Err(Problem::bad_request("bad_query", "kind: decision or refusal are allowed"));
    }
    if kinds.is_empty() {
        kinds = vec![Kind::Decision, Kind::Refusal];
    }
    let (service, node) = (api.filter(service).await?, api.node_filter(node).await?);
    let query = journal::Query {
        since: after(since)?,
        limit: limit(wanted)?,
        kinds,
        service,
        node,
        action: token(action)?,
    };
    Ok(entries(&api, query).await)
}

/// Actions that were, newest first, with their steps and the time that users waited.
pub(super) async fn history(State(api): State<Api>, uri: Uri) -> Result<Json<Vec<ActionRow>>, Problem> {
    let Limit { limit: wanted } = query(&uri)?;
    Ok(Json(api.0.journal.actions(limit(wanted)?)))
}

async fn own_status(api: &Api) -> Result<Status, Problem> {
    api.ask(|brain, facts| Status {
        status: if facts.is_blind() {
            StatusWord::Blind
        } else if facts.trouble.is_some() || brain.turn().is_nobodys() {
            StatusWord::Degraded
        } else {
            StatusWord::Ok
        },
        version: env!("CARGO_PKG_VERSION").into(),
        acting: brain.is_acting(),
        turn: brain.turn_text(),
        leader: facts.leader_host(),
        snapshot_age_ms: facts.snapshot_age().map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        trouble: facts.trouble.clone(),
        statistics: brain.statistics(),
    })
    .await
}

pub(super) async fn status(State(api): State<Api>, uri: Uri) -> Result<Json<Status>, Problem> {
    let Nothing {} = query(&uri)?;
    Ok(Json(own_status(&api).await?))
}

/// 200 as long as the loop answers, whatever the status says: this is what Swarm restarts the coordinator by, and a
/// restart makes no engine readable. Who wants to be told looks at the word, or at the metric `blind`.
pub(super) async fn healthz(State(api): State<Api>) -> Result<Json<serde_json::Value>, Problem> {
    // Anybody may ask, so nothing more is told; the rest is in `status`.
    let status = own_status(&api).await?.status;
    Ok(Json(serde_json::json!({"status": status})))
}

/// The API's description (OpenAPI 3.1).
pub(super) const OPENAPI: &str = include_str!("../../openapi.json");

pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

pub(super) async fn metrics(State(api): State<Api>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], api.0.metrics.text()).into_response()
}
