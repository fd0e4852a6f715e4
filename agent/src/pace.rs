//! How often containers are sampled: as often as allowed while something moves, seldom when nothing can be the matter,
//! and always within the agent's own budget. Pure.
//!
//! *Alerts come no later for it.* At every fast tick one file is read per directory that holds containers: its
//! `cpu.stat`, the sum over all of them. While less CPU was used since the last full pass than the smallest allowance
//! of any container takes to reach its threshold, no container can be over it, and the pass is left out. Memory,
//! network and PSI have no such bound, so a pass is never left out for longer than [`IDLE_INTERVAL`].

use std::time::Duration;

use swarmguard_common::{clock::Time, domain::BasisPoints};

/// Longest time without a full pass while idle.
pub const IDLE_INTERVAL: Duration = Duration::from_millis(300);

/// A sum below this share of what could alarm is idle. Lower than 1 because conditions clear at 0.85 and a container
/// should be seen approaching.
const IDLE_SHARE: f64 = 0.5;

/// Slowest sampling that the budget may force. Below that the agent would be of no use, so a budget that is too small
/// even for this is exceeded, and the alert says by how much.
pub const SLOWEST: Duration = Duration::from_secs(1);

/// Whether a full pass is due at a fast tick.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    last: Option<(Time, Option<u64>)>,
}

/// What a tick knows before it samples anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tick {
    /// CPU time used by all containers together, in microseconds; `None` where it cannot be read.
    pub used_usec: Option<u64>,
    /// CPU use, in thousandths of a CPU, from which some container could be over its threshold.
    pub alarming_millis: Option<f64>,
    /// A condition stands or may soon, or a container is new.
    pub hot: bool,
}

impl Pace {
    /// Whether to sample all containers now.
    pub fn due(&mut self, now: Time, tick: Tick) -> bool {
        let due = match self.last {
            None => true,
            Some((at, _)) if tick.hot || now.since(at) >= IDLE_INTERVAL => true,
            Some((at, before)) => !Self::idle(now.since(at), before, tick),
        };
        if due {
            self.last = Some((now, tick.used_usec));
        }
        due
    }

    /// Makes the next tick a full one.
    pub fn hurry(&mut self) {
        self.last = None;
    }

    fn idle(elapsed: Duration, before: Option<u64>, tick: Tick) -> bool {
        let grown = before.zip(tick.used_usec).and_then(|(a, b)| crate::model::rate(a, b, elapsed));
        // Microseconds a second are millionths of a CPU.
        let millis = grown.map(|micros| micros / 1_000.0);
        // Without containers nothing can be the matter; without figures anything.
        tick.alarming_millis.is_none_or(|alarming| millis.is_some_and(|used| used < alarming * IDLE_SHARE))
    }
}

/// Keeps the agent's own CPU use within its budget by sampling more slowly before it is exceeded.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    allowed: BasisPoints,
    fastest: Duration,
    interval: Duration,
    last: Option<(Time, u64)>,
    share: Option<f64>,
}

/// CPU use is averaged over this long: starting up, or a burst of births, is not a habit.
const WINDOW: Duration = Duration::from_secs(10);

/// From this share of the budget sampling slows, below that one it quickens again.
const SLOW_FROM: f64 = 0.85;
const QUICKEN_BELOW: f64 = 0.5;

impl Budget {
    /// `allowed` is a share of one CPU; `fastest` the sampling interval when there is no need to slow.
    pub const fn new(allowed: BasisPoints, fastest: Duration) -> Self {
        Self { allowed, fastest, interval: fastest, last: None, share: None }
    }

    /// Takes this process's CPU time so far. Call about once a second.
    pub fn measure(&mut self, now: Time, cpu_usec: u64) {
        let Some((at, before)) = self.last.replace((now, cpu_usec)) else { return };
        let elapsed = now.since(at);
        let Some(used) = crate::model::rate(before, cpu_usec, elapsed).map(|micros| micros / 1_000_000.0)
        else {
            return;
        };
        let weight = (elapsed.as_secs_f64() / WINDOW.as_secs_f64()).min(1.0);
        // From nothing: what starting up takes is not what running takes.
        let mean = self.share.unwrap_or(0.0);
        let share = mean + (used - mean) * weight;
        self.share = Some(share);
        let of_budget = share / self.allowed.ratio().max(1e-6);
        if of_budget >= SLOW_FROM {
            self.interval = self.interval.mul_f64(1.25).min(SLOWEST.max(self.fastest));
        } else if of_budget < QUICKEN_BELOW {
            self.interval = self.interval.mul_f64(0.9).max(self.fastest);
        }
    }

    /// The interval to sample at.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Sampling is slower than it should be.
    pub fn slowed(&self) -> bool {
        self.interval > self.fastest.mul_f64(1.2)
    }

    /// CPU use as a share of one CPU, averaged.
    pub fn share(&self) -> Option<f64> {
        self.share
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_millis(10_000 + millis)
    }

    #[test]
    fn idle_containers_are_sampled_seldom_and_busy_ones_at_once() {
        let mut pace = Pace::default();
        let idle = |used_usec| Tick { used_usec: Some(used_usec), alarming_millis: Some(750.0), hot: false };
        assert!(pace.due(at(0), idle(0)), "the first");
        assert!(!pace.due(at(100), idle(1_000)));
        assert!(!pace.due(at(200), idle(2_000)));
        assert!(pace.due(at(300), idle(3_000)), "never longer than the idle interval");
        assert!(
            pace.due(at(400), idle(3_000 + 60_000)),
            "60 ms of CPU in 100 ms could be a container near its threshold"
        );
        assert!(pace.due(at(500), Tick { hot: true, ..idle(63_000) }));
        assert!(pace.due(at(600), Tick { used_usec: None, ..idle(0) }), "unknown is not idle");
        assert!(!pace.due(at(700), Tick::default()), "no containers");
    }

    #[test]
    fn sampling_slows_before_the_budget_is_exceeded_and_recovers() {
        let mut budget = Budget::new(BasisPoints::from_percent(1), Duration::from_millis(100));
        let mut cpu = 0;
        let mut run = |budget: &mut Budget, from: u64, seconds: u64, usec_per_s: u64| {
            for second in from..from + seconds {
                cpu += usec_per_s;
                budget.measure(at(second * 1_000), cpu);
            }
        };
        run(&mut budget, 0, 30, 3_000);
        assert!(!budget.slowed() && budget.interval() == Duration::from_millis(100));
        run(&mut budget, 30, 60, 20_000);
        assert!(budget.slowed() && budget.interval() <= SLOWEST);
        assert!(budget.share().is_some_and(|share| (0.019..0.021).contains(&share)));
        run(&mut budget, 90, 120, 1_000);
        assert!(!budget.slowed() && budget.interval() == Duration::from_millis(100));
    }

    proptest! {
        /// The promise: whenever a container is over its threshold since the last pass, the next tick samples.
        #[test]
        fn no_container_over_its_threshold_is_left_out(
            alarming in 1.0_f64..64_000.0, over in 1.0_f64..4.0, millis in 1_u64..1_000, before: u32
        ) {
            let mut pace = Pace::default();
            let tick = |used_usec| Tick { used_usec: Some(used_usec), alarming_millis: Some(alarming), hot: false };
            pace.due(at(0), tick(u64::from(before)));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and small")]
            let used = (alarming * over * millis as f64).ceil() as u64;
            prop_assert!(pace.due(at(millis), tick(u64::from(before) + used)));
        }

        #[test]
        fn the_interval_stays_in_its_range(uses in proptest::collection::vec(0_u64..3_000_000, 0..100)) {
            let fastest = Duration::from_millis(100);
            let mut budget = Budget::new(BasisPoints::from_percent(1), fastest);
            let mut cpu = 0_u64;
            for (second, used) in (0_u64..).zip(uses) {
                cpu += used;
                budget.measure(at(second * 1_000), cpu);
                prop_assert!((fastest..=SLOWEST).contains(&budget.interval()));
            }
        }
    }
}
