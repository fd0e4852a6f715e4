//! Counting per container: which of the two ways, and the reading of counters.
//!
//! The way of choice attaches to each container's cgroup ([`NetworkMode::Attached`]): the counters hang on the
//! attachment, so a packet costs no look-up, packets of nobody's container cost nothing at all, and nested
//! cgroups are covered because they inherit programs. Three descriptors per container. Where the kernel refuses
//! that, the programs at the root look the container up by cgroup id and the ids above it.
//!
//! Traffic before [`Counting::watch`] is not counted. Nothing is lost by that: rates are differences, and an
//! engine makes the cgroup a good while before the container's first process runs.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::maps::{Map, MapData};
use aya::programs::{CgroupSkb, SockOps};
use aya::{Ebpf, util::nr_cpus};
use swarmguard_common::kernel::{GroupCounters, MAX_GROUPS};

use super::sys::{self, AttachType};
use super::{BpfError, Finding, NetworkMode, Options, chain, with_program};

const WHAT: &str = "network per container";
const INSTEAD: &str = "/proc/<pid>/net/dev, which cannot tell host-network containers apart";
const REQUESTS: &str = "requests in flight per container";
const REQUESTS_INSTEAD: &str = "nothing: balancers know their own requests only";

/// The loaded counting programs and what they hold per container.
pub(super) struct Counting {
    how: How,
    map: MapData,
    /// One value for each possible CPU; kept, so that reading allocates nothing.
    values: Vec<GroupCounters>,
}

/// Programs with where each is attached.
type Attachments = Vec<(AttachType, OwnedFd)>;

enum How {
    Attached { programs: Attachments, links: HashMap<u64, Vec<OwnedFd>> },
    Root { groups: usize, _links: [OwnedFd; 2] },
}

impl Counting {
    /// Loads the programs of one way, or of the other where the kernel refuses the first.
    pub(super) fn start(
        ebpf: &mut Ebpf,
        root: &OwnedFd,
        options: Options,
        findings: &mut Vec<Finding>,
    ) -> Option<Self> {
        let mode = options.network;
        let mut requests = Ok(());
        let attached = match mode {
            NetworkMode::Root => Err("not wanted".to_owned()),
            NetworkMode::Best | NetworkMode::Attached => {
                let following = if options.requests {
                    Self::following_requests(ebpf)
                } else {
                    Err("switched off".to_owned())
                };
                following.or_else(|why| {
                    requests = Err(why);
                    Self::only_counting(ebpf)
                })
            }
        };
        let result = attached.and_then(|programs| {
            Self::with_map(ebpf, "GROUP_COUNTERS", How::Attached { programs, links: HashMap::new() })
        });
        let result = match result {
            Err(why) if mode != NetworkMode::Attached => {
                Self::at_root(ebpf, root).map_err(|root_why| format!("{why}; at the root: {root_why}"))
            }
            other => other,
        };
        if !result.as_ref().is_ok_and(Self::follows_requests) {
            requests = requests.and(Err("only where traffic is counted at each container".to_owned()));
        }
        let how = result.as_ref().map_or("", Self::describe);
        findings.push(Finding::of(WHAT, &result, how, INSTEAD));
        findings.push(Finding::of(
            REQUESTS,
            &requests,
            "BPF programs at each container's sockets",
            REQUESTS_INSTEAD,
        ));
        result.ok()
    }

    fn following_requests(ebpf: &mut Ebpf) -> Result<Attachments, String> {
        let mut programs = vec![
            (AttachType::Ingress, program(ebpf, "group_ingress_requests")?),
            (AttachType::Egress, program(ebpf, "group_egress_requests")?),
        ];
        let connections = with_program(ebpf, "group_connections", |program: &mut SockOps| {
            program.load()?;
            Ok(program.fd()?.as_fd().try_clone_to_owned()?)
        })?;
        programs.push((AttachType::SockOps, connections));
        Ok(programs)
    }

    fn only_counting(ebpf: &mut Ebpf) -> Result<Attachments, String> {
        Ok(vec![
            (AttachType::Ingress, program(ebpf, "group_ingress")?),
            (AttachType::Egress, program(ebpf, "group_egress")?),
        ])
    }

    fn at_root(ebpf: &mut Ebpf, root: &OwnedFd) -> Result<Self, String> {
        let attach = |program: OwnedFd, kind| {
            sys::attach_cgroup(program.as_fd(), root.as_fd(), kind)
                .map_err(|error| format!("cannot attach: {error}"))
        };
        let links = [
            attach(program(ebpf, "root_ingress")?, AttachType::Ingress)?,
            attach(program(ebpf, "root_egress")?, AttachType::Egress)?,
        ];
        Self::with_map(ebpf, "ROOT_COUNTERS", How::Root { groups: 0, _links: links })
    }

    fn with_map(ebpf: &mut Ebpf, name: &str, how: How) -> Result<Self, String> {
        let map = match ebpf.take_map(name) {
            Some(Map::PerCpuHashMap(map) | Map::PerCpuCgroupStorage(map)) => map,
            _ => return Err(format!("the BPF object has no map {name}: build it again")),
        };
        let info = map.info().map_err(|error| chain(&error))?;
        if info.value_size() as usize != size_of::<GroupCounters>() {
            return Err(format!("the map {name} is of another version than the agent: build both again"));
        }
        let cpus = nr_cpus().map_err(|(file, error)| format!("cannot read {file}: {error}"))?;
        Ok(Self { how, map, values: vec![GroupCounters::default(); cpus] })
    }

    fn describe(&self) -> &'static str {
        match self.how {
            How::Attached { .. } => "a BPF program at each container's cgroup",
            How::Root { .. } => "BPF programs at the root of the cgroup hierarchy",
        }
    }

    pub(super) fn watch(&mut self, cgroup_id: u64, dir: &Path) -> Result<(), BpfError> {
        let failed = |what, source| BpfError::Group { what, cgroup_id, source };
        match &mut self.how {
            How::Attached { programs, links } => {
                if links.contains_key(&cgroup_id) {
                    return Ok(());
                }
                if links.len() >= MAX_GROUPS as usize {
                    return Err(failed("watch", io::Error::from_raw_os_error(libc::E2BIG)));
                }
                let dir =
                    File::open(dir).map_err(|source| BpfError::Open { path: dir.to_owned(), source })?;
                let attached: Result<Vec<OwnedFd>, BpfError> = programs
                    .iter()
                    .map(|(kind, program)| {
                        sys::attach_cgroup(program.as_fd(), dir.as_fd(), *kind)
                            .map_err(|source| failed("attach a program to", source))
                    })
                    .collect();
                let attached = attached?;
                // The storage outlives its attachments: a cgroup that was forgotten once still has old counts.
                self.values.fill(GroupCounters::default());
                sys::update(self.map.fd().as_fd(), cgroup_id, &self.values)
                    .map_err(|source| failed("reset the counters of", source))?;
                links.insert(cgroup_id, attached);
            }
            How::Root { groups, .. } => {
                if sys::lookup(self.map.fd().as_fd(), cgroup_id, &mut self.values)
                    .map_err(|source| failed("look up", source))?
                {
                    return Ok(());
                }
                self.values.fill(GroupCounters::default());
                sys::update(self.map.fd().as_fd(), cgroup_id, &self.values)
                    .map_err(|source| failed("add", source))?;
                *groups += 1;
            }
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, cgroup_id: u64) {
        match &mut self.how {
            How::Attached { links, .. } => {
                // Closing the links detaches; the kernel frees the storage with the cgroup, or with the map.
                links.remove(&cgroup_id);
            }
            How::Root { groups, .. } => match sys::delete(self.map.fd().as_fd(), cgroup_id) {
                Ok(true) => *groups = groups.saturating_sub(1),
                Ok(false) => {}
                Err(error) => tracing::warn!("cannot forget the counters of cgroup {cgroup_id}: {error}"),
            },
        }
    }

    pub(super) fn counters(&mut self, cgroup_id: u64) -> Option<GroupCounters> {
        if let How::Attached { links, .. } = &self.how
            && !links.contains_key(&cgroup_id)
        {
            return None;
        }
        match sys::lookup(self.map.fd().as_fd(), cgroup_id, &mut self.values) {
            Ok(true) => {}
            // Anything but "not there" would be a defect of ours; the caller's next source then serves.
            Ok(false) | Err(_) => return None,
        }
        let mut sum = GroupCounters::default();
        for value in &self.values {
            sum.add(value);
        }
        Some(sum)
    }

    pub(super) fn follows_requests(&self) -> bool {
        matches!(&self.how, How::Attached { programs, .. } if programs.iter().any(|(kind, _)| *kind == AttachType::SockOps))
    }

    pub(super) fn watched(&self) -> usize {
        match &self.how {
            How::Attached { links, .. } => links.len(),
            How::Root { groups, .. } => *groups,
        }
    }
}

/// Loads a program and keeps a descriptor of it.
fn program(ebpf: &mut Ebpf, name: &str) -> Result<OwnedFd, String> {
    with_program(ebpf, name, |program: &mut CgroupSkb| {
        program.load()?;
        Ok(program.fd()?.as_fd().try_clone_to_owned()?)
    })
}
