//! What a container may use: the least of its own limits and those of every cgroup above it.
//!
//! `--cgroup-parent` and slices of systemd put containers below cgroups with limits of their own, and the kernel holds a
//! container to all of them. A limit above is shared with whatever else lies below it, so it is the most that the
//! container can have, not what it is sure to get.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use swarmguard_common::time::Time;

use super::{KeptFile, cpu, memory};
use crate::model::Limits;

/// What was read of a directory that holds containers serves all of them for this long.
const SERVES_FOR: Duration = Duration::from_secs(1);

/// Most directories remembered. With more, each is read as often as it is asked for.
const MAX_REMEMBERED: usize = 256;

/// Most levels looked at above a container, as deep as containers are looked for.
const MAX_LEVELS: usize = crate::discovery::scan::MAX_DEPTH;

/// Every cgroup v2 directory has this file, the root included; what lies above the mount has not.
const PROCESSES: &str = "cgroup.procs";

/// Room for a limit file, in bytes: two numbers of 64 bits.
const LINE_BYTES: usize = 64;

/// Reads limits.
#[derive(Debug, Default)]
pub struct LimitSource {
    above: BTreeMap<PathBuf, (Time, Limits)>,
}

impl LimitSource {
    /// The limits of the container in `dir` now. Files are opened anew each time: limits change seldom.
    pub fn read(&mut self, now: Time, dir: &Path) -> Limits {
        let above = dir.parent().map_or_else(Limits::default, |parent| self.above(now, parent));
        own(dir).least(above)
    }

    fn above(&mut self, now: Time, parent: &Path) -> Limits {
        if let Some((at, limits)) = self.above.get(parent)
            && now.since(*at) < SERVES_FOR
        {
            return *limits;
        }
        let within = parent.ancestors().take(MAX_LEVELS).take_while(|dir| dir.join(PROCESSES).exists());
        let limits = within.map(own).fold(Limits::default(), Limits::least);
        self.above.retain(|_, (at, _)| now.since(*at) < SERVES_FOR);
        if self.above.len() < MAX_REMEMBERED {
            self.above.insert(parent.into(), (now, limits));
        }
        limits
    }
}

/// The limits of one cgroup now: its own and those of all above it, as far as the mount shows them.
pub fn of(dir: &Path) -> Limits {
    LimitSource::default().read(Time::ZERO, dir)
}

/// The limits that one cgroup has itself.
fn own(dir: &Path) -> Limits {
    Limits {
        cpu_millis: line(dir, cpu::MAX, cpu::max).flatten(),
        memory_bytes: line(dir, memory::MAX, memory::max).flatten(),
    }
}

fn line<T>(dir: &Path, name: &str, parse: fn(&[u8]) -> Option<T>) -> Option<T> {
    let mut buffer = [0; LINE_BYTES];
    // The root has no limits, and a controller that is not enabled has no files.
    parse(KeptFile::open(&dir.join(name)).ok()?.read(&mut buffer).ok()?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_least_limit_of_all_levels_counts() {
        let root = tempfile::tempdir().expect("a directory");
        let slice = root.path().join("shop.slice");
        let dir = slice.join("inner.slice/docker-x.scope");
        fs::create_dir_all(&dir).expect("made");
        let write = |dir: &Path, name: &str, text: &str| fs::write(dir.join(name), text).expect("written");
        for level in [root.path(), &slice, &slice.join("inner.slice")] {
            write(level, PROCESSES, "");
        }
        write(&slice, cpu::MAX, "50000 100000\n");
        write(&slice, memory::MAX, "max\n");
        write(&slice.join("inner.slice"), memory::MAX, "1000\n");
        let mut source = LimitSource::default();
        let now = Time::from_millis(1_000);
        let limits = |cpu_millis, memory_bytes| Limits { cpu_millis, memory_bytes };
        assert_eq!(source.read(now, &dir), limits(Some(500), Some(1_000)), "none of its own");
        write(&dir, cpu::MAX, "200000 100000\n");
        write(&dir, memory::MAX, "500\n");
        assert_eq!(source.read(now, &dir), limits(Some(500), Some(500)));
        write(&dir, cpu::MAX, "20000 100000\n");
        write(&slice, memory::MAX, "100\n");
        assert_eq!(source.read(now, &dir).memory_bytes, Some(500), "remembered for a while");
        assert_eq!(source.read(now + SERVES_FOR, &dir), limits(Some(200), Some(100)));
    }

    #[test]
    fn what_lies_above_the_hierarchy_is_not_believed() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("docker/x");
        fs::create_dir_all(&dir).expect("made");
        fs::write(root.path().join("docker/cpu.max"), "1000 100000\n").expect("written");
        assert_eq!(LimitSource::default().read(Time::ZERO, &dir), Limits::default());
        assert_eq!(LimitSource::default().read(Time::ZERO, Path::new("/")), Limits::default());
    }
}
