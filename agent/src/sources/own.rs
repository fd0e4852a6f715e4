//! What the agent itself costs: CPU time and resident memory of this process, as the kernel accounts them.
//!
//! `getrusage` and not `/proc/self/schedstat`: that one shows the main thread alone.

use rustix::param::page_size;

use super::{
    KeptFile,
    parse::{number, words},
};

/// The agent's own consumption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnUse {
    /// CPU time of all threads since the start, in microseconds.
    pub cpu_usec: u64,
    /// Resident memory, in bytes; `None` where `/proc` does not say.
    pub resident_bytes: Option<u64>,
}

/// Reads this process's consumption.
#[derive(Debug)]
pub struct OwnSource {
    statm: Option<KeptFile>,
}

impl OwnSource {
    /// Opens `/proc/self/statm` of this process's own view of `/proc`: a host's `/proc` bound elsewhere has no `self`.
    pub fn open() -> Self {
        Self { statm: KeptFile::open(std::path::Path::new("/proc/self/statm")).ok() }
    }

    /// Reads now.
    pub fn read(&self) -> OwnUse {
        let mut buffer = [0; 128];
        let resident = self.statm.as_ref().and_then(|file| resident_pages(file.read(&mut buffer).ok()?));
        let page = u64::try_from(page_size()).unwrap_or(4_096);
        OwnUse { cpu_usec: cpu_usec(), resident_bytes: resident.map(|pages| pages.saturating_mul(page)) }
    }
}

/// Resident memory in pages, from `statm`.
pub(crate) fn resident_pages(text: &[u8]) -> Option<u64> {
    number(words(text).nth(1)?)
}

fn cpu_usec() -> u64 {
    // SAFETY: all zeroes is a valid value of this C structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is ours and of the right type.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) } != 0 {
        return 0;
    }
    let micros = |time: libc::timeval| {
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        seconds.saturating_mul(1_000_000).saturating_add(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    micros(usage.ru_utime).saturating_add(micros(usage.ru_stime))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_use_grows_with_work() {
        let source = OwnSource::open();
        let before = source.read();
        let mut sum = 0_u64;
        // Until the kernel has accounted something; it does so at least at every tick.
        while source.read().cpu_usec == before.cpu_usec {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(source.read().cpu_usec > before.cpu_usec);
        assert!(before.resident_bytes.is_some_and(|bytes| bytes > 100_000));
    }

    #[test]
    fn resident_is_the_second_number() {
        assert_eq!(resident_pages(b"1000 250 100 10 0 300 0\n"), Some(250));
        assert_eq!(resident_pages(b"1000"), None);
    }
}
