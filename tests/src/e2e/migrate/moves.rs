//! One migration, ordered and taken apart.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::json;
use swarmguard_common::journal::Entry;

use super::ACTION;
use super::rig::{Rig, command, image_ms};
use crate::e2e::stage::until;

/// Notes of the journal at which a part of a migration ends, and what the part is called.
pub const PARTS: [(&str, &str); 9] = [
    ("source_paused", "pause"),
    ("successor_running", "start"),
    ("successor_healthy", "healthy"),
    ("settled", "settle"),
    ("marked", "mark"),
    ("balancers_drained", "drain"),
    ("removed", "remove"),
    ("spec_closed", "close"),
    ("done", "release"),
];

/// The settling time that is prescribed; see [`Move::less_waits_ms`].
const SETTLE_MS: f64 = 2_000.0;

/// One migration; all in milliseconds on the coordinator's clock, but the image's on its engine's.
#[derive(Clone, Debug, Serialize)]
pub struct Move {
    pub number: u32,
    pub source: String,
    pub target: String,
    /// Decision to done.
    pub total_ms: f64,
    /// The successor's container from its start to its first `healthy`.
    pub image_ms: f64,
    /// As [`PARTS`].
    pub parts_ms: [f64; PARTS.len()],
}

impl Move {
    pub fn overhead_ms(&self) -> f64 {
        self.total_ms - self.image_ms
    }

    /// Without the settling time as prescribed (what it takes beyond that counts), and without the wait for balancers to
    /// finish requests in flight.
    pub fn less_waits_ms(&self) -> f64 {
        let of = |name: &str| PARTS.iter().zip(self.parts_ms).find(|(part, _)| part.1 == name);
        let part = |name: &str| of(name).map_or(0.0, |(_, ms)| ms);
        self.overhead_ms() - part("settle").min(SETTLE_MS) - part("drain")
    }
}

impl fmt::Display for Move {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, target, total_ms, image_ms, .. } = self;
        write!(
            out,
            "{source} -> {target} in {total_ms:.0} ms, of these the image {image_ms:.0}, overhead {:.0}",
            self.overhead_ms()
        )?;
        for ((_, name), ms) in PARTS.iter().zip(self.parts_ms) {
            write!(out, " {name} {ms:.0}")?;
        }
        Ok(())
    }
}

/// Orders one migration to the next node, waits until it is done, and takes it apart.
pub async fn one(rig: &Rig<'_>, number: u32) -> Result<Move> {
    let (_, replica) = rig.replica().await?;
    let nodes = &rig.stage.cluster.nodes;
    let here = nodes.iter().position(|node| node.id == replica.node).context("an unknown node")?;
    // One step on the ring forwards and one back, by turns of three, so that every pair of nodes is met both ways.
    let step = if (number / 3).is_multiple_of(2) { 1 } else { nodes.len() - 1 };
    let (source, target) = (&nodes[here], &nodes[(here + step) % nodes.len()]);
    let from = rig.journal.entries(0).len();
    let body = json!({"service": rig.service, "source": source.id, "target": target.id});
    let action = command(rig.order, rig.stage, "migrate", &body).await?;
    let about = || {
        let heard = rig.journal.entries(from).into_iter().map(|heard| heard.entry);
        heard.filter(|entry| entry.action.as_deref() == Some(action.as_str())).collect::<Vec<Entry>>()
    };
    let over = || async { Ok(about().iter().any(|entry| matches!(entry.code.as_str(), "done" | "undone"))) };
    until("the migration is over", ACTION, over).await?;
    let entries = about();
    let undone = entries.iter().find(|entry| entry.code == "undone");
    ensure!(undone.is_none(), "undone: {}", undone.map_or("", |entry| entry.text.as_str()));
    let times = times(&entries)?;
    let successor = entries.iter().find(|entry| entry.code == "successor_healthy");
    let task = successor.and_then(|entry| entry.task.clone()).context("the journal names no successor")?;
    let serves = || async { Ok(rig.watcher.serving().keys().any(|id| id == task.as_str())) };
    until("the successor is seen serving", Duration::from_secs(10), serves).await?;
    let (_, moved) = rig
        .watcher
        .serving()
        .into_iter()
        .find(|(id, _)| id == task.as_str())
        .context("the successor serves no more")?;
    ensure!(moved.node == target.id, "the successor runs on {}", rig.stage.cluster.name(&moved.node));
    let image_ms = image_ms(rig.stage, &moved).await?;
    let (source, target) = (source.name.clone(), target.name.clone());
    let total_ms = times[PARTS.len() - 1];
    let mut parts_ms = times;
    for index in (1..PARTS.len()).rev() {
        parts_ms[index] -= times[index - 1];
    }
    Ok(Move { number, source, target, total_ms, image_ms, parts_ms })
}

/// When each part ended, since the decision. A note that another one stands for took no time.
fn times(entries: &[Entry]) -> Result<[f64; PARTS.len()]> {
    let known: BTreeMap<&str, f64> = entries
        .iter()
        .filter_map(|entry| Some((entry.code.as_str(), *entry.figures.get("since_decision_ms")?)))
        .collect();
    ensure!(known.contains_key("done"), "the coordinator knows no time of its decision: it was another one");
    let (mut times, mut last) = ([0.0; PARTS.len()], 0.0);
    for (time, (code, _)) in times.iter_mut().zip(PARTS) {
        last = known.get(code).copied().unwrap_or(last);
        *time = last;
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarmguard_common::journal::Kind;

    #[test]
    fn parts_end_where_the_journal_says_and_a_missing_note_takes_no_time() {
        let entry = |code: &str, ms: f64| {
            let mut entry = Entry::new(Kind::Action, code, "");
            entry.figures.insert("since_decision_ms".into(), ms);
            entry
        };
        let entries = [entry("source_paused", 10.0), entry("successor_healthy", 50.0), entry("done", 90.0)];
        let times = times(&entries).unwrap();
        assert_eq!(times, [10.0, 10.0, 50.0, 50.0, 50.0, 50.0, 50.0, 50.0, 90.0]);
        assert!(super::times(&entries[..2]).is_err());
    }

    #[test]
    fn what_is_prescribed_is_left_out_and_what_goes_beyond_it_is_not() {
        let parts_ms = [10.0, 20.0, 30.0, 2_100.0, 40.0, 70.0, 50.0, 60.0, 70.0];
        let one = Move {
            number: 1,
            source: String::new(),
            target: String::new(),
            total_ms: parts_ms.iter().sum(),
            image_ms: 30.0,
            parts_ms,
        };
        assert!((one.less_waits_ms() - (2_450.0 - 30.0 - 2_000.0 - 70.0)).abs() < 1e-9);
    }
}
