//! What happened lately, as far as it bears on what may be done next: past actions (from their tombstones, so that a
//! restart forgets little), changes by others, and how long a service has been spare.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use swarmguard_common::{
    domain::{NodeId, ServiceId, TaskId},
    time::Time,
};

use super::{
    MOVES_WATCHED,
    heats::{Expected, Heats, USUAL_REMEDY},
    lows::Lows,
};
use crate::{
    action::{Ages, Kind, Record, State, Why, action_name, drain_name},
    swarm::{Availability, Node, Snapshot},
};

/// A change of a service's version by somebody else keeps us off it this long: what follows from it (an updater that
/// starts, tasks that appear) shows a moment later.
pub const QUIET: Duration = Duration::from_secs(5);

/// Exit status of a container that was killed (128 + SIGKILL).
const KILLED: i32 = 137;

/// What was in vain again and again rests for no longer than this.
const MOST_REST: Duration = Duration::from_secs(7_200);

/// Moves of one service remembered; cooldowns keep them far fewer.
const MAX_MOVES: usize = 16;

/// Failed tasks remembered.
const MAX_FAILED: usize = 500;

/// Where a replica of a service was moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The node it went to.
    pub to: NodeId,
    /// When that was over.
    pub ended: Time,
    /// The service was seen hot there again.
    pub in_vain: bool,
}

/// Actions of a kind that did not help, since the last that did.
#[derive(Clone, Copy, Debug)]
struct Vain {
    at: Time,
    times: u32,
}

impl Vain {
    /// Ten minutes, twice as long each time, at most two hours.
    fn rests(self) -> Duration {
        let doubled = MOVES_WATCHED.saturating_mul(1 << self.times.saturating_sub(1).min(6));
        doubled.min(MOST_REST)
    }
}

/// An action that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// Since when it is.
    pub ended: Time,
    /// It was undone.
    pub undone: bool,
    /// It was undone because its target fell silent: neither the service nor its load is the reason, so no cooldown
    /// follows, only another target.
    pub target_lost: bool,
    /// The node it left.
    pub source: Option<NodeId>,
    /// Where it went.
    pub target: Option<NodeId>,
    token: String,
}

/// What happened lately. Bounded by the services that exist.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// When records were first seen as they are.
    pub ages: Ages,
    past: BTreeMap<(ServiceId, Kind), Past>,
    moved: BTreeMap<ServiceId, VecDeque<Moved>>,
    failures: BTreeMap<(ServiceId, Kind), u32>,
    changed: BTreeMap<ServiceId, Time>,
    lows: BTreeMap<ServiceId, Lows>,
    over: BTreeMap<ServiceId, Time>,
    heats: BTreeMap<ServiceId, Heats>,
    vain: BTreeMap<(ServiceId, Kind), Vain>,
    returned: BTreeMap<NodeId, Time>,
    down: BTreeMap<NodeId, Time>,
    /// Services whose replica that was stopped last had to be killed.
    killed: BTreeSet<ServiceId>,
    /// Tasks that ended by themselves and badly, oldest first.
    failed: VecDeque<(Time, ServiceId)>,
    /// Replicas that had served and failed, by their checks or by themselves, oldest first; each once.
    fell: VecDeque<(Time, ServiceId, TaskId)>,
    /// When somebody else last set the number of a service's replicas.
    set_by_hand: BTreeMap<ServiceId, Time>,
}

impl History {
    pub(super) fn read(&mut self, now: Time, before: Option<&Snapshot>, snapshot: &Snapshot) {
        self.ages.update(snapshot, now);
        for object in snapshot.records.values() {
            if let Ok(record) = Record::parse(object)
                && record.is_over()
                && let Some(service) = &record.service
            {
                self.note_past(service, &record, self.ages.since(object, now));
            }
        }
        if let Some(before) = before {
            self.note_changes(now, before, snapshot);
        }
        self.past.retain(|(service, _), _| snapshot.services.contains_key(service));
        self.failures.retain(|(service, _), _| snapshot.services.contains_key(service));
        self.killed.retain(|service| snapshot.services.contains_key(service));
        self.moved.retain(|service, _| snapshot.services.contains_key(service));
        self.changed.retain(|service, _| snapshot.services.contains_key(service));
        self.set_by_hand.retain(|service, _| snapshot.services.contains_key(service));
        self.lows.retain(|service, _| snapshot.services.contains_key(service));
        self.over.retain(|service, _| snapshot.services.contains_key(service));
        self.heats.retain(|service, _| snapshot.services.contains_key(service));
        self.vain.retain(|(service, _), _| snapshot.services.contains_key(service));
        self.returned.retain(|node, _| snapshot.nodes.contains_key(node));
        self.down.retain(|node, _| snapshot.nodes.get(node).is_some_and(Node::is_down));
        for node in snapshot.nodes.values().filter(|node| node.is_down()) {
            self.down.entry(node.id.clone()).or_insert(now);
        }
    }

    fn note_past(&mut self, service: &ServiceId, record: &Record, ended: Time) {
        let key = (service.clone(), record.kind);
        // The same tombstone seen again keeps its first time.
        if self.past.get(&key).is_none_or(|past| past.token != record.token) {
            let past = Past {
                ended,
                undone: record.undone.is_some(),
                target_lost: record.undone.as_ref().is_some_and(|(why, _)| *why == Why::TargetLost),
                source: record.source.clone(),
                target: record.target.clone(),
                token: record.token.clone(),
            };
            if let (Kind::Migrate, false, Some(to)) = (record.kind, past.undone, past.target.clone()) {
                let moved = self.moved.entry(service.clone()).or_default();
                if moved.len() >= MAX_MOVES {
                    moved.pop_front();
                }
                moved.push_back(Moved { to, ended, in_vain: false });
            }
            match record.undone.as_ref().map(|(why, _)| *why) {
                None => {
                    self.failures.remove(&key);
                }
                // Somebody else's doing, or a node's: neither the service nor the attempt is to blame.
                Some(
                    Why::TargetLost
                    | Why::ForeignChange
                    | Why::RolledBack
                    | Why::ScaledByHand
                    | Why::Cancelled
                    | Why::ServiceGone,
                ) => {}
                Some(_) => *self.failures.entry(key.clone()).or_default() += 1,
            }
            self.past.insert(key, past);
        }
    }

    /// Services that were moved lately, with where to: of these it is watched whether moving helped.
    pub(super) fn moved_since(&self, since: Time) -> Vec<(ServiceId, NodeId)> {
        let all = self.moved.iter().flat_map(|(service, moved)| moved.iter().map(move |it| (service, it)));
        all.filter(|(_, it)| it.ended >= since && !it.in_vain)
            .map(|(service, it)| (service.clone(), it.to.clone()))
            .collect()
    }

    /// Notes that a service is hot again on a node that it was moved to.
    pub(super) fn note_in_vain(&mut self, service: &ServiceId, node: &NodeId) {
        for moved in self.moved.get_mut(service).into_iter().flatten().filter(|moved| moved.to == *node) {
            moved.in_vain = true;
        }
    }

    /// For tests of what rests on it.
    #[cfg(test)]
    pub fn note_moved_for_tests(&mut self, service: &ServiceId, to: &NodeId, ended: Time) {
        let moved = Moved { to: to.clone(), ended, in_vain: true };
        self.moved.entry(service.clone()).or_default().push_back(moved);
    }

    /// Where a service was moved, oldest first, as far as it is remembered.
    pub fn moves(&self, service: &ServiceId) -> impl Iterator<Item = &Moved> {
        self.moved.get(service).into_iter().flatten()
    }

    fn note_changes(&mut self, now: Time, before: &Snapshot, snapshot: &Snapshot) {
        for (id, service) in &snapshot.services {
            if before.services.get(id).is_some_and(|old| old.version == service.version) {
                continue;
            }
            let ours = [before, snapshot].iter().any(|reading| {
                let record = reading.records.get(&action_name(id)).map(Record::parse);
                matches!(record, Some(Ok(record)) if !record.is_over())
            });
            if !ours {
                self.changed.insert(id.clone(), now);
                if before.services.get(id).is_some_and(|old| old.mode != service.mode) {
                    self.set_by_hand.insert(id.clone(), now);
                }
            }
        }
        for (id, node) in &snapshot.nodes {
            // Not from `pause`, which is what our own migrations do; unless it was about to be drained: who is quick may
            // make it active again before a reading shows it drained.
            let away = |old: &Node| {
                old.is_down()
                    || match old.availability {
                        Availability::Active => false,
                        Availability::Pause => is_emptied(before, id),
                        Availability::Drain => true,
                    }
            };
            let here = node.ready && node.availability != Availability::Drain;
            if here && before.nodes.get(id).is_none_or(away) {
                self.returned.insert(id.clone(), now);
            }
        }
    }

    /// Notes that a task ended which Swarm wanted to run.
    pub(super) fn note_failed(&mut self, now: Time, service: &ServiceId) {
        if self.failed.len() >= MAX_FAILED {
            self.failed.pop_front();
        }
        self.failed.push_back((now, service.clone()));
    }

    /// The service of each task that failed since then, as far as agents saw; the newest [`MAX_FAILED`].
    pub fn failed_since(&self, since: Time) -> impl Iterator<Item = &ServiceId> {
        self.failed.iter().filter(move |(at, _)| *at >= since).map(|(_, service)| service)
    }

    /// Notes that a replica failed which had served: its checks failed, or it ended unasked.
    pub(super) fn note_fell(&mut self, now: Time, service: &ServiceId, task: &TaskId) {
        if self.fell.iter().any(|(_, _, known)| known == task) {
            return;
        }
        if self.fell.len() >= MAX_FAILED {
            self.fell.pop_front();
        }
        self.fell.push_back((now, service.clone(), task.clone()));
    }

    /// How many replicas of a service that had served have failed since then.
    pub fn fell_since(&self, service: &ServiceId, since: Time) -> usize {
        self.fell.iter().filter(|(at, of, _)| *at >= since && of == service).count()
    }

    /// When somebody else set how many replicas a service has, as far as this process saw.
    pub fn set_by_hand(&self, service: &ServiceId) -> Option<Time> {
        self.set_by_hand.get(service).copied()
    }

    /// Notes how a replica ended that had been asked to stop.
    pub(super) fn note_stopped(&mut self, service: &ServiceId, status: i32) {
        if status == KILLED {
            self.killed.insert(service.clone());
        } else {
            self.killed.remove(service);
        }
    }

    /// Whether the replica of a service that was stopped last, as far as agents saw, had to be killed.
    pub fn was_killed(&self, service: &ServiceId) -> bool {
        self.killed.contains(service)
    }

    /// How the action of a token ended, if it did: when, and whether it was undone.
    pub fn ended(&self, service: &ServiceId, kind: Kind, token: &str) -> Option<(Time, bool)> {
        let past = self.past(service, kind).filter(|past| past.token == token)?;
        Some((past.ended, past.undone))
    }

    /// The last action of a kind on a service.
    pub fn past(&self, service: &ServiceId, kind: Kind) -> Option<&Past> {
        self.past.get(&(service.clone(), kind))
    }

    /// How many actions of a kind on a service failed in a row.
    pub fn failures(&self, service: &ServiceId, kind: Kind) -> u32 {
        self.failures.get(&(service.clone(), kind)).copied().unwrap_or(0)
    }

    /// Time left until somebody else's change of a service is old enough.
    pub fn quiet_left(&self, service: &ServiceId, now: Time) -> Option<Duration> {
        let left = QUIET.saturating_sub(now - *self.changed.get(service)?);
        (!left.is_zero()).then_some(left)
    }

    /// Notes how many replicas a service was found to need now, `window` being the longest time that is asked for;
    /// `None` where figures are missing: what is not known to be spare is not.
    pub fn note_needed(&mut self, service: &ServiceId, now: Time, needed: Option<u64>, window: Duration) {
        match needed {
            None => {
                self.lows.remove(service);
            }
            Some(needed) => {
                self.lows.entry(service.clone()).or_insert_with(|| Lows::new(now)).note(now, needed, window);
            }
        }
    }

    /// The most replicas that a service needed in a window; `None` where that is not known of all of it.
    pub fn most_needed(&self, service: &ServiceId, now: Time, window: Duration) -> Option<u64> {
        self.lows.get(service)?.most(now, window)
    }

    /// Since when a service of so many replicas has had one to spare, without a break; `None` where that is not known.
    pub fn spare_since(&self, service: &ServiceId, replicas: u64) -> Option<Time> {
        self.lows.get(service).map(|lows| lows.below_since(replicas))
    }

    /// Notes whether a signal that no alert tells of (requests in flight, latency) asks for more replicas now.
    pub fn note_over(&mut self, service: &ServiceId, now: Time, over: bool) {
        if over {
            self.over.entry(service.clone()).or_insert(now);
        } else {
            self.over.remove(service);
        }
    }

    /// Since when it has.
    pub fn over_since(&self, service: &ServiceId) -> Option<Time> {
        self.over.get(service).copied()
    }

    /// Notes since when a service is hot, if it is, and whether an action on it is under way.
    pub fn note_heat(&mut self, service: &ServiceId, now: Time, hot_since: Option<Time>, busy: bool) {
        if hot_since.is_some() || busy || self.heats.contains_key(service) {
            self.heats.entry(service.clone()).or_default().note(now, hot_since, busy);
        }
    }

    /// What is expected of the present heat of a service.
    pub fn expected(&self, service: &ServiceId, now: Time) -> Option<Expected> {
        self.heats.get(service)?.expected(now)
    }

    /// How long an action on a service takes, by the last ones.
    pub fn remedy_takes(&self, service: &ServiceId) -> Duration {
        self.heats.get(service).map_or(USUAL_REMEDY, Heats::remedy)
    }

    /// Notes whether an action of a kind helped. One in vain rests for a while, longer each time; answers how long.
    pub fn note_outcome(&mut self, service: &ServiceId, kind: Kind, now: Time, helped: bool) -> Duration {
        if helped {
            self.vain.remove(&(service.clone(), kind));
            return Duration::ZERO;
        }
        let vain = self.vain.entry((service.clone(), kind)).or_insert(Vain { at: now, times: 0 });
        *vain = Vain { at: now, times: vain.times.saturating_add(1) };
        vain.rests()
    }

    /// How long actions of a kind on a service still rest because the last one was in vain, and how many were.
    pub fn rests(&self, service: &ServiceId, kind: Kind, now: Time) -> Option<(Duration, u32)> {
        let vain = self.vain.get(&(service.clone(), kind))?;
        let left = vain.rests().checked_sub(now - vain.at)?;
        (!left.is_zero()).then_some((left, vain.times))
    }

    /// When the last migration off or to a node ended, and whose it was.
    pub fn last_move(&self, node: &NodeId) -> Option<(&ServiceId, Time)> {
        let touches = |past: &Past| past.source.as_ref() == Some(node) || past.target.as_ref() == Some(node);
        let moves = self.past.iter().filter(|((_, kind), past)| *kind == Kind::Migrate && touches(past));
        moves.map(|((service, _), past)| (service, past.ended)).max_by_key(|(_, ended)| *ended)
    }

    /// Since when Swarm has said that a node is down.
    pub fn down_since(&self, node: &NodeId) -> Option<Time> {
        self.down.get(node).copied()
    }

    /// When a node joined, became ready, or was taken out of `drain` while this process watched.
    pub fn returned(&self, node: &NodeId) -> Option<Time> {
        self.returned.get(node).copied()
    }
}

/// Whether an action of ours has moved everything off a node and only has to drain it yet.
fn is_emptied(snapshot: &Snapshot, node: &NodeId) -> bool {
    let drain = snapshot.records.get(&drain_name(node)).map(Record::parse);
    matches!(drain, Some(Ok(drain)) if drain.state == State::Releasing && drain.undone.is_none())
}
