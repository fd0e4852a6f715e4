//! How often the same complaint about the same address is logged: a hostile peer must not be able to fill the log any more
//! than the memory.

use std::{collections::BTreeMap, net::IpAddr, sync::Mutex, time::Duration};

use swarmguard_common::time::Time;

/// The same reason from the same address is logged at most once in this time.
const QUIET: Duration = Duration::from_secs(10);
/// Most (reason, address) pairs remembered for that; beyond them lines are only counted until old pairs expire.
const MAX_REMEMBERED: usize = 512;

/// Remembers what was logged lately.
#[derive(Debug)]
pub struct Quiet<Reason>(Mutex<BTreeMap<(Reason, IpAddr), Logged>>);

impl<Reason> Default for Quiet<Reason> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

#[derive(Debug)]
struct Logged {
    at: Time,
    suppressed: u64,
}

impl<Reason: Ord + Copy> Quiet<Reason> {
    /// Whether a line may be logged now, and how many were left out since the last one.
    pub fn speak(&self, peer: IpAddr, reason: Reason, now: Time) -> Option<u64> {
        let mut logged = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(entry) = logged.get_mut(&(reason, peer)) {
            if now.since(entry.at) < QUIET {
                entry.suppressed += 1;
                return None;
            }
            let suppressed = entry.suppressed;
            *entry = Logged { at: now, suppressed: 0 };
            return Some(suppressed);
        }
        if logged.len() >= MAX_REMEMBERED {
            logged.retain(|_, entry| now.since(entry.at) < QUIET);
            if logged.len() >= MAX_REMEMBERED {
                return None;
            }
        }
        logged.insert((reason, peer), Logged { at: now, suppressed: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_same_complaint_is_logged_once_in_a_while_and_says_what_it_left_out() {
        let quiet = Quiet::default();
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let start = Time::from_millis(1_000_000);
        assert_eq!(quiet.speak(peer, "malformed", start), Some(0));
        for _ in 0..5 {
            assert_eq!(quiet.speak(peer, "malformed", start + QUIET / 2), None);
        }
        assert_eq!(quiet.speak(peer, "oversized", start + QUIET / 2), Some(0));
        assert_eq!(quiet.speak(peer, "malformed", start + QUIET), Some(5));
    }

    #[test]
    fn many_addresses_do_not_grow_the_memory() {
        let quiet = Quiet::default();
        for number in 0..2_000_u32 {
            quiet.speak(IpAddr::V4(Ipv4Addr::from(number)), "handshake", Time::from_millis(5));
        }
        assert_eq!(quiet.0.lock().expect("unpoisoned").len(), MAX_REMEMBERED);
    }
}
