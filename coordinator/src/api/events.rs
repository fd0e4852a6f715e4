//! Journal entries as they come, as server-sent events. A client that reads too slowly misses some and is told how many;
//! one that reconnects goes on where it was (`Last-Event-ID`).

use std::{collections::VecDeque, convert::Infallible, sync::Arc};

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, stream};
use serde::Deserialize;
use swarmguard_common::journal::{Entry, Kind};
use tokio::sync::{OwnedSemaphorePermit, broadcast};

use super::{Api, MAX_STREAMS, problem::Problem, read::query};
use crate::journal::{self, MAX_READ, kind_word};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    since: Option<u64>,
    kind: Option<Kind>,
}

struct Feed {
    backlog: VecDeque<Arc<Entry>>,
    live: broadcast::Receiver<Arc<Entry>>,
    last: u64,
    kind: Option<Kind>,
    _permit: OwnedSemaphorePermit,
}

pub(super) async fn stream(
    State(api): State<Api>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let Wanted { since, kind } = query(&uri)?;
    let permit = Arc::clone(&api.0.streams).try_acquire_owned().map_err(|_| {
        let detail = format!("{MAX_STREAMS} event streams are open already");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_streams", detail)
    })?;
    let resumed = match headers.get("last-event-id") {
        None => None,
        Some(value) => {
            let number = value.to_str().ok().and_then(|text| text.parse().ok());
            Some(number.ok_or_else(|| Problem::bad_request("bad_header", "Last-Event-ID is a number"))?)
        }
    };
    // Subscribed before the backlog is read, so that nothing falls between the two.
    let live = api.0.journal.subscribe();
    let since = resumed.or(since);
    let mut backlog = Vec::new();
    if since.is_some() {
        let kinds = kind.into_iter().collect();
        let query = journal::Query { since, limit: MAX_READ, kinds, ..journal::Query::default() };
        backlog = api.0.journal.read(query).await;
    }
    let last = backlog.last().map_or(since.unwrap_or(0), |entry| entry.id);
    let feed = Feed { backlog: backlog.into(), live, last, kind, _permit: permit };
    Ok(Sse::new(stream::unfold(feed, next)).keep_alive(KeepAlive::default()))
}

async fn next(mut feed: Feed) -> Option<(Result<Event, Infallible>, Feed)> {
    if let Some(entry) = feed.backlog.pop_front() {
        return Some((Ok(event(&entry)), feed));
    }
    loop {
        match feed.live.recv().await {
            Ok(entry) if entry.id <= feed.last || feed.kind.is_some_and(|kind| entry.kind != kind) => {}
            Ok(entry) => return Some((Ok(event(&entry)), feed)),
            Err(broadcast::error::RecvError::Lagged(dropped)) => {
                let event = Event::default().event("dropped").data(format!("{{\"dropped\":{dropped}}}"));
                return Some((Ok(event), feed));
            }
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

fn event(entry: &Entry) -> Event {
    let data = serde_json::to_string(entry).unwrap_or_default();
    Event::default().id(entry.id.to_string()).event(kind_word(entry.kind)).data(data)
}
