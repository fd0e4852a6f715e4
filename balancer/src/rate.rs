//! Bounds on rates, shared by all workers without a lock: requests of a service, and retries in proportion to them.

use std::sync::atomic::{
    AtomicI64, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use swarmguard_common::time::Time;

/// Requests a second with a burst of a tenth of a second's worth: the generic cell rate algorithm (ITU-T I.371), one
/// number that says when the next request would be on time.
#[derive(Debug)]
pub struct Limit {
    interval_ns: u64,
    burst_ns: u64,
    due_ns: AtomicU64,
}

impl Limit {
    /// At most `per_second` (1 or more) on average.
    pub fn new(per_second: u32) -> Self {
        let interval_ns = 1_000_000_000 / u64::from(per_second.max(1));
        // At least one whole request, or a limit under 10/s would let nothing through.
        Self { interval_ns, burst_ns: (100_000_000).max(interval_ns), due_ns: AtomicU64::new(0) }
    }

    /// Whether it has been as if nothing ever came.
    pub fn is_rested(&self, now: Time) -> bool {
        self.due_ns.load(Relaxed) <= now.as_micros().saturating_mul(1_000)
    }

    /// Whether one more may go now.
    pub fn admit(&self, now: Time) -> bool {
        let now_ns = now.as_micros().saturating_mul(1_000);
        let mut due = self.due_ns.load(Acquire);
        loop {
            let start = due.max(now_ns);
            let next = start.saturating_add(self.interval_ns);
            if next > now_ns.saturating_add(self.burst_ns) {
                return false;
            }
            match self.due_ns.compare_exchange_weak(due, next, AcqRel, Acquire) {
                Ok(_) => return true,
                Err(newer) => due = newer,
            }
        }
    }
}

/// Retries may be a fifth of the requests, and a few beyond that: a service that fails as a whole must not get its
/// load doubled by its balancer.
#[derive(Debug)]
pub struct RetryBudget {
    /// In fifths of a retry.
    balance: AtomicI64,
}

/// What one retry costs, in deposits of one request each.
const COST: i64 = 5;
/// Retries that may be saved up.
const SAVED: i64 = 100 * COST;

impl Default for RetryBudget {
    fn default() -> Self {
        Self { balance: AtomicI64::new(SAVED / 5) }
    }
}

impl RetryBudget {
    /// A request came.
    pub fn deposit(&self) {
        // Read first: most of the time it is full, and a read does not take the line from the other cores.
        if self.balance.load(Relaxed) < SAVED {
            self.balance.fetch_add(1, Relaxed);
        }
    }

    /// Whether a retry may be made.
    pub fn withdraw(&self) -> bool {
        let paid = |balance: i64| (balance >= COST).then_some(balance - COST);
        self.balance.fetch_update(Relaxed, Relaxed, paid).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_over_time() {
        let limit = Limit::new(100);
        let admitted = (0..5_000).filter(|ms| limit.admit(Time::from_millis(1_000 + ms))).count();
        assert!((500..=511).contains(&admitted), "{admitted} in five seconds at 100/s");
    }

    #[test]
    fn a_slow_rate_still_lets_one_through() {
        let limit = Limit::new(1);
        assert!(limit.admit(Time::from_millis(5_000)));
        assert!(!limit.admit(Time::from_millis(5_500)));
        assert!(limit.admit(Time::from_millis(6_000)));
    }

    #[test]
    fn retries_are_a_fifth_of_requests() {
        let budget = RetryBudget::default();
        while budget.withdraw() {}
        let retried = (0..1_000)
            .filter(|_| {
                budget.deposit();
                budget.withdraw()
            })
            .count();
        assert_eq!(retried, 200);
    }
}
