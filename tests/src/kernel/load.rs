//! A known load in a process of its own, inside a given cgroup: this same program, started again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Subcommand;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UdpSocket;
use tokio::process::{Child, Command};

use super::group::Group;
use crate::web_stress::cpu::{CpuLoad, CpuPlan};
use crate::web_stress::memory::{MemoryLoad, MemoryPlan};
use crate::web_stress::network::{NetworkPlan, UdpLoad};

/// Longer than any check; a check ends its load.
const DURATION: Duration = Duration::from_secs(3600);

/// What the process in the cgroup does.
#[derive(Clone, Debug, Subcommand)]
pub enum Load {
    /// Keep this many CPUs busy
    Cpu {
        /// 0.5 is half a CPU
        cpus: f64,
    },
    /// Hold this much memory
    Memory {
        /// MiB of anonymous memory
        mb: u32,
        /// MiB of a file read once, which the kernel may take back
        file_mb: u32,
    },
    /// Send datagrams
    Send {
        /// Megabits of payload a second
        mbps: f64,
        /// To whom
        peer: SocketAddr,
    },
    /// Receive datagrams and throw them away
    Receive {
        /// Where
        addr: SocketAddr,
    },
}

impl Load {
    fn words(&self) -> Vec<String> {
        match self {
            Load::Cpu { cpus } => vec!["cpu".to_owned(), cpus.to_string()],
            Load::Memory { mb, file_mb } => vec!["memory".to_owned(), mb.to_string(), file_mb.to_string()],
            Load::Send { mbps, peer } => vec!["send".to_owned(), mbps.to_string(), peer.to_string()],
            Load::Receive { addr } => vec!["receive".to_owned(), addr.to_string()],
        }
    }

    /// Starts it in `group`, in the network namespace of this name where one is given, and waits until it is at work.
    ///
    /// # Errors
    /// Where the process cannot be started or ends at once.
    pub async fn start(&self, group: &Group, namespace: Option<&str>) -> Result<Running> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command.arg("load").arg("--cgroup").arg(group.dir());
        if let Some(name) = namespace {
            command.arg("--namespace").arg(name);
        }
        command.args(self.words()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start a load")?;
        let output = child.stdout.take().context("a load without output")?;
        let mut lines = BufReader::new(output).lines();
        let first = tokio::time::timeout(Duration::from_secs(120), lines.next_line()).await;
        let first = first.context("the load did not come to work")??;
        anyhow::ensure!(first.as_deref() == Some("at work"), "the load ended: {first:?}");
        Ok(Running { child })
    }
}

/// A load under way; ends when dropped, or better when told.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// The process.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn pid(&self) -> Result<u32> {
        self.child.id().context("the load has ended")
    }

    /// Ends it and waits for that, so that its cgroup can be removed.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn end(mut self) -> Result<()> {
        self.child.kill().await.context("cannot end a load")
    }
}

/// Enters a cgroup and a network namespace; before any thread is started, which would stay outside.
///
/// # Errors
/// Where one of them does not exist or may not be entered.
pub fn enter(cgroup: &Path, namespace: Option<&str>) -> Result<()> {
    let procs = cgroup.join("cgroup.procs");
    std::fs::write(&procs, "0").with_context(|| format!("cannot enter {}", procs.display()))?;
    if let Some(name) = namespace {
        let path = PathBuf::from("/run/netns").join(name);
        let file = std::fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind)
            .with_context(|| format!("cannot enter {}", path.display()))?;
    }
    Ok(())
}

/// Does it until killed. Says `at work` as soon as the figures can be taken.
///
/// # Errors
/// Where the load cannot be started.
pub async fn work(load: &Load) -> Result<()> {
    match load {
        Load::Cpu { cpus } => {
            let plan = CpuPlan {
                target_percent: 100.0,
                allowance_cpus: *cpus,
                duration: DURATION,
                ramp: Duration::ZERO,
            };
            let _load = CpuLoad::start(plan)?;
            wait().await
        }
        Load::Memory { mb, file_mb } => {
            let _load = MemoryLoad::start(MemoryPlan { mb: *mb, duration: DURATION, ramp: Duration::ZERO })?;
            cached(*file_mb)?;
            while resident_mb()? < f64::from(*mb) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            wait().await
        }
        Load::Send { mbps, peer } => {
            let _load = UdpLoad::start(NetworkPlan { mbps: *mbps, duration: DURATION }, *peer).await?;
            wait().await
        }
        Load::Receive { addr } => {
            let socket = UdpSocket::bind(addr).await.with_context(|| format!("cannot receive on {addr}"))?;
            println!("at work");
            let mut buffer = vec![0; 65_536];
            loop {
                socket.recv(&mut buffer).await?;
            }
        }
    }
}

async fn wait() -> Result<()> {
    println!("at work");
    std::future::pending().await
}

/// Page cache of files read once by this cgroup: charged to it, but given back when memory is short. Programs are read,
/// not a file of our own: where the root file system is in memory a written file would be no page cache.
fn cached(mb: u32) -> Result<()> {
    let mut left = u64::from(mb) << 20;
    let directory = "/usr/bin";
    for entry in std::fs::read_dir(directory).with_context(|| format!("cannot list {directory}"))?.flatten() {
        let Ok(file) = std::fs::File::open(entry.path()) else { continue };
        let read = std::io::copy(&mut std::io::Read::take(file, left), &mut std::io::sink()).unwrap_or(0);
        left = left.saturating_sub(read);
        if left == 0 {
            return Ok(());
        }
    }
    anyhow::bail!("{directory} holds less than {mb} MiB")
}

fn resident_mb() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/statm").context("cannot read /proc/self/statm")?;
    let pages = text.split_whitespace().nth(1).and_then(|word| word.parse::<f64>().ok());
    #[expect(clippy::cast_precision_loss, reason = "a page size is a small power of two")]
    let page = rustix::param::page_size() as f64;
    Ok(pages.context("/proc/self/statm has no second figure")? * page / f64::from(1 << 20))
}
