//! What follows from hot replicas: more replicas where demand asks for them, a move where the node is short and moving
//! helps; and where neither is possible, why.

use std::time::Duration;

use swarmguard_common::{
    domain::NodeId,
    labels::{MigrateMode, ServicePolicy},
};

use super::{
    Precedence, Round, Verdict, about,
    burden::Burden,
    constant,
    evidence::{Demand, Evidence, demand},
    hot::{Certain, Doubt, Hot},
    ms, name, preflight,
    target::{Target, Use, best_target, gain, has_room, memory_fits},
};
use crate::{
    action::{Intent, Kind},
    explain::Conclusion,
    rule::Rule,
    swarm::Service,
};

/// Why a service may not move now, whatever its load.
#[derive(Clone, Debug)]
pub(super) struct Reason {
    pub rule: Rule,
    pub text: String,
    pub otherwise: String,
    /// Of a cooldown: how much of it is left.
    pub left: Option<Duration>,
}

impl Reason {
    fn new(rule: Rule, text: impl Into<String>, otherwise: impl Into<String>) -> Self {
        Self { rule, text: text.into(), otherwise: otherwise.into(), left: None }
    }
}

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
        let evidence = Evidence::of(self.view, service, policy, self.now, first.stood);
        let verdict = self.judge_certain(service, policy, replicas, &certain, &evidence);
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
            Some(Doubt::WarmingUp(served)) => {
                let served = served.unwrap_or_default().as_secs();
                let text =
                    format!("hot, but that replica has served for {served} s only: it may be its start");
                let mut verdict = self.calm(service, Rule::WarmingUp, text);
                verdict.judgement.otherwise =
                    "swarmguard.warm-up says how long a start takes; otherwise that is learned".into();
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
        verdict.judgement.hot_for = Some(hot.stood);
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
        signals.insert("act_after_ms", ms(hot.act_after));
        #[expect(clippy::cast_precision_loss, reason = "few")]
        signals.insert("hot_replicas", count as f64);
        verdict
    }

    /// More replicas first where demand asks for them, unless a neighbour is the cause; then a move; and where that is
    /// refused, more replicas after all.
    fn judge_certain(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        replicas: u64,
        certain: &[(&Hot<'_>, Certain<'_>)],
        evidence: &Evidence<'_>,
    ) -> Verdict {
        let Some(network) = certain.iter().filter_map(|(_, certain)| certain.load.network).max() else {
            return self.refuse(
                service,
                Rule::NetworkUnknown,
                "the network use of the hot replica is unknown, so node and load cannot be told apart",
                "swarmguard.network.mbps where the link speed is unknown",
            );
        };
        // Of an overloaded service only those count that serve; the others are missing besides.
        let missing = if self.is_overloaded(service) { replicas.saturating_sub(evidence.serving) } else { 0 };
        let mut demand = demand(self.view, evidence, service, policy, replicas - missing, self.now);
        demand.wanted = demand.wanted.saturating_add(missing);
        let asks = demand.wanted > replicas && certain.iter().any(|(hot, _)| hot.cpu);
        let neighbours = certain.iter().all(|(_, certain)| certain.is_lesser_part());
        if asks && (network > policy.thresholds.network_low || !neighbours) {
            let out =
                self.scale_out(service, policy, replicas, Rule::ScaleOut, &demand.text, &demand, evidence);
            if out.intent.is_some() {
                return out;
            }
            let moved = self.migrate_one(service, policy, certain, &demand, evidence);
            return match moved {
                Some(Ok(moved)) => moved,
                Some(Err(refused)) if out.judgement.rule == Rule::ScalingOff => refused,
                _ => out,
            };
        }
        match self.migrate_one(service, policy, certain, &demand, evidence) {
            Some(Ok(verdict)) => verdict,
            Some(Err(refused)) if asks => {
                let text = format!("{}; it does not move: {}", demand.text, refused.judgement.text);
                let out = self.scale_out(service, policy, replicas, Rule::ScaleOut, &text, &demand, evidence);
                if out.intent.is_some() || out.judgement.rule != Rule::ScalingOff { out } else { refused }
            }
            Some(Err(refused)) => refused,
            None => self.calm(service, Rule::Calm, "no replica is hot"),
        }
    }

    /// The first of the hot replicas that can be moved to some effect; else what stands against the heaviest.
    fn migrate_one(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        certain: &[(&Hot<'_>, Certain<'_>)],
        demand: &Demand,
        evidence: &Evidence<'_>,
    ) -> Option<Result<Verdict, Verdict>> {
        let mut first_refusal = None;
        for (hot, certain) in certain {
            let mut verdict = self.migrate(service, policy, hot, certain, demand, evidence);
            if verdict.intent.is_some() {
                return Some(Ok(verdict));
            }
            about(&mut verdict, &certain.replica.task.id, &certain.replica.node.id);
            first_refusal.get_or_insert(verdict);
        }
        first_refusal.map(Err)
    }

    /// Whether and where to move one hot replica.
    fn migrate(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        hot: &Hot<'_>,
        certain: &Certain<'_>,
        demand: &Demand,
        evidence: &Evidence<'_>,
    ) -> Verdict {
        let (by_cpu, by_memory) = certain.node_is_short(hot);
        if !by_cpu && !by_memory {
            return self.node_has_room(service, policy, hot, certain, demand, evidence);
        }
        if let Some(reason) = self.why_it_stays(service, policy, &certain.replica.node.id) {
            return self.refuse_for(service, reason);
        }
        let source = certain.replica.node;
        let by_memory = by_memory && !by_cpu;
        let own = Use { cpu: certain.cpu_of_node(), memory: certain.memory_of_node() };
        let is =
            |share: Option<swarmguard_common::domain::BasisPoints>| share.map_or(0.0, |share| share.ratio());
        let now = Use { cpu: is(certain.node_load.cpu), memory: is(certain.node_load.memory) };
        let burden = Burden {
            cpu_millis: f64::from(certain.load.cpu_millis),
            memory_bytes: f64::from(certain.load.memory_kib) * 1_024.0,
        };
        // Where it may scale, another replica is the better try.
        let may_try = !by_memory && policy.scale_max.is_none();
        let fits = |target: &Target| {
            let better = self.is_better(service, policy, &source.id, (now, own), target, by_memory);
            better.or_else(|why| {
                if may_try && is_worth_a_try(policy, now, own, target) { Ok(()) } else { Err(why) }
            })
        };
        match best_target(self, service, burden, fits) {
            Ok(target) => {
                let (what, of) = if by_memory { ("memory", now.memory) } else { ("CPU", now.cpu) };
                let text =
                    format!("{} is short: {:.0} % of its {what} is in use", source.hostname, of * 100.0);
                self.go(service, policy, Rule::Migrate, certain, text, &target)
            }
            Err(_) if (if by_memory { own.memory } else { own.cpu }) < constant::CULPRIT_SHARE => {
                let own = if by_memory { own.memory } else { own.cpu };
                let text = format!(
                    "{} is short, but this replica uses only {:.0} % of it: another is the cause{}",
                    source.hostname,
                    own * 100.0,
                    self.heaviest(certain)
                );
                let otherwise = format!("an own use of {:.0} % of the node", constant::CULPRIT_SHARE * 100.0);
                self.refuse(service, Rule::Victim, text, otherwise)
            }
            Err(obstacles) => {
                let text = format!("no node is clearly better than {}: {obstacles}", source.hostname);
                let otherwise = "a node with room that the service may run on, or scaling";
                self.refuse(service, Rule::NowhereBetter, text, otherwise)
            }
        }
    }

    /// Whether a target is so much better that a move is worth it: it has room, and the larger of the two nodes' uses
    /// falls by enough. Both are predicted: the load comes along.
    pub(super) fn is_better(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        source: &NodeId,
        (now, own): (Use, Use),
        target: &Target,
        by_memory: bool,
    ) -> Result<(), String> {
        has_room(policy, target)?;
        self.is_worth_it(service, policy, source, (now, own), target, by_memory)
    }

    /// The same without a look at the target's room.
    pub(super) fn is_worth_it(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        source: &NodeId,
        (now, own): (Use, Use),
        target: &Target,
        by_memory: bool,
    ) -> Result<(), String> {
        self.fell_silent(service, Kind::Migrate, policy.cooldown, target)?;
        if target.node == *source {
            return Err("the source itself".into());
        }
        let points = gain(now, own, target, by_memory) * 100.0;
        if points < constant::WORTH_POINTS {
            let is = if by_memory { target.memory } else { target.cpu };
            return Err(format!(
                "at {:.0} % already, a move would gain {:.0} points",
                is * 100.0,
                points.max(0.0)
            ));
        }
        Ok(())
    }

    /// The replica is hot, its node is not short: no other node would give it more.
    fn node_has_room(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        hot: &Hot<'_>,
        certain: &Certain<'_>,
        demand: &Demand,
        evidence: &Evidence<'_>,
    ) -> Verdict {
        let hostname = &certain.replica.node.hostname;
        let shown = |value: Option<swarmguard_common::domain::BasisPoints>| {
            value.map_or_else(|| "an unknown share".into(), |value| format!("{:.0} %", value.percent()))
        };
        let (what, is, of) = if hot.cpu {
            ("CPU", certain.load.cpu, certain.node_load.cpu)
        } else {
            ("memory", certain.load.memory, certain.node_load.memory)
        };
        let text = format!(
            "it uses {} of its own {what}, while {hostname} is not short ({} used): another node would give it no more",
            shown(is),
            shown(of)
        );
        if hot.cpu && evidence.is_outlier(f64::from(certain.load.cpu_millis)) {
            let text = format!(
                "one replica uses {:.2} cores, the others less than half of that: demand is not the reason ({})",
                f64::from(certain.load.cpu_millis) / 1_000.0,
                demand.text
            );
            let otherwise = "a look at what that replica does; `docker kill` of its container has Swarm start a fresh one";
            return self.refuse(service, Rule::Outlier, text, otherwise);
        }
        if hot.cpu && policy.scale_max.is_some() {
            let text = format!("hot, but {}: they are enough", demand.text);
            let mut verdict = self.calm(service, Rule::Enough, text);
            verdict.judgement.otherwise = format!(
                "one more from {:.0} % on, or a lower swarmguard.cpu.high",
                policy.thresholds.cpu_high.percent() * constant::TOLERANCE
            );
            return verdict;
        }
        let otherwise = if hot.cpu {
            "a higher CPU limit, or swarmguard.scale.min and swarmguard.scale.max"
        } else {
            "a higher memory limit; more replicas would not lower it; swarmguard.replace=leak if it keeps growing"
        };
        self.refuse(service, Rule::LimitBound, text, otherwise)
    }

    /// The order to move a replica, with the figures that it rests on.
    pub(super) fn go(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        rule: Rule,
        certain: &Certain<'_>,
        text: String,
        target: &Target,
    ) -> Verdict {
        let source = certain.replica.node;
        let text = format!(
            "{text}; one replica, which uses {:.2} cores, moves to {}, which comes from {:.0} to {:.0} % CPU",
            f64::from(certain.load.cpu_millis) / 1_000.0,
            name(self.snapshot, &target.node),
            target.cpu * 100.0,
            target.predicted_cpu * 100.0
        );
        let mut verdict = self.verdict(service, Conclusion::Act, rule, text);
        verdict.judgement.otherwise = "swarmguard.migrate=off keeps it where it is".into();
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
        let weight = (certain.cpu_of_node().max(0.0) * 10_000.0) as u64;
        verdict.rank = (Precedence::Migrate, weight);
        verdict
    }

    /// A refusal for a reason.
    pub(super) fn refuse_for(&self, service: &Service, reason: Reason) -> Verdict {
        let mut verdict = self.refuse(service, reason.rule, reason.text, reason.otherwise);
        if let Some(left) = reason.left {
            verdict.judgement.signals.insert("cooldown_left_ms", ms(left));
        }
        verdict
    }

    /// What forbids every move of a service now, for whatever reason it is to move: what it is made of, the cooldown of
    /// its last move, or that moving did not help.
    pub(super) fn why_not_movable(&self, service: &Service, policy: &ServicePolicy) -> Option<Reason> {
        let reason = self.why_not_replaceable(service, policy);
        reason.or_else(|| self.moved_in_vain(service)).or_else(|| self.rests(service, Kind::Migrate, "move"))
    }

    /// The same for a replica that a fresh one is to take the place of: it need not be better off elsewhere.
    pub(super) fn why_not_replaceable(&self, service: &Service, policy: &ServicePolicy) -> Option<Reason> {
        if policy.migrate == MigrateMode::Off {
            let otherwise = "swarmguard.migrate=auto";
            return Some(Reason::new(
                Rule::MigrateOff,
                "its label swarmguard.migrate=off forbids to move it",
                otherwise,
            ));
        }
        let found = preflight::findings(service, policy, &self.view.seen(service, self.now));
        if let Some(found) = found.into_iter().find(|finding| finding.refuses) {
            return Some(Reason::new(found.code, found.text, found.otherwise));
        }
        let past = self.view.history.past(&service.id, Kind::Migrate).filter(|past| !past.target_lost);
        if let Some(since) = past.map(|past| self.now - past.ended) {
            let failed = self.view.history.failures(&service.id, Kind::Migrate);
            if let Some(reason) = backing_off("move", failed, since) {
                return Some(reason);
            }
            if since < policy.cooldown {
                return Some(cooling(Rule::Cooldown, "migration", policy.cooldown, policy.cooldown - since));
            }
        }
        None
    }

    /// What was in vain last rests for a while.
    pub(super) fn rests(&self, service: &Service, kind: Kind, what: &str) -> Option<Reason> {
        let (left, times) = self.view.history.rests(&service.id, kind, self.now)?;
        let text = format!("its last {what} did not help, {times} in a row: none for {} s", left.as_secs());
        let mut reason = Reason::new(Rule::InVain, text, "an operator's order");
        reason.left = Some(left);
        Some(reason)
    }

    /// A service of which a replica is hot again where it was moved, or was since, does not move: no replica of it, and
    /// for no reason. Another one would go the same way.
    fn moved_in_vain(&self, service: &Service) -> Option<Reason> {
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
        Some(Reason::new(Rule::MovedInVain, text, format!("{left} s more, or another cause")))
    }

    /// What forbids a service to leave a node now, whatever its load and wherever it would go.
    pub(super) fn why_it_stays(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        source: &NodeId,
    ) -> Option<Reason> {
        if let Some(reason) = self.why_not_movable(service, policy) {
            return Some(reason);
        }
        if let Some(past) = self.view.history.past(&service.id, Kind::ScaleOut)
            && !past.undone
            && self.now - past.ended < constant::RELIEF
        {
            let left = constant::RELIEF - (self.now - past.ended);
            return Some(cooling(Rule::JustScaled, "step up", constant::RELIEF, left));
        }
        if let Some((other, ended)) = self.view.history.last_move(source)
            && self.now - ended < constant::RELIEF
            && *other != service.id
        {
            let text = "another replica left or joined this node a moment ago";
            let left = (constant::RELIEF - (self.now - ended)).as_secs();
            let otherwise = format!("the node still short in {left} s");
            return Some(Reason::new(Rule::JustRelieved, text, otherwise));
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
        format!(" ({who} uses {:.2} cores)", f64::from(millis) / 1_000.0)
    }
}

/// An idle node passes for a replica that fills its own: a fresh replica may leave behind what made it hot, a leak or a
/// runaway request. If it is hot again there, see `moved_in_vain`.
fn is_worth_a_try(policy: &ServicePolicy, now: Use, own: Use, target: &Target) -> bool {
    let idle = now.cpu - target.cpu >= constant::IDLE
        && target.cpu <= (now.cpu - own.cpu).max(0.0) + constant::NOISE;
    let fills = own.cpu >= now.cpu * constant::MAIN_PART;
    fills && idle && target.predicted_cpu <= constant::FULL && memory_fits(policy, target).is_ok()
}

/// A cooldown that still runs.
pub(super) fn cooling(rule: Rule, what: &str, whole: Duration, left: Duration) -> Reason {
    let text = format!("its last {what} is less than {} s ago", whole.as_secs());
    let mut reason = Reason::new(rule, text, format!("{} s more", left.as_secs() + 1));
    reason.left = Some(left);
    reason
}

/// Attempts that failed are made ever more rarely: what made them fail mostly stands.
pub(super) fn backing_off(what: &str, failed: u32, since: Duration) -> Option<Reason> {
    let whole = match failed {
        0 => Duration::ZERO,
        1 => constant::BACK_OFF,
        _ => constant::BACK_OFF_AGAIN.saturating_mul(1 << (failed - 2).min(10)).min(constant::MOST_BACK_OFF),
    };
    let left = whole.checked_sub(since).filter(|left| !left.is_zero())?;
    let text = format!(
        "its last {what} failed, {failed} in a row: the next is tried {} s after it",
        whole.as_secs()
    );
    let mut reason =
        Reason::new(Rule::BackOff, text, format!("{} s more, or an operator's order", left.as_secs() + 1));
    reason.left = Some(left);
    Some(reason)
}
