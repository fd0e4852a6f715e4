//! Ctrl-C: noted by a handler, obeyed at the next wait, so that what was begun is torn down in an orderly way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};

static REQUESTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    REQUESTED.store(true, Ordering::SeqCst);
}

/// From now on SIGINT, SIGTERM and SIGHUP make [`check`] fail instead of ending the process at once.
pub fn install() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler = note as extern "C" fn(libc::c_int);
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        let before = unsafe { libc::signal(signal, handler as libc::sighandler_t) };
        if signal == libc::SIGHUP && before == libc::SIG_IGN {
            // Started by nohup, which is to outlive the terminal.
            // SAFETY: takes no pointers.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }
}

/// # Errors
/// Where the user asked to stop.
pub fn check() -> Result<()> {
    if REQUESTED.load(Ordering::SeqCst) {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps; a signal ends it early.
///
/// # Errors
/// Where the user asked to stop.
pub fn pause(time: Duration) -> Result<()> {
    check()?;
    std::thread::sleep(time);
    check()
}
