//! Births: from the making of a container's cgroup to the moment at which the agent watches it, at a thousand a minute,
//! and how many of them it missed. Each lives for some hundred milliseconds.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::Result;
use swarmguard_runtime::clock;

use swarmguard_tests::figures::{Report, Row};

use crate::{groups::Groups, process::Agent};

/// A thousand a minute.
const APART: Duration = Duration::from_millis(60);

/// How long one is waited for before it counts as missed.
const PATIENCE: Duration = Duration::from_secs(1);

const SEEN: &str = "swarmguard_agent_containers_seen_total ";

/// Measures `trials` births.
pub fn measure(trials: usize, root: &Path, report: &mut Report) -> Result<()> {
    // One that is there all the time, so that the directory is known, as it is where an engine runs.
    let groups = Groups::make(root, 1)?;
    let agent = Agent::start(root, &["--adaptive=true"])?;
    agent.wait_for(1)?;
    let (mut took, mut missed) = (Vec::new(), 0.0);
    for trial in 0..trials {
        let dir = groups.dir().join(format!("{:064x}", 0xb000 + trial));
        let before = agent.metric(SEEN)?;
        let began = clock::now();
        fs::create_dir(&dir)?;
        let seen = loop {
            let since = clock::now() - began;
            // Asking costs a millisecond, which is in it.
            if agent.metric(SEEN)? > before {
                break Some(clock::now() - began);
            }
            if since > PATIENCE {
                break None;
            }
        };
        match seen {
            Some(after) => took.push(after.as_secs_f64() * 1_000.0),
            None => missed += 1.0,
        }
        thread::sleep(APART.saturating_sub(clock::now() - began));
        fs::remove_dir(&dir)?;
    }
    Row::percentiles("agent.birth_ms", "ms", "<= 50", took).into_iter().for_each(|row| report.announce(row));
    report.announce(Row::of("agent.births_missed", "", "0", &[missed]));
    Ok(())
}
