//! The rules: view and time in, one verdict for every protected service out.
//!
//! A verdict is an action, a refusal (something is the matter, and a rule forbids to act), or calm. Each carries the
//! figures it rests on, the rule, and what would have changed it. Missing data is never taken for idleness: without
//! fresh figures there is no action.

mod burden;
pub(crate) mod constraint;
mod evidence;
mod figure;
mod hot;
pub mod jobs;
mod leak;
mod migrate;
pub mod placement;
pub mod preflight;
mod rebalance;
mod relief;
mod scale;
mod target;

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use swarmguard_common::{
    domain::{NodeId, ServiceId, TaskId},
    labels::{ScaleSignal, ServicePolicy},
    time::Time,
};

use crate::{
    action::Intent,
    explain::{Conclusion, Judgement},
    rule::Rule,
    swarm::{Mode, Service, Snapshot},
    view::{SPAN, View},
};
use evidence::{Demand, Evidence};
pub use evidence::{Spare, spare};
pub use figure::{Figure, figure, figure_after};
use hot::HotList;
pub use scale::choose_victim_node;
use target::Room;
pub use target::Target;

/// A replica that an action under way brings to a node, whose figures may not show it yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Of which service.
    pub service: ServiceId,
    /// The node that it leaves; `None` for one more.
    pub source: Option<NodeId>,
}

/// What bears on the rules besides the view.
#[derive(Clone, Debug, Default)]
pub struct Situation {
    /// Services with an action under way (or being begun), with its token.
    pub busy: BTreeMap<ServiceId, String>,
    /// Nodes that an action under way leaves, with how many.
    pub leaving: BTreeMap<NodeId, usize>,
    /// Nodes that actions under way bring replicas to. Bounded by the actions at once.
    pub arriving: BTreeMap<NodeId, Vec<Arrival>>,
    /// Actions under way in the cluster.
    pub under_way: usize,
    /// Most actions in the cluster.
    pub max_actions: usize,
    /// Most actions that leave one node.
    pub max_actions_per_node: usize,
    /// Automation is paused for all.
    pub paused_all: bool,
    /// Automation is paused for these.
    pub paused: BTreeSet<ServiceId>,
    /// Decide and explain only.
    pub observe: bool,
}

impl Situation {
    /// Whether automation is paused for a service.
    pub fn is_paused(&self, service: &ServiceId) -> bool {
        self.paused_all || self.paused.contains(service)
    }

    /// Notes that a replica of a service is on its way to a node.
    pub fn arrives(&mut self, node: NodeId, service: &ServiceId, source: Option<&NodeId>) {
        let arrival = Arrival { service: service.clone(), source: source.cloned() };
        self.arriving.entry(node).or_default().push(arrival);
    }

    /// Notes where an order that is not durable yet brings replicas to, as far as it says.
    pub fn arrives_by(&mut self, intent: &Intent) {
        match intent {
            Intent::Migrate { service, source, target: Some(target) } => {
                self.arrives(target.clone(), service, Some(source));
            }
            Intent::ScaleOut { service, target: Some(target), .. } => {
                self.arrives(target.clone(), service, None);
            }
            _ => {}
        }
    }
}

/// What is to be done about a service, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Which service.
    pub service: ServiceId,
    /// Its reasons.
    pub judgement: Judgement,
    /// What is to be done, if anything.
    pub intent: Option<Intent>,
    /// Only decided, not to be done: observe mode.
    pub observed: bool,
    /// How long the action's tombstone is to stay.
    pub keep: Duration,
    /// Precedence among verdicts of one round, the higher first, then the use that weighs.
    rank: (Precedence, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Precedence {
    Rebalance,
    ScaleIn,
    Migrate,
    ScaleOut,
}

/// PSI share from which a node is short, whatever its utilisation, in basis points.
pub const SHORT_PSI: u16 = 2_000;

/// The rules' own constants, in one place.
mod constant {
    use std::time::Duration;

    /// Act-after where PSI shows that tasks really stall, and the operator set none.
    pub const ACT_AFTER_STALLED: Duration = Duration::from_secs(1);
    /// PSI share from which a node or task is taken for stalled, in basis points.
    pub const STALLED: u16 = 2_500;
    pub use super::SHORT_PSI;
    /// A service whose replica is hot again where it was moved does not move again for this long.
    pub const MOVED_IN_VAIN: Duration = crate::view::MOVES_WATCHED;
    /// After a migration off or to a node its figures are given this long to show it.
    pub const RELIEF: Duration = Duration::from_secs(10);
    /// A replica that uses less than this share of its node is a victim, not the culprit.
    pub const CULPRIT_SHARE: f64 = 0.20;
    /// By so many points a move must lower the larger of the two nodes' uses.
    pub const WORTH_POINTS: f64 = 10.0;
    /// A node has room for a replica that moves while its CPU comes to no more than this.
    pub const CPU_ROOM: f64 = 0.75;
    /// A node may come to this share of its memory with one more replica, or to `memory.high` where that is more.
    pub const MEMORY_ROOM: f64 = 0.90;
    /// So much less busy than the source a node is idle.
    pub const IDLE: f64 = 0.20;
    /// Figures are noisy: this much is forgiven when loads are compared.
    pub const NOISE: f64 = 0.15;
    /// Who uses this much of what is used of a node is what makes it short.
    pub const MAIN_PART: f64 = 0.5;
    /// All of a node, and what a rounded or noisy figure may add to it.
    pub const FULL: f64 = 1.02;
    /// So much more than the replicas are to carry is no reason to add one.
    pub const TOLERANCE: f64 = 1.1;
    /// So much more is clearly more, and no chance.
    pub const CLEARLY: f64 = 1.15;
    /// A replica that uses this much of what it may have is at its limit.
    pub const SATURATED: f64 = 0.95;
    /// Tasks at their limit that wait for this share of the time have far too little.
    pub const PRESSED: f64 = 0.8;
    /// Requests in flight for each core that is used up: a queue that grows.
    pub const QUEUED: f64 = 8.0;
    /// A step up after which all are still at their limits was too small, for this long after it.
    pub const SATURATED_AGAIN: Duration = Duration::from_secs(120);
    /// New replicas have taken their part of the load after this, and their figures show it.
    pub const SHOWN: Duration = Duration::from_secs(3);
    /// Figures of replicas that live for seconds are looked at over this time.
    pub const FRESH: Duration = Duration::from_millis(1_500);
    /// Replicas that failed so long ago, or later, tell of what is the matter now.
    pub const FELL: Duration = Duration::from_secs(60);
    /// What an operator set stands for this long before a replica of it counts as spare.
    pub const SET_BY_HAND: Duration = Duration::from_secs(900);
    /// A target that fell silent is none for this long, at least.
    pub const SILENT_TARGET: Duration = Duration::from_secs(30);
    /// Requests in flight for each replica, of what is wanted, at which one is spare.
    pub const IN_FLIGHT_SPARE: f64 = 0.9;
    /// After an attempt that failed the next waits for this long: a node may have been the cause.
    pub const BACK_OFF: Duration = Duration::from_secs(30);
    /// After the second in a row for this long, doubled each time: the cause is the service's own.
    pub const BACK_OFF_AGAIN: Duration = Duration::from_secs(300);
    /// And at most for this long.
    pub const MOST_BACK_OFF: Duration = Duration::from_secs(3_600);
}

/// A verdict for every enabled service, the most urgent first. Limits on actions at once are applied: what exceeds them
/// is a refusal.
pub fn decide(view: &View, situation: &Situation, now: Time) -> Vec<Verdict> {
    let Some(snapshot) = view.snapshot.as_deref() else { return Vec::new() };
    let hot = HotList::of(view, now);
    let mut round = Round { view, situation: situation.clone(), snapshot, now, hot, rooms: OnceCell::new() };
    let mut verdicts: Vec<Verdict> =
        snapshot.services.values().filter_map(|service| round.judge(service)).collect();
    round.relieve(&mut verdicts);
    round.tell_shortage(&mut verdicts);
    verdicts.sort_by(|a, b| b.rank.cmp(&a.rank).then_with(|| a.service.cmp(&b.service)));
    round.limit(&mut verdicts);
    verdicts
}

/// Whether a signal that no alert tells of, requests in flight or latency, asks for more replicas of a service now.
pub fn is_over(view: &View, service: &Service, policy: &ServicePolicy, now: Time) -> bool {
    let beyond_cpu = policy.scale_on.iter().any(|signal| *signal != ScaleSignal::Cpu);
    let Mode::Replicated(replicas) = service.mode else { return false };
    let evidence = Evidence::of(view, service, policy, now, SPAN);
    beyond_cpu && evidence::demand(view, &evidence, service, policy, replicas, now).wanted > replicas
}

/// Since when services have been hot: the longest of their alerts that is believed, ripe or not.
pub fn hot_since(view: &View, now: Time) -> BTreeMap<ServiceId, Time> {
    HotList::of(view, now).since(now)
}

/// The node with most room for one more replica of a service, other than its source; or why there is none.
///
/// # Errors
/// What stands against each node.
pub fn most_room(
    view: &View,
    situation: &Situation,
    service: &ServiceId,
    source: Option<&NodeId>,
    now: Time,
) -> Result<NodeId, String> {
    let Some(snapshot) = view.snapshot.as_deref() else { return Err("Swarm was not read yet".into()) };
    let Some(service) = snapshot.services.get(service) else { return Err("there is no such service".into()) };
    let hot = HotList::default();
    let round = Round { view, situation: situation.clone(), snapshot, now, hot, rooms: OnceCell::new() };
    let other = |target: &Target| {
        if Some(&target.node) == source { Err("the source itself".into()) } else { Ok(()) }
    };
    target::best_target(&round, service, burden::Burden::default(), other).map(|target| target.node)
}

/// One round of judgements: everything they share.
struct Round<'a> {
    view: &'a View,
    /// With what this round has decided so far.
    situation: Situation,
    snapshot: &'a Snapshot,
    now: Time,
    hot: HotList<'a>,
    /// What there is of each node, once somebody asks.
    rooms: OnceCell<Vec<Room<'a>>>,
}

impl Round<'_> {
    fn judge(&self, service: &Service) -> Option<Verdict> {
        let policy = match &service.policy {
            Ok(policy) if policy.enabled => policy,
            Ok(_) => return None,
            Err(errors) => {
                let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
                let otherwise = "labels that make sense; until then the service is left alone";
                return Some(self.refuse(service, Rule::Labels, all.join("; "), otherwise));
            }
        };
        let mut verdict = self.judge_enabled(service, policy);
        verdict.observed = self.situation.observe || policy.observe;
        verdict.judgement.signals.extend(self.figures(service, policy));
        Some(verdict)
    }

    fn judge_enabled(&self, service: &Service, policy: &ServicePolicy) -> Verdict {
        if let Some(own) = preflight::own(service, policy) {
            return self.refuse(service, own.code, own.text, own.otherwise);
        }
        let Mode::Replicated(replicas) = service.mode else {
            return self.calm(service, Rule::NotReplicated, "only replicated services are moved and scaled");
        };
        if let Some(token) = self.situation.busy.get(&service.id) {
            return self.calm(service, Rule::ActionRunning, format!("the action {token} is under way"));
        }
        let wanted = self.wanted(service, policy, replicas);
        if wanted.judgement.conclusion == Conclusion::Calm {
            return wanted;
        }
        if self.situation.is_paused(&service.id) {
            let text = format!("automation is paused; else: {}", wanted.judgement.text);
            return self.instead(wanted, Rule::Paused, text, "resume");
        }
        let adds = matches!(wanted.intent, Some(Intent::ScaleOut { .. }));
        let overloaded = || self.is_overloaded(service) || self.is_collapsing(service, policy, replicas);
        match self.rollout(service, replicas, adds && overloaded()) {
            Some((text, otherwise)) => self.instead(wanted, Rule::Rollout, text, otherwise),
            None => wanted,
        }
    }

    /// What would be done if nobody else were at work on the service.
    fn wanted(&self, service: &Service, policy: &ServicePolicy, replicas: u64) -> Verdict {
        if let Some(verdict) = self.bounds(service, policy, replicas) {
            return verdict;
        }
        let leak = self.judge_leak(service, policy);
        if let Some(verdict) = leak.as_ref().filter(|verdict| verdict.intent.is_some()) {
            return verdict.clone();
        }
        if let Some(verdict) = self.judge_collapse(service, policy, replicas) {
            return verdict;
        }
        let hot = self.hot.of_service(&service.id);
        // Alerts that count for nothing hold nothing up: they are explained where there is nothing else to say.
        if hot.iter().any(|hot| !hot.is_stale()) {
            let verdict = self.judge_hot(service, policy, replicas, hot);
            if verdict.intent.is_some() {
                return self.unless_it_passes(service, policy, verdict);
            }
            return self.judge_signals(service, policy, replicas).unwrap_or(verdict);
        }
        if let Some(verdict) = self.judge_signals(service, policy, replicas) {
            return verdict;
        }
        let is_calm = |verdict: &Verdict| verdict.judgement.conclusion == Conclusion::Calm;
        if let Some(refused) = leak.as_ref().filter(|verdict| !is_calm(verdict)) {
            return refused.clone();
        }
        let spare = self.judge_spare(service, policy, replicas);
        match spare.judgement.conclusion {
            Conclusion::Calm => {
                let rest = || match leak {
                    Some(leak) => leak,
                    None if hot.is_empty() => spare,
                    None => self.doubtful(service, hot),
                };
                self.rebalance(service, policy).unwrap_or_else(rest)
            }
            _ => spare,
        }
    }

    /// Heat that is expected to be over before a remedy would be is left alone, unless an operator said how long is long.
    fn unless_it_passes(&self, service: &Service, policy: &ServicePolicy, verdict: Verdict) -> Verdict {
        let Some(expected) = self.view.history.expected(&service.id, self.now) else { return verdict };
        if policy.act_after.is_some() || expected.left > expected.remedy || self.lacks_replicas(service) {
            return verdict;
        }
        let text = format!(
            "{}; but after its last {} hot spells this one is expected to end in {} s, and a remedy takes {} s",
            verdict.judgement.text,
            expected.episodes,
            expected.left.as_secs(),
            expected.remedy.as_secs()
        );
        self.instead(verdict, Rule::Passes, text, "swarmguard.act-after, which says how long is too long")
    }

    /// A replica does not serve, or nobody knows what it does: heat is then of another kind than it was before.
    fn lacks_replicas(&self, service: &Service) -> bool {
        let Mode::Replicated(replicas) = service.mode else { return false };
        let known = self.view.replicas(&service.id, self.now).into_iter();
        let known = known.filter(|replica| replica.task.is_serving() && replica.load.is_some());
        (known.count() as u64) < replicas
    }

    /// Replicas that had served fail one after the other, and those that serve, however young, are full: they fail for
    /// want of capacity, and none lives for long enough to be evidence.
    fn is_collapsing(&self, service: &Service, policy: &ServicePolicy, replicas: u64) -> bool {
        let fell = self.view.history.fell_since(&service.id, self.now.before(constant::FELL));
        fell as u64 >= replicas.div_ceil(2).max(2)
            && Evidence::of(self.view, service, policy, self.now, constant::FRESH).is_full()
    }

    fn judge_collapse(&self, service: &Service, policy: &ServicePolicy, replicas: u64) -> Option<Verdict> {
        if policy.scale_max.is_none() || !self.is_collapsing(service, policy, replicas) {
            return None;
        }
        let evidence = Evidence::of(self.view, service, policy, self.now, constant::FRESH);
        let fell = self.view.history.fell_since(&service.id, self.now.before(constant::FELL));
        let text = format!(
            "{fell} replicas failed in the last {} s, and those that serve use all they may: they fail under load",
            constant::FELL.as_secs()
        );
        let wanted = replicas.saturating_mul(2).min(evidence::step(policy.scale_step, replicas));
        let demand = Demand { wanted, signal: ScaleSignal::Cpu, saturated: true, text: text.clone() };
        let verdict = self.scale_out(service, policy, replicas, Rule::ScaleOut, &text, &demand, &evidence);
        Some(verdict)
    }

    /// All replicas that serve are hot. One that does not serve then mostly fails its checks for want of CPU: that is when
    /// capacity is needed.
    fn is_overloaded(&self, service: &Service) -> bool {
        let serving = self.view.tasks_of(&service.id).filter(|task| task.is_serving()).count();
        let hot = self.hot.of_service(&service.id).iter().filter_map(hot::Hot::certain).count();
        serving > 0 && hot == serving
    }

    /// Somebody else changes the service, as far as can be seen: what is seen and what would end it. Where it is
    /// `overloaded`, a replica that does not serve is none of somebody else's doing.
    fn rollout(&self, service: &Service, replicas: u64, overloaded: bool) -> Option<(String, String)> {
        if let Some(state) = service.update_state.filter(|state| state.is_unfinished()) {
            let text = format!("an update is under way ({})", state.word());
            return Some((text, "the end of the update".into()));
        }
        let mut slots: BTreeMap<u64, usize> = BTreeMap::new();
        let mut serving = 0;
        for task in self.view.tasks_of(&service.id).filter(|task| task.is_wanted()) {
            *slots.entry(task.slot).or_default() += 1;
            serving += u64::from(task.is_serving());
        }
        if let Some((slot, _)) = slots.iter().find(|(_, tasks)| **tasks > 1) {
            return Some((
                format!("slot {slot} is being replaced: it has two tasks"),
                "one task in each slot".into(),
            ));
        }
        if serving != replicas && !overloaded {
            let text = format!("{serving} of {replicas} replicas run");
            return Some((text, "all replicas running".into()));
        }
        let left = self.view.history.quiet_left(&service.id, self.now)?;
        let text = format!("somebody else changed it {} ms ago", (crate::view::QUIET - left).as_millis());
        Some((text, format!("no foreign change for {} s", crate::view::QUIET.as_secs())))
    }

    /// The figures that every verdict carries.
    fn figures(&self, service: &Service, policy: &ServicePolicy) -> BTreeMap<&'static str, f64> {
        let mut figures = BTreeMap::from([
            ("cpu_high_percent", policy.thresholds.cpu_high.percent()),
            ("memory_high_percent", policy.thresholds.memory_high.percent()),
            ("network_low_percent", policy.thresholds.network_low.percent()),
            ("network_high_percent", policy.thresholds.network_high.percent()),
        ]);
        if let Mode::Replicated(replicas) = service.mode {
            #[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 replicas")]
            figures.insert("replicas", replicas as f64);
        }
        figures
    }

    fn verdict(&self, service: &Service, conclusion: Conclusion, rule: Rule, text: String) -> Verdict {
        Verdict {
            service: service.id.clone(),
            judgement: Judgement {
                conclusion,
                rule,
                text,
                otherwise: String::new(),
                signals: BTreeMap::new(),
                hot_for: None,
                task: None,
                node: None,
                target: None,
            },
            intent: None,
            observed: false,
            keep: Duration::ZERO,
            rank: (Precedence::ScaleIn, 0),
        }
    }

    fn calm(&self, service: &Service, rule: Rule, text: impl Into<String>) -> Verdict {
        self.verdict(service, Conclusion::Calm, rule, text.into())
    }

    fn refuse(
        &self,
        service: &Service,
        rule: Rule,
        text: impl Into<String>,
        otherwise: impl Into<String>,
    ) -> Verdict {
        let mut verdict = self.verdict(service, Conclusion::Refuse, rule, text.into());
        verdict.judgement.otherwise = otherwise.into();
        verdict
    }

    /// Refuses what exceeds the limits on actions at once; verdicts come most urgent first. Where a node is taken or left
    /// by a more urgent one, those that would go there too are judged anew with that known.
    fn limit(&mut self, verdicts: &mut [Verdict]) {
        let mut touched = BTreeSet::new();
        for verdict in verdicts.iter_mut().filter(|verdict| verdict.intent.is_some() && !verdict.observed) {
            let under_way = self.situation.under_way;
            if under_way >= self.situation.max_actions {
                let text = format!("{under_way} actions are under way; else: {}", verdict.judgement.text);
                let otherwise = format!("fewer than {} at once", self.situation.max_actions);
                turn_down(verdict, Rule::Limit, text, otherwise);
                continue;
            }
            if verdict.judgement.target.as_ref().is_some_and(|target| touched.contains(target))
                && let Some(again) =
                    self.snapshot.services.get(&verdict.service).and_then(|it| self.judge(it))
            {
                *verdict = again;
            }
            let Some(intent) = verdict.intent.clone() else { continue };
            let node = match &intent {
                Intent::Migrate { source: node, .. } | Intent::ScaleIn { node, .. } => Some(node.clone()),
                _ => None,
            };
            if let Some(node) = node {
                let here = self.situation.leaving.entry(node.clone()).or_default();
                if *here >= self.situation.max_actions_per_node {
                    let text = format!("another action leaves node {node}; else: {}", verdict.judgement.text);
                    turn_down(verdict, Rule::LimitNode, text, "the end of that action".into());
                    continue;
                }
                *here += 1;
                touched.insert(node);
            }
            touched.extend(verdict.judgement.target.clone());
            self.situation.arrives_by(&intent);
            self.situation.under_way += 1;
        }
    }

    /// The verdict turned into a refusal by a rule that stands above it; signals, task and node stay.
    fn instead(
        &self,
        mut verdict: Verdict,
        rule: Rule,
        text: impl Into<String>,
        otherwise: impl Into<String>,
    ) -> Verdict {
        turn_down(&mut verdict, rule, text.into(), otherwise.into());
        verdict
    }
}

fn turn_down(verdict: &mut Verdict, rule: Rule, text: String, otherwise: String) {
    verdict.intent = None;
    verdict.judgement.conclusion = Conclusion::Refuse;
    verdict.judgement.rule = rule;
    verdict.judgement.text = text;
    verdict.judgement.otherwise = otherwise;
}

/// Names a node for people.
fn name(snapshot: &Snapshot, node: &NodeId) -> String {
    snapshot.nodes.get(node).map_or_else(|| node.to_string(), |found| found.hostname.clone())
}

/// Milliseconds as a figure.
fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// About which replica a verdict is.
fn about(verdict: &mut Verdict, task: &TaskId, node: &NodeId) {
    verdict.judgement.task = Some(task.clone());
    verdict.judgement.node = Some(node.clone());
}

#[cfg(test)]
mod tests;
