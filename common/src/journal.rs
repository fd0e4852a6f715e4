//! Journal entries: what was alerted, decided, refused and done. Written by the coordinator, read by people, the API's
//! clients and the tests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::{NodeId, ServiceId, TaskId};

/// One line of the journal. Serialised as flat JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts up in one coordinator's journal.
    #[serde(default)]
    pub id: u64,
    /// Wall clock of the coordinator when it happened, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What sort of entry.
    pub kind: Kind,
    /// A stable word for programs, for instance `migrate`, `cooldown`, `successor_healthy`.
    pub code: String,
    /// The service it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceId>,
    /// Swarm's name of that service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// The task it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// The node it is about; in a migration the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// In a migration the node that the successor runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<NodeId>,
    /// Identifies the action that this entry is a step of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// One sentence for people.
    pub text: String,
    /// The figures behind it, by name with their unit last (`cpu_percent`, `node_cpu_percent`, `age_ms`, `mttr_ms`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, f64>,
    /// For decisions and refusals: the rule that applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// For decisions and refusals: what would have changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<String>,
}

impl Entry {
    /// An entry about nothing in particular: the fields that apply are set afterwards. Number and time are 0; who keeps
    /// the journal sets them.
    pub fn new(kind: Kind, code: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            id: 0,
            at_ms: 0,
            kind,
            code: code.into(),
            service: None,
            service_name: None,
            task: None,
            node: None,
            target: None,
            action: None,
            text: text.into(),
            figures: BTreeMap::new(),
            rule: None,
            otherwise: None,
        }
    }
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Alert, Self::Decision, Self::Refusal, Self::Action, Self::Lease, Self::Operator, Self::Notice];
}

/// What sort of journal entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An alert edge from an agent.
    Alert,
    /// Something is to be done.
    Decision,
    /// Something is not to be done, and why.
    Refusal,
    /// A step of an action.
    Action,
    /// A lease was granted, lapsed or taken over; a peer came or went.
    Lease,
    /// What an operator asked for: by whom, from where, and whether it was taken.
    Operator,
    /// Something for the operator to know: a label that makes no sense, a journal set aside.
    Notice,
}
