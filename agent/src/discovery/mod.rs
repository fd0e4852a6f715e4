//! Which containers there are: their cgroups are found by name, whoever made them, and the engine gives them names.
//!
//! The file system is the truth and the engine a helper: without its socket every container is still found, and a
//! container is watched from its first moment, not from the event that follows it.

pub mod engine;
pub mod follow;
pub mod scan;
pub mod watch;
