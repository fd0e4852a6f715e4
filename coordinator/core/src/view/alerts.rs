//! Which alert edges of an agent were seen, and which conditions stand.

use std::collections::{BTreeMap, BTreeSet};

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
    /// Since when, by the coordinator's clock less the age that the agent gave.
    pub since: Time,
    /// When the agent last said so.
    pub heard: Time,
    /// Value of the last edge.
    pub value: BasisPoints,
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
    fn the_highest_number_is_no_trap() {
        let mut seen = Seen::default();
        assert!(seen.insert(u64::MAX));
        assert!(!seen.insert(u64::MAX));
        assert!(!seen.insert(0));
    }
}
