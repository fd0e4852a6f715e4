//! What the operator's API answers, as plain data that programs can read back: the coordinator writes it, the command
//! line, the page and tests read it.
//!
//! Units stand last in names (`_ms`, `_percent`, `_bytes`); ages and lengths of time are whole milliseconds. A field that
//! is absent or `null` is unknown, which is not 0.

mod balancers;
mod explain;
mod health;
mod history;
mod notify;
mod overview;
mod problem;
mod series;
mod state;
mod status;
mod targets;

pub use balancers::{BalancedReplica, BalancedService, BalancerStatus, Balancers, Standing};
pub use explain::{Conclusion, Explanation, Finding, Judgement, Policy, RoutePolicy};
pub use health::{Deduction, Health, HealthPart};
pub use history::{ActionRow, StepRow};
pub use notify::NotifyChannel;
pub use overview::{
    ActionNow, AlertNow, Banner, BannerCode, Coordination, LastDay, NodeRow, NodeWord, Overview, Placement,
    ServiceMode, ServiceRow, Severity, SwarmName,
};
pub use problem::Problem;
pub use series::{Series, SeriesOf};
pub use state::{
    ActionStatus, AlertStatus, Availability, ContainerStatus, LeaseState, LeaseStatus, NodeStatus, NodeUse,
    ReplicaUse, ServiceStatus,
};
pub use status::{Accepted, Plan, Statistics, Status, StatusWord};
pub use targets::{TargetGroup, Targets};

/// Version of the answers, in [`Overview::api_version`]: fields may be added to it, never taken away or given another
/// meaning.
pub const API_VERSION: &str = "swarmguard/v1";
