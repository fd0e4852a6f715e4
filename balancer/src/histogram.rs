//! Times, counted in buckets that all workers share.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the buckets that are shown, in microseconds.
pub const BOUNDS_US: [u64; 12] =
    [500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000, 30_000_000];

/// A histogram as Prometheus has them.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Not cumulative; the last one is everything slower.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub fn add(&self, took: Duration) {
        let us = micros(took);
        let at = BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(BOUNDS_US.len());
        self.buckets[at].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// What was counted, bucket by bucket, and the sum in microseconds.
    pub fn read(&self) -> ([u64; BOUNDS_US.len() + 1], u64) {
        let mut counts = [0; BOUNDS_US.len() + 1];
        for (count, bucket) in counts.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Relaxed);
        }
        (counts, self.sum_us.load(Relaxed))
    }
}

/// Buckets to each doubling: a quantile is off by a fifth at most.
const STEPS: u32 = 4;
/// Buckets from 16 us to more than a minute.
pub const FINE: usize = 92;
/// The first bucket ends here, in microseconds.
const LEAST_US: u64 = 16;

/// A histogram fine enough to read quantiles from.
#[derive(Debug)]
pub struct Latencies {
    buckets: [AtomicU32; FINE],
}

/// What [`Latencies`] held at one moment.
pub type Counts = [u32; FINE];

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: [const { AtomicU32::new(0) }; FINE] }
    }
}

impl Latencies {
    /// Counts one.
    pub fn add(&self, took: Duration) {
        self.buckets[bucket(micros(took))].fetch_add(1, Relaxed);
    }

    /// What was counted so far. Counts wrap around.
    pub fn read(&self) -> Counts {
        std::array::from_fn(|at| self.buckets[at].load(Relaxed))
    }
}

fn bucket(us: u64) -> usize {
    if us < LEAST_US {
        return 0;
    }
    let octave = us.ilog2() - LEAST_US.ilog2();
    let within = (us >> (us.ilog2() - STEPS.ilog2())) & u64::from(STEPS - 1);
    let at = u64::from(octave * STEPS) + within;
    usize::try_from(at).unwrap_or(FINE).min(FINE - 1)
}

/// Upper bound of a bucket, in microseconds.
fn bound(bucket: usize) -> u32 {
    let bucket = u32::try_from(bucket).unwrap_or(u32::MAX) + 1;
    let (octave, within) = (bucket / STEPS, bucket % STEPS);
    u32::try_from((LEAST_US << octave) * u64::from(STEPS + within) / u64::from(STEPS)).unwrap_or(u32::MAX)
}

/// The value below which `share` of what was counted between two readings lies; `None` where that is nothing.
pub fn quantile(before: &Counts, now: &Counts, share: f64) -> Option<u32> {
    let new = |at: usize| u64::from(now[at].wrapping_sub(before[at]));
    let all: u64 = (0..FINE).map(new).sum();
    if all == 0 {
        return None;
    }
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of requests within a second"
    )]
    let wanted = ((all as f64 * share).ceil() as u64).clamp(1, all);
    let mut seen = 0;
    (0..FINE)
        .find(|at| {
            seen += new(*at);
            seen >= wanted
        })
        .map(bound)
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_below_the_bound_of_its_bucket_and_near_it() {
        for us in (1..2_000).chain([65_000, 1_000_000, 59_999_999]) {
            let bound = u64::from(bound(bucket(us)));
            assert!(us <= bound && (us < LEAST_US || bound * 4 <= us * 5 + 8), "{us} {bound}");
        }
        assert_eq!(bucket(u64::MAX), FINE - 1);
    }

    #[test]
    fn quantiles_are_of_what_came_since() {
        let latencies = Latencies::default();
        (0..1_000).for_each(|_| latencies.add(Duration::from_secs(1)));
        let before = latencies.read();
        assert_eq!(quantile(&before, &latencies.read(), 0.5), None);
        (0..98).for_each(|_| latencies.add(Duration::from_millis(1)));
        (0..2).for_each(|_| latencies.add(Duration::from_millis(100)));
        let now = latencies.read();
        let between = |share, least, most| {
            let us = quantile(&before, &now, share).expect("a hundred");
            assert!((least..=most).contains(&us), "{share}: {us}");
        };
        between(0.5, 1_000, 1_280);
        between(0.99, 100_000, 125_000);
    }

    #[test]
    fn a_histogram_keeps_counts_and_sum() {
        let histogram = Histogram::default();
        for us in [100, 700, 40_000_000] {
            histogram.add(Duration::from_micros(us));
        }
        let (counts, sum) = histogram.read();
        assert_eq!((counts[0], counts[1], counts[12], sum), (1, 1, 1, 40_000_800));
    }
}
