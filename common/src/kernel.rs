//! Types that the BPF programs and the agent share: `#[repr(C)]`, explicit padding, sizes asserted.
//!
//! They are apart from the wire messages because the kernel side cannot decode anything: what a program
//! writes is what the agent reads, byte for byte, on the same machine. Everything is plain integers, valid
//! for any bit pattern; counters only grow and wrap at 2^64.

/// Most containers on one node that the maps have room for. A node that runs more has the rest of its
/// containers counted from `/proc/<pid>/net/dev`; the agent says so once.
pub const MAX_GROUPS: u32 = 4096;

/// Deepest cgroup level, below the root, at which a container is recognised. Docker uses 2, a slice
/// hierarchy given by `--cgroup-parent` or an engine inside a container a few more.
pub const MAX_LEVEL: u32 = 10;

/// Traffic of one container on one CPU. Bytes are layer 3 (IP header included) as they are on the wire:
/// segments that the kernel carries as one are counted with a header each. Loopback is left out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// Received by sockets of the container, bytes.
    pub rx_bytes: u64,
    /// Received by sockets of the container, packets.
    pub rx_packets: u64,
    /// Sent by sockets of the container, bytes.
    pub tx_bytes: u64,
    /// Sent by sockets of the container, packets.
    pub tx_packets: u64,
}

impl NetCounters {
    /// Adds the counts of another CPU.
    pub fn add(&mut self, other: &Self) {
        self.rx_bytes = self.rx_bytes.wrapping_add(other.rx_bytes);
        self.rx_packets = self.rx_packets.wrapping_add(other.rx_packets);
        self.tx_bytes = self.tx_bytes.wrapping_add(other.tx_bytes);
        self.tx_packets = self.tx_packets.wrapping_add(other.tx_packets);
    }
}

/// Number of slots of a [`Waits`] histogram.
pub const WAIT_SLOTS: usize = 16;

/// A sum of durations and their distribution on a logarithmic scale.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// How many durations.
    pub count: u64,
    /// Their sum, ns.
    pub total_ns: u64,
    /// Slot 0: below 65,536 ns; slot n: below 65,536 ns * 2^n; the last: everything above 1.07 s.
    pub slots: [u32; WAIT_SLOTS],
}

impl Waits {
    /// The slot of a duration, `0..WAIT_SLOTS`.
    #[inline(always)]
    #[must_use]
    pub fn slot(mut ns: u64) -> usize {
        // By comparison, not by leading zeros: the BPF instruction set has no such instruction.
        ns >>= 16;
        let mut slot = 0;
        while ns != 0 && slot < WAIT_SLOTS - 1 {
            ns >>= 1;
            slot += 1;
        }
        slot
    }

    /// Adds the counts of another CPU.
    pub fn add(&mut self, other: &Self) {
        self.count = self.count.wrapping_add(other.count);
        self.total_ns = self.total_ns.wrapping_add(other.total_ns);
        for (slot, more) in self.slots.iter_mut().zip(other.slots) {
            *slot = slot.wrapping_add(more);
        }
    }
}

/// All that is counted per container and CPU by programs that run for its packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupCounters {
    /// Traffic.
    pub net: NetCounters,
    /// Requests that connections accepted by the container have received: the first payload after silence
    /// or after an answer. Over all CPUs, in flight = `started - answers.count - dropped`.
    pub requests_started: u64,
    /// Of those, the ones whose connection ended before an answer.
    pub requests_dropped: u64,
    /// Of those, the ones answered: from the request's first payload to the answer's first.
    pub answers: Waits,
}

impl GroupCounters {
    /// Adds the counts of another CPU.
    pub fn add(&mut self, other: &Self) {
        self.net.add(&other.net);
        self.requests_started = self.requests_started.wrapping_add(other.requests_started);
        self.requests_dropped = self.requests_dropped.wrapping_add(other.requests_dropped);
        self.answers.add(&other.answers);
    }
}

/// [`Event::kind`]: a cgroup was made.
pub const EVENT_BIRTH: u32 = 1;
/// [`Event::kind`]: a cgroup was removed.
pub const EVENT_DEATH: u32 = 2;
/// [`Event::kind`]: the kernel chose a process to kill for lack of memory.
pub const EVENT_OOM: u32 = 3;
/// Length of [`Event::path`].
pub const EVENT_PATH_LEN: usize = 224;

/// What happened to a cgroup, as it stands in the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// One of the `EVENT_` constants.
    pub kind: u32,
    /// Level of the cgroup below the root; 0 with [`EVENT_OOM`].
    pub level: u32,
    /// Inode number of the cgroup's directory; with [`EVENT_OOM`] that of the victim.
    pub cgroup_id: u64,
    /// `CLOCK_MONOTONIC` of the event, ns.
    pub at_ns: u64,
    /// Process, of the victim or of whoever made or removed the cgroup, in the initial PID namespace.
    pub pid: u32,
    /// Bytes of `path` that are used, without a final NUL. `EVENT_PATH_LEN - 1` means: perhaps cut off.
    pub path_len: u32,
    /// Path of the cgroup below the root, with a leading slash; empty with [`EVENT_OOM`].
    pub path: [u8; EVENT_PATH_LEN],
}

/// [`GroupSample::fields`]: the CPU figures are there.
pub const HAS_CPU: u64 = 1;
/// [`GroupSample::fields`]: the cgroup has a bandwidth of its own, so the throttling figures are there.
pub const HAS_THROTTLING: u64 = 2;
/// [`GroupSample::fields`]: the memory controller of this hierarchy has the cgroup.
pub const HAS_MEMORY: u64 = 4;
/// [`GroupSample::fields`]: the pressure totals are there.
pub const HAS_PRESSURE: u64 = 8;

/// One cgroup as the kernel's own iterator hands it over.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupSample {
    /// Inode number of the cgroup's directory.
    pub cgroup_id: u64,
    /// Which of the following are there: the `HAS_` bits.
    pub fields: u64,
    /// `usage_usec` of `cpu.stat`, but in ns. As fresh as the last flush of an ancestor.
    pub cpu_ns: u64,
    /// `nr_periods` of `cpu.stat`.
    pub periods: u64,
    /// `nr_throttled` of `cpu.stat`.
    pub throttled: u64,
    /// `throttled_usec` of `cpu.stat`, but in ns.
    pub throttled_ns: u64,
    /// `memory.current`, bytes.
    pub memory_bytes: u64,
    /// Totals of the pressure files in ns: io some, io full, memory some, memory full, cpu some, cpu full.
    /// The kernel brings them up to date every 2 s, and whenever one of the group's files is read.
    pub pressure_ns: [u64; 6],
}

/// Most replicas that one virtual address is balanced over.
pub const MAX_BACKENDS: usize = 64;

/// Most pairs of scope and virtual address.
pub const MAX_FRONTENDS: u32 = 1024;

/// Most replicas on which connections are counted at a time.
pub const MAX_LEASES: u32 = 4096;

/// Key of a [`Frontend`]. `scope` stands for the set of networks that a container is attached to, never 0;
/// `address` is the virtual address, in network byte order, as the kernel has it.
#[inline(always)]
#[must_use]
pub fn frontend_key(scope: u32, address: u32) -> u64 {
    (u64::from(scope) << 32) | u64::from(address)
}

/// Where one virtual address may lead.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// How many of `backends` are used, from the front.
    pub count: u32,
    /// Explicit padding.
    pub padding: u32,
    /// Replicas that take new connections.
    pub backends: [Backend; MAX_BACKENDS],
}

/// One replica.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Its address, in network byte order.
    pub address: u32,
    /// Where its connections are counted: below [`MAX_LEASES`].
    pub slot: u32,
}

/// Connections to one replica.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leases {
    /// Open now, from this node.
    pub open: u64,
    /// Changes when the slot goes to another replica: what ends late is then not taken off the new one's count.
    pub generation: u64,
}

/// What became of connections of containers that may be balanced, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectCounters {
    /// Sent to a replica.
    pub directed: u64,
    /// Left as they were because the kernel had no memory to count them.
    pub refused: u64,
}

impl ConnectCounters {
    /// Adds the counts of another CPU.
    pub fn add(&mut self, other: &Self) {
        self.directed = self.directed.wrapping_add(other.directed);
        self.refused = self.refused.wrapping_add(other.refused);
    }
}

/// Number of kernel offsets that the programs are given.
pub const OFFSETS: usize = 24;

/// Places in kernel structures, by index into the table that the agent resolves from the running kernel's
/// type information and passes as a read-only global. [`offset::ABSENT`] where this kernel has no such field.
pub mod offset {
    /// The field is not there.
    pub const ABSENT: u32 = u32::MAX;
    /// `cgroup.kn`: pointer to `kernfs_node`.
    pub const CGROUP_KN: usize = 0;
    /// `kernfs_node.id`.
    pub const KN_ID: usize = 1;
    /// `cgroup.level`.
    pub const CGROUP_LEVEL: usize = 2;
    /// `cgroup.root`: pointer to `cgroup_root`.
    pub const CGROUP_ROOT: usize = 3;
    /// `cgroup_root.hierarchy_id`: 0 is cgroup v2.
    pub const ROOT_HIERARCHY: usize = 4;
    /// `cgroup.bstat.cputime.sum_exec_runtime`.
    pub const CGROUP_CPU: usize = 5;
    /// `cgroup.subsys[cpu_cgrp_id]`: pointer to the css at the start of `task_group`.
    pub const CGROUP_CSS_CPU: usize = 6;
    /// `cgroup.subsys[memory_cgrp_id]`: pointer to the css at the start of `mem_cgroup`.
    pub const CGROUP_CSS_MEMORY: usize = 7;
    /// `task_group.cfs_bandwidth.nr_periods`, an int.
    pub const TG_PERIODS: usize = 8;
    /// `task_group.cfs_bandwidth.nr_throttled`, an int.
    pub const TG_THROTTLED: usize = 9;
    /// `task_group.cfs_bandwidth.throttled_time`, ns.
    pub const TG_THROTTLED_TIME: usize = 10;
    /// `mem_cgroup.memory.usage`, pages.
    pub const MEMCG_USAGE: usize = 11;
    /// `cgroup.psi`: pointer to `psi_group`.
    pub const CGROUP_PSI: usize = 12;
    /// `psi_group.total[0]`: an array of u64, ns.
    pub const PSI_TOTAL: usize = 13;
    /// `task_struct.cgroups`: pointer to `css_set`.
    pub const TASK_CGROUPS: usize = 14;
    /// `css_set.dfl_cgrp`: pointer to `cgroup`.
    pub const CSS_SET_DFL: usize = 15;
    /// `cgroup.ancestors`: array of pointers to `cgroup`.
    pub const CGROUP_ANCESTORS: usize = 16;
    /// `task_struct.sched_info.last_queued`, ns of the run queue's clock.
    pub const TASK_LAST_QUEUED: usize = 17;
    /// `task_struct.se.cfs_rq`: pointer to `cfs_rq`.
    pub const TASK_CFS_RQ: usize = 18;
    /// `cfs_rq.rq`: pointer to `rq`.
    pub const CFS_RQ_RQ: usize = 19;
    /// `rq.clock`, ns.
    pub const RQ_CLOCK: usize = 20;
    /// `task_struct.tgid`.
    pub const TASK_TGID: usize = 21;
}

const _: () = assert!(size_of::<NetCounters>() == 32);
const _: () = assert!(size_of::<Waits>() == 80);
const _: () = assert!(size_of::<GroupCounters>() == 128);
const _: () = assert!(size_of::<Event>() == 256);
const _: () = assert!(size_of::<GroupSample>() == 104);
const _: () = assert!(size_of::<Backend>() == 8);
const _: () = assert!(size_of::<Frontend>() == 520);
const _: () = assert!(size_of::<Leases>() == 16);
const _: () = assert!(size_of::<ConnectCounters>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_powers_of_two_of_65_us() {
        assert_eq!(Waits::slot(0), 0);
        assert_eq!(Waits::slot(65_535), 0);
        assert_eq!(Waits::slot(65_536), 1);
        assert_eq!(Waits::slot(131_071), 1);
        assert_eq!(Waits::slot(131_072), 2);
        assert_eq!(Waits::slot(1_073_741_823), 14);
        assert_eq!(Waits::slot(1_073_741_824), 15);
        assert_eq!(Waits::slot(u64::MAX), 15);
    }

    #[test]
    fn sums_wrap_instead_of_panicking() {
        let mut sum = GroupCounters { requests_started: u64::MAX, ..GroupCounters::default() };
        let mut one = GroupCounters { requests_started: 2, ..GroupCounters::default() };
        one.net.rx_bytes = 7;
        one.answers.slots[3] = 4;
        sum.add(&one);
        sum.add(&one);
        assert_eq!(sum.requests_started, 3);
        assert_eq!(sum.net.rx_bytes, 14);
        assert_eq!(sum.answers.slots[3], 8);
    }
}
