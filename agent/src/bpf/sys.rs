//! The few bpf(2) calls that are made ten times a second, or that aya does not know.
//!
//! aya's map types allocate a vector for each per-CPU value they read, and its iterators take no cgroup.
//! Everything else (objects, relocation, program loading) stays with aya.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const LINK_CREATE: libc::c_int = 28;

/// What a link ties a program to: `enum bpf_attach_type`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachType {
    Ingress = 0,
    Egress = 1,
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

/// Plain integers without padding: any bytes that the kernel writes are a value.
///
/// # Safety
/// The type must be `#[repr(C)]`, without padding, and valid for every bit pattern.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: integers.
unsafe impl Plain for u64 {}
// SAFETY: `#[repr(C)]` integers, size asserted where it is defined.
unsafe impl Plain for swarmguard_common::kernel::GroupCounters {}

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
