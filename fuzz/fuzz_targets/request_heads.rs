#![no_main]
//! Heads of clients' requests on the balancer's fast path: `swarmguard_balancer::hostile::request_heads` with any bytes.

libfuzzer_sys::fuzz_target!(|data: &[u8]| swarmguard_balancer::hostile::request_heads(data));
