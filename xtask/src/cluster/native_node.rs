//! A node that is a set of namespaces on this machine: ready in a second, at full speed, on the machine's kernel.
//!
//! Its root is an overlay on the unpacked Debian directory and its cgroups are cgroup v2, whatever the machine itself
//! uses. Where the machine's kernel lacks IPVS, ingress and virtual IPs do not work although services look running.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::net;
use super::state::Node;
use crate::process::{Daemon, Identity};
use crate::{guest, rootfs};

/// What all native nodes of a cluster run from.
pub struct Base {
    tree: PathBuf,
    program: PathBuf,
}

/// Gets the engine's root file system and the guest program ready.
///
/// # Errors
/// Where one of them cannot be built.
pub fn prepare(engine: rootfs::Engine, install: bool) -> Result<Base> {
    Ok(Base { tree: rootfs::tree(engine, install)?.tree, program: guest::program()? })
}

/// The cgroup of a node of the cluster whose namespace is `hub`, in the machine's cgroup v2 hierarchy.
///
/// # Errors
/// Where the machine has none.
pub fn cgroup(hub: &str, node: &str) -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let root = cgroup2_mount(&mounts).context(
        "no cgroup v2 hierarchy is mounted here: native nodes need one, VMs (without --native) do not",
    )?;
    Ok(root.join(format!("{hub}-{node}")))
}

/// The first mount point of type cgroup2 in a mountinfo file.
fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next() == Some("cgroup2")).then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Starts a node. What its engine stored stays from an earlier start, everything else it wrote does not, as on a VM.
///
/// # Errors
/// Where its directories cannot be made or it does not start.
pub fn start(node: &Node, base: &Base, cgroup: &Path, namespace: &str, cluster: &Path) -> Result<Identity> {
    let upper = node.directory.join("upper");
    for name in ["upper", "work"] {
        let path = node.directory.join(name);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot empty {}", path.display()))?;
        }
    }
    for name in ["upper/sg", "work", "root", "data", "run"] {
        let path = node.directory.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    fs::copy(&base.program, upper.join("sg/guest")).context("cannot copy the guest program")?;
    fs::create_dir_all(cgroup).with_context(|| format!("cannot create {}", cgroup.display()))?;
    delegate(cgroup);
    let mut command = Command::new(&base.program);
    command.arg("native").args([
        format!("tree={}", base.tree.display()),
        format!("directory={}", node.directory.display()),
        format!("cgroup={}", cgroup.display()),
        format!("name={}", node.name),
        format!("ip={}/{}", node.ip, net::PREFIX),
        format!("gw={}", net::gateway()),
    ]);
    let log = node.directory.join("console.log");
    Daemon { command, cluster, log, namespace: Some(namespace) }.start()
}

/// Lets the node's cgroup have the controllers its parent has. Those the machine keeps in cgroup v1 are not to be had.
fn delegate(cgroup: &Path) {
    let Some(parent) = cgroup.parent() else { return };
    let controllers = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        // Fails for those that are delegated already or cannot be; the node says what it lacks.
        let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Removes a node's cgroup and everything in it, first ending what still runs there.
///
/// # Errors
/// Where a process stays in it.
pub fn remove_cgroup(cgroup: &Path) -> Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    // Linux 5.14 and later; earlier ones have only what `down` has killed already.
    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    for attempt in 0.. {
        match remove_tree(cgroup) {
            Err(error) if attempt >= 200 => {
                return Err(error).with_context(|| format!("cannot remove {}", cgroup.display()));
            }
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
            Ok(()) => break,
        }
    }
    Ok(())
}

/// Directories only: the files of a cgroup go with it.
fn remove_tree(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found_in_both_layouts() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      40 30 0:36 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let unified = "40 30 0:36 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(unified), Some("/sys/fs/cgroup".into()));
        assert_eq!(cgroup2_mount("30 24 0:26 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
