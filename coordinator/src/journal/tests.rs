//! The journal against restarts, damage, and a disk that is too small.

use std::{fs, path::Path};

use super::*;

fn entry(code: &str) -> Entry {
    Entry {
        id: 0,
        at_ms: 1_000,
        kind: Kind::Decision,
        code: code.into(),
        service: Some("svc1".parse().expect("valid")),
        service_name: Some("web".into()),
        task: None,
        node: None,
        target: None,
        action: None,
        text: "because".into(),
        figures: Default::default(),
        rule: None,
        otherwise: None,
    }
}

fn settings(dir: &Path) -> Settings {
    Settings { dir: Some(dir.into()), ..Settings::default() }
}

fn reopened(dir: &Path) -> (Journal, Notices) {
    open(&settings(dir), Metrics::new())
}

/// The next notice; generous, because the machine may be busy.
async fn told(notices: &mut Notices) -> String {
    let deadline = std::time::Duration::from_secs(60);
    tokio::time::timeout(deadline, notices.recv()).await.expect("in time").expect("the thread lives")
}

/// Until the thread of a dropped journal has let go of its file: the write-ahead log goes last.
async fn closed(dir: &Path) {
    let gone = async {
        while dir.join("journal.sqlite-wal").exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), gone).await.expect("in time");
}

async fn read(journal: &Journal, since: Option<u64>) -> Vec<(u64, String)> {
    let query = Query { since, limit: MAX_READ, ..Query::default() };
    journal.read(query).await.iter().map(|entry| (entry.id, entry.code.clone())).collect()
}

#[tokio::test]
async fn entries_and_numbers_survive_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let (journal, _notices) = reopened(dir.path());
    journal.append(entry("one"));
    journal.append(entry("two"));
    journal.flush().await;
    drop(journal);
    let (journal, _notices) = reopened(dir.path());
    assert_eq!(journal.append(entry("three")).id, 3);
    assert_eq!(read(&journal, Some(1)).await, [(2, "two".into()), (3, "three".into())]);
    assert_eq!(read(&journal, None).await.len(), 3);
}

#[tokio::test]
async fn without_a_disk_memory_serves() {
    let (journal, _notices) = open(&Settings::default(), Metrics::new());
    for _ in 0..RING + 10 {
        journal.append(entry("one"));
    }
    let all = read(&journal, Some(0)).await;
    assert_eq!(all.first().map(|(id, _)| *id), Some(11), "the oldest went first");
}

#[tokio::test]
async fn a_damaged_file_is_set_aside_and_the_next_takes_over() {
    let dir = tempfile::tempdir().expect("a directory");
    for round in 1..=3 {
        fs::write(
            dir.path().join("journal.sqlite"),
            "no database, but long enough to look like one ".repeat(100),
        )
        .expect("written");
        let (journal, mut notices) = reopened(dir.path());
        assert!(told(&mut notices).await.contains(&format!(".corrupt-{round}")));
        journal.append(entry("after"));
        journal.flush().await;
        assert_eq!(read(&journal, None).await.len(), 1);
        drop(journal);
        closed(dir.path()).await;
    }
    let aside = fs::read_dir(dir.path()).expect("there").flatten();
    let names: Vec<String> = aside.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(names.iter().filter(|name| name.contains("corrupt")).count(), 2, "{names:?}");
}

#[tokio::test]
async fn a_file_of_another_program_is_not_written_to() {
    let dir = tempfile::tempdir().expect("a directory");
    let db = rusqlite::Connection::open(dir.path().join("journal.sqlite")).expect("opens");
    db.execute_batch("CREATE TABLE entry (id INTEGER)").expect("made");
    drop(db);
    let (_journal, mut notices) = reopened(dir.path());
    assert!(told(&mut notices).await.contains("set aside"));
}

#[tokio::test]
async fn rows_are_bounded_and_the_oldest_go_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let bounded = Settings { max_rows: 100, ..settings(dir.path()) };
    let (journal, _notices) = open(&bounded, Metrics::new());
    for _ in 0..1_000 {
        journal.append(entry("one"));
        journal.flush().await;
    }
    drop(journal);
    let (journal, _notices) = open(&bounded, Metrics::new());
    let kept = read(&journal, Some(0)).await;
    assert!((80..=100).contains(&kept.len()), "{}", kept.len());
    assert_eq!(kept.last().map(|(id, _)| *id), Some(1_000));
}

#[tokio::test]
async fn bytes_are_bounded_and_the_oldest_make_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let max_bytes = 256 * 1024;
    let bounded = Settings { max_bytes, ..settings(dir.path()) };
    let metrics = Metrics::new();
    let (journal, _notices) = open(&bounded, Arc::clone(&metrics));
    for _ in 0..200 {
        let mut long = entry("one");
        long.text = "x".repeat(4_000);
        journal.append(long);
        journal.flush().await;
    }
    let size = fs::metadata(dir.path().join("journal.sqlite")).expect("there").len();
    assert!(size <= max_bytes, "{size}");
    assert_eq!((metrics.journal_lost.get(), metrics.journal_set_aside.get()), (0, 0));
    drop(journal);
    let (journal, _notices) = open(&bounded, Metrics::new());
    assert_eq!(read(&journal, None).await.last().map(|(id, _)| *id), Some(200), "the newest are kept");
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_costs_only_the_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("written");
    let metrics = Metrics::new();
    let (journal, mut notices) = open(&settings(&file.join("below")), Arc::clone(&metrics));
    assert!(told(&mut notices).await.contains("cannot be made"));
    journal.append(entry("one"));
    journal.flush().await;
    assert_eq!(read(&journal, None).await.len(), 1);
    assert_eq!(metrics.journal_lost.get(), 1);
}

#[tokio::test]
async fn a_file_that_breaks_while_in_use_is_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let (journal, mut notices) = reopened(dir.path());
    journal.append(entry("one"));
    journal.flush().await;
    let path = dir.path().join("journal.sqlite");
    let other = rusqlite::Connection::open(&path).expect("opens");
    other.execute_batch("DROP TABLE entry").expect("dropped");
    drop(other);
    journal.append(entry("two"));
    journal.flush().await;
    assert!(told(&mut notices).await.contains("set aside"));
    assert_eq!(read(&journal, Some(1)).await, [(2, "two".into())], "memory has it all the same");
    drop(journal);
    let (journal, _notices) = reopened(dir.path());
    assert_eq!(read(&journal, None).await, [(2, "two".into())], "and so has the new file");
}

/// A file system of one MiB that only this thread, and those that it starts, see; none where that is not allowed.
fn small_disk(at: &Path) -> bool {
    use rustix::{
        mount::{MountFlags, MountPropagationFlags, mount, mount_change},
        thread::{UnshareFlags, unshare_unsafe},
    };
    // SAFETY: a mount namespace of its own takes nothing from this thread that Rust relies on.
    let apart = unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.is_ok();
    apart
        && mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).is_ok()
        && mount("tmpfs", at, "tmpfs", MountFlags::empty(), c"size=1m").is_ok()
}

#[tokio::test]
async fn a_full_disk_costs_entries_and_no_history() {
    let dir = tempfile::tempdir().expect("a directory");
    if !small_disk(dir.path()) {
        println!("skipped: making a small disk needs root");
        return;
    }
    let metrics = Metrics::new();
    let (journal, mut notices) = open(&settings(dir.path()), Arc::clone(&metrics));
    journal.append(entry("one"));
    journal.flush().await;
    while metrics.journal_lost.get() == 0 {
        let mut long = entry("long");
        long.text = "x".repeat(40_000);
        journal.append(long);
        journal.flush().await;
    }
    assert!(told(&mut notices).await.contains("tried again"));
    assert_eq!(metrics.journal_set_aside.get(), 0);
    let db = rusqlite::Connection::open(dir.path().join("journal.sqlite")).expect("opens");
    let first: i64 = db.query_row("SELECT min(id) FROM entry", [], |row| row.get(0)).expect("still there");
    assert_eq!(first, 1, "nothing was dropped to make room that is not there");
}

#[test]
fn an_actions_entries_become_one_row() {
    let mut history = History::default();
    let mut decision = entry("migrate");
    decision.action = Some("act-1".into());
    history.fold(&decision);
    let mut step = entry("leased");
    (step.kind, step.action, step.at_ms) = (Kind::Action, Some("act-1".into()), 1_200);
    history.fold(&step);
    (step.code, step.at_ms) = ("done".into(), 5_000);
    step.figures.insert("mttr_ms".into(), 4_900.0);
    let row = history.fold(&step).expect("of an action");
    assert_eq!((row.what.as_str(), row.outcome.as_str(), row.mttr_ms), ("migrate", "done", Some(4_900.0)));
    assert_eq!(row.steps.iter().map(|step| step.after_ms).collect::<Vec<_>>(), [200, 4_000]);
    assert_eq!(row.ended_at_ms, Some(5_000));
    assert_eq!(history.fold(&entry("of no action")), None);
    assert_eq!(history.newest(10).len(), 1);
}
