#![no_main]
//! Labels of services, of which operators are the authors: `swarmguard_core::hostile::labels` with any bytes.

libfuzzer_sys::fuzz_target!(|data: &[u8]| swarmguard_core::hostile::labels(data));
