//! The file systems and the cgroup tree a node needs, the same in a VM and in a native node where possible.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::sys::{Result, context, mount};

/// /dev/pts, /dev/shm and the usual links; /dev itself is there.
pub fn device_links() -> Result<()> {
    mount("devpts", "/dev/pts", "devpts", 0, "ptmxmode=666,mode=620,gid=5")?;
    mount("shm", "/dev/shm", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=1777")?;
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("fd/0", "/dev/stdin"),
        ("fd/1", "/dev/stdout"),
        ("fd/2", "/dev/stderr"),
    ] {
        if fs::symlink_metadata(link).is_err() {
            context(symlink(target, link), || format!("cannot link {link}"))?;
        }
    }
    Ok(())
}

/// Empty /run and /tmp.
pub fn temporary() -> Result<()> {
    mount("run", "/run", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=755")?;
    mount("tmp", "/tmp", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=1777")?;
    for directory in ["/run/lock", "/run/netns"] {
        context(fs::create_dir_all(directory), || format!("cannot create {directory}"))?;
    }
    Ok(())
}

/// The kernel's tracing and BPF file systems; one this kernel lacks is reported and left out.
pub fn kernel_interfaces() {
    for (kind, target) in [
        ("bpf", "/sys/fs/bpf"),
        ("tracefs", "/sys/kernel/tracing"),
        ("debugfs", "/sys/kernel/debug"),
        ("securityfs", "/sys/kernel/security"),
    ] {
        if !Path::new(target).exists() {
            continue;
        }
        if let Err(error) = mount(kind, target, kind, 0, "") {
            eprintln!("{} {error}", swarmguard_guest::MARK);
        }
    }
}

/// Mounts cgroup v2 on /sys/fs/cgroup, moves this process into `init.scope`, and delegates every controller to
/// the level below the root, as systemd would.
pub fn cgroups() -> Result<()> {
    const ROOT: &str = "/sys/fs/cgroup";
    mount("cgroup2", ROOT, "cgroup2", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, "nsdelegate")?;
    let scope = format!("{ROOT}/init.scope");
    context(fs::create_dir_all(&scope), || format!("cannot create {scope}"))?;
    context(fs::write(format!("{scope}/cgroup.procs"), "0"), || format!("cannot move into {scope}"))?;
    let file = format!("{ROOT}/cgroup.controllers");
    let controllers = context(fs::read_to_string(&file), || format!("cannot read {file}"))?;
    for controller in controllers.split_whitespace() {
        // One at a time: a controller that cannot be delegated must not keep the others back.
        if let Err(error) = fs::write(format!("{ROOT}/cgroup.subtree_control"), format!("+{controller}")) {
            eprintln!(
                "{} cgroup controller {controller} cannot be delegated: {error}",
                swarmguard_guest::MARK
            );
        }
    }
    Ok(())
}
