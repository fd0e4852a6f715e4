//! Why a service was or was not touched: the judgement's own words, and how the API tells them.

use std::{collections::BTreeMap, time::Duration};

use crate::rule::Rule;
pub use swarmguard_common::api::Conclusion;
use swarmguard_common::{
    api,
    domain::{NodeId, TaskId},
};

/// A judgement with its reasons.
#[derive(Clone, Debug, PartialEq)]
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
    pub hot_for: Option<Duration>,
    /// The replica it is about.
    pub task: Option<TaskId>,
    /// The node it is about; in a migration the source.
    pub node: Option<NodeId>,
    /// Where to.
    pub target: Option<NodeId>,
}

/// Something about a service that stands against moving it, or weakens the promise.
#[derive(Clone, Debug, PartialEq, Eq)]
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

impl From<&Judgement> for api::Judgement {
    fn from(judgement: &Judgement) -> Self {
        Self {
            conclusion: judgement.conclusion,
            rule: judgement.rule.into(),
            text: judgement.text.clone(),
            otherwise: judgement.otherwise.clone(),
            signals: judgement.signals.iter().map(|(name, value)| ((*name).into(), *value)).collect(),
            task: judgement.task.clone(),
            node: judgement.node.clone(),
            target: judgement.target.clone(),
        }
    }
}

impl From<Finding> for api::Finding {
    fn from(finding: Finding) -> Self {
        Self {
            code: finding.code.into(),
            refuses: finding.refuses,
            text: finding.text,
            otherwise: finding.otherwise,
        }
    }
}
