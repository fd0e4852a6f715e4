#![no_main]
//! Answers and events of an engine: `swarmguard_agent::hostile::engine_answers` with any bytes.

libfuzzer_sys::fuzz_target!(|data: &[u8]| swarmguard_agent::hostile::engine_answers(data));
