//! Whose routes count where several coordinators send them: one that acts before one that does not, then the one whose
//! reading of the swarm is the newest. A coordinator whose engine hangs goes on sending what it read last; what is older
//! than [`STALE`] counts as silence. Pure.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use swarmguard_common::time::Time;

/// Routes read longer ago than this are not believed, and DNS steps in where there are no others.
pub const STALE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub struct Freshest {
    said: BTreeMap<SocketAddr, Said>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Said {
    acting: bool,
    /// When the swarm was read.
    read: Time,
}

impl Freshest {
    /// A coordinator sent routes that it read `age` ago. True where they are the ones that count.
    pub fn hear(&mut self, from: SocketAddr, age: Duration, acting: bool, now: Time) -> bool {
        self.said.insert(from, Said { acting, read: now.before(age) });
        self.said.retain(|_, said| now.since(said.read) < STALE);
        let best = self.said.values().max();
        best.is_some() && self.said.get(&from) == best
    }

    /// Its connection is lost.
    pub fn lose(&mut self, from: SocketAddr) {
        self.said.remove(&from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(1_000_000);

    fn at(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 7443).into()
    }

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_frozen_coordinator_is_not_followed_though_its_address_comes_first() {
        let mut freshest = Freshest::default();
        assert!(freshest.hear(at(1), MS(100), false, NOW));
        assert!(freshest.hear(at(2), MS(50), false, NOW));
        for second in 1..20 {
            let now = NOW + Duration::from_secs(second);
            // The first one says the same again and again, which grows older.
            assert!(!freshest.hear(at(1), MS(100) + Duration::from_secs(second), false, now));
            assert!(freshest.hear(at(2), MS(200), false, now), "{second}");
        }
    }

    #[test]
    fn who_acts_comes_before_who_has_read_later() {
        let mut freshest = Freshest::default();
        assert!(freshest.hear(at(1), MS(900), true, NOW));
        assert!(!freshest.hear(at(2), MS(10), false, NOW));
        // Once the acting one is too old it is as if it were silent.
        let later = NOW + Duration::from_secs(5);
        assert!(!freshest.hear(at(1), MS(5_900), true, later));
        assert!(freshest.hear(at(2), MS(10), false, later));
    }

    #[test]
    fn alone_it_counts_while_it_is_fresh_and_after_a_loss_the_next_one_does() {
        let mut freshest = Freshest::default();
        assert!(!freshest.hear(at(1), Duration::from_secs(6), true, NOW));
        assert!(freshest.hear(at(1), MS(10), true, NOW));
        assert!(!freshest.hear(at(2), MS(5), false, NOW));
        freshest.lose(at(1));
        assert!(freshest.hear(at(2), MS(5), false, NOW));
    }
}
