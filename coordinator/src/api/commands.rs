//! Commands: `POST /api/v1/commands/{migrate,scale,rollback,drain,cancel,pause,resume,observe}` with a JSON body, strictly checked.
//! Services and nodes may be named by ID or by name.

use axum::{
    Extension, Json,
    body::{Body, Bytes},
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value};
use swarmguard_core::brain::{NotTaken, OperatorCommand};

use super::{Api, MAX_BODY_BYTES, PATIENCE, Via, problem::Problem, read};
use crate::run::{Busy, Facts};

const COMMANDS: [&str; 8] = ["migrate", "scale", "rollback", "drain", "cancel", "pause", "resume", "observe"];

pub(super) async fn command(
    State(api): State<Api>,
    via: Option<Extension<Via>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let (head, body) = request.into_parts();
    // Who it is comes first: of others not even the body is read.
    let by = api.operator(via.as_ref().map(|Extension(via)| via), &head.headers).await?;
    if !COMMANDS.contains(&name.as_str()) {
        let detail = format!("there is no such command; known are {}", COMMANDS.join(", "));
        return Err(Problem::new(StatusCode::NOT_FOUND, "unknown_command", detail));
    }
    if head.uri.query().is_some() {
        return Err(Problem::bad_request(
            "bad_query",
            "a command takes no query, its parameters stand in the body",
        ));
    }
    let fields = object(&head.headers, &whole(body).await?)?;
    let (fields, leader) = api.ask(move |_, facts| (with_ids(facts, fields), facts.leader_host())).await?;
    let command = parse(&name, fields?)?;
    let answer = tokio::time::timeout(PATIENCE, api.0.handle.command(by, command)).await;
    match answer.unwrap_or(Err(Busy)).map_err(Problem::busy)? {
        Ok(accepted) => Ok((StatusCode::ACCEPTED, Json(accepted)).into_response()),
        Err(refused) => Err(not_taken(refused, leader)),
    }
}

async fn whole(body: Body) -> Result<Bytes, Problem> {
    let Ok(read) = tokio::time::timeout(PATIENCE, axum::body::to_bytes(body, MAX_BODY_BYTES)).await else {
        return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "bad_body", "the body did not come in time"));
    };
    read.map_err(|_| {
        let detail = format!("the body is incomplete, or has more than {MAX_BODY_BYTES} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "bad_body", detail)
    })
}

fn object(headers: &HeaderMap, body: &[u8]) -> Result<Map<String, Value>, Problem> {
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
fn find_node(facts: &Facts, wanted: &str) -> Result<Option<String>, Problem> {
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

fn not_taken(refused: NotTaken, leader: Option<String>) -> Problem {
    let status =
        if refused.code.starts_with("unknown_") { StatusCode::NOT_FOUND } else { StatusCode::CONFLICT };
    let leader = leader.filter(|_| refused.code == "not_leader");
    let detail = match &leader {
        Some(leader) => format!("{}; ask the coordinator on {leader}", refused.text),
        None => refused.text,
    };
    Problem::new(status, refused.code, detail).otherwise(refused.otherwise).leader(leader)
}
