//! PID 1 of a native node: a namespace set whose root is an overlay on the unpacked Debian directory.
//!
//! The process that was started stays outside as the parent: killing it takes the whole PID namespace along, which is
//! a native node's power cut.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use swarmguard_guest::{MARK, READY};

use crate::engine::{PATH, Service, supervise};
use crate::init::{hosts, parse_address};
use crate::sys::{self, Result, context, mount};
use crate::{mounts, net};

/// Runs a node with these settings: `tree`, `directory`, `cgroup`, `name`, `ip`, `gw`, and `cpu_cgroup` where the CPU quota
/// is in another hierarchy, each `KEY=VALUE`. It must have been started in the node's network namespace. Returns when the node ended.
pub fn run(words: &[String]) -> Result<()> {
    let settings: BTreeMap<&str, &str> = words.iter().filter_map(|word| word.split_once('=')).collect();
    let setting = |key: &str| settings.get(key).copied().ok_or_else(|| format!("setting {key} is missing"));
    let (tree, directory, cgroup) = (setting("tree")?, setting("directory")?, setting("cgroup")?);
    let (name, ip, gateway) = (setting("name")?, setting("ip")?, setting("gw")?);
    sys::unshare(libc::CLONE_NEWPID)?;
    if sys::fork()? != 0 {
        let ended = sys::wait_any().ok_or("the node vanished")?;
        return Err(format!("the node ended with status {}", ended.status));
    }
    sys::die_with_parent()?;
    // Before anything runs here: what is started later is born into these groups.
    for group in [Some(cgroup), settings.get("cpu_cgroup").copied()].into_iter().flatten() {
        context(fs::write(format!("{group}/cgroup.procs"), "0"), || format!("cannot enter {group}"))?;
    }
    sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWCGROUP)?;
    let root = build_root(tree, directory)?;
    sys::pivot_root(&root)?;
    mounts::device_links()?;
    mounts::kernel_interfaces();
    mounts::cgroups()?;
    sys::set_hostname(name)?;
    hosts(name)?;
    net::loopback()?;
    let (ip, prefix, gateway) = parse_address(ip, gateway)?;
    net::configure("eth0", ip, prefix, gateway)?;
    net::enable_forwarding()?;
    println!("{READY} at {} s", sys::uptime());
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    supervise(&[
        Service {
            name: "agent",
            command: words("/sg/guest agent /run/sg/agent.sock"),
            log: Some("/sg/logs/agent.log".to_owned()),
            path: PATH,
        },
        Service {
            name: "dockerd",
            command: words("dockerd -H unix:///var/run/docker.sock -H unix:///run/sg/docker.sock"),
            log: Some("/sg/logs/dockerd.log".to_owned()),
            path: PATH,
        },
    ])
}

/// Mounts the node's root below its directory and says where.
fn build_root(tree: &str, directory: &str) -> Result<String> {
    let root = format!("{directory}/root");
    // Nothing mounted here shall appear on the machine.
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "")?;
    let options = format!("lowerdir={tree},upperdir={directory}/upper,workdir={directory}/work");
    mount("root", &root, "overlay", 0, &options)?;
    mount("proc", &format!("{root}/proc"), "proc", 0, "")?;
    // A sysfs of this network namespace: the overlay driver reads /sys/class/net.
    mount("sys", &format!("{root}/sys"), "sysfs", 0, "")?;
    mount("dev", &format!("{root}/dev"), "tmpfs", libc::MS_NOSUID, "mode=755")?;
    for (name, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("kmsg", 1, 11),
        ("tty", 5, 0),
    ] {
        device(&format!("{root}/dev/{name}"), major, minor)?;
    }
    for (target, kind) in [("run", "mode=755"), ("tmp", "mode=1777")] {
        mount(target, &format!("{root}/{target}"), "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, kind)?;
    }
    for inner in ["run/lock", "run/netns", "run/docker"] {
        context(fs::create_dir_all(format!("{root}/{inner}")), || format!("cannot create /{inner}"))?;
    }
    for (from, to) in [("run", "run/sg"), ("data", "var/lib/docker"), ("", "sg/logs")] {
        mount(&format!("{directory}/{from}"), &format!("{root}/{to}"), "", libc::MS_BIND, "")?;
    }
    println!("{MARK} root is {root}");
    Ok(root)
}

fn device(path: &str, major: u32, minor: u32) -> Result<()> {
    let name = CString::new(path).map_err(|_| format!("{path} contains NUL"))?;
    // SAFETY: a NUL-terminated string that outlives the call.
    let status = unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(major, minor)) };
    if status < 0 {
        return Err(format!("cannot make {path}: {}", std::io::Error::last_os_error()));
    }
    // mknod's mode was cut by the umask.
    context(fs::set_permissions(path, fs::Permissions::from_mode(0o666)), || format!("cannot chmod {path}"))
}
