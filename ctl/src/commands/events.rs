//! `events`: the journal, what is there and what comes.

use std::time::Duration;

use swarmguard_common::{
    api::Overview,
    journal::{Entry, Kind},
};

use super::{known_node, known_service, line};
use crate::{
    cli::EntryKind,
    coordinator::Coordinator,
    engine::http::escape,
    failure::{Exit, Outcome},
    out::{Style, Tone, clean, document, for_programs, time_of_day},
    session::Session,
};

/// Between two attempts to hear more, when the coordinator is away.
const RETRY: Duration = Duration::from_secs(1);

/// Which entries.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Go on with what comes.
    pub follow: bool,
    /// How far back.
    pub since: Option<Duration>,
    /// How many at most.
    pub limit: u16,
    /// Kinds; all where empty.
    pub kinds: Vec<EntryKind>,
    /// Of one service.
    pub service: Option<String>,
    /// Of one node.
    pub node: Option<String>,
}

impl From<EntryKind> for Kind {
    fn from(kind: EntryKind) -> Self {
        match kind {
            EntryKind::Alert => Self::Alert,
            EntryKind::Decision => Self::Decision,
            EntryKind::Refusal => Self::Refusal,
            EntryKind::Action => Self::Action,
            EntryKind::Lease => Self::Lease,
            EntryKind::Notice => Self::Notice,
            EntryKind::Operator => Self::Operator,
        }
    }
}

/// What is asked for, with names checked.
struct Filter {
    kinds: Vec<Kind>,
    service: Option<String>,
    node: Option<String>,
}

impl Filter {
    fn lets(&self, entry: &Entry) -> bool {
        let node = |node: &String| {
            let named = [&entry.node, &entry.target];
            named.iter().any(|id| id.as_ref().is_some_and(|id| id.as_str() == node))
        };
        (self.kinds.is_empty() || self.kinds.contains(&entry.kind))
            && self.service.as_ref().is_none_or(|name| entry.service_name.as_ref() == Some(name))
            && self.node.as_ref().is_none_or(node)
    }
}

/// Prints them.
pub async fn events(session: &Session, wanted: Wanted) -> Outcome<Exit> {
    let overview = session.overview().await?;
    let coordinator = session.coordinator().await?;
    let service = wanted.service.as_deref().map(|name| known_service(&overview, name)).transpose()?;
    let node = wanted.node.as_deref().map(|name| known_node(&overview, name)).transpose()?;
    let node = node.and_then(|host| overview.nodes.iter().find(|node| node.hostname == host));
    let filter = Filter {
        kinds: wanted.kinds.iter().map(|kind| Kind::from(*kind)).collect(),
        service,
        node: node.map(|node| node.node.to_string()),
    };
    let mut path = "/api/v1/journal?limit=1000".to_owned();
    if let Some(service) = &filter.service {
        path += &format!("&service={}", escape(service));
    }
    let all: Vec<Entry> = coordinator.get(&path).await?;
    let last = all.iter().map(|entry| entry.id).max().unwrap_or(0);
    let mut entries: Vec<&Entry> = all.iter().filter(|entry| filter.lets(entry)).collect();
    if let Some(since) = wanted.since {
        let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        entries.retain(|entry| entry.at_ms + since_ms >= overview.at_ms);
    }
    entries.sort_by_key(|entry| entry.id);
    let skip = entries.len().saturating_sub(wanted.limit.into());
    if !wanted.follow {
        let values = serde_json::to_value(&entries[skip..]).unwrap_or_default();
        if let Some(text) = for_programs(session.global.output, &document("EntryList", values))? {
            session.print(&text)?;
            return Ok(Exit::Done);
        }
    }
    for entry in &entries[skip..] {
        session.print(&shown(session, entry, &overview))?;
    }
    if wanted.follow { follow(session, coordinator, &overview, &filter, last).await } else { Ok(Exit::Done) }
}

fn shown(session: &Session, entry: &Entry, overview: &Overview) -> String {
    if session.for_people() {
        text(entry, overview, session.style) + "\n"
    } else {
        line("Entry", serde_json::to_value(entry).unwrap_or_default())
    }
}

async fn follow(
    session: &Session,
    coordinator: &Coordinator,
    overview: &Overview,
    filter: &Filter,
    mut last: u64,
) -> Outcome<Exit> {
    loop {
        let mut events = match coordinator.events(&format!("/api/v1/events?since={last}")).await {
            Ok(events) => events,
            Err(failure) if failure.exit == Exit::Unreachable => {
                session.note(&format!("{failure}; trying again"));
                tokio::time::sleep(RETRY).await;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = tokio::signal::ctrl_c() => return Ok(Exit::Done),
            };
            let Some(event) = event else { break };
            let Ok(entry) = serde_json::from_str::<Entry>(&event.data) else {
                session.note(&format!("entries are missing here: {}", event.data));
                continue;
            };
            last = entry.id;
            if filter.lets(&entry) {
                session.print(&shown(session, &entry, overview))?;
            }
        }
        session.note("the coordinator went away; going on when it is back");
        tokio::time::sleep(RETRY).await;
    }
}

/// One line for people.
pub fn text(entry: &Entry, overview: &Overview, style: Style) -> String {
    let (word, tone) = kind_word(entry.kind);
    let host = |id: &str| {
        let node = overview.nodes.iter().find(|node| node.node.as_str() == id);
        node.map_or_else(|| id.to_owned(), |node| node.hostname.clone())
    };
    let service = entry.service_name.clone().unwrap_or_default();
    let place = match (&entry.node, &entry.target) {
        (Some(from), Some(to)) => format!(" {} -> {}", host(from.as_str()), host(to.as_str())),
        (Some(one), None) | (None, Some(one)) => format!(" {}", host(one.as_str())),
        (None, None) => String::new(),
    };
    let about = format!("{service}{place}");
    let about = about.trim();
    let gap = if about.is_empty() { "" } else { "  " };
    format!(
        "{}  {}  {}  {}{gap}{}",
        style.paint(Tone::Dim, &time_of_day(entry.at_ms)),
        style.paint(tone, &format!("{word:<8}")),
        clean(&entry.code),
        clean(about),
        clean(&entry.text)
    )
}

/// How a kind is said.
pub fn kind_word(kind: Kind) -> (&'static str, Tone) {
    match kind {
        Kind::Alert => ("alert", Tone::Warn),
        Kind::Decision => ("decision", Tone::Good),
        Kind::Refusal => ("refusal", Tone::Warn),
        Kind::Action => ("action", Tone::Plain),
        Kind::Lease => ("lease", Tone::Dim),
        Kind::Notice => ("notice", Tone::Bad),
        Kind::Operator => ("operator", Tone::Head),
    }
}
