//! A node that is itself a cgroup: an LXC container, Docker in Docker, a node of a test.
//!
//! There `/proc/stat`, `/proc/meminfo` and `/proc/pressure` show the whole machine, which belongs to others as well, so
//! neither what the node has nor what it uses can be read from them. Its own cgroup says both.

use std::{
    io,
    path::{Path, PathBuf},
};

use swarmguard_common::time::Time;

use super::{
    group::{FastReading, Group, SlowReading},
    limits,
    node::{self, CpuTicks, NodeReading},
};

/// The cgroup named is no use as a node.
#[derive(Debug, thiserror::Error)]
pub enum NodeGroupError {
    /// It is not there.
    #[error(
        "--node-cgroup: cannot open {dir}: {source}; it is a path below --cgroup-root, as in /proc/1/cgroup"
    )]
    Open {
        /// The directory.
        dir: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// It does not say how much CPU time was used.
    #[error("--node-cgroup: {dir} has no cpu.stat: it is not a cgroup, or the root of the whole hierarchy")]
    NoUse {
        /// The directory.
        dir: PathBuf,
    },
    /// CPUs without a cgroup.
    #[error("--node-cpus says how many CPUs the node's cgroup may use: name that with --node-cgroup as well")]
    CpusAlone,
}

/// A node's own cgroup, its files open.
#[derive(Debug)]
pub struct NodeGroup {
    group: Group,
    cpu_millis: u32,
    memory_limit: Option<u64>,
    /// What the limits were taken from, for people.
    origin: &'static str,
}

impl NodeGroup {
    /// Opens the cgroup in `dir`. Its CPUs are `cpus` (thousandths), else the least `cpu.max` of it and what lies above,
    /// else those of the machine. Limits are read now and not again, as coordinators learn them once.
    ///
    /// # Errors
    /// Where there is no such cgroup.
    pub fn open(dir: &Path, cpus: Option<u32>, proc_root: &Path) -> Result<Self, NodeGroupError> {
        let group =
            Group::open(dir).map_err(|source| NodeGroupError::Open { dir: dir.to_owned(), source })?;
        if group.missing().any(|file| file == super::cpu::STAT) {
            return Err(NodeGroupError::NoUse { dir: dir.to_owned() });
        }
        let limits = limits::of(dir);
        let machine_cpus = node::cpu_millis(proc_root);
        let (cpu_millis, origin) = match (cpus, limits.cpu_millis) {
            (Some(said), _) => (said, "--node-cpus"),
            (None, Some(quota)) if quota < machine_cpus => (quota, "cpu.max"),
            (None, _) => (machine_cpus, "no limit: the machine's"),
        };
        let memory_limit = limits.memory_bytes.filter(|limit| *limit < node::memory_bytes(proc_root));
        Ok(Self { group, cpu_millis, memory_limit, origin })
    }

    /// The cgroup's directory.
    pub fn dir(&self) -> &Path {
        self.group.dir()
    }

    /// What it may use, in thousandths of a CPU.
    pub fn cpu_millis(&self) -> u32 {
        self.cpu_millis
    }

    /// What it may use, in bytes, where that is less than the machine has.
    pub fn memory_limit(&self) -> Option<u64> {
        self.memory_limit
    }

    /// Where the number of CPUs comes from, for people.
    pub fn origin(&self) -> &'static str {
        self.origin
    }

    /// Puts the cgroup's figures in the place of the machine's. What the cgroup cannot say stays unknown, except memory
    /// without a limit: that is shared with the whole machine, whose figure is then the node's.
    pub fn overrule(&self, now: Time, reading: &mut NodeReading, buffer: &mut [u8]) {
        // The node's own group ends with the agent; were it gone all the same, all of it would be unknown.
        let fast = self.group.read_fast(buffer).unwrap_or_default();
        let slow = self.group.read_slow(true, buffer).unwrap_or_default();
        reading.cpu = fast.cpu.map(|cpu| CpuTicks { busy: cpu.usage_usec, all: self.granted_usec(now) });
        if let Some(limit) = self.memory_limit {
            reading.memory = available(limit, &fast, &slow);
        }
        (reading.psi_cpu, reading.psi_memory, reading.psi_io) = (slow.psi_cpu, slow.psi_memory, slow.psi_io);
    }

    /// CPU time that the node could have used since the clock's origin, in microseconds.
    fn granted_usec(&self, now: Time) -> u64 {
        let granted = u128::from(now.as_micros()) * u128::from(self.cpu_millis) / 1_000;
        u64::try_from(granted).unwrap_or(u64::MAX)
    }
}

/// The limit, and what is left of it; page cache that can be had back is left.
fn available(limit: u64, fast: &FastReading, slow: &SlowReading) -> Option<(u64, u64)> {
    let used = fast.memory_bytes?.saturating_sub(slow.page_cache_bytes.unwrap_or(0));
    Some((limit, limit.saturating_sub(used)))
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::{
        model::node_rates,
        sources::{BUFFER_BYTES, node::NodeSource},
    };

    const MIB: u64 = 1 << 20;

    struct Machine(tempfile::TempDir);

    impl Machine {
        /// Four CPUs and 1 GiB, all of them busy with somebody else's work.
        fn new() -> Self {
            let machine = Self(tempfile::tempdir().expect("a directory"));
            fs::create_dir_all(machine.proc_root().join("pressure")).expect("made");
            fs::create_dir_all(machine.dir()).expect("made");
            machine.set("proc/stat", "cpu  1000 0 0 0 0 0 0 0 0 0\ncpu0 1\ncpu1 1\ncpu2 1\ncpu3 1\n");
            machine.set("proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 262144 kB\n");
            machine.set("proc/pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=900000\n");
            machine.set("node/cgroup.procs", "");
            machine
        }

        fn proc_root(&self) -> PathBuf {
            self.0.path().join("proc")
        }

        fn dir(&self) -> PathBuf {
            self.0.path().join("node")
        }

        fn set(&self, name: &str, text: &str) {
            fs::write(self.0.path().join(name), text).expect("written");
        }

        fn used(&self, usec: u64, stalled_usec: u64) {
            self.set("node/cpu.stat", &format!("usage_usec {usec}\nnr_periods 1\nnr_throttled 0\n"));
            let pressure = format!("some avg10=0.00 avg60=0.00 avg300=0.00 total={stalled_usec}\n");
            self.set("node/cpu.pressure", &pressure);
        }
    }

    #[test]
    fn use_and_pressure_are_the_groups_and_not_the_machines() {
        let machine = Machine::new();
        machine.used(1_000_000, 0);
        machine.set("node/cpu.max", "40000 100000\n");
        let group = NodeGroup::open(&machine.dir(), None, &machine.proc_root()).expect("a cgroup");
        assert_eq!((group.cpu_millis(), group.origin()), (400, "cpu.max"));
        let source = NodeSource::open(&machine.proc_root()).within(Some(group));
        let mut buffer = vec![0; BUFFER_BYTES];
        let first = Time::from_millis(10_000);
        let before = source.read(first, &mut buffer);
        // 300 of the 400 ms that it could have had in a second, and half of that second spent waiting.
        machine.used(1_300_000, 500_000);
        machine.set("proc/stat", "cpu  2000 0 0 0 0 0 0 0 0 0\n");
        let second = Duration::from_secs(1);
        let after = source.read(first + second, &mut buffer);
        let rates = node_rates(&before, &after, second, None);
        assert!(rates.cpu.is_some_and(|cpu| (cpu - 0.75).abs() < 0.001), "{rates:?}");
        assert!(rates.psi[0].is_some_and(|psi| (psi - 0.5).abs() < 0.001), "{rates:?}");
        assert_eq!(rates.psi[1], None, "what the cgroup does not say is unknown, not the machine's");
    }

    #[test]
    fn memory_is_the_limits_where_there_is_one_and_else_the_machines() {
        let machine = Machine::new();
        machine.used(0, 0);
        let read = |machine: &Machine| {
            let group = NodeGroup::open(&machine.dir(), None, &machine.proc_root()).expect("a cgroup");
            let source = NodeSource::open(&machine.proc_root()).within(Some(group));
            source.read(Time::ZERO, &mut vec![0; BUFFER_BYTES]).memory
        };
        machine.set("node/memory.current", &(100 * MIB).to_string());
        machine.set("node/memory.stat", &format!("anon 1\ninactive_file {}\n", 40 * MIB));
        machine.set("node/memory.max", "max\n");
        assert_eq!(read(&machine), Some((1_024 * MIB, 256 * MIB)), "no limit");
        machine.set("node/memory.max", &(4_096 * MIB).to_string());
        assert_eq!(read(&machine), Some((1_024 * MIB, 256 * MIB)), "a limit beyond the machine is none");
        machine.set("node/memory.max", &(200 * MIB).to_string());
        assert_eq!(read(&machine), Some((200 * MIB, 140 * MIB)));
    }

    #[test]
    fn cpus_are_what_is_said_then_the_quota_then_the_machines() {
        let machine = Machine::new();
        machine.used(0, 0);
        let open = |cpus| NodeGroup::open(&machine.dir(), cpus, &machine.proc_root()).expect("a cgroup");
        assert_eq!(open(None).cpu_millis(), 4_000);
        assert_eq!(open(Some(500)).cpu_millis(), 500);
        machine.set("node/cpu.max", "800000 100000\n");
        assert_eq!(open(None).cpu_millis(), 4_000, "a quota beyond the machine is none");
        machine.set("node/cpu.max", "150000 100000\n");
        assert_eq!(open(None).cpu_millis(), 1_500);
        assert_eq!(open(Some(2_000)).cpu_millis(), 2_000);
    }

    #[test]
    fn what_is_no_cgroup_is_named() {
        let machine = Machine::new();
        let open = |name: &str| {
            let dir = machine.0.path().join(name);
            NodeGroup::open(&dir, None, &machine.proc_root()).expect_err("no cgroup").to_string()
        };
        let missing = open("nowhere");
        assert!(missing.contains("nowhere") && missing.contains("--node-cgroup"), "{missing}");
        assert!(open("proc").contains("has no cpu.stat"), "{}", open("proc"));
    }
}
