//! When the next tick is due: a timer of the kernel's own.
//!
//! Not tokio's: each of its sleeps writes to a descriptor to wake a loop that is awake, and its wheel of 64 ms wakes the
//! loop once more on the way to a tick. Next to sampling some dozens of containers that was most of the cost.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use swarmguard_common::time::Time;
use swarmguard_runtime::clock;
use tokio::io::{Interest, unix::AsyncFd};

/// A time that can be waited for, again and again.
pub(super) struct Alarm {
    timer: AsyncFd<OwnedFd>,
    due: Time,
}

impl Alarm {
    /// Due at once.
    ///
    /// # Errors
    /// Where the system has no room for another timer.
    pub(super) fn new() -> io::Result<Self> {
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        let mut alarm = Self { timer, due: clock::now() };
        alarm.set(clock::now())?;
        Ok(alarm)
    }

    /// When it is due.
    pub(super) fn due(&self) -> Time {
        self.due
    }

    /// Sets it to another time, which may be past.
    ///
    /// # Errors
    /// As the system says; not to be expected.
    pub(super) fn set(&mut self, due: Time) -> io::Result<()> {
        self.due = due;
        // Nothing would switch it off.
        let left = due.since(clock::now()).max(Duration::from_nanos(1));
        let value = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        rustix::time::timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    /// Waits until it is due. Setting it anew makes it ready to be waited for again.
    ///
    /// # Errors
    /// When the timer breaks.
    pub(super) async fn wait(&self) -> io::Result<()> {
        // Never read: setting it takes its expirations away, and a new one wakes again.
        self.timer.readable().await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_rings_at_once_later_and_again() {
        let mut alarm = Alarm::new().expect("a timer");
        alarm.wait().await.expect("due at once");
        for _ in 0..3 {
            let due = clock::now() + Duration::from_millis(20);
            alarm.set(due).expect("set");
            assert_eq!(alarm.due(), due);
            alarm.wait().await.expect("rings");
            assert!(clock::now() >= due, "not before it is due");
        }
        // Put off before anybody looked, it does not ring for what it was set to first.
        alarm.set(clock::now()).expect("set");
        std::thread::sleep(Duration::from_millis(2));
        alarm.set(clock::now() + Duration::from_secs(3_600)).expect("set");
        let early = tokio::time::timeout(Duration::from_millis(200), async {
            loop {
                alarm.wait().await.expect("a timer");
                assert!(clock::now() < alarm.due(), "woken without need, which the loop bears");
            }
        });
        assert!(early.await.is_err());
    }
}
