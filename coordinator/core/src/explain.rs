//! Why a service was or was not touched: what the API answers to `explain`.

use std::collections::BTreeMap;

use serde::Serialize;
use swarmguard_common::{
    domain::{NodeId, ServiceId, TaskId},
    labels::ServicePolicy,
};

use crate::brain::{ActionStatus, AlertStatus};

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
    /// The rule that applied: a stable word.
    pub rule: &'static str,
    /// One sentence.
    pub text: String,
    /// What would have changed it.
    pub otherwise: String,
    /// The figures it rests on, by name with their unit last.
    pub signals: BTreeMap<&'static str, f64>,
    /// The replica it is about.
    pub task: Option<TaskId>,
    /// The node it is about; in a migration the source.
    pub node: Option<NodeId>,
    /// Where to.
    pub target: Option<NodeId>,
}

/// Everything that bears on one service now.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Swarm's ID.
    pub service: ServiceId,
    /// Swarm's name.
    pub name: String,
    /// The last judgement; `None` before the first snapshot of it, or on a coordinator that has none yet.
    pub verdict: Option<Judgement>,
    /// How old that is.
    pub verdict_age_ms: Option<u64>,
    /// Whether this coordinator is the one to act.
    pub acting: bool,
    /// Decides and explains only.
    pub observe: bool,
    /// Automation is paused for it, or for all.
    pub paused: bool,
    /// Its labels as understood, thresholds included; absent where they make no sense.
    pub policy: Option<ServicePolicy>,
    /// What is wrong with its labels.
    pub label_errors: Vec<String>,
    /// Cooldowns that still run, by kind of action, in milliseconds left.
    pub cooldowns_ms: BTreeMap<&'static str, u64>,
    /// How long all of it has been spare, where it is.
    pub spare_ms: Option<u64>,
    /// Standing alerts of its tasks.
    pub alerts: Vec<AlertStatus>,
    /// The action under way, or its tombstone.
    pub action: Option<ActionStatus>,
    /// What stands against a migration whatever the load: codes and sentences.
    pub preflight: Vec<Finding>,
}

/// Something about a service that stands against moving it, or weakens the promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A stable word, for instance `no_healthcheck`.
    pub code: &'static str,
    /// Refuses a migration; else only a warning.
    pub refuses: bool,
    /// One sentence.
    pub text: String,
    /// What would change it.
    pub otherwise: String,
}
