//! What the demo found, as people read it and as `report.json` holds it.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use swarmguard_common::journal::Entry;

/// `target/demo/report.json`. Times are milliseconds; what did not happen is null.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was played.
    pub scenario: String,
    /// The engines' own version.
    pub engine_version: String,
    /// Nodes of the swarm.
    pub nodes: usize,
    /// What was real, and what stood in for something.
    pub real: Real,
    /// Requests sent, from before the heat until after the end.
    pub requests_sent: u64,
    /// Of these, not answered with 200 in time. Nothing is sent twice.
    pub requests_failed: u64,
    /// First sample over the threshold until the alert stood in the journal.
    pub detect_ms: Option<u64>,
    /// Alert until the decision.
    pub decide_ms: Option<u64>,
    /// First sample over the threshold until the successor was healthy and the old replica told to stop.
    pub repaired_ms: Option<u64>,
    /// For how long both replicas served; negative would be a gap.
    pub overlap_ms: Option<i64>,
    /// Node that the replica left.
    pub source: Option<String>,
    /// Node that it went to.
    pub target: Option<String>,
    /// Replicas that the spec asked for.
    pub replicas_before: u64,
    /// The same afterwards.
    pub replicas_after: u64,
    /// `TaskTemplate.Placement` of the spec.
    pub placement_before: Value,
    /// The same afterwards.
    pub placement_after: Value,
    /// The source's availability afterwards.
    pub availability_after: Option<String>,
    /// Everything that the coordinator noted meanwhile.
    pub journal: Vec<Entry>,
}

/// What the cluster was made of.
#[derive(Clone, Debug, Serialize)]
pub struct Real {
    /// The nodes.
    pub nodes: String,
    /// The way that requests took.
    pub requests: String,
    /// How the programs were built.
    pub programs: String,
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let ms = |value: Option<u64>| value.map_or("-".to_owned(), |ms| format!("{ms} ms"));
        let name = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        let overlap = self.overlap_ms.map_or("-".to_owned(), |ms| format!("{ms} ms"));
        [
            format!("  engine        {} on {} nodes", self.engine_version, self.nodes),
            format!("  nodes are     {}", self.real.nodes),
            format!("  requests go   {}", self.real.requests),
            format!("  programs      {} build", self.real.programs),
            format!("  requests      {} sent, {} failed", self.requests_sent, self.requests_failed),
            format!("  moved         {} -> {}", name(&self.source), name(&self.target)),
            format!("  detected in   {} (first sample over the threshold -> alert)", ms(self.detect_ms)),
            format!(
                "  decided in    {} (alert -> decision; a short spike must not count)",
                ms(self.decide_ms)
            ),
            format!(
                "  repaired in   {} (first sample -> successor healthy, old one told to stop)",
                ms(self.repaired_ms)
            ),
            format!("  overlap       {overlap} (both replicas served)"),
            format!("  replicas      {} before, {} after", self.replicas_before, self.replicas_after),
            format!("  placement     {} before, {} after", self.placement_before, self.placement_after),
            format!("  availability  {} of the source afterwards", name(&self.availability_after)),
        ]
        .join("\n")
    }
}

/// Keeps a report as JSON, in a directory that is made where it is missing.
///
/// # Errors
/// Where it cannot be written.
pub fn write(path: &Path, report: &impl Serialize) -> Result<()> {
    let what = || format!("cannot write {}", path.display());
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(what)?;
    }
    std::fs::write(path, serde_json::to_vec_pretty(report)?).with_context(what)
}
