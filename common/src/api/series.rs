//! The last five minutes of a node or a service, second by second.

use serde::{Deserialize, Serialize};

use crate::domain::{NodeId, ServiceId};

/// Whose figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeriesOf {
    /// A node.
    Node(NodeId),
    /// A service: shares are means over its replicas.
    Service(ServiceId),
}

/// The last five minutes. All lists are equally long, at most 300, the oldest first; `null` is unknown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Whose.
    pub of: SeriesOf,
    /// Host name or name of the service.
    pub name: String,
    /// Wall clock of the last point, in milliseconds since the Unix epoch.
    pub until_ms: u64,
    /// Between two points.
    pub step_ms: u64,
    /// CPU share.
    pub cpu_percent: Vec<Option<f32>>,
    /// Memory share.
    pub memory_percent: Vec<Option<f32>>,
    /// Network share.
    pub network_percent: Vec<Option<f32>>,
    /// Share of time in which something waited for CPU.
    pub psi_percent: Vec<Option<f32>>,
    /// Replicas running there, or of it.
    pub running: Vec<Option<u32>>,
    /// Requests in flight; services only.
    pub in_flight: Vec<Option<u32>>,
    /// Median latency; services only.
    pub latency_ms: Vec<Option<f32>>,
}
