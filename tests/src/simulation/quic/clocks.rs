//! Clocks of the simulated machines: each began to count at another time and runs at its own rate, a little fast or slow.

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use swarmguard_common::time::Time;
use swarmguard_runtime::clock;

/// One machine's clock.
#[derive(Clone, Copy, Debug)]
struct Clock {
    began: Time,
    /// Parts per million that it is fast (or slow).
    drift_ppm: i64,
}

thread_local! {
    /// By the time at which the host joined the simulation: that is how the host that asks is known, since the network
    /// knows how long the whole runs and how long the host does.
    static CLOCKS: RefCell<Vec<(Duration, Clock)>> = const { RefCell::new(Vec::new()) };
    static LAST: Cell<Time> = const { Cell::new(Time::ZERO) };
}

/// While this lives, this thread reads simulated clocks.
pub(super) struct Simulated;

impl Simulated {
    pub fn begin() -> Self {
        CLOCKS.with_borrow_mut(Vec::clear);
        clock::simulate(Some(now));
        Self
    }

    /// The host that joins at `joined` gets a clock. Each host must join at another time.
    pub fn give(&self, joined: Duration, began: Time, drift_ppm: i64) {
        CLOCKS.with_borrow_mut(|clocks| clocks.push((joined, Clock { began, drift_ppm })));
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        clock::simulate(None);
    }
}

/// The clock of the host that runs now. Where none does (the end of a run drops what its hosts left), the last reading.
fn now() -> Time {
    let Some(all) = turmoil::sim_elapsed() else { return LAST.get() };
    let own = turmoil::elapsed();
    let joined = all.saturating_sub(own);
    let found =
        CLOCKS.with_borrow(|clocks| clocks.iter().find(|(at, _)| *at == joined).map(|(_, clock)| *clock));
    let clock = found.unwrap_or(Clock { began: Time::from_millis(3_600_000), drift_ppm: 0 });
    let micros = i64::try_from(own.as_micros()).unwrap_or(i64::MAX);
    let drift = micros / 1_000 * clock.drift_ppm / 1_000;
    let elapsed = u64::try_from(micros.saturating_add(drift)).unwrap_or(0);
    LAST.set(clock.began + Duration::from_micros(elapsed));
    LAST.get()
}
