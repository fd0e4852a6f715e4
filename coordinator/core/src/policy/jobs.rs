//! Swarm jobs whose node was lost: Swarm itself waits a day for such a task, and counts it as running all the while.
//!
//! Every update of a job, also an identical one, is a new iteration: Swarm removes what is left of the old one and runs
//! all completions again. So a job is run again only when nothing of it runs elsewhere any more.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::{domain::NodeId, labels::ServicePolicy, time::Time};

use super::placement;
use crate::{
    explain::{Conclusion, Judgement},
    rule::Rule,
    swarm::{Mode, Service, TaskState},
    view::View,
};

/// Swarm says that a node is down after some 15 s; it stays down for this long before a job is run again.
const STAYS_DOWN: Duration = Duration::from_secs(5);

/// A job to be run again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Again {
    /// The iteration that was lost.
    pub iteration: u64,
    /// The nodes that were lost with it.
    pub nodes: Vec<NodeId>,
}

/// Judges a job; `None` for services that are none, or not enabled. `attempts` were made for this run of it before.
pub fn judge(view: &View, service: &Service, attempts: u32, now: Time) -> Option<(Judgement, Option<Again>)> {
    let Ok(policy) = &service.policy else { return None };
    let (Mode::ReplicatedJob { .. }, Some(iteration), true) =
        (service.mode, service.job_iteration, policy.enabled)
    else {
        return None;
    };
    let current = view.tasks_of(&service.id).filter(|task| task.job_iteration == Some(iteration));
    let mut lost: Vec<NodeId> = Vec::new();
    let (mut done, mut alive) = (0_u32, 0_u32);
    for task in current {
        match (task.state, &task.node) {
            (TaskState::Complete, _) => done += 1,
            (state, Some(node)) if state <= TaskState::Running && is_lost(view, node, now) => {
                lost.push(node.clone());
            }
            // Waiting, running, or failed and Swarm's to restart.
            _ if task.desired <= TaskState::Complete => alive += 1,
            _ => {}
        }
    }
    lost.sort();
    lost.dedup();
    let signals = BTreeMap::from([
        ("tasks_done", f64::from(done)),
        ("tasks_alive", f64::from(alive)),
        ("attempts", f64::from(attempts)),
    ]);
    let judgement = |conclusion, rule, text: String, otherwise: &str| Judgement {
        conclusion,
        rule,
        text,
        otherwise: otherwise.into(),
        signals: signals.clone(),
        hot_for: None,
        task: None,
        node: lost.first().cloned(),
        target: None,
    };
    Some(if lost.is_empty() {
        let text = format!("a job: {alive} tasks are at work, {done} are done");
        (judgement(Conclusion::Calm, Rule::Job, text, "a node that is lost"), None)
    } else if alive > 0 {
        let text = format!("{} of its nodes are lost, but {alive} tasks go on elsewhere", lost.len());
        (judgement(Conclusion::Refuse, Rule::JobGoesOn, text, "the end of the tasks that go on"), None)
    } else if attempts >= policy.job_retries {
        let text = format!("its node is lost, and it was run again {attempts} times already");
        (judgement(Conclusion::Refuse, Rule::JobRetries, text, "a higher swarmguard.job.retries"), None)
    } else {
        let text = format!(
            "its node is lost and nothing of it runs elsewhere: it runs again, attempt {}",
            attempts + 1
        );
        let again = Again { iteration, nodes: lost.clone() };
        (judgement(Conclusion::Act, Rule::JobAgain, text, retries(policy)), Some(again))
    })
}

fn retries(policy: &ServicePolicy) -> &'static str {
    if policy.job_retries == 1 {
        "swarmguard.job.retries=0"
    } else {
        "a lower swarmguard.job.retries, or its node back"
    }
}

/// Both Swarm and the agent there have fallen silent, and have stayed so.
fn is_lost(view: &View, node: &NodeId, now: Time) -> bool {
    let gone = view.snapshot.as_ref().is_some_and(|snapshot| !snapshot.nodes.contains_key(node));
    let down = view.history.down_since(node).is_some_and(|since| now - since >= STAYS_DOWN);
    let silent = matches!(view.lease(node, now), None | Some(crate::lease::LeaseState::Lapsed));
    gone || (down && silent && placement::unbelievable(view, node, now).is_some())
}
