#![no_main]
//! Heads of answers, as both paths of the balancer find the end of their bodies: `swarmguard_balancer::hostile::framing` with any bytes.

libfuzzer_sys::fuzz_target!(|data: &[u8]| swarmguard_balancer::hostile::framing(data));
