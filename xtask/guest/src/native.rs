//! PID 1 of a native node: a namespace set whose root is an overlay on the unpacked Debian directory.

use crate::sys::Result;

/// Runs a node with these `KEY=VALUE` settings; returns only with an error.
pub fn run(_settings: &[String]) -> Result<()> {
    Err("native nodes need a newer xtask".to_owned())
}
