//! Faults on purpose, for drills: `swarmguard-agent drill …`, run by `swarmguard drill` as a short-lived job on one node.
//!
//! A program of its own, so that the agent that watches a node keeps changing nothing. Each fault is held by this process
//! alone: threads, memory, a nameless file, a netlink socket that owns a table of packet filters. Whatever ends the process,
//! SIGKILL included, ends the fault; nothing has to be taken back by somebody who may be dead.

mod cut;
mod fill;
mod kill;
pub mod nft;
mod spin;

use std::{
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand};
use swarmguard_common::time;
use tokio::signal::unix::{SignalKind, signal};

/// Longest that a fault may last.
pub const LONGEST: Duration = Duration::from_secs(600);

/// Which fault, and how long.
#[derive(Clone, Debug, Args)]
pub struct Drill {
    /// What is done.
    #[command(subcommand)]
    pub fault: Fault,
}

/// How long it is held.
#[derive(Clone, Copy, Debug, Args)]
pub struct Hold {
    /// How long, 1s to 10m
    #[arg(long = "for", value_name = "DURATION", default_value = "60s", value_parser = span)]
    pub span: Duration,
}

/// What can be done to a node.
#[derive(Clone, Debug, Subcommand)]
pub enum Fault {
    /// Keep CPUs busy
    Cpu {
        /// How many threads spin
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
        threads: u16,
        /// How long.
        #[command(flatten)]
        hold: Hold,
    },
    /// Hold memory
    Memory {
        /// How much, in MiB; less where the node has not so much to spare
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
        mib: u64,
        /// How long.
        #[command(flatten)]
        hold: Hold,
    },
    /// Hold disk space, in a file without a name
    Disk {
        /// How much, in MiB; less where the disk has not so much to spare
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
        mib: u64,
        /// On the disk of this directory
        #[arg(long)]
        on: PathBuf,
        /// How long.
        #[command(flatten)]
        hold: Hold,
    },
    /// Kill a container once
    Kill {
        /// Its ID
        #[arg(long)]
        container: String,
    },
    /// Drop packets from and to other nodes
    Cut {
        /// Their addresses
        #[arg(long, required = true, value_delimiter = ',')]
        peer: Vec<IpAddr>,
        /// How many of a hundred
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
        percent: u8,
        /// Kill what Swarm runs on this node, too, as if its power were gone
        #[arg(long)]
        kill: bool,
        /// Containers that are spared: those of SwarmGuard
        #[arg(long, value_delimiter = ',')]
        spare: Vec<String>,
        /// How long.
        #[command(flatten)]
        hold: Hold,
    },
}

/// Why a fault was not made.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// The system refused something.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The engine refused something.
    #[error("the engine refused to {what}: {source}")]
    Engine {
        /// What was attempted.
        what: String,
        /// Why not.
        source: Box<bollard::errors::Error>,
    },
    /// There is nothing to spare.
    #[error("{0}")]
    NothingToSpare(String),
}

impl DrillError {
    fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}

fn span(text: &str) -> Result<Duration, String> {
    time::duration(text, Duration::from_secs(1)..=LONGEST)
}

/// Makes the fault, holds it, and lets go.
///
/// # Errors
/// Where it could not be made; nothing is left of it then.
pub async fn run(drill: Drill, socket: Option<&Path>) -> Result<(), DrillError> {
    // Before anything is made: the signal that ends us may come at any time.
    let mut stop = signal(SignalKind::terminate()).map_err(DrillError::system("wait for signals"))?;
    // The engine's usual place, for faults that need none.
    let socket = socket.map_or_else(|| "/var/run/docker.sock".into(), |socket| socket.display().to_string());
    let hold = match drill.fault {
        Fault::Kill { container } => {
            kill::once(&socket, &container).await?;
            say(&format!("killed {container}"));
            return Ok(());
        }
        Fault::Cpu { threads, hold } => {
            spin::begin(threads, hold.span).map_err(DrillError::system("start threads"))?;
            say(&format!("{threads} threads spin"));
            hold
        }
        Fault::Memory { mib, hold } => {
            let held = fill::memory(mib)?;
            say(&format!("{held} MiB of memory held"));
            hold
        }
        Fault::Disk { mib, on, hold } => {
            let (file, held) = fill::disk(mib, &on)?;
            say(&format!("{held} MiB of disk held"));
            wait(hold.span, &mut stop).await;
            drop(file);
            say("over");
            return Ok(());
        }
        Fault::Cut { peer, percent, kill, spare, hold } => {
            let held = cut::begin(&peer, percent)?;
            say(&format!("{percent} % of packets from and to {} nodes are dropped", peer.len()));
            if kill {
                tokio::select! {
                    () = kill::all(&socket, &spare) => {}
                    () = wait(hold.span, &mut stop) => {}
                }
            } else {
                wait(hold.span, &mut stop).await;
            }
            drop(held);
            say("over");
            return Ok(());
        }
    };
    wait(hold.span, &mut stop).await;
    say("over");
    Ok(())
}

async fn wait(span: Duration, stop: &mut tokio::signal::unix::Signal) {
    tokio::select! {
        () = tokio::time::sleep(span) => {}
        _ = stop.recv() => {}
    }
}

/// For the log of the job.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "drill: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_fault_lasts_longer_than_ten_minutes() {
        for (text, allowed) in [("1s", true), ("10m", true), ("601s", false), ("0s", false), ("60", false)] {
            assert_eq!(span(text).is_ok(), allowed, "{text}");
        }
    }
}
