//! Requests whose client has stopped reading its answer or sending its body, while their replica's place stays taken.
//!
//! With time enough nobody minds: `SWARMGUARD_IDLE_TIMEOUT` ends them. But where every replica has as many requests in
//! flight as it may, a few connections that read nothing would keep all others out for that long. So a request that finds
//! no room takes the place of the one whose client has stood still for longest, and of no more than that one.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use swarmguard_common::time::Time;
use swarmguard_runtime::clock;

/// A client that has stood still for so long gives its place to a request that has none.
const PATIENCE: Duration = Duration::from_secs(1);

/// All of one service, over all workers. Bounded by the requests in flight.
#[derive(Debug, Default)]
pub struct Stalls(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// Numbers are given in turn, so the first has stood still for longest.
    by_number: BTreeMap<u64, Arc<State>>,
    next: u64,
}

#[derive(Debug)]
struct State {
    since: Time,
    /// Its place was given away.
    ended: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// One client that stands still; dropped as soon as it moves.
#[derive(Debug)]
pub struct Stall {
    all: Arc<Stalls>,
    number: u64,
    state: Arc<State>,
}

impl Stalls {
    /// A client stands still from now on.
    pub fn begin(self: &Arc<Self>) -> Stall {
        let since = clock::now();
        let state = Arc::new(State { since, ended: AtomicBool::new(false), waker: Mutex::default() });
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = waiting.next;
        waiting.next += 1;
        waiting.by_number.insert(number, Arc::clone(&state));
        Stall { all: Arc::clone(self), number, state }
    }

    /// Ends the request whose client has stood still for longest; false where none has for long enough.
    pub fn make_room(&self, now: Time) -> bool {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(first) = waiting.by_number.first_entry() else { return false };
        if now.since(first.get().since) < PATIENCE {
            return false;
        }
        let state = first.remove();
        drop(waiting);
        state.ended.store(true, Relaxed);
        // The waker's lock makes the flag seen by whoever polls next.
        if let Some(waker) = state.waker.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waker.wake();
        }
        true
    }
}

impl Stall {
    /// Ready once the place was given away.
    pub fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut waker = self.state.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state.ended.load(Relaxed) {
            return Poll::Ready(());
        }
        if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        let mut waiting = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn the_one_that_stands_still_for_longest_makes_room_and_a_young_one_does_not() {
        let all = Arc::new(Stalls::default());
        let (first, second) = (all.begin(), all.begin());
        assert!(!all.make_room(clock::now()), "none has stood still for long enough");
        let later = clock::now() + PATIENCE;
        assert!(all.make_room(later));
        poll_fn(|context| first.poll(context)).await;
        assert!(poll_fn(|context| Poll::Ready(second.poll(context).is_pending())).await, "one is enough");
        drop(second);
        assert!(!all.make_room(later), "who moves is not in the way");
        drop(first);
        assert!(all.0.lock().expect("unpoisoned").by_number.is_empty());
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let all = Arc::new(Stalls::default());
        let stall = all.begin();
        let ends = tokio::spawn(async move { poll_fn(|context| stall.poll(context)).await });
        tokio::task::yield_now().await;
        assert!(all.make_room(clock::now() + PATIENCE));
        tokio::time::timeout(Duration::from_secs(5), ends).await.expect("woken").expect("no panic");
    }
}
