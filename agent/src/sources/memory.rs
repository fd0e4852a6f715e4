//! The memory controller: `memory.current`, `memory.stat`, `memory.max`, `memory.events`.

use super::parse::{field, number};

/// All memory charged to the cgroup, page cache included.
pub const CURRENT: &str = "memory.current";
/// What that memory is.
pub const STAT: &str = "memory.stat";
/// Limit.
pub const MAX: &str = "memory.max";
/// Counts of limits reached and processes killed.
pub const EVENTS: &str = "memory.events";

/// Reads `memory.current`, bytes.
pub fn current(text: &[u8]) -> Option<u64> {
    number(text)
}

/// Reads the page cache that can be had back, used lately or not, of `memory.stat`, bytes. What remains of all that is
/// charged is needed: anonymous memory, shared memory, what is locked, and the kernel's own.
pub fn page_cache(text: &[u8]) -> Option<u64> {
    Some(field(text, b"inactive_file")?.saturating_add(field(text, b"active_file").unwrap_or(0)))
}

/// Reads `memory.max`, bytes. `Some(None)` is no limit, `None` is not understood.
pub fn max(text: &[u8]) -> Option<Option<u64>> {
    if text.trim_ascii() == b"max" { Some(None) } else { number(text).map(Some) }
}

/// Reads how many processes were killed for want of memory, in the cgroup and below.
pub fn oom_kills(text: &[u8]) -> Option<u64> {
    field(text, b"oom_kill")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fixtures_of_a_kernel_6_1() {
        assert_eq!(current(b"12288\n"), Some(12_288));
        let stat = b"anon 4096\nfile 8192\ninactive_anon 0\nactive_anon 4096\ninactive_file 5000\nactive_file 3192\n";
        assert_eq!(page_cache(stat), Some(8_192));
        assert_eq!(max(b"max\n"), Some(None));
        assert_eq!(max(b"134217728\n"), Some(Some(134_217_728)));
        assert_eq!(max(b"128M\n"), None);
        let events = b"low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\noom_group_kill 0\n";
        assert_eq!(oom_kills(events), Some(2));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: Vec<u8>) {
            let _ = (current(&text), page_cache(&text), max(&text), oom_kills(&text));
        }
    }
}
