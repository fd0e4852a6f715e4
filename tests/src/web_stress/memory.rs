//! Holding a stated amount of memory, touched page by page, and giving all of it back at the end.
//!
//! Blocks of 1 MiB that malloc maps one by one: left to itself glibc raises its threshold after the first such block
//! is freed, keeps the next ones in its heap, and the container would look full long after the load ended.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

const BLOCK_BYTES: usize = 1 << 20;
const TICK: Duration = Duration::from_millis(100);

/// How much to hold, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct MemoryPlan {
    /// MiB at full load.
    pub mb: u32,
    /// From start to end, the ramp included.
    pub duration: Duration,
    /// The amount rises evenly over this long.
    pub ramp: Duration,
}

impl MemoryPlan {
    /// MiB to hold `elapsed` after the start; 0 once it is over.
    pub fn mb_at(&self, elapsed: Duration) -> u32 {
        if elapsed >= self.duration {
            return 0;
        }
        if elapsed >= self.ramp {
            return self.mb;
        }
        let share = elapsed.as_secs_f64() / self.ramp.as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share below 1 of a u32"
        )]
        let mb = (f64::from(self.mb) * share) as u32;
        mb
    }
}

/// A thread that holds memory until its plan ends or this is dropped.
#[derive(Debug)]
pub struct MemoryLoad {
    // Dropping the sender wakes the thread, which then frees everything.
    _stop: Sender<()>,
}

impl MemoryLoad {
    /// Starts taking memory by `plan`.
    ///
    /// # Errors
    /// The operating system's, where it grants no thread.
    pub fn start(plan: MemoryPlan) -> std::io::Result<Self> {
        map_every_block();
        let (stop, stopped) = channel();
        std::thread::Builder::new().name("memory".to_owned()).spawn(move || hold(&plan, &stopped))?;
        Ok(MemoryLoad { _stop: stop })
    }
}

fn hold(plan: &MemoryPlan, stopped: &Receiver<()>) {
    let start = tokio::time::Instant::now();
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    loop {
        let elapsed = start.elapsed();
        if elapsed >= plan.duration {
            return;
        }
        // One block a turn while it grows, so that stopping is quick also in the middle of a large amount.
        let behind = u32::try_from(blocks.len()).unwrap_or(u32::MAX) < plan.mb_at(elapsed);
        if behind {
            // Not zero: a zeroed block would be mapped without its pages being touched.
            blocks.push(vec![0xA5; BLOCK_BYTES]);
        }
        let wait = if behind { Duration::ZERO } else { TICK.min(plan.duration - elapsed) };
        if stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

#[cfg(target_env = "gnu")]
fn map_every_block() {
    // SAFETY: mallopt takes two integers and locks malloc's own state; setting the threshold also stops glibc from
    // moving it.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 256 * 1024) };
}

#[cfg(not(target_env = "gnu"))]
fn map_every_block() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_amount_rises_evenly_and_ends() {
        let plan = MemoryPlan { mb: 100, duration: Duration::from_secs(30), ramp: Duration::from_secs(10) };
        let at = |s| plan.mb_at(Duration::from_secs(s));
        assert_eq!((at(0), at(5), at(10), at(29), at(30)), (0, 50, 100, 100, 0));
    }

    #[test]
    fn memory_is_touched_while_held_and_given_back_after() {
        fn resident_mb() -> f64 {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            let pages: f64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
            pages * f64::from(u32::try_from(rustix::param::page_size()).unwrap()) / f64::from(1 << 20)
        }
        fn until(what: &str, mut holds: impl FnMut() -> bool) {
            for _ in 0..600 {
                if holds() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            panic!("still not so after half a minute: {what}");
        }
        let before = resident_mb();
        let plan = MemoryPlan { mb: 200, duration: Duration::from_secs(600), ramp: Duration::ZERO };
        let load = MemoryLoad::start(plan).unwrap();
        until("200 MiB resident", || resident_mb() > before + 190.0);
        drop(load);
        until("given back", || resident_mb() < before + 60.0);
    }
}
