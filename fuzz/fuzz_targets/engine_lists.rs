#![no_main]
//! Lists of objects that an engine answers to the coordinator: `swarmguard_core::hostile::engine_lists` with any bytes.

libfuzzer_sys::fuzz_target!(|data: &[u8]| swarmguard_core::hostile::engine_lists(data));
