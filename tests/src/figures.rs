//! Rows of figures, as every `cargo xtask bench` prints them and keeps them as JSON.
//!
//! A row is a median with its spread, beside a peer's where there is one; nothing here judges: machines are noisy.

use std::{fmt, ops::RangeInclusive, path::Path};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::e2e::report;

/// One figure over several rounds.
#[derive(Clone, Debug)]
pub struct Row {
    row: String,
    unit: &'static str,
    value: f64,
    min: f64,
    max: f64,
    /// What is aimed at, for people; empty where nothing is.
    target: &'static str,
    /// What the figure can be.
    plausible: Option<RangeInclusive<f64>>,
    peer: Option<(String, f64)>,
}

impl Row {
    /// Median and spread of the rounds; NaN where there were none.
    pub fn of(row: &str, unit: &'static str, target: &'static str, rounds: &[f64]) -> Self {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) =
            (sorted.first().copied().unwrap_or(f64::NAN), sorted.last().copied().unwrap_or(f64::NAN));
        Self {
            row: row.into(),
            unit,
            value: percentile(&sorted, 0.5),
            min,
            max,
            target,
            plausible: None,
            peer: None,
        }
    }

    /// Two rows, p50 and p99, of many single figures.
    pub fn percentiles(
        row: &str,
        unit: &'static str,
        target: &'static str,
        mut figures: Vec<f64>,
    ) -> [Self; 2] {
        figures.sort_by(f64::total_cmp);
        [("p50", 0.5, ""), ("p99", 0.99, target)].map(|(name, share, target)| {
            let mut one = Self::of(&format!("{row}.{name}"), unit, target, &figures);
            one.value = percentile(&figures, share);
            one
        })
    }

    /// Beside the median of a peer's rounds in the same run.
    #[must_use]
    pub fn beside(self, peer: &str, rounds: &[f64]) -> Self {
        Self { peer: Some((peer.to_owned(), median(rounds))), ..self }
    }

    /// A figure beyond these makes no sense on any machine.
    #[must_use]
    pub fn plausible(self, range: RangeInclusive<f64>) -> Self {
        Self { plausible: Some(range), ..self }
    }

    fn makes_sense(&self) -> bool {
        let ratio = self.peer.as_ref().map_or(1.0, |(_, theirs)| self.value / theirs);
        let finite = [self.value, self.min, self.max, ratio].iter().all(|it| it.is_finite());
        finite && self.plausible.as_ref().is_none_or(|range| range.contains(&self.value))
    }

    fn json(&self, command: &str) -> Value {
        let Self { row, unit, value, min, max, target: _, plausible: _, peer } = self;
        let (peer, theirs) = peer.clone().unzip();
        let ratio = theirs.map(|theirs| value / theirs);
        json!({"row": row, "unit": unit, "value": value, "min": min, "max": max, "peer": peer,
            "peer_value": theirs, "ratio": ratio, "command": command})
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { row, unit, value, min, max, target, plausible: _, peer } = self;
        write!(f, "{row:<36} {value:>10.3} {min:>10.3} {max:>10.3} {unit:<9} {target:<14}")?;
        if let Some((name, theirs)) = peer {
            write!(f, " {name}: {theirs:.3} (ratio {:.3})", value / theirs)?;
        }
        Ok(())
    }
}

/// All rows of one run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What repeats it.
    command: &'static str,
    machine: String,
    rows: Vec<Row>,
    /// What was not measured, and why.
    skipped: Vec<(String, String)>,
}

impl Report {
    /// Empty; `command` is what repeats the run.
    pub fn new(command: &'static str) -> Self {
        Self { command, machine: machine(), rows: Vec::new(), skipped: Vec::new() }
    }

    /// Says more about where it is measured.
    #[must_use]
    pub fn on(self, more: &str) -> Self {
        Self { machine: format!("{}, {more}", self.machine), ..self }
    }

    /// Takes a row.
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Takes a row and shows it at once: more are to come, later.
    pub fn announce(&mut self, row: Row) {
        eprintln!("{row}");
        self.add(row);
    }

    /// Notes that a row could not be had.
    pub fn skip(&mut self, row: &str, why: &str) {
        self.skipped.push((row.into(), why.into()));
    }

    /// Whether every row makes sense: a figure that is none, or a ratio to nothing, is a fault of the measurement, and
    /// nobody is to read it as a result.
    ///
    /// # Errors
    /// When one does not, with its name.
    pub fn check(&self) -> Result<()> {
        let senseless: Vec<String> =
            self.rows.iter().filter(|row| !row.makes_sense()).map(ToString::to_string).collect();
        if !senseless.is_empty() {
            bail!("these rows make no sense, so the measurement failed:\n{}", senseless.join("\n"));
        }
        Ok(())
    }

    /// Keeps it as a file.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, to: &Path) -> Result<()> {
        let rows: Vec<_> = self.rows.iter().map(|row| row.json(self.command)).collect();
        report::write(to, &json!({"machine": self.machine, "rows": rows, "skipped": self.skipped}))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        writeln!(
            f,
            "{:<36} {:>10} {:>10} {:>10} {:<9} {:<14} peer",
            "row", "value", "min", "max", "unit", "target"
        )?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        self.skipped.iter().try_for_each(|(row, why)| writeln!(f, "{row:<36} not measured: {why}"))
    }
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{count} x {}, Linux {}", model.trim_start_matches([' ', '\t', ':']), kernel.trim())
}

/// The middle one of figures in any order; NaN where there are none.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    percentile(&sorted, 0.5)
}

/// The figure that this share (0 to 1) of the sorted ones does not exceed; NaN where there are none.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
    let at = (float(sorted.len().saturating_sub(1)) * share).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// A count as a figure; all of ours are far below 2^32.
pub fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_median_with_its_spread_and_its_peer() {
        let row = Row::of("x", "ms", "<= 2", &[3.0, 1.0, 2.0]).beside("other", &[4.0, 8.0, 8.0]);
        let json = row.json("run");
        assert_eq!((&json["value"], &json["min"], &json["max"]), (&json!(2.0), &json!(1.0), &json!(3.0)));
        assert_eq!((&json["peer_value"], &json["ratio"]), (&json!(8.0), &json!(0.25)));
        assert_eq!(Row::of("y", "ms", "", &[1.0]).json("run")["peer"], Value::Null);
    }

    #[test]
    fn a_row_that_makes_no_sense_fails_the_run_by_name() {
        let with = |row: Row| {
            let mut report = Report::new("run");
            report.add(Row::of("fine", "ms", "", &[1.0]).beside("other", &[2.0]));
            report.add(row);
            report.check().map_err(|error| error.to_string())
        };
        assert_eq!(with(Row::of("good", "us", "", &[3.0]).plausible(0.1..=100.0)), Ok(()));
        for row in [
            Row::of("bad", "ms", "", &[]),
            Row::of("bad", "ms", "", &[f64::INFINITY]),
            Row::of("bad", "ms", "", &[1.0]).beside("other", &[]),
            Row::of("bad", "ms", "", &[1.0]).beside("other", &[0.0]),
            Row::of("bad", "us", "", &[24_248.0]).plausible(0.1..=100.0),
        ] {
            let error = with(row).expect_err("senseless");
            assert!(error.contains("bad") && !error.contains("fine"), "{error}");
        }
    }

    #[test]
    fn percentiles_name_their_share() {
        let rows = Row::percentiles("x", "ms", "", (1..=101).map(f64::from).collect());
        assert_eq!((rows[0].row.as_str(), rows[0].value), ("x.p50", 51.0));
        assert_eq!((rows[1].row.as_str(), rows[1].value), ("x.p99", 100.0));
    }
}
