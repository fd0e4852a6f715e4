//! Processes that outlive the command that started them: who they are, and how to end exactly them.
//!
//! A process is its id and its start time: ids are used again, and a stale state file must never end a stranger.
//! A process that was started but not yet written down is found by a variable in its environment.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::{clock, interrupt};

/// Set in the environment of everything that belongs to a cluster; the value is the cluster's directory.
pub const MARK: &str = "SWARMGUARD_CLUSTER";

/// A process that cannot be confused with a later one of the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since the machine booted (`/proc/PID/stat`, field 22).
    pub start_ticks: u64,
}

impl Identity {
    /// The process that has this id now; `None` where there is none or it is a zombie.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, start_ticks: start_ticks(&stat)? })
    }

    /// Whether exactly this process still runs.
    pub fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal to exactly this process; one that has ended is fine.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn signal(self, signal: Signal) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        // The descriptor pins the process: what is checked after opening it is what gets the signal.
        let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        if !self.alive() {
            return Ok(());
        }
        match pidfd_send_signal(&descriptor, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot signal process {}", self.pid)),
        }
    }
}

/// Field 22 of a `/proc/PID/stat` line; `None` for a zombie, which has nothing left to end.
fn start_ticks(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses, which may itself contain both.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// All processes whose environment says that they belong to the cluster in `directory`, except this one.
pub fn marked(directory: &Path) -> Vec<Identity> {
    let wanted = format!("{MARK}={}", directory.display());
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
                environment.split(|byte| *byte == 0).any(|word| word == wanted.as_bytes())
            })
        })
        .filter_map(Identity::of)
        .collect()
}

/// Ends these processes at once and waits until they are gone.
///
/// # Errors
/// Where one is still there after ten seconds.
pub fn end(processes: &[Identity]) -> Result<()> {
    for process in processes {
        process.signal(Signal::KILL)?;
    }
    let started = clock::now();
    while let Some(left) = processes.iter().find(|process| process.alive()) {
        reap(processes);
        if clock::now().duration_since(started) > Duration::from_secs(10) {
            bail!(
                "process {} does not end although it was killed: look at /proc/{}/stack",
                left.pid,
                left.pid
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Collects those that were children of this process, which would otherwise stay zombies.
fn reap(processes: &[Identity]) {
    for pid in processes.iter().filter_map(|process| Pid::from_raw(process.pid)) {
        // Fails for those that are somebody else's children, who collect them.
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
    }
}

/// How to start a process that stays.
pub struct Daemon<'a> {
    /// Program and arguments.
    pub command: Command,
    /// The cluster's directory.
    pub cluster: &'a Path,
    /// File that takes its output.
    pub log: PathBuf,
    /// Name of the network namespace to start in.
    pub namespace: Option<&'a str>,
}

impl Daemon<'_> {
    /// Starts it in a session of its own, so that Ctrl-C on the terminal does not reach it.
    ///
    /// # Errors
    /// Where its log or its namespace cannot be opened or it cannot be started.
    pub fn start(mut self) -> Result<Identity> {
        let log = OpenOptions::new().append(true).create(true).open(&self.log);
        let log = log.with_context(|| format!("cannot open {}", self.log.display()))?;
        let errors = log.try_clone().context("cannot share the log")?;
        self.command.stdin(Stdio::null()).stdout(log).stderr(errors).env(MARK, self.cluster);
        if let Some(name) = self.namespace {
            enter_namespace(&mut self.command, name)?;
        }
        // SAFETY: both are async-signal-safe and take no pointers.
        unsafe {
            self.command.pre_exec(|| {
                libc::setsid();
                // What the caller's caller had open (a lock, a pipe) must not stay open as long as the cluster lives.
                libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
                Ok(())
            });
        }
        let program = self.command.get_program().to_owned();
        let child = self.command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let pid = i32::try_from(child.id()).context("a process id over 2^31")?;
        Identity::of(pid)
            .with_context(|| format!("{} ended at once: see {}", program.display(), self.log.display()))
    }
}

/// Runs a command to its end; true where that was a success. A signal to this process ends the command.
///
/// # Errors
/// Where it cannot be started, or the user asked to stop.
pub fn wait(command: &mut Command) -> Result<bool> {
    let mut child =
        command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a program")? {
            interrupt::check()?;
            return Ok(status.success());
        }
        if interrupt::pause(Duration::from_millis(50)).is_err() {
            let _ = child.kill();
            let _ = child.wait();
            bail!("interrupted");
        }
    }
}

/// Makes `command` start inside the network namespace `name`, as `ip netns exec` would.
///
/// # Errors
/// Where there is no such namespace.
pub fn enter_namespace(command: &mut Command, name: &str) -> Result<()> {
    let path = Path::new("/run/netns").join(name);
    let file =
        File::open(&path).with_context(|| format!("cannot open network namespace {}", path.display()))?;
    // SAFETY: setns is async-signal-safe; the descriptor lives as long as the closure that owns it.
    unsafe {
        command.pre_exec(move || {
            if libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_odd_names() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_ticks(&format!("12 (a) b) {tail}")), Some(4711));
        assert_eq!(start_ticks("12 (gone) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20"), None);
        assert_eq!(start_ticks(""), None);
    }

    #[test]
    fn a_recycled_id_is_somebody_else() {
        let own = Identity::of(i32::try_from(std::process::id()).expect("ids are small")).expect("this runs");
        assert!(own.alive());
        let stranger = Identity { start_ticks: own.start_ticks + 1, ..own };
        assert!(!stranger.alive());
        stranger.signal(Signal::KILL).expect("a stranger is left alone");
        assert!(own.alive());
    }

    #[test]
    fn a_daemon_is_found_by_its_mark_and_ended() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new("sleep");
        command.arg("60");
        let daemon =
            Daemon { command, cluster: place.path(), log: place.path().join("log"), namespace: None };
        let identity = daemon.start().expect("sleep exists");
        // The mark is in the environment once the child has executed its program.
        let found = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            marked(place.path()) == [identity]
        });
        assert!(found, "{:?} not among {:?}", identity, marked(place.path()));
        end(&[identity]).expect("it ends");
        assert!(!identity.alive());
    }
}
