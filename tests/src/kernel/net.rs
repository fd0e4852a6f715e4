//! A link between this network namespace and another one, for traffic that leaves a container and reaches no one.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Name of the other namespace.
pub const FAR: &str = "sgkernel";
/// Address on this side (198.18.0.0/15 is set aside for tests: RFC 2544).
pub const HERE: &str = "198.18.7.1";
/// Address on the other side.
pub const THERE: &str = "198.18.7.2";

/// The link; removed when dropped.
#[derive(Debug)]
pub struct Link;

impl Link {
    /// Makes it.
    ///
    /// # Errors
    /// Where `ip` is missing or refuses.
    pub fn make() -> Result<Self> {
        let link = Link;
        ip(&format!("netns add {FAR}"))?;
        ip(&format!("link add sgk0 type veth peer name sgk1 netns {FAR}"))?;
        ip(&format!("addr add {HERE}/30 dev sgk0"))?;
        ip("link set sgk0 up")?;
        ip(&format!("-n {FAR} addr add {THERE}/30 dev sgk1"))?;
        ip(&format!("-n {FAR} link set sgk1 up"))?;
        Ok(link)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // With the namespace its end of the pair goes, and with that the other one.
        let _ = ip(&format!("netns del {FAR}"));
    }
}

fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output().context("cannot start ip")?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
