//! What can be typed about drills.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use super::values::{held, probed, share};
use crate::{complete, drill::report::Form};

/// What can be done with drills.
#[derive(Clone, Debug, Subcommand)]
pub enum DrillCommand {
    /// A fault.
    #[command(flatten)]
    Fault(DrillFault),
    /// Play the drills of a TOML file, one after the other
    Plan {
        /// The file
        file: PathBuf,
        /// Ask nothing
        #[arg(long, short)]
        yes: bool,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// What is under way, and the last reports
    Ls,
    /// End what is under way, whoever began it
    Stop,
    /// A report again; the newest where none is named
    Report {
        /// Its ID, as `ls` has it
        id: Option<String>,
        /// How it is written
        #[arg(long, value_enum, default_value_t = Form::Md)]
        report: Form,
    },
}

/// What can go wrong on purpose.
#[derive(Clone, Debug, Subcommand)]
pub enum DrillFault {
    /// Kill one replica of a service
    KillTask {
        /// Name or ID of a service
        #[arg(add = complete::services())]
        service: String,
        /// The node whose replica goes; any where absent
        #[arg(long, value_name = "NODE", add = complete::nodes())]
        from: Option<String>,
        /// How.
        #[command(flatten)]
        args: DrillArgs,
    },
    /// Kill the coordinator beside a manager
    KillCoordinator {
        /// Host name or ID of a manager
        #[arg(add = complete::nodes())]
        node: String,
        /// How.
        #[command(flatten)]
        args: DrillArgs,
    },
    /// Kill what Swarm runs on a node and cut it off, as if its power were gone
    KillNode {
        /// Host name or ID of a node
        #[arg(add = complete::nodes())]
        node: String,
        /// How.
        #[command(flatten)]
        args: DrillArgs,
    },
    /// Keep the CPUs of a node busy
    Cpu {
        /// Host name or ID of a node
        #[arg(add = complete::nodes())]
        node: String,
        /// How many threads; one for each CPU where absent
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1024))]
        threads: Option<u64>,
        /// How.
        #[command(flatten)]
        args: DrillArgs,
    },
    /// Hold memory of a node
    Memory {
        /// Host name or ID of a node
        #[arg(add = complete::nodes())]
        node: String,
        /// How much; half of the node's where absent
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
        mib: Option<u64>,
        /// How.
        #[command(flatten)]
        args: DrillArgs,
    },
    /// Hold disk space of a worker
    Disk {
        /// Host name or ID of a node
        #[arg(add = complete::nodes())]
        node: String,
        /// How much; 1024 where absent
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
        mib: Option<u64>,
        /// How.
        #[command(flatten)]
        args: DrillArgs,
    },
    /// Cut a node off from others
    Partition {
        /// Host name or ID of a node
        #[arg(add = complete::nodes())]
        node: String,
        /// From these; from all where absent
        #[arg(long, value_name = "NODE", value_delimiter = ',', add = complete::nodes())]
        from: Vec<String>,
        /// How.
        #[command(flatten)]
        args: DrillArgs,
    },
    /// Lose packets between a node and others
    Loss {
        /// Host name or ID of a node
        #[arg(add = complete::nodes())]
        node: String,
        /// How many of a hundred
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=99))]
        percent: u8,
        /// To and from these; to and from all where absent
        #[arg(long, value_name = "NODE", value_delimiter = ',', add = complete::nodes())]
        from: Vec<String>,
        /// How.
        #[command(flatten)]
        args: DrillArgs,
    },
}

/// How a drill is made.
#[derive(Clone, Debug, Args)]
pub struct DrillArgs {
    /// How long, 1s to 10m
    #[arg(long = "for", value_name = "DURATION", default_value = "60s", value_parser = held)]
    pub span: Duration,
    /// Send requests meanwhile and count those that fail: http://host/path, or http://host/path@50rps
    #[arg(long, value_name = "URL", value_parser = probed)]
    pub probe: Option<String>,
    /// Share of the requests that may fail
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = share)]
    pub max_errors: f64,
    /// How the report is written
    #[arg(long, value_enum, default_value_t = Form::Md)]
    pub report: Form,
    /// Also where the node holds the raft leadership
    #[arg(long)]
    pub leader: bool,
    /// Also where no replica of a service would be left, or more than a third would go
    #[arg(long)]
    pub allow_outage: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Ask nothing; else the target's name must be typed
    #[arg(long, short)]
    pub yes: bool,
}
