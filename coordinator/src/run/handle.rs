//! The API's way into the loop: questions and commands wait in one bounded queue, and the loop answers them in turn.

use std::{sync::Arc, time::Duration};

use swarmguard_common::{api::Plan, time::Time, wire::connect::ROUTES_LEASE_MS};
use swarmguard_core::{
    brain::{Accepted, Brain, NotTaken, OperatorCommand},
    swarm::{Node, Snapshot},
};
use tokio::sync::{mpsc, oneshot};

/// From a reading older than this no routes for `connect()` are told or renewed: agents let theirs lapse.
pub(super) const OLDEST_READING: Duration = Duration::from_millis(ROUTES_LEASE_MS);

/// A question that the loop answers between two inputs; it must be quick.
pub(super) type Question = Box<dyn FnOnce(&Brain, &Facts) + Send>;

/// What the API can ask of the loop.
pub(super) enum Request {
    Ask(Question),
    Command { by: String, command: OperatorCommand, answer: oneshot::Sender<Result<Accepted, NotTaken>> },
    Plan { by: String, command: OperatorCommand, answer: oneshot::Sender<Result<Plan, NotTaken>> },
}

/// What the loop knows besides the brain.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Now, on the clock that the brain goes by.
    pub now: Time,
    /// The newest reading of Swarm.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Why the last reading failed, if it did.
    pub trouble: Option<String>,
}

impl Facts {
    /// How old the newest reading is; `None` before the first.
    pub fn snapshot_age(&self) -> Option<Duration> {
        self.snapshot.as_ref().map(|snapshot| self.now.since(snapshot.taken))
    }

    /// Whether there is no reading that is fresh enough to decide by.
    pub fn is_blind(&self) -> bool {
        self.snapshot_age().is_none_or(|age| age > OLDEST_READING)
    }

    /// The node whose coordinator an order is sent on to, which need not be beside the raft leader; never this one.
    pub fn addressee(&self, brain: &Brain) -> Option<&Node> {
        self.snapshot.as_ref()?.nodes.get(brain.turn().addressee()?)
    }

    /// Host name of the raft leader, as far as known.
    pub fn leader_host(&self) -> Option<String> {
        let snapshot = self.snapshot.as_ref()?;
        Some(snapshot.nodes.get(snapshot.leader()?)?.hostname.clone())
    }
}

/// The API's way to the loop; cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) requests: mpsc::Sender<Request>,
}

/// The loop did not answer: it is overwhelmed or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator's loop does not answer, try again")]
pub struct Busy;

impl Handle {
    /// Evaluates `question` in the loop.
    ///
    /// # Errors
    /// When too many wait already, or the loop has ended.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Brain, &Facts) -> T + Send + 'static,
    ) -> Result<T, Busy> {
        let (answer, answered) = oneshot::channel();
        let question: Question = Box::new(move |brain, facts| {
            // Whoever asked may have gone.
            let _ = answer.send(question(brain, facts));
        });
        self.requests.try_send(Request::Ask(question)).map_err(|_| Busy)?;
        answered.await.map_err(|_| Busy)
    }

    /// Gives the brain an operator's command.
    ///
    /// # Errors
    /// When the loop does not answer; inside, when the command was not taken.
    pub async fn command(
        &self,
        by: String,
        command: OperatorCommand,
    ) -> Result<Result<Accepted, NotTaken>, Busy> {
        let (answer, answered) = oneshot::channel();
        self.requests.try_send(Request::Command { by, command, answer }).map_err(|_| Busy)?;
        answered.await.map_err(|_| Busy)
    }

    /// Asks the brain what a command would do, without doing it.
    ///
    /// # Errors
    /// As [`Self::command`].
    pub async fn plan(&self, by: String, command: OperatorCommand) -> Result<Result<Plan, NotTaken>, Busy> {
        let (answer, answered) = oneshot::channel();
        self.requests.try_send(Request::Plan { by, command, answer }).map_err(|_| Busy)?;
        answered.await.map_err(|_| Busy)
    }
}
