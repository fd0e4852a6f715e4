//! The checks: each makes a container with a known load and compares what the agent says.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::future::LocalBoxFuture;

use super::TOLERANCE;
use super::agent::Agent;
use super::group::{Driver, Group};
use super::load::Load;
use super::net::{FAR, HERE, Link, THERE};

/// Over how long figures are averaged.
const WINDOW: Duration = Duration::from_secs(10);
/// Header bytes that layer 3 counts besides the payload of a datagram: UDP and IPv4.
const HEADERS: f64 = 28.0;
/// Payload of the load's datagrams.
const PAYLOAD: f64 = 1200.0;

type Check = for<'a> fn(&'a Agent) -> LocalBoxFuture<'a, Result<String>>;

/// All checks with their names.
pub const ALL: [(&str, Check); 6] = [
    ("cpu-half-a-cpu-at-its-limit", |agent| Box::pin(cpu_at_limit(agent))),
    ("cpu-half-of-its-limit", |agent| Box::pin(cpu_below_limit(agent))),
    ("cpu-share-of-the-node", |agent| Box::pin(cpu_of_node(agent))),
    ("memory-working-set", |agent| Box::pin(memory(agent))),
    ("network-both-ways", |agent| Box::pin(network(agent))),
    ("network-of-two-in-one-namespace", |agent| Box::pin(network_shared(agent))),
];

/// Held to half a CPU by `cpu.max` while wanting all of it: 100 % of what it may use.
async fn cpu_at_limit(agent: &Agent) -> Result<String> {
    cpu(agent, Driver::Cgroupfs, &[("cpu.max", "50000 100000")], 1.0, 100.0).await
}

/// 0.3 CPUs under a limit of 0.6.
async fn cpu_below_limit(agent: &Agent) -> Result<String> {
    cpu(agent, Driver::Systemd, &[("cpu.max", "60000 100000")], 0.3, 50.0).await
}

/// Half a CPU without a limit is a share of the node's CPUs.
async fn cpu_of_node(agent: &Agent) -> Result<String> {
    let cpus = crate::web_stress::allowance::cpus();
    cpu(agent, Driver::Cgroupfs, &[], 0.5, 50.0 / cpus).await
}

async fn cpu(
    agent: &Agent,
    driver: Driver,
    limits: &[(&str, &str)],
    cpus: f64,
    expected: f64,
) -> Result<String> {
    let group = Group::make(driver, 'c', limits)?;
    let load = Load::Cpu { cpus }.start(&group, None).await?;
    let mean = agent.mean(&group.id, "cpu_percent", WINDOW).await;
    load.end().await?;
    close("cpu_percent", mean?, expected)
}

/// 96 MiB of its own and 48 MiB of page cache under a limit of 192 MiB: only the former count.
async fn memory(agent: &Agent) -> Result<String> {
    let group = Group::make(Driver::Cgroupfs, 'e', &[("memory.max", "201326592")])?;
    let load = Load::Memory { mb: 96, file_mb: 48 }.start(&group, None).await?;
    let megabytes = agent.mean(&group.id, "memory_mb", WINDOW).await;
    let percent = agent.mean(&group.id, "memory_percent", WINDOW).await;
    load.end().await?;
    Ok(format!("{}, {}", close("memory_mb", megabytes?, 96.0)?, close("memory_percent", percent?, 50.0)?))
}

/// One container sends to another in a namespace of its own: the same bytes leave the one and reach the other.
async fn network(agent: &Agent) -> Result<String> {
    let _link = Link::make()?;
    let addr: SocketAddr = format!("{THERE}:9000").parse()?;
    let (from, to) = (Group::make(Driver::Cgroupfs, 'a', &[])?, Group::make(Driver::Cgroupfs, 'b', &[])?);
    let receive = Load::Receive { addr }.start(&to, Some(FAR)).await?;
    let mbps = 4.0;
    let send = Load::Send { mbps, peer: addr }.start(&from, None).await?;
    let sent = agent.mean(&from.id, "network_tx_mbps", WINDOW).await;
    let received = agent.mean(&to.id, "network_rx_mbps", WINDOW).await;
    send.end().await?;
    receive.end().await?;
    Ok(format!(
        "{}, {}",
        close("network_tx_mbps", sent?, on_wire(mbps))?,
        close("network_rx_mbps", received?, on_wire(mbps))?
    ))
}

/// Two containers on the node's own network, as host networking has it: each is charged with its own bytes.
async fn network_shared(agent: &Agent) -> Result<String> {
    let _link = Link::make()?;
    let addr: SocketAddr = format!("{THERE}:9000").parse()?;
    let (much, little) = (Group::make(Driver::Cgroupfs, 'd', &[])?, Group::make(Driver::Systemd, 'f', &[])?);
    let first = Load::Send { mbps: 6.0, peer: addr }.start(&much, None).await?;
    let second = Load::Send { mbps: 1.0, peer: addr }.start(&little, None).await?;
    let high = agent.mean(&much.id, "network_tx_mbps", WINDOW).await;
    let low = agent.mean(&little.id, "network_tx_mbps", WINDOW).await;
    first.end().await?;
    second.end().await?;
    let (high, low) =
        (close("network_tx_mbps", high?, on_wire(6.0))?, close("network_tx_mbps", low?, on_wire(1.0))?);
    Ok(format!("{high} and {low} from {HERE}"))
}

/// Megabits a second on layer 3 for this much payload.
fn on_wire(mbps: f64) -> f64 {
    mbps * (PAYLOAD + HEADERS) / PAYLOAD
}

/// The figure as text, or an error where it is further off than allowed.
fn close(name: &str, figure: f64, expected: f64) -> Result<String> {
    // Written so that a figure that is no number fails, too.
    let near = (figure - expected).abs() <= TOLERANCE * expected;
    if !near {
        bail!("{name} is {figure:.2} where {expected:.2} is known, more than {} % off", TOLERANCE * 100.0);
    }
    Ok(format!("{name} {figure:.2} of {expected:.2}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_per_cent_is_the_line() {
        assert!(close("x", 95.1, 100.0).is_ok() && close("x", 104.9, 100.0).is_ok());
        assert!(close("x", 94.9, 100.0).is_err() && close("x", 105.1, 100.0).is_err());
        assert!(close("x", f64::NAN, 100.0).is_err());
    }
}
