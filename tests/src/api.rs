//! A coordinator's operator API, read as an operator would: the journal above all.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt as _;
use serde_json::Value;
use swarmguard_common::journal::{Entry, Kind};
use swarmguard_common::time::Time;
use swarmguard_runtime::clock::now;
use tokio::task::JoinHandle;

use crate::http::{Endpoint, text as text_of};

const EVERY: Duration = Duration::from_millis(200);
/// Entries kept of one run.
const ENTRIES: usize = 20_000;

/// One coordinator.
#[derive(Clone, Debug)]
pub struct Coordinator {
    endpoint: Endpoint,
}

impl Coordinator {
    /// The coordinator whose API listens there.
    pub fn at(addr: SocketAddr) -> Self {
        Coordinator { endpoint: Endpoint::Tcp(addr) }
    }

    /// Does it answer, and as healthy?
    pub async fn is_healthy(&self) -> bool {
        let limit = Duration::from_secs(10);
        let answer =
            self.endpoint.call(axum::http::Method::GET, "/healthz", axum::body::Bytes::new(), limit).await;
        answer.is_ok_and(|(status, _)| status.is_success())
    }

    /// GET of a path such as `/api/v1/nodes`.
    ///
    /// # Errors
    /// Where it does not answer with 2xx and JSON.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.endpoint.get_json(path).await
    }

    /// POST of a command such as `scale`, with the operator's token; what the coordinator answers.
    ///
    /// # Errors
    /// Where it does not answer, or does not take the command; with its words.
    pub async fn command(&self, token: &str, name: &str, body: &Value) -> Result<Value> {
        let path = format!("/api/v1/commands/{name}");
        let bearer = [("authorization", format!("Bearer {token}"))];
        let answer =
            self.endpoint.send_with(axum::http::Method::POST, &path, &bearer, body.to_string().into());
        let answer = tokio::time::timeout(Duration::from_secs(30), answer);
        let answer = answer.await.with_context(|| format!("{path}: no answer"))??;
        let status = answer.status();
        let text = answer.into_body().collect().await.context("the answer broke off")?.to_bytes();
        ensure!(status.is_success(), "{path} {body}: {status}: {}", text_of(&text));
        serde_json::from_slice(&text).with_context(|| format!("{path}: the answer is no JSON"))
    }

    /// Journal entries later than `since`, oldest first, as many as the coordinator gives at once.
    ///
    /// # Errors
    /// Where it does not answer, or not with entries.
    pub async fn journal(&self, since: u64) -> Result<Vec<Entry>> {
        let answer = self.get(&format!("/api/v1/journal?since={since}")).await?;
        serde_json::from_value(answer).context("the journal's answer holds no entries")
    }
}

/// A journal entry, and when it was seen here.
#[derive(Clone, Debug)]
pub struct Heard {
    /// This process's clock.
    pub at: Time,
    /// What the journal says.
    pub entry: Entry,
}

/// Follows a coordinator's journal until dropped, across restarts of the coordinator.
#[derive(Debug)]
pub struct Journal {
    heard: Arc<Mutex<Vec<Heard>>>,
    poll: JoinHandle<()>,
}

impl Journal {
    /// Follows from now on: what is in the journal already is left out.
    ///
    /// # Errors
    /// Where the coordinator does not answer.
    pub async fn follow(coordinator: Coordinator) -> Result<Self> {
        let mut since = 0;
        while let Some(last) = coordinator.journal(since).await?.iter().map(|entry| entry.id).max() {
            since = last;
        }
        let heard = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&heard);
        let poll = tokio::spawn(async move {
            loop {
                tokio::time::sleep(EVERY).await;
                // A coordinator that is down is followed again when it is back.
                let Ok(entries) = coordinator.journal(since).await else { continue };
                let mut heard = shared.lock().unwrap_or_else(PoisonError::into_inner);
                for entry in entries {
                    since = since.max(entry.id);
                    if heard.len() < ENTRIES {
                        heard.push(Heard { at: now(), entry });
                    }
                }
            }
        });
        Ok(Journal { heard, poll })
    }

    /// What was heard so far, from the `from`th entry on.
    pub fn entries(&self, from: usize) -> Vec<Heard> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(from..).unwrap_or_default().to_vec()
    }

    /// The first entry that fits.
    pub fn find(&self, fits: impl Fn(&Entry) -> bool) -> Option<Heard> {
        self.entries(0).into_iter().find(|heard| fits(&heard.entry))
    }

    /// The first entry of a kind about a service.
    pub fn first(&self, kind: Kind, service: &str) -> Option<Heard> {
        self.find(|entry| entry.kind == kind && is_about(entry, service))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.poll.abort();
    }
}

/// Is the entry about the service of this ID or name?
pub fn is_about(entry: &Entry, service: &str) -> bool {
    entry.service.as_ref().is_some_and(|id| id.as_str() == service)
        || entry.service_name.as_deref() == Some(service)
}

/// One entry as a line for people: time of day, kind, words, then the figures.
pub fn line(entry: &Entry) -> String {
    let seconds = entry.at_ms / 1000 % 86_400;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let kind = match entry.kind {
        Kind::Alert => "alert",
        Kind::Decision => "decision",
        Kind::Refusal => "refusal",
        Kind::Action => "action",
        Kind::Lease => "lease",
        Kind::Operator => "operator",
        Kind::Notice => "notice",
    };
    let figures = figures(&entry.figures);
    format!("{hour:02}:{minute:02}:{second:02}.{:03} {kind:8} {}{figures}", entry.at_ms % 1000, entry.text)
}

fn figures(figures: &BTreeMap<String, f64>) -> String {
    if figures.is_empty() {
        return String::new();
    }
    let listed: Vec<_> = figures.iter().map(|(name, value)| format!("{name}={}", round(*value))).collect();
    format!(" [{}]", listed.join(" "))
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_readable_line() {
        let entry: Entry = serde_json::from_value(serde_json::json!({
            "id": 1, "at_ms": 3_723_004, "kind": "alert", "code": "cpu_high", "text": "cpu high at web.1",
            "service": "abc", "service_name": "web", "figures": {"cpu_percent": 91.24},
        }))
        .unwrap();
        assert_eq!(line(&entry), "01:02:03.004 alert    cpu high at web.1 [cpu_percent=91.2]");
        assert!(is_about(&entry, "web") && is_about(&entry, "abc") && !is_about(&entry, "a"));
    }
}
