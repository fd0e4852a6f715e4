//! What the tests on a real kernel share: cgroups and network namespaces that vanish with the test, and
//! processes inside them.
//!
//! Such a test does nothing, and says why, where it lacks root, cgroup v2, `ip` or the BPF object.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use std::os::unix::fs::MetadataExt as _;

use swarmguard_agent::bpf::KernelFacts;

/// Longer than anything here takes on the slowest machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

static SERIAL: AtomicU32 = AtomicU32::new(0);

fn unique() -> String {
    format!("{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed))
}

/// Says that a test has nothing to do here, on a line of its own: the tier that runs these tests where all of them
/// must have something to do looks for it.
pub fn skip(test: &str, why: &str) {
    println!("\nskipped {test}: {why}");
}

/// The facts, and where cgroup v2 is; or `None` with a printed reason, and the test has nothing to do.
pub fn facts_or_skip(test: &str) -> Option<(KernelFacts, PathBuf)> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let root = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, path, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    let root = root.unwrap_or_else(|| PathBuf::from("/sys/fs/cgroup"));
    let facts = KernelFacts::probe(&root);
    if let Some(why) = facts.obstacle() {
        skip(test, &why);
        return None;
    }
    Some((facts, root))
}

/// Whether namespaces can be wired together.
pub fn ip_or_skip(test: &str) -> bool {
    let there = Command::new("ip").arg("-V").output().is_ok();
    if !there {
        skip(test, "no `ip` command (Debian: iproute2)");
    }
    there
}

/// A cgroup that is removed with this value, with all below it.
pub struct Group {
    pub path: PathBuf,
}

impl Group {
    pub fn new(root: &Path) -> Self {
        let path = root.join(format!("swarmguard-test-{}", unique()));
        fs::create_dir(&path).expect("root may make cgroups");
        // Where these controllers are of version 1, or not handed down, the tests do with what is there.
        for controller in ["+cpu", "+memory"] {
            let _ = fs::write(path.join("cgroup.subtree_control"), controller);
        }
        Self { path }
    }

    pub fn child(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).expect("root may make cgroups");
        path
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // A process that has just ended leaves its cgroup a moment later.
    for _ in 0..100 {
        if fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Inode number, which is how the kernel names a cgroup.
pub fn id(path: &Path) -> u64 {
    fs::metadata(path).expect("the cgroup exists").ino()
}

/// Two network namespaces joined by a pair of interfaces: `10.99.0.1`/`fd99::1` in a, `.2` in b.
pub struct Wire {
    pub a: String,
    pub b: String,
}

impl Wire {
    pub fn new() -> Self {
        let serial = unique();
        let wire = Self { a: format!("sgt-{serial}-a"), b: format!("sgt-{serial}-b") };
        for name in [&wire.a, &wire.b] {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        ip(&format!("-n {} link add eth0 type veth peer name eth0 netns {}", wire.a, wire.b));
        for (name, host) in [(&wire.a, 1), (&wire.b, 2)] {
            ip(&format!("-n {name} address add 10.99.0.{host}/24 dev eth0"));
            ip(&format!("-n {name} address add fd99::{host}/64 dev eth0 nodad"));
            ip(&format!("-n {name} link set eth0 up"));
        }
        wire
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for name in [&self.a, &self.b] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip(line: &str) {
    let out = Command::new("ip").args(line.split(' ')).output().expect("ip is there");
    assert!(out.status.success(), "ip {line}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A forked process. Killed with this value, if it has not ended.
pub struct Process {
    pid: libc::pid_t,
    ended: bool,
}

impl Process {
    /// Forks; the child enters the cgroup and the network namespace (by name), runs `body` and ends.
    pub fn spawn(cgroup: &Path, netns: Option<&str>, body: impl FnOnce() -> std::io::Result<()>) -> Self {
        let procs = cgroup.join("cgroup.procs");
        // SAFETY: glibc keeps its allocator usable in the child; the child never returns from here.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid > 0 {
            return Self { pid, ended: false };
        }
        let result = fs::write(procs, "0").and_then(|()| enter(netns)).and_then(|()| body());
        if let Err(error) = &result {
            eprintln!("process in {}: {error}", cgroup.display());
        }
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(i32::from(result.is_err())) }
    }

    pub fn pid(&self) -> u32 {
        self.pid.cast_unsigned()
    }

    /// Waits for the end, whatever it is; the status as `waitpid` gives it.
    pub fn end(mut self) -> i32 {
        let mut status = 0;
        // SAFETY: our own child.
        let got = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        self.ended = true;
        assert_eq!(got, self.pid);
        status
    }

    /// Waits for the end; it must be a good one.
    pub fn finish(self) {
        let status = self.end();
        assert!(
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
            "the process ended with {status:#x}"
        );
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended {
            // SAFETY: our own child, not waited for yet, so the number is still its own.
            unsafe {
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, std::ptr::null_mut(), 0);
            }
        }
    }
}

/// Enters a network namespace by name.
pub fn enter(netns: Option<&str>) -> std::io::Result<()> {
    let Some(name) = netns else { return Ok(()) };
    let file = File::open(Path::new("/run/netns").join(name))?;
    rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&file),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )?;
    Ok(())
}
