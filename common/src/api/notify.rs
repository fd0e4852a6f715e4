//! Who is told what happens.

use serde::{Deserialize, Serialize};

/// One receiver of notifications, and how telling it goes. Addresses are never shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotifyChannel {
    /// Its name.
    pub name: String,
    /// `webhook`, `slack`, `teams`, `ntfy`, `apprise`, `smtp`.
    pub kind: String,
    /// Messages that wait.
    pub waiting: u64,
    /// Messages taken since the start of this coordinator.
    pub sent: u64,
    /// Tries that were not taken.
    pub failed: u64,
    /// Messages given up: too many, or older than six hours.
    pub dropped: u64,
    /// Why the last try was not taken, if it was not.
    pub last_error: Option<String>,
    /// When a message was taken last; wall clock.
    pub last_sent_ms: Option<u64>,
}
