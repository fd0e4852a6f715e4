//! Commands: `POST /api/v1/commands/{migrate,scale,rollback,drain,cancel,pause,resume,observe}` with a JSON body, strictly checked.
//! Services and nodes may be named by ID or by name.

use axum::{
    Extension, Json,
    body::{Body, Bytes},
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use swarmguard_common::journal::{Entry, Kind};
use swarmguard_core::brain::{NotTaken, OperatorCommand};
use swarmguard_runtime::clock;

use super::{
    Api, MAX_BODY_BYTES, PATIENCE, Via,
    forward::Order,
    problem::Problem,
    read::{self, query},
};
use crate::run::{Busy, Facts};

pub(super) const COMMANDS: [&str; 8] =
    ["migrate", "scale", "rollback", "drain", "cancel", "pause", "resume", "observe"];

pub(super) async fn command(
    State(api): State<Api>,
    via: Option<Extension<Via>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    let via = via.as_ref().map(|Extension(via)| via);
    // Who it is comes first: of others not even the body is read.
    let by = api.operator(via, &head.headers).await?;
    if !COMMANDS.contains(&name.as_str()) {
        let detail = format!("there is no such command; known are {}", COMMANDS.join(", "));
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown_command", detail));
    }
    let Modes { dry_run } = query(&head.uri)?;
    let body = whole(body).await?;
    let fields = object(&head.headers, &body)?;
    let acts = api.ask(|brain, _| brain.leads()).await?;
    if !acts && via.is_none_or(|via| via.manager.is_none()) {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        if let Some(answer) = api.sent_on(Order { path, by: &by, body }).await {
            return answer;
        }
    }
    let (fields, acting) = api
        .ask(move |brain, facts| {
            let acting = facts.addressee(brain).map(|node| node.hostname.clone());
            (with_ids(facts, fields), acting)
        })
        .await?;
    let command = parse(&name, fields?)?;
    if dry_run {
        let answer = tokio::time::timeout(PATIENCE, api.0.handle.plan(by, command)).await;
        let plan = answer.unwrap_or(Err(Busy)).map_err(Problem::busy)?;
        return plan.map(|plan| Json(plan).into_response()).map_err(|refused| not_taken(refused, acting));
    }
    let mut entry = asked(&by, via, &name, &command);
    let answer = tokio::time::timeout(PATIENCE, api.0.handle.command(by, command)).await;
    match answer.unwrap_or(Err(Busy)).map_err(Problem::busy)? {
        Ok(accepted) => {
            entry.text.push_str(": taken");
            entry.action.clone_from(&accepted.action);
            api.0.journal.append(entry);
            Ok((StatusCode::ACCEPTED, Json(accepted)).into_response())
        }
        Err(refused) => {
            let why = format!(": refused, {} ({})", refused.text, refused.code);
            entry.text.push_str(&why);
            entry.otherwise = Some(refused.otherwise.clone());
            api.0.journal.append(entry);
            Err(not_taken(refused, acting))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Modes {
    #[serde(default)]
    dry_run: bool,
}

/// Who asked what, from where.
fn asked(by: &str, via: Option<&Via>, name: &str, command: &OperatorCommand) -> Entry {
    let fields = serde_json::to_value(command).unwrap_or_default();
    let id = |key: &str| fields.get(key).and_then(Value::as_str);
    let said: Vec<String> = fields
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| *key != "command" && !value.is_null())
        .map(|(key, value)| format!("{key}={}", value.as_str().map_or_else(|| value.to_string(), Into::into)))
        .collect();
    let from = via.map_or_else(|| "elsewhere".into(), |via| via.peer.ip().to_string());
    let mut entry =
        Entry::new(Kind::Operator, name, format!("{by} asked from {from}: {name} {}", said.join(" ")));
    entry.text.truncate(entry.text.trim_end().len());
    entry.at_ms = clock::wall_ms();
    entry.service = id("service").and_then(|id| id.parse().ok());
    entry.node = id("node").or_else(|| id("source")).and_then(|id| id.parse().ok());
    entry
}

pub(super) async fn whole(body: Body) -> Result<Bytes, Problem> {
    let Ok(read) = tokio::time::timeout(PATIENCE, axum::body::to_bytes(body, MAX_BODY_BYTES)).await else {
        return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "bad_body", "the body did not come in time"));
    };
    read.map_err(|_| {
        let detail = format!("the body is incomplete, or has more than {MAX_BODY_BYTES} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "bad_body", detail)
    })
}

pub(super) fn object(headers: &HeaderMap, body: &[u8]) -> Result<Map<String, Value>, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let detail = "the body must be application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", detail));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Problem::bad_request("bad_body", "the body must be a JSON object")),
        Err(error) => Err(Problem::bad_request("bad_body", format!("the body is not JSON: {error}"))),
    }
}

/// Replaces names by IDs.
fn with_ids(facts: &Facts, mut fields: Map<String, Value>) -> Result<Map<String, Value>, Problem> {
    for (key, value) in &mut fields {
        let Value::String(wanted) = &*value else { continue };
        let found = match key.as_str() {
            "service" => read::find_service(facts, wanted).map(|id| id.to_string()),
            "node" | "source" | "target" => find_node(facts, wanted)?,
            _ => continue,
        };
        let shown: String = wanted.chars().take(80).collect();
        let what = if key == "service" { "service" } else { "node" };
        let id = found.ok_or_else(|| {
            let detail = format!("{key}: no {what} has the ID or name {shown:?}");
            Problem::new(StatusCode::NOT_FOUND, format!("unknown_{what}"), detail)
        })?;
        *value = Value::String(id);
    }
    Ok(fields)
}

/// Host names need not be unique in a swarm.
pub(super) fn find_node(facts: &Facts, wanted: &str) -> Result<Option<String>, Problem> {
    let Some(snapshot) = &facts.snapshot else { return Ok(None) };
    if let Some(node) = snapshot.nodes.values().find(|node| node.id.as_str() == wanted) {
        return Ok(Some(node.id.to_string()));
    }
    let mut named = snapshot.nodes.values().filter(|node| node.hostname == wanted);
    let first = named.next().map(|node| node.id.to_string());
    if named.next().is_some() {
        let detail = format!("several nodes are called {wanted:?}: name one by its ID");
        return Err(Problem::new(StatusCode::CONFLICT, "ambiguous_node", detail));
    }
    Ok(first)
}

fn parse(name: &str, mut fields: Map<String, Value>) -> Result<OperatorCommand, Problem> {
    if fields.insert("command".into(), Value::String(name.into())).is_some() {
        return Err(Problem::bad_request("bad_body", "unknown field `command`: the path names the command"));
    }
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| Problem::bad_request("bad_body", error.to_string()))
}

fn not_taken(refused: NotTaken, acting: Option<String>) -> Problem {
    let status =
        if refused.code.starts_with("unknown_") { StatusCode::NOT_FOUND } else { StatusCode::CONFLICT };
    let acting = acting.filter(|_| refused.code == "not_leader");
    Problem::new(status, refused.code, refused.text).otherwise(refused.otherwise).leader(acting)
}
