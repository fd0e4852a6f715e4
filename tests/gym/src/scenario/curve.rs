//! Demand over time: a sum of shapes, each a few numbers in the scenario's file, and factors on that sum.

use std::{f64::consts::TAU, time::Duration};

use super::read::Section;

/// Longest time that a shape may name.
const MOST: Duration = Duration::from_secs(7 * 86_400);

/// A sum of shapes times the factors among them.
#[derive(Clone, Debug, Default)]
pub struct Curve {
    shapes: Vec<Shape>,
}

/// One part of a curve. Levels are in the unit of what the curve is for; times are seconds from the start.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Always the same.
    Steady { level: f64 },
    /// From one level to another in a straight line, and that from then on.
    Ramp { from: f64, level: f64, start: f64, length: f64 },
    /// From `start`, for `length`.
    Step { level: f64, start: f64, length: f64 },
    /// A day: `level` is the mean, `swing` what the peak is above it as a share.
    Diurnal { level: f64, swing: f64, period: f64, peak: f64 },
    /// Rises within `rise`, stays for `length`, falls within `fall`.
    Flash { level: f64, start: f64, rise: f64, length: f64, fall: f64 },
    /// `level` for `length` every `every`, each at another moment of its period where `jitter` is not 0.
    Bursts { level: f64, start: f64, every: f64, length: f64, jitter: f64 },
    /// A factor: everything is multiplied by `level` for `length` every `every`.
    Dips { level: f64, start: f64, every: f64, length: f64 },
    /// A factor that wanders about 1: `level` is how far, as a share, changing every `every`.
    Noise { level: f64, every: f64 },
}

/// The names of shapes in the file.
#[derive(Clone, Copy)]
enum Name {
    Steady,
    Ramp,
    Step,
    Diurnal,
    Flash,
    Bursts,
    Cron,
    Dips,
    Noise,
}

const NAMES: [(&str, Name); 9] = [
    ("steady", Name::Steady),
    ("ramp", Name::Ramp),
    ("step", Name::Step),
    ("diurnal", Name::Diurnal),
    ("flash", Name::Flash),
    ("bursts", Name::Bursts),
    ("cron", Name::Cron),
    ("dips", Name::Dips),
    ("noise", Name::Noise),
];

impl Curve {
    /// Reads a list of shapes.
    pub fn read(sections: &[Section<'_, '_>]) -> Self {
        Self { shapes: sections.iter().map(read_shape).collect() }
    }

    /// The same level always.
    pub fn steady(level: f64) -> Self {
        Self { shapes: vec![Shape::Steady { level }] }
    }

    /// Whether it is nothing, always.
    pub fn is_nothing(&self) -> bool {
        self.shapes.is_empty()
    }

    /// The level at a time, in seconds from the start. `seed` moves what has jitter.
    pub fn at(&self, t: f64, seed: u64) -> f64 {
        let (mut sum, mut factor) = (0.0, 1.0);
        for (index, shape) in (0_u64..).zip(&self.shapes) {
            match shape {
                Shape::Dips { .. } | Shape::Noise { .. } => factor *= shape.at(t, seed ^ index),
                _ => sum += shape.at(t, seed ^ index),
            }
        }
        (sum * factor).max(0.0)
    }
}

fn read_shape(section: &Section<'_, '_>) -> Shape {
    let level = section.number("level", 0.0, 0.0..=1e9);
    let seconds = |key, default: u64| {
        section.duration(key, Duration::from_secs(default), Duration::ZERO..=MOST).as_secs_f64()
    };
    // Each shape asks only for what it needs, so that a key without effect is refused.
    let shape = match section.choice("shape", Name::Steady, &NAMES) {
        Name::Steady => Shape::Steady { level },
        Name::Ramp => Shape::Ramp {
            from: section.number("from", 0.0, 0.0..=1e9),
            level,
            start: seconds("start", 0),
            length: seconds("length", 60).max(0.001),
        },
        Name::Step => {
            Shape::Step { level, start: seconds("start", 0), length: seconds("length", MOST.as_secs()) }
        }
        Name::Diurnal => Shape::Diurnal {
            level,
            swing: section.number("swing", 0.5, 0.0..=1.0),
            period: seconds("period", 86_400).max(1.0),
            peak: seconds("peak", 0),
        },
        Name::Flash => Shape::Flash {
            level,
            start: seconds("start", 0),
            rise: seconds("rise", 10).max(0.001),
            length: seconds("length", 60),
            fall: seconds("fall", 60).max(0.001),
        },
        name @ (Name::Bursts | Name::Cron) => Shape::Bursts {
            level,
            start: seconds("start", 0),
            every: seconds("every", 300).max(0.1),
            length: seconds("length", 10),
            jitter: if matches!(name, Name::Bursts) { section.number("jitter", 0.5, 0.0..=1.0) } else { 0.0 },
        },
        Name::Dips => Shape::Dips {
            level,
            start: seconds("start", 0),
            every: seconds("every", 60).max(0.1),
            length: seconds("length", 1),
        },
        Name::Noise => {
            if level > 1.0 {
                section.refuse("level", "a share from 0 to 1 where shape is noise");
            }
            Shape::Noise { level, every: seconds("every", 30).max(0.1) }
        }
    };
    section.finish(&[]);
    shape
}

impl Shape {
    fn at(&self, t: f64, seed: u64) -> f64 {
        match *self {
            Self::Steady { level } => level,
            Self::Ramp { from, level, start, length } => {
                from + (level - from) * ((t - start) / length).clamp(0.0, 1.0)
            }
            Self::Step { level, start, length } => {
                if t >= start && t < start + length {
                    level
                } else {
                    0.0
                }
            }
            Self::Diurnal { level, swing, period, peak } => {
                level * (1.0 + swing * (TAU * (t - peak) / period).cos())
            }
            Self::Flash { level, start, rise, length, fall } => {
                let since = t - start;
                let left = start + rise + length + fall - t;
                level * (since / rise).min(left / fall).clamp(0.0, 1.0)
            }
            Self::Bursts { level, start, every, length, jitter } => {
                let Some((number, into)) = period(t - start, every) else { return 0.0 };
                let offset = (every - length).max(0.0) * jitter * chance(seed, number);
                if into >= offset && into < offset + length { level } else { 0.0 }
            }
            Self::Dips { level, start, every, length } => {
                let dips = period(t - start, every).is_some_and(|(_, into)| into < length);
                if dips { level } else { 1.0 }
            }
            Self::Noise { level, every } => {
                let (number, into) = period(t.max(0.0), every).unwrap_or_default();
                let here = chance(seed, number) * 2.0 - 1.0;
                let next = chance(seed, number + 1) * 2.0 - 1.0;
                1.0 + level * (here + (next - here) * into / every)
            }
        }
    }
}

/// Which period a time is in and how far; `None` before the first.
fn period(t: f64, every: f64) -> Option<(u64, f64)> {
    (t >= 0.0).then(|| {
        let number = (t / every).floor();
        (crate::number::count(number), t - number * every)
    })
}

/// A number from 0 to 1 that is always the same for a seed and a number.
fn chance(seed: u64, number: u64) -> f64 {
    fastrand::Rng::with_seed(
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03),
    )
    .f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(shapes: &[Shape]) -> Curve {
        Curve { shapes: shapes.to_vec() }
    }

    #[test]
    fn shapes_add_up_and_factors_multiply() {
        let curve = curve(&[
            Shape::Steady { level: 10.0 },
            Shape::Step { level: 90.0, start: 60.0, length: 30.0 },
            Shape::Dips { level: 0.5, start: 0.0, every: 10.0, length: 1.0 },
        ]);
        assert_eq!(curve.at(5.0, 1), 10.0);
        assert_eq!(curve.at(10.5, 1), 5.0);
        assert_eq!(curve.at(65.0, 1), 100.0);
        assert_eq!(curve.at(90.5, 1), 5.0, "the step is over, the dip is not");
    }

    #[test]
    fn a_flash_rises_stays_and_falls() {
        let flash =
            curve(&[Shape::Flash { level: 100.0, start: 10.0, rise: 10.0, length: 20.0, fall: 20.0 }]);
        for (t, wanted) in [(9.0, 0.0), (15.0, 50.0), (20.0, 100.0), (40.0, 100.0), (50.0, 50.0), (61.0, 0.0)]
        {
            assert!((flash.at(t, 0) - wanted).abs() < 1e-9, "{t} s: {}", flash.at(t, 0));
        }
    }

    #[test]
    fn bursts_last_as_long_as_they_say_wherever_they_fall() {
        let bursts =
            curve(&[Shape::Bursts { level: 1.0, start: 0.0, every: 100.0, length: 10.0, jitter: 1.0 }]);
        for seed in 0..5 {
            let on: f64 = (0..10_000).map(|tenth| bursts.at(f64::from(tenth) / 10.0, seed) / 10.0).sum();
            assert!((on - 100.0).abs() < 1.5, "ten bursts of 10 s in 1,000 s, seed {seed}: {on}");
        }
    }
}
