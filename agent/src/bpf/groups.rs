//! All watched containers in one pass of the kernel's cgroup iterator, and their run-queue latency.
//!
//! A pass is three calls (begin, run, close), however many containers there are; the samples appear in memory that
//! the agent shares with the program. Before that comes one `pread` of `cpu.stat` for each directory that
//! holds containers, for the kernel sums CPU time up lazily and that makes it do so for all below. (The root's own `cpu.stat` is computed otherwise: containers right below the root, which
//! no engine makes, have their own file read.)
//!
//! The pressure totals are those of the kernel's last update, at most 2 s ago; reading any one pressure file
//! of a container updates all of its totals.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData};
use aya::programs::{BtfTracePoint, Iter};
use aya::{Btf, Ebpf, util::nr_cpus};
use swarmguard_common::kernel::{GroupSample, MAX_GROUPS, Waits, offset};

use super::btf::{self, KernelTypes};
use super::sys::{self, Mapped};
use super::{BpfError, Finding, Options, chain, with_program};

const PASS: &str = "all containers in one pass";
const PASS_INSTEAD: &str = "the files of each container";
const WAITS: &str = "run-queue latency per container";
const WAITS_INSTEAD: &str = "cpu.pressure";

/// What a pass cannot do without.
const PASS_NEEDS: [(usize, &str); 3] = [
    (offset::CGROUP_KN, "cgroup.kn"),
    (offset::KN_ID, "kernfs_node.id"),
    (offset::CGROUP_CPU, "cgroup.bstat.cputime.sum_exec_runtime"),
];

const WAITS_NEED: [(usize, &str); 7] = [
    (offset::CGROUP_KN, "cgroup.kn"),
    (offset::KN_ID, "kernfs_node.id"),
    (offset::TASK_CGROUPS, "task_struct.cgroups"),
    (offset::CSS_SET_DFL, "css_set.dfl_cgrp"),
    (offset::TASK_LAST_QUEUED, "task_struct.sched_info.last_queued"),
    (offset::TASK_CFS_RQ, "task_struct.se.cfs_rq"),
    (offset::RQ_CLOCK, "rq.clock"),
];

/// The watched containers as the tracing programs know them.
pub(super) struct Groups {
    /// Watched cgroups and their waits; `None` where no tracing program runs, so that nothing has to be kept.
    map: Option<MapData>,
    values: Vec<Waits>,
    pass: Option<Pass>,
    waits: bool,
    flush: Flush,
}

impl Groups {
    /// Loads what the kernel takes; what it does not is a finding.
    pub(super) fn start(
        ebpf: &mut Ebpf,
        root: &Path,
        root_fd: &OwnedFd,
        kernel: Option<&KernelTypes>,
        options: Options,
        findings: &mut Vec<Finding>,
    ) -> Self {
        let no_types =
            || "no /sys/kernel/btf/vmlinux: bind it, or use a kernel with CONFIG_DEBUG_INFO_BTF".to_owned();
        let pass = wanted(options.pass).and_then(|()| {
            let kernel = kernel.ok_or_else(no_types)?;
            needs(kernel, &PASS_NEEDS)?;
            start_pass(ebpf, &kernel.numbers, root_fd)
        });
        let waits = wanted(options.run_queue).and_then(|()| {
            let kernel = kernel.ok_or_else(no_types)?;
            needs(kernel, &WAITS_NEED)?;
            start_tracepoint(ebpf, "task_switch", "sched_switch", &kernel.numbers)
        });
        findings.push(Finding::of(PASS, &pass, "a BPF cgroup iterator", PASS_INSTEAD));
        findings.push(Finding::of(WAITS, &waits, "a BPF program at the scheduler's switch", WAITS_INSTEAD));
        let needed = pass.is_ok() || waits.is_ok();
        let map = match ebpf.take_map("GROUPS") {
            Some(Map::PerCpuHashMap(map)) if needed => Some(map),
            _ => None,
        };
        Self {
            map,
            values: vec![Waits::default(); nr_cpus().unwrap_or(1)],
            pass: pass.ok(),
            waits: waits.is_ok(),
            flush: Flush::new(root),
        }
    }

    pub(super) fn watch(&mut self, cgroup_id: u64, dir: &Path) -> Result<(), BpfError> {
        let Some(map) = &self.map else { return Ok(()) };
        let failed = |what, source| BpfError::Group { what, cgroup_id, source };
        let known = sys::lookup(map.fd().as_fd(), cgroup_id, &mut self.values);
        if known.map_err(|source| failed("look up", source))? {
            return Ok(());
        }
        if self.pass.is_some() {
            self.flush.add(cgroup_id, dir)?;
        }
        self.values.fill(Waits::default());
        sys::update(map.fd().as_fd(), cgroup_id, &self.values).map_err(|source| {
            self.flush.remove(cgroup_id);
            failed("add", source)
        })
    }

    pub(super) fn forget(&mut self, cgroup_id: u64) {
        self.flush.remove(cgroup_id);
        if let Some(map) = &self.map
            && let Err(error) = sys::delete(map.fd().as_fd(), cgroup_id)
        {
            tracing::warn!("cannot forget cgroup {cgroup_id}: {error}");
        }
    }

    pub(super) fn has_pass(&self) -> bool {
        self.pass.is_some()
    }

    pub(super) fn sample(&mut self, each: &mut dyn FnMut(&GroupSample)) -> io::Result<bool> {
        let Some(pass) = &self.pass else { return Ok(false) };
        self.flush.run();
        sys::run_pass(pass.link.as_fd())?;
        let count = pass.count.get(0).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
        for sample in (0..count).map_while(|index| pass.samples.get(index)) {
            each(&sample);
        }
        Ok(true)
    }

    pub(super) fn waits(&mut self, cgroup_id: u64) -> Option<Waits> {
        let map = self.map.as_ref().filter(|_| self.waits)?;
        if !sys::lookup(map.fd().as_fd(), cgroup_id, &mut self.values).unwrap_or(false) {
            return None;
        }
        let mut sum = Waits::default();
        self.values.iter().for_each(|value| sum.add(value));
        Some(sum)
    }
}

fn wanted(option: bool) -> Result<(), String> {
    if option { Ok(()) } else { Err("switched off".to_owned()) }
}

/// Checks that the kernel has some fields.
pub(super) fn needs(kernel: &KernelTypes, fields: &[(usize, &str)]) -> Result<(), String> {
    let missing = btf::missing(&kernel.offsets, fields);
    if missing.is_empty() { Ok(()) } else { Err(format!("this kernel has no {}", missing.join(", "))) }
}

/// The iterator, and where its program leaves what it finds.
struct Pass {
    link: OwnedFd,
    samples: Mapped<GroupSample>,
    count: Mapped<u64>,
}

fn start_pass(ebpf: &mut Ebpf, types: &Btf, root: &OwnedFd) -> Result<Pass, String> {
    let mut array = |name: &str| match ebpf.take_map(name) {
        Some(Map::Array(map)) => Ok(map),
        _ => Err(format!("the BPF object has no map {name}: build it again")),
    };
    let (samples, count) = (array("SAMPLES")?, array("SAMPLE_COUNT")?);
    let info = samples.info().map_err(|error| chain(&error))?;
    if info.value_size() as usize != size_of::<GroupSample>() || info.max_entries() != MAX_GROUPS {
        return Err("the map SAMPLES is of another version than the agent: build both again".to_owned());
    }
    let failed = |error| format!("cannot map the samples: {error}");
    let samples = Mapped::new(samples.fd().as_fd(), MAX_GROUPS as usize).map_err(failed)?;
    let count = Mapped::new(count.fd().as_fd(), 1).map_err(failed)?;
    let fd = with_program(ebpf, "sample_groups", |program: &mut Iter| {
        program.load("cgroup", types)?;
        Ok(program.fd()?.as_fd().try_clone_to_owned()?)
    })
    .map_err(|why| format!("{why} (kernels before 6.1 have no cgroup iterator)"))?;
    let link = sys::attach_cgroup_iter(fd.as_fd(), root.as_fd())
        .map_err(|error| format!("cannot attach: {error}"))?;
    Ok(Pass { link, samples, count })
}

/// Loads a program and ties it to a tracepoint, for as long as `ebpf` lives.
pub(super) fn start_tracepoint(ebpf: &mut Ebpf, name: &str, at: &str, types: &Btf) -> Result<(), String> {
    let tied = with_program(ebpf, name, |program: &mut BtfTracePoint| {
        program.load(at, types)?;
        program.attach()
    });
    tied.map(|_| ())
}

/// The files that make the kernel sum up CPU times, one for each directory that holds containers.
struct Flush {
    root: PathBuf,
    files: HashMap<PathBuf, (File, usize)>,
    of: HashMap<u64, PathBuf>,
}

impl Flush {
    fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), files: HashMap::new(), of: HashMap::new() }
    }

    fn add(&mut self, cgroup_id: u64, dir: &Path) -> Result<(), BpfError> {
        let above = dir.parent().unwrap_or(dir);
        let inode = |path: &Path| std::fs::metadata(path).map(|about| about.ino()).ok();
        let from = if inode(above) == inode(&self.root) { dir } else { above };
        match self.files.get_mut(from) {
            Some((_, users)) => *users += 1,
            None => {
                let path = from.join("cpu.stat");
                let file = File::open(&path).map_err(|source| BpfError::Open { path, source })?;
                self.files.insert(from.to_owned(), (file, 1));
            }
        }
        self.of.insert(cgroup_id, from.to_owned());
        Ok(())
    }

    fn remove(&mut self, cgroup_id: u64) {
        let Some(from) = self.of.remove(&cgroup_id) else { return };
        let Some((_, users)) = self.files.get_mut(&from) else { return };
        *users -= 1;
        if *users == 0 {
            self.files.remove(&from);
        }
    }

    fn run(&self) {
        let mut text = [0u8; 64];
        for (file, _) in self.files.values() {
            // Where the directory has just gone, so have its containers.
            let _ = file.read_at(&mut text, 0);
        }
    }
}
