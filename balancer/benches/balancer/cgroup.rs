//! Control groups with a CPU limit, one for each replica: what makes a replica small on a machine of any size.
//!
//! cgroup v2 where it has the CPU controller, cgroup v1 where the machine keeps that controller there. Both know quota
//! and period; only the files differ.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// Length of the period, in microseconds: short, so that a limited replica answers smoothly and not in jerks.
const PERIOD_US: u32 = 10_000;
/// Attempts to remove a group whose processes have just ended.
const REMOVALS: u32 = 100;

/// A group of this run, removed when dropped.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    /// What it may use, in per cent of one CPU.
    pub percent: u32,
}

/// Where the CPU controller is.
#[derive(Debug, PartialEq, Eq)]
enum Hierarchy {
    V1(PathBuf),
    V2(PathBuf),
}

impl Group {
    /// Makes a group that may use `percent` of one CPU, 10 and more.
    ///
    /// # Errors
    /// Where there is no CPU controller or this user may not use it.
    pub fn new(percent: u32) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mounts =
            fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
        let hierarchy = find(&mounts, has_cpu).context(
            "no control group hierarchy with the CPU controller is mounted, which limits the replicas",
        )?;
        let name = format!("swarmguard-bench-{}-{}", process::id(), NUMBER.fetch_add(1, Relaxed));
        let (Hierarchy::V1(root) | Hierarchy::V2(root)) = &hierarchy;
        if matches!(hierarchy, Hierarchy::V2(_)) {
            // Fails where it is enabled already and may not be written; the write below says whether it is.
            let _ = fs::write(root.join("cgroup.subtree_control"), "+cpu");
        }
        let path = root.join(name);
        fs::create_dir(&path).with_context(|| {
            format!("cannot create {}: replicas are limited by root only", path.display())
        })?;
        let group = Self { path, percent };
        let quota = PERIOD_US * percent / 100;
        match hierarchy {
            Hierarchy::V1(_) => {
                group.write("cpu.cfs_period_us", &PERIOD_US.to_string())?;
                group.write("cpu.cfs_quota_us", &quota.to_string())?;
            }
            Hierarchy::V2(_) => group.write("cpu.max", &format!("{quota} {PERIOD_US}"))?,
        }
        Ok(group)
    }

    /// Puts a process in, with all its threads.
    pub fn add(&self, pid: u32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Its processes.
    pub fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {text:?} to {}", path.display()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..REMOVALS {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} could not be removed", self.path.display());
    }
}

fn has_cpu(root: &Path) -> bool {
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    controllers.split_whitespace().any(|it| it == "cpu")
}

/// The mount with the CPU controller; `has_cpu` says whether a cgroup v2 mount has it.
fn find(mounts: &str, has_cpu: impl Fn(&Path) -> bool) -> Option<Hierarchy> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let path = PathBuf::from(before.split(' ').nth(4)?);
        let (kind, rest) = after.split_once(' ')?;
        match kind {
            "cgroup2" if has_cpu(&path) => Some(Hierarchy::V2(path)),
            "cgroup" if rest.split([' ', ',']).any(|option| option == "cpu") => Some(Hierarchy::V1(path)),
            _ => None,
        }
    })
}
