//! The coordinator itself, and its answers to commands.

use serde::{Deserialize, Serialize};

/// Whether the coordinator is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusWord {
    /// It is.
    Ok,
    /// The last reading of Swarm failed, or nobody acts.
    Degraded,
    /// There is no reading of Swarm, or it is too old to decide by.
    Blind,
}

/// The coordinator itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether it is well.
    pub status: StatusWord,
    /// Of the program.
    pub version: String,
    /// This coordinator is the one that acts.
    pub acting: bool,
    /// Whose turn it is to act, in a sentence: where nobody acts, why.
    #[serde(default)]
    pub turn: String,
    /// Host name of the node with the raft leadership.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Age of the newest reading of Swarm; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_age_ms: Option<u64>,
    /// Why Swarm cannot be read, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Counters.
    pub statistics: Statistics,
}

/// What was dropped or refused, and how much there is. Counters only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Alert edges taken in.
    pub alerts: u64,
    /// Alert edges seen before.
    pub duplicate_alerts: u64,
    /// Alert edges of an unknown handle, condition or epoch.
    pub unknown_alerts: u64,
    /// Reports taken in.
    pub reports: u64,
    /// Reports older than the newest, of another epoch, or over a superseded connection.
    pub stale_reports: u64,
    /// Messages dropped because something was full.
    pub dropped: u64,
    /// Decisions to act.
    pub decisions: u64,
    /// Refusals journalled.
    pub refusals: u64,
    /// Commands given out.
    pub commands: u64,
    /// Commands that failed.
    pub failed_commands: u64,
    /// Journal entries dropped because nobody took them.
    pub dropped_entries: u64,
}

/// An operator's command was taken (202).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The token of the action that begins, where one does: the journal's `action`.
    pub action: Option<String>,
    /// One sentence.
    pub text: String,
}

/// What a command would do (`?dry_run=true`); one that would not be taken is answered as it would be without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Always true, so that no program takes it for more than it is.
    pub dry_run: bool,
    /// One sentence.
    pub text: String,
}
