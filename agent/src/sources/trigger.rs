//! Being woken by the kernel the moment a container stalls for memory, instead of finding out at the next sample.
//!
//! Only memory: a container that stalls for a CPU shows in the sum that is read at every tick (see [`crate::pace`]),
//! one that waits for reclaim may use no CPU at all. A trigger is a line written to the pressure file and lives as long
//! as the descriptor; it needs a hierarchy that is mounted writable, and on later kernels than 6.1 CAP_SYS_RESOURCE for
//! so short a window.
//!
//! Set on the directories that hold containers, not on each container: the kernel has a thread for each cgroup with a
//! trigger, and a stall of any container is one of what holds it.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
    task::AbortHandle,
};

use super::pressure;

/// Tell when some task stalled for 100 ms within a second: a tenth of the time, from which on memory stalls alert.
const TRIGGER: &[u8] = b"some 100000 1000000\0";

/// Most triggers. Docker has one or two directories of containers, slice hierarchies some more.
pub const MAX_TRIGGERS: usize = 32;

/// A trigger that is waited for until this is dropped.
#[derive(Debug)]
pub struct Trigger(AbortHandle);

impl Trigger {
    /// Sets a trigger on the cgroup in `dir`; each time it fires, `dir` is sent. A full queue drops the word: the loop
    /// is awake then anyway.
    ///
    /// # Errors
    /// Where the hierarchy is mounted read-only or the kernel has no PSI.
    pub fn set(dir: &Path, fired: &mpsc::Sender<PathBuf>) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).open(dir.join(pressure::MEMORY))?;
        file.write_all(TRIGGER)?;
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives.
        let ready = unsafe { AsyncFd::register_with_interest(OwnedFd::from(file), Interest::PRIORITY) }?;
        let (dir, fired) = (dir.to_owned(), fired.clone());
        let waiting = tokio::spawn(async move {
            while let Ok(mut event) = ready.ready(Interest::PRIORITY | Interest::ERROR).await {
                // The cgroup is gone.
                if event.ready().is_error() {
                    return;
                }
                event.clear_ready();
                let _ = fired.try_send(dir.clone());
            }
        });
        Ok(Self(waiting.abort_handle()))
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hierarchy_that_takes_no_trigger_says_so() {
        let (fired, _) = mpsc::channel(1);
        let dir = tempfile::tempdir().expect("a directory");
        assert!(Trigger::set(dir.path(), &fired).is_err(), "no such file");
        // A plain file takes the line, but cannot be waited for.
        std::fs::write(dir.path().join(pressure::MEMORY), "").expect("written");
        assert!(Trigger::set(dir.path(), &fired).is_err());
    }
}
