#![no_main]
//! Names of cgroups and coordinators: `swarmguard_agent::hostile::names` with any bytes.

libfuzzer_sys::fuzz_target!(|data: &[u8]| swarmguard_agent::hostile::names(data));
