//! The few bpf(2) calls that are made ten times a second, or that aya does not know.
//!
//! aya's map types allocate a vector for each per-CPU value they read, and its iterators take no cgroup.
//! Everything else (objects, relocation, program loading) stays with aya.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use swarmguard_common::kernel::{ConnectCounters, Frontend, GroupCounters, GroupSample, Leases, Waits};

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const LINK_CREATE: libc::c_int = 28;
const ITER_CREATE: libc::c_int = 33;
const BPF_TRACE_ITER: u32 = 28;
/// `BPF_CGROUP_ITER_DESCENDANTS_PRE`.
const DESCENDANTS: u32 = 2;

/// What a link ties a program to: `enum bpf_attach_type`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachType {
    Ingress = 0,
    Egress = 1,
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    PeerName4 = 29,
    PeerName6 = 30,
    SockRelease = 34,
}

/// `union bpf_attr` for calls on one element of a map.
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    extra: u64,
    extra_len: u32,
    padding: u32,
}

/// `union bpf_iter_link_info` for cgroups.
#[repr(C)]
struct CgroupIterInfo {
    order: u32,
    cgroup_fd: u32,
    cgroup_id: u64,
}

/// `union bpf_attr` for `BPF_ITER_CREATE`.
#[repr(C)]
struct IterAttr {
    link_fd: u32,
    flags: u32,
}

/// Plain integers without padding: any bytes that the kernel writes are a value.
///
/// # Safety
/// The type must be `#[repr(C)]`, without padding, and valid for every bit pattern.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: integers.
unsafe impl Plain for u64 {}
// SAFETY: `#[repr(C)]` integers, size asserted where it is defined.
unsafe impl Plain for GroupCounters {}
// SAFETY: the same.
unsafe impl Plain for Waits {}
// SAFETY: the same.
unsafe impl Plain for GroupSample {}
// SAFETY: the same.
unsafe impl Plain for Frontend {}
// SAFETY: the same.
unsafe impl Plain for Leases {}
// SAFETY: the same.
unsafe impl Plain for ConnectCounters {}

/// Reads the value of `key`: one `V`, or one for each possible CPU. `false`: there is none.
pub(super) fn lookup<V: Plain>(map: BorrowedFd<'_>, key: u64, into: &mut [V]) -> io::Result<bool> {
    let mut attr = element(map, &key);
    attr.value = into.as_mut_ptr() as u64;
    // SAFETY: the caller's slice has room for what this map holds: its size is checked where the map is opened.
    match unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sets the value of `key`.
pub(super) fn update<V: Plain>(map: BorrowedFd<'_>, key: u64, value: &[V]) -> io::Result<()> {
    let mut attr = element(map, &key);
    attr.value = value.as_ptr() as u64;
    // SAFETY: as in `lookup`; the kernel only reads.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(|_| ())
}

/// Removes `key`. `false`: there was none.
pub(super) fn delete(map: BorrowedFd<'_>, key: u64) -> io::Result<bool> {
    let mut attr = element(map, &key);
    // SAFETY: the key is alive for the call.
    match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Ties a program to a cgroup. The program runs until the descriptor is closed, so it never outlives the agent.
pub(super) fn attach_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr {
        prog_fd: raw(program),
        target_fd: raw(cgroup),
        attach_type: attach_type as u32,
        ..LinkAttr::default()
    };
    // SAFETY: no pointers in there.
    let fd = unsafe { bpf(LINK_CREATE, &mut attr) }?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ties an iterator program to a cgroup and all below it. aya's own `Iter::attach` cannot name a cgroup.
pub(super) fn attach_cgroup_iter(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let info = CgroupIterInfo { order: DESCENDANTS, cgroup_fd: raw(cgroup), cgroup_id: 0 };
    let mut attr = LinkAttr {
        prog_fd: raw(program),
        attach_type: BPF_TRACE_ITER,
        extra: std::ptr::from_ref(&info) as u64,
        extra_len: 16,
        ..LinkAttr::default()
    };
    // SAFETY: `info` is alive for the call, and as long as it says.
    let fd = unsafe { bpf(LINK_CREATE, &mut attr) }?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Begins one pass of an iterator; reading the descriptor to its end runs it.
fn iterate(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = IterAttr { link_fd: raw(link), flags: 0 };
    // SAFETY: no pointers in there.
    let fd = unsafe { bpf(ITER_CREATE, &mut attr) }?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs an iterator that has no output of its own, once.
pub(super) fn run_pass(link: BorrowedFd<'_>) -> io::Result<()> {
    let pass = iterate(link)?;
    let mut nothing = [0u8; 8];
    // SAFETY: the buffer is ours and as long as it says.
    let read = unsafe { libc::read(pass.as_raw_fd(), nothing.as_mut_ptr().cast(), nothing.len()) };
    if read < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A map of the array kind, seen in the agent's own memory.
pub(super) struct Mapped<T> {
    start: *const T,
    len: usize,
}

// SAFETY: nothing but memory that stays where it is; only this process's threads of one owner read it.
unsafe impl<T: Plain> Send for Mapped<T> {}

impl<T: Plain> Mapped<T> {
    /// Maps `len` values, which must be all that the map holds, and multiples of 8 bytes as the kernel lays them out.
    pub(super) fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        // SAFETY: a new mapping, read-only, anywhere.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len * size_of::<T>(),
                libc::PROT_READ,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), len })
    }

    /// A copy of a value; `None` beyond the end.
    pub(super) fn get(&self, index: usize) -> Option<T> {
        if index >= self.len {
            return None;
        }
        // SAFETY: within the mapping. Volatile, because the kernel writes it.
        Some(unsafe { std::ptr::read_volatile(self.start.add(index)) })
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: our mapping, and nobody holds a reference into it.
        unsafe { libc::munmap(self.start.cast_mut().cast(), self.len * size_of::<T>()) };
    }
}

fn element(map: BorrowedFd<'_>, key: &u64) -> ElementAttr {
    ElementAttr { map_fd: raw(map), key: std::ptr::from_ref(key) as u64, ..ElementAttr::default() }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // A borrowed descriptor is never negative.
    fd.as_raw_fd().cast_unsigned()
}

/// # Safety
/// What the pointers in `attr` point to must be alive and of the size that the call expects.
unsafe fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_int> {
    // SAFETY: the structure is a prefix of `union bpf_attr`; the kernel takes the rest as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(result).map_err(io::Error::other)
}
