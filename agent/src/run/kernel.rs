//! The kernel's own events as the loop waits for them.

use std::os::fd::{AsFd as _, OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

use crate::bpf::{EventSource, GroupEvent};

/// The kernel's events as the loop waits for them.
pub(super) struct KernelEvents {
    source: EventSource,
    ready: AsyncFd<OwnedFd>,
    lost: u64,
}

/// Most events taken at once; the rest waits in the kernel's ring.
const EVENTS_AT_ONCE: usize = 1_024;

impl KernelEvents {
    pub(super) fn new(source: EventSource) -> Option<Self> {
        let ready = source.as_fd().try_clone_to_owned().and_then(|copy| {
            // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives.
            Ok(unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE) }?)
        });
        match ready {
            Ok(ready) => Some(Self { lost: source.lost(), source, ready }),
            Err(error) => {
                tracing::warn!("the kernel's events cannot be waited for: {error}");
                None
            }
        }
    }

    /// All events that are there, and whether some were lost.
    pub(super) fn take(&mut self) -> (Vec<GroupEvent>, bool) {
        let mut events = Vec::new();
        while events.len() < EVENTS_AT_ONCE {
            let Some(event) = self.source.next_event() else { break };
            events.push(event);
        }
        let lost = self.source.lost();
        // With some left behind, no further word may come for them.
        let missed = events.len() >= EVENTS_AT_ONCE || self.lost != lost;
        self.lost = lost;
        (events, missed)
    }
}

/// Waits until the kernel has told something; for ever where it tells nothing.
pub(super) async fn kernel_told(events: Option<&mut KernelEvents>) {
    let Some(events) = events else { return std::future::pending().await };
    match events.ready.readable().await {
        // Cleared before the ring is read: what comes in between wakes again.
        Ok(mut ready) => ready.clear_ready(),
        Err(error) => {
            tracing::warn!("the kernel's events broke off: {error}");
            std::future::pending::<()>().await;
        }
    }
}
