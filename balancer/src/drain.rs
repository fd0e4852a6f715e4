//! Waiting until nothing is in flight at replicas that are about to be stopped.

use std::{sync::Arc, time::Duration};

use swarmguard_common::domain::TaskId;

use crate::replica::Replica;

/// How often is looked. A drain takes as long as the slowest request, so this is soon enough.
const LOOK: Duration = Duration::from_millis(10);

/// A drain that lasts longer is no longer waited for: whoever asked has stopped the replica by then.
const MOST: Duration = Duration::from_secs(600);

/// Waits for `replicas`; `done` is told of tasks as they become free. Those drained already are told at once.
pub async fn wait(mut replicas: Vec<Arc<Replica>>, mut done: impl FnMut(Vec<TaskId>)) {
    let deadline = tokio::time::Instant::now() + MOST;
    while tokio::time::Instant::now() < deadline {
        let mut free = Vec::new();
        // One that takes requests again (the drain was given up) is nobody's concern any more.
        replicas.retain(|replica| {
            let busy = replica.in_flight() > 0;
            if !busy && replica.draining() {
                free.push(replica.task.clone());
            }
            busy && replica.draining()
        });
        if !free.is_empty() {
            done(free);
        }
        if replicas.is_empty() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::example;

    #[tokio::test]
    async fn each_is_reported_when_its_last_request_ended() {
        let (idle, busy) = (Arc::new(example("idle")), Arc::new(example("busy")));
        assert!(busy.enter());
        for replica in [&idle, &busy] {
            replica.set_draining(true);
        }
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let waiting = wait(vec![Arc::clone(&idle), Arc::clone(&busy)], move |tasks| {
            let _ = sender.send(tasks);
        });
        let waiting = tokio::spawn(waiting);
        assert_eq!(receiver.recv().await, Some(vec![idle.task.clone()]));
        assert!(receiver.try_recv().is_err());
        busy.leave(true);
        assert_eq!(receiver.recv().await, Some(vec![busy.task.clone()]));
        waiting.await.expect("ended");
    }
}
