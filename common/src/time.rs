//! Instants as the judgement knows them: a number that is handed in, never a clock that is read.

use std::{
    fmt,
    ops::{Add, RangeInclusive, Sub},
    time::Duration,
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

/// A duration with its unit, such as `300ms` or `1m 30s`, within `range`.
///
/// # Errors
/// What is allowed.
pub fn duration(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let read = humantime::parse_duration(text).ok().filter(|duration| range.contains(duration));
    let shown = humantime::format_duration;
    read.ok_or_else(|| {
        let (least, most) = (shown(*range.start()), shown(*range.end()));
        format!("a duration with its unit (300ms, 3s, 1m), {least} to {most}")
    })
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
    fn a_duration_says_what_is_allowed() {
        let range = Duration::from_millis(20)..=Duration::from_secs(10);
        assert_eq!(duration("1s 500ms", range.clone()), Ok(Duration::from_millis(1_500)));
        for bad in ["1ms", "11s", "100", "", "-1s"] {
            assert!(duration(bad, range.clone()).is_err_and(|why| why.contains("20ms to 10s")), "{bad}");
        }
    }
}
