//! What the loop asks of Swarm, as a trait: the engine's client implements it, and so do models of a swarm in tests and
//! simulation.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use swarmguard_core::{
    command::{Command, CommandResult},
    swarm::Snapshot,
};
use tokio::sync::watch;

/// A swarm that can be read and changed.
pub trait SwarmApi: Send + Sync + 'static {
    /// One consistent reading; the error is a sentence for people.
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, String>>;

    /// Carries out one command. `DrainBalancers` and `ResumeBalancers` never come here.
    fn execute(&self, command: Command) -> BoxFuture<'_, CommandResult>;

    /// Counts up when something in Swarm may have changed, so that the next reading can come sooner.
    fn changes(&self) -> watch::Receiver<u64>;
}

impl<T: SwarmApi> SwarmApi for Arc<T> {
    fn snapshot(&self) -> BoxFuture<'_, Result<Snapshot, String>> {
        (**self).snapshot()
    }

    fn execute(&self, command: Command) -> BoxFuture<'_, CommandResult> {
        (**self).execute(command)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        (**self).changes()
    }
}
