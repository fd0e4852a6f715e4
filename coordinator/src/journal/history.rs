//! One row for each action, folded from its journal entries: what, when, how it ended, and how long users waited.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use swarmguard_common::{
    domain::{NodeId, ServiceId, TaskId},
    journal::{Entry, Kind},
};

/// Actions kept in memory.
const MAX_ACTIONS: usize = 1_000;
/// Steps kept for one action; a drain of a large node has many.
const MAX_STEPS: usize = 200;

/// An action from its decision to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionRow {
    /// Its token.
    pub action: String,
    /// What was decided (`migrate`, `scale_out`, ...); empty when the decision was made by an earlier leader.
    #[serde(default)]
    pub what: String,
    /// Why, in one sentence.
    #[serde(default)]
    pub reason: String,
    /// The service it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceId>,
    /// Swarm's name of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// The node that is relieved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<NodeId>,
    /// Where the successor runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<NodeId>,
    /// The task named last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// Wall clock of the first entry, in milliseconds since the Unix epoch.
    pub started_at_ms: u64,
    /// Wall clock of the last entry once the action is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at_ms: Option<u64>,
    /// `running`, `done` or `undone`.
    pub outcome: String,
    /// First sample over the threshold to the successor healthy and the old replica out of use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mttr_ms: Option<f64>,
    /// Its steps, oldest first.
    pub steps: Vec<StepRow>,
}

/// One step of an action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// A stable word.
    pub code: String,
    /// Milliseconds since the action's first entry.
    pub after_ms: u64,
    /// One sentence.
    pub text: String,
}

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
                self.0.push_back(ActionRow::begun(token, entry));
                self.0.back_mut()?
            }
        };
        row.take(entry);
        Some(row.clone())
    }

    /// What was decided when this action began; `None` where that was not seen.
    pub fn what_of(&self, action: &str) -> Option<String> {
        let row = self.0.iter().rev().find(|row| row.action == action)?;
        Some(row.what.clone()).filter(|what| !what.is_empty())
    }

    /// The newest first, at most `limit`.
    pub fn newest(&self, limit: usize) -> Vec<ActionRow> {
        self.0.iter().rev().take(limit).cloned().collect()
    }
}

impl ActionRow {
    fn begun(token: &str, entry: &Entry) -> Self {
        Self {
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

    fn take(&mut self, entry: &Entry) {
        fn newer<T: Clone>(mine: &mut Option<T>, theirs: &Option<T>) {
            if theirs.is_some() {
                mine.clone_from(theirs);
            }
        }
        newer(&mut self.service, &entry.service);
        newer(&mut self.service_name, &entry.service_name);
        newer(&mut self.source, &entry.node);
        newer(&mut self.target, &entry.target);
        newer(&mut self.task, &entry.task);
        if let Some(mttr_ms) = entry.figures.get("mttr_ms") {
            self.mttr_ms = Some(*mttr_ms);
        }
        if entry.kind == Kind::Decision {
            self.what.clone_from(&entry.code);
            self.reason.clone_from(&entry.text);
            return;
        }
        if matches!(entry.code.as_str(), "done" | "undone") && self.ended_at_ms.is_none() {
            self.outcome.clone_from(&entry.code);
            self.ended_at_ms = Some(entry.at_ms);
        }
        if self.steps.len() < MAX_STEPS {
            let after_ms = entry.at_ms.saturating_sub(self.started_at_ms);
            self.steps.push(StepRow { code: entry.code.clone(), after_ms, text: entry.text.clone() });
        }
    }
}
