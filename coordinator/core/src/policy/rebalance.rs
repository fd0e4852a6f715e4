//! Opt-in: a node that came back empty gets one replica of a service that meanwhile crowds elsewhere.
//!
//! Only after a return, never as a standing rule: replicas are placed by load, and evening out their numbers for its own
//! sake would undo that.

use std::time::Duration;

use swarmguard_common::{
    domain::NodeId,
    labels::{MigrateMode, ServicePolicy},
};

use super::{
    Precedence, Round, Verdict, constant, ms, name,
    target::{Target, best_target},
};
use crate::{action::Intent, explain::Conclusion, rule::Rule, swarm::Service};

/// A node must have been back for this long, so that one that flaps gets nothing.
const STEADY: Duration = Duration::from_secs(30);
/// And not longer than this: later it is a node like any other.
const RECENT: Duration = Duration::from_secs(1_800);

impl Round<'_> {
    /// Whether a replica should go to a node that returned; `None` where the label is not set or no node did.
    pub(super) fn rebalance(&self, service: &Service, policy: &ServicePolicy) -> Option<Verdict> {
        if !policy.rebalance || policy.migrate == MigrateMode::Off {
            return None;
        }
        let copies = |node: &NodeId| self.view.placed().replicas(node, &service.id);
        let back = |node: &NodeId| {
            let since = self.view.history.returned(node).map(|at| self.now - at);
            since.is_some_and(|since| (STEADY..RECENT).contains(&since))
        };
        let crowded =
            self.snapshot.nodes.keys().max_by_key(|node| (copies(node), std::cmp::Reverse(*node)))?;
        let most = copies(crowded);
        if !self.snapshot.nodes.keys().any(|node| back(node) && copies(node) + 2 <= most) {
            return None;
        }
        if let Some(reason) = self.why_not_movable(service, policy) {
            return Some(self.refuse_for(service, reason));
        }
        let Some(burden) = self.burden_on(&service.id, crowded) else {
            return Some(self.refuse(
                service,
                Rule::NoData,
                "no fresh figures of its replicas",
                "fresh figures",
            ));
        };
        let fits = |target: &Target| {
            if !back(&target.node) {
                return Err("did not return lately".into());
            }
            if copies(&target.node) + 2 > most {
                return Err("has its share".into());
            }
            let high = policy.thresholds.cpu_high.ratio();
            if target.predicted_cpu >= high
                || target.predicted_memory >= policy.thresholds.memory_high.ratio()
            {
                return Err(format!("CPU would be at {:.0} %", target.predicted_cpu * 100.0));
            }
            Ok(())
        };
        Some(match best_target(self, service, burden, fits) {
            Err(obstacles) => {
                let text = format!("no node that returned can take a replica: {obstacles}");
                self.refuse(service, Rule::NoRoom, text, "room on the node that returned")
            }
            Ok(target) => {
                let (from, to) = (name(self.snapshot, crowded), name(self.snapshot, &target.node));
                let text = format!("{to} is back and empty of it, {from} has {most} replicas: one moves");
                let mut verdict = self.verdict(service, Conclusion::Act, Rule::Rebalance, text);
                verdict.judgement.otherwise = "swarmguard.rebalance=false".into();
                verdict.judgement.node = Some(crowded.clone());
                verdict.judgement.target = Some(target.node.clone());
                if let Some(at) = self.view.history.returned(&target.node) {
                    verdict.judgement.signals.insert("returned_ms", ms(self.now - at));
                }
                verdict.intent = Some(Intent::Migrate {
                    service: service.id.clone(),
                    source: crowded.clone(),
                    target: Some(target.node),
                });
                verdict.keep = policy.cooldown.max(constant::MOVED_IN_VAIN);
                verdict.rank = (Precedence::Rebalance, 0);
                verdict
            }
        })
    }
}
