//! When Swarm is read: every second or two, sooner while an action is under way or after a change, never two readings at once
//! and never faster than the engine can bear.

use std::{sync::Arc, time::Duration};

use swarmguard_core::{brain::Wish, swarm::Snapshot};
use swarmguard_runtime::clock;
use tokio::sync::{mpsc, watch};

use crate::seam::SwarmApi;

/// Shortest time between them when somebody changed something.
const CHANGED: Duration = Duration::from_millis(100);
/// Shortest time between them when an action's own step was answered: each step of an action waits for a reading, and
/// there are about twenty of them, so that this is most of what an action takes by itself.
const STEP: Duration = Duration::from_millis(20);
/// A reading that takes long is one of a large swarm, or of a starved engine, and costs its manager much: at rest this
/// many times as long is left between the beginnings of two, when something is awaited two thirds of that, after a step
/// a third; but never more than [`STALE`], because nothing is decided on older readings.
const REST: u32 = 9;
/// Longest pause for that reason.
const STALE: Duration = Duration::from_secs(3);
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
    let mut deaf = false;
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
        let took = clock::now().since(began);
        if readings.send(reading).await.is_err() {
            return;
        }
        let mut moved = false;
        loop {
            let usual = swarm.rhythm();
            let mut wanted = pause(*wish.borrow_and_update(), usual, took);
            if moved {
                wanted = wanted.min(pause(Wish::Within(CHANGED), usual, took));
            }
            tokio::select! {
                // In order, because all chance in a simulation comes from its seed.
                biased;
                () = tokio::time::sleep(wanted.saturating_sub(clock::now().since(began))) => break,
                changed = wish.changed() => if changed.is_err() { return },
                changed = changes.changed(), if !deaf => match changed {
                    Ok(()) => moved = true,
                    // The event stream is gone for good: the rhythm alone must do.
                    Err(_) => deaf = true,
                },
            }
        }
    }
}

/// Time from the beginning of a reading, which took so long, to the beginning of the next.
fn pause(wish: Wish, usual: Duration, took: Duration) -> Duration {
    let (wanted, rest) = match wish {
        Wish::Usual => (usual, REST),
        Wish::Within(pause) => (pause.min(usual), REST * 2 / 3),
        Wish::Now => (STEP, REST / 3),
    };
    wanted.max(STEP).max((took * rest).min(STALE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_engine_is_asked_less_often_but_often_enough_to_decide() {
        let ms = Duration::from_millis;
        let pause = |wish, took| super::pause(wish, ms(1_000), ms(took));
        assert_eq!(pause(Wish::Usual, 20), ms(1_000));
        assert_eq!(pause(Wish::Usual, 200), ms(1_800));
        assert_eq!(pause(Wish::Usual, 5_000), STALE);
        assert_eq!(pause(Wish::Within(CHANGED), 100), ms(600));
        assert_eq!(pause(Wish::Now, 5), STEP);
        assert_eq!(pause(Wish::Now, 100), ms(300));
        assert_eq!(pause(Wish::Within(ms(200)), 5), ms(200));
        assert_eq!(super::pause(Wish::Usual, ms(2_000), ms(5)), ms(2_000));
    }
}
