//! What the judgement asks the outside to do, and how the outside answers. Each command is one call; all of them are
//! idempotent or guarded by a version, so that a lost answer does no harm.

use std::collections::BTreeMap;

use serde_json::Value;
use swarmguard_common::domain::{NodeId, ServiceId, TaskId};

/// Numbers the commands of one brain; an answer names the command that it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// One call to the outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `POST /configs/create`. Fails with [`CommandError::Conflict`] when the name exists: the lease is another's.
    CreateRecord {
        /// Unique name.
        name: String,
        /// State.
        labels: BTreeMap<String, String>,
        /// What was before; immutable.
        data: Vec<u8>,
    },
    /// `POST /configs/{id}/update`: replaces the labels, guarded by the version.
    UpdateRecord {
        /// ID of the config.
        id: String,
        /// Version it must still have.
        version: u64,
        /// Name, which an update must repeat.
        name: String,
        /// All labels.
        labels: BTreeMap<String, String>,
        /// The data again, which an update must repeat unchanged.
        data: Vec<u8>,
    },
    /// `DELETE /configs/{id}`. One that is gone already counts as done.
    RemoveRecord {
        /// ID of the config.
        id: String,
    },
    /// `POST /services/{id}/update?version=&registryAuthFrom=spec`.
    WriteService {
        /// Which.
        service: ServiceId,
        /// Version it must still have.
        version: u64,
        /// The whole spec.
        spec: Value,
    },
    /// `POST /nodes/{id}/update?version=`.
    WriteNode {
        /// Which.
        node: NodeId,
        /// Version it must still have.
        version: u64,
        /// The whole spec.
        spec: Value,
    },
    /// Tells the balancers that these replicas go; answered when all have drained them, or there are none, or the
    /// deadline passed.
    DrainBalancers {
        /// Which.
        tasks: Vec<TaskId>,
        /// Longest wait, in milliseconds.
        deadline_ms: u64,
    },
    /// Tells the balancers that these replicas stay after all.
    ResumeBalancers {
        /// Which.
        tasks: Vec<TaskId>,
    },
}

/// How a command ended. After anything but `Ok` the judgement waits for a fresh snapshot and thinks again; the outcome
/// of a command that timed out is learnt from that snapshot.
pub type CommandResult = Result<(), CommandError>;

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The object changed since it was read ("update out of sequence"), or the name exists.
    #[error("somebody else was first: {0}")]
    Conflict(String),
    /// The object is gone.
    #[error("it is gone: {0}")]
    Gone(String),
    /// The engine refused it for what it says.
    #[error("the engine refused it: {0}")]
    Refused(String),
    /// No answer, or not from a manager with a quorum. It may have been carried out.
    #[error("no answer that counts: {0}")]
    Unavailable(String),
}
