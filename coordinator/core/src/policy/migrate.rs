//! What follows from hot replicas: migrate where the node is the problem and moving helps, scale out where the load is,
//! and say so where neither is possible.

use std::time::Duration;

use swarmguard_common::{
    domain::NodeId,
    labels::{CLEAR_RATIO, MigrateMode, ServicePolicy},
};

use super::{
    Precedence, Round, Verdict, about,
    burden::Burden,
    constant,
    hot::{Certain, Doubt, Hot},
    ms, name, preflight,
    target::{Target, best_target, memory_fits},
};
use crate::{
    action::{Intent, Kind},
    explain::Conclusion,
    rule::Rule,
    swarm::Service,
};

impl Round<'_> {
    pub(super) fn judge_hot(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        replicas: u64,
        hot: &[Hot<'_>],
    ) -> Verdict {
        let mut certain: Vec<(&Hot<'_>, Certain<'_>)> =
            hot.iter().filter_map(|hot| Some((hot, hot.certain()?))).collect();
        // The heaviest first.
        certain.sort_by(|(_, a), (_, b)| b.cpu_of_node().total_cmp(&a.cpu_of_node()));
        let Some((first, worst)) = certain.first() else { return self.doubtful(service, hot) };
        let verdict = self.judge_certain(service, policy, replicas, &certain);
        self.described(verdict, first, worst, certain.len())
    }

    /// There are alerts, but none counts: the one that is nearest to it says why.
    pub(super) fn doubtful(&self, service: &Service, hot: &[Hot<'_>]) -> Verdict {
        let weight = |hot: &&Hot<'_>| match &hot.doubt {
            Some(Doubt::Holding(left)) => (1, Duration::MAX - *left),
            Some(Doubt::Stale(_)) => (0, hot.stood),
            _ => (2, hot.stood),
        };
        let Some(hot) = hot.iter().max_by_key(weight) else {
            return self.calm(service, Rule::Calm, "no replica is hot");
        };
        let mut verdict = match &hot.doubt {
            Some(Doubt::Holding(_)) => {
                let text = format!("hot for {} ms", hot.stood.as_millis());
                let mut verdict = self.calm(service, Rule::Holding, text);
                verdict.judgement.otherwise =
                    format!("something is done at {} ms", hot.act_after.as_millis());
                verdict
            }
            Some(Doubt::Stale(what)) => self.refuse(
                service,
                Rule::StaleAlert,
                format!("the alert is stale: {what}"),
                "an alert from where it runs",
            ),
            Some(Doubt::Lease(why)) => {
                let text = format!("{} is not to be believed: {why}", name(self.snapshot, hot.reporter));
                self.refuse(service, Rule::NoLease, text, "an agent that sees its node and is heard")
            }
            Some(Doubt::NotServing) => self.refuse(
                service,
                Rule::NotServing,
                "the hot replica does not run yet",
                "it running and healthy",
            ),
            Some(Doubt::NoData) | None => self.refuse(
                service,
                Rule::NoData,
                "no fresh figures of the hot replica or its node",
                "fresh figures",
            ),
        };
        verdict.judgement.node = Some(hot.reporter.clone());
        verdict.judgement.task = hot.replica.map(|replica| replica.task.id.clone());
        verdict.judgement.hot_for = Some(hot.stood);
        verdict.judgement.signals.insert("stands_ms", ms(hot.stood));
        verdict.judgement.signals.insert("act_after_ms", ms(hot.act_after));
        verdict
    }

    fn described(&self, mut verdict: Verdict, hot: &Hot<'_>, certain: &Certain<'_>, count: usize) -> Verdict {
        if verdict.judgement.task.is_none() {
            about(&mut verdict, &certain.replica.task.id, &certain.replica.node.id);
        }
        let signals = &mut verdict.judgement.signals;
        let known = [
            ("cpu_percent", certain.load.cpu),
            ("memory_percent", certain.load.memory),
            ("network_percent", certain.load.network),
            ("psi_cpu_percent", certain.load.psi_cpu),
            ("throttled_percent", certain.load.throttled),
            ("node_cpu_percent", certain.node_load.cpu),
            ("node_memory_percent", certain.node_load.memory),
            ("node_psi_cpu_percent", certain.node_load.psi_cpu),
        ];
        signals.extend(known.iter().filter_map(|(name, value)| Some((*name, (*value)?.percent()))));
        signals.insert("cpu_of_node_percent", certain.cpu_of_node() * 100.0);
        signals.insert("stands_ms", ms(hot.stood));
        verdict.judgement.hot_for = Some(hot.stood);
        let signals = &mut verdict.judgement.signals;
        signals.insert("act_after_ms", ms(hot.act_after));
        #[expect(clippy::cast_precision_loss, reason = "few")]
        signals.insert("hot_replicas", count as f64);
        verdict
    }

    fn judge_certain(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        replicas: u64,
        certain: &[(&Hot<'_>, Certain<'_>)],
    ) -> Verdict {
        let Some(network) = certain.iter().filter_map(|(_, certain)| certain.load.network).max() else {
            return self.refuse(
                service,
                Rule::NetworkUnknown,
                "the network use of the hot replica is unknown, so node and load cannot be told apart",
                "swarmguard.network.mbps where the link speed is unknown",
            );
        };
        let hot = u64::try_from(certain.len()).unwrap_or(u64::MAX);
        let thresholds = &policy.thresholds;
        let load_is_the_reason = if network >= thresholds.network_high {
            Some(format!("hot, and the network is at {network}: demand is the reason"))
        } else if network > thresholds.network_low && hot.saturating_mul(2) > replicas {
            Some(format!("{hot} of {replicas} replicas are hot, and the network is at {network}"))
        } else {
            None
        };
        if let Some(text) = load_is_the_reason {
            let out = self.scale_out(
                service,
                policy,
                replicas,
                Rule::ScaleOut,
                text,
                self.steps_needed(policy, certain, replicas),
            );
            // Between the two thresholds either may help; a service that may not scale can still move.
            let may_move = network < thresholds.network_high && out.judgement.rule == Rule::ScalingOff;
            if !may_move {
                return out;
            }
        }
        let mut first_refusal = None;
        for (hot, certain) in certain {
            let mut verdict = self.migrate(service, policy, replicas, hot, certain);
            if verdict.intent.is_some() {
                return verdict;
            }
            about(&mut verdict, &certain.replica.task.id, &certain.replica.node.id);
            first_refusal.get_or_insert(verdict);
        }
        first_refusal.unwrap_or_else(|| self.calm(service, Rule::Calm, "no replica is hot"))
    }

    /// Whether and where to move one hot replica.
    fn migrate(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        replicas: u64,
        hot: &Hot<'_>,
        certain: &Certain<'_>,
    ) -> Verdict {
        let limit = limit_bound(policy, hot, certain);
        if let Some(text) = limit {
            let out = self.scale_out(service, policy, replicas, Rule::LimitBound, text.clone(), 1);
            if out.intent.is_some() {
                return out;
            }
            let otherwise = format!("a higher limit, or scaling ({})", out.judgement.otherwise);
            return self.refuse(service, Rule::LimitBound, text, otherwise);
        }
        if let Some(refusal) = self.may_not_move(service, policy, certain) {
            return refusal;
        }
        let source = certain.replica.node;
        let by_memory = hot.memory && !hot.cpu;
        let own = if by_memory { certain.memory_of_node() } else { certain.cpu_of_node() };
        if own < constant::CULPRIT_SHARE {
            let text = format!(
                "{} is short, but this replica uses only {:.0} % of it: another is the culprit{}",
                source.hostname,
                own * 100.0,
                self.heaviest(certain)
            );
            let otherwise = format!("an own use of {:.0} % of the node", constant::CULPRIT_SHARE * 100.0);
            return self.refuse(service, Rule::Victim, text, otherwise);
        }
        let burden = Burden {
            cpu_millis: f64::from(certain.load.cpu_millis),
            memory_bytes: f64::from(certain.load.memory_kib) * 1_024.0,
        };
        let fits = |target: &Target| {
            self.fell_silent(service, Kind::Migrate, policy.cooldown, target)?;
            clearly_better(policy, certain, by_memory, target)
        };
        match best_target(self, service, burden, fits) {
            Ok(target) => self.go(service, policy, certain, own, &target),
            Err(obstacles) => {
                let text = format!("no node is clearly better than {}: {obstacles}", source.hostname);
                let out = self.scale_out(service, policy, replicas, Rule::NowhereBetter, text.clone(), 1);
                if out.intent.is_some() {
                    return out;
                }
                self.refuse(
                    service,
                    Rule::NowhereBetter,
                    text,
                    "a node with room that the service may run on, or scaling",
                )
            }
        }
    }

    fn go(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        certain: &Certain<'_>,
        own: f64,
        target: &Target,
    ) -> Verdict {
        let source = certain.replica.node;
        let text = format!(
            "{} is short, network is low: one replica moves to {}, which would be at {:.0} % CPU",
            source.hostname,
            name(self.snapshot, &target.node),
            target.predicted_cpu.min(1.0) * 100.0
        );
        let mut verdict = self.verdict(service, Conclusion::Act, Rule::Migrate, text);
        verdict.judgement.otherwise = format!(
            "no node {:.0} points less busy than {}, or an alert that clears",
            constant::CLEARLY_BETTER * 100.0,
            source.hostname
        );
        about(&mut verdict, &certain.replica.task.id, &source.id);
        verdict.judgement.target = Some(target.node.clone());
        verdict.judgement.signals.insert("target_cpu_percent", target.cpu * 100.0);
        verdict.judgement.signals.insert("predicted_cpu_percent", target.predicted_cpu * 100.0);
        verdict.judgement.signals.insert("predicted_memory_percent", target.predicted_memory * 100.0);
        verdict.intent = Some(Intent::Migrate {
            service: service.id.clone(),
            source: source.id.clone(),
            target: Some(target.node.clone()),
        });
        // The tombstone also tells a successor where the replica went, should it be hot again there.
        verdict.keep = policy.cooldown.max(constant::MOVED_IN_VAIN);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share, scaled")]
        let weight = (own.max(0.0) * 10_000.0) as u64;
        verdict.rank = (Precedence::Migrate, weight);
        verdict
    }

    /// What forbids every move of a service now, for whatever reason it is to move: what it is made of, or the cooldown
    /// of its last move.
    pub(super) fn is_tied(&self, service: &Service, policy: &ServicePolicy) -> Option<Verdict> {
        let healthcheck = self.view.healthcheck(service, self.now);
        let found = preflight::findings(service, policy, healthcheck);
        if let Some(found) = found.into_iter().find(|finding| finding.refuses) {
            return Some(self.refuse(service, found.code, found.text, found.otherwise));
        }
        let past = self.view.history.past(&service.id, Kind::Migrate).filter(|past| !past.target_lost);
        if let Some(since) = past.map(|past| self.now - past.ended).filter(|since| *since < policy.cooldown) {
            let left = policy.cooldown - since;
            return Some(self.cooling(service, Rule::Cooldown, "migration", policy.cooldown, left));
        }
        self.moved_in_vain(service)
    }

    /// A service of which a replica is hot again where it was moved, or was since, does not move: no replica of it, and
    /// for no reason. Another one would go the same way.
    fn moved_in_vain(&self, service: &Service) -> Option<Verdict> {
        let hot_on = |node: &NodeId| {
            let mut certain = self.hot.of_service(&service.id).iter().filter_map(Hot::certain);
            certain.any(|certain| certain.replica.node.id == *node)
        };
        let moves = self.view.history.moves(&service.id);
        let recent = moves.filter(|moved| self.now - moved.ended < constant::MOVED_IN_VAIN);
        let moved = recent.filter(|moved| moved.in_vain || hot_on(&moved.to)).last()?;
        let since = self.now - moved.ended;
        let text = format!(
            "it was moved to {} {} s ago and was hot again there: moving did not help",
            name(self.snapshot, &moved.to),
            since.as_secs()
        );
        let left = (constant::MOVED_IN_VAIN - since).as_secs();
        Some(self.refuse(service, Rule::MovedInVain, text, format!("{left} s more, or another cause")))
    }

    /// What forbids a service to move now, whatever its load and wherever it would go.
    fn may_not_move(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        certain: &Certain<'_>,
    ) -> Option<Verdict> {
        if policy.migrate == MigrateMode::Off {
            let otherwise = "swarmguard.migrate=auto";
            return Some(self.refuse(service, Rule::MigrateOff, "its labels forbid to move it", otherwise));
        }
        if let Some(verdict) = self.is_tied(service, policy) {
            return Some(verdict);
        }
        let source = &certain.replica.node.id;
        if let Some(past) = self.view.history.past(&service.id, Kind::ScaleOut)
            && !past.undone
            && self.now - past.ended < constant::RELIEF
        {
            let left = constant::RELIEF - (self.now - past.ended);
            return Some(self.cooling(service, Rule::JustScaled, "step up", constant::RELIEF, left));
        }
        if let Some((other, ended)) = self.view.history.last_move(source)
            && self.now - ended < constant::RELIEF
            && *other != service.id
        {
            let text = "another replica left or joined this node a moment ago";
            let left = (constant::RELIEF - (self.now - ended)).as_secs();
            return Some(self.refuse(
                service,
                Rule::JustRelieved,
                text,
                format!("the node still short in {left} s"),
            ));
        }
        None
    }

    /// Whether a target fell silent in the middle of the service's last action; then it waits out the cooldown.
    pub(super) fn fell_silent(
        &self,
        service: &Service,
        kind: Kind,
        cooldown: Duration,
        target: &Target,
    ) -> Result<(), String> {
        let past = self.view.history.past(&service.id, kind).filter(|past| past.target_lost);
        let again = past.is_some_and(|past| {
            past.target.as_ref() == Some(&target.node) && self.now - past.ended < cooldown
        });
        if again { Err("it fell silent in the middle of the last action".into()) } else { Ok(()) }
    }

    pub(super) fn cooling(
        &self,
        service: &Service,
        rule: Rule,
        what: &str,
        whole: Duration,
        left: Duration,
    ) -> Verdict {
        let text = format!("its last {what} is less than {} s ago", whole.as_secs());
        let mut verdict = self.refuse(service, rule, text, format!("{} s more", left.as_secs() + 1));
        verdict.judgement.signals.insert("cooldown_left_ms", ms(left));
        verdict
    }

    /// Names the container that uses most of the node, where that is another.
    fn heaviest(&self, certain: &Certain<'_>) -> String {
        let fresh =
            certain.agent.containers.values().filter_map(|container| {
                Some((container, certain.agent.fresh(container, self.now)?.cpu_millis))
            });
        let Some((container, millis)) = fresh.max_by_key(|(_, millis)| *millis) else { return String::new() };
        if container.intro.container == certain.container.intro.container {
            return String::new();
        }
        let service = self.view.service_of(container);
        let who =
            service.map_or_else(|| container.intro.container.to_string(), |service| service.name.clone());
        format!(" ({who} uses {millis} thousandths of a CPU)")
    }
}

/// Where the replica is at its own limit and its node has room, another node would give it no more.
fn limit_bound(policy: &ServicePolicy, hot: &Hot<'_>, certain: &Certain<'_>) -> Option<String> {
    let node = certain.node_load;
    let at_least = |value: Option<swarmguard_common::domain::BasisPoints>, least: u16| {
        value.is_some_and(|value| value.0 >= least)
    };
    let intro = &certain.container.intro;
    let cpu_limited = intro.cpu_limit_millis.is_some_and(|limit| limit < certain.agent.hello.cpu_millis);
    let cpu_short = at_least(node.psi_cpu, constant::SHORT_PSI)
        || at_least(
            node.cpu,
            policy.thresholds.cpu_high.scaled(if cpu_limited { 1.0 } else { CLEAR_RATIO }).0,
        );
    let throttled = cpu_limited && at_least(certain.load.throttled, constant::THROTTLED);
    let memory_limited =
        intro.memory_limit_bytes.is_some_and(|limit| limit < certain.agent.hello.memory_bytes);
    let memory_short = at_least(node.psi_memory, constant::SHORT_PSI)
        || at_least(
            node.memory,
            policy.thresholds.memory_high.scaled(if memory_limited { 1.0 } else { CLEAR_RATIO }).0,
        );
    let cpu_moves = hot.cpu && cpu_short && !throttled;
    let memory_moves = hot.memory && memory_short;
    if cpu_moves || memory_moves {
        return None;
    }
    let hostname = &certain.replica.node.hostname;
    let (what, is, of) = if hot.cpu {
        ("CPU", certain.load.cpu, node.cpu)
    } else {
        ("memory", certain.load.memory, node.memory)
    };
    let shown = |value: Option<swarmguard_common::domain::BasisPoints>| {
        value.map_or_else(|| "an unknown share".into(), |value| value.to_string())
    };
    Some(format!(
        "it is at {} of its own {what}, while {hostname} is not short ({} used): another node would give it no more",
        shown(is),
        shown(of)
    ))
}

/// Whether a target is clearly better than the source for this replica: much less busy now, able to carry it, and in
/// company that is no worse than what it leaves.
///
/// The replica may bring all its load along, so what stays the same (its own use) is left out of the comparison of
/// company; and it may not (a leak, a runaway request stay behind), so that an equal, idle node is worth one try. A
/// second try is refused: see `moved_in_vain`.
fn clearly_better(
    policy: &ServicePolicy,
    certain: &Certain<'_>,
    by_memory: bool,
    target: &Target,
) -> Result<(), String> {
    let source_cpu = certain.node_load.cpu.map_or(0.0, |cpu| cpu.ratio());
    if target.node == certain.replica.node.id {
        return Err("the source itself".into());
    }
    memory_fits(policy, target)?;
    if by_memory {
        let source_memory = certain.node_load.memory.map_or(0.0, |memory| memory.ratio());
        let gain = source_memory - target.predicted_memory;
        let busy = target.predicted_cpu > 1.0;
        return match (gain > 0.0, busy) {
            (true, false) => Ok(()),
            (false, _) => {
                Err(format!("memory would be at {:.0} %, no better", target.predicted_memory * 100.0))
            }
            (true, true) => Err(format!("CPU would be at {:.0} %", target.predicted_cpu * 100.0)),
        };
    }
    if source_cpu - target.cpu < constant::CLEARLY_BETTER {
        return Err(format!("CPU is at {:.0} % already", target.cpu * 100.0));
    }
    if target.predicted_cpu > 1.0 + constant::NOISE {
        return Err(format!("CPU would be at {:.0} %", target.predicted_cpu * 100.0));
    }
    let left_behind = (source_cpu - certain.cpu_of_node()).max(0.0);
    if target.cpu > left_behind + constant::NOISE {
        return Err(format!("its other load ({:.0} % CPU) is more than what stays here", target.cpu * 100.0));
    }
    Ok(())
}
