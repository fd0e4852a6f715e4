//! Where news come from: one question a second, the journal's events, and what is looked at closely.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use swarmguard_common::{
    api::{ContainerStatus, Explanation, Overview, Plan},
    journal::Entry,
};
use tokio::sync::{mpsc, watch};

use super::model::{Change, Page};
use crate::{
    coordinator::Coordinator,
    engine::http::escape,
    failure::{Failure, Outcome},
};

/// Before the coordinator is asked again for its events.
const RETRY: Duration = Duration::from_secs(1);

/// What came.
#[derive(Debug)]
pub enum News {
    /// The swarm at a glance.
    Overview(Box<Overview>),
    /// It is as it was.
    Unchanged,
    /// Nothing came.
    Trouble(String),
    /// An entry of the journal.
    Entry(Box<Entry>),
    /// What is looked at closely.
    Detail(Page, Vec<ContainerStatus>, Option<Box<Explanation>>),
    /// What a change would do, or why it cannot be done.
    Planned(Result<String, String>),
    /// What became of a change.
    Made(Result<String, String>),
}

/// Asks again and again, until nobody listens.
pub async fn ask(
    coordinator: Arc<Coordinator>,
    every: Duration,
    page: watch::Receiver<Option<Page>>,
    news: mpsc::Sender<News>,
) {
    let mut tag: Option<String> = None;
    loop {
        let answer = coordinator.get_if_changed("/api/v1/overview", tag.as_deref()).await;
        let told = match answer {
            Ok(Some((body, new))) => match serde_json::from_slice(&body) {
                Ok(overview) => {
                    tag = new;
                    News::Overview(Box::new(overview))
                }
                Err(error) => News::Trouble(format!("the answer is not understood: {error}")),
            },
            Ok(None) => News::Unchanged,
            Err(failure) => News::Trouble(failure.what),
        };
        if news.send(told).await.is_err() {
            return;
        }
        let looked_at = page.borrow().clone();
        if let Some(page) = looked_at
            && let Ok(Some(detail)) = detail(&coordinator, page).await
            && news.send(detail).await.is_err()
        {
            return;
        }
        let mut changed = page.clone();
        changed.mark_unchanged();
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            // What is looked at is shown at once.
            _ = changed.changed() => {}
        }
    }
}

async fn detail(coordinator: &Coordinator, page: Page) -> Outcome<Option<News>> {
    match &page {
        Page::Service(name) => {
            let name = escape(name);
            let containers = coordinator.get(&format!("/api/v1/containers?service={name}")).await?;
            let explanation = coordinator.get(&format!("/api/v1/explain?service={name}")).await?;
            Ok(Some(News::Detail(page, containers, Some(Box::new(explanation)))))
        }
        Page::Node(_) => {
            let containers = coordinator.get("/api/v1/containers").await?;
            Ok(Some(News::Detail(page, containers, None)))
        }
        Page::Action(_) | Page::Help => Ok(None),
    }
}

/// Follows the journal, from its newest entries on.
pub async fn follow(coordinator: Arc<Coordinator>, news: mpsc::Sender<News>) {
    let mut last = 0;
    if let Ok(newest) = coordinator.get::<Vec<Entry>>("/api/v1/journal?limit=200").await {
        for entry in newest {
            last = last.max(entry.id);
            if news.send(News::Entry(Box::new(entry))).await.is_err() {
                return;
            }
        }
    }
    loop {
        if let Ok(mut events) = coordinator.events(&format!("/api/v1/events?since={last}")).await {
            while let Some(event) = events.next().await {
                let Ok(entry) = serde_json::from_str::<Entry>(&event.data) else { continue };
                last = last.max(entry.id);
                if news.send(News::Entry(Box::new(entry))).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Asks what a change would do.
pub async fn plan(coordinator: &Coordinator, change: &Change) -> News {
    let path = format!("{}?dry_run=true", change.command);
    let answer = coordinator.command(&path, &change.body).await;
    News::Planned(answer.map_err(said).and_then(|value| {
        serde_json::from_value::<Plan>(value).map(|plan| plan.text).map_err(|error| error.to_string())
    }))
}

/// Makes a change.
pub async fn make(coordinator: &Coordinator, change: &Change) -> News {
    let answer = coordinator.command(change.command, &change.body).await;
    let text = |value: Value| value["text"].as_str().unwrap_or("taken").to_owned();
    News::Made(answer.map(text).map_err(said))
}

fn said(failure: Failure) -> String {
    match failure.needs.as_ref().or(failure.hint.as_ref()) {
        Some(hint) => format!("{failure}; {hint}"),
        None => failure.to_string(),
    }
}

/// Everything at once, for a single picture.
///
/// # Errors
/// When the coordinator does not answer.
pub async fn once(coordinator: &Coordinator) -> Outcome<(Overview, Vec<Entry>)> {
    let mut entries: Vec<Entry> = coordinator.get("/api/v1/journal?limit=200").await?;
    entries.sort_by_key(|entry| entry.id);
    Ok((coordinator.get("/api/v1/overview").await?, entries))
}
