//! People are told: journal entries go to chats, mail and webhooks, from the coordinator that acts. At least once and in
//! order for each channel; receivers drop doubles by a message's id. What waits is in [`outbox`], how fast it is sent in
//! [`pace`], what is sent where in [`route`]. No address is ever logged or shown.

mod mail;
mod message;
mod outbox;
mod pace;
mod post;
mod route;
pub mod settings;
mod tls;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use http::{HeaderName, HeaderValue, Uri, header};
use swarmguard_common::{
    api::NotifyChannel,
    domain::ServiceId,
    journal::{Entry, Kind},
};
use swarmguard_core::swarm::Snapshot;
use swarmguard_runtime::clock;
use tokio::sync::{Mutex as Turn, Notify as Wake, oneshot};

use crate::metrics::Metrics;
use message::Message;
use outbox::{Due, Outbox, Taken};
pub use pace::MINUTE;
use pace::Pace;
use post::Refused;
use settings::{Channel, ReceiverKind, Settings};

/// Entries that wait to be written to the outbox.
const QUEUE: usize = 1_024;
/// A channel looks for messages at least so often.
const RHYTHM: Duration = Duration::from_secs(30);
/// Name of the file.
const FILE: &str = "outbox.sqlite";

/// Tells people; cheap to clone.
#[derive(Clone)]
pub struct Notify(Arc<Inner>);

struct Inner {
    channels: Vec<Arc<Line>>,
    swarm: String,
    jobs: SyncSender<Job>,
    acting: AtomicBool,
    labelled: Mutex<BTreeMap<ServiceId, String>>,
    metrics: Arc<Metrics>,
}

/// A channel and how it goes there.
struct Line {
    channel: Channel,
    /// One message at a time.
    sender: Turn<Sender>,
    wake: Wake,
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    waiting: u64,
    last_error: Option<String>,
    last_sent_ms: Option<u64>,
}

/// How a channel's messages travel.
enum Sender {
    Post { tls: Arc<rustls::ClientConfig>, uri: Uri },
    Mail(Box<mail::Server>),
}

enum Job {
    Offer(Arc<Entry>, Vec<Arc<Line>>),
    Take { line: Arc<Line>, digest: bool, answer: oneshot::Sender<Due> },
    Sent { line: Arc<Line>, batch: i64 },
}

impl std::fmt::Debug for Notify {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_list().entries(self.0.channels.iter().map(|line| &line.channel)).finish()
    }
}

/// What it is started with.
#[derive(Debug)]
pub struct Start {
    /// Channels.
    pub settings: Settings,
    /// Directory of the outbox; in memory only without one.
    pub dir: Option<PathBuf>,
    /// What the swarm is called.
    pub swarm: String,
    /// Names this coordinator in the ids of messages.
    pub origin: String,
    /// In what time at most twenty messages go to a channel; [`MINUTE`] but in tests.
    pub window: Duration,
    /// Where is counted.
    pub metrics: Arc<Metrics>,
}

impl Notify {
    /// Begins to tell, what was left over from before first.
    ///
    /// # Errors
    /// Where a channel cannot be used.
    pub fn start(start: Start) -> Result<Self, String> {
        let mut channels = Vec::new();
        for channel in start.settings.channels {
            let sender = Sender::of(&channel).map_err(|why| format!("channel {:?}: {why}", channel.name))?;
            for counted in
                [&start.metrics.notify_sent, &start.metrics.notify_failed, &start.metrics.notify_dropped]
            {
                counted.inc_by([&channel.name], 0);
            }
            channels.push(Arc::new(Line {
                channel,
                sender: Turn::new(sender),
                wake: Wake::new(),
                state: Mutex::default(),
            }));
        }
        // A life's own mark keeps ids apart where a file was lost and numbers begin anew.
        let origin = format!("{}-{}", start.origin, clock::wall_ms() / 1_000);
        let outbox = opened(start.dir, &origin);
        let (jobs, work) = sync_channel(QUEUE);
        let metrics = Arc::clone(&start.metrics);
        std::thread::Builder::new()
            .name("outbox".into())
            .spawn(move || keep(outbox, &work, &metrics))
            .map_err(|error| format!("the outbox' thread cannot be started: {error}"))?;
        let notify = Self(Arc::new(Inner {
            channels,
            swarm: start.swarm,
            jobs,
            acting: AtomicBool::new(false),
            labelled: Mutex::default(),
            metrics: start.metrics,
        }));
        for line in &notify.0.channels {
            let (inner, line, window) = (Arc::downgrade(&notify.0), Arc::clone(line), start.window);
            tokio::spawn(async move {
                let mut pace = Pace::new(window);
                while let Some(inner) = inner.upgrade() {
                    let wait = Self(inner).turn(&line, &mut pace).await;
                    let _ = tokio::time::timeout(wait, line.wake.notified()).await;
                }
            });
        }
        Ok(notify)
    }

    /// Whether this coordinator acts: only that one tells what happens, and each what is the matter with itself.
    pub fn set_acting(&self, acting: bool) {
        self.0.acting.store(acting, Relaxed);
    }

    /// Channels that services name by the label `swarmguard.notify`.
    pub fn learn(&self, snapshot: &Snapshot) {
        let named = snapshot
            .services
            .values()
            .filter_map(|service| Some((service.id.clone(), service.policy.as_ref().ok()?.notify.clone()?)));
        *locked(&self.0.labelled) = named.collect();
    }

    /// A journal entry was written.
    pub fn offer(&self, entry: &Arc<Entry>) {
        if entry.kind != Kind::Notice && !self.0.acting.load(Relaxed) {
            return;
        }
        let labelled = entry.service.as_ref().and_then(|id| locked(&self.0.labelled).get(id).cloned());
        let minute = u32::try_from(clock::wall_ms() / 60_000 % 1_440).unwrap_or(0);
        let told = |line: &&Arc<Line>| route::goes_to(&line.channel, entry, labelled.as_deref(), minute);
        let lines: Vec<Arc<Line>> = self.0.channels.iter().filter(told).cloned().collect();
        if lines.is_empty() {
            return;
        }
        if let Err(full) = self.0.jobs.try_send(Job::Offer(Arc::clone(entry), lines))
            && let std::sync::mpsc::TrySendError::Full(job) | std::sync::mpsc::TrySendError::Disconnected(job) =
                full
            && let Job::Offer(_, lines) = job
        {
            for line in lines {
                self.0.metrics.notify_dropped.inc([&line.channel.name]);
            }
        }
    }

    /// The channels and how they do.
    pub fn list(&self) -> Vec<NotifyChannel> {
        let rows = self.0.channels.iter().map(|line| {
            let (name, state) = (line.channel.name.as_str(), locked(&line.state).clone());
            NotifyChannel {
                name: name.into(),
                kind: line.channel.receiver.word().into(),
                waiting: state.waiting,
                sent: self.0.metrics.notify_sent.get([name]),
                failed: self.0.metrics.notify_failed.get([name]),
                dropped: self.0.metrics.notify_dropped.get([name]),
                last_error: state.last_error,
                last_sent_ms: state.last_sent_ms,
            }
        });
        rows.collect()
    }

    /// Sends a test message to a channel now; `None` where there is no such channel.
    pub async fn test(&self, channel: &str, by: &str) -> Option<Result<(), String>> {
        let line = self.0.channels.iter().find(|line| line.channel.name == channel)?;
        let text = format!("a test of the channel {channel:?}, asked for by {by}: it works");
        let mut entry = Entry::new(Kind::Notice, "notify_test", text);
        entry.at_ms = clock::wall_ms();
        let id = format!("test-{}", entry.at_ms);
        let message = Message { id, swarm: self.0.swarm.clone(), entries: vec![(entry, 1)] };
        let sent = line.sender.lock().await.send(&line.channel, &message).await;
        Some(sent.map_err(|refused| refused.why))
    }

    /// Sends what is due, one message; answers how long there is nothing to do.
    async fn turn(&self, line: &Arc<Line>, pace: &mut Pace) -> Duration {
        let wait = pace.wait(clock::now());
        if !wait.is_zero() {
            // Also woken before: then it is asked again, which costs nothing.
            return wait;
        }
        let (answer, due) = oneshot::channel();
        let job = Job::Take { line: Arc::clone(line), digest: pace.digest(), answer };
        if self.0.jobs.try_send(job).is_err() {
            return Duration::from_secs(1);
        }
        let taken = match due.await {
            Ok(Due::Now(taken)) => taken,
            Ok(Due::At(at_ms)) => {
                return RHYTHM.min(Duration::from_millis(at_ms.saturating_sub(clock::wall_ms()).max(10)));
            }
            Ok(Due::Nothing) | Err(_) => return RHYTHM,
        };
        let Taken { batch, id, entries } = taken;
        let name = line.channel.name.as_str();
        let message = Message { id, swarm: self.0.swarm.clone(), entries };
        let sent = if message.entries.is_empty() {
            Ok(())
        } else {
            line.sender.lock().await.send(&line.channel, &message).await
        };
        match sent {
            Ok(()) => {
                pace.sent(clock::now());
                self.0.metrics.notify_sent.inc([name]);
                let mut state = locked(&line.state);
                (state.last_error, state.last_sent_ms) = (None, Some(clock::wall_ms()));
                drop(state);
                // Where the queue is full it is sent once more: receivers drop doubles.
                let _ = self.0.jobs.try_send(Job::Sent { line: Arc::clone(line), batch });
                Duration::from_millis(1)
            }
            Err(Refused { why, after, hopeless }) => {
                pace.failed(clock::now(), after, hopeless);
                self.0.metrics.notify_failed.inc([name]);
                tracing::warn!(channel = name, hopeless, "a notification was not taken: {why}");
                locked(&line.state).last_error = Some(why);
                pace.wait(clock::now())
            }
        }
    }
}

/// The file; in memory where it cannot be used.
fn opened(dir: Option<PathBuf>, origin: &str) -> Option<Outbox> {
    let path = dir.map(|dir| dir.join(FILE));
    if let Some(path) = &path {
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        match made
            .map_err(|error| error.to_string())
            .and_then(|()| Outbox::open(Some(path), origin).map_err(|error| error.to_string()))
        {
            Ok(outbox) => return Some(outbox),
            Err(error) => {
                tracing::warn!(path = %path.display(), error, "notifications wait in memory only");
            }
        }
    }
    Outbox::open(None, origin).ok()
}

/// The thread that owns the outbox; ends with the last handle.
fn keep(outbox: Option<Outbox>, work: &Receiver<Job>, metrics: &Metrics) {
    let Some(mut outbox) = outbox else {
        tracing::error!("there is no outbox: nobody is notified");
        return;
    };
    while let Ok(job) = work.recv() {
        let now_ms = clock::wall_ms();
        let failed = match job {
            Job::Offer(entry, lines) => lines.iter().find_map(|line| {
                let name = line.channel.name.as_str();
                let offered = outbox.offer(now_ms, name, &entry);
                metrics.notify_dropped.inc_by([name], *offered.as_ref().unwrap_or(&1));
                count(&outbox, line);
                line.wake.notify_one();
                offered.err()
            }),
            Job::Take { line, digest, answer } => {
                match outbox.take(now_ms, &line.channel.name, digest) {
                    Ok((due, dropped)) => {
                        metrics.notify_dropped.inc_by([&line.channel.name], dropped);
                        count(&outbox, &line);
                        // Whoever asked may have gone: it is asked for again.
                        let _ = answer.send(due);
                        None
                    }
                    Err(error) => Some(error),
                }
            }
            Job::Sent { line, batch } => {
                let sent = outbox.sent(now_ms, &line.channel.name, batch);
                count(&outbox, &line);
                line.wake.notify_one();
                sent.err()
            }
        };
        if let Some(error) = failed {
            tracing::error!(%error, "the outbox of notifications cannot be written");
        }
    }
}

fn count(outbox: &Outbox, line: &Line) {
    if let Ok(waiting) = outbox.waiting(&line.channel.name) {
        locked(&line.state).waiting = waiting;
    }
}

impl Sender {
    fn of(channel: &Channel) -> Result<Self, String> {
        if channel.receiver == ReceiverKind::Smtp {
            return Ok(Self::Mail(Box::new(mail::Server::new(channel)?)));
        }
        Ok(Self::Post { tls: tls::client(channel.ca.as_deref())?, uri: channel.target()? })
    }

    async fn send(&self, channel: &Channel, message: &Message) -> Result<(), Refused> {
        let (tls, uri) = match self {
            Self::Mail(server) => return server.send(message).await,
            Self::Post { tls, uri } => (tls, uri),
        };
        let (kind, body) = message.body(channel.receiver);
        let mut headers = vec![
            (header::CONTENT_TYPE, value(kind)),
            (HeaderName::from_static("x-swarmguard-id"), value(&message.id)),
        ];
        if let Some(secret) = channel.secret.as_deref().filter(|_| channel.receiver == ReceiverKind::Webhook)
        {
            let signed = format!("sha256={}", signature(secret, &body));
            headers.push((HeaderName::from_static("x-swarmguard-signature"), value(&signed)));
        }
        if channel.receiver == ReceiverKind::Ntfy {
            headers.push((HeaderName::from_static("title"), value(&message.title())));
            let priority = match message.severity() {
                swarmguard_common::api::Severity::Critical => "5",
                swarmguard_common::api::Severity::Warning => "4",
                swarmguard_common::api::Severity::Notice => "3",
            };
            headers.push((HeaderName::from_static("priority"), value(priority)));
            if let Some(token) = &channel.token {
                headers.push((header::AUTHORIZATION, value(&format!("Bearer {token}"))));
            }
        }
        post::post(tls, uri, headers, body).await
    }
}

/// Texts of ours are printable; what is not is left out.
fn value(text: &str) -> HeaderValue {
    let plain: String = text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').collect();
    HeaderValue::from_str(&plain).unwrap_or(HeaderValue::from_static("?"))
}

/// HMAC-SHA256 of a body, in hexadecimal digits.
fn signature(secret: &str, body: &str) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    let tag = ring::hmac::sign(&key, body.as_bytes());
    tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_signature_is_that_of_rfc_4231() {
        let wanted = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(super::signature("Jefe", "what do ya want for nothing?"), wanted);
    }
}
