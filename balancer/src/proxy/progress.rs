//! How far one exchange is: who is waited for, and since when. Both bodies note what they pass on, so that silence is
//! judged of the whole exchange and put down to the right side.

use std::{
    cell::{Cell, OnceCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::stall::{Stall, Stalls};

/// See the module. Shared by the request's body, the answer's body and who waits for the answer.
#[derive(Clone, Debug)]
pub struct Progress {
    state: Rc<State>,
}

#[derive(Debug)]
struct State {
    /// When something was passed on last, in either direction.
    last: Cell<Instant>,
    /// The request's body is asked for and does not come: the client is waited for, not the replica.
    waits_for_client: Cell<bool>,
    /// The answer's body is asked for and does not come: the replica is waited for, not the client.
    waits_for_replica: Cell<bool>,
    /// The answer has begun.
    answered: Cell<bool>,
    /// Those of the service that the request is for.
    stalls: OnceCell<Arc<Stalls>>,
}

impl Progress {
    /// The request's head is here.
    pub fn start() -> Self {
        let state = State {
            last: Cell::new(Instant::now()),
            waits_for_client: Cell::new(false),
            waits_for_replica: Cell::new(false),
            answered: Cell::new(false),
            stalls: OnceCell::new(),
        };
        Self { state: Rc::new(state) }
    }

    /// It is known which service the request is for.
    pub fn belongs_to(&self, stalls: &Arc<Stalls>) {
        let _ = self.state.stalls.set(Arc::clone(stalls));
    }

    /// The client stands still from now on.
    pub fn stall(&self) -> Option<Stall> {
        self.state.stalls.get().map(Stalls::begin)
    }

    /// The answer has begun, and the client does not take what there is of it.
    pub fn waits_for_reader(&self) -> bool {
        self.is_answered() && !self.state.waits_for_replica.get()
    }

    /// Something was passed on.
    pub fn moved(&self) {
        self.state.last.set(Instant::now());
        self.state.waits_for_client.set(false);
        self.state.waits_for_replica.set(false);
    }

    /// The client would take more of the answer, and the replica does not send it.
    pub fn waits_for_replica(&self) {
        self.state.waits_for_replica.set(true);
    }

    /// Whether the client has not taken anything of the answer for `patience`, though there is more.
    pub fn is_unread(&self, patience: Duration, now: Instant) -> bool {
        self.waits_for_reader() && self.last() + patience <= now
    }

    /// The replica would take more of the request, and the client does not send it.
    pub fn waits_for_client(&self) {
        self.state.waits_for_client.set(true);
    }

    /// The answer's head is here.
    pub fn answered(&self) {
        self.state.answered.set(true);
        self.moved();
    }

    /// Whether the answer has begun.
    pub fn is_answered(&self) -> bool {
        self.state.answered.get()
    }

    /// When something was passed on last.
    pub fn last(&self) -> Instant {
        self.state.last.get()
    }

    /// Waits until the replica has had `patience` since the last byte that it was sent, without an answer. A client that
    /// dawdles is not held against it, however long that takes.
    pub async fn no_answer(&self, patience: Duration) {
        let mut wake = self.last() + patience;
        loop {
            tokio::time::sleep_until(wake).await;
            let now = Instant::now();
            if self.state.waits_for_client.get() {
                wake = now + patience;
                continue;
            }
            let due = self.last() + patience;
            if due <= now {
                return;
            }
            wake = due;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(300);

    #[tokio::test]
    async fn a_client_that_dawdles_is_not_held_against_the_replica() {
        let (progress, start) = (Progress::start(), Instant::now());
        let client = progress.clone();
        let sends = async {
            for _ in 0..10 {
                client.waits_for_client();
                tokio::time::sleep(Duration::from_millis(100)).await;
                client.moved();
            }
            // The request has ended after a second.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = progress.no_answer(PATIENCE) => {}
            () = sends => {}
        }
        assert!(start.elapsed() >= Duration::from_millis(1_300), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_replica_that_takes_nothing_more_is_given_up() {
        let (progress, start) = (Progress::start(), Instant::now());
        progress.waits_for_client();
        progress.moved();
        progress.no_answer(PATIENCE).await;
        assert!(start.elapsed() >= PATIENCE);
    }
}
