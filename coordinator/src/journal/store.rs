//! The journal's SQLite file: entries and actions, bounded in rows and bytes.

use std::{path::Path, sync::Arc};

use rusqlite::{Connection, ErrorCode, OptionalExtension, ToSql, params, params_from_iter};
use swarmguard_common::journal::Entry;

use super::{Query, history::ActionRow, kind_word};

/// `PRAGMA user_version` of the tables below; a file with another is not ours to write.
const VERSION: i64 = 1;
/// `PRAGMA application_id`: "SwGd".
const APPLICATION: i64 = 0x5377_4764;
/// Free bytes below which a disk counts as full: what the write-ahead log and one batch may need.
const MIN_ROOM_BYTES: u64 = 8 * 1024 * 1024;
/// Actions kept.
const MAX_ACTIONS: i64 = 10_000;
/// Share of entries dropped when the file is full.
const PRUNED_SHARE: u64 = 10;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS entry (
        id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, kind TEXT NOT NULL, service TEXT, action TEXT,
        body TEXT NOT NULL) STRICT;
    CREATE INDEX IF NOT EXISTS entry_of_service ON entry (service, id) WHERE service IS NOT NULL;
    CREATE INDEX IF NOT EXISTS entry_of_action ON entry (action, id) WHERE action IS NOT NULL;
    CREATE TABLE IF NOT EXISTS action (
        token TEXT PRIMARY KEY, started_at_ms INTEGER NOT NULL, mttr_ms REAL, outcome TEXT NOT NULL,
        body TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS action_by_time ON action (started_at_ms);";

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    /// SQLite's words.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The integrity check found something.
    #[error("the integrity check says: {0}")]
    Damaged(String),
    /// Not a journal, or of another version of the program.
    #[error(
        "application {application:#x}, version {version}: this program writes {APPLICATION:#x}, version {VERSION}"
    )]
    Foreign {
        /// What it says.
        application: i64,
        /// What it says.
        version: i64,
    },
    /// Full, even after the oldest entries were dropped.
    #[error("it is full even after the oldest entries were dropped")]
    Full,
}

impl StoreError {
    /// The limit of the file or of the disk was reached.
    fn is_full(&self) -> bool {
        self.code() == Some(ErrorCode::DiskFull)
    }

    /// Whether what surrounds the file fails, and not the file: a full or broken disk, rights, another process. Then a
    /// new file would fare no better, and this one, with all its history, is good again when that has passed.
    pub(super) fn is_passing(&self) -> bool {
        use ErrorCode::{
            CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory, PermissionDenied, ReadOnly,
            SystemIoFailure,
        };
        matches!(
            self.code(),
            Some(
                CannotOpen
                    | DatabaseBusy
                    | DatabaseLocked
                    | DiskFull
                    | OutOfMemory
                    | PermissionDenied
                    | ReadOnly
                    | SystemIoFailure
            )
        )
    }

    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Sqlite(error) => error.sqlite_error_code(),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Store {
    db: Connection,
    max_rows: u64,
    rows: u64,
}

impl Store {
    /// Opens and checks a file, or makes it.
    pub(super) fn open(path: &Path, max_rows: u64, max_bytes: u64) -> Result<Self, StoreError> {
        let db = Connection::open(path)?;
        let (application, version) = (pragma(&db, "application_id")?, pragma(&db, "user_version")?);
        let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables > 0 && (application, version) != (APPLICATION, VERSION) {
            return Err(StoreError::Foreign { application, version });
        }
        let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(StoreError::Damaged(verdict));
        }
        // A write-ahead log without a sync for each entry: a power cut may cost the newest entries, never the file.
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA temp_store = MEMORY;",
        )?;
        db.execute_batch("PRAGMA journal_size_limit = 4194304;")?;
        db.execute_batch(&format!(
            "PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};"
        ))?;
        db.execute_batch(TABLES)?;
        let pages = max_bytes / u64::try_from(pragma(&db, "page_size")?.max(512)).unwrap_or(4_096);
        // Answers with the new limit, so it is a query.
        db.query_row(&format!("PRAGMA max_page_count = {}", pages.max(16)), [], |_| Ok(()))?;
        let rows = count(&db)?;
        Ok(Self { db, max_rows: max_rows.max(1), rows })
    }

    /// The last entry's number, 0 without any.
    pub(super) fn last_id(&self) -> Result<u64, StoreError> {
        let last: Option<i64> = self.db.query_row("SELECT max(id) FROM entry", [], |row| row.get(0))?;
        Ok(last.map_or(0, unsigned))
    }

    /// Writes a batch in one transaction; drops the oldest entries where that is needed to stay within the bounds.
    pub(super) fn write(&mut self, batch: &[(Arc<Entry>, Option<ActionRow>)]) -> Result<(), StoreError> {
        match self.try_write(batch) {
            // SQLite has one word for both, and dropping history gives a full disk no room.
            Err(error) if error.is_full() && !self.is_disk_full() => {
                self.prune(self.rows / PRUNED_SHARE + 1)?;
                self.try_write(batch)
                    .map_err(|error| if error.is_full() { StoreError::Full } else { error })?;
            }
            other => other?,
        }
        if self.rows > self.max_rows {
            self.prune(self.rows - self.max_rows + self.max_rows / PRUNED_SHARE)?;
        }
        Ok(())
    }

    /// Whether it is the disk that has no room, not the file that has reached its own bound.
    fn is_disk_full(&self) -> bool {
        let status = self.db.path().and_then(|path| rustix::fs::statvfs(path).ok());
        status.is_some_and(|status| status.f_bavail.saturating_mul(status.f_frsize) < MIN_ROOM_BYTES)
    }

    fn try_write(&mut self, batch: &[(Arc<Entry>, Option<ActionRow>)]) -> Result<(), StoreError> {
        let transaction = self.db.transaction()?;
        {
            let mut entries = transaction.prepare_cached(
                "INSERT OR REPLACE INTO entry (id, at_ms, kind, service, action, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            let mut actions = transaction.prepare_cached(
                "INSERT OR REPLACE INTO action (token, started_at_ms, mttr_ms, outcome, body)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for (entry, row) in batch {
                let service = entry.service.as_ref().map(|service| service.as_str());
                let body = serde_json::to_string(&**entry).unwrap_or_default();
                entries.execute(params![
                    signed(entry.id),
                    signed(entry.at_ms),
                    kind_word(entry.kind),
                    service,
                    entry.action,
                    body
                ])?;
                if let Some(row) = row {
                    let body = serde_json::to_string(row).unwrap_or_default();
                    actions.execute(params![
                        row.action,
                        signed(row.started_at_ms),
                        row.mttr_ms,
                        row.outcome,
                        body
                    ])?;
                }
            }
        }
        transaction.commit()?;
        self.rows += batch.len() as u64;
        Ok(())
    }

    /// Drops this many entries: the oldest that come by themselves and in masses, and only where there are none of those
    /// left the oldest of what people and actions did.
    fn prune(&mut self, oldest: u64) -> Result<(), StoreError> {
        let passing = self.db.execute(
            "DELETE FROM entry WHERE id IN
             (SELECT id FROM entry WHERE kind IN ('alert', 'lease', 'refusal') ORDER BY id LIMIT ?1)",
            [signed(oldest)],
        )?;
        let left = oldest.saturating_sub(passing as u64);
        if left > 0 {
            self.db.execute(
                "DELETE FROM entry WHERE id <= (SELECT max(id) FROM (SELECT id FROM entry ORDER BY id LIMIT ?1))",
                [signed(left)],
            )?;
        }
        self.db.execute(
            "DELETE FROM action WHERE token IN
             (SELECT token FROM action ORDER BY started_at_ms DESC LIMIT -1 OFFSET ?1)",
            [MAX_ACTIONS],
        )?;
        self.rows = count(&self.db)?;
        Ok(())
    }

    /// Entries, oldest first.
    pub(super) fn read(&self, query: &Query) -> Result<Vec<Arc<Entry>>, StoreError> {
        let mut clauses = vec!["1".to_owned()];
        let mut values: Vec<Box<dyn ToSql>> = Vec::new();
        if let Some(since) = query.since {
            clauses.push("id > ?".into());
            values.push(Box::new(signed(since)));
        }
        if !query.kinds.is_empty() {
            clauses.push(format!("kind IN ({})", vec!["?"; query.kinds.len()].join(", ")));
            values.extend(query.kinds.iter().map(|kind| Box::new(kind_word(*kind)) as Box<dyn ToSql>));
        }
        if let Some(service) = &query.service {
            clauses.push("service = ?".into());
            values.push(Box::new(service.to_string()));
        }
        if let Some(node) = &query.node {
            clauses.push("? IN (json_extract(body, '$.node'), json_extract(body, '$.target'))".into());
            values.push(Box::new(node.to_string()));
        }
        if let Some(action) = &query.action {
            clauses.push("action = ?".into());
            values.push(Box::new(action.clone()));
        }
        let order = if query.since.is_some() { "ASC" } else { "DESC" };
        let limit = query.limit();
        let sql = format!(
            "SELECT body FROM entry WHERE {} ORDER BY id {order} LIMIT {limit}",
            clauses.join(" AND ")
        );
        let mut statement = self.db.prepare_cached(&sql)?;
        let bodies = statement.query_map(params_from_iter(values), |row| row.get::<_, String>(0))?;
        let mut found = Vec::new();
        for body in bodies {
            // An entry that a later version wrote and this one cannot read is left out.
            found.extend(serde_json::from_str(&body?).ok().map(Arc::new));
        }
        if query.since.is_none() {
            found.reverse();
        }
        Ok(found)
    }

    /// The newest actions, oldest first.
    pub(super) fn actions(&self, limit: usize) -> Result<Vec<ActionRow>, StoreError> {
        let sql = "SELECT body FROM action ORDER BY started_at_ms DESC LIMIT ?1";
        let mut statement = self.db.prepare_cached(sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let bodies = statement.query_map([limit], |row| row.get::<_, String>(0))?;
        let mut found = Vec::new();
        for body in bodies {
            found.extend(serde_json::from_str(&body?).ok());
        }
        found.reverse();
        Ok(found)
    }
}

fn count(db: &Connection) -> Result<u64, StoreError> {
    Ok(unsigned(db.query_row("SELECT count(*) FROM entry", [], |row| row.get(0))?))
}

fn pragma(db: &Connection, name: &str) -> Result<i64, StoreError> {
    Ok(db.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).optional()?.unwrap_or(0))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
