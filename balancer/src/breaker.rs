//! One replica's circuit breaker, which is also what ejects outliers.
//!
//! Closed: requests go. Five failures in a row, or half of at least twenty within ten seconds, open it. Open: nothing
//! goes for a while that doubles with every opening. Then half open: one request is let through; if it succeeds the
//! breaker closes, otherwise it opens again. Failures are errors of the replica (no connection, no answer, 5xx), not
//! slowness, and a failure that comes fast is still a failure: it raises the expected latency
//! ([`crate::replica::Replica::record`]), so a replica that answers errors at once attracts nothing while it is still
//! being judged.
//!
//! All of it is atomics with relaxed order: a lost count under contention delays an ejection by one request.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use swarmguard_common::time::Time;

/// Failures in a row that open it.
const IN_A_ROW: u32 = 5;
/// Length of the window in which the share of failures is watched.
const WINDOW: Duration = Duration::from_secs(10);
/// Fewest requests in the window before the share means anything.
const LEAST_REQUESTS: u32 = 20;
/// Open for this long at first, doubled with each opening.
const OPEN: Duration = Duration::from_secs(2);
/// Open for no longer than this.
const OPEN_MOST: Duration = Duration::from_secs(60);
/// A trial request that did not come back for so long no longer keeps others out.
const TRIAL: Duration = Duration::from_secs(10);

/// Whether a request may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It may.
    Closed,
    /// It may not.
    Open,
    /// It may, if [`Breaker::claim_trial`] says that it is the one.
    HalfOpen,
}

/// See the module.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Breaker {
    /// Microseconds; 0 is closed. First, for every pick reads it.
    open_until: AtomicU64,
    in_a_row: AtomicU32,
    /// Openings since it was last closed for long.
    openings: AtomicU32,
    /// Microseconds; a trial is under way until then.
    trial_until: AtomicU64,
    window_began: AtomicU64,
    window_requests: AtomicU32,
    window_failures: AtomicU32,
}

impl Breaker {
    /// Whether a request may go now.
    pub fn gate(&self, now: Time) -> Gate {
        let until = self.open_until.load(Relaxed);
        if until == 0 {
            Gate::Closed
        } else if now.as_micros() < until || now.as_micros() < self.trial_until.load(Relaxed) {
            Gate::Open
        } else {
            Gate::HalfOpen
        }
    }

    /// Takes the one trial of a half-open breaker; false where another request has it.
    pub fn claim_trial(&self, now: Time) -> bool {
        let before = self.trial_until.load(Relaxed);
        if now.as_micros() < before {
            return false;
        }
        let until = (now + TRIAL).as_micros();
        self.trial_until.compare_exchange(before, until, Relaxed, Relaxed).is_ok()
    }

    /// Notes how a request ended. True where this opened the breaker.
    pub fn record(&self, success: bool, now: Time) -> bool {
        self.roll(now);
        self.window_requests.fetch_add(1, Relaxed);
        if success {
            // Written only where it changes something: this runs for every request on every core.
            if self.in_a_row.load(Relaxed) != 0 {
                self.in_a_row.store(0, Relaxed);
            }
            let until = self.open_until.load(Relaxed);
            if until != 0 && now.as_micros() >= until {
                self.close();
            }
            return false;
        }
        let in_a_row = self.in_a_row.fetch_add(1, Relaxed) + 1;
        let failures = self.window_failures.fetch_add(1, Relaxed) + 1;
        let requests = self.window_requests.load(Relaxed);
        let many = requests >= LEAST_REQUESTS && failures * 2 >= requests;
        let trial_failed = self.gate(now) != Gate::Closed && now.as_micros() >= self.open_until.load(Relaxed);
        let opens = trial_failed || ((in_a_row >= IN_A_ROW || many) && self.gate(now) == Gate::Closed);
        if opens {
            self.open(now);
        }
        opens
    }

    /// Forgets everything: an active check found the replica well again.
    pub fn close(&self) {
        self.open_until.store(0, Relaxed);
        self.trial_until.store(0, Relaxed);
        self.in_a_row.store(0, Relaxed);
        self.window_requests.store(0, Relaxed);
        self.window_failures.store(0, Relaxed);
    }

    fn open(&self, now: Time) {
        let times = self.openings.fetch_add(1, Relaxed).min(5);
        let wait = OPEN.saturating_mul(1 << times).min(OPEN_MOST);
        self.trial_until.store(0, Relaxed);
        self.open_until.store((now + wait).as_micros(), Relaxed);
    }

    fn roll(&self, now: Time) {
        let began = self.window_began.load(Relaxed);
        if now.as_micros() < began + u64::try_from(WINDOW.as_micros()).unwrap_or(u64::MAX) {
            return;
        }
        if self.window_began.compare_exchange(began, now.as_micros(), Relaxed, Relaxed).is_ok() {
            let failures = self.window_failures.swap(0, Relaxed);
            self.window_requests.store(0, Relaxed);
            // A whole window without a failure forgives one opening.
            if failures == 0 && self.openings.load(Relaxed) > 0 {
                self.openings.fetch_sub(1, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_millis(100_000 + millis)
    }

    #[test]
    fn five_failures_open_it_and_one_trial_closes_it() {
        let breaker = Breaker::default();
        for _ in 0..4 {
            assert!(!breaker.record(false, at(0)));
        }
        assert_eq!(breaker.gate(at(0)), Gate::Closed);
        assert!(breaker.record(false, at(0)));
        assert_eq!(breaker.gate(at(1_999)), Gate::Open);
        assert_eq!(breaker.gate(at(2_000)), Gate::HalfOpen);
        assert!(breaker.claim_trial(at(2_000)));
        assert!(!breaker.claim_trial(at(2_001)), "only one trial");
        assert_eq!(breaker.gate(at(2_001)), Gate::Open);
        breaker.record(true, at(2_002));
        assert_eq!(breaker.gate(at(2_003)), Gate::Closed);
    }

    #[test]
    fn a_failed_trial_opens_it_for_longer() {
        let breaker = Breaker::default();
        for _ in 0..5 {
            breaker.record(false, at(0));
        }
        assert!(breaker.claim_trial(at(2_000)));
        assert!(breaker.record(false, at(2_001)));
        assert_eq!(breaker.gate(at(6_000)), Gate::Open);
        assert_eq!(breaker.gate(at(6_001)), Gate::HalfOpen);
    }

    #[test]
    fn half_of_many_failing_opens_it_though_never_five_in_a_row() {
        let breaker = Breaker::default();
        let opened = (0..40).any(|n| breaker.record(n % 2 == 0, at(n)));
        assert!(opened);
    }

    #[test]
    fn a_lost_trial_does_not_keep_it_open_for_ever() {
        let breaker = Breaker::default();
        for _ in 0..5 {
            breaker.record(false, at(0));
        }
        assert!(breaker.claim_trial(at(2_000)));
        assert_eq!(breaker.gate(at(13_000)), Gate::HalfOpen);
    }

    #[test]
    fn stragglers_that_fail_while_it_is_open_do_not_prolong_it() {
        let breaker = Breaker::default();
        for _ in 0..30 {
            breaker.record(false, at(0));
        }
        assert_eq!(breaker.gate(at(2_000)), Gate::HalfOpen);
    }
}
