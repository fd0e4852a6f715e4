#![no_main]
//! Files of `/proc` and of cgroups: `swarmguard_agent::hostile::kernel_files` with any bytes.

libfuzzer_sys::fuzz_target!(|data: &[u8]| swarmguard_agent::hostile::kernel_files(data));
