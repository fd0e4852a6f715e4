//! Which coordinator's routes are followed: the one that acts, for it alone says at once what goes; and never one whose
//! reading of Swarm is old, however well it answers.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use swarmguard_common::{time::Time, wire::routes::Routes};

/// Older readings count as silence.
const VALID: Duration = Duration::from_secs(5);
/// Of those that do not act, the first in order is followed unless another's reading is so much newer.
const NEWER: Duration = Duration::from_secs(3);

/// What a coordinator's newest routes say of themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// When they came.
    pub at: Time,
    /// When the coordinator read Swarm.
    taken: Time,
    acting: bool,
}

impl Heard {
    /// Of routes that have just come.
    pub fn of(routes: &Routes, now: Time) -> Self {
        let age = Duration::from_millis(routes.age_ms.into());
        Self { at: now, taken: now.before(age), acting: routes.acting }
    }

    /// Whether what it says may be followed.
    pub fn counts(&self, now: Time) -> bool {
        now.since(self.taken) <= VALID
    }
}

/// The one to be followed.
pub fn best(heard: &BTreeMap<SocketAddr, Heard>, now: Time) -> Option<SocketAddr> {
    let all = || heard.iter().filter(|(_, one)| one.counts(now));
    let acting = all().filter(|(_, one)| one.acting).max_by_key(|(_, one)| one.taken);
    let newest = all().map(|(_, one)| one.taken).max()?;
    let rest = || all().find(|(_, one)| newest.since(one.taken) <= NEWER);
    acting.or_else(rest).map(|(address, _)| *address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 7_443))
    }

    fn heard(now: Time, all: &[(u8, u32, bool)]) -> BTreeMap<SocketAddr, Heard> {
        let of = |(last, age_ms, acting): &(u8, u32, bool)| {
            let routes = Routes { revision: 1, age_ms: *age_ms, acting: *acting, ..Routes::default() };
            (address(*last), Heard::of(&routes, now))
        };
        all.iter().map(of).collect()
    }

    #[test]
    fn the_one_that_acts_comes_first_and_an_old_reading_is_silence() {
        let now = Time::from_millis(100_000);
        for (all, followed) in [
            (&[(1, 900, false), (2, 100, true)][..], Some(2)),
            (&[(1, 100, true), (2, 50, true)], Some(2)),
            (&[(1, 900, false), (2, 100, false)], Some(1)),
            (&[(1, 4_000, false), (2, 100, false)], Some(2)),
            // It froze, and goes on to say that it acts.
            (&[(1, 5_001, true), (2, 2_000, false)], Some(2)),
            (&[(1, 60_000, true)], None),
            (&[], None),
        ] {
            assert_eq!(best(&heard(now, all), now), followed.map(address), "{all:?}");
        }
        // Silence makes it old, too.
        let later = now + Duration::from_millis(4_200);
        assert_eq!(best(&heard(now, &[(1, 900, true)]), later), None);
    }
}
