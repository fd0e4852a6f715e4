#![no_main]
//! Answers of replicas on the balancer's fast path: `swarmguard_balancer::hostile::answers` with any bytes.

libfuzzer_sys::fuzz_target!(|data: &[u8]| swarmguard_balancer::hostile::answers(data));
