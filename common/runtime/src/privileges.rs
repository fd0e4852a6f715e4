//! No program of ours ever starts another one with more rights than it has.
//!
//! `docker stack deploy` takes no `security_opt`, and engines know `no-new-privileges` for services only from version 27
//! on. The kernel's own flag (`prctl(2)`, `PR_SET_NO_NEW_PRIVS`) needs neither: a program sets it for itself, for good.

use std::io;

/// From now on nothing that this process runs can gain rights, by a set-user-ID bit or a file's capabilities. Call before
/// any thread is started: threads that run already do not get the flag.
///
/// # Errors
/// On kernels before 3.5.
pub fn forgo_new() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_of_it() {
        // A thread of its own: the flag cannot be taken back.
        let said = std::thread::spawn(|| {
            forgo_new().expect("any kernel");
            std::fs::read_to_string("/proc/thread-self/status").expect("text")
        });
        let said = said.join().expect("no panic");
        assert!(said.contains("NoNewPrivs:\t1"), "{said}");
    }
}
