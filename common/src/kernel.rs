//! Types that the BPF programs and the agent share: `#[repr(C)]`, explicit padding, sizes asserted.
