//! The thread that owns the journal's file: batches what waits, and sets a broken file aside instead of stopping. A file
//! that only cannot be written for now, on a full disk for instance, stays where it is and is tried again.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    time::Duration,
};

use swarmguard_common::{journal::Entry, time::Time};
use swarmguard_runtime::clock;
use tokio::sync::{mpsc as notes, oneshot};

use super::{
    Query, RING, Settings,
    history::ActionRow,
    store::{Store, StoreError},
};
use crate::metrics::Metrics;

/// Entries in one transaction.
const BATCH: usize = 512;
/// Files set aside that are kept; the oldest go first.
const KEPT_ASIDE: usize = 2;
/// How long after a failure a new file is tried.
const RETRY: Duration = Duration::from_secs(60);
/// Name of the file.
const FILE: &str = "journal.sqlite";

/// Work for the thread.
#[derive(Debug)]
pub(super) enum Job {
    /// An entry, and its action's row where it has one.
    Append(Arc<Entry>, Option<ActionRow>),
    /// Entries are wanted; answered with `None` when there is no readable file.
    Read(Query, oneshot::Sender<Option<Vec<Arc<Entry>>>>),
    /// Answered when everything before it was written.
    Flush(oneshot::Sender<()>),
}

/// What was in the file at the start.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) last_id: u64,
    pub(super) newest: Vec<Arc<Entry>>,
    pub(super) actions: Vec<ActionRow>,
}

struct Writer {
    path: PathBuf,
    settings: Settings,
    store: Option<Store>,
    retry_at: Time,
    tell: notes::Sender<String>,
    metrics: Arc<Metrics>,
}

/// Opens the file and starts the thread; without a thread the journal is in memory only.
pub(super) fn start(
    dir: &Path,
    settings: &Settings,
    queue: usize,
    tell: notes::Sender<String>,
    metrics: Arc<Metrics>,
) -> (Option<SyncSender<Job>>, Found) {
    let mut writer = Writer {
        path: dir.join(FILE),
        settings: settings.clone(),
        store: None,
        retry_at: Time::ZERO,
        tell,
        metrics,
    };
    if let Err(error) = fs::create_dir_all(dir) {
        writer.tell(format!(
            "the journal's directory {} cannot be made: {error}; it is in memory only",
            dir.display()
        ));
    }
    writer.reopen();
    let found = writer.found();
    let (jobs, work) = mpsc::sync_channel(queue);
    let tell = writer.tell.clone();
    match std::thread::Builder::new().name("journal".into()).spawn(move || writer.run(&work)) {
        Ok(_) => (Some(jobs), found),
        Err(error) => {
            let _ = tell
                .try_send(format!("the journal's thread cannot be started: {error}; it is in memory only"));
            (None, found)
        }
    }
}

impl Writer {
    /// Until the last handle of the journal is gone.
    fn run(mut self, work: &Receiver<Job>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let first = match work.recv_timeout(RETRY) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if self.store.is_none() && clock::now() >= self.retry_at {
                self.reopen();
            }
            let mut next = first;
            while let Some(job) = next {
                match job {
                    Job::Append(entry, row) => batch.push((entry, row)),
                    Job::Read(query, answer) => {
                        self.write(&mut batch);
                        // Whoever asked may have gone.
                        let _ = answer.send(self.read(&query));
                    }
                    Job::Flush(done) => {
                        self.write(&mut batch);
                        let _ = done.send(());
                    }
                }
                next = if batch.len() < BATCH { work.try_recv().ok() } else { None };
            }
            self.write(&mut batch);
        }
    }

    fn write(&mut self, batch: &mut Vec<(Arc<Entry>, Option<ActionRow>)>) {
        if batch.is_empty() {
            return;
        }
        let lost = batch.len() as u64;
        let Some(store) = &mut self.store else {
            self.metrics.journal_lost.inc_by(lost);
            return batch.clear();
        };
        if let Err(error) = store.write(batch) {
            self.give_up(&error);
            // The new file takes what the old one did not.
            let written = self.store.as_mut().is_some_and(|store| store.write(batch).is_ok());
            if !written {
                self.metrics.journal_lost.inc_by(lost);
            }
        }
        batch.clear();
    }

    fn read(&mut self, query: &Query) -> Option<Vec<Arc<Entry>>> {
        match self.store.as_ref()?.read(query) {
            Ok(entries) => Some(entries),
            Err(error) => {
                self.give_up(&error);
                None
            }
        }
    }

    fn found(&mut self) -> Found {
        let Some(store) = &self.store else { return Found::default() };
        let newest = Query { limit: RING, ..Query::default() };
        let read = || -> Result<Found, StoreError> {
            Ok(Found {
                last_id: store.last_id()?,
                newest: store.read(&newest)?,
                actions: store.actions(RING)?,
            })
        };
        match read() {
            Ok(found) => found,
            Err(error) => {
                self.give_up(&error);
                Found::default()
            }
        }
    }

    /// Opens the file; one that is no good is set aside and a new one made.
    fn reopen(&mut self) {
        for attempt in 0..2 {
            match Store::open(&self.path, self.settings.max_rows, self.settings.max_bytes) {
                Ok(store) => {
                    self.store = Some(store);
                    return;
                }
                Err(error) if attempt == 0 && !error.is_passing() && self.path.exists() => {
                    self.set_aside(&error);
                }
                Err(error) => return self.suspend(&error),
            }
        }
    }

    /// After an error: a new file takes over from one that is no good, and one that is good is left alone for a while.
    fn give_up(&mut self, error: &StoreError) {
        if error.is_passing() {
            self.suspend(error);
        } else {
            self.set_aside(error);
            self.reopen();
        }
    }

    /// Goes on without a file, and tries the same one again later.
    fn suspend(&mut self, error: &StoreError) {
        self.store = None;
        self.retry_at = clock::now() + RETRY;
        let (path, seconds) = (self.path.display(), RETRY.as_secs());
        self.tell(format!(
            "the journal {path} cannot be used now: {error}; entries are in memory only, it is tried again in {seconds} s"
        ));
    }

    fn set_aside(&mut self, error: &StoreError) {
        // Closed first, so that the write-ahead log goes with it.
        self.store = None;
        self.metrics.journal_set_aside.inc();
        let mut aside = set_aside_files(&self.path);
        let number = aside.last().map_or(1, |(number, _)| number + 1);
        let to = suffixed(&self.path, &format!(".corrupt-{number}"));
        let shown = self.path.display();
        match fs::rename(&self.path, &to) {
            Ok(()) => self.tell(format!("the journal {shown} was set aside as {}: {error}", to.display())),
            Err(rename) => self.tell(format!("the journal {shown} is no good ({error}) and stays: {rename}")),
        }
        for log in ["-wal", "-shm"] {
            // Mostly not there; a new file must not meet an old log.
            let _ = fs::remove_file(suffixed(&self.path, log));
        }
        aside.push((number, to));
        let surplus = aside.len().saturating_sub(KEPT_ASIDE);
        for (_, old) in aside.drain(..surplus) {
            let _ = fs::remove_file(old);
        }
    }

    fn tell(&self, text: String) {
        tracing::error!("{text}");
        // A full queue means that the loop has enough notices of the same already.
        let _ = self.tell.try_send(text);
    }
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Files set aside earlier, by number.
fn set_aside_files(path: &Path) -> Vec<(u64, PathBuf)> {
    let Some(entries) = path.parent().and_then(|dir| fs::read_dir(dir).ok()) else { return Vec::new() };
    let prefix = format!("{FILE}.corrupt-");
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix(&prefix)?.parse().ok();
    let mut found: Vec<(u64, PathBuf)> =
        entries.flatten().filter_map(|entry| Some((number(&entry.path())?, entry.path()))).collect();
    found.sort();
    found
}
