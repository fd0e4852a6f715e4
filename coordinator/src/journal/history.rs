//! One row for each action, folded from its journal entries: what, when, how it ended, and how long users waited.

use std::collections::{BTreeMap, VecDeque};

use swarmguard_common::{
    api::LastDay,
    journal::{Entry, Kind},
};

pub use swarmguard_common::api::{ActionRow, StepRow};

/// What counts as the last day.
const DAY_MS: u64 = 24 * 3_600 * 1_000;
/// Actions kept in memory.
const MAX_ACTIONS: usize = 1_000;
/// Steps kept for one action; a drain of a large node has many.
const MAX_STEPS: usize = 200;

/// The newest actions, oldest first.
#[derive(Debug, Default)]
pub struct History(VecDeque<ActionRow>);

impl History {
    /// Starts with rows that were kept, oldest first.
    pub fn of(rows: Vec<ActionRow>) -> Self {
        Self(rows.into())
    }

    /// Takes an entry into the row of its action, and answers the row to be kept; `None` for entries of no action.
    pub fn fold(&mut self, entry: &Entry) -> Option<ActionRow> {
        let token = entry.action.as_ref().filter(|_| matches!(entry.kind, Kind::Decision | Kind::Action))?;
        // An entry nearly always belongs to one of the newest actions.
        let at = self.0.iter().rposition(|row| row.action == *token);
        let row = match at.and_then(|at| self.0.get_mut(at)) {
            Some(row) => row,
            None => {
                if self.0.len() >= MAX_ACTIONS {
                    self.0.pop_front();
                }
                self.0.push_back(begun(token, entry));
                self.0.back_mut()?
            }
        };
        take(row, entry);
        Some(row.clone())
    }

    /// What was decided when this action began; `None` where that was not seen.
    pub fn what_of(&self, action: &str) -> Option<String> {
        let row = self.0.iter().rev().find(|row| row.action == action)?;
        Some(row.what.clone()).filter(|what| !what.is_empty())
    }

    /// What was done in the 24 hours before `at_ms`, and when each action began that is under way.
    pub fn last_day(&self, at_ms: u64) -> (LastDay, BTreeMap<String, u64>) {
        let (mut day, mut mttrs, mut running) = (LastDay::default(), Vec::new(), BTreeMap::new());
        for row in &self.0 {
            let Some(ended) = row.ended_at_ms else {
                running.insert(row.action.clone(), row.started_at_ms);
                continue;
            };
            if ended + DAY_MS < at_ms {
                continue;
            }
            match (row.outcome.as_str(), row.what.as_str()) {
                ("undone", _) => day.undone += 1,
                (_, "migrate" | "rebalance") => day.moved += 1,
                (_, "scale_out" | "scale_in") => day.scaled += 1,
                _ => {}
            }
            mttrs.extend(row.mttr_ms.filter(|_| row.outcome == "done"));
        }
        mttrs.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "milliseconds of an action"
        )]
        let whole = |ms: &f64| ms.round() as u64;
        day.mttr_p90_ms = mttrs.get((mttrs.len() * 9).div_ceil(10).saturating_sub(1)).map(whole);
        (day, running)
    }

    /// The newest first, at most `limit`.
    pub fn newest(&self, limit: usize) -> Vec<ActionRow> {
        self.0.iter().rev().take(limit).cloned().collect()
    }
}

fn begun(token: &str, entry: &Entry) -> ActionRow {
    ActionRow {
        action: token.into(),
        what: String::new(),
        reason: String::new(),
        service: None,
        service_name: None,
        source: None,
        target: None,
        task: None,
        started_at_ms: entry.at_ms,
        ended_at_ms: None,
        outcome: "running".into(),
        mttr_ms: None,
        steps: Vec::new(),
    }
}

fn take(row: &mut ActionRow, entry: &Entry) {
    fn newer<T: Clone>(mine: &mut Option<T>, theirs: &Option<T>) {
        if theirs.is_some() {
            mine.clone_from(theirs);
        }
    }
    newer(&mut row.service, &entry.service);
    newer(&mut row.service_name, &entry.service_name);
    newer(&mut row.source, &entry.node);
    newer(&mut row.target, &entry.target);
    newer(&mut row.task, &entry.task);
    if let Some(mttr_ms) = entry.figures.get("mttr_ms") {
        row.mttr_ms = Some(*mttr_ms);
    }
    if entry.kind == Kind::Decision {
        row.what.clone_from(&entry.code);
        row.reason.clone_from(&entry.text);
        return;
    }
    if matches!(entry.code.as_str(), "done" | "undone") && row.ended_at_ms.is_none() {
        row.outcome.clone_from(&entry.code);
        row.ended_at_ms = Some(entry.at_ms);
    }
    if row.steps.len() < MAX_STEPS {
        let after_ms = entry.at_ms.saturating_sub(row.started_at_ms);
        row.steps.push(StepRow { code: entry.code.clone(), after_ms, text: entry.text.clone() });
    }
}
