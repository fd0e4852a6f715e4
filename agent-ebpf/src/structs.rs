//! Reading structures of the running kernel at offsets that the agent has resolved.
//!
//! The table is constant data to the verifier: it follows each offset as a known number and drops the code of
//! fields that this kernel does not have. It also knows the types of what a program is handed, and of what pointers in
//! there lead to: so fields are loaded, not copied by a helper, which took a fifth of all that a pass over containers
//! costs the agent. A bad address reads as 0.

use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use swarmguard_common::kernel::{MAX_LEVEL, OFFSETS, offset};

/// The offsets, set by the loader before the programs are verified.
#[unsafe(no_mangle)]
static KERNEL_OFFSETS: [u32; OFFSETS] = [offset::ABSENT; OFFSETS];

/// An entry of the table; `None` where this kernel has no such field.
#[inline(always)]
fn offset_of(index: usize) -> Option<usize> {
    // SAFETY: within the table, checked below. Volatile, because the compiler sees only the values from above.
    let at = unsafe { core::ptr::read_volatile((&raw const KERNEL_OFFSETS).cast::<u32>().add(index)) };
    if at == offset::ABSENT { None } else { Some(at as usize) }
}

/// The field at an entry of the table; `None` where there is none.
#[inline(always)]
pub fn field<T>(of: *const c_void, index: usize) -> Option<T> {
    Some(load(of, offset_of(index)?))
}

/// The same of something whose type the verifier does not know.
#[inline(always)]
pub fn probed<T>(of: *const c_void, index: usize) -> Option<T> {
    probe(of, offset_of(index)?)
}

#[inline(always)]
fn probe<T>(of: *const c_void, at: usize) -> Option<T> {
    // SAFETY: the helper checks the address, and fails on a bad one.
    unsafe { bpf_probe_read_kernel(of.cast::<u8>().wrapping_add(at).cast::<T>()) }.ok()
}

/// The numbers of an array that begins at an entry of the table.
#[inline(always)]
pub fn numbers<const N: usize>(of: *const c_void, index: usize) -> Option<[u64; N]> {
    let first = offset_of(index)?;
    let mut all = [0; N];
    let mut at = 0;
    while at < N {
        all[at] = load(of, first + 8 * at);
        at += 1;
    }
    Some(all)
}

/// The pointer at an entry of the table; `None` where it is null.
#[inline(always)]
pub fn pointer(of: *const c_void, index: usize) -> Option<*const c_void> {
    not_null(field(of, index)?)
}

#[inline(always)]
fn not_null(to: *const c_void) -> Option<*const c_void> {
    if to.is_null() { None } else { Some(to) }
}

#[inline(always)]
fn load<T>(of: *const c_void, at: usize) -> T {
    // SAFETY: checked by the verifier. Volatile, so that each load is one of a field of its structure.
    unsafe { core::ptr::read_volatile(of.cast::<u8>().wrapping_add(at).cast::<T>()) }
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

/// Inode number of the directory of the cgroup above another at a level; its own at its own.
#[inline(always)]
pub fn ancestor_id(cgroup: *const c_void, level: u32) -> Option<u64> {
    if level > MAX_LEVEL {
        return None;
    }
    // The array is open at its end, where the verifier sees the structure end.
    let at = offset_of(offset::CGROUP_ANCESTORS)? + 8 * level as usize;
    let ancestor = not_null(probe(cgroup, at)?)?;
    probed(not_null(probed(ancestor, offset::CGROUP_KN)?)?, offset::KN_ID)
}
