//! The cluster's network: a bridge in a namespace of its own, one port per node, no way out.
//!
//! The machine's own network neither sees nor reaches it, so its addresses cannot collide with anybody's LAN. The
//! bridge is not in the machine's namespace either because another engine's firewall there would cut the nodes off
//! from each other.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// First three bytes of every cluster's addresses; clusters do not see each other, so all may use the same.
const SUBNET: [u8; 3] = [10, 78, 0];

/// Prefix length of the network.
pub const PREFIX: u8 = 24;

/// Nodes a cluster can have: node K is 10.78.0.(10 + K).
pub const MAX_NODES: usize = 9;

/// The same on every bridge, so that a node that moves between them need not ask for it again.
const BRIDGE_MAC: &str = "52:54:00:78:00:fe";

/// The machine's address in the network, where clients come from.
pub fn gateway() -> Ipv4Addr {
    let [a, b, c] = SUBNET;
    Ipv4Addr::new(a, b, c, 1)
}

/// The address of the node with this number, from 1.
pub fn address(number: usize) -> Ipv4Addr {
    let [a, b, c] = SUBNET;
    Ipv4Addr::new(a, b, c, u8::try_from(10 + number.min(MAX_NODES)).unwrap_or(u8::MAX))
}

/// The hardware address of the node with this number.
pub fn mac(number: usize) -> String {
    format!("52:54:00:78:00:{number:02x}")
}

/// Whether a named network namespace exists.
pub fn exists(namespace: &str) -> bool {
    Path::new("/run/netns").join(namespace).exists()
}

/// Makes the namespace with its bridge.
///
/// # Errors
/// Where `ip` fails.
pub fn create_hub(hub: &str) -> Result<()> {
    ip(&format!("netns add {hub}"))?;
    batch(
        hub,
        &[
            "link set lo up".to_owned(),
            format!("link add br0 address {BRIDGE_MAC} type bridge"),
            format!("addr add {}/{PREFIX} dev br0", gateway()),
            "link set br0 up".to_owned(),
        ],
    )
}

/// Makes a tap device for a VM, called like the node, on the bridge.
///
/// # Errors
/// Where `ip` fails.
pub fn create_tap(hub: &str, node: &str) -> Result<()> {
    batch(hub, &[format!("tuntap add {node} mode tap"), format!("link set {node} master br0 up")])
}

/// Makes a namespace for a native node, joined to the bridge by a pair of which this end is called like the node.
///
/// # Errors
/// Where `ip` fails.
pub fn create_pair(hub: &str, node: &str, number: usize, namespace: &str) -> Result<()> {
    ip(&format!("netns add {namespace}"))?;
    let mac = mac(number);
    batch(
        hub,
        &[
            format!("link add {node} type veth peer name eth0 address {mac} netns {namespace}"),
            format!("link set {node} master br0 up"),
        ],
    )
}

/// Cuts a node off from the other nodes. The machine's side (API, commands, clients) still reaches it: the port moves to a
/// bridge of its own with the same address.
///
/// # Errors
/// Where `ip` fails, as it does where the node is cut off already.
pub fn partition(hub: &str, node: &str, address: Ipv4Addr) -> Result<()> {
    let bridge = format!("cut-{node}");
    batch(
        hub,
        &[
            format!("link add {bridge} address {BRIDGE_MAC} type bridge"),
            format!("link set {bridge} up"),
            format!("link set {node} master {bridge}"),
            format!("route add {address}/32 dev {bridge} src {}", gateway()),
        ],
    )
}

/// Undoes [`partition`].
///
/// # Errors
/// Where `ip` fails, as it does where the node is not cut off.
pub fn heal(hub: &str, node: &str) -> Result<()> {
    batch(hub, &[format!("link set {node} master br0"), format!("link del cut-{node}")])
}

/// Whether [`partition`] is in force.
pub fn is_partitioned(hub: &str, node: &str) -> bool {
    ip(&format!("-n {hub} link show dev cut-{node}")).is_ok()
}

/// Removes a namespace and with it everything in it; one that is not there is fine.
///
/// # Errors
/// Where `ip` fails.
pub fn remove(namespace: &str) -> Result<()> {
    if exists(namespace) { ip(&format!("netns del {namespace}")) } else { Ok(()) }
}

fn ip(words: &str) -> Result<()> {
    let output =
        Command::new("ip").args(words.split(' ')).output().context("cannot run ip: install iproute2")?;
    if !output.status.success() {
        bail!("ip {words} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn batch(namespace: &str, lines: &[String]) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-n", namespace, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip: install iproute2")?;
    // An ip that ended early has said why; that it no longer listens says nothing.
    let told = child.stdin.take().map(|mut stdin| stdin.write_all(lines.join("\n").as_bytes()));
    let output = child.wait_with_output().context("cannot wait for ip")?;
    if !output.status.success() {
        bail!(
            "network settings in namespace {namespace} failed: {} (of: {})",
            String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "),
            lines.join("; ")
        );
    }
    told.transpose().context("cannot talk to ip")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_do_not_collide() {
        assert_eq!(address(1).to_string(), "10.78.0.11");
        assert_eq!(address(MAX_NODES).to_string(), "10.78.0.19");
        assert_ne!(address(1), gateway());
        assert_eq!(mac(3), "52:54:00:78:00:03");
    }
}
