//! What a run is worth: late requests, cost beside an oracle that knows the demand, actions, and which of them helped.
//!
//! Whether an action helped is judged by what really was, before and after, not by what was measured of it.

use crate::{
    controller::{Act, Acts, End, Kind},
    machines::Machines,
    number::{count, index, real, real_len},
    record::Record,
    scenario::{Bound, Scenario},
};

/// A node is short from this share of its CPUs or memory, for the judgement of moves.
const SHORT: f64 = 0.80;
/// A move is worth it from this much, as a share of a node.
const WORTH: f64 = 0.05;
/// An action shows itself within so many seconds of its end.
const SHOWS_S: usize = 20;
/// A replica added counts as needed if it is so within so many seconds.
const SOON_S: usize = 60;
/// One taken away counts as missed if one is added within so many seconds.
const MISSED_S: usize = 300;
/// A replica that would live for longer than so many seconds was replaced too early.
const REPLACED_S: f64 = 240.0;
/// One that needs so much of its memory is about to be ended by the kernel.
const FULL: f64 = 0.95;
/// Seconds that are looked at together for relief.
const WINDOW_S: usize = 5;
/// Share of late requests from which they are bad.
const BAD: f64 = 0.05;
/// Relieved when so many seconds were without bad ones.
const RELIEVED_S: usize = 30;
/// A count of replicas counts as reached when it stood so long: a move adds one for a moment.
const STOOD_S: usize = 20;

/// The scores of one run.
#[derive(Clone, Debug, Default)]
pub struct Score {
    /// Requests late, refused or lost, in per cent, the mean over services.
    pub late_percent: f64,
    /// The same of the service that fares worst.
    pub worst_late_percent: f64,
    /// Containers' seconds over the oracle's.
    pub cost: f64,
    /// Unasked actions, an hour.
    pub actions_per_hour: f64,
    /// Unasked actions that helped nothing, an hour.
    pub useless_per_hour: f64,
    /// Unasked actions.
    pub actions: f64,
    /// Seconds from the first bad ones to relief.
    pub relief_s: f64,
    /// The busiest minute of any node, in per cent.
    pub worst_node_percent: f64,
    /// Containers that the kernel or failed checks ended.
    pub kills: f64,
    /// The most replicas of each service.
    pub most_replicas: Vec<f64>,
    /// Replicas of each service at the end.
    pub end_replicas: Vec<f64>,
}

impl Score {
    /// The score that a bound is about.
    pub fn of(&self, bound: Bound) -> f64 {
        let at = |list: &[f64], service: usize| list.get(service).copied().unwrap_or(0.0);
        match bound {
            Bound::LatePercent => self.late_percent,
            Bound::WorstLatePercent => self.worst_late_percent,
            Bound::ActionsPerHour => self.actions_per_hour,
            Bound::UselessPerHour => self.useless_per_hour,
            Bound::LeastActions => self.actions,
            Bound::ReliefS => self.relief_s,
            Bound::Cost => self.cost,
            Bound::WorstNodePercent => self.worst_node_percent,
            Bound::Kills => self.kills,
            Bound::MostReplicas(service) => at(&self.most_replicas, service),
            Bound::EndReplicas(service) | Bound::EndReplicasLeast(service) => at(&self.end_replicas, service),
        }
    }
}

/// Scores a run; whether actions helped is written into them.
pub fn score(scenario: &Scenario, machines: &Machines, record: &Record, acts: &mut Acts) -> Score {
    judge_acts(scenario, machines, record, acts);
    let settle = index(scenario.settle.as_secs_f64());
    let end = record.seconds.len();
    let services = scenario.services.len();
    let shares: Vec<f64> = (0..services)
        .map(|service| record.tally(settle, end, service))
        .filter(|tally| tally.ended() > 0)
        .map(|tally| tally.bad_share() * 100.0)
        .collect();
    let hours = scenario.length.as_secs_f64() / 3_600.0;
    let own = acts.all.iter().filter(|act| !act.asked);
    let useless = own.clone().filter(|act| act.helped == Some(false)).count();
    let count_of = |service: usize| record.seconds.iter().map(move |it| it.services[service].replicas);
    let stood = |service: usize| {
        let all: Vec<u64> = count_of(service).collect();
        let held = all.windows(STOOD_S.min(all.len().max(1))).map(|window| window.iter().min().copied());
        real(held.flatten().max().unwrap_or(0))
    };
    Score {
        late_percent: shares.iter().sum::<f64>() / real_len(shares.len().max(1)),
        worst_late_percent: shares.iter().copied().fold(0.0, f64::max),
        cost: cost(scenario, machines, record, settle),
        actions_per_hour: real_len(own.clone().count()) / hours,
        useless_per_hour: real_len(useless) / hours,
        actions: real_len(own.count()),
        relief_s: relief(record, settle, services),
        worst_node_percent: worst_node(record, settle) * 100.0,
        kills: real(machines.kills),
        most_replicas: (0..services).map(stood).collect(),
        end_replicas: (0..services).map(|service| real(count_of(service).next_back().unwrap_or(0))).collect(),
    }
}

/// Replicas that a service needs at a second, by somebody who knows the demand that is to come.
pub fn oracle(scenario: &Scenario, machines: &Machines, service: usize, second: usize) -> u64 {
    let spec = &scenario.services[service];
    if !spec.scales() {
        return spec.replicas;
    }
    let lead = index((spec.pull + spec.healthy).as_secs_f64().ceil()).min(600);
    // The peak within the time that a start takes; looked at every few seconds, for curves are no faster.
    let ahead = (0..=lead).step_by((lead / 8).max(1));
    let peak = ahead.map(|ahead| machines.offered_at(service, real_len(second + ahead))).fold(0.0, f64::max);
    needed(scenario, service, peak).clamp(
        u64::from(spec.policy.scale_min.unwrap_or(1)),
        u64::from(spec.policy.scale_max.unwrap_or(u32::MAX)),
    )
}

/// Replicas that so many CPUs of demand need, below the service's threshold.
fn needed(scenario: &Scenario, service: usize, offered: f64) -> u64 {
    let spec = &scenario.services[service];
    let nodes = real_len(scenario.nodes.len().max(1));
    let node_cpus = scenario.nodes.iter().map(|node| node.cpus * node.speed).sum::<f64>() / nodes;
    let cap = spec.cpus.unwrap_or(node_cpus).min(node_cpus);
    // A hair's breadth over a whole number is that number.
    count((offered / (cap * spec.policy.thresholds.cpu_high.ratio()) - 0.02).ceil()).max(1)
}

fn cost(scenario: &Scenario, machines: &Machines, record: &Record, settle: usize) -> f64 {
    let any = scenario.services.iter().any(crate::scenario::ServiceSpec::scales);
    let (mut ours, mut least) = (0.0, 0.0);
    for (index, spec) in scenario.services.iter().enumerate() {
        if any && !spec.scales() {
            continue;
        }
        for (second, it) in record.seconds.iter().enumerate().skip(settle) {
            ours += real(it.services[index].containers);
            least += real(oracle(scenario, machines, index, second));
        }
    }
    if least > 0.0 { ours / least } else { 1.0 }
}

fn relief(record: &Record, settle: usize, services: usize) -> f64 {
    let end = record.seconds.len();
    let bad = |from: usize| {
        (0..services).any(|service| {
            let tally = record.tally(from, from + WINDOW_S, service);
            tally.ended() >= 5 && tally.bad_share() > BAD
        })
    };
    let windows: Vec<bool> = (settle..end).step_by(WINDOW_S).map(bad).collect();
    let Some(first) = windows.iter().position(|bad| *bad) else { return 0.0 };
    let calm = RELIEVED_S / WINDOW_S;
    let relieved = (first..windows.len()).find(|from| {
        let until = from + calm;
        until <= windows.len() && windows[*from..until].iter().all(|bad| !bad)
    });
    real_len((relieved.unwrap_or(windows.len()) - first) * WINDOW_S)
}

fn worst_node(record: &Record, settle: usize) -> f64 {
    let nodes = record.seconds.first().map_or(0, |second| second.nodes.len());
    let mut worst = 0.0_f64;
    for node in 0..nodes {
        for from in (settle..record.seconds.len().saturating_sub(59)).step_by(10) {
            worst = worst.max(record.mean(from, from + 60, |second| second.nodes[node].used));
        }
    }
    worst
}

fn judge_acts(scenario: &Scenario, machines: &Machines, record: &Record, acts: &mut Acts) {
    let all = acts.all.clone();
    for act in &mut acts.all {
        let Some((ended, end)) = act.ended else { continue };
        if end == End::Undone {
            (act.helped, act.judged) = (Some(false), "it was taken back".into());
            continue;
        }
        let (begun, ended) = (record.second(act.begun), record.second(ended));
        let (helped, why) = match act.kind {
            Kind::Move | Kind::Rebalance => judge_move(scenario, record, act, begun, ended),
            Kind::Replace => judge_replace(scenario, record, act, begun),
            Kind::Out => judge_out(scenario, machines, record, act, begun, ended),
            Kind::In => judge_in(scenario, machines, record, act, &all, ended),
        };
        (act.helped, act.judged) = (Some(helped), why);
    }
}

fn judge_move(scenario: &Scenario, record: &Record, act: &Act, begun: usize, ended: usize) -> (bool, String) {
    let Some(source) = act.source else { return (true, "it left no node".into()) };
    let (from, until) = (ended, ended + SHOWS_S);
    let wants = |node: usize| record.mean(from, until, |second| second.nodes[node].wanted);
    let holds = |node: usize| record.mean(from, until, |second| second.nodes[node].memory);
    // Where it went: as the action says, else the busiest other node that has the service then.
    let hosts = record.seconds.get(until.min(record.seconds.len()).saturating_sub(1));
    let hosts = hosts.into_iter().flat_map(|second| &second.places);
    let hosts = hosts.filter(|place| place.service == act.service && place.node != source);
    let target =
        act.target.or_else(|| hosts.map(|place| place.node).max_by(|a, b| wants(*a).total_cmp(&wants(*b))));
    let Some(target) = target else { return (false, "it went nowhere".into()) };
    let moved = record.mean(from, until, |second| {
        let there = second.places.iter().find(|it| (it.service, it.node) == (act.service, target));
        there.map_or(0.0, |place| place.wanted)
    });
    let share = |node: usize| moved / scenario.nodes[node].cpus;
    let (before_source, before_target) = (wants(source) + share(source), wants(target) - share(target));
    let (before, after) = (before_source.max(before_target), wants(source).max(wants(target)));
    // Who wants nodes that came back to be used wants it though nothing is short.
    let helped = (before_source >= SHORT || act.kind == Kind::Rebalance) && before - after >= WORTH;
    let memory_before = record.mean(begun.saturating_sub(5), begun + 1, |second| second.nodes[source].memory);
    let memory_helped = memory_before >= SHORT && holds(source).max(holds(target)) <= memory_before - WORTH;
    let kept = record.mean(begun.saturating_sub(5), begun + 1, |second| {
        let there = second.places.iter().find(|it| (it.service, it.node) == (act.service, source));
        there.map_or(0.0, |place| place.need)
    });
    let text =
        format!("busier of the two nodes {:.0} % without it, {:.0} % with it", before * 100.0, after * 100.0);
    (helped || memory_helped || kept.is_finite() && kept >= 0.95, text)
}

/// It was needed if the kernel would have ended the replica within minutes: by what it leaks, or because it was full.
fn judge_replace(scenario: &Scenario, record: &Record, act: &Act, begun: usize) -> (bool, String) {
    let need = record.mean(begun.saturating_sub(3), begun + 1, |second| {
        let of_service = second.places.iter().filter(|place| place.service == act.service);
        let here = of_service.filter(|place| act.source.is_none_or(|node| node == place.node));
        here.map(|place| place.need).filter(|need| need.is_finite()).fold(0.0, f64::max)
    });
    let spec = &scenario.services[act.service];
    let limit = spec.memory.map_or(0.0, real);
    let left_s = if spec.leak > 0.0 { (1.0 - need) * limit / spec.leak * 60.0 } else { f64::INFINITY };
    let text = format!("it needed {:.0} % of its memory, and had {left_s:.0} s left", need * 100.0);
    (left_s <= REPLACED_S || need >= FULL, text)
}

fn judge_out(
    scenario: &Scenario,
    machines: &Machines,
    record: &Record,
    act: &Act,
    begun: usize,
    ended: usize,
) -> (bool, String) {
    let spec = &scenario.services[act.service];
    let least = u64::from(spec.policy.scale_min.unwrap_or(0));
    if act.from < least {
        return (true, format!("{least} are the least"));
    }
    let seconds = begun.saturating_sub(10)..ended + SOON_S;
    let wanted = seconds
        .map(|second| needed(scenario, act.service, machines.offered_at(act.service, real_len(second))));
    let wanted = wanted.max().unwrap_or(0);
    let before = record.tally(begun.saturating_sub(SHOWS_S), begun + 1, act.service).bad_share();
    let after = record.tally(ended + 5, ended + 5 + 2 * SHOWS_S, act.service).bad_share();
    let offered =
        |from: usize, until: usize| record.mean(from, until, |second| second.services[act.service].offered);
    let same_demand =
        offered(ended + 5, ended + 45) >= 0.8 * offered(begun.saturating_sub(SHOWS_S), begun + 1);
    let relieved = before >= 0.02 && after <= before / 2.0 && same_demand;
    let text = format!("{wanted} needed; late {:.1} % before, {:.1} % after", before * 100.0, after * 100.0);
    (wanted > act.from || relieved, text)
}

fn judge_in(
    scenario: &Scenario,
    machines: &Machines,
    record: &Record,
    act: &Act,
    all: &[Act],
    ended: usize,
) -> (bool, String) {
    let again = all.iter().any(|other| {
        let begun = record.second(other.begun);
        other.kind == Kind::Out
            && other.service == act.service
            && begun >= ended
            && begun < ended + MISSED_S
            && other.from <= act.to
    });
    if again {
        return (false, "one was added again within five minutes".into());
    }
    let wanted = needed(scenario, act.service, machines.offered_at(act.service, real_len(ended)));
    let late = record.tally(ended, ended + 60, act.service).bad_share();
    let missed = wanted > act.to && late >= 0.02;
    (!missed, format!("{wanted} needed, late {:.1} % after", late * 100.0))
}

#[cfg(test)]
mod tests;
