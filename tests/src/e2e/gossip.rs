//! When the engines lost sight of each other. Emulated nodes starve now and then, and an engine whose gossip is late is
//! taken for dead by another one, which then forgets the replicas there and resets what goes through its ingress to
//! them. Nobody can prevent that from outside; the engines' logs tell of it, so that a request that was lost so can be
//! told from one that SwarmGuard lost.

use std::path::Path;

use anyhow::{Context, Result};
use humantime::parse_rfc3339;

use crate::cluster::Cluster;
use crate::load::Stats;

/// What libnetwork logs when it takes another node for dead.
const TAKEN_FOR_DEAD: &str = "NodeActive --> NodeFailed";
/// A request that failed so long before that line was written was not lost by it: clocks of nodes differ a little.
const BEFORE_MS: u64 = 1_000;
/// A request that failed so long after it was not either: the longest that one is waited for, and the time that the
/// engine takes to know all replicas again.
const AFTER_MS: u64 = 30_000;

/// Requests were lost while an engine took another, living one for dead.
#[derive(Debug, thiserror::Error)]
#[error("the engines lost sight of each other, and {failed} requests were lost by that")]
pub struct LostByEngines {
    failed: u64,
}

/// That, where it explains every request that failed.
///
/// # Errors
/// Where a log cannot be read.
pub fn explanation(cluster: &Cluster, stats: &Stats) -> Result<Option<LostByEngines>> {
    let mut lapses = Vec::new();
    for log in cluster.nodes.iter().filter_map(|node| node.log.as_deref()) {
        lapses.extend(lapses_in(log)?);
    }
    let kept: Vec<u64> = stats.failures.iter().map(|failure| failure.at_ms).collect();
    let all_kept = u64::try_from(kept.len()).is_ok_and(|kept| kept == stats.failed);
    let explained = all_kept && !kept.is_empty() && kept.iter().all(|at| explains(&lapses, *at));
    Ok(explained.then_some(LostByEngines { failed: stats.failed }))
}

fn explains(lapses: &[u64], at_ms: u64) -> bool {
    lapses.iter().any(|lapse| (lapse.saturating_sub(BEFORE_MS)..=lapse + AFTER_MS).contains(&at_ms))
}

/// When the engine that writes this log took others for dead, in milliseconds of the wall clock.
fn lapses_in(log: &Path) -> Result<Vec<u64>> {
    let text =
        std::fs::read(log).with_context(|| format!("cannot read the engine's log {}", log.display()))?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(lapse).collect())
}

fn lapse(line: &str) -> Option<u64> {
    let time = line.contains(TAKEN_FOR_DEAD).then(|| line.strip_prefix("time=\"")?.split('"').next())??;
    let since_epoch = parse_rfc3339(time).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    u64::try_from(since_epoch.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_failed_while_an_engine_was_taken_for_dead_is_explained() {
        let failed = r#"time="2026-11-27T08:07:34.611142834Z" level=info msg="Node 50e65f311a13 change state NodeActive --> NodeFailed""#;
        let back = failed.replace("NodeActive --> NodeFailed", "NodeFailed --> NodeActive");
        let at = lapse(failed).expect("a lapse");
        assert_eq!(at, 1_795_766_854_611);
        assert_eq!(lapse(&back), None);
        assert_eq!(lapse("NodeActive --> NodeFailed"), None, "no time");
        assert!(explains(&[at], at + 1_000) && explains(&[1, at], at - 500));
        assert!(!explains(&[at], at + 60_000) && !explains(&[at], at - 5_000) && !explains(&[], at));
    }
}
