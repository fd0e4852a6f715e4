//! Why a service was or was not touched: what `explain` answers.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{ActionStatus, AlertStatus};
use crate::{
    domain::{NodeId, ServiceId, TaskId},
    labels::{
        ACT_AFTER, Algorithm, Allowance, MigrateMode, Part, Replace, RouteLabels, ScaleSignal, ScaleStep,
        ServicePolicy,
    },
};

/// What a judgement came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// What it came to.
    pub conclusion: Conclusion,
    /// The rule that applied: a stable word.
    pub rule: Cow<'static, str>,
    /// One sentence.
    pub text: String,
    /// What would have changed it.
    pub otherwise: String,
    /// The figures it rests on, by name with their unit last.
    pub signals: BTreeMap<Cow<'static, str>, f64>,
    /// The replica it is about.
    pub task: Option<TaskId>,
    /// The node it is about; in a migration the source.
    pub node: Option<NodeId>,
    /// Where to.
    pub target: Option<NodeId>,
}

/// Everything that bears on one service now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    pub policy: Option<Policy>,
    /// What is wrong with its labels.
    pub label_errors: Vec<String>,
    /// Cooldowns that still run, by kind of action, in milliseconds left.
    pub cooldowns_ms: BTreeMap<Cow<'static, str>, u64>,
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// A stable word, for instance `no_healthcheck`.
    pub code: Cow<'static, str>,
    /// Refuses a migration; else only a warning.
    pub refuses: bool,
    /// One sentence.
    pub text: String,
    /// What would change it.
    pub otherwise: String,
}

/// The labels of a service as they were understood, defaults included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// `swarmguard.enable`.
    pub enabled: bool,
    /// `swarmguard.observe`.
    pub observe: bool,
    /// `swarmguard.role`.
    pub role: Option<Part>,
    /// `swarmguard.cpu.high`.
    pub cpu_high_percent: f64,
    /// `swarmguard.memory.high`.
    pub memory_high_percent: f64,
    /// `swarmguard.network.low`.
    pub network_low_percent: f64,
    /// `swarmguard.network.high`.
    pub network_high_percent: f64,
    /// `swarmguard.network.mbps`; the node's link speed where `None`.
    pub network_mbps: Option<u32>,
    /// `swarmguard.hold`.
    pub hold_ms: u64,
    /// `swarmguard.migrate`.
    pub migrate: MigrateMode,
    /// `swarmguard.migrate.allow`.
    pub allow: Vec<Allowance>,
    /// `swarmguard.act-after`, or what holds without it.
    pub act_after_ms: u64,
    /// `swarmguard.cooldown`.
    pub cooldown_ms: u64,
    /// `swarmguard.scale.min`.
    pub scale_min: Option<u32>,
    /// `swarmguard.scale.max`.
    pub scale_max: Option<u32>,
    /// `swarmguard.scale.memory`.
    pub scale_memory: bool,
    /// `swarmguard.scale.on`.
    pub scale_on: Vec<ScaleSignal>,
    /// `swarmguard.scale.step`.
    pub scale_step: ScaleStep,
    /// `swarmguard.warm-up`; learned where absent.
    pub warm_up_ms: Option<u64>,
    /// `swarmguard.start-deadline`; by the healthcheck where absent.
    pub start_deadline_ms: Option<u64>,
    /// `swarmguard.replace`.
    pub replace: Vec<Replace>,
    /// `swarmguard.scale.up.cooldown`.
    pub scale_up_cooldown_ms: u64,
    /// `swarmguard.scale.down.cooldown`.
    pub scale_down_cooldown_ms: u64,
    /// `swarmguard.scale.down.window`.
    pub scale_down_window_ms: u64,
    /// `swarmguard.scale.margin`.
    pub scale_margin_percent: f64,
    /// `swarmguard.rebalance`.
    pub rebalance: bool,
    /// `swarmguard.job.retries`.
    pub job_retries: u32,
    /// `swarmguard.lb.connect`.
    pub connect: bool,
    /// `swarmguard.lb.*`, where it is balanced.
    pub route: Option<RoutePolicy>,
}

/// How the balancer treats a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutePolicy {
    /// `swarmguard.lb.port`.
    pub port: u16,
    /// `swarmguard.lb.host`.
    pub hosts: Vec<String>,
    /// `swarmguard.lb.path`.
    pub path: String,
    /// `swarmguard.lb.algorithm`; the balancer's own default where `None`.
    pub algorithm: Option<Algorithm>,
    /// `swarmguard.lb.weight`.
    pub weight: u32,
    /// `swarmguard.lb.sticky`.
    pub sticky: bool,
    /// `swarmguard.lb.health`.
    pub health_path: String,
    /// `swarmguard.lb.rate`, in requests a second.
    pub rate: Option<u32>,
    /// `swarmguard.lb.client-rate`, in requests a second of one client address.
    pub client_rate: Option<u32>,
    /// `swarmguard.lb.upgrade`.
    pub upgrades: Vec<String>,
    /// `swarmguard.lb.max-in-flight`.
    pub max_in_flight: u32,
    /// `swarmguard.lb.timeout`.
    pub timeout_ms: u64,
    /// `swarmguard.lb.slow-start`.
    pub slow_start_ms: u64,
    /// `swarmguard.lb.http2`.
    pub http2: bool,
}

impl From<&ServicePolicy> for Policy {
    fn from(policy: &ServicePolicy) -> Self {
        let thresholds = &policy.thresholds;
        Self {
            enabled: policy.enabled,
            observe: policy.observe,
            role: policy.role,
            cpu_high_percent: thresholds.cpu_high.percent(),
            memory_high_percent: thresholds.memory_high.percent(),
            network_low_percent: thresholds.network_low.percent(),
            network_high_percent: thresholds.network_high.percent(),
            network_mbps: thresholds.network_mbps,
            hold_ms: thresholds.hold_ms.into(),
            migrate: policy.migrate,
            allow: policy.allow.clone(),
            act_after_ms: ms(policy.act_after.unwrap_or(ACT_AFTER)),
            cooldown_ms: ms(policy.cooldown),
            scale_min: policy.scale_min,
            scale_max: policy.scale_max,
            scale_memory: policy.scale_memory,
            scale_on: policy.scale_on.clone(),
            scale_step: policy.scale_step,
            warm_up_ms: policy.warm_up.map(ms),
            start_deadline_ms: policy.start_deadline.map(ms),
            replace: policy.replace.clone(),
            scale_up_cooldown_ms: ms(policy.up_cooldown),
            scale_down_cooldown_ms: ms(policy.down_cooldown),
            scale_down_window_ms: ms(policy.down_window),
            scale_margin_percent: policy.margin.percent(),
            rebalance: policy.rebalance,
            job_retries: policy.job_retries,
            connect: policy.connect,
            route: policy.route.as_ref().map(RoutePolicy::from),
        }
    }
}

impl From<&RouteLabels> for RoutePolicy {
    fn from(labels: &RouteLabels) -> Self {
        Self {
            port: labels.port,
            hosts: labels.hosts.clone(),
            path: labels.path.clone(),
            algorithm: labels.algorithm,
            weight: labels.weight,
            sticky: labels.sticky,
            health_path: labels.health_path.clone(),
            rate: labels.rate,
            client_rate: labels.client_rate,
            upgrades: labels.upgrades.clone(),
            max_in_flight: labels.max_in_flight,
            timeout_ms: ms(labels.timeout),
            slow_start_ms: ms(labels.slow_start),
            http2: labels.http2,
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
