//! One budget for all that clients can make the balancer keep: heads, buffers, frames of bodies. What does not fit is
//! refused before it is kept; no client gets memory that the limit of the container does not have.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;

/// Bytes that may be kept, over all workers.
#[derive(Debug)]
pub struct Memory {
    used: AtomicU64,
    most: u64,
}

/// Bytes taken from a budget; dropping it gives them back.
#[derive(Debug)]
pub struct Charge {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Memory {
    /// At most so many bytes.
    pub fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), most })
    }

    /// Bytes kept now.
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Bytes that may be kept.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// Whether half is taken: nothing more is kept of heads that are not whole, which anybody can send and leave so.
    pub fn is_tight(&self) -> bool {
        self.used() > self.most / 2
    }

    /// Whether so much is taken that those who stand still have to go, before anybody who does not is refused.
    pub fn is_strained(&self) -> bool {
        self.used() > self.most / 4 * 3
    }

    /// Whether so little is left that nothing new is begun: what is under way needs the rest.
    pub fn is_short(&self) -> bool {
        self.used() > self.most / 10 * 9
    }

    /// Takes `bytes`; `None` where there is not so much left.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let mut charge = Charge { memory: Arc::clone(self), bytes: 0 };
        charge.set(bytes).then_some(charge)
    }

    /// `bytes` that are charged for as long as anybody holds them; `None` where there is not so much left.
    pub fn hold(self: &Arc<Self>, bytes: Bytes) -> Option<Bytes> {
        let charge = self.charge(bytes.len())?;
        Some(Bytes::from_owner(Held { bytes, _charge: charge }))
    }
}

impl Charge {
    /// Bytes taken.
    pub fn bytes(&self) -> usize {
        usize::try_from(self.bytes).unwrap_or(usize::MAX)
    }

    /// Makes it `bytes`; false, with nothing changed, where there is not so much left. Less is always granted.
    pub fn set(&mut self, bytes: usize) -> bool {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            let room = |used: u64| used.checked_add(more).filter(|used| *used <= self.memory.most);
            if self.memory.used.fetch_update(Relaxed, Relaxed, room).is_err() {
                return false;
            }
        } else if bytes < self.bytes {
            self.memory.used.fetch_sub(self.bytes - bytes, Relaxed);
        }
        self.bytes = bytes;
        true
    }

    /// Takes `bytes` more.
    pub fn add(&mut self, bytes: usize) -> bool {
        self.set(self.bytes().saturating_add(bytes))
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Relaxed);
    }
}

struct Held {
    bytes: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_what_is_dropped_comes_back() {
        let memory = Memory::new(100);
        let mut first = memory.charge(60).expect("room");
        assert!(memory.charge(50).is_none() && memory.used() == 60);
        assert!(memory.is_tight() && !memory.is_short());
        assert!(!memory.is_strained() && first.add(35) && memory.is_strained() && memory.is_short());
        assert!(!first.add(10) && memory.used() == 95, "nothing changed");
        assert!(first.set(10) && !memory.is_short());
        drop(first);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn held_bytes_are_charged_until_the_last_part_is_gone() {
        let memory = Memory::new(100);
        let mut held = memory.hold(Bytes::from_static(b"0123456789")).expect("room");
        let part = held.split_to(3);
        drop(held);
        assert_eq!((&part[..], memory.used()), (&b"012"[..], 10));
        drop(part);
        assert_eq!(memory.used(), 0);
        assert!(memory.hold(Bytes::from(vec![0; 101])).is_none());
    }
}
