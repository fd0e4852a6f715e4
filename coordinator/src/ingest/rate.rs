//! A token bucket: how many messages a peer may send, its time argument explicit.

use std::time::Duration;

use swarmguard_common::time::Time;

/// Allows `rate` messages a second with bursts of `burst`.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate_per_s: f64,
    burst: f64,
    tokens: f64,
    at: Time,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate_per_s: f64, burst: f64, now: Time) -> Self {
        Self { rate_per_s, burst, tokens: burst, at: now }
    }

    /// Takes one token. Where there is none, nothing is taken and the wait until there is one is told.
    ///
    /// # Errors
    /// With the time to wait.
    pub fn take(&mut self, now: Time) -> Result<(), Duration> {
        self.tokens = (self.tokens + now.since(self.at).as_secs_f64() * self.rate_per_s).min(self.burst);
        self.at = self.at.max(now);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / self.rate_per_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let start = Time::from_millis(10);
        let mut bucket = Bucket::new(100.0, 5.0, start);
        for _ in 0..5 {
            assert_eq!(bucket.take(start), Ok(()));
        }
        let wait = bucket.take(start).expect_err("empty");
        assert!(wait <= Duration::from_millis(10) && wait > Duration::from_millis(9), "{wait:?}");
        assert_eq!(bucket.take(start + Duration::from_millis(11)), Ok(()));
        assert!(bucket.take(start + Duration::from_millis(12)).is_err());
        // A long silence fills it to the burst, not beyond.
        let later = start + Duration::from_secs(60);
        assert_eq!((0..10).filter(|_| bucket.take(later).is_ok()).count(), 5);
    }
}
