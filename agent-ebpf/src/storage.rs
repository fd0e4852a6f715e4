//! Storage of an attachment: one value for each cgroup that programs are attached to.

use core::cell::UnsafeCell;
use core::marker::PhantomData;

use aya_ebpf::bindings::bpf_map_def;
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::bpf_get_local_storage;

/// Values of type `V`; `KIND` is `BPF_MAP_TYPE_CGROUP_STORAGE` or its kind with a value for each CPU.
///
/// Not aya's `CgroupStorage` and `PerCpuCgroupStorage`: their key holds the attach type, which gives each kind of program
/// a value of its own. With the cgroup id alone as key (5.9 and later) all programs attached to one cgroup share one.
#[repr(transparent)]
pub struct AttachmentStorage<V, const KIND: u32>(UnsafeCell<bpf_map_def>, PhantomData<V>);

// SAFETY: the definition is read by the loader only; how values are shared is up to who uses the pointer.
unsafe impl<V, const KIND: u32> Sync for AttachmentStorage<V, KIND> {}

impl<V, const KIND: u32> AttachmentStorage<V, KIND> {
    pub const fn new() -> Self {
        let definition = bpf_map_def {
            type_: KIND,
            key_size: size_of::<u64>() as u32,
            value_size: size_of::<V>() as u32,
            // The kernel makes an entry with each attachment.
            max_entries: 0,
            map_flags: 0,
            id: 0,
            pinning: 0,
        };
        Self(UnsafeCell::new(definition), PhantomData)
    }

    /// The value of the cgroup that the running program is attached to; never null.
    #[inline(always)]
    pub fn get(&self) -> *mut V {
        // SAFETY: a map of the kind that the helper takes.
        unsafe { bpf_get_local_storage(self.0.get().cast::<c_void>(), 0).cast::<V>() }
    }
}
