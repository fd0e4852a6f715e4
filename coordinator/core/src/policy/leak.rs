//! A replica whose memory grows towards its limit is replaced by a fresh one, by surge, before the kernel kills it.

use std::time::Duration;

use swarmguard_common::labels::{Replace, ServicePolicy};

use super::{
    Round, Verdict,
    relief::certain,
    target::{Target, best_target, has_room},
};
use crate::{action::Kind, policy::burden::Burden, rule::Rule, swarm::Service, view::lives::Maturity};

/// A kill that is further away than this does not count.
const SOON: Duration = Duration::from_secs(600);
/// What is replaced lives on as long as it may: this much is kept before the kill, at least.
const SPARE: Duration = Duration::from_secs(90);
/// And so many times what a replacement takes: the first may fail, and load may make it grow faster.
const TIMES: u32 = 3;

impl Round<'_> {
    /// The replica that meets its memory limit first, where its labels say that it is to be replaced.
    pub(super) fn judge_leak(&self, service: &Service, policy: &ServicePolicy) -> Option<Verdict> {
        if !policy.replace.contains(&Replace::Leak) {
            return None;
        }
        let replicas = self.view.replicas(&service.id, self.now);
        let leaking = replicas.into_iter().filter_map(|replica| {
            let limit = replica.container?.intro.memory_limit_bytes?;
            #[expect(clippy::cast_precision_loss, reason = "a forecast")]
            let limit = limit as f64;
            let (left, grows) = replica.container?.growth.meets(limit)?;
            let maturity = self.view.lives.maturity(&replica.task.id, service, policy.warm_up, self.now);
            (replica.task.is_serving() && maturity != Maturity::Immature && left < SOON)
                .then_some((replica, left, grows, limit))
        });
        let leaking: Vec<_> = leaking.collect();
        let others = u32::try_from(leaking.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let (replica, left, grows, limit) = leaking.into_iter().min_by_key(|(_, left, ..)| *left)?;
        let ahead = self.replaces_ahead(service, policy, others);
        let certain = certain(self, replica, replica.agent?)?;
        const MIB: f64 = 1_048_576.0;
        let text = format!(
            "its memory grows by {:.1} MiB a minute and is at {:.0} of {:.0} MiB: in {} s the kernel would kill it",
            grows * 60.0 / MIB,
            f64::from(certain.load.memory_kib) / 1_024.0,
            limit / MIB,
            left.as_secs()
        );
        if left > ahead {
            let text = format!("{text}; it is replaced {} s before that", ahead.as_secs());
            let mut verdict = self.calm(service, Rule::LeakHolding, text);
            verdict.judgement.otherwise = "a higher memory limit".into();
            return Some(verdict);
        }
        if let Some(reason) = self.why_not_replaceable(service, policy) {
            let mut refusal = self.refuse_for(service, reason);
            refusal.judgement.text = format!("{text}; it is not replaced: {}", refusal.judgement.text);
            return Some(refusal);
        }
        // A fresh one begins with little memory and takes over the load.
        let burden = Burden { cpu_millis: f64::from(certain.load.cpu_millis), memory_bytes: 0.0 };
        let fits = |target: &Target| {
            self.fell_silent(service, Kind::Migrate, policy.cooldown, target)?;
            if target.node == replica.node.id {
                return Err("the source itself".into());
            }
            has_room(policy, target)
        };
        Some(match best_target(self, service, burden, fits) {
            Ok(target) => {
                let mut verdict = self.go(service, policy, Rule::Leak, &certain, text, &target);
                verdict.judgement.otherwise =
                    "a higher memory limit, or no leak in swarmguard.replace".into();
                verdict.judgement.signals.insert("meets_limit_ms", super::ms(left));
                verdict
            }
            Err(obstacles) => {
                let text = format!("{text}; no node has room for a fresh one: {obstacles}");
                self.refuse(service, Rule::NoRoom, text, "a node with room that the service may run on")
            }
        })
    }

    /// How long before its kill the first of several replicas that leak is replaced: one after the other, each has its
    /// own time, and the cooldown between moves.
    fn replaces_ahead(&self, service: &Service, policy: &ServicePolicy, others: u32) -> Duration {
        let takes = self.view.history.remedy_takes(&service.id).max(self.view.lives.start_takes(service));
        let each = takes.saturating_add(policy.cooldown);
        SPARE.max(takes.saturating_mul(TIMES)).saturating_add(each.saturating_mul(others)).min(SOON)
    }
}
