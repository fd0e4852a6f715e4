//! When Swarm is read: every second, sooner while an action is under way or after a change, never two readings at once
//! and never faster than the engine can bear.

use std::{sync::Arc, time::Duration};

use swarmguard_common::clock;
use swarmguard_core::{brain::Wish, swarm::Snapshot};
use tokio::sync::{mpsc, watch};

use crate::seam::SwarmApi;

/// Time between the beginnings of two readings when nothing happens.
const USUAL: Duration = Duration::from_secs(1);
/// Shortest time between them, whatever happens.
const SHORTEST: Duration = Duration::from_millis(100);
/// Longest that a reading may take.
const DEADLINE: Duration = Duration::from_secs(15);

/// A reading, or why there is none.
pub type Reading = Result<Arc<Snapshot>, String>;

/// Reads until nobody listens any more.
pub async fn run<S: SwarmApi>(
    swarm: Arc<S>,
    mut wish: watch::Receiver<Wish>,
    readings: mpsc::Sender<Reading>,
) {
    let mut changes = swarm.changes();
    loop {
        let began = clock::now();
        // Marked as seen before the reading: what changes during it asks for another one.
        changes.borrow_and_update();
        wish.borrow_and_update();
        let reading = match tokio::time::timeout(DEADLINE, swarm.snapshot()).await {
            Ok(Ok(snapshot)) => Ok(Arc::new(snapshot)),
            Ok(Err(why)) => Err(why),
            Err(_) => Err(format!("the engine did not answer within {} s", DEADLINE.as_secs())),
        };
        if readings.send(reading).await.is_err() {
            return;
        }
        loop {
            let pause = match *wish.borrow_and_update() {
                Wish::Usual => USUAL,
                Wish::Within(pause) => pause.min(USUAL),
                Wish::Now => SHORTEST,
            };
            let left = pause.max(SHORTEST).saturating_sub(clock::now().since(began));
            tokio::select! {
                () = tokio::time::sleep(left) => break,
                changed = wish.changed() => if changed.is_err() { return },
                changed = changes.changed() => {
                    if changed.is_err() {
                        // The event stream is gone for good: the rhythm alone must do.
                        tokio::time::sleep(left).await;
                    }
                    let left = SHORTEST.saturating_sub(clock::now().since(began));
                    tokio::time::sleep(left).await;
                    break;
                }
            }
        }
    }
}
