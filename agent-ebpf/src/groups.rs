//! All watched cgroups in one pass: the kernel walks its own tree and hands over what the files would say.
//!
//! Reading three files of one container costs some microseconds of system calls and number formatting; this
//! costs some hundred nanoseconds. What the kernel sums up lazily is as fresh as the last time somebody made
//! it do so: the agent reads `cpu.stat` of the directory above first, which brings all below it up to date.

use aya_ebpf::cty::c_void;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuHashMap};
use swarmguard_common::kernel::{
    GroupSample, HAS_CPU, HAS_MEMORY, HAS_PRESSURE, HAS_THROTTLING, MAX_GROUPS, Waits, offset,
};

use crate::structs::{cgroup_id, field, numbers, pointer, probed};

/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`: the agent sees these maps in its own memory.
const MMAPABLE: u32 = 1 << 10;
const PAGE: u64 = 4096;

/// The watched cgroups, kept by the agent; the value is their time spent waiting for a CPU.
#[map]
pub static GROUPS: PerCpuHashMap<u64, Waits> = PerCpuHashMap::with_max_entries(MAX_GROUPS, NO_PREALLOC);

/// The samples of a pass. Not the iterator's own output: that ends at 32 KiB, for a pass over cgroups cannot
/// be taken up again after the lock has been let go.
#[map]
static SAMPLES: Array<GroupSample> = Array::with_max_entries(MAX_GROUPS, MMAPABLE);

/// How many samples the running, or the last, pass has made.
#[map]
static SAMPLE_COUNT: Array<u64> = Array::with_max_entries(1, MMAPABLE);

/// `struct bpf_iter__cgroup`, which is part of the kernel's interface.
#[repr(C)]
struct Context {
    meta: *const Meta,
    cgroup: *const c_void,
}

/// `struct bpf_iter_meta`, the same.
#[repr(C)]
struct Meta {
    seq: *const c_void,
    session_id: u64,
    seq_num: u64,
}

/// Runs for each cgroup; the last time with none.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/cgroup")]
extern "C" fn sample_groups(ctx: *const c_void) -> i32 {
    let ctx = ctx.cast::<Context>();
    // SAFETY: the kernel's own structures, checked by the verifier.
    let (cgroup, number) = unsafe { ((*ctx).cgroup, (*(*ctx).meta).seq_num) };
    let Some(count) = SAMPLE_COUNT.get_ptr_mut(0) else { return 0 };
    if number == 0 {
        // SAFETY: passes run under the kernel's cgroup lock, one at a time.
        unsafe { *count = 0 };
    }
    if cgroup.is_null() {
        return 0;
    }
    let Some(id) = cgroup_id(cgroup) else { return 0 };
    if GROUPS.get_ptr_mut(&id).is_none() {
        return 0;
    }
    // SAFETY: as above; the map refuses an index beyond its end.
    let Some(sample) = (unsafe { SAMPLES.get_ptr_mut(*count as u32) }) else { return 0 };
    // SAFETY: as above.
    unsafe {
        *sample = GroupSample { cgroup_id: id, ..GroupSample::default() };
        read_cpu(cgroup, &mut *sample);
        read_memory(cgroup, &mut *sample);
        read_pressure(cgroup, &mut *sample);
        *count += 1;
    }
    0
}

#[inline(always)]
fn read_cpu(cgroup: *const c_void, sample: &mut GroupSample) {
    if let Some(used) = field(cgroup, offset::CGROUP_CPU) {
        sample.cpu_ns = used;
        sample.fields |= HAS_CPU;
    }
    // There only where the controller is on; its structure begins with what the pointer points to.
    let Some(group) = pointer(cgroup, offset::CGROUP_CSS_CPU) else { return };
    let (Some(periods), Some(throttled), Some(time)) = (
        probed::<u32>(group, offset::TG_PERIODS),
        probed::<u32>(group, offset::TG_THROTTLED),
        probed::<u64>(group, offset::TG_THROTTLED_TIME),
    ) else {
        return;
    };
    sample.periods = u64::from(periods);
    sample.throttled = u64::from(throttled);
    sample.throttled_ns = time;
    sample.fields |= HAS_THROTTLING;
}

#[inline(always)]
fn read_memory(cgroup: *const c_void, sample: &mut GroupSample) {
    let Some(group) = pointer(cgroup, offset::CGROUP_CSS_MEMORY) else { return };
    if let Some(pages) = probed::<u64>(group, offset::MEMCG_USAGE) {
        sample.memory_bytes = pages * PAGE;
        sample.fields |= HAS_MEMORY;
    }
}

#[inline(always)]
fn read_pressure(cgroup: *const c_void, sample: &mut GroupSample) {
    let Some(group) = pointer(cgroup, offset::CGROUP_PSI) else { return };
    if let Some(totals) = numbers(group, offset::PSI_TOTAL) {
        sample.pressure_ns = totals;
        sample.fields |= HAS_PRESSURE;
    }
}
