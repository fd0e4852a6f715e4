//! How long the heat of a service lasts, learned from its last episodes: a remedy that comes after a burst is none.

use std::{collections::VecDeque, time::Duration};

use swarmguard_common::time::Time;

/// Episodes remembered.
const MAX_EPISODES: usize = 20;
/// Fewer say nothing.
const LEAST_EPISODES: usize = 3;
/// Heat that comes back within this time is the same episode.
const PAUSE: Duration = Duration::from_secs(3);
/// Remedies remembered.
const MAX_REMEDIES: usize = 5;
/// How long a remedy takes where none was seen yet: a start, a settle, a removal.
pub(super) const USUAL_REMEDY: Duration = Duration::from_secs(8);
/// Heat that lasts longer than all before by this factor is of another kind.
const BEYOND_ALL: f64 = 1.25;

/// The episodes of one service, and how long its remedies took.
#[derive(Clone, Debug, Default)]
pub struct Heats {
    /// Since when it is hot, when it was so last, and whether something of ours ended it early.
    current: Option<(Time, Time, bool)>,
    lengths: VecDeque<Duration>,
    busy_since: Option<Time>,
    remedies: VecDeque<Duration>,
}

/// What is expected of an episode that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// How much longer it lasts, on the average of those that lasted as long.
    pub left: Duration,
    /// How long a remedy takes.
    pub remedy: Duration,
    /// Episodes that this rests on.
    pub episodes: usize,
}

impl Heats {
    /// Takes in since when the service is hot, if it is, and whether an action on it is under way.
    pub fn note(&mut self, now: Time, hot_since: Option<Time>, busy: bool) {
        match (busy, self.busy_since) {
            (true, None) => self.busy_since = Some(now),
            (false, Some(since)) => {
                self.busy_since = None;
                push(&mut self.remedies, MAX_REMEDIES, now - since);
                if let Some((_, _, relieved)) = &mut self.current {
                    *relieved = true;
                }
            }
            _ => {}
        }
        match (&mut self.current, hot_since) {
            (Some((_, last, _)), Some(_)) => *last = now,
            (None, Some(since)) => self.current = Some((since, now, false)),
            (Some((since, last, relieved)), None) if now - *last >= PAUSE => {
                // What a remedy ended says nothing about how long it would have lasted.
                if !*relieved {
                    push(&mut self.lengths, MAX_EPISODES, *last - *since);
                }
                self.current = None;
            }
            _ => {}
        }
    }

    /// What is expected of the present episode; `None` where too little is known, or it lasts longer than any before.
    pub fn expected(&self, now: Time) -> Option<Expected> {
        let (since, ..) = self.current?;
        if self.lengths.len() < LEAST_EPISODES {
            return None;
        }
        let lasted = now - since;
        let longer: Vec<Duration> =
            self.lengths.iter().filter(|length| **length > lasted).map(|length| *length - lasted).collect();
        let longest = self.lengths.iter().max()?;
        if longer.is_empty() && lasted > longest.mul_f64(BEYOND_ALL) {
            return None;
        }
        let number = u32::try_from(longer.len().max(1)).unwrap_or(u32::MAX);
        let left = longer.iter().sum::<Duration>() / number;
        Some(Expected { left, remedy: self.remedy(), episodes: self.lengths.len() })
    }

    /// How long a remedy takes: the median of the last ones.
    pub fn remedy(&self) -> Duration {
        let mut known: Vec<Duration> = self.remedies.iter().copied().collect();
        known.sort();
        known.get(known.len() / 2).copied().unwrap_or(USUAL_REMEDY)
    }
}

fn push(list: &mut VecDeque<Duration>, most: usize, value: Duration) {
    if list.len() >= most {
        list.pop_front();
    }
    list.push_back(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Time {
        Time::from_millis(1_000_000 + second * 1_000)
    }

    /// Episodes of so many seconds, one every five minutes, and one more that has lasted for so long.
    fn after(lengths: &[u64], lasted: u64) -> Option<Expected> {
        let mut heats = Heats::default();
        let mut start = 0;
        for length in lengths {
            for second in start..start + 300 {
                heats.note(at(second), (second < start + length).then(|| at(start)), false);
            }
            start += 300;
        }
        for second in start..=start + lasted {
            heats.note(at(second), Some(at(start)), false);
        }
        heats.expected(at(start + lasted))
    }

    #[test]
    fn bursts_are_expected_to_pass_and_what_lasts_longer_is_not() {
        assert_eq!(after(&[10, 10], 3), None, "two say nothing yet");
        let expected = after(&[10, 10, 10], 3).expect("known");
        assert!(expected.left <= Duration::from_secs(7) && expected.remedy == USUAL_REMEDY, "{expected:?}");
        assert_eq!(after(&[10, 10, 10], 10).expect("known").left, Duration::ZERO);
        assert_eq!(after(&[10, 10, 10], 13), None, "of another kind");
        let mixed = after(&[10, 10, 10, 200], 15).expect("known");
        assert!(mixed.left > Duration::from_secs(180), "that lasted as long once lasted for long: {mixed:?}");
    }

    #[test]
    fn what_a_remedy_ended_is_no_length() {
        let mut heats = Heats::default();
        for second in 0..20 {
            heats.note(at(second), (second < 10).then(|| at(0)), (3..8).contains(&second));
        }
        assert_eq!((heats.lengths.len(), heats.remedy()), (0, Duration::from_secs(5)));
        for second in 0..20 {
            heats.note(at(100 + second), (second < 10).then(|| at(100)), (5..15).contains(&second));
        }
        assert_eq!(heats.lengths.len(), 1, "it came after the burst: {heats:?}");
    }
}
