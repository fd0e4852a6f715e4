//! The BPF programs as the rest of the agent sees them: load once, watch containers, read counters.
//!
//! ```text
//! let facts = KernelFacts::probe(cgroup_root);
//! let mut programs = Programs::load(cgroup_root, &facts, Options::default())?;   // Err: nothing works, and why
//! for finding in programs.findings() { … }                                       // what works, what instead
//! programs.watch(id, &dir)?;               // a container was found; id = inode number of its cgroup directory
//! programs.counters(id)                    // any number of times, without allocation
//! programs.sample(&mut |group| …)?;        // CPU, memory and pressure of all of them at once
//! programs.balance(&plan, &dir_of)?;       // connections to virtual addresses go to replicas
//! let events = programs.events();          // births, deaths, out-of-memory kills
//! programs.forget(id);                     // it is gone
//! ```
//!
//! Each program is loaded by itself: what a kernel refuses is a [`Finding`], not an error. Dropping
//! [`Programs`] takes every program out of the kernel; nothing is pinned.

mod btf;
mod connect;
mod cost;
mod events;
mod facts;
mod groups;
mod log;
mod net;
mod sys;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use swarmguard_common::kernel::{GroupCounters, GroupSample, NetCounters, OFFSETS, Waits, offset};

use crate::connect::{Figures, Plan};
use btf::KernelTypes;
use connect::Connect;
pub use cost::{Measuring, ProgramCost};
pub use events::{EventSource, GroupEvent};
pub use facts::{CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN, KernelFacts, is_cgroup2};
use groups::Groups;
pub use log::ProgramLog;
use net::Counting;

/// The object that the build script found; empty: none.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/programs.o"));

/// Why programs cannot run, or a container cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// Something that cannot be worked around on this machine; see [`KernelFacts::obstacle`].
    #[error("{0}")]
    Unusable(String),
    /// A file or directory could not be opened.
    #[error("cannot open {path}: {source}", path = path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel takes none of the programs, or the object is damaged.
    #[error("the kernel refuses the BPF programs: {0}")]
    Refused(String),
    /// A call on one container failed.
    #[error("cannot {what} cgroup {cgroup_id}: {source}")]
    Group {
        /// What was tried.
        what: &'static str,
        /// Inode number of the cgroup's directory.
        cgroup_id: u64,
        /// Why.
        source: io::Error,
    },
    /// The maps for balancing at `connect()` could not be brought to what they should hold.
    #[error("cannot {what}: {source}")]
    Balance {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel broke off a pass over all containers.
    #[error("cannot sample the containers: {0}")]
    Pass(io::Error),
}

/// How traffic finds its container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkMode {
    /// By attachment where the kernel takes it, else by look-up.
    #[default]
    Best,
    /// A program at every container's cgroup, counters in the attachment's own storage: no look-up per packet.
    Attached,
    /// One program at the root, counters in a hash table by cgroup id.
    Root,
}

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How traffic is counted.
    pub network: NetworkMode,
    /// Requests in flight and time to answer; see [`GroupCounters::requests_started`]. Only where traffic is
    /// counted by attachment. Costs some ns for each TCP packet.
    pub requests: bool,
    /// Balancing at `connect()`; see [`Programs::balance`]. Costs nothing where no plan names a container.
    pub connect: bool,
    /// The pass over all containers; see [`Programs::sample`].
    pub pass: bool,
    /// Run-queue latency; see [`Programs::run_queue`]. Costs some hundred ns for each switch between tasks.
    pub run_queue: bool,
    /// Births, deaths and kills; see [`Programs::events`].
    pub events: bool,
    /// Programs write debug records; see [`Programs::log`].
    pub debug: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            network: NetworkMode::Best,
            requests: true,
            connect: true,
            pass: true,
            run_queue: true,
            events: true,
            debug: false,
        }
    }
}

/// One thing that was tried at load, for the log and for `doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is for, such as "network per container".
    pub what: &'static str,
    /// It works.
    pub ok: bool,
    /// How it is done, or why it is not.
    pub detail: String,
    /// What is used in its place where it does not work; empty where it does.
    pub instead: &'static str,
}

impl Finding {
    fn of<T>(what: &'static str, result: &Result<T, String>, how: &str, instead: &'static str) -> Self {
        match result {
            Ok(_) => Self { what, ok: true, detail: how.to_owned(), instead: "" },
            Err(why) => Self { what, ok: false, detail: why.clone(), instead },
        }
    }
}

/// The loaded programs.
pub struct Programs {
    counting: Option<Counting>,
    connect: Option<Connect>,
    groups: Groups,
    events: Option<EventSource>,
    findings: Vec<Finding>,
    log: Option<ProgramLog>,
    /// Maps and programs live as long as this does.
    ebpf: Ebpf,
}

impl Programs {
    /// Loads what this kernel takes and attaches it below `cgroup_root`, the mount of the cgroup v2 hierarchy.
    ///
    /// # Errors
    /// Where nothing can work at all, with the reason and what to do about it.
    pub fn load(cgroup_root: &Path, facts: &KernelFacts, options: Options) -> Result<Self, BpfError> {
        if let Some(why) = facts.obstacle() {
            return Err(BpfError::Unusable(why));
        }
        raise_descriptor_limit();
        // By default glibc keeps large blocks once some have been freed, and here go some that are never needed again.
        // SAFETY: a setting of the allocator, no memory of ours.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024) };
        let root: OwnedFd = File::open(cgroup_root)
            .map_err(|source| BpfError::Open { path: cgroup_root.to_owned(), source })?
            .into();
        let types = KernelTypes::read();
        let table = types.as_ref().map_or([offset::ABSENT; OFFSETS], |types| types.offsets);
        let mut ebpf = read_object(options, &table)?;
        let mut findings = Vec::new();
        let log = if options.debug { ProgramLog::open(&mut ebpf) } else { None };
        let counting = Counting::start(&mut ebpf, &root, options, &mut findings);
        let groups = Groups::start(&mut ebpf, cgroup_root, &root, types.as_ref(), options, &mut findings);
        let connect = Connect::start(&mut ebpf, options.connect, &mut findings);
        let events = EventSource::start(&mut ebpf, types.as_ref(), options.events, &mut findings);
        drop(types);
        // SAFETY: gives free pages back, nothing else.
        unsafe { libc::malloc_trim(0) };
        if findings.iter().all(|finding| !finding.ok) {
            let why: Vec<String> =
                findings.iter().map(|finding| format!("{}: {}", finding.what, finding.detail)).collect();
            return Err(BpfError::Refused(why.join("; ")));
        }
        Ok(Self { counting, connect, groups, events, findings, log, ebpf })
    }

    /// What was tried and what came of it, once for each thing.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Records of the programs, where [`Options::debug`] was set: wait until readable, then
    /// [`ProgramLog::flush`]. Takes it out.
    pub fn log(&mut self) -> Option<ProgramLog> {
        self.log.take()
    }

    /// Begins to count for a container whose cgroup directory is `dir`. Its counters start at zero. Watching
    /// what is watched already changes nothing.
    ///
    /// # Errors
    /// Where the directory is gone, there are [`swarmguard_common::kernel::MAX_GROUPS`] containers already, or
    /// the kernel refuses; the container then has no counters, and nothing else changes.
    pub fn watch(&mut self, cgroup_id: u64, dir: &Path) -> Result<(), BpfError> {
        if let Some(counting) = &mut self.counting {
            counting.watch(cgroup_id, dir)?;
        }
        self.groups.watch(cgroup_id, dir).inspect_err(|_| {
            if let Some(counting) = &mut self.counting {
                counting.forget(cgroup_id);
            }
        })
    }

    /// Ends counting and gives back what it held. Forgetting what is not watched changes nothing.
    pub fn forget(&mut self, cgroup_id: u64) {
        if let Some(counting) = &mut self.counting {
            counting.forget(cgroup_id);
        }
        if let Some(connect) = &mut self.connect {
            connect.forget(cgroup_id);
        }
        self.groups.forget(cgroup_id);
    }

    /// Sends connections of containers as a plan says, from now on; `dir_of` knows a container's directory by its
    /// cgroup. `false`: this kernel cannot. Connections that are open stay where they are.
    ///
    /// # Errors
    /// Where a part of it failed, with the first reason; the rest is done, and the part is left to Swarm.
    pub fn balance<'a>(
        &mut self,
        plan: &Plan,
        dir_of: &dyn Fn(u64) -> Option<&'a Path>,
    ) -> Result<bool, BpfError> {
        let Some(connect) = &mut self.connect else { return Ok(false) };
        connect.apply(plan, dir_of).map(|()| true)
    }

    /// How balancing goes; `None`: this kernel cannot. One system call.
    pub fn balanced(&mut self) -> Option<Figures> {
        self.connect.as_mut().map(Connect::figures)
    }

    /// Connections open from this node to the replica that has this slot in the plan.
    #[must_use]
    pub fn open_connections(&self, slot: u32) -> Option<u64> {
        self.connect.as_ref()?.open(slot)
    }

    /// All that was counted for a watched container since [`Self::watch`], over all CPUs. `None`: not watched, or
    /// the kernel takes no counting programs. One system call, no allocation.
    pub fn counters(&mut self, cgroup_id: u64) -> Option<GroupCounters> {
        self.counting.as_mut()?.counters(cgroup_id)
    }

    /// Hands over CPU, memory and pressure of every watched container, in any order; a few system calls in all,
    /// no allocation. `false`: this kernel cannot, read the files instead. A container whose cgroup has gone is
    /// left out. Which fields are there differs per container: look at [`GroupSample::fields`]. CPU figures are of
    /// now; pressure totals up to 2 s old, see [`GroupSample::pressure_ns`].
    ///
    /// # Errors
    /// Where the kernel breaks the pass off. What was handed over until then is good.
    pub fn sample(&mut self, each: &mut dyn FnMut(&GroupSample)) -> Result<bool, BpfError> {
        self.groups.sample(each).map_err(BpfError::Pass)
    }

    /// Whether [`Self::sample`] works here.
    #[must_use]
    pub fn has_pass(&self) -> bool {
        self.groups.has_pass()
    }

    /// Whether [`Self::counters`] has the figures about requests.
    #[must_use]
    pub fn follows_requests(&self) -> bool {
        self.counting.as_ref().is_some_and(Counting::follows_requests)
    }

    /// How long tasks of a watched container, nested cgroups included, waited for a CPU since [`Self::watch`]. The
    /// count is of times that one of its tasks was switched to. `None`: not watched, or not to be had here.
    pub fn run_queue(&mut self, cgroup_id: u64) -> Option<Waits> {
        self.groups.waits(cgroup_id)
    }

    /// Where births, deaths and kills are told. `None` where the kernel takes no such program. Takes it out.
    pub fn events(&mut self) -> Option<EventSource> {
        self.events.take()
    }

    /// The traffic of [`Self::counters`].
    pub fn network(&mut self, cgroup_id: u64) -> Option<NetCounters> {
        self.counters(cgroup_id).map(|counters| counters.net)
    }

    /// Makes the kernel measure its BPF programs, for [`Self::costs`], as long as the answer lives. All of the
    /// machine's programs become some 20 ns a run slower meanwhile.
    ///
    /// # Errors
    /// Where the kernel (before 5.8) cannot, or the agent may not.
    pub fn measure(&self) -> Result<Measuring, BpfError> {
        cost::measure()
    }

    /// What each loaded program has cost while it was measured.
    #[must_use]
    pub fn costs(&self) -> Vec<ProgramCost> {
        cost::costs(&self.ebpf)
    }

    /// How many containers have counters.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.counting.as_ref().map_or(0, Counting::watched)
    }
}

/// Reads bytes as what a kernel and its programs hand over; for fuzzing. Panics on a defect.
pub(crate) fn try_bytes(data: &[u8]) {
    btf::try_bytes(data);
    events::try_bytes(data);
    let text = String::from_utf8_lossy(data);
    cost::try_text(&text);
    facts::try_text(&text);
}

/// Two descriptors for each container are more than the usual 1,024 allow on a full node. As far as this process
/// may; the limit is what a failing [`Programs::watch`] then names.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const WANTED: u64 = 65_536;
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|limit| limit >= WANTED) {
        return;
    }
    let most = now.maximum.map(|limit| limit.max(WANTED));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(WANTED), maximum: most });
    // Only the superuser may go beyond the maximum.
    if raised.is_err()
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum })
    {
        tracing::warn!("cannot raise the limit of open descriptors: {error}");
    }
}

/// Parses the embedded object and makes its maps.
fn read_object(options: Options, table: &[u32; OFFSETS]) -> Result<Ebpf, BpfError> {
    let level: u8 = if options.debug { aya_log::Level::Debug as u8 } else { 0 };
    EbpfLoader::new()
        // Nothing in the object is relocated by type: the table takes that place.
        .btf(None)
        .override_global(aya_log::LEVEL, &level, false)
        .override_global("KERNEL_OFFSETS", table, true)
        .load(OBJECT)
        .map_err(|error| BpfError::Refused(chain(&error)))
}

/// Does something to a program of the object, which is of the kind `P`.
fn with_program<P, T>(
    ebpf: &mut Ebpf,
    name: &str,
    run: impl FnOnce(&mut P) -> Result<T, ProgramError>,
) -> Result<T, String>
where
    for<'a> &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| format!("the BPF object has no program {name}: build it again"))?;
    program.try_into().and_then(run).map_err(|error| {
        // The verifier's listing, too long for anything but a debug log.
        tracing::debug!("{name}: {error:?}");
        format!("{name}: {}", chain(&error))
    })
}

/// An error and its causes on one line, without the verifier's listing, which belongs into a debug log.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = first_line(&error.to_string());
    let mut next = error.source();
    while let Some(cause) = next {
        let more = first_line(&cause.to_string());
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_without_programs_says_so_instead_of_trying() {
        let mut facts = KernelFacts::probe(Path::new("/proc"));
        facts.object_bytes = 0;
        let error = Programs::load(Path::new("/proc"), &facts, Options::default()).err();
        assert!(error.is_some_and(|error| error.to_string().contains("built without BPF programs")));
    }

    #[test]
    fn causes_stand_on_one_line() {
        let error = BpfError::Open { path: "/x".into(), source: io::Error::from_raw_os_error(libc::ENOENT) };
        assert_eq!(chain(&error), "cannot open /x: No such file or directory (os error 2)");
    }
}
