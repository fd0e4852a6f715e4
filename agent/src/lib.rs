//! To be written.

pub mod bpf;
