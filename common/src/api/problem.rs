//! Errors as problem+json (RFC 9457): a stable `code` for programs, `detail` for people.

use serde::{Deserialize, Serialize};

/// An error as the API answers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Always `about:blank`: `code` says more.
    #[serde(rename = "type")]
    pub kind: String,
    /// What HTTP calls the status.
    pub title: String,
    /// HTTP's status.
    pub status: u16,
    /// A stable word.
    pub code: String,
    /// What happened, to what, and what to do.
    pub detail: String,
    /// What would change it, where it is not in `detail`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<String>,
    /// Host name of the coordinator that acts, where that is the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
}
