//! One container's cgroup: all its files, kept open, and what they say.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use swarmguard_common::kernel::{GroupSample, HAS_CPU, HAS_MEMORY, HAS_THROTTLING, Waits};

use super::{KeptFile, cpu, is_gone, memory, pressure};

/// What is read each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastReading {
    /// CPU time and throttling.
    pub cpu: Option<cpu::CpuStat>,
    /// Charged memory, bytes.
    pub memory_bytes: Option<u64>,
}

/// What is read once a second, or each time while the container is hot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlowReading {
    /// Page cache that can be had back, bytes.
    pub page_cache_bytes: Option<u64>,
    /// Stalls for a CPU.
    pub psi_cpu: Option<pressure::Pressure>,
    /// Stalls for memory.
    pub psi_memory: Option<pressure::Pressure>,
    /// Stalls for disks.
    pub psi_io: Option<pressure::Pressure>,
    /// Processes killed for want of memory so far.
    pub oom_kills: Option<u64>,
    /// How long its tasks waited for a CPU, where the programs tell.
    pub run_queue: Option<Waits>,
}

/// The cgroup is no more: its container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// A container's cgroup with its files open. A file that is not there stays unread: the field is then unknown.
#[derive(Debug)]
pub struct Group {
    dir: PathBuf,
    id: u64,
    cpu_stat: Option<KeptFile>,
    memory_current: Option<KeptFile>,
    memory_stat: Option<KeptFile>,
    memory_events: Option<KeptFile>,
    cpu_pressure: Option<KeptFile>,
    memory_pressure: Option<KeptFile>,
    io_pressure: Option<KeptFile>,
}

impl Group {
    /// Opens the cgroup in `dir`.
    ///
    /// # Errors
    /// When the directory is gone, or descriptors have run out.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let id = fs::metadata(dir)?.ino();
        let open = |name: &str| match KeptFile::open(&dir.join(name)) {
            Ok(file) => Ok(Some(file)),
            // A controller that is not enabled, or a kernel without it. Anything else should be heard of.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        };
        Ok(Self {
            id,
            cpu_stat: open(cpu::STAT)?,
            memory_current: open(memory::CURRENT)?,
            memory_stat: open(memory::STAT)?,
            memory_events: open(memory::EVENTS)?,
            cpu_pressure: open(pressure::CPU)?,
            memory_pressure: open(pressure::MEMORY)?,
            io_pressure: open(pressure::IO)?,
            dir: dir.into(),
        })
    }

    /// The cgroup's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Inode of the directory, which is the kernel's cgroup id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What moves fast, out of the kernel's own pass over all containers; the file fills in what that lacks.
    ///
    /// # Errors
    /// When the container has ended.
    pub fn from_pass(&self, sample: &GroupSample, buffer: &mut [u8]) -> Result<FastReading, Gone> {
        let has = |bit| sample.fields & bit != 0;
        if !has(HAS_CPU) {
            return self.read_fast(buffer);
        }
        let periods = has(HAS_THROTTLING).then_some((sample.periods, sample.throttled));
        let memory_bytes = if has(HAS_MEMORY) {
            Some(sample.memory_bytes)
        } else {
            read(self.memory_current.as_ref(), buffer, memory::current)?
        };
        Ok(FastReading {
            cpu: Some(cpu::CpuStat { usage_usec: sample.cpu_ns / 1_000, periods }),
            memory_bytes,
        })
    }

    /// Reads what moves fast.
    ///
    /// # Errors
    /// When the container has ended.
    pub fn read_fast(&self, buffer: &mut [u8]) -> Result<FastReading, Gone> {
        Ok(FastReading {
            cpu: read(self.cpu_stat.as_ref(), buffer, cpu::stat)?,
            memory_bytes: read(self.memory_current.as_ref(), buffer, memory::current)?,
        })
    }

    /// Reads the rest; of the pressure files only that of the CPU unless `all` are wanted.
    ///
    /// # Errors
    /// When the container has ended.
    pub fn read_slow(&self, all: bool, buffer: &mut [u8]) -> Result<SlowReading, Gone> {
        let others = |file| if all { Option::as_ref(file) } else { None };
        Ok(SlowReading {
            page_cache_bytes: read(self.memory_stat.as_ref(), buffer, memory::page_cache)?,
            psi_cpu: read(self.cpu_pressure.as_ref(), buffer, pressure::pressure)?,
            psi_memory: read(others(&self.memory_pressure), buffer, pressure::pressure)?,
            psi_io: read(others(&self.io_pressure), buffer, pressure::pressure)?,
            oom_kills: read(self.memory_events.as_ref(), buffer, memory::oom_kills)?,
            run_queue: None,
        })
    }

    /// Which fields this cgroup cannot give, by the file that is missing.
    pub fn missing(&self) -> impl Iterator<Item = &'static str> {
        let all = [
            (cpu::STAT, self.cpu_stat.is_none()),
            (memory::CURRENT, self.memory_current.is_none()),
            (memory::STAT, self.memory_stat.is_none()),
            (memory::EVENTS, self.memory_events.is_none()),
            (pressure::CPU, self.cpu_pressure.is_none()),
            (pressure::MEMORY, self.memory_pressure.is_none()),
            (pressure::IO, self.io_pressure.is_none()),
        ];
        all.into_iter().filter_map(|(name, missing)| missing.then_some(name))
    }
}

fn read<T>(
    file: Option<&KeptFile>,
    buffer: &mut [u8],
    parse: fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, Gone> {
    match file.map(|file| file.read(buffer)) {
        None => Ok(None),
        Some(Ok(text)) => Ok(parse(text)),
        Some(Err(error)) if is_gone(&error) => Err(Gone),
        // Pressure files of a kernel booted with psi=0 open and then refuse to be read.
        Some(Err(_)) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::BUFFER_BYTES;

    fn fixture(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            fs::write(dir.path().join(name), text).expect("written");
        }
        dir
    }

    #[test]
    fn all_files_of_a_container() {
        let psi = "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        let dir = fixture(&[
            ("cpu.stat", "usage_usec 12\nnr_periods 4\nnr_throttled 1\n"),
            ("memory.current", "4096\n"),
            ("memory.stat", "inactive_file 1000\nactive_file 24\n"),
            ("memory.events", "oom_kill 1\n"),
            ("cpu.pressure", psi),
            ("memory.pressure", psi),
            ("io.pressure", psi),
        ]);
        let group = Group::open(dir.path()).expect("there");
        let mut buffer = vec![0; BUFFER_BYTES];
        let fast = group.read_fast(&mut buffer).expect("alive");
        assert_eq!(fast.cpu.map(|cpu| (cpu.usage_usec, cpu.periods)), Some((12, Some((4, 1)))));
        assert_eq!(fast.memory_bytes, Some(4_096));
        let slow = group.read_slow(true, &mut buffer).expect("alive");
        assert_eq!((slow.page_cache_bytes, slow.oom_kills), (Some(1_024), Some(1)));
        assert_eq!(slow.psi_io.map(|psi| psi.some_usec), Some(5));
        assert_eq!(group.missing().count(), 0);
    }

    #[test]
    fn without_a_memory_controller_memory_is_unknown() {
        let dir = fixture(&[("cpu.stat", "usage_usec 12\n")]);
        let group = Group::open(dir.path()).expect("there");
        let fast = group.read_fast(&mut vec![0; BUFFER_BYTES]).expect("alive");
        assert_eq!(fast.memory_bytes, None);
        assert!(fast.cpu.is_some());
        assert!(group.missing().any(|name| name == "memory.current"));
    }
}
