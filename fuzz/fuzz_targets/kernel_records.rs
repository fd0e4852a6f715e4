#![no_main]
//! Type information and records of the kernel: `swarmguard_agent::hostile::kernel_records` with any bytes.

libfuzzer_sys::fuzz_target!(|data: &[u8]| swarmguard_agent::hostile::kernel_records(data));
