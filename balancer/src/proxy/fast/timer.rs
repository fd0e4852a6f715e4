//! One timer for a connection's changing deadlines.
//!
//! Setting a tokio timer takes a lock and moves it in a wheel, twice for each request. This one is moved only when it
//! fires too early or a deadline comes nearer than ever before; most of the time a deadline is only written down.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use swarmguard_common::time::Time;
use tokio::time::{Instant, Sleep};

/// See the module.
#[derive(Debug)]
pub struct Timer {
    sleep: Pin<Box<Sleep>>,
    origin: (Instant, Time),
    armed: Time,
    deadline: Time,
}

impl Timer {
    /// Fires `after` from `now`, unless set otherwise before.
    pub fn new(now: Time, after: Duration) -> Self {
        let origin = (Instant::now(), now);
        let deadline = now + after;
        Self {
            sleep: Box::pin(tokio::time::sleep_until(origin.0 + after)),
            origin,
            armed: deadline,
            deadline,
        }
    }

    /// Fires `after` from `now` instead.
    pub fn set(&mut self, now: Time, after: Duration) {
        self.deadline = now + after;
        if self.deadline < self.armed {
            self.arm();
        }
    }

    fn arm(&mut self) {
        self.armed = self.deadline;
        self.sleep.as_mut().reset(self.origin.0 + self.deadline.since(self.origin.1));
    }

    /// Ready once the deadline has passed.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.sleep.as_mut().poll(context).is_ready() {
            if self.armed >= self.deadline {
                return Poll::Ready(());
            }
            self.arm();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use swarmguard_runtime::clock;

    use super::*;

    #[tokio::test]
    async fn the_last_deadline_counts_whether_nearer_or_further() {
        let start = clock::now();
        let mut timer = Timer::new(start, Duration::from_secs(3_600));
        timer.set(start, Duration::from_millis(20));
        timer.set(start, Duration::from_millis(60));
        poll_fn(|context| timer.poll(context)).await;
        assert!(clock::now().since(start) >= Duration::from_millis(60));
    }
}
