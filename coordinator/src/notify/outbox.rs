//! What waits to be told, in SQLite beside the journal: a file of its own, so that a journal that is set aside, pruned or
//! full takes no message with it. At most so many wait for each channel, none for longer than six hours; what is dropped is
//! counted.

use std::{collections::BTreeMap, path::Path};

use rusqlite::{Connection, OptionalExtension as _, params};
use swarmguard_common::journal::Entry;

/// Most messages that wait for one channel.
const MAX_WAITING: i64 = 1_000;
/// Longest that one waits.
const MAX_AGE_MS: u64 = 6 * 3_600 * 1_000;
/// The same of the same service is told once in so long; what comes meanwhile is counted.
const FOLD_MS: u64 = 30_000;
/// Most messages in one digest.
const MAX_DIGEST: i64 = 500;
/// Pairs of channel and key that were told lately and are remembered.
const MAX_LATELY: usize = 4_000;

const TABLES: &str = "
    PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS origin (name TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS message (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, channel TEXT NOT NULL, key TEXT NOT NULL, first_ms INTEGER NOT NULL,
        not_before_ms INTEGER NOT NULL, times INTEGER NOT NULL, batch INTEGER, entry TEXT NOT NULL) STRICT;
    CREATE INDEX IF NOT EXISTS message_of_channel ON message (channel, seq);";

/// The file, open.
pub(super) struct Outbox {
    db: Connection,
    origin: String,
    lately: BTreeMap<(String, String), u64>,
}

/// Messages taken to be sent as one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Taken {
    /// Names them until they are sent, over a restart too.
    pub(super) batch: i64,
    /// The same each time that they are sent.
    pub(super) id: String,
    /// Entries, and how many like each there were.
    pub(super) entries: Vec<(Entry, u64)>,
}

/// What there is for a channel now.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Due {
    /// This.
    Now(Taken),
    /// Something, at this moment.
    At(u64),
    /// Nothing.
    Nothing,
}

type Result<T> = std::result::Result<T, rusqlite::Error>;

impl Outbox {
    /// Opens a file, or one in memory. `origin` names this coordinator; a file that has a name keeps it.
    pub(super) fn open(path: Option<&Path>, origin: &str) -> Result<Self> {
        let db = match path {
            Some(path) => Connection::open(path)?,
            None => Connection::open_in_memory()?,
        };
        db.execute_batch(TABLES)?;
        let known: Option<String> =
            db.query_row("SELECT name FROM origin", [], |row| row.get(0)).optional()?;
        if known.is_none() {
            db.execute("INSERT INTO origin (name) VALUES (?1)", [origin])?;
        }
        Ok(Self { db, origin: known.unwrap_or_else(|| origin.to_owned()), lately: BTreeMap::new() })
    }

    /// Keeps an entry for a channel; answers how many others were dropped for it.
    pub(super) fn offer(&mut self, now_ms: u64, channel: &str, entry: &Entry) -> Result<u64> {
        let key = format!("{}|{}", entry.service_name.as_deref().unwrap_or_default(), entry.code);
        // Entries are ours and have text as keys, so this does not fail.
        let body = serde_json::to_string(entry).unwrap_or_default();
        let folded = self.db.execute(
            "UPDATE message SET times = times + 1, entry = ?1 WHERE seq = (SELECT max(seq) FROM message
             WHERE channel = ?2 AND key = ?3 AND batch IS NULL AND first_ms > ?4)",
            params![body, channel, key, signed(now_ms.saturating_sub(FOLD_MS))],
        )?;
        if folded == 0 {
            let told = self.lately.get(&(channel.to_owned(), key.clone())).copied();
            let not_before = told.map_or(now_ms, |told| now_ms.max(told + FOLD_MS));
            self.db.execute(
                "INSERT INTO message (channel, key, first_ms, not_before_ms, times, entry) VALUES (?1, ?2, ?3, ?4, 1, ?5)",
                params![channel, key, signed(now_ms), signed(not_before), body],
            )?;
        }
        self.prune(now_ms, channel)
    }

    /// Drops what is too old or too many; what is being sent goes last.
    fn prune(&self, now_ms: u64, channel: &str) -> Result<u64> {
        let old = self.db.execute(
            "DELETE FROM message WHERE channel = ?1 AND first_ms < ?2",
            params![channel, signed(now_ms.saturating_sub(MAX_AGE_MS))],
        )?;
        let many = self.db.execute(
            "DELETE FROM message WHERE seq IN (SELECT seq FROM message WHERE channel = ?1 AND batch IS NULL
             ORDER BY seq LIMIT max(0, (SELECT count(*) FROM message WHERE channel = ?1) - ?2))",
            params![channel, MAX_WAITING],
        )?;
        Ok(u64::try_from(old + many).unwrap_or(u64::MAX))
    }

    /// The next message of a channel: what was taken before and not sent, else the oldest that is due, with a digest all
    /// that are due. Also how many were dropped.
    pub(super) fn take(&mut self, now_ms: u64, channel: &str, digest: bool) -> Result<(Due, u64)> {
        let dropped = self.prune(now_ms, channel)?;
        let taken: Option<i64> = self.db.query_row(
            "SELECT min(batch) FROM message WHERE channel = ?1 AND batch IS NOT NULL",
            [channel],
            |row| row.get(0),
        )?;
        let batch = match taken {
            Some(batch) => batch,
            None => {
                let most = if digest { MAX_DIGEST } else { 1 };
                let due = "SELECT seq FROM message WHERE channel = ?1 AND not_before_ms <= ?2 ORDER BY seq LIMIT ?3";
                let last: Option<i64> = self.db.query_row(
                    &format!("SELECT max(seq) FROM ({due})"),
                    params![channel, signed(now_ms), most],
                    |row| row.get(0),
                )?;
                let Some(last) = last else {
                    let next: Option<i64> = self.db.query_row(
                        "SELECT min(not_before_ms) FROM message WHERE channel = ?1",
                        [channel],
                        |row| row.get(0),
                    )?;
                    return Ok((next.map_or(Due::Nothing, |at| Due::At(unsigned(at))), dropped));
                };
                self.db.execute(
                    &format!("UPDATE message SET batch = ?4 WHERE seq IN ({due})"),
                    params![channel, signed(now_ms), most, last],
                )?;
                last
            }
        };
        let mut rows = self.db.prepare_cached(
            "SELECT entry, times FROM message WHERE channel = ?1 AND batch = ?2 ORDER BY seq",
        )?;
        let rows = rows.query_map(params![channel, batch], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
        })?;
        let mut entries = Vec::new();
        for row in rows {
            let (body, times) = row?;
            // One of a later version that cannot be read is not told, and does not stop the others.
            if let Ok(entry) = serde_json::from_str(&body) {
                entries.push((entry, unsigned(times)));
            }
        }
        Ok((Due::Now(Taken { batch, id: format!("{}-{batch}", self.origin), entries }), dropped))
    }

    /// A batch was taken by its receiver.
    pub(super) fn sent(&mut self, now_ms: u64, channel: &str, batch: i64) -> Result<()> {
        let mut keys = self.db.prepare_cached("SELECT key FROM message WHERE channel = ?1 AND batch = ?2")?;
        let keys: Vec<String> =
            keys.query_map(params![channel, batch], |row| row.get(0))?.collect::<Result<_>>()?;
        self.lately.retain(|_, told| *told + FOLD_MS > now_ms);
        if self.lately.len() < MAX_LATELY {
            self.lately.extend(keys.into_iter().map(|key| ((channel.to_owned(), key), now_ms)));
        }
        self.db.execute("DELETE FROM message WHERE channel = ?1 AND batch = ?2", params![channel, batch])?;
        Ok(())
    }

    /// How many wait for a channel.
    pub(super) fn waiting(&self, channel: &str) -> Result<u64> {
        let count: i64 =
            self.db
                .query_row("SELECT count(*) FROM message WHERE channel = ?1", [channel], |row| row.get(0))?;
        Ok(unsigned(count))
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use swarmguard_common::journal::Kind;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn entry(service: &str, code: &str, text: &str) -> Entry {
        Entry { service_name: Some(service.into()), ..Entry::new(Kind::Action, code, text) }
    }

    fn texts(due: (Due, u64)) -> Vec<(String, u64)> {
        match due.0 {
            Due::Now(taken) => taken.entries.into_iter().map(|(entry, times)| (entry.text, times)).collect(),
            Due::At(_) | Due::Nothing => Vec::new(),
        }
    }

    #[test]
    fn the_first_is_told_at_once_and_the_like_of_it_together_half_a_minute_later() {
        let mut outbox = Outbox::open(None, "m1").expect("in memory");
        outbox.offer(NOW, "a", &entry("web", "undone", "one")).expect("kept");
        let (Due::Now(first), 0) = outbox.take(NOW, "a", false).expect("read") else { panic!("due") };
        assert_eq!(first.id, "m1-1");
        // While the first is on its way, the second is no part of it.
        outbox.offer(NOW + 1_000, "a", &entry("web", "undone", "two")).expect("kept");
        outbox.sent(NOW + 1_500, "a", first.batch).expect("told");
        outbox.offer(NOW + 2_000, "a", &entry("web", "undone", "three")).expect("kept");
        outbox.offer(NOW + 2_000, "a", &entry("api", "undone", "another")).expect("kept");
        assert_eq!(texts(outbox.take(NOW + 2_000, "a", false).expect("read")), [("three".into(), 2)]);
        outbox.sent(NOW + 2_100, "a", 2).expect("told");
        outbox.offer(NOW + 3_000, "a", &entry("web", "undone", "four")).expect("kept");
        outbox.offer(NOW + 4_000, "a", &entry("web", "undone", "five")).expect("kept");
        assert_eq!(texts(outbox.take(NOW + 5_000, "a", false).expect("read")), [("another".into(), 1)]);
        outbox.sent(NOW + 5_000, "a", 3).expect("told");
        assert_eq!(outbox.take(NOW + 6_000, "a", false).expect("read").0, Due::At(NOW + 2_100 + FOLD_MS));
        assert_eq!(texts(outbox.take(NOW + 33_000, "a", false).expect("read")), [("five".into(), 2)]);
    }

    #[test]
    fn what_was_taken_and_not_sent_comes_again_after_a_restart_as_it_was() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("outbox.sqlite");
        let mut outbox = Outbox::open(Some(&path), "m1").expect("made");
        for text in ["one", "two", "three"] {
            outbox.offer(NOW, "a", &entry(text, "undone", text)).expect("kept");
        }
        outbox.take(NOW, "a", false).expect("taken");
        let (before, _) = outbox.take(NOW, "a", true).expect("taken");
        drop(outbox);
        let mut outbox = Outbox::open(Some(&path), "another name").expect("opened");
        outbox.offer(NOW + 1, "a", &entry("one", "undone", "one again")).expect("kept");
        assert_eq!(outbox.take(NOW + 2, "a", true).expect("taken").0, before, "same content, same id");
        let Due::Now(taken) = before else { panic!("due") };
        assert_eq!((taken.id.as_str(), taken.entries.len()), ("m1-1", 1));
        outbox.sent(NOW + 3, "a", taken.batch).expect("told");
        let all = texts(outbox.take(NOW + 60_000, "a", true).expect("taken"));
        assert_eq!(
            all.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(),
            ["two", "three", "one again"]
        );
    }

    #[test]
    fn what_is_too_many_or_too_old_is_dropped_and_counted() {
        let mut outbox = Outbox::open(None, "m1").expect("in memory");
        let mut dropped = 0;
        for number in 0..1_010 {
            dropped += outbox.offer(NOW, "a", &entry(&format!("s{number}"), "undone", "x")).expect("kept");
        }
        assert_eq!((dropped, outbox.waiting("a").expect("read")), (10, 1_000));
        outbox.offer(NOW, "b", &entry("web", "undone", "of another channel")).expect("kept");
        let (due, old) = outbox.take(NOW + MAX_AGE_MS + 1, "a", false).expect("read");
        assert_eq!((due, old), (Due::Nothing, 1_000));
        assert_eq!(outbox.waiting("b").expect("read"), 1);
    }
}
