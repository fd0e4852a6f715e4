//! Journal entries as they come, as server-sent events. A client that reads too slowly misses some and is told how many;
//! one that reconnects goes on where it was (`Last-Event-ID`), however far back that is.

use std::{collections::VecDeque, convert::Infallible, sync::Arc};

use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, stream};
use serde::Deserialize;
use serde_json::json;
use swarmguard_common::journal::{Entry, Kind};
use swarmguard_runtime::crowd::Place;
use tokio::sync::{OwnedSemaphorePermit, broadcast};

use super::{
    Api, MAX_STREAMS, MAX_STREAMS_PER_ADDRESS, Via,
    access::Reason,
    problem::Problem,
    read::{self, Kinds, query},
};
use crate::journal::{self, Journal, MAX_READ, kind_word};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    since: Option<u64>,
    kind: Option<Kind>,
    kinds: Option<Kinds>,
    service: Option<String>,
    node: Option<String>,
}

struct Feed {
    journal: Journal,
    /// Read from the journal and not sent yet.
    backlog: VecDeque<Arc<Entry>>,
    /// Whether the journal may hold more that the client has not seen; then `live` does not count yet.
    behind: bool,
    live: broadcast::Receiver<Arc<Entry>>,
    /// Number of the newest entry that was sent, or that the client said it has.
    last: u64,
    /// The client was at a number that this journal never gave.
    elsewhere: bool,
    /// What it wants to hear of.
    wanted: journal::Query,
    _places: (OwnedSemaphorePermit, Option<Place>),
}

pub(super) async fn stream(
    State(api): State<Api>,
    via: Option<Extension<Via>>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let Wanted { since, kind, kinds, service, node } = query(&uri)?;
    let since = read::after(since)?;
    let via = via.as_ref().map(|Extension(via)| via);
    let too_many = |detail: String| {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_streams", detail);
        api.refused(via, Reason::Streams, problem)
    };
    // Of this machine's own there may be as many as there are places: its command line is nobody's attacker.
    let from = via.map(|via| via.peer.ip()).filter(|ip| !ip.is_loopback());
    let share = from.map(|from| {
        let detail = || format!("{MAX_STREAMS_PER_ADDRESS} event streams of {from} are open already");
        api.0.listeners.enter(from).ok_or_else(|| too_many(detail()))
    });
    let place = Arc::clone(&api.0.streams)
        .try_acquire_owned()
        .map_err(|_| too_many(format!("{MAX_STREAMS} event streams are open already")))?;
    let places = (place, share.transpose()?);
    let wanted = journal::Query {
        kinds: Kinds::with(kinds, kind),
        service: api.filter(service).await?,
        node: api.node_filter(node).await?,
        limit: MAX_READ,
        ..journal::Query::default()
    };
    let resumed = match headers.get("last-event-id") {
        None => None,
        Some(value) => {
            let number = value.to_str().ok().and_then(|text| text.parse().ok());
            Some(number.ok_or_else(|| Problem::bad_request("bad_header", "Last-Event-ID is a number"))?)
        }
    };
    let since = resumed.or(since);
    let journal = api.0.journal.clone();
    let newest = journal.next_id() - 1;
    let feed = Feed {
        backlog: VecDeque::new(),
        behind: since.is_some(),
        live: journal.subscribe(),
        last: since.unwrap_or(0).min(newest),
        elsewhere: since.is_some_and(|since| since > newest),
        journal,
        wanted,
        _places: places,
    };
    Ok(Sse::new(stream::unfold(feed, next)).keep_alive(KeepAlive::default()))
}

async fn next(mut feed: Feed) -> Option<(Result<Event, Infallible>, Feed)> {
    if std::mem::take(&mut feed.elsewhere) {
        return Some((Ok(dropped(None)), feed));
    }
    loop {
        if let Some(entry) = feed.backlog.pop_front() {
            feed.last = entry.id;
            return Some((Ok(event(&entry)), feed));
        }
        if feed.behind {
            feed.read_on().await;
            continue;
        }
        match feed.live.recv().await {
            Ok(entry) if entry.id <= feed.last || !feed.wanted.admits(&entry) => {}
            Ok(entry) => {
                feed.last = entry.id;
                return Some((Ok(event(&entry)), feed));
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                return Some((Ok(dropped(Some(missed))), feed));
            }
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

impl Feed {
    /// The next page of what the client has not seen. A page that is not full is the last one.
    async fn read_on(&mut self) {
        // Before the page is read, so that nothing falls between the two.
        self.live = self.journal.subscribe();
        let query = journal::Query { since: Some(self.last), ..self.wanted.clone() };
        self.backlog = self.journal.read(query).await.into();
        self.behind = self.backlog.len() == MAX_READ;
    }
}

/// Says that entries are missing here, and how many where that is known.
fn dropped(missed: Option<u64>) -> Event {
    let data = json!({"dropped": missed}).to_string();
    Event::default().event("dropped").data(data)
}

fn event(entry: &Entry) -> Event {
    let data = serde_json::to_string(entry).unwrap_or_default();
    Event::default().id(entry.id.to_string()).event(kind_word(entry.kind)).data(data)
}
