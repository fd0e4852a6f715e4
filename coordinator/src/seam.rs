//! What the loop asks of Swarm, as a trait: the engine's client implements it, and so do models of a swarm in tests and
//! simulation.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use swarmguard_common::domain::{ServiceId, TaskId};
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

    /// Time between the beginnings of two readings when nobody waits for one.
    fn rhythm(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Services whose tasks are wanted anew in every snapshot. What else is in it may be read less often.
    fn watch_closely(&self, services: BTreeSet<ServiceId>) {
        let _ = services;
    }

    /// An agent said that something happened to a task's container.
    fn task_changed(&self, task: &TaskId) {
        let _ = task;
    }
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

    fn rhythm(&self) -> Duration {
        (**self).rhythm()
    }

    fn watch_closely(&self, services: BTreeSet<ServiceId>) {
        (**self).watch_closely(services);
    }

    fn task_changed(&self, task: &TaskId) {
        (**self).task_changed(task);
    }
}
