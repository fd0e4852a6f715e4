//! Commands that fail: how long the next one for the same record is put off, and how often the journal is told.
//!
//! A step that failed is taken again from what Swarm then shows, for ever if need be: past a point an action must end.
//! So each failure after the other waits longer. That somebody else was first is no failure yet: the next look has
//! another version.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::time::Time;

use crate::command::{CommandError, CommandResult};

/// Wait after the first failure; each further one doubles it.
const FIRST_HOLD: Duration = Duration::from_millis(250);
/// Longest wait.
const LONGEST_HOLD: Duration = Duration::from_secs(10);
/// Failures of one record are journalled again after this long.
const AGAIN: Duration = Duration::from_secs(60);

/// What failed lately, by record; bounded by the records that exist, or were to be made a
/// moment ago.
#[derive(Clone, Debug, Default)]
pub(super) struct Failing(BTreeMap<String, Failure>);

#[derive(Clone, Debug, Default)]
struct Failure {
    /// Failures in a row.
    times: u32,
    /// Nothing is given out before.
    until: Time,
    /// When the journal was last told.
    said: Option<Time>,
    /// Failures that it was not told of.
    unsaid: u32,
}

impl Failing {
    /// A command for a record was answered.
    pub fn answered(&mut self, now: Time, record: &str, result: &CommandResult) {
        let error = match result {
            // What was said is kept, so that failures that alternate with successes are not news each time.
            Ok(()) => {
                if let Some(failure) = self.0.get_mut(record) {
                    failure.times = 0;
                }
                return;
            }
            Err(error) => error,
        };
        let failure = self.0.entry(record.to_owned()).or_default();
        failure.times = failure.times.saturating_add(1);
        let grown = failure.times - u32::from(matches!(error, CommandError::Conflict(_)));
        let hold = match grown {
            0 => Duration::ZERO,
            grown => FIRST_HOLD.saturating_mul(1 << (grown - 1).min(10)).min(LONGEST_HOLD),
        };
        failure.until = now + hold;
    }

    /// Whether nothing is to be given out for a record yet.
    pub fn is_held(&self, record: &str, now: Time) -> bool {
        self.0.get(record).is_some_and(|failure| failure.times > 0 && now < failure.until)
    }

    /// Whether its last commands failed in a row.
    pub fn is_slow(&self, record: &str) -> bool {
        self.0.get(record).is_some_and(|failure| failure.times > 1)
    }

    /// Whether the journal is to be told of a failure now, and how many it was not told of since the last; if so it
    /// counts as told.
    pub fn is_due(&mut self, record: &str, now: Time) -> Option<u32> {
        let failure = self.0.entry(record.to_owned()).or_default();
        if failure.said.is_some_and(|at| now - at < AGAIN) {
            failure.unsaid = failure.unsaid.saturating_add(1);
            return None;
        }
        failure.said = Some(now);
        Some(std::mem::take(&mut failure.unsaid))
    }

    /// Keeps what is about records that exist, and, of those that could not be made, what is young.
    pub fn forget(&mut self, now: Time, exists: impl Fn(&String) -> bool) {
        self.0.retain(|name, failure| exists(name) || now < failure.until + AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_millis(1_000_000 + ms)
    }

    #[test]
    fn each_failure_in_a_row_is_waited_for_longer_up_to_a_bound_and_a_success_ends_it() {
        let mut failing = Failing::default();
        let refused = Err(CommandError::Refused("no".into()));
        let mut held = Vec::new();
        for _ in 0..40 {
            failing.answered(at(0), "r", &refused);
            held.push((0..=10_000).step_by(50).find(|ms| !failing.is_held("r", at(*ms))).expect("bounded"));
        }
        assert_eq!(held[..7], [250, 500, 1_000, 2_000, 4_000, 8_000, 10_000]);
        assert!(held[7..].iter().all(|ms| *ms == 10_000));
        assert!(!failing.is_held("another", at(0)));
        failing.answered(at(0), "r", &Ok(()));
        assert!(!failing.is_held("r", at(0)) && !failing.is_slow("r"));
    }

    #[test]
    fn that_somebody_was_first_is_tried_again_at_once_but_not_for_ever() {
        let mut failing = Failing::default();
        let conflict = Err(CommandError::Conflict("update out of sequence".into()));
        failing.answered(at(0), "r", &conflict);
        assert!(!failing.is_held("r", at(0)) && !failing.is_slow("r"));
        failing.answered(at(0), "r", &conflict);
        assert!(failing.is_held("r", at(249)) && failing.is_slow("r"));
    }

    #[test]
    fn the_journal_is_told_once_a_minute() {
        let mut failing = Failing::default();
        let told: Vec<Option<u32>> =
            [0, 100, 59_999, 60_000].iter().map(|ms| failing.is_due("r", at(*ms))).collect();
        assert_eq!(told, [Some(0), None, None, Some(2)]);
    }
}
