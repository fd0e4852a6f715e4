//! Reading structures of the running kernel at offsets that the agent has resolved.
//!
//! The table is constant data to the verifier: it follows each offset as a known number and drops the code of
//! fields that this kernel does not have.

use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use swarmguard_common::kernel::{MAX_LEVEL, OFFSETS, offset};

/// The offsets, set by the loader before the programs are verified.
#[unsafe(no_mangle)]
static KERNEL_OFFSETS: [u32; OFFSETS] = [offset::ABSENT; OFFSETS];

/// An entry of the table; `None` where this kernel has no such field.
#[inline(always)]
pub fn offset_of(index: usize) -> Option<usize> {
    // SAFETY: within the table, checked below. Volatile, because the compiler sees only the values from above.
    let at = unsafe { core::ptr::read_volatile((&raw const KERNEL_OFFSETS).cast::<u32>().add(index)) };
    if at == offset::ABSENT { None } else { Some(at as usize) }
}

/// The field at an entry of the table; `None` where it cannot be read.
#[inline(always)]
pub fn field<T>(of: *const c_void, index: usize) -> Option<T> {
    read(of, offset_of(index)?)
}

/// The pointer at an entry of the table; `None` where it is null.
#[inline(always)]
pub fn pointer(of: *const c_void, index: usize) -> Option<*const c_void> {
    let to: u64 = field(of, index)?;
    if to == 0 { None } else { Some(to as *const c_void) }
}

#[inline(always)]
fn read<T>(of: *const c_void, at: usize) -> Option<T> {
    // SAFETY: the helper checks the address, and fails on a bad one.
    unsafe { bpf_probe_read_kernel(of.cast::<u8>().wrapping_add(at).cast::<T>()) }.ok()
}

/// Inode number of a cgroup's directory.
#[inline(always)]
pub fn cgroup_id(cgroup: *const c_void) -> Option<u64> {
    field(pointer(cgroup, offset::CGROUP_KN)?, offset::KN_ID)
}

/// Whether a cgroup is of the version 2 hierarchy.
#[inline(always)]
pub fn is_cgroup2(cgroup: *const c_void) -> bool {
    match pointer(cgroup, offset::CGROUP_ROOT) {
        Some(root) => field::<i32>(root, offset::ROOT_HIERARCHY) == Some(0),
        None => false,
    }
}

/// The version 2 cgroup of a task.
#[inline(always)]
pub fn cgroup_of(task: *const c_void) -> Option<*const c_void> {
    pointer(pointer(task, offset::TASK_CGROUPS)?, offset::CSS_SET_DFL)
}

/// The cgroup above another at a level; itself at its own.
#[inline(always)]
pub fn ancestor(cgroup: *const c_void, level: u32) -> Option<*const c_void> {
    if level > MAX_LEVEL {
        return None;
    }
    let to: u64 = read(cgroup, offset_of(offset::CGROUP_ANCESTORS)? + 8 * level as usize)?;
    if to == 0 { None } else { Some(to as *const c_void) }
}
