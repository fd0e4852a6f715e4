//! What actions did, as `history` answers it.

use serde::{Deserialize, Serialize};

use crate::domain::{NodeId, ServiceId, TaskId};

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceId>,
    /// Swarm's name of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// The node that is relieved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<NodeId>,
    /// Where the successor runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<NodeId>,
    /// The task named last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// Wall clock of the first entry, in milliseconds since the Unix epoch.
    pub started_at_ms: u64,
    /// Wall clock of the last entry once the action is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at_ms: Option<u64>,
    /// `running`, `done` or `undone`.
    pub outcome: String,
    /// First sample over the threshold to the successor healthy and the old replica out of use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mttr_ms: Option<f64>,
    /// Its steps, oldest first.
    pub steps: Vec<StepRow>,
}

/// One step of an action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRow {
    /// A stable word.
    pub code: String,
    /// Milliseconds since the action's first entry.
    pub after_ms: u64,
    /// One sentence.
    pub text: String,
}
