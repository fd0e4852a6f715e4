//! Two samples and the time between them → rates and utilisation. Pure: no IO, no clock, no state but what is passed.
//!
//! Utilisation is a share of what the container may use: of `cpu.max` and `memory.max` where it has them, of the node
//! where it has none; network is a share of the configured bandwidth or the link. What cannot be known is `None`,
//! which is not zero: nothing is ever judged idle because a figure is missing.

use std::time::Duration;

use swarmguard_common::{
    domain::BasisPoints,
    kernel::{GroupCounters, WAIT_SLOTS, Waits},
    time::Time,
};

use crate::sources::{
    group::{FastReading, SlowReading},
    node::NodeReading,
    pressure::Pressure,
};

/// What a container may use, its own limits and those of the cgroups above it taken together; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `cpu.max` in thousandths of a CPU.
    pub cpu_millis: Option<u32>,
    /// `memory.max` in bytes.
    pub memory_bytes: Option<u64>,
}

impl Limits {
    /// What is left where both hold.
    #[must_use]
    pub fn least(self, other: Self) -> Self {
        fn less<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
            a.into_iter().chain(b).min()
        }
        Self {
            cpu_millis: less(self.cpu_millis, other.cpu_millis),
            memory_bytes: less(self.memory_bytes, other.memory_bytes),
        }
    }
}

/// What the node has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// CPUs online, in thousandths of one.
    pub cpu_millis: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Bandwidth that is 100 %, in Mbit/s; `None` is unknown.
    pub network_mbps: Option<u32>,
}

impl Capacity {
    /// What a container with these limits can use at most. A limit above what the node has limits nothing.
    pub fn limited(self, limits: Limits) -> Self {
        Self {
            cpu_millis: limits.cpu_millis.map_or(self.cpu_millis, |limit| limit.min(self.cpu_millis)),
            memory_bytes: limits.memory_bytes.map_or(self.memory_bytes, |limit| limit.min(self.memory_bytes)),
            network_mbps: self.network_mbps,
        }
    }
}

/// Rates between two fast samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FastRates {
    /// CPU in use, in thousandths of a CPU.
    pub cpu_millis: Option<f64>,
    /// Share of periods in which `cpu.max` held it back, 0 to 1; `None` without limit or without a period.
    pub throttled: Option<f64>,
    /// Received, bytes a second.
    pub rx_bytes_per_s: Option<f64>,
    /// Sent, bytes a second.
    pub tx_bytes_per_s: Option<f64>,
}

/// Shares of time stalled between two slow samples, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SlowRates {
    /// PSI `some` of cpu.
    pub psi_cpu: Option<f64>,
    /// PSI `some` of memory.
    pub psi_memory: Option<f64>,
    /// PSI `some` of io.
    pub psi_io: Option<f64>,
    /// Processes killed for want of memory in between.
    pub oom_kills: u64,
    /// Time that its tasks together waited for a CPU while they could have run, as a share of the time; more than 1
    /// where several waited at once.
    pub run_queue: Option<f64>,
}

/// A counter's growth in a second. `None` when no time passed, or when the counter was reset: a value that fell is a
/// new life of the counter, unless it fell from just below 2^64, where it wrapped.
pub fn rate(before: u64, after: u64, elapsed: Duration) -> Option<f64> {
    let grown = grown(before, after)?;
    if elapsed.is_zero() {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 53 bits")]
    let grown = grown as f64;
    Some(grown / elapsed.as_secs_f64())
}

/// A counter's growth, or `None` after a reset.
pub fn grown(before: u64, after: u64) -> Option<u64> {
    let grown = after.wrapping_sub(before);
    (grown < MOST_GROWN).then_some(grown)
}

/// Nothing counts so much between two samples: 104 days in nanoseconds, 9 PB. What seems to have grown more was reset.
const MOST_GROWN: u64 = 1 << 53;

/// Rates of CPU use between two fast samples of one container.
pub fn fast_rates(before: &FastReading, after: &FastReading, elapsed: Duration) -> FastRates {
    let cpu = before.cpu.zip(after.cpu);
    let periods = cpu.and_then(|(a, b)| {
        let ((periods_a, throttled_a), (periods_b, throttled_b)) = a.periods.zip(b.periods)?;
        BasisPoints::share(grown(throttled_a, throttled_b)?, grown(periods_a, periods_b)?)
    });
    FastRates {
        // Microseconds a second are millionths of a CPU.
        cpu_millis: cpu
            .and_then(|(a, b)| rate(a.usage_usec, b.usage_usec, elapsed))
            .map(|micros| micros / 1_000.0),
        throttled: periods.map(BasisPoints::ratio),
        ..FastRates::default()
    }
}

/// Rates between two slow samples of one container.
pub fn slow_rates(before: &SlowReading, after: &SlowReading, elapsed: Duration) -> SlowRates {
    SlowRates {
        psi_cpu: stalled(before.psi_cpu, after.psi_cpu, elapsed),
        psi_memory: stalled(before.psi_memory, after.psi_memory, elapsed),
        psi_io: stalled(before.psi_io, after.psi_io, elapsed),
        oom_kills: before.oom_kills.zip(after.oom_kills).and_then(|(a, b)| grown(a, b)).unwrap_or(0),
        run_queue: before
            .run_queue
            .zip(after.run_queue)
            .and_then(|(a, b)| rate(a.total_ns, b.total_ns, elapsed).map(|ns_per_s| ns_per_s / 1e9)),
    }
}

/// How far tasks are held up by waiting for a CPU, 0 to 1: the share of the time that they waited in, but no more than
/// the share that waiting had of all they wanted to run. So a crowd of threads that each wait a moment is no stall, and
/// nor is the long wait of one that hardly runs. `run_queue` is as in [`SlowRates`].
pub fn queued(run_queue: Option<f64>, cpu_millis: Option<f64>) -> Option<f64> {
    let (waited, ran) = (run_queue?, cpu_millis? / 1_000.0);
    let wanted = waited + ran;
    Some(if wanted > 0.0 { waited.min(waited / wanted) } else { 0.0 })
}

/// Requests in flight: begun, and neither answered nor dropped.
pub fn in_flight(counters: &GroupCounters) -> u32 {
    let ended = counters.answers.count.wrapping_add(counters.requests_dropped);
    // The counters of different CPUs are not read at one instant; an end can be seen before its beginning.
    let open = grown(ended, counters.requests_started).unwrap_or(0);
    u32::try_from(open).unwrap_or(u32::MAX)
}

/// Median of the durations that were added between two readings, as [`percentile_us`].
pub fn median_us(before: &Waits, after: &Waits) -> Option<u32> {
    percentile_us(before, after, 50)
}

/// The duration, in microseconds, that so many per cent of those added between two readings did not exceed; `None` where
/// there was none. Within a slot of the histogram durations are taken as evenly spread, so it is right within the factor
/// of two of a slot.
pub fn percentile_us(before: &Waits, after: &Waits, percent: u64) -> Option<u32> {
    let added: [u32; WAIT_SLOTS] =
        std::array::from_fn(|slot| after.slots[slot].wrapping_sub(before.slots[slot]));
    let all: u64 = added.iter().map(|count| u64::from(*count)).sum();
    let wanted = (all * percent).div_ceil(100);
    let mut below = 0_u64;
    for (slot, count) in (0_u32..).zip(added) {
        let count = u64::from(count);
        if count > 0 && below + count >= wanted {
            // Slot n ends at 65,536 ns x 2^n and begins at half of that; the first begins at nothing.
            let end = SLOT_NS << slot;
            let begin = if slot == 0 { 0 } else { end / 2 };
            let ns = begin + (end - begin) * (wanted - below) / count;
            return Some(u32::try_from(ns / 1_000).unwrap_or(u32::MAX));
        }
        below += count;
    }
    None
}

/// The end of the first slot of [`Waits`].
const SLOT_NS: u64 = 65_536;

/// Share of the time between two readings in which at least one task stalled, 0 to 1.
pub fn stalled(before: Option<Pressure>, after: Option<Pressure>, elapsed: Duration) -> Option<f64> {
    let (before, after) = before.zip(after)?;
    rate(before.some_usec, after.some_usec, elapsed).map(|micros| (micros / 1_000_000.0).clamp(0.0, 1.0))
}

/// Memory that is needed, bytes: what is charged less the page cache, which the kernel takes back where it is short.
/// Cache is a habit, not a need: a file that was read twice stays in it for as long as nobody else wants the memory.
pub fn needed(charged: Option<u64>, page_cache: Option<u64>) -> Option<u64> {
    Some(charged?.saturating_sub(page_cache.unwrap_or(0)))
}

/// `used` of `whole` as a ratio; `None` when either is unknown or the whole is nothing.
pub fn ratio(used: Option<f64>, whole: f64) -> Option<f64> {
    used.filter(|_| whole > 0.0).map(|used| used / whole)
}

/// Bytes a second both ways as a share of a bandwidth in Mbit/s.
pub fn network_share(rates: &FastRates, mbps: Option<u32>) -> Option<f64> {
    let both = rates.rx_bytes_per_s? + rates.tx_bytes_per_s?;
    ratio(Some(both * 8.0), f64::from(mbps?) * 1_000_000.0)
}

/// The node's figures between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NodeRates {
    /// Busy share of all CPUs, 0 to 1.
    pub cpu: Option<f64>,
    /// Share of memory that is not available, 0 to 1.
    pub memory: Option<f64>,
    /// Bytes both ways of the link speed, a ratio.
    pub network: Option<f64>,
    /// PSI `some` of cpu, memory and io, 0 to 1.
    pub psi: [Option<f64>; 3],
}

/// The node's figures between two readings.
pub fn node_rates(
    before: &NodeReading,
    after: &NodeReading,
    elapsed: Duration,
    mbps: Option<u32>,
) -> NodeRates {
    let cpu = before.cpu.zip(after.cpu).and_then(|(a, b)| {
        BasisPoints::share(grown(a.busy, b.busy)?, grown(a.all, b.all)?).map(BasisPoints::ratio)
    });
    let memory = after.memory.and_then(|(total, available)| {
        BasisPoints::share(total.saturating_sub(available), total).map(BasisPoints::ratio)
    });
    let traffic = before.network.zip(after.network);
    let rates = FastRates {
        rx_bytes_per_s: traffic.and_then(|(a, b)| rate(a.rx_bytes, b.rx_bytes, elapsed)),
        tx_bytes_per_s: traffic.and_then(|(a, b)| rate(a.tx_bytes, b.tx_bytes, elapsed)),
        ..FastRates::default()
    };
    NodeRates {
        cpu,
        memory,
        network: network_share(&rates, mbps),
        psi: [
            stalled(before.psi_cpu, after.psi_cpu, elapsed),
            stalled(before.psi_memory, after.psi_memory, elapsed),
            stalled(before.psi_io, after.psi_io, elapsed),
        ],
    }
}

/// Exponentially weighted mean over time: a value `tau` ago counts 1/e. Exact for uneven intervals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ewma {
    tau: Duration,
    state: Option<(Time, f64)>,
}

impl Ewma {
    /// A mean that has seen nothing.
    pub const fn new(tau: Duration) -> Self {
        Self { tau, state: None }
    }

    /// Takes a value that held from the last call until `now`; an unknown one makes the mean unknown.
    pub fn update(&mut self, now: Time, value: Option<f64>) -> Option<f64> {
        let value = value.filter(|value| value.is_finite());
        let next = match (self.state, value) {
            (_, None) => None,
            (None, Some(value)) => Some(value),
            (Some((at, mean)), Some(value)) => {
                let old = (-now.since(at).as_secs_f64() / self.tau.as_secs_f64().max(1e-9)).exp();
                Some(value + (mean - value) * old)
            }
        };
        self.state = next.map(|mean| (now, mean));
        next
    }

    /// The mean, if it is known.
    pub fn get(&self) -> Option<f64> {
        self.state.map(|(_, mean)| mean)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sources::cpu::CpuStat;

    fn fast(usage_usec: u64) -> FastReading {
        FastReading { cpu: Some(CpuStat { usage_usec, periods: None }), memory_bytes: None }
    }

    #[test]
    fn half_a_cpu_is_half_a_cpu() {
        let rates = fast_rates(&fast(1_000), &fast(51_000), Duration::from_millis(100));
        assert_eq!(rates.cpu_millis, Some(500.0));
        assert_eq!(rates.rx_bytes_per_s, None);
        let node = Capacity { cpu_millis: 2_000, memory_bytes: 100, network_mbps: None };
        let limit = node.limited(Limits { cpu_millis: Some(500), memory_bytes: Some(1_000) });
        assert_eq!(ratio(rates.cpu_millis, f64::from(limit.cpu_millis)), Some(1.0));
        assert_eq!(limit.memory_bytes, 100, "a limit beyond the node's memory limits nothing");
        assert_eq!(
            ratio(rates.cpu_millis, f64::from(node.limited(Limits::default()).cpu_millis)),
            Some(0.25)
        );
    }

    #[test]
    fn resets_and_zero_time_are_unknown_and_wraps_are_not() {
        assert_eq!(rate(10, 5, Duration::from_secs(1)), None);
        assert_eq!(rate(5, 10, Duration::ZERO), None);
        assert_eq!(rate(u64::MAX - 4, 5, Duration::from_secs(1)), Some(10.0));
        assert_eq!(rate(u64::MAX / 2 + 2, 5, Duration::from_secs(1)), None, "a reset from a large value");
    }

    #[test]
    fn network_is_a_share_of_bits_both_ways() {
        let rates =
            FastRates { rx_bytes_per_s: Some(5e6), tx_bytes_per_s: Some(1.25e6), ..FastRates::default() };
        assert_eq!(network_share(&rates, Some(100)), Some(0.5));
        assert_eq!(network_share(&rates, None), None);
        assert_eq!(network_share(&FastRates { tx_bytes_per_s: None, ..rates }, Some(100)), None);
    }

    #[test]
    fn waiting_counts_by_how_much_it_holds_up() {
        let queued = |waited, millis| queued(Some(waited), Some(millis)).expect("both are known");
        assert_eq!(queued(0.0, 0.0), 0.0, "at rest");
        assert_eq!(queued(0.0, 1_000.0), 0.0, "busy, and never waits");
        assert_eq!(queued(1.0, 1_000.0), 0.5, "two that share a CPU");
        assert_eq!(queued(0.02, 10.0), 0.02, "waits longer than it runs, but hardly runs at all");
        assert!(queued(3.0, 60_000.0) < 0.05, "many threads that wait a moment each");
        assert_eq!(super::queued(None, Some(1.0)), None);
        assert_eq!(super::queued(Some(1.0), None), None);
    }

    #[test]
    fn requests_in_flight_and_their_median() {
        let mut counters =
            GroupCounters { requests_started: 10, requests_dropped: 1, ..GroupCounters::default() };
        counters.answers.count = 6;
        assert_eq!(in_flight(&counters), 3);
        counters.answers.count = 20;
        assert_eq!(in_flight(&counters), 0, "ends that were seen before their beginnings");
        let before = Waits::default();
        assert_eq!(median_us(&before, &before), None);
        let mut after = before;
        after.slots[0] = 1;
        after.slots[4] = 8;
        after.slots[15] = 1;
        // Slot 4 is 524 to 1,049 us; the median is the fourth of eight in it.
        assert_eq!(median_us(&before, &after), Some(786));
        // The tenth of ten is all of slot 15.
        assert_eq!(percentile_us(&before, &after, 95), Some(2_147_483));
        assert_eq!(median_us(&after, &after), None);
    }

    #[test]
    fn the_mean_forgets_by_time_not_by_count() {
        let tau = Duration::from_millis(500);
        let (mut fine, mut coarse) = (Ewma::new(tau), Ewma::new(tau));
        let start = Time::from_millis(1_000);
        fine.update(start, Some(0.0));
        coarse.update(start, Some(0.0));
        for step in 1..=10 {
            fine.update(start + Duration::from_millis(100 * step), Some(1.0));
        }
        coarse.update(start + Duration::from_secs(1), Some(1.0));
        let (fine, coarse) = (fine.get().expect("known"), coarse.get().expect("known"));
        assert!((fine - coarse).abs() < 1e-9 && (0.86..0.87).contains(&fine), "{fine} {coarse}");
        assert_eq!(Ewma::new(tau).update(start, Some(f64::NAN)), None);
    }

    proptest! {
        #[test]
        fn a_rate_is_never_negative_or_infinite(before: u64, after: u64, micros in 0_u64..u64::MAX / 2) {
            if let Some(rate) = rate(before, after, Duration::from_micros(micros)) {
                prop_assert!(rate.is_finite() && rate >= 0.0);
            }
        }

        #[test]
        fn a_steady_counter_gives_its_rate(start: u64, per_s in 0_u64..1 << 40, millis in 1_u64..100_000) {
            let after = start.wrapping_add(per_s * millis / 1_000);
            let got = rate(start, after, Duration::from_millis(millis)).expect("time passed");
            prop_assert!((got - per_s as f64).abs() <= 1_000.0 / millis as f64 + per_s as f64 * 1e-9);
        }

        #[test]
        fn a_clock_that_steps_back_gives_nothing(before: u64, after: u64, at in 0_u64..1 << 50, back in 0_u64..1 << 50) {
            let later = Time::from_micros(at);
            let earlier = Time::from_micros(at.saturating_sub(back));
            prop_assert_eq!(rate(before, after, earlier.since(later)), None);
        }

        #[test]
        fn stalls_are_shares(a: u64, b: u64, micros in 1_u64..1 << 40) {
            let psi = |some_usec| Some(Pressure { some_usec, full_usec: None });
            if let Some(share) = stalled(psi(a), psi(b), Duration::from_micros(micros)) {
                prop_assert!((0.0..=1.0).contains(&share));
            }
        }

        #[test]
        fn a_mean_stays_within_what_it_saw(values in proptest::collection::vec((0.0_f64..10.0, 0_u64..5_000), 1..40)) {
            let mut mean = Ewma::new(Duration::from_millis(500));
            let mut now = Time::from_millis(1_000);
            for (value, millis) in &values {
                now = now + Duration::from_millis(*millis);
                mean.update(now, Some(*value));
            }
            let mean = mean.get().expect("values were seen");
            prop_assert!((-1e-9..=10.0 + 1e-9).contains(&mean));
        }
    }
}
