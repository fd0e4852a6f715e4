//! Who is notified, and a test of a channel. Each coordinator answers for itself: messages wait where they were written.

use axum::{
    Extension, Json,
    extract::{Request, State},
    http::{StatusCode, Uri},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use swarmguard_common::api::NotifyChannel;

use super::{
    Api, Via,
    commands::{object, whole},
    problem::Problem,
    read::{Nothing, query},
};

pub(super) async fn list(State(api): State<Api>, uri: Uri) -> Result<Json<Vec<NotifyChannel>>, Problem> {
    let Nothing {} = query(&uri)?;
    Ok(Json(api.0.journal.notify().map(crate::notify::Notify::list).unwrap_or_default()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    channel: String,
}

/// The receiver took it.
#[derive(Serialize)]
pub(super) struct Tested {
    channel: String,
    sent: bool,
}

pub(super) async fn test(
    State(api): State<Api>,
    via: Option<Extension<Via>>,
    request: Request,
) -> Result<Json<Tested>, Problem> {
    let (head, body) = request.into_parts();
    let by = api.operator(via.as_ref().map(|Extension(via)| via), &head.headers).await?;
    let Nothing {} = query(&head.uri)?;
    let fields = object(&head.headers, &whole(body).await?)?;
    let Which { channel } = serde_json::from_value(Value::Object(fields))
        .map_err(|error| Problem::bad_request("bad_body", error.to_string()))?;
    let shown: String = channel.chars().take(80).collect();
    let sent = match api.0.journal.notify() {
        Some(notify) => notify.test(&channel, &by).await,
        None => None,
    };
    match sent {
        Some(Ok(())) => Ok(Json(Tested { channel, sent: true })),
        Some(Err(why)) => {
            let detail = format!("channel {shown:?} did not take the message: {why}");
            Err(Problem::new(StatusCode::BAD_GATEWAY, "not_taken", detail))
        }
        None => {
            let detail = format!("there is no channel {shown:?}: swarmguard notify ls lists them");
            Err(Problem::new(StatusCode::NOT_FOUND, "unknown_channel", detail))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    toml: String,
}

/// What a file would have us tell.
#[derive(Serialize)]
pub(super) struct Checked {
    channels: Vec<Named>,
}

/// A channel without what is secret.
#[derive(Serialize)]
struct Named {
    name: String,
    kind: &'static str,
}

/// Reads a file of channels and says what is wrong with it; nothing is changed or kept.
pub(super) async fn check(
    State(api): State<Api>,
    via: Option<Extension<Via>>,
    request: Request,
) -> Result<Json<Checked>, Problem> {
    let (head, body) = request.into_parts();
    api.operator(via.as_ref().map(|Extension(via)| via), &head.headers).await?;
    let Nothing {} = query(&head.uri)?;
    let fields = object(&head.headers, &whole(body).await?)?;
    let File { toml } = serde_json::from_value(Value::Object(fields))
        .map_err(|_| Problem::bad_request("bad_body", "the body is {\"toml\": \"the file\"}"))?;
    let settings = crate::notify::settings::Settings::parse(&toml)
        .map_err(|why| Problem::bad_request("bad_channels", why.to_string()))?;
    let named = |channel: &crate::notify::settings::Channel| Named {
        name: channel.name.clone(),
        kind: channel.receiver.word(),
    };
    Ok(Json(Checked { channels: settings.channels.iter().map(named).collect() }))
}
