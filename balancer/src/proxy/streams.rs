//! The requests of HTTP/2 connections, each a task of its own. A client that takes nothing of an answer stops nothing but
//! that answer, and holds its replica, its lease and its memory for ever: such a request is ended by its own task.

use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, Sleep},
};

use super::{progress::Progress, worker::Worker};
use crate::{stall::Stall, stats::bump};

thread_local! {
    /// The exchange that was begun in the task that runs now.
    static BEGUN: RefCell<Option<Progress>> = const { RefCell::new(None) };
}

/// Runs what hyper spawns on the worker's own thread.
#[derive(Clone, Debug)]
pub struct Streams {
    worker: Rc<Worker>,
    /// Told when the connection is to end.
    end: Rc<Notify>,
}

impl Streams {
    /// Of a connection of `worker`, which is to end once `end` is told.
    pub fn new(worker: &Rc<Worker>, end: &Rc<Notify>) -> Self {
        Self { worker: Rc::clone(worker), end: Rc::clone(end) }
    }

    /// The task that runs now is about this exchange.
    pub fn note(progress: &Progress) {
        BEGUN.set(Some(progress.clone()));
    }
}

impl<F: Future + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, future: F) {
        // hyper makes the future where it reads the head: what was noted last is about it.
        let progress = BEGUN.take();
        let patience = self.worker.global.settings.idle_timeout;
        let (worker, end) = (Rc::clone(&self.worker), Rc::clone(&self.end));
        tokio::task::spawn_local(async move {
            let task = Task { future: Box::pin(future), progress, timer: None, patience, stall: None };
            let outcome = task.await;
            if outcome == Outcome::Unread {
                bump(&worker.stats.unread);
            }
            // What was buffered of an answer that was given up is kept until it can be written, or the connection ends.
            if outcome != Outcome::Ended && worker.global.memory.is_strained() {
                end.notify_one();
            }
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Ended,
    /// Dropping the future resets the stream.
    Unread,
    /// Likewise: a request that found no room has its place.
    Displaced,
}

struct Task<F> {
    future: Pin<Box<F>>,
    progress: Option<Progress>,
    timer: Option<Pin<Box<Sleep>>>,
    patience: Duration,
    /// There is more of the answer, and the client has not taken it.
    stall: Option<(Stall, Instant)>,
}

impl<F: Future> Future for Task<F> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let this = &mut *self;
        if this.future.as_mut().poll(context).is_ready() {
            return Poll::Ready(Outcome::Ended);
        }
        let Some(progress) = &this.progress else { return Poll::Pending };
        // Counts anew whenever something moved.
        if !progress.waits_for_reader() {
            this.stall = None;
        } else if this.stall.as_ref().is_none_or(|(_, since)| *since != progress.last()) {
            this.stall = progress.stall().map(|stall| (stall, progress.last()));
        }
        if this.stall.as_ref().is_some_and(|(stall, _)| stall.poll(context).is_ready()) {
            return Poll::Ready(Outcome::Displaced);
        }
        let patience = this.patience;
        let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        while timer.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            if progress.is_unread(patience, now) {
                return Poll::Ready(Outcome::Unread);
            }
            let due = progress.last() + patience;
            timer.as_mut().reset(if due > now { due } else { now + patience });
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(100);

    fn task(progress: &Progress) -> Task<std::future::Pending<()>> {
        let future = Box::pin(std::future::pending());
        Task { future, progress: Some(progress.clone()), timer: None, patience: PATIENCE, stall: None }
    }

    #[tokio::test]
    async fn an_answer_that_nobody_takes_is_ended() {
        let (progress, start) = (Progress::start(), Instant::now());
        progress.answered();
        assert_eq!(task(&progress).await, Outcome::Unread);
        assert!(start.elapsed() >= PATIENCE);
    }

    #[tokio::test]
    async fn a_quiet_replica_is_waited_for() {
        let progress = Progress::start();
        progress.answered();
        progress.waits_for_replica();
        let ended = tokio::time::timeout(PATIENCE * 5, task(&progress)).await;
        assert!(ended.is_err());
        let unanswered = Progress::start();
        let ended = tokio::time::timeout(PATIENCE * 5, task(&unanswered)).await;
        assert!(ended.is_err(), "its own time-out ends it");
    }
}
