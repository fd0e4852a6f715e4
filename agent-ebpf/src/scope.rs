//! Storage of an attachment: one number for each cgroup that a program is attached to.

use core::cell::UnsafeCell;

use aya_ebpf::bindings::bpf_map_def;
use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_CGROUP_STORAGE;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::bpf_get_local_storage;

/// Not aya's `CgroupStorage`: its key holds the attach type, which would give each kind of program a number of its own.
#[repr(transparent)]
pub struct ScopeStorage(UnsafeCell<bpf_map_def>);

// SAFETY: the definition is read by the loader only; the value is one word, written by the agent.
unsafe impl Sync for ScopeStorage {}

impl ScopeStorage {
    pub const fn new() -> Self {
        Self(UnsafeCell::new(bpf_map_def {
            type_: BPF_MAP_TYPE_CGROUP_STORAGE,
            key_size: size_of::<u64>() as u32,
            value_size: size_of::<u64>() as u32,
            // The kernel makes an entry with each attachment.
            max_entries: 0,
            map_flags: 0,
            id: 0,
            pinning: 0,
        }))
    }

    #[inline(always)]
    pub fn get(&self) -> u32 {
        // SAFETY: the helper always answers.
        unsafe { *bpf_get_local_storage(self.0.get().cast::<c_void>(), 0).cast::<u64>() as u32 }
    }
}
