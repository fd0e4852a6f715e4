//! Rows of figures, as a table for people and JSON for programs.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Values of several rounds.
#[derive(Clone, Debug, Default)]
pub struct Spread(Vec<f64>);

impl Spread {
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    pub fn median(&self) -> f64 {
        self.at(0.5)
    }

    /// The value that the share `part` of all does not exceed.
    pub fn at(&self, part: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a small length"
        )]
        let index = ((self.0.len().saturating_sub(1)) as f64 * part).round() as usize;
        self.0.get(index).copied().unwrap_or(f64::NAN)
    }
}

/// One figure, beside another where there is one.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    row: String,
    unit: &'static str,
    value: f64,
    min: f64,
    max: f64,
    peer: Option<String>,
    peer_value: Option<f64>,
    /// Ours over theirs.
    ratio: Option<f64>,
    command: String,
}

impl Row {
    pub fn new(row: impl Into<String>, unit: &'static str, spread: &Spread) -> Self {
        Self {
            row: row.into(),
            unit,
            value: spread.median(),
            min: spread.at(0.0),
            max: spread.at(1.0),
            peer: None,
            peer_value: None,
            ratio: None,
            command: "cargo xtask bench agent".into(),
        }
    }

    /// One value that is not the median, such as a percentile.
    pub fn of(self, value: f64) -> Self {
        Self { value, ..self }
    }

    pub fn beside(self, peer: &str, spread: &Spread) -> Self {
        let theirs = spread.median();
        let ratio = Some(self.value / theirs);
        Self { peer: Some(peer.into()), peer_value: Some(theirs), ratio, ..self }
    }
}

/// All rows of a run.
#[derive(Serialize)]
pub struct Report {
    machine: String,
    rows: Vec<Row>,
    /// What was not measured, and why.
    skipped: Vec<(String, String)>,
}

impl Report {
    pub fn new(root: &Path) -> Self {
        let name = rustix::system::uname();
        let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        let machine = format!(
            "{cpus} x {}, Linux {}, cgroup v2 at {} with {}",
            model.trim_start_matches([' ', '\t', ':']),
            name.release().to_string_lossy(),
            root.display(),
            if controllers.trim().is_empty() { "no controllers" } else { controllers.trim() }
        );
        Self { machine, rows: Vec::new(), skipped: Vec::new() }
    }

    pub fn add(&mut self, row: Row) {
        eprintln!("{row}");
        self.rows.push(row);
    }

    pub fn skip(&mut self, row: &str, why: &str) {
        self.skipped.push((row.into(), why.into()));
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(path, serde_json::to_string_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { row, unit, value, min, max, .. } = self;
        write!(f, "{row:<34} {value:>10.2} {unit:<12} ({min:.2} to {max:.2})")?;
        if let (Some(peer), Some(theirs), Some(ratio)) = (&self.peer, self.peer_value, self.ratio) {
            write!(f, "   {peer}: {theirs:.2}, ratio {ratio:.3}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        for (row, why) in &self.skipped {
            writeln!(f, "{row:<34} not measured: {why}")?;
        }
        Ok(())
    }
}
