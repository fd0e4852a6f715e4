//! Whether a container's memory grows so that it soon meets its limit: a line through the last minutes.

use std::{collections::VecDeque, time::Duration};

use swarmguard_common::time::Time;

/// Between two points.
const EVERY: Duration = Duration::from_secs(10);
/// Points kept: five minutes of them.
const MAX_POINTS: usize = 30;
/// Fewer say nothing: two minutes of them.
const LEAST_POINTS: usize = 12;
/// Share of the scatter that the line must explain. Caches that fill up bend, and saws go up and down: neither is a leak.
const STRAIGHT: f64 = 0.9;

/// Memory over the last minutes.
#[derive(Clone, Debug, Default)]
pub struct Growth {
    points: VecDeque<(Time, f64)>,
}

impl Growth {
    /// Takes in a figure, in bytes.
    pub fn note(&mut self, now: Time, bytes: f64) {
        if self.points.back().is_some_and(|(last, _)| now - *last < EVERY) {
            return;
        }
        // After a silence it begins anew.
        if self.points.back().is_some_and(|(last, _)| now - *last > EVERY * 3) {
            self.points.clear();
        }
        if self.points.len() >= MAX_POINTS {
            self.points.pop_front();
        }
        self.points.push_back((now, bytes));
    }

    /// When the line meets the limit, from now on; and how much it grows, in bytes a second. `None` where it does not
    /// grow along a line.
    pub fn meets(&self, limit: f64) -> Option<(Duration, f64)> {
        let (first, last) = (self.points.front()?.0, self.points.back()?);
        if self.points.len() < LEAST_POINTS {
            return None;
        }
        let points = self.points.iter().map(|(at, bytes)| ((*at - first).as_secs_f64(), *bytes));
        #[expect(clippy::cast_precision_loss, reason = "at most thirty")]
        let number = self.points.len() as f64;
        let (sum_x, sum_y) = points.clone().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
        let (mean_x, mean_y) = (sum_x / number, sum_y / number);
        let (xx, xy, yy) = points.fold((0.0, 0.0, 0.0), |(xx, xy, yy), (x, y)| {
            let (dx, dy) = (x - mean_x, y - mean_y);
            (xx + dx * dx, xy + dx * dy, yy + dy * dy)
        });
        if xx <= 0.0 || yy <= 0.0 || xy <= 0.0 || xy * xy / (xx * yy) < STRAIGHT {
            return None;
        }
        let slope = xy / xx;
        let left = ((limit - last.1) / slope).clamp(0.0, 1e9);
        Some((Duration::from_secs_f64(left), slope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = 1_048_576.0;

    /// Where the line meets 512 MiB after a minute's memory in MiB, one figure every 10 s.
    fn meets(memory: impl Fn(f64) -> f64) -> Option<u64> {
        let mut growth = Growth::default();
        for step in 0..30_u32 {
            let at = Time::from_millis(1_000_000 + u64::from(step) * 10_000);
            growth.note(at, memory(f64::from(step) / 6.0) * MIB);
        }
        growth.meets(512.0 * MIB).map(|(left, _)| left.as_secs() / 60)
    }

    #[test]
    fn a_leak_is_a_line() {
        assert_eq!(meets(|minute| 200.0 + 40.0 * minute), Some(2), "40 MiB a minute, 312 at first");
        assert_eq!(meets(|_| 450.0), None, "it rests");
        assert_eq!(meets(|minute| 450.0 - 10.0 * minute), None);
        assert_eq!(meets(|minute| if minute < 0.5 { 100.0 } else { 450.0 }), None, "a step");
        assert_eq!(meets(|minute| 300.0 + 100.0 * (minute % 1.0)), None, "a collector's saw");
    }

    #[test]
    fn few_points_and_silence_say_nothing() {
        let mut growth = Growth::default();
        for step in 0..11_u64 {
            growth.note(Time::from_millis(step * 10_000), step as f64);
        }
        assert_eq!(growth.meets(100.0), None);
        growth.note(Time::from_millis(300_000), 12.0);
        assert_eq!(growth.points.len(), 1);
    }
}
