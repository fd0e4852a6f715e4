//! One replica as all workers see it: its place, its flags, and what is known of its load, all in atomics.
//!
//! What a pick reads lies together in the first cache line; a pick among a hundred replicas reads a hundred of them.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::atomic::{
        AtomicU8, AtomicU32, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
    sync::{Mutex, PoisonError},
    time::Duration,
};

use swarmguard_common::{domain::TaskId, time::Time};

use crate::{
    breaker::{Breaker, Gate},
    histogram::Latencies,
    others::Others,
    pick::Candidate,
};

/// A replica takes traffic only with this: it runs and, by Swarm's own healthcheck, is healthy.
const READY: u8 = 1;
/// It is about to be stopped.
const DRAINING: u8 = 2;
/// Our own active health check failed.
const SICK: u8 = 4;
/// It came while this balancer ran, which has not reached it yet.
const UNPROVEN: u8 = 8;

/// A new observation changes the smoothed latency by this part of the difference, as a divisor. Alike both ways: with a
/// rise believed sooner the estimates of equal replicas jump about. In a simulated queue (four equal replicas at 60 % load,
/// [`crate::pick`]) 8 cost 3 % of p99 and 9 % of p99.9 against 24, and won nothing where one was slow or in bursts.
pub(crate) const SMOOTH: f32 = 20.0;
/// The same after a failure, until the estimate is about what it was: one error is soon forgotten.
const SMOOTH_AFTER_FAILURE: f32 = 4.0;
/// What a failure makes of the expected latency: at least this, or double, in microseconds.
const PENALTY_US: f32 = 100_000.0;
/// Expected latency never grows beyond this, in microseconds.
const LATENCY_MOST_US: f32 = 60_000_000.0;
/// Share of its traffic that a new replica gets at first.
const RAMP_LEAST: f32 = 0.1;

/// How a request ended, as far as the replica is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, with whatever status below 500, this long after the request was sent.
    Answered(Duration),
    /// No connection, no answer in time, a broken one, or a status of 500 and above.
    Failed,
}

/// Load as reported, ready to be compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Weighted sum of CPU, memory and network, 0 to 100.
    pub score: f32,
    /// CPU or PSI say that it has no room.
    pub strained: bool,
    /// Requests in flight there, whoever sent them, where they are counted.
    pub in_flight: Option<u32>,
    /// Median time to an answer as seen there, in microseconds.
    pub latency_us: Option<u32>,
    /// When this is too old to be believed.
    pub until: Time,
}

/// See the module.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Replica {
    leases: AtomicU32,
    in_flight: AtomicU32,
    latency_us: AtomicU32,
    score: AtomicU32,
    load_until: AtomicU64,
    /// Requests in flight that are not ours.
    others: AtomicU32,
    /// Latency as seen there.
    reported_us: AtomicU32,
    /// Since when it takes traffic, in microseconds; 0 where its share does not grow.
    ramp_from: AtomicU64,
    flags: AtomicU8,
    strained: AtomicU8,
    /// The service's turn in which it was picked last.
    turn: AtomicU32,
    /// What one more request adds to the score, as an `f32`'s bits.
    cost: AtomicU32,
    /// Requests sent since the score was taken.
    sent: AtomicU32,
    /// What ejects it.
    pub breaker: Breaker,
    /// Tells replicas apart for cookies and pools: a hash of the task and the address.
    pub key: u64,
    /// Where it serves.
    pub address: SocketAddr,
    /// Swarm's task, or one made from the address.
    pub task: TaskId,
    /// The node it runs on, for people and metrics.
    pub node: String,
    /// What `others` is made from; only who brings figures looks in here.
    estimate: Mutex<Others>,
    /// Requests sent there.
    pub requests: AtomicU64,
    /// Those that failed.
    pub failures: AtomicU64,
    /// Picks of it.
    pub picks: AtomicU64,
    /// When it answered last, in microseconds.
    answered_at: AtomicU64,
    /// Times to its answers.
    pub latencies: Latencies,
}

// As far as the breaker's `open_until`.
const _: () = assert!(std::mem::offset_of!(Replica, breaker) + size_of::<u64>() <= 64);

impl Replica {
    /// A replica nothing is known of yet; it takes traffic once it is [`Self::set_ready`].
    pub fn new(task: TaskId, node: String, address: SocketAddr) -> Self {
        let mut hasher = DefaultHasher::new();
        (task.as_str(), address).hash(&mut hasher);
        Self {
            leases: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            latency_us: AtomicU32::new(0),
            score: AtomicU32::new(0),
            load_until: AtomicU64::new(0),
            others: AtomicU32::new(0),
            reported_us: AtomicU32::new(0),
            ramp_from: AtomicU64::new(0),
            flags: AtomicU8::new(0),
            strained: AtomicU8::new(0),
            turn: AtomicU32::new(0),
            cost: AtomicU32::new(0),
            sent: AtomicU32::new(0),
            answered_at: AtomicU64::new(0),
            key: hasher.finish(),
            address,
            task,
            node,
            breaker: Breaker::default(),
            estimate: Mutex::default(),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            picks: AtomicU64::new(0),
            latencies: Latencies::default(),
        }
    }

    /// Requests in flight, all of them: what a drain waits for.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(SeqCst)
    }

    /// Requests in flight whose lease has not expired: what algorithms compare.
    pub fn leases(&self) -> u32 {
        self.leases.load(Relaxed)
    }

    /// A request is on its way. False, with nothing changed, where a drain began meanwhile.
    pub fn enter(&self) -> bool {
        // Sequentially consistent with `set_draining`: either we see the flag, or the drain sees us in flight.
        self.in_flight.fetch_add(1, SeqCst);
        if self.flags.load(SeqCst) & DRAINING != 0 {
            self.in_flight.fetch_sub(1, SeqCst);
            return false;
        }
        self.leases.fetch_add(1, Relaxed);
        self.sent.fetch_add(1, Relaxed);
        true
    }

    /// It was picked in this turn of its service.
    pub fn picked(&self, turn: u32) {
        self.turn.store(turn, Relaxed);
        self.picks.fetch_add(1, Relaxed);
    }

    /// Picks of others since it was picked itself, where the service is at `turn`.
    pub fn rested(&self, turn: u32) -> u32 {
        turn.wrapping_sub(self.turn.load(Relaxed))
    }

    /// How long nothing was heard from it.
    pub fn silent_for(&self, now: Time) -> Duration {
        now.since(Time::from_micros(self.answered_at.load(Relaxed)))
    }

    /// The request is over.
    pub fn leave(&self, lease_counts: bool) {
        if lease_counts {
            self.expire();
        }
        self.in_flight.fetch_sub(1, SeqCst);
    }

    /// The lease is over though the request is not.
    pub fn expire(&self) {
        self.leases.fetch_sub(1, Relaxed);
    }

    /// Whether Swarm says that it runs and is healthy.
    pub fn ready(&self) -> bool {
        self.flags.load(Relaxed) & READY != 0
    }

    /// Whether it is about to be stopped.
    pub fn draining(&self) -> bool {
        self.flags.load(Relaxed) & DRAINING != 0
    }

    /// Whether our own health check failed, or has not been made yet of one that is new.
    pub fn sick(&self) -> bool {
        self.flags.load(Relaxed) & (SICK | UNPROVEN) != 0
    }

    /// It is new: healthy where it runs, which says nothing about the way there. An overlay network may hear of a new
    /// address later than the coordinator does, and until then connections are lost without a word. It takes traffic
    /// once our own health check has come through, or where there is nothing better.
    pub fn set_unproven(&self) {
        self.set(UNPROVEN, true);
    }

    /// From now on it may take traffic, or may not. Its share grows anew each time it becomes ready.
    pub fn set_ready(&self, ready: bool, now: Time) {
        if self.set(READY, ready) != ready && ready {
            self.ramp_from.store(now.as_micros(), Relaxed);
        }
    }

    /// Takes its whole share at once: it ran before this balancer did.
    pub fn skip_ramp(&self) {
        self.ramp_from.store(0, Relaxed);
    }

    /// About to be stopped, or not after all. Answers what it was.
    pub fn set_draining(&self, draining: bool) -> bool {
        self.set(DRAINING, draining)
    }

    /// What our own health check says. Answers whether it was sick before.
    pub fn set_sick(&self, sick: bool, now: Time) -> bool {
        let was = self.set(SICK, sick);
        let new = !sick && self.set(UNPROVEN, false);
        if (was || new) && !sick {
            self.breaker.close();
            self.ramp_from.store(now.as_micros(), Relaxed);
        }
        was
    }

    fn set(&self, flag: u8, on: bool) -> bool {
        let before = if on { self.flags.fetch_or(flag, SeqCst) } else { self.flags.fetch_and(!flag, SeqCst) };
        before & flag != 0
    }

    /// Share of its traffic that it is to get, 0.1 to 1: grows over `slow_start` from when it became ready.
    pub fn share(&self, slow_start: Duration, now: Time) -> f32 {
        let from = self.ramp_from.load(Relaxed);
        if from == 0 {
            return 1.0;
        }
        let age = now.since(Time::from_micros(from));
        if age >= slow_start {
            self.skip_ramp();
            return 1.0;
        }
        (age.as_secs_f32() / slow_start.as_secs_f32()).max(RAMP_LEAST)
    }

    /// What the breaker says.
    pub fn gate(&self, now: Time) -> Gate {
        self.breaker.gate(now)
    }

    /// New figures, or none where they are unknown.
    pub fn set_load(&self, load: Option<Load>, now: Time) {
        let counted = load.and_then(|load| load.in_flight);
        let mut estimate = self.estimate.lock().unwrap_or_else(PoisonError::into_inner);
        let others = estimate.update(counted, self.in_flight(), now);
        let Some(load) = load else {
            self.load_until.store(0, Relaxed);
            return;
        };
        self.others.store(others, Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "seconds, in microseconds")]
        let reported = load.latency_us.map_or(0.0, |us| us as f32);
        self.reported_us.store(reported.to_bits(), Relaxed);
        self.score.store(load.score.to_bits(), Relaxed);
        self.sent.store(0, Relaxed);
        self.strained.store(load.strained.into(), Relaxed);
        self.load_until.store(load.until.as_micros(), Relaxed);
    }

    /// What one more request adds to the score.
    pub fn set_cost(&self, cost: f32) {
        self.cost.store(cost.to_bits(), Relaxed);
    }

    /// The figures' score with what was sent since; `None` without fresh figures.
    fn score(&self, now: Time) -> Option<f32> {
        let fresh = now.as_micros() < self.load_until.load(Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "requests of a second")]
        let sent = self.sent.load(Relaxed) as f32;
        let read = |bits: &AtomicU32| f32::from_bits(bits.load(Relaxed));
        fresh.then(|| read(&self.score) + read(&self.cost) * sent)
    }

    /// Requests in flight there that are not ours, 0 where that is unknown.
    pub fn others(&self, now: Time) -> u32 {
        let fresh = now.as_micros() < self.load_until.load(Relaxed);
        if fresh { self.others.load(Relaxed) } else { 0 }
    }

    /// What the algorithms may know now.
    pub fn candidate(&self, now: Time) -> Candidate {
        let fresh = now.as_micros() < self.load_until.load(Relaxed);
        let known = |bits: &AtomicU32| Some(f32::from_bits(bits.load(Relaxed))).filter(|us| *us > 0.0);
        Candidate {
            leases: self.leases(),
            others: self.others(now),
            score: self.score(now),
            // What we see ourselves holds the way there too; until then what is seen there has to do.
            latency_us: known(&self.latency_us).or_else(|| fresh.then(|| known(&self.reported_us)).flatten()),
            strained: fresh && self.strained.load(Relaxed) != 0,
            rested: 0,
        }
    }

    /// Notes how a request ended, for latency, breaker and counters. True where this opened the breaker.
    pub fn record(&self, outcome: Outcome, now: Time) -> bool {
        self.requests.fetch_add(1, Relaxed);
        self.answered_at.store(now.as_micros(), Relaxed);
        let before = f32::from_bits(self.latency_us.load(Relaxed));
        let after = match outcome {
            Outcome::Answered(took) => {
                self.latencies.add(took);
                // With n requests in flight each took about n times as long as one alone would have.
                #[expect(clippy::cast_precision_loss, reason = "requests in flight, at most millions")]
                let company = self.leases().max(1) as f32;
                smooth(before, took.as_secs_f32() * 1e6 / company)
            }
            Outcome::Failed => {
                self.failures.fetch_add(1, Relaxed);
                (before * 2.0).max(PENALTY_US)
            }
        };
        self.latency_us.store(after.clamp(1.0, LATENCY_MOST_US).to_bits(), Relaxed);
        self.breaker.record(outcome != Outcome::Failed, now)
    }
}

fn smooth(before: f32, sample: f32) -> f32 {
    if before <= 0.0 {
        return sample;
    }
    let failed = before >= PENALTY_US / 2.0 && sample * 4.0 < before;
    before + (sample - before) / if failed { SMOOTH_AFTER_FAILURE } else { SMOOTH }
}

#[cfg(test)]
pub(crate) fn example(name: &str) -> Replica {
    let task = name.parse().expect("letters and digits");
    Replica::new(task, "node1".into(), ([127, 0, 0, 1], 80).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(1_000_000);

    #[test]
    fn a_drain_and_a_request_never_miss_each_other() {
        let replica = example("a");
        assert!(replica.enter());
        replica.set_draining(true);
        assert!(!replica.enter(), "none may enter any more");
        assert_eq!(replica.in_flight(), 1);
        replica.leave(true);
        assert_eq!((replica.in_flight(), replica.leases()), (0, 0));
    }

    #[test]
    fn an_expired_lease_still_counts_as_in_flight() {
        let replica = example("a");
        assert!(replica.enter());
        replica.expire();
        assert_eq!((replica.in_flight(), replica.leases()), (1, 0));
        replica.leave(false);
        assert_eq!((replica.in_flight(), replica.leases()), (0, 0));
    }

    #[test]
    fn fast_errors_make_a_replica_look_slow() {
        let replica = example("a");
        replica.record(Outcome::Answered(Duration::from_millis(2)), NOW);
        let before = replica.candidate(NOW).latency_us.expect("measured");
        replica.record(Outcome::Failed, NOW);
        assert!(replica.candidate(NOW).latency_us.expect("measured") > before * 10.0);
    }

    #[test]
    fn the_share_grows_over_the_slow_start() {
        let replica = example("a");
        let ramp = Duration::from_secs(10);
        replica.set_ready(true, NOW);
        assert!((replica.share(ramp, NOW) - 0.1).abs() < 0.01);
        assert!((replica.share(ramp, NOW + Duration::from_secs(5)) - 0.5).abs() < 0.01);
        assert!((replica.share(ramp, NOW + Duration::from_secs(11)) - 1.0).abs() < f32::EPSILON);
        replica.set_ready(true, NOW + Duration::from_secs(12));
        assert!((replica.share(ramp, NOW + Duration::from_secs(12)) - 1.0).abs() < f32::EPSILON, "no news");
    }

    #[test]
    fn what_was_sent_since_the_figures_counts_until_the_next_ones() {
        let replica = example("a");
        let until = NOW + Duration::from_secs(3);
        let load = Load { score: 40.0, strained: false, in_flight: None, latency_us: None, until };
        replica.set_load(Some(load), NOW);
        replica.set_cost(0.5);
        for _ in 0..10 {
            assert!(replica.enter());
            replica.leave(true);
        }
        assert_eq!(replica.candidate(NOW).score, Some(45.0));
        replica.set_load(Some(load), NOW);
        assert_eq!(replica.candidate(NOW).score, Some(40.0));
    }

    #[test]
    fn one_failure_is_forgotten_within_a_few_answers() {
        let replica = example("a");
        let answer = || replica.record(Outcome::Answered(Duration::from_millis(5)), NOW);
        answer();
        replica.record(Outcome::Failed, NOW);
        (0..12).for_each(|_| {
            answer();
        });
        assert!(replica.candidate(NOW).latency_us.expect("measured") < 50_000.0);
    }

    #[test]
    fn old_figures_are_unknown() {
        let replica = example("a");
        let load = Load { score: 40.0, strained: true, in_flight: None, latency_us: None, until: NOW };
        replica.set_load(Some(load), NOW.before(Duration::from_secs(1)));
        assert_eq!(replica.candidate(NOW.before(Duration::from_millis(1))).score, Some(40.0));
        let stale = replica.candidate(NOW);
        assert_eq!((stale.score, stale.strained), (None, false));
    }
}
