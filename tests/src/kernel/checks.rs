//! The checks: each makes a container with a known load and compares what the agent says.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use futures_util::future::LocalBoxFuture;

use super::agent::Agent;
use super::group::{Driver, Group};
use super::load::Load;
use super::net::Link;
use super::{TOLERANCE, accounts};

/// Over how long figures are averaged.
const WINDOW: Duration = Duration::from_secs(10);
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

/// Held to half a CPU by `cpu.max` while wanting all of it: nearly 100 % of what it may use.
async fn cpu_at_limit(agent: &Agent) -> Result<String> {
    cpu(agent, Driver::Cgroupfs, &[("cpu.max", "50000 100000")], 1.0, 0.5).await
}

/// 0.3 CPUs under a limit of 0.6.
async fn cpu_below_limit(agent: &Agent) -> Result<String> {
    cpu(agent, Driver::Systemd, &[("cpu.max", "60000 100000")], 0.3, 0.6).await
}

/// Half a CPU without a limit is a share of the node's CPUs.
async fn cpu_of_node(agent: &Agent) -> Result<String> {
    cpu(agent, Driver::Cgroupfs, &[], 0.5, crate::web_stress::allowance::cpus()).await
}

/// A load that wants `cpus`, of `whole` CPUs.
async fn cpu(
    agent: &Agent,
    driver: Driver,
    limits: &[(&str, &str)],
    cpus: f64,
    whole: f64,
) -> Result<String> {
    let group = Group::make(driver, 'c', limits)?;
    let load = Load::Cpu { cpus }.start(&group, None).await?;
    let pid = load.pid()?;
    let compared = agent.compare(&group.id, "cpu_percent", WINDOW, || accounts::cpu_seconds(pid)).await;
    load.end().await?;
    let compared = compared?;
    // Of a load that did nothing nothing could be learnt.
    ensure!(compared.known > 0.5 * cpus.min(whole), "the load used {:.2} of {cpus} CPUs", compared.known);
    close("cpu_percent", compared.figure, compared.known / whole * 100.0)
}

/// 96 MiB of its own and 48 MiB of page cache under a limit of 192 MiB: only the former count.
async fn memory(agent: &Agent) -> Result<String> {
    let group = Group::make(Driver::Cgroupfs, 'e', &[("memory.max", "201326592")])?;
    let load = Load::Memory { mb: 96, file_mb: 48 }.start(&group, None).await?;
    let megabytes = agent.mean(&group.id, "memory_mb", WINDOW).await;
    let percent = agent.mean(&group.id, "memory_percent", WINDOW).await;
    let known = accounts::anonymous_mb(load.pid()?);
    load.end().await?;
    let known = known?;
    ensure!(known >= 96.0, "the load holds {known:.2} MiB of 96");
    Ok(format!(
        "{}, {}",
        close("memory_mb", megabytes?, known)?,
        close("memory_percent", percent?, known / 192.0 * 100.0)?
    ))
}

/// One container sends to another in a namespace of its own: the same bytes leave the one and reach the other.
async fn network(agent: &Agent) -> Result<String> {
    let link = Link::make(1)?;
    let addr: SocketAddr = format!("{}:9000", link.there()).parse()?;
    let (from, to) = (Group::make(Driver::Cgroupfs, 'a', &[])?, Group::make(Driver::Cgroupfs, 'b', &[])?);
    let receive = Load::Receive { addr }.start(&to, Some(&link.namespace())).await?;
    let send = Load::Send { mbps: 4.0, peer: addr }.start(&from, None).await?;
    let sent = traffic(agent, &from, "network_tx_mbps", &link).await;
    let received = traffic(agent, &to, "network_rx_mbps", &link).await;
    send.end().await?;
    receive.end().await?;
    Ok(format!("{}, {}", sent?, received?))
}

/// Two containers on the node's own network, as host networking has it: each is charged with its own bytes.
async fn network_shared(agent: &Agent) -> Result<String> {
    let (wide, narrow) = (Link::make(1)?, Link::make(2)?);
    let (much, little) = (Group::make(Driver::Cgroupfs, 'd', &[])?, Group::make(Driver::Systemd, 'f', &[])?);
    let peer = |link: &Link| format!("{}:9000", link.there()).parse();
    let first = Load::Send { mbps: 6.0, peer: peer(&wide)? }.start(&much, None).await?;
    let second = Load::Send { mbps: 1.0, peer: peer(&narrow)? }.start(&little, None).await?;
    let high = traffic(agent, &much, "network_tx_mbps", &wide).await;
    let low = traffic(agent, &little, "network_tx_mbps", &narrow).await;
    first.end().await?;
    second.end().await?;
    Ok(format!("{} and {}", high?, low?))
}

/// A container's traffic against what the interface that only it uses has sent.
async fn traffic(agent: &Agent, group: &Group, figure: &str, link: &Link) -> Result<String> {
    let interface = link.interface();
    let compared = agent.compare(&group.id, figure, WINDOW, || accounts::sent_megabits(&interface)).await?;
    ensure!(compared.known > 0.5, "{interface} sent {:.2} Mbit/s", compared.known);
    close(figure, compared.figure, compared.known)
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
    fn two_per_cent_is_the_line() {
        assert!(close("x", 98.1, 100.0).is_ok() && close("x", 101.9, 100.0).is_ok());
        assert!(close("x", 97.9, 100.0).is_err() && close("x", 102.1, 100.0).is_err());
        assert!(close("x", f64::NAN, 100.0).is_err());
    }
}
