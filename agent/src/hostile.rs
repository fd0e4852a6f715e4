//! Everything that reads text and records written by others, to be called with any bytes at all: the fuzz targets in
//! `fuzz/` and the tests in `tests/hostile.rs` do. Each function panics on a defect and answers nothing otherwise.
//!
//! In the library and not in the fuzz crate, because most readers are private; and one list for both, so that a reader
//! cannot be fuzzed in one and forgotten in the other.

use std::path::Path;

use swarmguard_common::{
    labels::ServicePolicy,
    wire::{
        agent::{Report, ToAgent, ToCoordinator},
        codec,
        routes::{FromRouteSource, ToRouteSource},
    },
};

use crate::{
    bpf, discovery,
    sources::{cpu, memory, network, node, own, parse, pressure},
    uplink::addresses::Wanted,
};

/// Files of `/proc` and of cgroups.
pub fn kernel_files(data: &[u8]) {
    if let Some(number) = parse::number(data) {
        let text = std::str::from_utf8(data.trim_ascii()).expect("digits");
        assert_eq!(text.parse(), Ok(number));
    }
    let _ = (parse::field(data, b"usage_usec"), parse::assigned(data, b"total"));
    let _ = (cpu::stat(data), memory::current(data), memory::max(data), memory::oom_kills(data));
    assert_ne!(cpu::max(data), Some(Some(0)), "every share of nothing is unknown");
    let _ = (memory::page_cache(data), pressure::pressure(data), network::total(data));
    let _ = (node::cpu_ticks(data), node::memory(data), own::resident_pages(data));
    if let Some(name) = node::default_route(data) {
        assert!(!name.is_empty() && !name.contains(['/', ':']), "{name:?}");
        assert!(!name.contains(char::is_whitespace), "{name:?}");
    }
}

/// The kernel's type information, records of the BPF programs, and what else is read to find out what a kernel can do.
pub fn kernel_records(data: &[u8]) {
    bpf::try_bytes(data);
}

/// Answers and events of an engine.
pub fn engine_answers(data: &[u8]) {
    discovery::engine::try_bytes(data);
}

/// Names: of cgroups, of coordinators.
pub fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some(id) = discovery::scan::container_of(&text) {
        assert_eq!(id.as_str().len(), 64);
    }
    if let Some(id) = discovery::scan::container_at(Path::new(text.as_ref())) {
        assert!(text.contains(id.as_str()));
    }
    if let Ok(Wanted::List(list)) = text.parse::<Wanted>() {
        assert!(list.iter().all(|(host, port)| !host.is_empty() && *port > 0), "{list:?}");
    }
}

/// Messages of peers, and labels, of which operators are the authors.
pub fn messages(data: &[u8]) {
    again::<ToAgent>(data);
    again::<ToCoordinator>(data);
    again::<Report>(data);
    again::<ToRouteSource>(data);
    again::<FromRouteSource>(data);
    let text = String::from_utf8_lossy(data);
    let labels = text.lines().filter_map(|line| line.split_once('='));
    let _ = ServicePolicy::from_labels(labels);
}

/// What can be decoded is encoded to what decodes and encodes to the same.
fn again<T: serde::Serialize + serde::de::DeserializeOwned>(data: &[u8]) {
    let Ok(message) = codec::decode::<T>(data) else { return };
    let bytes = codec::encode(&message).expect("a message that came can be sent");
    let second: T = codec::decode(&bytes).expect("what was encoded decodes");
    assert_eq!(codec::encode(&second).expect("as before"), bytes);
}
