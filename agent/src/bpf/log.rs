//! Records that the programs write for debugging, passed on to `tracing`.
//!
//! Off unless asked for: with the level at zero the programs do not even format a record.

use std::os::fd::{AsRawFd, RawFd};

use aya::Ebpf;
use aya_log::EbpfLogger;

/// The programs' records. Readable when there are some; [`Self::flush`] passes them on.
pub struct ProgramLog {
    inner: EbpfLogger<ToTracing>,
}

impl ProgramLog {
    /// `None` where no program has anything to say, or the kernel (before 5.8) has no ring buffer.
    pub(super) fn open(ebpf: &mut Ebpf) -> Option<Self> {
        match EbpfLogger::init_with_logger(ebpf, ToTracing) {
            Ok(inner) => Some(Self { inner }),
            Err(error) => {
                tracing::warn!("no debug records from the BPF programs: {error}");
                None
            }
        }
    }

    /// Passes on what is there; does not wait.
    pub fn flush(&mut self) {
        self.inner.flush();
    }
}

impl AsRawFd for ProgramLog {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

/// aya speaks the `log` crate's language.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: "swarmguard_agent::bpf::programs", "{}", record.args());
    }

    fn flush(&self) {}
}
