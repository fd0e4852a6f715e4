//! How long tasks of a container wait for a CPU, once they could run.
//!
//! One program and no state of its own: the scheduler stamps every task when it queues it, and its clock is at
//! hand when it switches. The usual pair of programs at wake-up and switch would cost twice as much, and a table of
//! all tasks.

use aya_ebpf::cty::c_void;
use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use swarmguard_common::kernel::{MAX_LEVEL, Waits, offset};

use crate::groups::GROUPS;
use crate::structs::{ancestor_id, cgroup_id, cgroup_of, field, pointer};

/// Argument of the tracepoint: the task that runs next.
const NEXT: usize = 2;

/// A CPU goes from one task to the next.
#[btf_tracepoint(function = "sched_switch")]
pub fn task_switch(ctx: BtfTracePointContext) -> i32 {
    let next: *const c_void = ctx.arg(NEXT);
    let _ = account(next);
    0
}

#[inline(always)]
fn account(next: *const c_void) -> Option<()> {
    let queued: u64 = field(next, offset::TASK_LAST_QUEUED)?;
    // The idle task, or one that was not queued at all.
    if queued == 0 {
        return None;
    }
    let waits = waits_of(cgroup_of(next)?)?;
    let queue = pointer(pointer(next, offset::TASK_CFS_RQ)?, offset::CFS_RQ_RQ)?;
    let now: u64 = field(queue, offset::RQ_CLOCK)?;
    let waited = now.saturating_sub(queued);
    // SAFETY: the map's value of this CPU, and the scheduler does not switch within a switch.
    unsafe {
        (*waits).count += 1;
        (*waits).total_ns += waited;
        let slot = Waits::slot(waited);
        if let Some(count) = (*waits).slots.get_mut(slot) {
            *count += 1;
        }
    }
    Some(())
}

/// The watched cgroup that the task is in, or one above it; the nearest.
#[inline(always)]
fn waits_of(cgroup: *const c_void) -> Option<*mut Waits> {
    if let Some(waits) = GROUPS.get_ptr_mut(&cgroup_id(cgroup)?) {
        return Some(waits);
    }
    let own: u32 = field(cgroup, offset::CGROUP_LEVEL)?;
    let mut level = 1;
    while level < MAX_LEVEL {
        if level >= own {
            return None;
        }
        if let Some(waits) = GROUPS.get_ptr_mut(&ancestor_id(cgroup, level)?) {
            return Some(waits);
        }
        level += 1;
    }
    None
}
