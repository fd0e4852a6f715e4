//! How fast a channel is told: at most so many messages a minute, then one that holds all that waits; after a failure each
//! further try waits longer, or as long as the receiver says. Pure.

use std::{collections::VecDeque, time::Duration};

use swarmguard_common::time::Time;

/// Messages a minute; what comes on top waits for a digest.
pub const PER_MINUTE: usize = 20;
/// In what time they are counted.
pub const MINUTE: Duration = Duration::from_secs(60);
/// First wait after a failure; each further one doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait that we choose.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Longest wait that a receiver may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(3_600);

/// Of one channel.
#[derive(Debug)]
pub struct Pace {
    window: Duration,
    sent: VecDeque<Time>,
    failures: u32,
    /// Nothing is sent before.
    until: Time,
    /// More was to be sent than may be: the next message is a digest.
    over: bool,
}

impl Pace {
    /// At most [`PER_MINUTE`] messages in this time.
    pub fn new(window: Duration) -> Self {
        Self { window, sent: VecDeque::new(), failures: 0, until: Time::ZERO, over: false }
    }

    /// How long nothing may be sent yet.
    pub fn wait(&mut self, now: Time) -> Duration {
        while self.sent.front().is_some_and(|at| now.since(*at) >= self.window) {
            self.sent.pop_front();
        }
        let full = self.sent.front().filter(|_| self.sent.len() >= PER_MINUTE);
        if full.is_some() {
            self.over = true;
        }
        let room = full.map_or(Duration::ZERO, |oldest| (*oldest + self.window).since(now));
        room.max(self.until.since(now))
    }

    /// Whether all that waits goes into one message now.
    pub fn digest(&self) -> bool {
        self.over
    }

    /// A message was taken.
    pub fn sent(&mut self, now: Time) {
        self.failures = 0;
        self.over = false;
        self.sent.push_back(now);
    }

    /// A message was not taken; `asked` is what the receiver said, `hopeless` that trying again soon is of no use.
    pub fn failed(&mut self, now: Time, asked: Option<Duration>, hopeless: bool) {
        let own = if hopeless {
            LONGEST_WAIT
        } else {
            FIRST_WAIT.saturating_mul(1 << self.failures.min(10)).min(LONGEST_WAIT)
        };
        self.failures = self.failures.saturating_add(1);
        self.until = now + asked.map_or(own, |asked| asked.min(LONGEST_ASKED));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_millis(1_000_000 + ms)
    }

    #[test]
    fn twenty_a_minute_and_then_a_digest() {
        let mut pace = Pace::new(MINUTE);
        for number in 0..20 {
            assert_eq!(pace.wait(at(number)), Duration::ZERO);
            assert!(!pace.digest());
            pace.sent(at(number));
        }
        assert_eq!(pace.wait(at(1_000)), Duration::from_secs(59));
        assert_eq!(pace.wait(at(60_000)), Duration::ZERO);
        assert!(pace.digest(), "what came meanwhile goes into one message");
        pace.sent(at(60_000));
        assert!(!pace.digest());
    }

    #[test]
    fn waits_double_and_what_the_receiver_says_counts() {
        let mut pace = Pace::new(MINUTE);
        for wanted in [1, 2, 4, 8] {
            pace.failed(at(0), None, false);
            assert_eq!(pace.wait(at(0)), Duration::from_secs(wanted));
        }
        for _ in 0..20 {
            pace.failed(at(0), None, false);
        }
        assert_eq!(pace.wait(at(0)), LONGEST_WAIT);
        pace.failed(at(0), Some(Duration::from_secs(7)), false);
        assert_eq!(pace.wait(at(0)), Duration::from_secs(7));
        pace.failed(at(0), Some(Duration::from_secs(1 << 40)), false);
        assert_eq!(pace.wait(at(0)), LONGEST_ASKED);
        pace.sent(at(0));
        pace.failed(at(0), None, false);
        assert_eq!(pace.wait(at(0)), FIRST_WAIT, "a success ends it");
        pace.failed(at(0), None, true);
        assert_eq!(pace.wait(at(0)), LONGEST_WAIT);
    }
}
