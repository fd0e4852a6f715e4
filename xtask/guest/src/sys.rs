//! The few system calls that std does not have, each as a safe function that says what failed.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// What the guest's functions fail with: a line for the console, since nobody else can read it.
pub type Result<T> = std::result::Result<T, String>;

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| format!("{text:?} contains NUL"))
}

fn check(status: libc::c_int, what: impl FnOnce() -> String) -> Result<()> {
    if status < 0 { Err(format!("{}: {}", what(), io::Error::last_os_error())) } else { Ok(()) }
}

/// Adds to an error what was being done.
pub fn context<T, E: std::fmt::Display>(
    result: std::result::Result<T, E>,
    what: impl FnOnce() -> String,
) -> Result<T> {
    result.map_err(|error| format!("{}: {error}", what()))
}

/// mount(2); `data` may be empty. The target is created where it is missing.
pub fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, data: &str) -> Result<()> {
    if !Path::new(target).exists() {
        context(std::fs::create_dir_all(target), || format!("cannot create {target}"))?;
    }
    let (source_c, target_c, kind_c, data_c) =
        (c_string(source)?, c_string(target)?, c_string(kind)?, c_string(data)?);
    let data_pointer = if data.is_empty() { std::ptr::null() } else { data_c.as_ptr().cast() };
    // SAFETY: all pointers are NUL-terminated strings that outlive the call.
    let status =
        unsafe { libc::mount(source_c.as_ptr(), target_c.as_ptr(), kind_c.as_ptr(), flags, data_pointer) };
    check(status, || format!("cannot mount {source} on {target} ({kind} {data})"))
}

/// Makes `directory` the root of this process, whatever was mounted at `/` before.
pub fn move_root(directory: &str) -> Result<()> {
    context(std::env::set_current_dir(directory), || format!("cannot enter {directory}"))?;
    mount(".", "/", "", libc::MS_MOVE, "")?;
    chroot(".")
}

fn chroot(directory: &str) -> Result<()> {
    let path = c_string(directory)?;
    // SAFETY: a NUL-terminated string that outlives the call.
    check(unsafe { libc::chroot(path.as_ptr()) }, || format!("cannot chroot to {directory}"))?;
    context(std::env::set_current_dir("/"), || "cannot enter /".to_owned())
}

/// pivot_root(2) onto `directory`, then detaches the old root.
pub fn pivot_root(directory: &str) -> Result<()> {
    context(std::env::set_current_dir(directory), || format!("cannot enter {directory}"))?;
    let dot = c_string(".")?;
    // SAFETY: NUL-terminated strings; "." twice stacks the old root below the new one (pivot_root(2), NOTES).
    let status = unsafe { libc::syscall(libc::SYS_pivot_root, dot.as_ptr(), dot.as_ptr()) };
    check(if status < 0 { -1 } else { 0 }, || format!("cannot pivot_root to {directory}"))?;
    // SAFETY: a NUL-terminated string that outlives the call.
    check(unsafe { libc::umount2(dot.as_ptr(), libc::MNT_DETACH) }, || {
        "cannot detach the old root".to_owned()
    })?;
    context(std::env::set_current_dir("/"), || "cannot enter /".to_owned())
}

/// Loads a kernel module from an uncompressed file; one already loaded is fine.
pub fn load_module(path: &str) -> Result<()> {
    let file = context(File::open(path), || format!("cannot open {path}"))?;
    let parameters = c_string("")?;
    // SAFETY: the descriptor is open and the parameters are a NUL-terminated string.
    let status = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    if status < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::EEXIST) {
        return Err(format!("cannot load {path}: {}", io::Error::last_os_error()));
    }
    Ok(())
}

/// sethostname(2).
pub fn set_hostname(name: &str) -> Result<()> {
    // SAFETY: pointer and length describe `name`.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }, || {
        format!("cannot set hostname {name}")
    })
}

/// Sets the wall clock, in seconds since 1970, where it is more than two seconds off. The emulated RTC is
/// normally right; a guest under a loaded host may have started late.
pub fn correct_clock(seconds: i64) -> Result<()> {
    let mut current = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `current` is a valid timespec to write to.
    check(unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut current) }, || "no clock".to_owned())?;
    // The boot itself takes seconds; only a clock behind the time of its start, or hours ahead, is wrong.
    if (seconds..seconds + 3600).contains(&current.tv_sec) {
        return Ok(());
    }
    let wanted = libc::timespec { tv_sec: seconds + 3, tv_nsec: 0 };
    // SAFETY: `wanted` is a valid timespec.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const wanted) }, || {
        "cannot set clock".to_owned()
    })
}

/// unshare(2).
pub fn unshare(flags: libc::c_int) -> Result<()> {
    // SAFETY: takes no pointers; called while single-threaded.
    check(unsafe { libc::unshare(flags) }, || format!("cannot unshare namespaces {flags:#x}"))
}

/// fork(2) while single-threaded: 0 in the child.
pub fn fork() -> Result<libc::pid_t> {
    // SAFETY: callers have started no threads, so the child may go on with everything.
    let pid = unsafe { libc::fork() };
    check(pid, || "cannot fork".to_owned())?;
    Ok(pid)
}

/// Has the kernel kill this process when its parent ends.
pub fn die_with_parent() -> Result<()> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }, || {
        "cannot set the death signal".to_owned()
    })
}

/// A child that ended, with its exit status (128 + signal where a signal ended it).
pub struct Ended {
    /// The child.
    pub pid: libc::pid_t,
    /// Exit status, or 128 + signal.
    pub status: i32,
}

/// Waits for any child; `None` where there is none.
pub fn wait_any() -> Option<Ended> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid to write to.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        if pid > 0 {
            let code = if libc::WIFEXITED(status) {
                libc::WEXITSTATUS(status)
            } else {
                128 + libc::WTERMSIG(status)
            };
            return Some(Ended { pid, status: code });
        }
        if io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return None;
        }
    }
}

/// Kills a process group; one that has ended already is fine.
pub fn kill_group(leader: u32) {
    if let Ok(pid) = libc::pid_t::try_from(leader) {
        // SAFETY: takes no pointers. ESRCH means there is nothing left to kill.
        unsafe { libc::kill(-pid, libc::SIGKILL) };
    }
}

/// Writes everything back and powers the machine off; returns only where that is not possible.
pub fn power_off() {
    // SAFETY: neither takes pointers.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
}

/// Whole seconds and hundredths since the kernel started, for the console.
pub fn uptime() -> String {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").to_owned()
}
