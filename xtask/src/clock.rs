//! The one place of this crate that reads a clock. `swarmguard_runtime::clock` is not used here, because xtask
//! is compiled before everything else and stays free of the product's dependencies.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time, for timeouts and the figures printed at the end.
#[expect(clippy::disallowed_methods, reason = "xtask's one place that reads the monotonic clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Seconds since 1970, UTC.
#[expect(clippy::disallowed_methods, reason = "xtask's one place that reads the wall clock")]
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Time since a moment; displays as seconds with one decimal.
#[derive(Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    pub fn start() -> Self {
        Self(now())
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        now().duration_since(self.0)
    }
}

impl Stopwatch {
    /// Time since the start in seconds, for figures that are kept.
    pub fn seconds(&self) -> f64 {
        (self.elapsed().as_secs_f64() * 10.0).round() / 10.0
    }
}

impl fmt::Display for Stopwatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:.1} s", self.elapsed().as_secs_f64())
    }
}
