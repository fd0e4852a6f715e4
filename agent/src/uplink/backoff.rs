//! How long to wait before the next attempt: doubling, bounded, and jittered so that the agents of a swarm whose
//! coordinator came back do not all knock at once. Pure; the same seed gives the same waits.

use std::time::Duration;

/// Wait after the first failure, before jitter.
pub const SHORTEST: Duration = Duration::from_millis(200);

/// Longest wait, before jitter.
pub const LONGEST: Duration = Duration::from_secs(3);

/// Waits between attempts.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    attempts: u32,
    random: u64,
}

impl Backoff {
    /// Starts short.
    pub const fn new(seed: u64) -> Self {
        Self { attempts: 0, random: seed }
    }

    /// Attempts since the start or the last [`Self::reset`].
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The connection stood: the next wait is short again.
    pub const fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The next wait: half of the nominal time, and up to as much again.
    pub fn wait(&mut self) -> Duration {
        let nominal = SHORTEST.saturating_mul(1 << self.attempts.min(8)).min(LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        let micros = u64::try_from(nominal.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(micros / 2 + self.draw() % (micros / 2 + 1))
    }

    /// SplitMix64 (Steele, Lea, Flood 2014); it need not be unpredictable.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_differ_between_agents() {
        let mut one = Backoff::new(1);
        let waits: Vec<Duration> = (0..40).map(|_| one.wait()).collect();
        assert!(waits[0] >= SHORTEST / 2 && waits[0] <= SHORTEST);
        assert!(waits.iter().all(|wait| *wait <= LONGEST) && waits[39] >= LONGEST / 2);
        let mut other = Backoff::new(2);
        assert!(waits.iter().any(|wait| *wait != other.wait()));
        one.reset();
        assert!(one.wait() <= SHORTEST);
    }
}
