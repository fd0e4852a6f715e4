//! Why a service was or was not touched: judgements and findings.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use swarmguard_common::domain::{NodeId, TaskId};

use crate::rule::Rule;

/// What a judgement came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Conclusion {
    /// Something is to be done.
    Act,
    /// Something would have been done, were it not for the rule.
    Refuse,
    /// Nothing is the matter.
    Calm,
}

/// A judgement with its reasons.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judgement {
    /// What it came to.
    pub conclusion: Conclusion,
    /// The rule that applied.
    pub rule: Rule,
    /// One sentence.
    pub text: String,
    /// What would have changed it.
    pub otherwise: String,
    /// The figures it rests on, by name with their unit last.
    pub signals: BTreeMap<&'static str, f64>,
    /// How long what it is about has been hot; `None` where nothing is.
    #[serde(skip)]
    pub hot_for: Option<Duration>,
    /// The replica it is about.
    pub task: Option<TaskId>,
    /// The node it is about; in a migration the source.
    pub node: Option<NodeId>,
    /// Where to.
    pub target: Option<NodeId>,
}

/// Something about a service that stands against moving it, or weakens the promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which, for instance `no_healthcheck`.
    pub code: Rule,
    /// Refuses a migration; else only a warning.
    pub refuses: bool,
    /// One sentence.
    pub text: String,
    /// What would change it.
    pub otherwise: String,
}
