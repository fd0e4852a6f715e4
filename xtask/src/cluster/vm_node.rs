//! A node that is a virtual machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::net;
use super::qemu::{self, Accelerator, Console, Machine};
use super::state::Node;
use crate::process::{Daemon, Identity};
use crate::rootfs::{self, Engine, Kernel};
use crate::{clock, guest};

/// A node's disk, in bytes; sparse.
const DISK_BYTES: u64 = 8 << 30;

/// What all VMs of a cluster boot from.
pub struct Boot {
    kernel: Kernel,
    root: PathBuf,
    initramfs: PathBuf,
    /// What runs them.
    pub accelerator: Accelerator,
}

/// Gets the kernel, the engine's root file system and the initramfs ready.
///
/// # Errors
/// Where one of them cannot be built.
pub fn prepare(engine: Engine, cluster: &Path, install: bool) -> Result<Boot> {
    let kernel = rootfs::kernel(install)?;
    let root = rootfs::image(engine, &kernel, install)?.image.context("no image was built")?;
    let program = guest::program()?;
    let accelerator = qemu::accelerator(&kernel, &program)?;
    let initramfs = cluster.join("initramfs");
    guest::initramfs(&kernel, &program, None, &initramfs)?;
    Ok(Boot { kernel, root, initramfs, accelerator })
}

/// Boots a node, with an empty disk the first time.
///
/// # Errors
/// Where the disk cannot be made or QEMU does not start.
pub fn start(
    node: &Node,
    number: usize,
    boot: &Boot,
    memory_mib: u32,
    hub: &str,
    cluster: &Path,
) -> Result<(Identity, Console)> {
    let disk = node.directory.join("disk.img");
    if !disk.exists() {
        make_disk(&disk)?;
    }
    let console = console(node);
    let machine = Machine {
        name: &node.name,
        accelerator: boot.accelerator,
        memory_mib,
        cpus: 1,
        kernel: &boot.kernel,
        initramfs: &boot.initramfs,
        root: Some(&boot.root),
        disk: Some(&disk),
        network: Some((&node.name, net::mac(number))),
        console: &console,
        log: Some(&log(node)),
        output: None,
        settings: vec![
            "sg.mode=node".to_owned(),
            format!("sg.name={}", node.name),
            format!("sg.ip={}/{}", node.ip, net::PREFIX),
            format!("sg.gw={}", net::gateway()),
            format!("sg.time={}", clock::unix_seconds()),
        ],
    };
    let follow = Console::follow(&console);
    let log = node.directory.join("qemu.log");
    let identity = Daemon { command: machine.command(), cluster, log, namespace: Some(hub) }.start()?;
    Ok((identity, follow))
}

/// Where a node's console is.
pub fn console(node: &Node) -> PathBuf {
    node.directory.join("console.log")
}

/// Where the log of a node's engine is.
pub fn log(node: &Node) -> PathBuf {
    node.directory.join("dockerd.log")
}

fn make_disk(path: &Path) -> Result<()> {
    File::create(path)
        .and_then(|file| file.set_len(DISK_BYTES))
        .with_context(|| format!("cannot create {}", path.display()))?;
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"])
        .arg(path)
        .output()
        .context("cannot run mkfs.ext4: install e2fsprogs")?;
    if !output.status.success() {
        // Half a file system would be booted from the next time.
        let _ = fs::remove_file(path);
        bail!("mkfs.ext4 {} failed: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
