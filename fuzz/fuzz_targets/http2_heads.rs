#![no_main]
//! Heads of HTTP/2 clients on their way to replicas: `swarmguard_balancer::hostile::http2_heads` with any bytes.

libfuzzer_sys::fuzz_target!(|data: &[u8]| swarmguard_balancer::hostile::http2_heads(data));
