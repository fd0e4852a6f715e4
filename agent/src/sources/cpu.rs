//! The cpu controller: `cpu.stat` and `cpu.max`.

use super::parse::{field, number, words};

/// CPU time used and throttling. Its first three lines are there even where the controller is not enabled.
pub const STAT: &str = "cpu.stat";
/// Quota and period.
pub const MAX: &str = "cpu.max";

/// What `cpu.stat` says. Counters only grow while the cgroup lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuStat {
    /// CPU time used, in microseconds.
    pub usage_usec: u64,
    /// Periods of `cpu.max` that passed with something to run, and those in which it was held back; `None` without
    /// the controller.
    pub periods: Option<(u64, u64)>,
}

/// Reads `cpu.stat`; `None` when the usage is not there.
pub fn stat(text: &[u8]) -> Option<CpuStat> {
    let periods = field(text, b"nr_periods").zip(field(text, b"nr_throttled"));
    Some(CpuStat { usage_usec: field(text, b"usage_usec")?, periods })
}

/// Reads `cpu.max` as thousandths of a CPU. `Some(None)` is no limit, `None` is not understood.
pub fn max(text: &[u8]) -> Option<Option<u32>> {
    let mut parts = words(text);
    let (quota, period) = (parts.next()?, number(parts.next()?)?);
    if quota == b"max" {
        return Some(None);
    }
    let millis = number(quota)?.checked_mul(1_000)?.checked_div(period)?;
    // The kernel's smallest quota is 1 ms a second; 0 would make every share of it unknown.
    Some(Some(u32::try_from(millis).unwrap_or(u32::MAX).max(1)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stat_with_and_without_the_controller() {
        let full =
            b"usage_usec 5105\nuser_usec 1\nsystem_usec 2\nnr_periods 10\nnr_throttled 3\nthrottled_usec 9\n";
        assert_eq!(stat(full), Some(CpuStat { usage_usec: 5_105, periods: Some((10, 3)) }));
        assert_eq!(stat(b"usage_usec 7\nuser_usec 1\n"), Some(CpuStat { usage_usec: 7, periods: None }));
        assert_eq!(stat(b""), None);
        assert_eq!(stat(b"usage_usec many\n"), None);
    }

    #[test]
    fn max_in_thousandths() {
        assert_eq!(max(b"max 100000\n"), Some(None));
        assert_eq!(max(b"50000 100000\n"), Some(Some(500)));
        assert_eq!(max(b"250000 100000\n"), Some(Some(2_500)));
        for bad in [&b"50000\n"[..], b"50000 0\n", b"", b"x 1\n", b"18446744073709551615 1\n"] {
            assert_eq!(max(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text: Vec<u8>, lines in "(max|[0-9]{0,22}) ?[0-9]{0,22}\n?") {
            let _ = (stat(&text), max(&text), max(lines.as_bytes()));
        }
    }
}
