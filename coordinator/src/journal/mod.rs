//! The journal: every alert, decision, refusal and step, for people and programs.
//!
//! The newest entries are in memory, which the API and the event stream read; all of them go to SQLite on a thread of
//! its own, through a bounded queue. Nothing waits for the disk: when it is slow, full or broken, entries are lost to
//! it, counted and reported, and everything else goes on. No safety depends on it.

pub mod history;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc::SyncSender},
};

use swarmguard_common::{
    api::LastDay,
    domain::{NodeId, ServiceId},
    journal::{Entry, Kind},
};
use swarmguard_runtime::clock;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::{metrics::Metrics, notify::Notify};
use history::{ActionRow, History};
use writer::Job;

/// Entries kept in memory.
const RING: usize = 5_000;
/// Entries that a slow reader of the event stream may be behind before it misses some.
const LAG: usize = 1_024;
/// Entries that wait for the disk.
const QUEUE: usize = 8_192;
/// Most entries answered at once.
pub const MAX_READ: usize = 1_000;

/// Where the journal is and how large it may become.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of `journal.sqlite`; `None` keeps the journal in memory only.
    pub dir: Option<PathBuf>,
    /// Most entries on disk; the oldest go first.
    pub max_rows: u64,
    /// Most bytes on disk, indexes included.
    pub max_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { dir: None, max_rows: 500_000, max_bytes: 256 * 1024 * 1024 }
    }
}

/// Which entries are wanted.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only entries after this one, oldest first; without it the newest.
    pub since: Option<u64>,
    /// At most so many, held to 1..=[`MAX_READ`].
    pub limit: usize,
    /// Only these sorts; all where empty.
    pub kinds: Vec<Kind>,
    /// Only about this service.
    pub service: Option<ServiceId>,
    /// Only about this node, or an action that goes to it.
    pub node: Option<NodeId>,
    /// Only steps of this action.
    pub action: Option<String>,
}

impl Query {
    /// Whether an entry is wanted.
    pub fn admits(&self, entry: &Entry) -> bool {
        self.since.is_none_or(|since| entry.id > since)
            && (self.kinds.is_empty() || self.kinds.contains(&entry.kind))
            && self.service.as_ref().is_none_or(|service| entry.service.as_ref() == Some(service))
            && self
                .node
                .as_ref()
                .is_none_or(|node| entry.node.as_ref() == Some(node) || entry.target.as_ref() == Some(node))
            && self.action.as_ref().is_none_or(|action| entry.action.as_ref() == Some(action))
    }

    fn limit(&self) -> usize {
        self.limit.clamp(1, MAX_READ)
    }
}

/// The journal's front: cheap to clone, safe to share.
#[derive(Clone, Debug)]
pub struct Journal {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    memory: Mutex<Memory>,
    live: broadcast::Sender<Arc<Entry>>,
    disk: Option<SyncSender<Job>>,
    metrics: Arc<Metrics>,
    notify: OnceLock<Notify>,
}

#[derive(Debug)]
struct Memory {
    next_id: u64,
    ring: VecDeque<Arc<Entry>>,
    history: History,
}

/// What the journal has to say for itself, to be appended as notices by the loop.
pub type Notices = mpsc::Receiver<String>;

/// Opens the journal. Never fails: what cannot be opened is set aside or done without, and told through the notices.
pub fn open(settings: &Settings, metrics: Arc<Metrics>) -> (Journal, Notices) {
    let (tell, notices) = mpsc::channel(16);
    let (disk, found) = match &settings.dir {
        Some(dir) => {
            let (jobs, found) = writer::start(dir, settings, QUEUE, tell, Arc::clone(&metrics));
            (jobs, found)
        }
        None => (None, writer::Found::default()),
    };
    let memory =
        Memory { next_id: found.last_id + 1, ring: found.newest.into(), history: History::of(found.actions) };
    let live = broadcast::Sender::new(LAG);
    let notify = OnceLock::new();
    (
        Journal { shared: Arc::new(Shared { memory: Mutex::new(memory), live, disk, metrics, notify }) },
        notices,
    )
}

impl Journal {
    /// Numbers an entry and keeps it.
    pub fn append(&self, mut entry: Entry) -> Arc<Entry> {
        let shared = &*self.shared;
        let mut memory = shared.memory();
        entry.id = memory.next_id;
        memory.next_id += 1;
        let row = memory.history.fold(&entry);
        let entry = Arc::new(entry);
        if memory.ring.len() >= RING {
            memory.ring.pop_front();
        }
        memory.ring.push_back(Arc::clone(&entry));
        // Under the lock, so that stream and disk see the order of the numbers. Nobody listening is no error.
        let _ = shared.live.send(Arc::clone(&entry));
        if let Some(disk) = &shared.disk
            && disk.try_send(Job::Append(Arc::clone(&entry), row)).is_err()
        {
            shared.metrics.journal_lost.inc();
        }
        drop(memory);
        shared.metrics.journal.inc([kind_word(entry.kind)]);
        if let Some(notify) = shared.notify.get() {
            notify.offer(&entry);
        }
        entry
    }

    /// From now on people are told of entries.
    pub fn tell(&self, notify: Notify) {
        // Once in a life: channels do not change while the coordinator runs.
        let _ = self.shared.notify.set(notify);
    }

    /// Who tells people, where somebody is to be told.
    pub fn notify(&self) -> Option<&Notify> {
        self.shared.notify.get()
    }

    /// Keeps a notice of the coordinator itself.
    pub fn notice(&self, code: &str, text: String) -> Arc<Entry> {
        tracing::warn!(code, "{text}");
        self.append(Entry { at_ms: clock::wall_ms(), ..Entry::new(Kind::Notice, code, text) })
    }

    /// Entries from memory where they reach back far enough, else from disk.
    pub async fn read(&self, query: Query) -> Vec<Arc<Entry>> {
        let (found, complete) = self.recall(&query);
        let Some(disk) = self.shared.disk.as_ref().filter(|_| !complete) else { return found };
        let (answer, answered) = oneshot::channel();
        if disk.try_send(Job::Read(query, answer)).is_err() {
            return found;
        }
        match answered.await {
            Ok(Some(entries)) => entries,
            // The disk cannot be read now: what is in memory is better than nothing.
            Ok(None) | Err(_) => found,
        }
    }

    /// What memory holds, and whether that is all there is to the query.
    fn recall(&self, query: &Query) -> (Vec<Arc<Entry>>, bool) {
        let memory = self.shared.memory();
        let first = memory.ring.front().map_or(memory.next_id, |entry| entry.id);
        let matching = memory.ring.iter().filter(|entry| query.admits(entry));
        match query.since {
            Some(since) => (matching.take(query.limit()).cloned().collect(), since + 1 >= first),
            None => {
                let mut found: Vec<_> = matching.rev().take(query.limit()).cloned().collect();
                found.reverse();
                let complete = found.len() == query.limit() || first <= 1;
                (found, complete)
            }
        }
    }

    /// Entries as they come, from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Entry>> {
        self.shared.live.subscribe()
    }

    /// The number that the next entry will have.
    pub fn next_id(&self) -> u64 {
        self.shared.memory().next_id
    }

    /// Actions, newest first, at most `limit`.
    pub fn actions(&self, limit: usize) -> Vec<ActionRow> {
        self.shared.memory().history.newest(limit)
    }

    /// What was done in the 24 hours before a moment of the wall clock, and when what is under way began.
    pub fn last_day(&self, at_ms: u64) -> (LastDay, BTreeMap<String, u64>) {
        self.shared.memory().history.last_day(at_ms)
    }

    /// What was decided when this action began.
    pub fn what_of(&self, action: &str) -> Option<String> {
        self.shared.memory().history.what_of(action)
    }

    /// Waits until everything appended so far was handed to the disk.
    pub async fn flush(&self) {
        let Some(disk) = &self.shared.disk else { return };
        let (done, flushed) = oneshot::channel();
        let disk = disk.clone();
        // Blocks while the queue is full, and so not on the runtime.
        let sent = tokio::task::spawn_blocking(move || disk.send(Job::Flush(done)).is_ok()).await;
        if sent.unwrap_or(false) {
            let _ = flushed.await;
        }
    }
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The word that stands for a kind in JSON, in the database and in metrics.
pub fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Alert => "alert",
        Kind::Decision => "decision",
        Kind::Refusal => "refusal",
        Kind::Action => "action",
        Kind::Lease => "lease",
        Kind::Operator => "operator",
        Kind::Notice => "notice",
    }
}
