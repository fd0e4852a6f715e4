//! Pressure stall information: `cpu.pressure`, `memory.pressure`, `io.pressure`, and `/proc/pressure/*` of the node.
//!
//! The totals are taken, not the kernel's averages: those look back ten seconds at least.

use super::parse::{assigned, lines};

/// Per cgroup.
pub const CPU: &str = "cpu.pressure";
/// Per cgroup.
pub const MEMORY: &str = "memory.pressure";
/// Per cgroup.
pub const IO: &str = "io.pressure";

/// Totals of stalled time, in microseconds. They only grow while the cgroup lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// At least one task stalled.
    pub some_usec: u64,
    /// All tasks stalled at once; `None` where the kernel does not say.
    pub full_usec: Option<u64>,
}

/// Reads a pressure file; `None` when the line `some` is not there.
pub fn pressure(text: &[u8]) -> Option<Pressure> {
    let total = |word: &[u8]| {
        lines(text).find(|line| line.starts_with(word)).and_then(|line| assigned(line, b"total"))
    };
    Some(Pressure { some_usec: total(b"some ")?, full_usec: total(b"full ") })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn totals_of_both_lines() {
        let text = b"some avg10=1.50 avg60=0.25 avg300=0.00 total=123456\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=42\n";
        assert_eq!(pressure(text), Some(Pressure { some_usec: 123_456, full_usec: Some(42) }));
        let old = b"some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        assert_eq!(pressure(old), Some(Pressure { some_usec: 7, full_usec: None }));
        assert_eq!(pressure(b"full avg10=0.00 total=7\n"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: Vec<u8>) {
            let _ = pressure(&text);
        }
    }
}
