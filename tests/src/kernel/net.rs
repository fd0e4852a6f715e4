//! A link between this network namespace and another one, for traffic that leaves a container and reaches no one.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The link; removed when dropped. Several are told apart by their numbers.
#[derive(Debug)]
pub struct Link {
    number: u8,
}

impl Link {
    /// Makes it.
    ///
    /// # Errors
    /// Where `ip` is missing or refuses.
    pub fn make(number: u8) -> Result<Self> {
        let link = Link { number };
        let (near, far, there) = (link.interface(), link.namespace(), link.there());
        ip(&format!("netns add {far}"))?;
        ip(&format!("link add {near} type veth peer name sgk netns {far}"))?;
        ip(&format!("addr add 198.18.{number}.1/30 dev {near}"))?;
        ip(&format!("link set {near} up"))?;
        ip(&format!("-n {far} addr add {there}/30 dev sgk"))?;
        ip(&format!("-n {far} link set sgk up"))?;
        Ok(link)
    }

    /// Name of the other namespace.
    pub fn namespace(&self) -> String {
        format!("sgkernel{}", self.number)
    }

    /// Name of the interface on this side.
    pub fn interface(&self) -> String {
        format!("sgk{}", self.number)
    }

    /// Address on the other side (198.18.0.0/15 is set aside for tests: RFC 2544).
    pub fn there(&self) -> String {
        format!("198.18.{}.2", self.number)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // With the namespace its end of the pair goes, and with that the other one.
        let _ = ip(&format!("netns del {}", self.namespace()));
    }
}

fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output().context("cannot start ip")?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
