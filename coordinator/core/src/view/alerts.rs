//! Which alert edges of an agent were seen, and which conditions stand.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use swarmguard_common::{
    domain::{BasisPoints, Condition},
    time::Time,
};

/// Sequence numbers kept beyond a gap; when there are more, the gap is given up.
const MAX_AHEAD: usize = 64;

/// Sequence numbers of one epoch: tells new edges from those sent again.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// All up to here are known; `None` before the first, which sets where counting begins: a coordinator that joins
    /// late was never sent what others acknowledged.
    known_to: Option<u64>,
    ahead: BTreeSet<u64>,
}

impl Seen {
    /// Takes in a number; `false` when it was seen before.
    pub fn insert(&mut self, seq: u64) -> bool {
        let known_to = *self.known_to.get_or_insert(seq.saturating_sub(1));
        if seq <= known_to || !self.ahead.insert(seq) {
            return false;
        }
        if self.ahead.len() > MAX_AHEAD
            && let Some(first) = self.ahead.first().copied()
        {
            self.known_to = Some(first);
        }
        self.close_up();
        true
    }

    fn close_up(&mut self) {
        let Some(mut known_to) = self.known_to else { return };
        while self.ahead.first().is_some_and(|first| *first <= known_to.saturating_add(1)) {
            if let Some(first) = self.ahead.pop_first() {
                known_to = known_to.max(first);
            }
        }
        self.known_to = Some(known_to);
    }

    /// What the agent may forget: everything up to this number.
    pub fn acknowledge(&self) -> Option<u64> {
        self.known_to
    }
}

/// A condition that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Since when, by the coordinator's clock less the age that the agent gave. Time in which it did not stand between two
    /// parts of one episode is left out: `now - since` is the time above.
    pub since: Time,
    /// When the agent last said so.
    pub heard: Time,
    /// Value of the last edge.
    pub value: BasisPoints,
    /// The journal was told.
    pub told: bool,
}

/// A condition that comes back within this time goes on where it ended: load that swings around a threshold is one
/// episode, not many.
const DIP: Duration = Duration::from_secs(3);

/// Conditions of one container that ended lately; bounded by the conditions that there are.
#[derive(Clone, Debug, Default)]
pub struct Episodes(BTreeMap<Condition, (Time, Duration)>);

impl Episodes {
    /// A condition ended.
    pub fn ended(&mut self, condition: Condition, standing: Standing, at: Time) {
        self.0.insert(condition, (at, at - standing.since));
    }

    /// A condition stands again: with the time that it stood before, where it was interrupted by a dip only.
    pub fn goes_on(&mut self, now: Time, condition: Condition, standing: Standing) -> Standing {
        match self.0.remove(&condition) {
            Some((ended, above)) if standing.since - ended < DIP => {
                Standing { since: now.before((now - standing.since) + above), told: false, ..standing }
            }
            _ => standing,
        }
    }
}

/// Standing conditions of one container.
pub type StandingAlerts = BTreeMap<Condition, Standing>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_and_late_ones_are_told_apart() {
        let mut seen = Seen::default();
        assert_eq!(seen.acknowledge(), None);
        assert!(seen.insert(7), "joins late: what came before was acknowledged by others");
        assert!(!seen.insert(7) && !seen.insert(3));
        assert!(seen.insert(9));
        assert_eq!(seen.acknowledge(), Some(7), "8 is missing");
        assert!(seen.insert(8));
        assert_eq!(seen.acknowledge(), Some(9));
        assert!(!seen.insert(8));
    }

    #[test]
    fn a_gap_that_never_closes_is_given_up() {
        let mut seen = Seen::default();
        seen.insert(1);
        for seq in 10..200 {
            assert!(seen.insert(seq));
        }
        assert_eq!(seen.acknowledge(), Some(199));
        assert!(seen.ahead.len() <= MAX_AHEAD);
    }

    #[test]
    fn a_dip_leaves_the_time_above_and_a_pause_does_not() {
        let at = |ms: u64| Time::from_millis(100_000 + ms);
        let standing = |since| Standing { since, heard: since, value: BasisPoints::FULL, told: true };
        let mut episodes = Episodes::default();
        // Two seconds above, a dip of 150 ms, and 300 ms above by now.
        episodes.ended(Condition::CpuHigh, standing(at(0)), at(2_000));
        let again = episodes.goes_on(at(2_450), Condition::CpuHigh, standing(at(2_150)));
        assert_eq!((at(2_450) - again.since, again.told), (Duration::from_millis(2_300), false));
        episodes.ended(Condition::CpuHigh, standing(at(0)), at(2_000));
        let again = episodes.goes_on(at(9_300), Condition::CpuHigh, standing(at(9_000)));
        assert_eq!((again.since, again.told), (at(9_000), true));
    }

    #[test]
    fn the_highest_number_is_no_trap() {
        let mut seen = Seen::default();
        assert!(seen.insert(u64::MAX));
        assert!(!seen.insert(u64::MAX));
        assert!(!seen.insert(0));
    }
}
