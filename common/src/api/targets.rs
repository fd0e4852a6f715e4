//! Where Prometheus is to scrape, in the form of its `http_sd_configs`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// All targets.
pub type Targets = Vec<TargetGroup>;

/// Targets that share labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetGroup {
    /// `host:port`.
    pub targets: Vec<String>,
    /// `job`, `node` and so on.
    pub labels: BTreeMap<String, String>,
}
