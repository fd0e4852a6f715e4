//! Network per container: from the BPF programs where the kernel takes them, else from `/proc/<pid>/net/dev` of one
//! of its processes.
//!
//! The file shows a whole network namespace: of a container that uses the node's network (or another container's) it
//! would show everybody's traffic, so such a container's network is unknown rather than wrong.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use swarmguard_common::kernel::GroupCounters;

use super::{
    KeptFile,
    parse::{lines, number, words},
};
use crate::bpf::{Finding, KernelFacts, Options, Programs};

/// Processes looked at, at most, to find one of a container.
const MAX_PROCESSES: usize = 65_536;

/// Ethernet headers are not layer 3, but interfaces count them.
const LINK_HEADER_BYTES: u64 = 14;

/// Bytes on layer 3, loopback excluded. Counters only grow while the container lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Received.
    pub rx_bytes: u64,
    /// Sent.
    pub tx_bytes: u64,
}

/// The interfaces of a `net/dev` file with their traffic.
pub fn interfaces(text: &[u8]) -> impl Iterator<Item = (&[u8], Traffic)> {
    lines(text).filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, rest) = line.split_at(colon);
        // bytes packets errs drop fifo frame compressed multicast | bytes packets …
        let mut parts = words(rest.get(1..)?);
        let (rx, rx_packets) = (number(parts.next()?)?, number(parts.next()?)?);
        let (tx, tx_packets) = (number(parts.nth(6)?)?, number(parts.next()?)?);
        let layer3 =
            |bytes: u64, packets: u64| bytes.saturating_sub(packets.saturating_mul(LINK_HEADER_BYTES));
        Some((
            name.trim_ascii(),
            Traffic { rx_bytes: layer3(rx, rx_packets), tx_bytes: layer3(tx, tx_packets) },
        ))
    })
}

/// Sum over all interfaces of a `net/dev` file but loopback; `None` when there is no other.
pub fn total(text: &[u8]) -> Option<Traffic> {
    let others = interfaces(text).filter(|(name, _)| *name != b"lo").map(|(_, traffic)| traffic);
    others.reduce(|sum, one| Traffic {
        rx_bytes: sum.rx_bytes.wrapping_add(one.rx_bytes),
        tx_bytes: sum.tx_bytes.wrapping_add(one.tx_bytes),
    })
}

/// What is known of a container's network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkReading {
    /// Bytes both ways.
    pub traffic: Traffic,
    /// All that the programs count, where they do.
    pub counters: Option<GroupCounters>,
    /// Whether the counters tell of requests.
    pub requests: bool,
    /// As it was read earlier: nothing can have come or gone since, so it was not read anew.
    pub unread: bool,
}

/// How one container's network is read.
#[derive(Debug)]
pub enum Tap {
    /// From the programs, by cgroup id.
    Programs(u64),
    /// From a kept `net/dev`.
    File(KeptFile),
    /// Not at all.
    Unknown,
}

/// Which way networks are read on this node.
pub struct Networks {
    programs: Option<Programs>,
    proc_root: PathBuf,
    node_namespace: Option<u64>,
}

impl Networks {
    /// Loads the programs where `wanted` and possible. What came of it is told in the findings, once.
    pub fn open(cgroup_root: &Path, proc_root: &Path, wanted: bool) -> (Self, Vec<Finding>) {
        let facts = KernelFacts::probe(cgroup_root);
        let loaded = wanted.then(|| Programs::load(cgroup_root, &facts, Options::default()));
        let (programs, findings) = match loaded {
            Some(Ok(programs)) => {
                let findings = programs.findings().to_vec();
                (Some(programs), findings)
            }
            Some(Err(error)) => (None, vec![fallback(error.to_string())]),
            None => (None, vec![fallback("switched off by --bpf=false".into())]),
        };
        let node_namespace = namespace(proc_root, 1).ok();
        (Self { programs, proc_root: proc_root.into(), node_namespace }, findings)
    }

    /// The loaded programs.
    pub fn programs(&mut self) -> Option<&mut Programs> {
        self.programs.as_mut()
    }

    /// Begins to read a container: `pid` is one of its processes as the engine says, else one is looked for.
    /// `host` says that the engine knows it to use the node's network.
    pub fn watch(
        &mut self,
        cgroup_id: u64,
        dir: &Path,
        container: &str,
        pid: Option<u32>,
        host: bool,
    ) -> Tap {
        if let Some(programs) = &mut self.programs {
            match programs.watch(cgroup_id, dir) {
                Ok(()) if programs.counters(cgroup_id).is_some() => return Tap::Programs(cgroup_id),
                // Loaded, but none that counts traffic: the findings said so.
                Ok(()) => {}
                Err(error) => tracing::warn!(container, "network from /proc instead of BPF: {error}"),
            }
        }
        if host {
            return Tap::Unknown;
        }
        let Some(pid) = pid.or_else(|| find_process(&self.proc_root, container)) else { return Tap::Unknown };
        let shared = namespace(&self.proc_root, pid).ok().zip(self.node_namespace);
        if shared.is_some_and(|(its, nodes)| its == nodes) {
            return Tap::Unknown;
        }
        let path = self.proc_root.join(pid.to_string()).join("net/dev");
        KeptFile::open(&path).map_or(Tap::Unknown, Tap::File)
    }

    /// Reads a container now; `None` where it is unknown.
    pub fn read(&mut self, tap: &Tap, buffer: &mut [u8]) -> Option<NetworkReading> {
        match tap {
            Tap::Programs(id) => {
                let programs = self.programs.as_mut()?;
                let counters = programs.counters(*id)?;
                let traffic = Traffic { rx_bytes: counters.net.rx_bytes, tx_bytes: counters.net.tx_bytes };
                Some(NetworkReading {
                    traffic,
                    counters: Some(counters),
                    requests: programs.follows_requests(),
                    unread: false,
                })
            }
            Tap::File(file) => Some(NetworkReading {
                traffic: total(file.read(buffer).ok()?)?,
                counters: None,
                requests: false,
                unread: false,
            }),
            Tap::Unknown => None,
        }
    }

    /// Ends reading a container.
    pub fn forget(&mut self, cgroup_id: u64) {
        if let Some(programs) = &mut self.programs {
            programs.forget(cgroup_id);
        }
    }
}

fn fallback(detail: String) -> Finding {
    Finding {
        what: "network per container",
        ok: false,
        detail,
        instead: "/proc/<pid>/net/dev, which cannot tell host-network containers apart",
    }
}

/// The inode of a process's network namespace. `stat` on the link needs the right to trace the process.
fn namespace(proc_root: &Path, pid: u32) -> io::Result<u64> {
    fs::metadata(proc_root.join(pid.to_string()).join("ns/net")).map(|meta| meta.ino())
}

/// A process whose cgroup names the container. `cgroup.procs` would be cheaper, but inside a PID namespace it shows
/// zeroes for processes outside, whereas the node's `/proc`, bound, shows the node's.
fn find_process(proc_root: &Path, container: &str) -> Option<u32> {
    let processes = procfs::process::all_processes_with_root(proc_root).ok()?.flatten().take(MAX_PROCESSES);
    let mut inside = processes.filter(|process| {
        let groups = process.cgroups();
        groups.is_ok_and(|groups| groups.0.iter().any(|group| group.pathname.contains(container)))
    });
    u32::try_from(inside.next()?.pid()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEV: &[u8] = b"Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
        lo:  700      7    0    0    0     0          0         0      700       7    0    0    0     0       0          0\n  \
        eth0: 10140     10    1    2    0     0          0         0     2028       2    0    0    0     0       0          0\n  \
        eth1:1014      1    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n";

    #[test]
    fn loopback_and_link_headers_are_left_out() {
        assert_eq!(total(DEV), Some(Traffic { rx_bytes: 11_000, tx_bytes: 2_000 }));
        assert_eq!(total(b"Inter-|\n lo: 7 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n"), None);
        assert_eq!(interfaces(DEV).count(), 3);
    }

    #[test]
    fn a_process_is_found_by_its_cgroup() {
        let proc_root = tempfile::tempdir().expect("a directory");
        let id = "ab".repeat(32);
        for (pid, cgroup) in
            [("12", "0::/init.scope\n"), ("77", &format!("0::/../../system.slice/docker-{id}.scope\n"))]
        {
            let dir = proc_root.path().join(pid);
            fs::create_dir(&dir).expect("made");
            fs::write(dir.join("cgroup"), cgroup).expect("written");
        }
        fs::create_dir(proc_root.path().join("sys")).expect("made");
        assert_eq!(find_process(proc_root.path(), &id), Some(77));
        assert_eq!(find_process(proc_root.path(), "cd"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: Vec<u8>, dev in " ?[a-z0-9]{0,4}: [ 0-9]{0,90}\n?") {
            let _ = (total(&text), total(dev.as_bytes()));
        }
    }
}
