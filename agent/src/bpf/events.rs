//! Births and deaths of cgroups, and out-of-memory kills, as the kernel tells them.
//!
//! Every cgroup of the node is told of, not only containers': who reads knows from the path which is which.
//! The ring buffer holds about a thousand; what finds it full is counted, and the reader then looks at the tree.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray, RingBuf};
use swarmguard_common::kernel::{self, EVENT_PATH_LEN, Event, offset};

use super::btf::KernelTypes;
use super::groups::{needs, start_tracepoint};
use super::{Finding, chain};

const LIVES: &str = "births and deaths of containers";
const LIVES_INSTEAD: &str = "looking at the cgroup tree, and the engine's events";
const KILLS: &str = "out-of-memory kills";
const KILLS_INSTEAD: &str = "oom_kill in memory.events";

const NEEDS: [(usize, &str); 4] = [
    (offset::CGROUP_KN, "cgroup.kn"),
    (offset::KN_ID, "kernfs_node.id"),
    (offset::CGROUP_ROOT, "cgroup.root"),
    (offset::ROOT_HIERARCHY, "cgroup_root.hierarchy_id"),
];

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupEvent {
    /// A cgroup was made.
    Birth {
        /// Inode number of its directory.
        cgroup_id: u64,
        /// Its path below the root, with a leading slash.
        path: String,
        /// `CLOCK_MONOTONIC`, ns.
        at_ns: u64,
    },
    /// A cgroup was removed.
    Death {
        /// Inode number that its directory had.
        cgroup_id: u64,
        /// Its path below the root, with a leading slash.
        path: String,
        /// `CLOCK_MONOTONIC`, ns.
        at_ns: u64,
    },
    /// A process is being killed because memory ran out.
    OutOfMemory {
        /// Its cgroup, perhaps one within a container's. Kernels before 6.8 tell of whoever asked for memory,
        /// which is the victim's own container unless the whole machine was short.
        cgroup_id: u64,
        /// Its number in the initial PID namespace.
        pid: u32,
        /// `CLOCK_MONOTONIC`, ns.
        at_ns: u64,
    },
}

/// Where events come from. Readable when there are some.
pub struct EventSource {
    ring: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
}

impl EventSource {
    /// `None` where the kernel takes none of the programs.
    pub(super) fn start(
        ebpf: &mut Ebpf,
        kernel: Option<&KernelTypes>,
        wanted: bool,
        findings: &mut Vec<Finding>,
    ) -> Option<Self> {
        let check = || -> Result<&KernelTypes, String> {
            if !wanted {
                return Err("switched off".to_owned());
            }
            let kernel = kernel.ok_or("no /sys/kernel/btf/vmlinux")?;
            needs(kernel, &NEEDS).map(|()| kernel)
        };
        let lives = check().and_then(|kernel| {
            start_tracepoint(ebpf, "cgroup_born", "cgroup_mkdir", &kernel.numbers)?;
            start_tracepoint(ebpf, "cgroup_died", "cgroup_rmdir", &kernel.numbers)
        });
        let kills = check().and_then(|kernel| {
            let program = if kernel.victim_is_task { "oom_task" } else { "oom_pid" };
            start_tracepoint(ebpf, program, "mark_victim", &kernel.numbers)
        });
        findings.push(Finding::of(
            LIVES,
            &lives,
            "BPF programs at cgroup_mkdir and cgroup_rmdir",
            LIVES_INSTEAD,
        ));
        findings.push(Finding::of(KILLS, &kills, "a BPF program at mark_victim", KILLS_INSTEAD));
        if lives.is_err() && kills.is_err() {
            return None;
        }
        Self::open(ebpf).map_err(|why| tracing::warn!("no kernel events: {why}")).ok()
    }

    fn open(ebpf: &mut Ebpf) -> Result<Self, String> {
        let ring = ebpf.take_map("EVENTS").ok_or("the BPF object has no map EVENTS")?;
        let lost = ebpf.take_map("EVENTS_LOST").ok_or("the BPF object has no map EVENTS_LOST")?;
        Ok(Self {
            ring: RingBuf::try_from(ring).map_err(|error| chain(&error))?,
            lost: PerCpuArray::try_from(lost).map_err(|error| chain(&error))?,
        })
    }

    /// The next event; `None` where there is none now. Does not wait.
    pub fn next_event(&mut self) -> Option<GroupEvent> {
        // What cannot be understood is of a later version of the object: pass it by.
        while let Some(record) = self.ring.next() {
            if let Some(event) = decode(&record) {
                return Some(event);
            }
        }
        None
    }

    /// How many events found the ring full since the start. Where this grows, look at the tree.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.get(&0, 0).map_or(0, |counts| counts.iter().sum())
    }
}

impl AsFd for EventSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for EventSource {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

fn decode(record: &[u8]) -> Option<GroupEvent> {
    if record.len() != size_of::<Event>() {
        return None;
    }
    // SAFETY: as long as the structure, which is plain integers; no alignment is asked for.
    let event: Event = unsafe { std::ptr::read_unaligned(record.as_ptr().cast()) };
    let Event { kind, cgroup_id, at_ns, pid, path_len, path, .. } = event;
    let path = || {
        let used = (path_len as usize).min(EVENT_PATH_LEN);
        String::from_utf8_lossy(path.get(..used).unwrap_or_default()).into_owned()
    };
    match kind {
        kernel::EVENT_BIRTH => Some(GroupEvent::Birth { cgroup_id, path: path(), at_ns }),
        kernel::EVENT_DEATH => Some(GroupEvent::Death { cgroup_id, path: path(), at_ns }),
        kernel::EVENT_OOM => Some(GroupEvent::OutOfMemory { cgroup_id, pid, at_ns }),
        _ => None,
    }
}

/// Reads bytes as a record of the ring; for fuzzing.
pub(super) fn try_bytes(record: &[u8]) {
    match decode(record) {
        Some(GroupEvent::Birth { path, .. } | GroupEvent::Death { path, .. }) => {
            // A byte that is no UTF-8 becomes a character of three.
            assert!(path.len() <= EVENT_PATH_LEN * 3, "{} bytes", path.len());
        }
        Some(GroupEvent::OutOfMemory { .. }) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(event: &Event) -> Vec<u8> {
        let start = std::ptr::from_ref(event).cast::<u8>();
        // SAFETY: the structure has no padding.
        unsafe { std::slice::from_raw_parts(start, size_of::<Event>()) }.to_vec()
    }

    #[test]
    fn records_of_every_kind() {
        let mut event = Event {
            kind: 1,
            level: 2,
            cgroup_id: 77,
            at_ns: 5,
            pid: 9,
            path_len: 3,
            path: [b'x'; EVENT_PATH_LEN],
        };
        let path = "xxx".to_owned();
        assert_eq!(
            decode(&bytes(&event)),
            Some(GroupEvent::Birth { cgroup_id: 77, path: path.clone(), at_ns: 5 })
        );
        event.kind = 2;
        assert_eq!(decode(&bytes(&event)), Some(GroupEvent::Death { cgroup_id: 77, path, at_ns: 5 }));
        event.kind = 3;
        assert_eq!(decode(&bytes(&event)), Some(GroupEvent::OutOfMemory { cgroup_id: 77, pid: 9, at_ns: 5 }));
        event.kind = 4;
        assert_eq!(decode(&bytes(&event)), None);
    }

    #[test]
    fn lengths_from_elsewhere_are_not_believed() {
        let event = Event {
            kind: 1,
            level: 0,
            cgroup_id: 1,
            at_ns: 0,
            pid: 0,
            path_len: u32::MAX,
            path: [b'y'; EVENT_PATH_LEN],
        };
        let Some(GroupEvent::Birth { path, .. }) = decode(&bytes(&event)) else { panic!("a birth") };
        assert_eq!(path.len(), EVENT_PATH_LEN);
        assert_eq!(decode(&bytes(&event)[1..]), None);
        assert_eq!(decode(&[]), None);
    }
}
