//! The kernel tier: on a real kernel, the agent's figures against loads that are known.
//!
//! From outside, through the agent's own `GET /metrics/containers`, so that discovery, sampling, arithmetic and HTTP are
//! all in it. The containers are cgroups named as the engine would name them: no engine is needed, and the load is the
//! only thing in them. What is known of a load is what the kernel accounts to its process or its interface, by other
//! means than the agent reads: a load that a busy machine holds up is still known.

pub mod accounts;
pub mod agent;
pub mod checks;
pub mod group;
pub mod load;
pub mod net;

use anyhow::Result;
use swarmguard_runtime::clock::now;

use agent::Agent;

/// How far a figure may be off, as a share of the known value.
pub const TOLERANCE: f64 = 0.02;

/// Plays all checks with one agent and prints a line for each. Returns how many passed and how many failed.
///
/// # Errors
/// Where the agent cannot be started, or cgroups or links cannot be made: then nothing was checked.
pub async fn play(program: &std::path::Path) -> Result<(u32, u32)> {
    let agent = Agent::start(program).await?;
    let (mut passed, mut failed) = (0, 0);
    for (name, check) in checks::ALL {
        let start = now();
        let outcome = check(&agent).await;
        let seconds = (now() - start).as_secs_f64();
        match outcome {
            Ok(figures) => {
                passed += 1;
                println!("kernel: {name} ok ({figures}, {seconds:.1} s)");
            }
            Err(error) => {
                failed += 1;
                println!("kernel: {name} FAILED ({seconds:.1} s): {error:#}");
            }
        }
    }
    Ok((passed, failed))
}
