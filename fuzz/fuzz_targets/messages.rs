#![no_main]
//! Messages of peers, and labels: `swarmguard_agent::hostile::messages` with any bytes.

libfuzzer_sys::fuzz_target!(|data: &[u8]| swarmguard_agent::hostile::messages(data));
