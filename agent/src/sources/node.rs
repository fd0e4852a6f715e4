//! The node as a whole: `/proc/stat`, `/proc/meminfo`, `/proc/pressure/*`, `/proc/net/dev`, CPUs online, link speed.
//! Where the node is a cgroup of a machine, that cgroup speaks instead ([`NodeGroup`]).

use std::{fs, path::Path};

use swarmguard_common::time::Time;

use super::{
    BUFFER_BYTES, KeptFile,
    network::{Traffic, interfaces},
    node_group::NodeGroup,
    parse::{field, lines, number, words},
    pressure::{Pressure, pressure},
};

/// Time of all CPUs together, in ticks of `USER_HZ` (of a cgroup: in microseconds). Both only grow, apart from a CPU going offline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTicks {
    /// All time but idle and waiting for disks. Time stolen by a hypervisor counts: the node does not have it.
    pub busy: u64,
    /// All time.
    pub all: u64,
}

/// One reading of the node; a field is `None` where its file is missing or not understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeReading {
    /// CPU time.
    pub cpu: Option<CpuTicks>,
    /// Total and available memory, in bytes.
    pub memory: Option<(u64, u64)>,
    /// Stalls for a CPU.
    pub psi_cpu: Option<Pressure>,
    /// Stalls for memory.
    pub psi_memory: Option<Pressure>,
    /// Stalls for disks.
    pub psi_io: Option<Pressure>,
    /// Traffic of the interface that carries the default route.
    pub network: Option<Traffic>,
}

/// The node's files, kept open.
#[derive(Debug)]
pub struct NodeSource {
    stat: Option<KeptFile>,
    meminfo: Option<KeptFile>,
    pressure: [Option<KeptFile>; 3],
    dev: Option<KeptFile>,
    interface: Option<String>,
    group: Option<NodeGroup>,
}

impl NodeSource {
    /// Opens what there is below `proc_root`.
    pub fn open(proc_root: &Path) -> Self {
        let open = |name: &str| KeptFile::open(&proc_root.join(name)).ok();
        Self {
            stat: open("stat"),
            meminfo: open("meminfo"),
            pressure: ["pressure/cpu", "pressure/memory", "pressure/io"].map(open),
            // `/proc/net` is that of the reader; the agent shares the node's network.
            dev: open("1/net/dev").or_else(|| KeptFile::open(Path::new("/proc/net/dev")).ok()),
            interface: default_interface(proc_root),
            group: None,
        }
    }

    /// The same of a node that is this cgroup, where there is one.
    #[must_use]
    pub fn within(self, group: Option<NodeGroup>) -> Self {
        Self { group, ..self }
    }

    /// Reads everything; `buffer` should have [`BUFFER_BYTES`].
    pub fn read(&self, now: Time, buffer: &mut [u8]) -> NodeReading {
        let mut psi = [None; 3];
        for (slot, file) in psi.iter_mut().zip(&self.pressure) {
            *slot = file.as_ref().and_then(|file| pressure(file.read(buffer).ok()?));
        }
        let [psi_cpu, psi_memory, psi_io] = psi;
        let mut reading = NodeReading {
            // Only the first line is wanted, the rest is long on large machines.
            cpu: self.stat.as_ref().and_then(|file| cpu_ticks(file.read(buffer.get_mut(..512)?).ok()?)),
            memory: self.meminfo.as_ref().and_then(|file| memory(file.read(buffer).ok()?)),
            psi_cpu,
            psi_memory,
            psi_io,
            network: self.traffic(buffer),
        };
        if let Some(group) = &self.group {
            group.overrule(now, &mut reading, buffer);
        }
        reading
    }

    fn traffic(&self, buffer: &mut [u8]) -> Option<Traffic> {
        let wanted = self.interface.as_deref()?.as_bytes();
        let text = self.dev.as_ref()?.read(buffer).ok()?;
        interfaces(text).find(|(name, _)| *name == wanted).map(|(_, traffic)| traffic)
    }
}

/// Reads the first line of `/proc/stat`.
pub fn cpu_ticks(text: &[u8]) -> Option<CpuTicks> {
    let mut parts = words(lines(text).next()?);
    if parts.next()? != b"cpu" {
        return None;
    }
    // user nice system idle iowait irq softirq steal; guest time that follows is within user and nice already.
    let mut ticks = [0_u64; 8];
    for (index, slot) in ticks.iter_mut().enumerate() {
        match parts.next() {
            Some(word) => *slot = number(word)?,
            None if index >= 4 => break,
            None => return None,
        }
    }
    let all = ticks.iter().fold(0_u64, |sum, part| sum.wrapping_add(*part));
    Some(CpuTicks { busy: all.wrapping_sub(ticks[3]).wrapping_sub(ticks[4]), all })
}

/// Reads `MemTotal` and `MemAvailable` of `/proc/meminfo`, as bytes.
pub fn memory(text: &[u8]) -> Option<(u64, u64)> {
    let kib = |key: &[u8]| {
        let line = lines(text).find_map(|line| line.strip_prefix(key))?;
        number(line.trim_ascii().strip_suffix(b"kB")?)?.checked_mul(1_024)
    };
    Some((kib(b"MemTotal:")?, kib(b"MemAvailable:")?))
}

/// CPUs online, in thousandths of one; 0 where `/proc/stat` cannot be read.
pub fn cpu_millis(proc_root: &Path) -> u32 {
    let text = fs::read(proc_root.join("stat")).unwrap_or_default();
    let cpus =
        lines(&text).filter(|line| line.starts_with(b"cpu") && line.get(3).is_some_and(u8::is_ascii_digit));
    u32::try_from(cpus.count()).unwrap_or(0).saturating_mul(1_000)
}

/// Memory of the node in bytes; 0 where `/proc/meminfo` cannot be read.
pub fn memory_bytes(proc_root: &Path) -> u64 {
    let text = fs::read(proc_root.join("meminfo")).unwrap_or_default();
    memory(&text).map_or(0, |(total, _)| total)
}

/// The interface of the default route with the lowest metric.
fn default_interface(proc_root: &Path) -> Option<String> {
    let text = fs::read(proc_root.join("1/net/route")).or_else(|_| fs::read("/proc/net/route")).ok()?;
    default_route(&text)
}

/// Reads the interface of the default route with the lowest metric from `/proc/net/route`.
pub fn default_route(text: &[u8]) -> Option<String> {
    let routes = lines(text).skip(1).filter_map(|line| {
        let mut parts = words(line);
        let (name, destination) = (parts.next()?, parts.next()?);
        let metric = number(parts.nth(4)?)?;
        (destination == b"00000000").then_some((metric, name))
    });
    let (_, name) = routes.min()?;
    String::from_utf8(name.to_vec()).ok().filter(|name| is_interface(name))
}

/// Whether a device may have this name (`dev_valid_name` in the kernel): it becomes part of a path.
fn is_interface(name: &str) -> bool {
    let valid = |letter: char| !letter.is_whitespace() && letter != '/' && letter != ':';
    !name.is_empty() && name.len() < 16 && name != "." && name != ".." && name.chars().all(valid)
}

/// What the driver of the interface that carries the default route says of its speed, in Mbit/s; virtual ones say
/// nothing.
pub fn link_mbps(proc_root: &Path) -> Option<u32> {
    let name = default_interface(proc_root)?;
    let text = fs::read(Path::new("/sys/class/net").join(name).join("speed")).ok()?;
    u32::try_from(number(&text)?).ok().filter(|mbps| *mbps > 0)
}

/// Seconds since boot, from `/proc/stat`'s `btime` line; tells one boot from another.
pub fn boot_time(proc_root: &Path) -> Option<u64> {
    field(&fs::read(proc_root.join("stat")).ok()?, b"btime")
}

const _: () = assert!(BUFFER_BYTES >= 512);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn busy_is_all_but_idle_and_iowait() {
        let text = b"cpu  100 20 30 400 50 6 7 8 90 10\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(cpu_ticks(text), Some(CpuTicks { busy: 171, all: 621 }));
        assert_eq!(cpu_ticks(b"cpu  1 2 3 4\n"), Some(CpuTicks { busy: 6, all: 10 }));
        assert_eq!(cpu_ticks(b"cpu  1 2 3\n"), None);
        assert_eq!(cpu_ticks(b"cpu0 1 2 3 4 5\n"), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        let text = b"MemTotal:       2097152 kB\nMemFree:          1000 kB\nMemAvailable:    1048576 kB\n";
        assert_eq!(memory(text), Some((2_147_483_648, 1_073_741_824)));
        assert_eq!(memory(b"MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_counts() {
        let text = b"Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
            eth1\t00000000\t0100000A\t0003\t0\t0\t200\t00000000\n\
            eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\n\
            eth2\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\n";
        assert_eq!(default_route(text), Some("eth0".into()));
        assert_eq!(default_route(b"Iface\n"), None);
        let odd = b"Iface\n../eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\n";
        assert_eq!(default_route(odd), None, "no name of a device, but a path");
    }

    #[test]
    fn this_machine_can_be_read() {
        let proc_root = Path::new("/proc");
        let reading = NodeSource::open(proc_root).read(Time::ZERO, &mut vec![0; BUFFER_BYTES]);
        assert!(reading.cpu.is_some_and(|cpu| cpu.all >= cpu.busy && cpu.busy > 0), "{reading:?}");
        assert!(reading.memory.is_some_and(|(total, available)| total >= available && available > 0));
        assert!(cpu_millis(proc_root) >= 1_000 && memory_bytes(proc_root) > 0);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: Vec<u8>, cpu in "cpu [ 0-9]{0,80}") {
            let _ = (cpu_ticks(&text), cpu_ticks(cpu.as_bytes()), memory(&text), default_route(&text));
        }
    }
}
