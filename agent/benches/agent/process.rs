//! Running a program and asking the kernel what it has used.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use swarmguard_runtime::clock;

/// Longest wait for a program to be ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// After the start, before measuring: loading programs and finding containers is not what running costs, and containers
/// younger than five seconds are looked at more closely.
const SETTLE: Duration = Duration::from_secs(6);

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Measures this build of the agent.
pub fn use_agent(program: PathBuf) {
    // Called once, before anything is measured.
    let _ = PROGRAM.set(program);
}

/// A process that ends when this is dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// CPU time of a whole process so far, threads that ended included.
pub fn cpu(pid: u32) -> Result<Duration> {
    let pid = libc::pid_t::try_from(pid)?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the clock ID is ours.
    if unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) } != 0 {
        bail!("process {pid} has no CPU clock: it has ended");
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        bail!("the CPU clock of process {pid} cannot be read");
    }
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}

/// Resident memory of a process in MiB.
pub fn rss_mib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib / 1_024.0)
}

/// What a process used in a window.
pub struct Used {
    pub cpu: Duration,
    pub wall: Duration,
    pub samples: f64,
    pub rss_mib: f64,
}

impl Used {
    pub fn us_per_sample(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.samples.max(1.0)
    }

    pub fn core_percent(&self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64() * 100.0
    }
}

/// The real agent, sampling everything at every tick.
pub struct Agent {
    running: Running,
    http: SocketAddr,
}

impl Agent {
    pub fn start(root: &std::path::Path, more: &[&str]) -> Result<Self> {
        // Free at this moment; nothing else on this machine takes ports in the same instant.
        let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(PROGRAM.get_or_init(|| env!("CARGO_BIN_EXE_swarmguard-agent").into()));
        // What this was started with is not meant for the agent.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SWARMGUARD_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(["--docker=none", "--coordinators=none", "--adaptive=false", "--budget=100", "--log=error"])
            .arg(format!("--http-addr={http}"))
            .arg(format!("--cgroup-root={}", root.display()))
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start the agent")?;
        Ok(Self { running: Running(child), http })
    }

    pub fn pid(&self) -> u32 {
        self.running.0.id()
    }

    /// Waits until that many containers are watched, and then for a while.
    pub fn wait_for(&self, containers: usize) -> Result<()> {
        let until = clock::now() + PATIENCE;
        loop {
            let watched = self.metric("swarmguard_agent_containers ").unwrap_or(0.0);
            if watched >= containers as f64 {
                break;
            }
            if clock::now() > until {
                bail!(
                    "the agent watches {watched} of {containers} containers after {} s",
                    PATIENCE.as_secs()
                );
            }
            thread::sleep(Duration::from_millis(50));
        }
        thread::sleep(SETTLE);
        Ok(())
    }

    /// Measures for `window`. The two scrapes that count the samples are not in it.
    pub fn measure(&self, window: Duration) -> Result<Used> {
        let samples = self.metric("swarmguard_agent_samples_total ")?;
        let (cpu_before, began) = (cpu(self.pid())?, clock::now());
        thread::sleep(window);
        let (cpu_after, ended) = (cpu(self.pid())?, clock::now());
        let samples = self.metric("swarmguard_agent_samples_total ")? - samples;
        Ok(Used { cpu: cpu_after - cpu_before, wall: ended - began, samples, rss_mib: rss_mib(self.pid())? })
    }

    /// A figure of `/metrics`, by the beginning of its line.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let mut stream = TcpStream::connect(self.http)?;
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.with_context(|| format!("no metric {name}"))?.trim().parse().context("not a number")
    }
}
