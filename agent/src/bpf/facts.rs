//! What this kernel and this process may do, looked at once at start.
//!
//! The agent decides from these facts and from which programs really load (see [`super::Programs::findings`]);
//! nothing is tried again later, and each missing thing is said once, with what still works.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// `CAP_NET_ADMIN`.
pub const CAP_NET_ADMIN: u32 = 12;
/// `CAP_SYS_ADMIN`.
pub const CAP_SYS_ADMIN: u32 = 21;
/// `CAP_PERFMON`, since 5.8.
pub const CAP_PERFMON: u32 = 38;
/// `CAP_BPF`, since 5.8.
pub const CAP_BPF: u32 = 39;

const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// Facts about kernel and process, for the choice of sources and for `doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFacts {
    /// `uname -r`.
    pub release: String,
    /// Major and minor version; `(0, 0)` where `release` does not begin with them.
    pub version: (u32, u32),
    /// Kernel type information is readable: tracing programs and iterators can be loaded.
    pub btf: bool,
    /// Where cgroup v2 is mounted, if it is a cgroup v2 at all.
    pub cgroup2: Option<PathBuf>,
    /// That mount is the root of the hierarchy, not a part of it that a cgroup namespace shows.
    pub cgroup2_root: bool,
    /// Effective capabilities, bit by number.
    pub capabilities: u64,
    /// Size of the object this agent was built with; 0: built without BPF programs.
    pub object_bytes: usize,
}

impl KernelFacts {
    /// Looks at the running system. Nothing here can fail: what cannot be read is not there.
    #[must_use]
    pub fn probe(cgroup_root: &Path) -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            version: version(&release),
            release,
            btf: fs::File::open("/sys/kernel/btf/vmlinux").is_ok(),
            cgroup2: is_cgroup2(cgroup_root).then(|| cgroup_root.to_owned()),
            // The root of the hierarchy has no state of its own, hence no such file.
            cgroup2_root: is_cgroup2(cgroup_root) && !cgroup_root.join("cgroup.type").exists(),
            capabilities: effective_capabilities(&status),
            object_bytes: super::OBJECT.len(),
        }
    }

    /// Has this capability.
    #[must_use]
    pub fn has(&self, capability: u32) -> bool {
        self.capabilities >> capability & 1 == 1
    }

    /// May load networking and tracing programs.
    #[must_use]
    pub fn may_load(&self) -> bool {
        self.has(CAP_SYS_ADMIN) || (self.has(CAP_BPF) && self.has(CAP_NET_ADMIN) && self.has(CAP_PERFMON))
    }

    /// Why no program can run here, with what to do about it; `None` where it is worth trying.
    #[must_use]
    pub fn obstacle(&self) -> Option<String> {
        if self.object_bytes == 0 {
            return Some(
                "this agent was built without BPF programs: run cargo xtask build-ebpf and build it again"
                    .to_owned(),
            );
        }
        if self.cgroup2.is_none() {
            return Some(
                "no cgroup v2 is mounted where the agent looks: bind the host's /sys/fs/cgroup".to_owned(),
            );
        }
        if !self.may_load() {
            return Some(
                "the agent may not load BPF programs: give it CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, or CAP_SYS_ADMIN"
                    .to_owned(),
            );
        }
        None
    }
}

/// Whether a cgroup v2 file system is mounted at `path`.
#[must_use]
pub fn is_cgroup2(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: all zeroes is a valid value of this C structure.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is NUL-terminated and the structure is ours.
    unsafe { libc::statfs(path.as_ptr(), &raw mut about) == 0 && about.f_type == CGROUP2_MAGIC }
}

fn version(release: &str) -> (u32, u32) {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (0, 0),
    }
}

fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// Reads a text as a release and as `/proc/self/status`; for fuzzing.
pub(super) fn try_text(text: &str) {
    let _ = (version(text), effective_capabilities(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> KernelFacts {
        KernelFacts {
            release: "6.1.0-32-cloud-amd64".to_owned(),
            version: (6, 1),
            btf: true,
            cgroup2: Some("/sys/fs/cgroup".into()),
            cgroup2_root: true,
            capabilities: 1 << CAP_SYS_ADMIN,
            object_bytes: 1,
        }
    }

    #[test]
    fn versions_of_distribution_kernels() {
        assert_eq!(version("6.1.0-32-cloud-amd64"), (6, 1));
        assert_eq!(version("5.15.167.4-microsoft-standard-WSL2"), (5, 15));
        assert_eq!(version("6.18"), (6, 18));
        assert_eq!(version("next"), (0, 0));
        assert_eq!(version(""), (0, 0));
    }

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        let all = effective_capabilities("Name:\tx\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n");
        assert_eq!(all, 0x1ff_ffff_ffff);
        assert_eq!(effective_capabilities("CapEff:\tnonsense\n"), 0);
        assert_eq!(effective_capabilities(""), 0);
    }

    #[test]
    fn new_capabilities_stand_for_the_old_one_only_together() {
        let with = |bits: &[u32]| KernelFacts {
            capabilities: bits.iter().fold(0, |all, bit| all | 1 << bit),
            ..facts()
        };
        assert!(with(&[CAP_SYS_ADMIN]).may_load());
        assert!(with(&[CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN]).may_load());
        assert!(!with(&[CAP_BPF, CAP_PERFMON]).may_load());
        assert!(!with(&[]).may_load());
    }

    #[test]
    fn the_first_obstacle_is_named_with_its_remedy() {
        assert_eq!(facts().obstacle(), None);
        let none = KernelFacts { object_bytes: 0, cgroup2: None, capabilities: 0, ..facts() };
        assert!(none.obstacle().is_some_and(|why| why.contains("cargo xtask build-ebpf")));
        let blind = KernelFacts { cgroup2: None, ..facts() };
        assert!(blind.obstacle().is_some_and(|why| why.contains("/sys/fs/cgroup")));
        let barred = KernelFacts { capabilities: 0, ..facts() };
        assert!(barred.obstacle().is_some_and(|why| why.contains("CAP_SYS_ADMIN")));
    }

    #[test]
    fn a_plain_directory_is_no_cgroup() {
        assert!(!is_cgroup2(Path::new("/proc/self")));
        assert!(!is_cgroup2(Path::new("/no/such/place")));
    }
}
