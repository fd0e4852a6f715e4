//! Balancing at `connect()`: the programs, where they are attached, and what their maps hold.
//!
//! Loaded at start, attached to a container only when a plan names it: where no service asks for this, no system call
//! of any container runs a program. An attachment stays until its container ends, for what is open must be counted to
//! its end; without entries in the maps it changes nothing.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
    programs::{CgroupSock, CgroupSockAddr},
    util::nr_cpus,
};
use swarmguard_common::kernel::{ConnectCounters, Frontend, Leases, MAX_LEASES};

use super::{
    BpfError, Finding,
    sys::{self, AttachType, Mapped},
    with_program,
};
use crate::connect::{Figures, Plan};

const WHAT: &str = "balancing at connect()";
const INSTEAD: &str = "connections to virtual addresses go where Swarm's own balancing sends them";

/// The programs by name, and where each belongs.
const PROGRAMS: [(&str, AttachType); 4] = [
    ("connect_v4", AttachType::Connect4),
    ("connect_v6", AttachType::Connect6),
    ("peer_name_v4", AttachType::PeerName4),
    ("peer_name_v6", AttachType::PeerName6),
];

/// The loaded programs and what they hold.
pub(super) struct Connect {
    programs: Vec<(AttachType, OwnedFd)>,
    links: HashMap<u64, Vec<OwnedFd>>,
    scopes: MapData,
    frontends: MapData,
    leases: MapData,
    open: Mapped<Leases>,
    counters: MapData,
    values: Vec<ConnectCounters>,
    /// What the maps hold now.
    given: BTreeMap<u64, u32>,
    applied: BTreeMap<u64, Frontend>,
    slots: Vec<u32>,
    figures: Figures,
}

impl Connect {
    /// Loads the programs, where the kernel takes them.
    pub(super) fn start(ebpf: &mut Ebpf, wanted: bool, findings: &mut Vec<Finding>) -> Option<Self> {
        let result = if wanted { Self::load(ebpf) } else { Err("switched off".to_owned()) };
        findings.push(Finding::of(
            WHAT,
            &result,
            "BPF programs at the calls of containers, on demand",
            INSTEAD,
        ));
        result.ok()
    }

    fn load(ebpf: &mut Ebpf) -> Result<Self, String> {
        let mut programs = Vec::with_capacity(PROGRAMS.len() + 1);
        // What ends a count comes first: without it nothing may begin.
        let release = with_program(ebpf, "connect_release", |program: &mut CgroupSock| {
            program.load()?;
            Ok(program.fd()?.as_fd().try_clone_to_owned()?)
        })?;
        programs.push((AttachType::SockRelease, release));
        for (name, kind) in PROGRAMS {
            let program = with_program(ebpf, name, |program: &mut CgroupSockAddr| {
                program.load()?;
                Ok(program.fd()?.as_fd().try_clone_to_owned()?)
            })?;
            programs.push((kind, program));
        }
        let mut take = |name: &str| match ebpf.take_map(name) {
            Some(Map::CgroupStorage(map) | Map::HashMap(map) | Map::Array(map) | Map::PerCpuArray(map)) => {
                Ok(map)
            }
            _ => Err(format!("the BPF object has no map {name}: build it again")),
        };
        let (scopes, frontends) = (take("SCOPES")?, take("FRONTENDS")?);
        let (leases, counters) = (take("LEASES")?, take("CONNECT_COUNTERS")?);
        let fits =
            |map: &MapData, size: usize| map.info().is_ok_and(|info| info.value_size() as usize == size);
        if !fits(&frontends, size_of::<Frontend>())
            || !fits(&leases, size_of::<Leases>())
            || !fits(&counters, size_of::<ConnectCounters>())
        {
            return Err("the maps are of another version than the agent: build both again".to_owned());
        }
        let open = Mapped::new(leases.fd().as_fd(), MAX_LEASES as usize)
            .map_err(|error| format!("cannot map the leases: {error}"))?;
        let cpus = nr_cpus().map_err(|(file, error)| format!("cannot read {file}: {error}"))?;
        Ok(Self {
            programs,
            links: HashMap::new(),
            scopes,
            frontends,
            leases,
            open,
            counters,
            values: vec![ConnectCounters::default(); cpus],
            given: BTreeMap::new(),
            applied: BTreeMap::new(),
            slots: Vec::new(),
            figures: Figures::default(),
        })
    }

    /// Brings the maps to what a plan says; `dir_of` knows the containers' directories. What fails is left to Swarm's
    /// own balancing and answered, the first of it.
    pub(super) fn apply<'a>(
        &mut self,
        plan: &Plan,
        dir_of: &dyn Fn(u64) -> Option<&'a Path>,
    ) -> Result<(), BpfError> {
        let mut first = Ok(());
        let mut note = |result: Result<(), BpfError>| {
            if first.is_ok() {
                first = result;
            }
        };
        // In this order nothing is ever counted under a name that is not its own, nor sent to what is gone.
        for (slot, generation) in &plan.renewed {
            let fresh = [Leases { open: 0, generation: *generation }];
            note(set(&self.leases, u64::from(*slot), &fresh).map_err(unable("reset the count of a replica")));
        }
        let gone: Vec<u64> =
            self.applied.keys().filter(|key| !plan.frontends.contains_key(key)).copied().collect();
        for key in gone {
            let removed = sys::delete(fd(&self.frontends), key).map_err(unable("take a route away"));
            if removed.is_ok() {
                self.applied.remove(&key);
            }
            note(removed.map(drop));
        }
        for (key, frontend) in &plan.frontends {
            if self.applied.get(key) != Some(frontend) {
                let given = set(&self.frontends, *key, &[*frontend]).map_err(unable("give a route"));
                if given.is_ok() {
                    self.applied.insert(*key, *frontend);
                }
                note(given);
            }
        }
        self.slots.clone_from(&plan.slots);
        self.figures.frontends = self.applied.len() as u64;
        (self.figures.left_out, self.figures.ambiguous) = (plan.left_out, plan.ambiguous);
        if let Some(scopes) = &plan.scopes {
            let lost: Vec<u64> = self.given.keys().filter(|id| !scopes.contains_key(id)).copied().collect();
            for id in lost {
                note(self.give(id, 0));
            }
            for (id, scope) in scopes {
                if let Some(dir) = dir_of(*id) {
                    note(self.attach(*id, dir).and_then(|()| self.give(*id, *scope)));
                }
            }
        }
        first
    }

    fn attach(&mut self, cgroup_id: u64, dir: &Path) -> Result<(), BpfError> {
        if self.links.contains_key(&cgroup_id) {
            return Ok(());
        }
        let dir = File::open(dir).map_err(|source| BpfError::Open { path: dir.to_owned(), source })?;
        let attach = |(kind, program): &(AttachType, OwnedFd)| {
            sys::attach_cgroup(program.as_fd(), dir.as_fd(), *kind)
                .map_err(failed("attach a program to", cgroup_id))
        };
        let links: Result<Vec<OwnedFd>, BpfError> = self.programs.iter().map(attach).collect();
        self.links.insert(cgroup_id, links?);
        // The storage outlives its attachments.
        self.given.remove(&cgroup_id);
        Ok(())
    }

    fn give(&mut self, cgroup_id: u64, scope: u32) -> Result<(), BpfError> {
        if self.given.get(&cgroup_id) == Some(&scope) {
            return Ok(());
        }
        set(&self.scopes, cgroup_id, &[u64::from(scope)])
            .map_err(failed("tell the networks of", cgroup_id))?;
        self.given.insert(cgroup_id, scope);
        Ok(())
    }

    /// A container ended.
    pub(super) fn forget(&mut self, cgroup_id: u64) {
        self.links.remove(&cgroup_id);
        self.given.remove(&cgroup_id);
    }

    /// How it goes. One system call.
    pub(super) fn figures(&mut self) -> Figures {
        let mut sum = ConnectCounters::default();
        if sys::lookup(fd(&self.counters), 0, &mut self.values).unwrap_or(false) {
            self.values.iter().for_each(|value| sum.add(value));
        }
        let open = self.slots.iter().filter_map(|slot| self.open(*slot));
        self.figures.open = open.fold(0, u64::saturating_add);
        (self.figures.directed, self.figures.refused) = (sum.directed, sum.refused);
        self.figures.containers = self.given.values().filter(|scope| **scope != 0).count() as u64;
        self.figures
    }

    /// Connections open to the replica in a slot.
    pub(super) fn open(&self, slot: u32) -> Option<u64> {
        Some(self.open.get(slot as usize)?.open)
    }
}

/// Array maps have keys of four bytes: the lower half, on every machine for which the object is built (`bpfel`).
fn set<V: sys::Plain>(map: &MapData, key: u64, value: &[V]) -> io::Result<()> {
    sys::update(fd(map), key, value)
}

fn fd(map: &MapData) -> BorrowedFd<'_> {
    map.fd().as_fd()
}

fn failed(what: &'static str, cgroup_id: u64) -> impl FnOnce(io::Error) -> BpfError {
    move |source| BpfError::Group { what, cgroup_id, source }
}

fn unable(what: &'static str) -> impl FnOnce(io::Error) -> BpfError {
    move |source| BpfError::Balance { what, source }
}
