//! The most replicas that a service was found to need within a window: what it may be scaled in to.

use std::{collections::VecDeque, time::Duration};

use swarmguard_common::time::Time;

/// Most numbers kept; beyond it the window is judged by fewer, larger ones.
const MAX_NUMBERS: usize = 128;

/// Numbers found, each with when it was last needed. A smaller one before a larger says nothing and is not kept, so the
/// first is the most.
#[derive(Clone, Debug)]
pub struct Lows {
    since: Time,
    numbers: VecDeque<(Time, u64)>,
}

impl Lows {
    /// Begins to watch.
    pub fn new(now: Time) -> Self {
        Self { since: now, numbers: VecDeque::new() }
    }

    /// Takes in how many are found to be needed now; what is older than the window is forgotten.
    pub fn note(&mut self, now: Time, needed: u64, window: Duration) {
        while self.numbers.back().is_some_and(|(_, number)| *number <= needed) {
            self.numbers.pop_back();
        }
        let full = self.numbers.len() >= MAX_NUMBERS;
        match self.numbers.back_mut().filter(|_| full) {
            // The last one, which is more, stands for this one too.
            Some(last) => last.0 = now,
            None => self.numbers.push_back((now, needed)),
        }
        while self.numbers.len() > 1 && self.numbers.front().is_some_and(|(at, _)| now - *at > window) {
            self.numbers.pop_front();
        }
    }

    /// The most that was needed in the window; `None` where it was not watched for as long.
    pub fn most(&self, now: Time, window: Duration) -> Option<u64> {
        if now - self.since < window {
            return None;
        }
        let within = self.numbers.iter().find(|(at, _)| now - *at <= window);
        within.or(self.numbers.back()).map(|(_, number)| *number)
    }

    /// Since when fewer than so many have been needed without a break.
    pub fn below_since(&self, replicas: u64) -> Time {
        let over = self.numbers.iter().rev().find(|(_, number)| *number >= replicas);
        over.map_or(self.since, |(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Time {
        Time::from_millis(1_000_000 + second * 1_000)
    }

    #[test]
    fn the_most_of_the_window_counts() {
        let window = Duration::from_secs(20);
        let mut lows = Lows::new(at(0));
        for second in 0..15 {
            lows.note(at(second), 5, window);
        }
        assert_eq!(lows.most(at(15), window), None, "not watched for long enough");
        for second in 15..30 {
            lows.note(at(second), 2, window);
        }
        assert_eq!(lows.most(at(30), window), Some(5));
        assert_eq!((lows.below_since(5), lows.below_since(6)), (at(14), at(0)));
        lows.note(at(35), 3, window);
        assert_eq!(lows.most(at(36), window), Some(3));
        assert_eq!(lows.below_since(3), at(35));
        assert_eq!(lows.numbers.len(), 1);
    }

    #[test]
    fn it_is_bounded() {
        let mut lows = Lows::new(at(0));
        for second in 0..1_000 {
            lows.note(at(second), 10_000 - second, Duration::from_secs(86_400));
        }
        assert_eq!(lows.numbers.len(), MAX_NUMBERS);
        assert_eq!(lows.most(at(86_500), Duration::from_secs(86_400)), Some(9_900));
    }
}
