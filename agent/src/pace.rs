//! How often containers are sampled: as often as allowed while something moves, seldom when nothing can be the matter,
//! and always within the agent's own budget. Pure.
//!
//! *Alerts come within the same bound.* At every fast tick one file is read per directory that holds containers: its
//! `cpu.stat`, the sum over all of them. While less CPU was used since the last full pass than the smallest allowance
//! of any container takes to reach its threshold, no container can be over it, and the pass is left out. Memory that
//! grows costs CPU as well, for every page is cleared or copied into: while too little was used to fill what the
//! container next to its threshold has left, none can be over that. Network has no such bound, but its mean over a
//! longer span tells when the load began, so a pass is left out for [`IDLE_INTERVAL`] at most, and none where the hold
//! is shorter. `tests/adaptive.rs` tries it against every moment at which a load can begin.

use std::time::Duration;

use swarmguard_common::{domain::BasisPoints, time::Time};

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

/// What could bring some container over one of its thresholds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alarming {
    /// CPU use, in thousandths of a CPU.
    pub cpu_millis: f64,
    /// Memory more than at the last pass, in bytes; infinite where no container's is known.
    pub memory_bytes: f64,
    /// How long it must stand to be told; with less than [`IDLE_INTERVAL`] no pass is left out.
    pub hold: Duration,
}

/// Most memory, in bytes, that a container can come to use in a microsecond of CPU time: what the fastest memory of
/// one socket takes in when pages are cleared.
const FILLED_PER_USEC: f64 = 20_000.0;

/// What a tick knows before it samples anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tick {
    /// CPU time used by all containers together, in microseconds; `None` where it cannot be read.
    pub used_usec: Option<u64>,
    /// What it takes for some container to be over a threshold of its; `None` without containers.
    pub alarming: Option<Alarming>,
    /// A condition stands or may soon, or a container is new.
    pub hot: bool,
}

impl Pace {
    /// Whether to sample all containers now.
    pub fn due(&mut self, now: Time, tick: Tick) -> bool {
        let due = match self.last {
            None => true,
            Some((at, _)) if tick.hot || now.since(at) >= tick.longest() => true,
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
        // Without containers nothing can be the matter; without figures anything.
        tick.alarming.is_none_or(|alarming| {
            grown.is_some_and(|usec_per_s| {
                // Microseconds a second are millionths of a CPU.
                usec_per_s / 1_000.0 < alarming.cpu_millis * IDLE_SHARE
                    && usec_per_s * elapsed.as_secs_f64() * FILLED_PER_USEC <= alarming.memory_bytes
            })
        })
    }
}

impl Tick {
    /// Longest time without a full pass.
    fn longest(self) -> Duration {
        let patient = self.alarming.is_none_or(|alarming| alarming.hold >= IDLE_INTERVAL);
        if patient { IDLE_INTERVAL } else { Duration::ZERO }
    }
}

/// Keeps the agent's own CPU use within its budget by sampling more slowly before it is exceeded.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    allowed: BasisPoints,
    fastest: Duration,
    interval: Duration,
    started: Option<Time>,
    last: Option<(Time, u64)>,
    share: Option<f64>,
}

/// What is used in this time after the start is not counted: loading programs and finding containers is not a habit.
const GRACE: Duration = Duration::from_secs(10);

/// CPU use is judged over this long, and the interval changed no more often, so that each change shows before the next.
const WINDOW: Duration = Duration::from_secs(5);

/// From this share of the budget sampling slows, so far that this share should be left.
const SLOW_FROM: f64 = 0.85;
const AIM: f64 = 0.7;

/// Most that the interval grows at once, and what it shrinks by.
const SLOWER: f64 = 2.0;
const QUICKER: f64 = 0.8;

impl Budget {
    /// `allowed` is a share of one CPU; `fastest` the sampling interval when there is no need to slow.
    pub const fn new(allowed: BasisPoints, fastest: Duration) -> Self {
        Self { allowed, fastest, interval: fastest, started: None, last: None, share: None }
    }

    /// Takes this process's CPU time so far. Call about once a second.
    pub fn measure(&mut self, now: Time, cpu_usec: u64) {
        let started = *self.started.get_or_insert(now);
        if now.since(started) < GRACE {
            return;
        }
        let (at, before) = *self.last.get_or_insert((now, cpu_usec));
        let elapsed = now.since(at);
        if elapsed < WINDOW {
            return;
        }
        self.last = Some((now, cpu_usec));
        let used = crate::model::rate(before, cpu_usec, elapsed).map(|micros| micros / 1_000_000.0);
        self.share = used.or(self.share);
        let Some(share) = used else { return };
        let of_budget = share / self.allowed.ratio().max(1e-6);
        if of_budget >= SLOW_FROM {
            let slower = self.interval.mul_f64((of_budget / AIM).min(SLOWER));
            self.interval = slower.min(SLOWEST.max(self.fastest));
        } else if of_budget / QUICKER < SLOW_FROM {
            // Even if all of it went into sampling, that would not be too much.
            self.interval = self.interval.mul_f64(QUICKER).max(self.fastest);
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

    /// CPU use as a share of one CPU, over the last few seconds.
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

    fn alarming(cpu_millis: f64, memory_bytes: f64) -> Alarming {
        Alarming { cpu_millis, memory_bytes, hold: Duration::from_secs(1) }
    }

    #[test]
    fn idle_containers_are_sampled_seldom_and_busy_ones_at_once() {
        let mut pace = Pace::default();
        let alarming = Some(alarming(750.0, f64::INFINITY));
        let idle = |used_usec| Tick { used_usec: Some(used_usec), alarming, hot: false };
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
    fn what_is_next_to_its_memory_threshold_is_left_out_only_while_nothing_runs() {
        let mut pace = Pace::default();
        let near = |used_usec| Tick {
            used_usec: Some(used_usec),
            alarming: Some(alarming(750.0, 40e6)),
            hot: false,
        };
        assert!(pace.due(at(0), near(0)), "the first");
        assert!(!pace.due(at(100), near(1_900)), "1.9 ms fill no more than 38 MB");
        assert!(pace.due(at(200), near(2_100)), "2.1 ms could fill 42 MB");
        let over = Tick { alarming: Some(alarming(750.0, 0.0)), ..near(2_100) };
        assert!(!pace.due(at(300), over), "between threshold and clearing, and nothing runs");
    }

    #[test]
    fn sampling_slows_before_the_budget_is_exceeded_and_recovers() {
        let fastest = Duration::from_millis(100);
        let mut budget = Budget::new(BasisPoints::from_percent(1), fastest);
        let (mut cpu, mut second) = (0, 0);
        // What sampling costs falls with its rate; the rest does not.
        let mut run = |budget: &mut Budget, seconds: u64, fixed: f64, sampling: f64| {
            for _ in 0..seconds {
                second += 1;
                let used = fixed + sampling * fastest.as_secs_f64() / budget.interval().as_secs_f64();
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "positive and small"
                )]
                let used = used as u64;
                cpu += used;
                budget.measure(at(second * 1_000), cpu);
            }
        };
        run(&mut budget, 8, 900_000.0, 0.0);
        run(&mut budget, 30, 1_000.0, 3_000.0);
        assert_eq!(budget.interval(), fastest, "starting up is not a habit");
        run(&mut budget, 60, 1_000.0, 20_000.0);
        assert!(
            budget.slowed() && budget.interval() <= Duration::from_millis(500),
            "{:?}",
            budget.interval()
        );
        assert!(budget.share().is_some_and(|share| share < 0.01), "{:?}", budget.share());
        run(&mut budget, 120, 1_000.0, 6_500.0);
        assert!(!budget.slowed(), "7.5 of 10 allowed is within the budget: {:?}", budget.interval());
    }

    proptest! {
        /// The promise: whenever a container is over its threshold since the last pass, the next tick samples.
        #[test]
        fn no_container_over_its_threshold_is_left_out(
            alarming in 1.0_f64..64_000.0, over in 1.0_f64..4.0, millis in 1_u64..1_000, before: u32
        ) {
            let mut pace = Pace::default();
            let limits = Some(super::tests::alarming(alarming, f64::INFINITY));
            let tick = |used_usec| Tick { used_usec: Some(used_usec), alarming: limits, hot: false };
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
