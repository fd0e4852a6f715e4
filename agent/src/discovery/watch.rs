//! Waking when a cgroup appears or vanishes beside one that is a container: inotify on the directories that hold them.
//!
//! Events only say where to look; what is there is read anew. So a lost or late event costs time, never truth.

use std::{
    collections::BTreeMap,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Most directories watched.
pub const MAX_WATCHED: usize = 256;

/// Directories that are watched for cgroups coming and going.
pub struct Watch {
    queue: AsyncFd<OwnedFd>,
    watched: BTreeMap<PathBuf, i32>,
}

impl Watch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// Where the system has no room for another queue.
    pub fn new() -> io::Result<Self> {
        let queue = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives.
        let queue = unsafe { AsyncFd::register(queue) }?;
        Ok(Self { queue, watched: BTreeMap::new() })
    }

    /// Watches exactly these directories, as many as there is room for.
    pub fn set<'a>(&mut self, directories: impl Iterator<Item = &'a Path>) {
        let wanted: std::collections::BTreeSet<&Path> = directories.take(MAX_WATCHED).collect();
        let queue = self.queue.get_ref();
        self.watched.retain(|path, watch| {
            let keep = wanted.contains(path.as_path());
            if !keep {
                // Fails only where the directory is gone, and the watch with it.
                let _ = inotify::remove_watch(queue, *watch);
            }
            keep
        });
        let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
        for path in wanted {
            if !self.watched.contains_key(path) {
                match inotify::add_watch(queue, path, flags) {
                    Ok(watch) => drop(self.watched.insert(path.into(), watch)),
                    Err(error) => tracing::debug!("cannot watch {}: {error}", path.display()),
                }
            }
        }
    }

    /// Waits until something came or went, and takes all that is there.
    ///
    /// # Errors
    /// When the queue breaks.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.queue.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); 4_096];
            let mut reader = Reader::new(self.queue.get_ref(), &mut buffer);
            let mut any = false;
            // Bounded, so that a storm of events cannot hold the loop.
            for _ in 0..4_096 {
                match reader.next() {
                    Ok(_) => any = true,
                    Err(rustix::io::Errno::WOULDBLOCK) => {
                        ready.clear_ready();
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if any {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_directory_that_comes_or_goes_wakes() {
        let parent = tempfile::tempdir().expect("a directory");
        let mut watch = Watch::new().expect("inotify");
        watch.set([parent.path()].into_iter());
        let patience = Duration::from_secs(30);
        std::fs::create_dir(parent.path().join("one")).expect("made");
        tokio::time::timeout(patience, watch.changed()).await.expect("in time").expect("works");
        std::fs::remove_dir(parent.path().join("one")).expect("removed");
        tokio::time::timeout(patience, watch.changed()).await.expect("in time").expect("works");
        watch.set(std::iter::empty());
        assert!(watch.watched.is_empty());
    }
}
