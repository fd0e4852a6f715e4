//! The one place where a clock is read.
//!
//! Everything that judges takes a [`Time`] as an argument, so that it can run in simulation and so that a step of the
//! wall clock changes no decision. Ages travel between machines, never times of day.

use std::{
    cell::Cell,
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use swarmguard_common::time::Time;

thread_local! {
    static SIMULATED: Cell<Option<fn() -> Time>> = const { Cell::new(None) };
}

/// Lets this thread read another clock from now on, its own again with `None`. Only for simulations, where several
/// machines share a thread and each has a clock that started at another time and runs at its own rate.
pub fn simulate(clock: Option<fn() -> Time>) {
    SIMULATED.set(clock);
}

/// Now, since the first call in this process. Follows tokio's clock, so a paused runtime is obeyed; so is the clock of
/// a simulation ([`simulate`]).
pub fn now() -> Time {
    if let Some(simulated) = SIMULATED.get() {
        return simulated();
    }
    // One hour ahead of the origin, so that "the sample was taken 10 minutes ago" is representable at start.
    static ORIGIN: OnceLock<tokio::time::Instant> = OnceLock::new();
    let instant = tokio::time::Instant::now();
    let since = instant.saturating_duration_since(*ORIGIN.get_or_init(|| instant));
    Time::from_millis(3_600_000) + since
}

/// The wall clock, in milliseconds since the Unix epoch. For people and journals only; nothing is judged by it.
pub fn wall_ms() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "this is the clock module")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulation_brings_its_own_clock_for_its_thread_only() {
        simulate(Some(|| Time::from_millis(42)));
        assert_eq!(now(), Time::from_millis(42));
        let elsewhere = std::thread::spawn(now).join().expect("no panic");
        assert_ne!(elsewhere, Time::from_millis(42));
        simulate(None);
        assert_ne!(now(), Time::from_millis(42));
    }

    #[test]
    fn now_does_not_run_backwards() {
        let first = now();
        assert!(now() >= first);
    }
}
