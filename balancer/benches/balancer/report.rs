//! Rows of figures, as a table and as JSON.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// Figures measured, each several times.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
    peer: Option<(String, Vec<f64>)>,
}

impl Report {
    /// A figure by itself.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, values: &[f64]) {
        self.rows.push(Row { name: name.into(), unit, values: values.into(), peer: None });
    }

    /// A figure beside a peer's; the ratio is ours to theirs.
    pub fn compare(&mut self, name: &str, unit: &'static str, values: &[f64], peer: &str, theirs: &[f64]) {
        let peer = Some((peer.to_owned(), theirs.to_vec()));
        self.rows.push(Row { name: name.into(), unit, values: values.into(), peer });
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:32} {:>12} {:>12} {:>12}  {:8} {:22} {:>12} {:>6}\n",
            "row", "median", "min", "max", "unit", "peer", "peer median", "ratio"
        );
        for row in &self.rows {
            let _ = write!(
                text,
                "{:32} {:>12} {:>12} {:>12}  {:8}",
                row.name,
                shown(median(&row.values)),
                shown(least(&row.values)),
                shown(most(&row.values)),
                row.unit
            );
            if let Some((peer, theirs)) = &row.peer {
                let ratio = median(&row.values) / median(theirs);
                let _ = write!(text, " {peer:22} {:>12} {ratio:>6.2}", shown(median(theirs)));
            }
            text.push('\n');
        }
        text
    }

    /// For programs.
    pub fn write(&self, path: &Path) -> Result<()> {
        let rows: Vec<Value> = self.rows.iter().map(Row::json).collect();
        let document = json!({ "machine": machine(), "rows": rows });
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(path, serde_json::to_vec_pretty(&document)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Row {
    fn json(&self) -> Value {
        let mut row = json!({
            "row": self.name, "unit": self.unit, "value": median(&self.values),
            "min": least(&self.values), "max": most(&self.values),
            "peer": null, "peer_value": null, "ratio": null,
            "command": "cargo xtask bench balancer --json",
        });
        if let Some((peer, theirs)) = &self.peer {
            row["peer"] = peer.as_str().into();
            row["peer_value"] = median(theirs).into();
            row["ratio"] = (median(&self.values) / median(theirs)).into();
        }
        row
    }
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let model =
        read("/proc/cpuinfo").lines().find_map(|line| Some(line.strip_prefix("model name")?.to_owned()));
    let model = model.unwrap_or_default().trim_start_matches([' ', '\t', ':']).to_owned();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    format!("{model}, {cores} cores, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}

/// The value in the middle; NaN where there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::min)
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

fn shown(value: f64) -> String {
    if value.abs() >= 1_000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
