//! The one place where a clock is read.
//!
//! Everything that judges takes a [`Time`] as an argument, so that it can run in simulation and so that a step of the
//! wall clock changes no decision. Ages travel between machines, never times of day.

use std::{
    cell::Cell,
    fmt,
    ops::{Add, Sub},
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// A monotonic instant in microseconds since an origin that only this process (or simulation) knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time(u64);

impl Time {
    /// The origin; every other instant is later.
    pub const ZERO: Self = Self(0);

    /// The instant `micros` microseconds after the origin.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// The instant `millis` milliseconds after the origin.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000))
    }

    /// Microseconds since the origin.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Milliseconds since the origin, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000
    }

    /// Time from `earlier` to `self`; zero when `earlier` is in fact later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// `self` less `age`, not before the origin.
    pub fn before(self, age: Duration) -> Self {
        Self(self.0.saturating_sub(micros(age)))
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(micros(later)))
    }
}

impl Sub for Time {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.0 / 1_000_000, self.0 / 1_000 % 1_000)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

thread_local! {
    static SIMULATED: Cell<Option<fn() -> Time>> = const { Cell::new(None) };
}

/// Lets this thread read another clock from now on, its own again with `None`. Only for simulations, where several
/// machines share a thread and each has a clock that started at another time and runs at its own rate.
pub fn simulate(clock: Option<fn() -> Time>) {
    SIMULATED.set(clock);
}

/// Now, since the first call in this process. Follows tokio's clock, so a paused runtime is obeyed; so is the clock of
/// a simulation ([`simulate`]).
pub fn now() -> Time {
    if let Some(simulated) = SIMULATED.get() {
        return simulated();
    }
    // One hour ahead of the origin, so that "the sample was taken 10 minutes ago" is representable at start.
    static ORIGIN: OnceLock<tokio::time::Instant> = OnceLock::new();
    let instant = tokio::time::Instant::now();
    let since = instant.saturating_duration_since(*ORIGIN.get_or_init(|| instant));
    Time::from_millis(3_600_000) + since
}

/// The wall clock, in milliseconds since the Unix epoch. For people and journals only; nothing is judged by it.
pub fn wall_ms() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "this is the clock module")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        let t = Time::from_millis(5);
        assert_eq!(t.before(Duration::from_secs(1)), Time::ZERO);
        assert_eq!(Time::ZERO - t, Duration::ZERO);
        assert_eq!((t + Duration::MAX).as_micros(), u64::MAX);
    }

    #[test]
    fn a_simulation_brings_its_own_clock_for_its_thread_only() {
        simulate(Some(|| Time::from_millis(42)));
        assert_eq!(now(), Time::from_millis(42));
        let elsewhere = std::thread::spawn(now).join().expect("no panic");
        assert_ne!(elsewhere, Time::from_millis(42));
        simulate(None);
        assert_ne!(now(), Time::from_millis(42));
    }

    #[test]
    fn now_does_not_run_backwards() {
        let first = now();
        assert!(now() >= first);
    }
}
