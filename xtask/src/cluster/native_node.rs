//! A node that is a set of namespaces on this machine: ready in a second, at full speed, on the machine's kernel.
//!
//! Its root is an overlay on the unpacked Debian directory and its cgroups are cgroup v2, whatever the machine itself
//! uses. It has a CPU capacity of its own: a quota on its whole process tree, in place before its engine starts. Where the machine's kernel lacks IPVS, ingress and virtual IPs do not work although services look running.

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

/// Length of the periods that a quota is divided into, in microseconds. Short ones, so that a busy node is slow and not
/// stalled: of the usual 100 ms an engine with half a CPU could be held up for 50.
const PERIOD_USEC: u32 = 20_000;

/// A node's weight against everything else on this machine, as a multiple of the usual one: a machine that is busy with
/// other things must not take from a node what its quota grants, as it could not take it from a real machine.
const WEIGHT: u32 = 20;

/// The CPUs that each native node gets where nobody says, in thousandths: at most one, and together at most three quarters
/// of the machine, so that a node that runs hot leaves the others what they need.
pub fn default_cpu_millis(nodes: usize) -> u32 {
    let machine = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = machine * 750 / nodes.max(1);
    u32::try_from(share).unwrap_or(1_000).clamp(200, 1_000) / 50 * 50
}

/// The cgroups of a node: the one of cgroup v2 that it lives in, and the one that holds its CPU quota where this machine
/// keeps that controller in cgroup v1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    /// In cgroup v2.
    pub node: PathBuf,
    /// In cgroup v1.
    pub cpu: Option<PathBuf>,
}

impl Groups {
    /// Those of a node of the cluster whose namespace is `hub`.
    ///
    /// # Errors
    /// Where the machine has no cgroup v2.
    pub fn of(hub: &str, node: &str) -> Result<Self> {
        let mounts = mounts()?;
        let name = format!("{hub}-{node}");
        let cpu = cpu_v1_mount(&mounts).map(|root| root.join(&name));
        Ok(Self { node: cgroup(hub, node)?, cpu })
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.node).chain(&self.cpu)
    }

    /// Makes them and sets the node's limits.
    fn make(&self, cpu_millis: u32, memory_mib: u32) -> Result<()> {
        for dir in self.all() {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        delegate(&self.node);
        let quota = u64::from(PERIOD_USEC) * u64::from(cpu_millis) / 1_000;
        let set = |file: PathBuf, value: String| {
            fs::write(&file, &value).with_context(|| format!("cannot write {value} to {}", file.display()))
        };
        match &self.cpu {
            Some(dir) => {
                set(dir.join("cpu.cfs_period_us"), PERIOD_USEC.to_string())?;
                set(dir.join("cpu.cfs_quota_us"), quota.to_string())?;
                set(dir.join("cpu.shares"), (WEIGHT * 1_024).to_string())?;
            }
            None => {
                set(self.node.join("cpu.max"), format!("{quota} {PERIOD_USEC}"))?;
                set(self.node.join("cpu.weight"), (WEIGHT * 100).to_string())?;
            }
        }
        let memory = self.node.join("memory.max");
        // In cgroup v1 its agent could not see it.
        if memory.exists() { set(memory, (u64::from(memory_mib) << 20).to_string()) } else { Ok(()) }
    }
}

/// Whether nodes can have CPU limits within their own, that is the `cpu` controller in cgroup v2.
pub fn has_cpu_controller(node: &Path) -> bool {
    let controllers = fs::read_to_string(node.join("cgroup.controllers")).unwrap_or_default();
    controllers.split_whitespace().any(|name| name == "cpu")
}

fn mounts() -> Result<String> {
    fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")
}

/// The cgroup of a node of the cluster whose namespace is `hub`, in the machine's cgroup v2 hierarchy.
///
/// # Errors
/// Where the machine has none.
pub fn cgroup(hub: &str, node: &str) -> Result<PathBuf> {
    let root = cgroup2_mount(&mounts()?).context(
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

/// The mount point of the `cpu` controller of cgroup v1 in a mountinfo file.
fn cpu_v1_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let (kind, rest) = after.split_once(' ')?;
        let options = rest.rsplit(' ').next()?;
        let is = kind == "cgroup" && options.split(',').any(|option| option == "cpu");
        is.then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Starts a node. What its engine stored stays from an earlier start, everything else it wrote does not, as on a VM.
///
/// # Errors
/// Where its directories cannot be made or it does not start.
pub fn start(
    node: &Node,
    base: &Base,
    groups: &Groups,
    memory_mib: u32,
    namespace: &str,
    cluster: &Path,
) -> Result<Identity> {
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
    let cpu_millis = node.cpu_millis.context("a native node without a number of CPUs")?;
    groups.make(cpu_millis, memory_mib)?;
    let mut command = Command::new(&base.program);
    command.arg("native").args([
        format!("tree={}", base.tree.display()),
        format!("directory={}", node.directory.display()),
        format!("cgroup={}", groups.node.display()),
        format!("name={}", node.name),
        format!("ip={}/{}", node.ip, net::PREFIX),
        format!("gw={}", net::gateway()),
    ]);
    if let Some(cpu) = &groups.cpu {
        command.arg(format!("cpu_cgroup={}", cpu.display()));
    }
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

    #[test]
    fn the_cpu_controller_of_cgroup_v1_is_found_alone_and_beside_another() {
        let alone = "31 30 0:27 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n\
                     32 30 0:28 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n";
        assert_eq!(cpu_v1_mount(alone), Some("/sys/fs/cgroup/cpu".into()));
        let beside = "32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        assert_eq!(cpu_v1_mount(beside), Some("/sys/fs/cgroup/cpu,cpuacct".into()));
        assert_eq!(cpu_v1_mount("40 30 0:36 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"), None);
    }

    #[test]
    fn limits_are_written_where_the_machine_keeps_them() {
        let place = tempfile::tempdir().expect("a directory");
        let at = |name: &str| place.path().join(name);
        let read = |name: &str| fs::read_to_string(at(name)).expect("written");
        let groups = Groups { node: at("v2/node"), cpu: Some(at("v1/node")) };
        groups.make(400, 512).expect("made");
        assert_eq!(
            (read("v1/node/cpu.cfs_quota_us"), read("v1/node/cpu.cfs_period_us")),
            ("8000".into(), "20000".into())
        );
        assert!(!at("v2/node/cpu.max").exists() && !at("v2/node/memory.max").exists());
        fs::write(at("v2/node/memory.max"), "max").expect("written");
        Groups { node: at("v2/node"), cpu: None }.make(1_500, 512).expect("made");
        assert_eq!(
            (read("v2/node/cpu.max"), read("v2/node/memory.max")),
            ("30000 20000".into(), "536870912".into())
        );
    }

    #[test]
    fn nodes_leave_each_other_room() {
        for nodes in 1..=9 {
            let each = default_cpu_millis(nodes);
            assert!((200..=1_000).contains(&each), "{nodes} nodes get {each}");
        }
    }
}
