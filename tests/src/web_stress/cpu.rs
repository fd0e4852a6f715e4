//! Burning a stated share of the CPU allowance.
//!
//! Threads of their own, niced to the bottom: the threads that serve requests must stay quick while this goes on, or
//! the load would look like an outage. Each thread measures the CPU time it really got, so that the share holds
//! whatever a wake-up or an iteration costs on the machine at hand.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How finely the share is kept; a quarter of the window that an agent looks at.
const SLICE: Duration = Duration::from_millis(25);

/// How much to burn, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct CpuPlan {
    /// Share of the allowance, 0 to 100.
    pub target_percent: f64,
    /// CPUs that 100 % stands for.
    pub allowance_cpus: f64,
    /// From the first thread's start to the end, the ramp included.
    pub duration: Duration,
    /// The load rises evenly from 0 to the target over this long.
    pub ramp: Duration,
}

impl CpuPlan {
    /// CPUs to keep busy `elapsed` after the start; 0 once it is over.
    pub fn cpus_at(&self, elapsed: Duration) -> f64 {
        if elapsed >= self.duration {
            return 0.0;
        }
        let full = self.target_percent / 100.0 * self.allowance_cpus;
        if elapsed >= self.ramp { full } else { full * elapsed.as_secs_f64() / self.ramp.as_secs_f64() }
    }

    /// Threads needed for the full load, at most 1024.
    pub fn workers(&self) -> u32 {
        let full = (self.target_percent / 100.0 * self.allowance_cpus).ceil().clamp(1.0, 1024.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 1..=1024 above"
        )]
        let workers = full as u32;
        workers
    }

    /// Share of one CPU, 0 to 1, that thread `worker` burns: threads fill up one after the other.
    pub fn share_at(&self, worker: u32, elapsed: Duration) -> f64 {
        (self.cpus_at(elapsed) - f64::from(worker)).clamp(0.0, 1.0)
    }
}

/// Threads that burn until their plan ends or this is dropped.
#[derive(Debug)]
pub struct CpuLoad {
    stop: Arc<AtomicBool>,
}

impl CpuLoad {
    /// Starts the threads of `plan`.
    ///
    /// # Errors
    /// The operating system's, where it grants no more threads; those started are stopped again.
    pub fn start(plan: CpuPlan) -> std::io::Result<Self> {
        let load = CpuLoad { stop: Arc::new(AtomicBool::new(false)) };
        for worker in 0..plan.workers() {
            let stop = Arc::clone(&load.stop);
            std::thread::Builder::new()
                .name(format!("burn-{worker}"))
                .spawn(move || burn(&plan, worker, &stop))?;
        }
        Ok(load)
    }
}

impl Drop for CpuLoad {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn burn(plan: &CpuPlan, worker: u32, stop: &AtomicBool) {
    // On Linux this lowers the calling thread alone. Refused, the load is the same, serving only less favoured.
    let _ = rustix::process::nice(19);
    let start = now();
    let mut slice_end = SLICE;
    // CPU time that this thread should have used by the end of the current slice.
    let mut due = cpu_time();
    loop {
        let elapsed = now().saturating_sub(start);
        if elapsed >= plan.duration || stop.load(Ordering::Relaxed) {
            return;
        }
        let used = cpu_time();
        // What a busy node withheld is not caught up later: a burst of it would exceed the target.
        due = due.max(used.saturating_sub(SLICE)) + SLICE.mul_f64(plan.share_at(worker, elapsed));
        due = due.min(used + SLICE);
        while cpu_time() < due && now().saturating_sub(start) < slice_end && !stop.load(Ordering::Relaxed) {
            spin();
        }
        std::thread::sleep(slice_end.saturating_sub(now().saturating_sub(start)));
        slice_end = (slice_end + SLICE).max(now().saturating_sub(start));
    }
}

/// Some tens of microseconds of arithmetic that the compiler may not remove.
fn spin() {
    let mut x = black_box(0x9E37_79B9_u64);
    for _ in 0..10_000 {
        x = black_box(x.rotate_left(5) ^ x.wrapping_mul(31));
    }
    black_box(x);
}

fn now() -> Duration {
    read(ClockId::Monotonic)
}

/// CPU time of the calling thread.
fn cpu_time() -> Duration {
    read(ClockId::ThreadCPUTime)
}

fn read(clock: ClockId) -> Duration {
    let at = clock_gettime(clock);
    let part = |n: i64| u64::try_from(n).unwrap_or_default();
    Duration::from_secs(part(at.tv_sec)) + Duration::from_nanos(part(at.tv_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(target_percent: f64, allowance_cpus: f64) -> CpuPlan {
        let (duration, ramp) = (Duration::from_secs(100), Duration::from_secs(10));
        CpuPlan { target_percent, allowance_cpus, duration, ramp }
    }

    #[test]
    fn the_load_rises_evenly_and_ends() {
        let plan = plan(80.0, 2.0);
        let at = |s: f64| plan.cpus_at(Duration::from_secs_f64(s));
        assert_eq!((at(0.0), at(5.0), at(10.0), at(99.9), at(100.0)), (0.0, 0.8, 1.6, 1.6, 0.0));
        assert_eq!(self::plan(80.0, 0.5).cpus_at(Duration::from_secs(50)), 0.4);
    }

    #[test]
    fn threads_fill_one_after_the_other() {
        let plan = plan(80.0, 4.0);
        assert_eq!(plan.workers(), 4);
        let at = |worker, s| plan.share_at(worker, Duration::from_secs(s));
        assert_eq!((at(0, 5), at(1, 5), at(2, 5)), (1.0, 0.6000000000000001, 0.0));
        let sum: f64 = (0..4).map(|worker| at(worker, 20)).sum();
        assert!((sum - 3.2).abs() < 1e-9);
        assert_eq!(self::plan(0.0, 1.0).workers(), 1);
    }

    #[test]
    fn a_thread_uses_the_share_it_was_given_and_no_more() {
        // The CPU clock of the thread itself, so that other load on the machine can only lower the figure.
        let burnt = std::thread::spawn(|| {
            let seconds = Duration::from_secs(1);
            let plan = CpuPlan {
                target_percent: 40.0,
                allowance_cpus: 1.0,
                duration: seconds,
                ramp: Duration::ZERO,
            };
            burn(&plan, 0, &AtomicBool::new(false));
            cpu_time()
        })
        .join()
        .unwrap();
        // A busy machine may grant next to nothing in that second, but never nothing.
        assert!(burnt > Duration::from_millis(1), "hardly burnt anything: {burnt:?}");
        assert!(burnt < Duration::from_millis(480), "burnt more than its share: {burnt:?}");
    }

    #[test]
    fn stopping_ends_the_threads() {
        let stop = AtomicBool::new(true);
        burn(&plan(100.0, 1.0), 0, &stop); // returns, or the test hangs
    }
}
