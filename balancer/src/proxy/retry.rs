//! Whether a request is sent again, the same on both paths. Pure.
//!
//! Sent again are: requests of which nothing was sent (no connection), and idempotent requests without a body that got
//! no answer or 502, 503, 504. Both within the service's retry budget. Nothing else is ever sent twice.

use crate::{choose::Wish, rate::RetryBudget};

/// Replicas tried for one request, the first included.
const ATTEMPTS: usize = 3;

/// How an attempt to have a request answered ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer of this status.
    Answered(u16),
    /// There was no connection to be had, so that nothing was sent.
    Unsent,
    /// The connection broke, and something may have been sent.
    Broken,
    /// The answer makes no sense.
    Unreadable,
    /// The answer's head is larger than what is passed on: it would be so at every replica.
    TooLarge,
    /// There was no answer in time: a second replica would do the same work once more.
    TimedOut,
    /// The client broke off, fell silent or sent too much.
    Client,
}

impl Ended {
    /// Whether it speaks against the replica.
    pub fn is_failure(self) -> bool {
        match self {
            Self::Answered(status) => status >= 500,
            Self::Unsent | Self::Broken | Self::Unreadable | Self::TimedOut => true,
            Self::TooLarge | Self::Client => false,
        }
    }

    /// Whether a kept connection may have been closed meanwhile, which says nothing about the replica: the request goes
    /// there once more over a new one.
    pub fn is_stale(self, repeatable: bool) -> bool {
        matches!(self, Self::Unsent) || (repeatable && matches!(self, Self::Broken))
    }

    fn may_be_repeated(self, repeatable: bool) -> bool {
        match self {
            Self::Unsent => true,
            Self::Broken | Self::Answered(502..=504) => repeatable,
            Self::Answered(_) | Self::Unreadable | Self::TooLarge | Self::TimedOut | Self::Client => false,
        }
    }
}

/// The attempts at one request.
#[derive(Debug)]
pub struct Retry {
    tried: [u64; ATTEMPTS],
    count: usize,
    repeatable: bool,
}

impl Retry {
    /// None yet; `repeatable` where sending it twice does no more than sending it once.
    pub fn new(repeatable: bool) -> Self {
        Self { tried: [0; ATTEMPTS], count: 0, repeatable }
    }

    /// What is asked of the next replica.
    pub fn wish(&self, sticky: Option<u64>) -> Wish<'_> {
        Wish { sticky, tried: &self.tried[..self.count], repeatable: self.repeatable }
    }

    /// Whether there could be another attempt after the one that is about to be made.
    pub fn has_more(&self) -> bool {
        self.count + 1 < ATTEMPTS
    }

    /// Notes how the attempt at `replica` ended. True where the request is to be sent to another one: the budget has
    /// paid for it.
    pub fn again(&mut self, replica: u64, ended: Ended, budget: &RetryBudget) -> bool {
        if let Some(place) = self.tried.get_mut(self.count) {
            *place = replica;
            self.count += 1;
        }
        self.count < ATTEMPTS && ended.may_be_repeated(self.repeatable) && budget.withdraw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_does_no_harm_is_sent_again() {
        let budget = RetryBudget::default();
        let again = |repeatable, ended| Retry::new(repeatable).again(1, ended, &budget);
        for (ended, repeatable, unrepeatable) in [
            (Ended::Unsent, true, true),
            (Ended::Broken, true, false),
            (Ended::Answered(503), true, false),
            (Ended::Answered(500), false, false),
            (Ended::Answered(413), false, false),
            (Ended::Unreadable, false, false),
            (Ended::TooLarge, false, false),
            (Ended::TimedOut, false, false),
            (Ended::Client, false, false),
        ] {
            assert_eq!(again(true, ended), repeatable, "{ended:?}");
            assert_eq!(again(false, ended), unrepeatable, "{ended:?}, not repeatable");
        }
    }

    #[test]
    fn three_replicas_are_tried_and_never_one_twice() {
        let budget = RetryBudget::default();
        let mut retry = Retry::new(true);
        assert!(retry.has_more() && retry.again(7, Ended::Broken, &budget));
        assert!(retry.has_more() && retry.again(8, Ended::Broken, &budget));
        assert_eq!(retry.wish(None).tried, [7, 8]);
        assert!(!retry.has_more() && !retry.again(9, Ended::Broken, &budget), "the third was the last");
    }

    #[test]
    fn the_budget_has_the_last_word() {
        let budget = RetryBudget::default();
        while budget.withdraw() {}
        assert!(!Retry::new(true).again(1, Ended::Unsent, &budget));
    }

    #[test]
    fn the_client_and_a_head_too_large_are_no_fault_of_the_replica() {
        assert!(
            !Ended::Client.is_failure()
                && !Ended::TooLarge.is_failure()
                && !Ended::Answered(404).is_failure()
        );
        assert!(
            Ended::TimedOut.is_failure() && Ended::Answered(500).is_failure() && Ended::Unsent.is_failure()
        );
    }
}
