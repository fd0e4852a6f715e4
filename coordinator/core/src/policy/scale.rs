//! Scaling out as far as demand asks, to nodes with room; scaling in by one replica of a chosen node, once fewer have been
//! enough for the whole window.

use std::time::Duration;

use swarmguard_common::{
    domain::{NodeId, ServiceId},
    labels::{ACT_AFTER, ScaleSignal, ServicePolicy},
    time::Time,
};

use super::{
    Precedence, Round, Verdict, constant,
    evidence::{Demand, Evidence, Spare, demand, float, spare},
    migrate::{Reason, backing_off, cooling},
    ms, name, placement,
    target::{Target, best_target, memory_fits},
};
use crate::{
    action::{Intent, Kind},
    explain::Conclusion,
    rule::Rule,
    swarm::Service,
    view::{SPAN, View, shortage::CPU_SHORT},
};

/// The node whose replica is to go: the one with least room among those that host one and whose figures are believed.
pub fn choose_victim_node(view: &View, service: &ServiceId, now: Time) -> Option<NodeId> {
    let mut hosts: Vec<(NodeId, f64, usize)> = Vec::new();
    for replica in view.replicas(service, now).iter().filter(|replica| replica.task.is_serving()) {
        let Some(agent) = replica.agent.filter(|agent| agent.node_load(now).is_some()) else { continue };
        match hosts.iter_mut().find(|(node, ..)| *node == replica.node.id) {
            Some((_, _, copies)) => *copies += 1,
            None => hosts.push((replica.node.id.clone(), agent.cpu.ratio()?, 1)),
        }
    }
    // The branch of its spread preferences that has most loses one first, as Swarm itself evens them out. Full to five
    // points: small differences between nodes do not outweigh two replicas on one.
    let snapshot = view.snapshot.as_deref()?;
    let of = snapshot.services.get(service)?;
    let branches = |node: &NodeId| {
        let node = snapshot.nodes.get(node);
        node.map(|node| placement::spread(snapshot, view.placed(), of, node)).unwrap_or_default()
    };
    let key = |(node, cpu, copies): &(NodeId, f64, usize)| {
        (branches(node), (cpu * 20.0).round(), *copies, node.clone())
    };
    let busiest = hosts
        .iter()
        .map(key)
        .max_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)).then(b.3.cmp(&a.3)));
    busiest.map(|(_, _, _, node)| node)
}

impl Round<'_> {
    /// Scales out for a reason, or says what forbids it.
    #[expect(clippy::too_many_arguments, reason = "what a step rests on, each of another kind")]
    pub(super) fn scale_out(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        replicas: u64,
        rule: Rule,
        text: &str,
        demand: &Demand,
        evidence: &Evidence<'_>,
    ) -> Verdict {
        let Some(max) = policy.scale_max.filter(|_| policy.scale_min.is_some()) else {
            let text = format!("{text}: {} would be enough, but it may not scale", demand.wanted);
            let otherwise =
                format!("swarmguard.scale.min={replicas} and swarmguard.scale.max={}", demand.wanted);
            return self.refuse(service, Rule::ScalingOff, text, otherwise);
        };
        let wanted = demand.wanted.min(u64::from(max));
        if wanted <= replicas {
            let text = format!("{text}: {} would be enough, but it has its {max} replicas", demand.wanted);
            let otherwise = format!("swarmguard.scale.max={}", demand.wanted.max(replicas + 1));
            return self.refuse(service, Rule::AtMax, text, otherwise);
        }
        if let Some(reason) = self.why_no_step_up(service, policy, demand, evidence) {
            let mut refusal = self.refuse_for(service, reason);
            refusal.judgement.text = format!("{text}: {wanted} are wanted, but {}", refusal.judgement.text);
            return refusal;
        }
        // A new replica takes its part of the load off the others; its memory is its own.
        let steps = wanted - replicas;
        let mut burden = self.mean_burden(&service.id).unwrap_or_default();
        burden.cpu_millis = evidence.used_millis() / float(wanted);
        let silent_for = policy.up_cooldown.max(constant::SILENT_TARGET);
        let fits = |target: &Target| {
            self.fell_silent(service, Kind::ScaleOut, silent_for, target)?;
            if target.predicted_cpu >= CPU_SHORT.ratio() {
                return Err(format!("CPU would be at {:.0} %", target.predicted_cpu * 100.0));
            }
            memory_fits(policy, target)?;
            self.tasks_wait(&target.node).map_or(Ok(()), Err)
        };
        match best_target(self, service, burden, fits) {
            Err(obstacles) => {
                let text = format!("{text}: {wanted} are wanted, but no node has room: {obstacles}");
                let otherwise = "a node with room that the service may run on";
                self.refuse(service, Rule::NoRoom, text, otherwise)
            }
            Ok(target) => {
                let to = name(self.snapshot, &target.node);
                let to = if steps == 1 {
                    format!("the new one on {to}")
                } else {
                    "where Swarm places them".into()
                };
                let text = format!("{text}: from {replicas} to {wanted} replicas, {to}");
                let mut verdict = self.verdict(service, Conclusion::Act, rule, text);
                verdict.judgement.otherwise =
                    format!("swarmguard.scale.max={replicas}, or a higher swarmguard.cpu.high");
                verdict.judgement.target = Some(target.node.clone());
                verdict.judgement.signals.insert("wanted_replicas", float(wanted));
                verdict.judgement.signals.insert("target_cpu_percent", target.cpu * 100.0);
                verdict.judgement.signals.insert("predicted_memory_percent", target.predicted_memory * 100.0);
                verdict.intent = Some(Intent::ScaleOut {
                    service: service.id.clone(),
                    replicas: wanted,
                    // Several at once are spread by Swarm: steering them to one node would keep them off the others.
                    target: (steps == 1).then_some(target.node),
                });
                verdict.keep = silent_for.max(policy.down_cooldown);
                verdict.rank = (Precedence::ScaleOut, 0);
                verdict
            }
        }
    }

    /// What forbids a step up now: one that failed, a cooldown of the operator's, or that the last one has not shown
    /// itself yet. Where all replicas are at their limits still when the new ones serve, nothing needs to be awaited.
    fn why_no_step_up(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        demand: &Demand,
        evidence: &Evidence<'_>,
    ) -> Option<Reason> {
        if let Some(reason) = self.rests(service, Kind::ScaleOut, "step up") {
            return Some(reason);
        }
        let past = self.view.history.past(&service.id, Kind::ScaleOut).filter(|past| !past.target_lost)?;
        let since = self.now - past.ended;
        let failed = self.view.history.failures(&service.id, Kind::ScaleOut);
        if let Some(reason) = backing_off("step up", failed, since) {
            return Some(reason);
        }
        if since < policy.up_cooldown {
            return Some(cooling(
                Rule::UpCooldown,
                "step up",
                policy.up_cooldown,
                policy.up_cooldown - since,
            ));
        }
        // What is known to warm up for longer is waited for: busy is what it is then in any case.
        let warm_up = policy.warm_up.or_else(|| self.view.lives.warm_up_of(&service.id)).unwrap_or_default();
        let enough = constant::SHOWN.max(warm_up);
        let shown = if demand.saturated {
            since >= constant::SHOWN && evidence.newest().is_none_or(|served| served >= enough)
        } else {
            !evidence.has_newcomer()
        };
        (!past.undone && !shown).then(|| Reason {
            rule: Rule::JustScaled,
            text: format!("the replicas added {} s ago have not shown what they help", since.as_secs()),
            otherwise: "swarmguard.warm-up says how long they take; otherwise that is learned".into(),
            left: None,
        })
    }

    /// Whether tasks of a node wait so much that it is short, whatever its utilisation.
    fn tasks_wait(&self, node: &NodeId) -> Option<String> {
        let load = self.view.agents.get(node)?.recent.settled(self.now, SPAN)?;
        // Tasks that wait at their own limits while CPUs are idle take no room from others.
        let busy = load.cpu.is_some_and(|cpu| cpu.ratio() >= constant::CPU_ROOM);
        let waits = [("a CPU", load.psi_cpu.filter(|_| busy)), ("memory", load.psi_memory)];
        let (what, share) = waits
            .into_iter()
            .find_map(|(what, share)| Some((what, share.filter(|share| share.0 >= constant::SHORT_PSI)?)))?;
        Some(format!("its tasks wait for {what} {share} of the time"))
    }

    /// Brings a replica count that somebody set outside its bounds back, one step at a time.
    pub(super) fn bounds(&self, service: &Service, policy: &ServicePolicy, replicas: u64) -> Option<Verdict> {
        let (min, max) = (u64::from(policy.scale_min?), u64::from(policy.scale_max?));
        if replicas == 0 {
            // Switched off by its owner: that is theirs to change.
            return Some(self.calm(service, Rule::SwitchedOff, "it was scaled to none"));
        }
        if replicas < min {
            let text = format!("{replicas} replicas, at least {min} are wanted");
            let evidence = Evidence::of(self.view, service, policy, self.now, SPAN);
            let demand = Demand {
                wanted: replicas + 1,
                signal: ScaleSignal::Cpu,
                saturated: false,
                text: text.clone(),
            };
            return Some(self.scale_out(
                service,
                policy,
                replicas,
                Rule::BelowMin,
                &text,
                &demand,
                &evidence,
            ));
        }
        if replicas > max {
            let text = format!("{replicas} replicas, at most {max} are wanted");
            return Some(self.scale_in(service, policy, Rule::AboveMax, text));
        }
        None
    }

    /// A signal that no alert tells of asks for more replicas, and has for long enough.
    pub(super) fn judge_signals(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        replicas: u64,
    ) -> Option<Verdict> {
        let over_for = self.now - self.view.history.over_since(&service.id)?;
        if over_for < policy.act_after.unwrap_or(ACT_AFTER) {
            return None;
        }
        let evidence = Evidence::of(self.view, service, policy, self.now, SPAN);
        let demand = demand(self.view, &evidence, service, policy, replicas, self.now);
        (demand.wanted > replicas).then(|| {
            self.scale_out(service, policy, replicas, Rule::ScaleOut, &demand.text, &demand, &evidence)
        })
    }

    /// Nothing is hot: can one replica go?
    pub(super) fn judge_spare(&self, service: &Service, policy: &ServicePolicy, replicas: u64) -> Verdict {
        let Some(min) = policy.scale_min.filter(|_| policy.scale_max.is_some()) else {
            return self.calm(service, Rule::Calm, "no replica is hot");
        };
        let (needed, text, used_millis) = match spare(self.view, service, policy, self.now) {
            Spare::Unknown(why) => {
                let text = format!("nothing is known to be hot or spare: {why}");
                let mut verdict = self.calm(service, Rule::Unknown, text);
                verdict.judgement.otherwise = "fresh figures of every replica".into();
                return verdict;
            }
            Spare::Needed { replicas, text, used_millis } => (replicas, text, used_millis),
        };
        let history = &self.view.history;
        let since = history.spare_since(&service.id, replicas);
        let spare_for = since.map(|since| self.now - since).unwrap_or_default();
        let most = history.most_needed(&service.id, self.now, policy.down_window);
        let mut verdict = if needed >= replicas {
            self.calm(service, Rule::Calm, format!("no replica is hot, none is spare: {text}"))
        } else if replicas <= u64::from(min) {
            self.calm(service, Rule::AtMin, format!("{text}, but {min} are the least"))
        } else if let Some(set) = self.set_by_hand(service) {
            let text = format!(
                "{text}; but somebody set {replicas} replicas {} s ago: they stay for {} s",
                set.as_secs(),
                constant::SET_BY_HAND.as_secs()
            );
            let mut verdict = self.calm(service, Rule::SetByHand, text);
            verdict.judgement.otherwise = format!("docker service scale {}={needed}", service.name);
            verdict
        } else if most.is_none_or(|most| most >= replicas) {
            let text = format!("{text}, for {} s now", spare_for.as_secs());
            let mut verdict = self.calm(service, Rule::SpareHolding, text);
            verdict.judgement.otherwise = format!(
                "one goes at {} s; swarmguard.scale.down.window sets that",
                policy.down_window.as_secs()
            );
            verdict
        } else {
            let text = format!("{text}, and that for {} s", policy.down_window.as_secs());
            self.scale_in(service, policy, Rule::ScaleIn, text)
        };
        let signals = &mut verdict.judgement.signals;
        signals.insert("used_cores", used_millis / 1_000.0);
        signals.insert("needed_replicas", float(needed));
        signals.insert("spare_ms", ms(spare_for));
        signals.insert("down_window_ms", ms(policy.down_window));
        verdict
    }

    /// How long ago somebody else set the number of replicas, where that still stands.
    fn set_by_hand(&self, service: &Service) -> Option<Duration> {
        let since = self.now - self.view.history.set_by_hand(&service.id)?;
        (since < constant::SET_BY_HAND).then_some(since)
    }

    fn scale_in(&self, service: &Service, policy: &ServicePolicy, rule: Rule, text: String) -> Verdict {
        for kind in [Kind::ScaleIn, Kind::ScaleOut] {
            if let Some(past) = self.view.history.past(&service.id, kind) {
                let since = self.now - past.ended;
                let failed = self.view.history.failures(&service.id, kind);
                if let Some(reason) = backing_off("step", failed, since).filter(|_| kind == Kind::ScaleIn) {
                    return self.refuse_for(service, reason);
                }
                if since < policy.down_cooldown {
                    let left = policy.down_cooldown - since;
                    let reason = cooling(Rule::DownCooldown, "step", policy.down_cooldown, left);
                    return self.refuse_for(service, reason);
                }
            }
        }
        let Some(node) = choose_victim_node(self.view, &service.id, self.now) else {
            let otherwise = "an agent that is heard on a node of the service";
            return self.refuse(
                service,
                Rule::NoData,
                format!("{text}; but no node's figures are known"),
                otherwise,
            );
        };
        let text = format!("{text}; the one on {} goes, which has least room", name(self.snapshot, &node));
        let mut verdict = self.verdict(service, Conclusion::Act, rule, text);
        verdict.judgement.otherwise = "a higher swarmguard.scale.min, or more load".into();
        verdict.judgement.node = Some(node.clone());
        verdict.intent = Some(Intent::ScaleIn { service: service.id.clone(), node });
        verdict.keep = policy.down_cooldown;
        verdict
    }
}
