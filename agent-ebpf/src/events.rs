//! What happens to cgroups, told at once: births, deaths, and who is killed for lack of memory.

use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_ktime_get_ns, bpf_probe_read_kernel_str};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{PerCpuArray, RingBuf};
use aya_ebpf::programs::BtfTracePointContext;
use aya_ebpf::{EbpfContext as _, helpers};
use aya_log_ebpf::debug;
use swarmguard_common::kernel::{EVENT_BIRTH, EVENT_DEATH, EVENT_OOM, EVENT_PATH_LEN, Event, offset};

use crate::structs::{cgroup_id, cgroup_of, field, is_cgroup2};

/// Room for about a thousand events, a minute of 1,000 births; whoever reads is woken by the first.
const RING_BYTES: u32 = 256 * 1024;

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Events that found the ring full, so that the agent knows that it must look for itself.
#[map]
static EVENTS_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// A cgroup was made.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_born(ctx: BtfTracePointContext) -> i32 {
    about_cgroup(&ctx, EVENT_BIRTH)
}

/// A cgroup was removed.
#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn cgroup_died(ctx: BtfTracePointContext) -> i32 {
    about_cgroup(&ctx, EVENT_DEATH)
}

/// A process is to be killed; kernels from 6.8 on say which.
#[btf_tracepoint(function = "mark_victim")]
pub fn oom_task(ctx: BtfTracePointContext) -> i32 {
    let task: *const c_void = ctx.arg(0);
    let id = cgroup_of(task).and_then(|cgroup| cgroup_id(cgroup)).unwrap_or(0);
    out_of_memory(id, field(task, offset::TASK_TGID).unwrap_or(0))
}

/// The same on kernels that give its number only. The one who asked for memory runs now: within the victim's
/// limit, unless the whole machine is short. The agent looks the process up to be sure.
#[btf_tracepoint(function = "mark_victim")]
pub fn oom_pid(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: no arguments.
    out_of_memory(unsafe { bpf_get_current_cgroup_id() }, ctx.arg(0))
}

#[inline(always)]
fn about_cgroup(ctx: &BtfTracePointContext, kind: u32) -> i32 {
    let cgroup: *const c_void = ctx.arg(0);
    let path: *const c_void = ctx.arg(1);
    // The tracepoint tells of version 1 hierarchies too.
    if !is_cgroup2(cgroup) {
        return 0;
    }
    let Some(id) = cgroup_id(cgroup) else { return 0 };
    let level = field::<u32>(cgroup, offset::CGROUP_LEVEL).unwrap_or(0);
    debug!(ctx, "cgroup {} event {} level {}", id, kind, level);
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        return lost();
    };
    let event = entry.as_mut_ptr();
    // SAFETY: reserved for this program; every field is written before it is handed over.
    unsafe {
        (*event).kind = kind;
        (*event).level = level;
        (*event).cgroup_id = id;
        (*event).at_ns = bpf_ktime_get_ns();
        (*event).pid = ctx.tgid();
        let to = (&raw mut (*event).path).cast::<c_void>();
        let with_nul = bpf_probe_read_kernel_str(to, EVENT_PATH_LEN as u32, path);
        (*event).path_len = if with_nul > 0 { (with_nul - 1) as u32 } else { 0 };
    }
    entry.submit(0);
    0
}

#[inline(always)]
fn out_of_memory(cgroup_id: u64, pid: u32) -> i32 {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        return lost();
    };
    let event = entry.as_mut_ptr();
    // SAFETY: as above. The path stays as it is: its length says that it is not used.
    unsafe {
        (*event).kind = EVENT_OOM;
        (*event).level = 0;
        (*event).cgroup_id = cgroup_id;
        (*event).at_ns = helpers::generated::bpf_ktime_get_ns();
        (*event).pid = pid;
        (*event).path_len = 0;
    }
    entry.submit(0);
    0
}

#[inline(always)]
fn lost() -> i32 {
    if let Some(count) = EVENTS_LOST.get_ptr_mut(0) {
        // SAFETY: the value of this CPU.
        unsafe { *count += 1 };
    }
    0
}
