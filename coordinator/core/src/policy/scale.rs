//! Scaling out by one (or a few, where labels allow it) to the node with most room; scaling in by one replica of a
//! chosen node, once the others could carry all of it with margin for the whole window.

use swarmguard_common::{
    domain::{NodeId, ServiceId},
    labels::ServicePolicy,
    time::Time,
};

use super::{
    Precedence, Round, Verdict, constant,
    hot::{Certain, Hot},
    ms, name,
    target::{Target, best_target, memory_fits},
};
use crate::{
    action::{Intent, Kind},
    explain::Conclusion,
    rule::Rule,
    swarm::{Mode, Service},
    view::{SPAN, View},
};

/// Whether the replicas of a service together use so little that one fewer could carry it, with the figures.
#[derive(Clone, Debug, PartialEq)]
pub enum Spare {
    /// One fewer could.
    Yes {
        /// Sum of CPU over replicas, 1.0 being one replica's all.
        cpu: f64,
        /// What it must stay below.
        cpu_room: f64,
    },
    /// One fewer could not.
    No(String),
    /// A figure of a replica is missing, which is not idleness.
    Unknown(String),
}

/// Judges spareness by smoothed, fresh figures of every replica: for cpu and network each, and for memory where labels
/// say so, usage of all < (threshold - margin) x (replicas - 1).
pub fn spare(view: &View, service: &Service, policy: &ServicePolicy, now: Time) -> Spare {
    let Mode::Replicated(replicas) = service.mode else { return Spare::No("not replicated".into()) };
    if replicas < 2 {
        return Spare::No("the only replica".into());
    }
    let found = view.replicas(&service.id, now);
    let serving = found.iter().filter(|replica| replica.task.is_serving()).count();
    if u64::try_from(serving).ok() != Some(replicas) || found.len() != serving {
        return Spare::Unknown(format!("{serving} of {replicas} replicas run"));
    }
    let mut sums = [0.0; 3];
    for replica in &found {
        let fresh = replica.load.zip(replica.container);
        let known = fresh.and_then(|(load, container)| {
            // A smoothed figure counts only beside a fresh one.
            let fresh = [load.cpu, load.memory, load.network].map(|figure| figure.is_some());
            let smooth = [&container.cpu, &container.memory, &container.network].map(|smooth| smooth.ratio());
            let needed = [true, policy.scale_memory, true];
            (0..3).all(|i| !needed[i] || (fresh[i] && smooth[i].is_some())).then_some(smooth)
        });
        let Some(known) = known else {
            return Spare::Unknown(format!("no fresh figures of task {}", replica.task.id));
        };
        for (sum, figure) in sums.iter_mut().zip(known) {
            *sum += figure.unwrap_or(0.0);
        }
    }
    let thresholds = &policy.thresholds;
    #[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 replicas")]
    let others = (replicas - 1) as f64;
    let room = |high: swarmguard_common::domain::BasisPoints| {
        (high.ratio() - policy.margin.ratio()).max(0.0) * others
    };
    let rooms = [room(thresholds.cpu_high), room(thresholds.memory_high), room(thresholds.network_high)];
    let [cpu, memory, network] = sums;
    for (what, sum, room, counts) in [
        ("CPU", cpu, rooms[0], true),
        ("memory", memory, rooms[1], policy.scale_memory),
        ("network", network, rooms[2], true),
    ] {
        if counts && sum >= room {
            let text = format!(
                "{what} of all replicas is {:.0} %, and {} could carry {:.0} %",
                sum * 100.0,
                replicas - 1,
                room * 100.0
            );
            return Spare::No(text);
        }
    }
    Spare::Yes { cpu, cpu_room: rooms[0] }
}

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
    // Full to five points: small differences between nodes do not outweigh two replicas on one.
    let key = |(node, cpu, copies): &(NodeId, f64, usize)| ((cpu * 20.0).round(), *copies, node.clone());
    let busiest =
        hosts.iter().map(key).max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(b.2.cmp(&a.2)));
    busiest.map(|(_, _, node)| node)
}

impl Round<'_> {
    /// How many more replicas are plainly needed, where every replica's use is known and labels allow more than one.
    pub(super) fn steps_needed(
        &self,
        policy: &ServicePolicy,
        certain: &[(&Hot<'_>, Certain<'_>)],
        replicas: u64,
    ) -> u64 {
        if policy.scale_step <= 1 || u64::try_from(certain.len()).ok() != Some(replicas) {
            return 1;
        }
        let sum: f64 = certain.iter().filter_map(|(_, certain)| Some(certain.load.cpu?.ratio())).sum();
        let each = (policy.thresholds.cpu_high.ratio() - policy.margin.ratio()).max(0.05);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
        let needed = (sum / each).ceil() as u64;
        needed.saturating_sub(replicas).clamp(1, u64::from(policy.scale_step))
    }

    /// Scales out for a reason, or says what forbids it.
    pub(super) fn scale_out(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        replicas: u64,
        rule: Rule,
        text: String,
        steps: u64,
    ) -> Verdict {
        let (Some(_), Some(max)) = (policy.scale_min, policy.scale_max) else {
            let otherwise = "swarmguard.scale.min and swarmguard.scale.max";
            return self.refuse(
                service,
                Rule::ScalingOff,
                format!("{text}; but it may not scale"),
                otherwise,
            );
        };
        let wanted = replicas.saturating_add(steps).min(u64::from(max));
        if wanted <= replicas {
            let text = format!("{text}; but it has its {max} replicas");
            return self.refuse(service, Rule::AtMax, text, "a higher swarmguard.scale.max");
        }
        let past = self.view.history.past(&service.id, Kind::ScaleOut);
        if let Some(past) = past.filter(|past| !past.target_lost) {
            let since = self.now - past.ended;
            if since < policy.up_cooldown {
                let left = policy.up_cooldown - since;
                return self.cooling(service, Rule::UpCooldown, "step up", policy.up_cooldown, left);
            }
        }
        // A new replica takes its part of the load off the others, so that its CPU is not held against a
        // node: what counts is room now. Its memory is its own, and no other needs less for it.
        let fits = |target: &Target| {
            self.fell_silent(service, Kind::ScaleOut, policy.up_cooldown, target)?;
            let high = policy.thresholds.cpu_high.ratio();
            if target.cpu >= high {
                return Err(format!("CPU is at {:.0} %", target.cpu * 100.0));
            }
            memory_fits(policy, target)?;
            self.tasks_wait(&target.node).map_or(Ok(()), Err)
        };
        // Below its least it may be that no replica is known: then only the node is looked at.
        let burden = self.mean_burden(&service.id).unwrap_or_default();
        match best_target(self, service, burden, fits) {
            Err(obstacles) => {
                let otherwise = "a node with room that the service may run on";
                self.refuse(
                    service,
                    Rule::NoRoom,
                    format!("{text}; but no node has room: {obstacles}"),
                    otherwise,
                )
            }
            Ok(target) => {
                let to = name(self.snapshot, &target.node);
                let text = format!("{text}: from {replicas} to {wanted} replicas, the new one on {to}");
                let mut verdict = self.verdict(service, Conclusion::Act, rule, text);
                verdict.judgement.otherwise = "swarmguard.scale.max reached, or an alert that clears".into();
                verdict.judgement.target = Some(target.node.clone());
                verdict.judgement.signals.insert("target_cpu_percent", target.cpu * 100.0);
                verdict.judgement.signals.insert("predicted_memory_percent", target.predicted_memory * 100.0);
                verdict.intent = Some(Intent::ScaleOut {
                    service: service.id.clone(),
                    replicas: wanted,
                    target: Some(target.node),
                });
                verdict.keep = policy.up_cooldown.max(policy.down_cooldown);
                verdict.rank = (Precedence::ScaleOut, 0);
                verdict
            }
        }
    }

    /// Whether tasks of a node wait so much that it is short, whatever its utilisation.
    fn tasks_wait(&self, node: &NodeId) -> Option<String> {
        let load = self.view.agents.get(node)?.recent.settled(self.now, SPAN)?;
        let waits = [("a CPU", load.psi_cpu), ("memory", load.psi_memory)];
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
            return Some(self.scale_out(service, policy, replicas, Rule::BelowMin, text, 1));
        }
        if replicas > max {
            let text = format!("{replicas} replicas, at most {max} are wanted");
            return Some(self.scale_in(service, policy, Rule::AboveMax, text));
        }
        None
    }

    /// Nothing is hot: can one replica go?
    pub(super) fn judge_spare(&self, service: &Service, policy: &ServicePolicy, replicas: u64) -> Verdict {
        let Some(min) = policy.scale_min.filter(|_| policy.scale_max.is_some()) else {
            return self.calm(service, Rule::Calm, "no replica is hot");
        };
        let (cpu, room) = match spare(self.view, service, policy, self.now) {
            Spare::No(why) => {
                return self.calm(service, Rule::Calm, format!("no replica is hot, none is spare: {why}"));
            }
            Spare::Unknown(why) => {
                let mut verdict =
                    self.calm(service, Rule::Unknown, format!("nothing is known to be hot or spare: {why}"));
                verdict.judgement.otherwise = "fresh figures of every replica".into();
                return verdict;
            }
            Spare::Yes { cpu, cpu_room } => (cpu, cpu_room),
        };
        let spare_for =
            self.view.history.spare_since(&service.id).map(|since| self.now - since).unwrap_or_default();
        let mut verdict = if replicas <= u64::from(min) {
            self.calm(service, Rule::AtMin, format!("one replica is spare, but {min} are the least"))
        } else if spare_for < policy.down_window {
            let text = format!("one replica has been spare for {} s", spare_for.as_secs());
            let mut verdict = self.calm(service, Rule::SpareHolding, text);
            verdict.judgement.otherwise = format!("it goes at {} s", policy.down_window.as_secs());
            verdict
        } else {
            let text =
                format!("{replicas} replicas use {:.0} % CPU in all, one fewer is enough", cpu * 100.0);
            self.scale_in(service, policy, Rule::ScaleIn, text)
        };
        let signals = &mut verdict.judgement.signals;
        signals.insert("sum_cpu_percent", cpu * 100.0);
        signals.insert("room_cpu_percent", room * 100.0);
        signals.insert("spare_ms", ms(spare_for));
        signals.insert("down_window_ms", ms(policy.down_window));
        verdict
    }

    fn scale_in(&self, service: &Service, policy: &ServicePolicy, rule: Rule, text: String) -> Verdict {
        for kind in [Kind::ScaleIn, Kind::ScaleOut] {
            if let Some(past) = self.view.history.past(&service.id, kind) {
                let since = self.now - past.ended;
                if since < policy.down_cooldown {
                    let left = policy.down_cooldown - since;
                    return self.cooling(service, Rule::DownCooldown, "step", policy.down_cooldown, left);
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
        verdict.judgement.otherwise = "swarmguard.scale.min reached, or more load".into();
        verdict.judgement.node = Some(node.clone());
        verdict.intent = Some(Intent::ScaleIn { service: service.id.clone(), node });
        verdict.keep = policy.down_cooldown;
        verdict
    }
}
