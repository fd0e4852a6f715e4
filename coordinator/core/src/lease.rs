//! Node leases: an agent's right to be believed, renewed by every report, lapsing on silence.
//!
//! Only ages on the coordinator's own monotonic clock count. A node that says its own timers fire late is given more
//! time, so that overload (which is when help is needed) does not look like death.

use std::time::Duration;

pub use swarmguard_common::api::LeaseState;
use swarmguard_common::time::Time;

/// Silence from which a lease is suspect.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(1);
/// Silence from which it has lapsed.
pub const LAPSED_AFTER: Duration = Duration::from_secs(3);
/// Being starved for this long doubles the patience once more.
const LONG_STARVED: Duration = Duration::from_secs(3);

/// The lease of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    renewed: Time,
    starved_since: Option<Time>,
}

impl Lease {
    /// A lease granted now.
    pub fn new(now: Time) -> Self {
        Self { renewed: now, starved_since: None }
    }

    /// A report came. `starved` is what the agent says of itself.
    pub fn renew(&mut self, now: Time, starved: bool) {
        self.renewed = self.renewed.max(now);
        self.starved_since = if starved { self.starved_since.or(Some(now)) } else { None };
    }

    /// How many times longer silence is tolerated: 1, 2 while starved, 4 when that has lasted.
    pub fn patience(&self) -> u32 {
        match self.starved_since {
            None => 1,
            Some(since) if self.renewed - since < LONG_STARVED => 2,
            Some(_) => 4,
        }
    }

    /// Time since it was last renewed.
    pub fn age(&self, now: Time) -> Duration {
        now - self.renewed
    }

    /// What it is worth now.
    pub fn state(&self, now: Time) -> LeaseState {
        let (age, patience) = (self.age(now), self.patience());
        if age < SUSPECT_AFTER * patience {
            LeaseState::Live
        } else if age < LAPSED_AFTER * patience {
            LeaseState::Suspect
        } else {
            LeaseState::Lapsed
        }
    }

    /// When the state changes next if nothing is heard; `None` once it has lapsed.
    pub fn next_change(&self, now: Time) -> Option<Time> {
        let after = match self.state(now) {
            LeaseState::Live => SUSPECT_AFTER,
            LeaseState::Suspect => LAPSED_AFTER,
            LeaseState::Lapsed => return None,
        };
        Some(self.renewed + after * self.patience())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_millis(10_000);

    fn at(ms: u64) -> Time {
        Time::from_millis(10_000 + ms)
    }

    #[test]
    fn silence_makes_it_suspect_then_lapsed() {
        let lease = Lease::new(START);
        assert_eq!(lease.state(at(999)), LeaseState::Live);
        assert_eq!(lease.state(at(1_000)), LeaseState::Suspect);
        assert_eq!(lease.state(at(2_999)), LeaseState::Suspect);
        assert_eq!(lease.state(at(3_000)), LeaseState::Lapsed);
        assert_eq!(lease.next_change(at(500)), Some(at(1_000)));
        assert_eq!(lease.next_change(at(1_500)), Some(at(3_000)));
        assert_eq!(lease.next_change(at(9_000)), None);
    }

    #[test]
    fn a_starved_node_is_given_twice_then_four_times_as_long() {
        let mut lease = Lease::new(START);
        lease.renew(at(100), true);
        assert_eq!((lease.patience(), lease.state(at(100 + 1_999))), (2, LeaseState::Live));
        lease.renew(at(4_000), true);
        assert_eq!((lease.patience(), lease.state(at(4_000 + 11_999))), (4, LeaseState::Suspect));
        assert_eq!(lease.state(at(4_000 + 12_000)), LeaseState::Lapsed);
        lease.renew(at(5_000), false);
        assert_eq!((lease.patience(), lease.state(at(6_000))), (1, LeaseState::Suspect));
    }

    #[test]
    fn a_late_arrival_does_not_turn_it_back() {
        let mut lease = Lease::new(START);
        lease.renew(at(2_000), false);
        lease.renew(at(1_000), false);
        assert_eq!(lease.age(at(2_500)), Duration::from_millis(500));
    }
}
