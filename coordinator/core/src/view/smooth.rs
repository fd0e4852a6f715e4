//! Exponentially weighted averages over uneven intervals, so that a spike of two seconds does not look like load.
//!
//! After a gap the average begins anew: what was true before a silence says nothing about now.

use std::time::Duration;

use swarmguard_common::{domain::BasisPoints, time::Time};

/// Time constant: after it, a step has come through by 63 %.
const TAU: Duration = Duration::from_secs(4);
/// Silence after which the average begins anew.
const GAP: Duration = Duration::from_secs(5);

/// A smoothed share; unknown before the first value and after an unknown one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Smooth {
    state: Option<(f64, Time)>,
    tau: Duration,
}

impl Default for Smooth {
    fn default() -> Self {
        Self::over(TAU)
    }
}

impl Smooth {
    /// With a time constant of its own.
    pub const fn over(tau: Duration) -> Self {
        Self { state: None, tau }
    }

    /// Takes in a value; `None` is unknown, which forgets the average.
    pub fn update(&mut self, now: Time, value: Option<BasisPoints>) {
        self.state = value.map(|value| {
            let new = value.ratio();
            match self.state {
                Some((old, at)) if now - at < GAP => {
                    let weight = 1.0 - (-(now - at).as_secs_f64() / self.tau.as_secs_f64()).exp();
                    (old + (new - old) * weight, now.max(at))
                }
                _ => (new, now),
            }
        });
    }

    /// The average as a ratio, where 1.0 is all.
    pub fn ratio(&self) -> Option<f64> {
        self.state.map(|(value, _)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(values: impl IntoIterator<Item = (u64, Option<u16>)>) -> Option<f64> {
        let mut smooth = Smooth::default();
        for (ms, percent) in values {
            smooth.update(Time::from_millis(10_000 + ms), percent.map(BasisPoints::from_percent));
        }
        smooth.ratio()
    }

    #[test]
    fn a_spike_of_two_seconds_stays_small_and_a_step_comes_through() {
        let spike = (0..40_u64).map(|i| (i * 250, Some(if (20..28).contains(&i) { 100 } else { 10 })));
        let peak = fed(spike.take(28)).expect("known");
        assert!((0.3..0.5).contains(&peak), "{peak}");
        let step = (0..80_u64).map(|i| (i * 250, Some(if i > 2 { 90 } else { 10 })));
        assert!(fed(step).expect("known") > 0.88);
    }

    #[test]
    fn unknown_and_silence_begin_anew() {
        assert_eq!(fed([(0, Some(90)), (250, None)]), None);
        assert_eq!(fed([(0, Some(90)), (6_000, Some(10))]), Some(0.1));
    }
}
