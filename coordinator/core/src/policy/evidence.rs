//! What the replicas of a service use of what they may have, in cores and bytes, and how many of them demand asks for.
//!
//! Only mature replicas are evidence: one that is missing or starts counts as idle when replicas are added and as busy
//! when one is taken away.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::{
    domain::NodeId,
    labels::{ScaleSignal, ScaleStep, ServicePolicy},
    time::Time,
    wire::agent::TaskLoad,
};

use super::constant;
use crate::{
    action::Kind,
    swarm::{Mode, Service},
    view::{Replica, SPAN, View, lives::Maturity},
};

/// One replica whose figures are known.
#[derive(Clone, Debug)]
pub struct Witness<'a> {
    /// Which.
    pub replica: Replica<'a>,
    /// Its settled figures.
    pub load: TaskLoad,
    /// What it has used over a longer time, in thousandths of a CPU.
    pub steady_millis: f64,
    /// CPU that it may have: its limit, else what its node has left and what it uses; in thousandths of one.
    pub capacity_millis: f64,
    /// Whether they are evidence.
    pub maturity: Maturity,
    /// For how long it has served; `None` where that is longer than this process watched.
    pub served: Option<Duration>,
}

impl Witness<'_> {
    /// CPU in use, in thousandths of one.
    pub fn used_millis(&self) -> f64 {
        f64::from(self.load.cpu_millis)
    }

    fn is_mature(&self) -> bool {
        self.maturity == Maturity::Mature
    }

    /// It uses all that it may have.
    fn is_full(&self) -> bool {
        self.used_millis() >= self.capacity_millis * constant::SATURATED
    }
}

/// The replicas of a service that serve, as far as their figures are known.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// In task order.
    pub witnesses: Vec<Witness<'a>>,
    /// Replicas that serve.
    pub serving: u64,
    /// Replicas that Swarm wants and has placed.
    pub placed: u64,
    /// One that serves and of which nothing fresh is known.
    pub unknown: Option<String>,
}

impl<'a> Evidence<'a> {
    /// Gathers it, by figures that have settled over `stood`.
    pub fn of(view: &'a View, service: &Service, policy: &ServicePolicy, now: Time, stood: Duration) -> Self {
        let found = view.replicas(&service.id, now);
        let placed = count(found.len());
        let mut all = Self { witnesses: Vec::new(), serving: 0, placed, unknown: None };
        let mut left: BTreeMap<&NodeId, f64> = BTreeMap::new();
        for replica in found.into_iter().filter(|replica| replica.task.is_serving()) {
            all.serving += 1;
            let figures = || {
                let (agent, container) = (replica.agent?, replica.container?);
                let fresh = *replica.load?;
                let load = container.recent.settled(now, stood).unwrap_or(fresh);
                let node_cpu = agent.recent.settled(now, stood).or(agent.load)?.cpu?;
                load.cpu.and(fresh.cpu)?;
                Some((agent, container, load, node_cpu))
            };
            let Some((agent, container, load, node_cpu)) = figures() else {
                all.unknown = Some(replica.task.id.to_string());
                continue;
            };
            let whole = agent.hello.cpu_millis;
            let limit = container.intro.cpu_limit_millis.filter(|limit| *limit < whole);
            if limit.is_none() {
                left.insert(&replica.node.id, f64::from(whole) * (1.0 - node_cpu.ratio()));
            }
            let maturity = view.lives.maturity(&replica.task.id, service, policy.warm_up, now);
            let capacity_millis = limit.map_or(f64::NAN, f64::from);
            let steady = container.steady_cpu.ratio().map(|share| share * f64::from(limit.unwrap_or(whole)));
            let steady_millis = steady.unwrap_or(f64::from(load.cpu_millis));
            let served = view.lives.served(&replica.task.id, now);
            all.witnesses.push(Witness { replica, load, steady_millis, capacity_millis, maturity, served });
        }
        // What a node has left is shared by those there that no limit holds.
        for (node, left) in left {
            let mut free: Vec<&mut Witness<'_>> = all
                .witnesses
                .iter_mut()
                .filter(|witness| witness.replica.node.id == *node && witness.capacity_millis.is_nan())
                .collect();
            let share = left / float(count(free.len()).max(1));
            for witness in &mut free {
                witness.capacity_millis = (witness.used_millis() + share).max(1.0);
            }
        }
        all
    }

    /// Use of all, in thousandths of a CPU: what is known to be load.
    pub fn used_millis(&self) -> f64 {
        self.sum_of(Witness::used_millis)
    }

    /// The same, of what they have used over a longer time; never more than they use now.
    fn steady_millis(&self) -> f64 {
        self.sum_of(|witness| witness.steady_millis).min(self.used_millis())
    }

    fn sum_of(&self, used: impl Fn(&Witness<'a>) -> f64) -> f64 {
        let mature = || self.witnesses.iter().filter(|witness| witness.is_mature());
        let sum: f64 = mature().map(&used).sum();
        let Some(mean) = mean(mature().map(&used)) else { return 0.0 };
        // A young one's own use may be its start; it may also have taken its part of the load.
        let young = self.witnesses.iter().filter(|witness| witness.maturity == Maturity::Young);
        sum + young.map(|witness| used(witness).min(mean)).sum::<f64>()
    }

    /// What one replica may have, in thousandths of a CPU, on the average.
    pub fn capacity_millis(&self) -> Option<f64> {
        mean(self.witnesses.iter().map(|witness| witness.capacity_millis))
    }

    /// How busy the replicas are on the average, of what they may have.
    pub fn busy(&self) -> Option<f64> {
        mean(self.witnesses.iter().map(|witness| witness.used_millis() / witness.capacity_millis))
    }

    /// All use all that they may have: demand may be any higher. New ones that have not filled up say that there is room,
    /// though the others may still work off what waits at them.
    fn is_saturated(&self) -> bool {
        let has_shown = |witness: &&Witness<'_>| {
            witness.is_mature() || witness.served.is_none_or(|served| served >= constant::SHOWN)
        };
        let mut shown = self.witnesses.iter().filter(has_shown).peekable();
        shown.peek().is_some() && shown.all(Witness::is_full)
    }

    /// All that serve, however young, are full: they have no time to grow old.
    pub fn is_full(&self) -> bool {
        !self.witnesses.is_empty() && self.witnesses.iter().all(Witness::is_full)
    }

    /// How long the newest has served; `None` where all are older than this process.
    pub fn newest(&self) -> Option<Duration> {
        self.witnesses.iter().filter_map(|witness| witness.served).min()
    }

    /// Much waits while all of it is used, tasks for a CPU or requests for an answer: demand is far higher.
    fn is_pressed(&self) -> bool {
        let mature = || self.witnesses.iter().filter(|witness| witness.is_mature());
        let waits = mean(mature().map(|witness| {
            let load = &witness.load;
            load.throttled.max(load.psi_cpu).map_or(0.0, |share| share.ratio())
        }));
        let queued = mean(mature().filter_map(|witness| {
            let cores = witness.capacity_millis / 1_000.0;
            Some(f64::from(witness.load.in_flight?) / cores.max(0.001))
        }));
        waits.is_some_and(|share| share >= constant::PRESSED)
            || queued.is_some_and(|each| each >= constant::QUEUED)
    }

    /// Some replica has just begun to serve.
    pub fn has_newcomer(&self) -> bool {
        self.witnesses.iter().any(|witness| witness.maturity == Maturity::Immature)
    }

    /// Another mature replica uses less than half of what this one does.
    pub fn is_outlier(&self, millis: f64) -> bool {
        let others: Vec<f64> = self
            .witnesses
            .iter()
            .filter(|witness| witness.is_mature())
            .map(Witness::used_millis)
            .filter(|used| *used < millis)
            .collect();
        mean(others.into_iter()).is_some_and(|mean| mean < millis * 0.5)
    }
}

/// How many replicas demand asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// So many; as many as there are where they are enough, within the tolerance.
    pub wanted: u64,
    /// The signal that asks for most.
    pub signal: ScaleSignal,
    /// It is far beyond what the replicas have.
    pub saturated: bool,
    /// The figures, for people.
    pub text: String,
}

/// How many replicas a service of so many needs, by all its signals.
pub fn demand(
    view: &View,
    evidence: &Evidence<'_>,
    service: &Service,
    policy: &ServicePolicy,
    replicas: u64,
    now: Time,
) -> Demand {
    let mut most = by_cpu(view, evidence, service, policy, replicas, now);
    let beyond_cpu = policy.scale_on.iter().filter_map(|signal| match signal {
        ScaleSignal::Cpu => None,
        ScaleSignal::InFlight(goal) => by_in_flight(evidence, *signal, *goal, replicas),
        ScaleSignal::LatencyP95Ms(goal) => by_latency(evidence, *signal, *goal, replicas),
    });
    for other in beyond_cpu {
        if other.wanted > most.wanted
            || !policy.scale_on.contains(&ScaleSignal::Cpu) && most.signal == ScaleSignal::Cpu
        {
            most = other;
        }
    }
    most.wanted = most.wanted.min(step(policy.scale_step, replicas));
    most
}

/// So many a service may have after its next step.
pub fn step(step: ScaleStep, replicas: u64) -> u64 {
    match step {
        ScaleStep::Auto => replicas.saturating_mul(2),
        ScaleStep::AtMost(most) => replicas.saturating_add(u64::from(most)),
    }
}

fn by_cpu(
    view: &View,
    evidence: &Evidence<'_>,
    service: &Service,
    policy: &ServicePolicy,
    replicas: u64,
    now: Time,
) -> Demand {
    let used = evidence.used_millis();
    let each = evidence.capacity_millis().unwrap_or(f64::INFINITY);
    let target = policy.thresholds.cpu_high.ratio();
    let saturated = evidence.is_saturated();
    // A little more than the replicas are to carry may be chance; that it lasts tells. Far more does not wait for that.
    let clear = used / (each * target) > float(replicas) * constant::CLEARLY || saturated;
    let used = if clear { used } else { evidence.steady_millis() };
    let mut wanted = wanted(used / (each * target), replicas);
    // At their limit replicas do not show how much more is wanted; where the last step did not change that, or much
    // waits, twice as many is the next guess.
    if saturated {
        let stepped = view.history.past(&service.id, Kind::ScaleOut).filter(|past| !past.undone);
        let in_vain = stepped.is_some_and(|past| now - past.ended < constant::SATURATED_AGAIN);
        if in_vain || evidence.is_pressed() {
            wanted = wanted.max(replicas.saturating_mul(2));
        }
    }
    let text = format!(
        "its {replicas} replicas use {:.2} of {:.2} cores ({:.0} %)",
        used / 1_000.0,
        each * float(replicas) / 1_000.0,
        used / (each * float(replicas)) * 100.0
    );
    Demand { wanted, signal: ScaleSignal::Cpu, saturated, text }
}

fn by_in_flight(evidence: &Evidence<'_>, signal: ScaleSignal, goal: u32, replicas: u64) -> Option<Demand> {
    let mature = evidence.witnesses.iter().filter(|witness| witness.maturity != Maturity::Immature);
    let counts: Option<Vec<f64>> = mature.map(|witness| witness.load.in_flight.map(f64::from)).collect();
    let all: f64 = counts.filter(|counts| !counts.is_empty())?.iter().sum();
    let wanted = wanted(all / f64::from(goal), replicas);
    let text = format!("its {replicas} replicas have {all:.0} requests in flight, {goal} each are wanted");
    Some(Demand { wanted, signal, saturated: false, text })
}

fn by_latency(evidence: &Evidence<'_>, signal: ScaleSignal, goal_ms: u32, replicas: u64) -> Option<Demand> {
    let mature = evidence.witnesses.iter().filter(|witness| witness.maturity != Maturity::Immature);
    let mut known: Vec<u32> = mature.filter_map(|witness| witness.load.latency_p95_us).collect();
    known.sort_unstable();
    let is_ms = f64::from(*known.get(known.len() / 2)?) / 1_000.0;
    // Latency says that more are needed, not how many.
    let more = replicas.div_ceil(3).max(1);
    let wanted = if is_ms > f64::from(goal_ms) { replicas + more } else { replicas };
    let text = format!("95 of 100 requests take up to {is_ms:.0} ms, at most {goal_ms} ms are wanted");
    Some(Demand { wanted, signal, saturated: false, text })
}

/// So many rounded up, where they are more than there are by more than the tolerance.
fn wanted(exact: f64, replicas: u64) -> u64 {
    if exact <= float(replicas) * constant::TOLERANCE {
        return replicas;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive; huge ones are cut"
    )]
    let wanted = exact.ceil() as u64;
    wanted
}

/// How few replicas would be enough, with the figures; or why that is not known.
#[derive(Clone, Debug, PartialEq)]
pub enum Spare {
    /// So many, at most as many as there are.
    Needed {
        /// How many.
        replicas: u64,
        /// The figures.
        text: String,
        /// CPU of all, in thousandths of one.
        used_millis: f64,
    },
    /// A figure of a replica is missing, which is not idleness.
    Unknown(String),
}

/// Judges it by fresh figures of every replica: as few as could carry all of CPU, network, requests in flight where
/// labels scale on them, and memory where labels say so, each below its threshold less the margin.
pub fn spare(view: &View, service: &Service, policy: &ServicePolicy, now: Time) -> Spare {
    let Mode::Replicated(replicas) = service.mode else { return Spare::Unknown("not replicated".into()) };
    let evidence = Evidence::of(view, service, policy, now, SPAN);
    if evidence.serving != replicas || evidence.placed != replicas {
        return Spare::Unknown(format!("{} of {replicas} replicas run", evidence.serving));
    }
    if let Some(task) = &evidence.unknown {
        return Spare::Unknown(format!("no fresh figures of task {task}"));
    }
    let thresholds = &policy.thresholds;
    let below =
        |high: swarmguard_common::domain::BasisPoints| (high.ratio() - policy.margin.ratio()).max(0.01);
    let Some(each) = evidence.capacity_millis() else { return Spare::Unknown("it has no replica".into()) };
    // One that starts may be about to take its part.
    let busy = |witness: &Witness<'_>| {
        let used = witness.used_millis();
        if witness.is_mature() {
            used
        } else {
            used.max(witness.capacity_millis * thresholds.cpu_high.ratio())
        }
    };
    let used_millis: f64 = evidence.witnesses.iter().map(busy).sum();
    let share = |figure: fn(&TaskLoad) -> Option<swarmguard_common::domain::BasisPoints>| {
        evidence
            .witnesses
            .iter()
            .map(|witness| figure(&witness.load).map(|share| share.ratio()))
            .sum::<Option<f64>>()
    };
    let (Some(network), Some(memory)) =
        (share(|load| load.network), share(|load| load.memory).or((!policy.scale_memory).then_some(0.0)))
    else {
        return Spare::Unknown("its network or memory use is unknown".into());
    };
    let mut needs = vec![
        ("CPU", used_millis / (each * below(thresholds.cpu_high))),
        ("network", network / below(thresholds.network_high)),
    ];
    if policy.scale_memory {
        needs.push(("memory", memory / below(thresholds.memory_high)));
    }
    for signal in &policy.scale_on {
        match by_signal(&evidence, *signal) {
            Ok(need) => needs.extend(need),
            Err(why) => return Spare::Unknown(why),
        }
    }
    let (what, exact) = needs.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(("CPU", 0.0));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive; huge ones are cut"
    )]
    let needed = (exact.floor() as u64).saturating_add(1).min(replicas);
    let text = format!(
        "its {replicas} replicas use {:.2} of {:.2} cores; by {what} {needed} are needed",
        used_millis / 1_000.0,
        each * float(replicas) / 1_000.0
    );
    Spare::Needed { replicas: needed, text, used_millis }
}

fn by_signal(evidence: &Evidence<'_>, signal: ScaleSignal) -> Result<Option<(&'static str, f64)>, String> {
    let counts = || {
        evidence.witnesses.iter().map(|witness| witness.load.in_flight.map(f64::from)).sum::<Option<f64>>()
    };
    match signal {
        ScaleSignal::Cpu | ScaleSignal::LatencyP95Ms(_) => Ok(None),
        ScaleSignal::InFlight(goal) => match counts() {
            Some(all) => {
                Ok(Some(("requests in flight", all / (f64::from(goal) * constant::IN_FLIGHT_SPARE))))
            }
            None => Err("its requests in flight are unknown".into()),
        },
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, number) = values.fold((0.0, 0_u32), |(sum, number), value| (sum + value, number + 1));
    (number > 0).then(|| sum / f64::from(number))
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// A number of replicas as a figure.
pub fn float(number: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 replicas")]
    let number = number as f64;
    number
}
