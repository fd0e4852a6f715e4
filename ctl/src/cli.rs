//! What can be typed.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{
    complete,
    out::{Format, style::Colour},
};

mod choices;
mod drill;
mod values;

pub use choices::{EntryKind, Kind, Rollback, Switch};
pub use drill::{DrillArgs, DrillCommand, DrillFault};
use values::{count, glance, patience, rhythm};

/// Watch and command SwarmGuard on a Docker Swarm
///
/// Nothing is to be set up on a manager: whoever may use its engine may command. From elsewhere:
/// DOCKER_HOST=ssh://me@manager swarmguard status
#[derive(Clone, Debug, Parser)]
#[command(
    name = "swarmguard",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 unreachable or not allowed, 4 refused by a rule, \
                  5 undone or rolled back, 6 timed out and going on, 7 below the mark, 130 detached"
)]
pub struct Cli {
    /// What holds for all commands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for all commands.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Engine of a manager: unix:///path, tcp://host:port or ssh://user@host (as docker's)
    #[arg(long, short = 'H', global = true, value_name = "ADDRESS", help_heading = "Connection")]
    pub host: Option<String>,
    /// Docker context that names the engine
    #[arg(long, global = true, value_name = "NAME", help_heading = "Connection")]
    pub context: Option<String>,
    /// Coordinators' addresses (https://manager:7480), instead of an engine; several separated by commas
    #[arg(
        long,
        global = true,
        env = "SWARMGUARD_COORDINATOR",
        value_name = "URL",
        value_delimiter = ',',
        help_heading = "Connection"
    )]
    pub coordinator: Vec<String>,
    /// File with the operator's token, for --coordinator
    #[arg(
        long,
        global = true,
        env = "SWARMGUARD_TOKEN_FILE",
        value_name = "FILE",
        help_heading = "Connection"
    )]
    pub token_file: Option<PathBuf>,
    /// File with the swarm's root certificate, for --coordinator with https
    #[arg(long, global = true, env = "SWARMGUARD_CA", value_name = "FILE", help_heading = "Connection")]
    pub ca: Option<PathBuf>,
    /// File with an operator's certificate, for --coordinator
    #[arg(
        long,
        global = true,
        env = "SWARMGUARD_CERT",
        value_name = "FILE",
        requires = "key",
        help_heading = "Connection"
    )]
    pub cert: Option<PathBuf>,
    /// File with the key of that certificate
    #[arg(
        long,
        global = true,
        env = "SWARMGUARD_KEY",
        value_name = "FILE",
        requires = "cert",
        help_heading = "Connection"
    )]
    pub key: Option<PathBuf>,
    /// How the answer is written
    #[arg(long, short, global = true, alias = "format", value_enum, default_value_t = Format::Table, help_heading = "Output")]
    pub output: Format,
    /// Whether to use colours
    #[arg(long, global = true, value_enum, default_value_t = Colour::Auto, help_heading = "Output")]
    pub color: Colour,
}

/// How a list is wanted.
#[derive(Clone, Debug, Default, Args)]
pub struct ListArgs {
    /// Only names, one a line
    #[arg(long, short)]
    pub quiet: bool,
    /// Only rows where column=value, column!=value or column~part; may be given several times
    #[arg(long, short, value_name = "COLUMN=VALUE")]
    pub filter: Vec<String>,
    /// Sort by a column: figures from the highest, text from A; -COLUMN turns it round
    #[arg(long, value_name = "COLUMN", allow_hyphen_values = true)]
    pub sort: Option<String>,
    /// Cut nothing
    #[arg(long)]
    pub no_trunc: bool,
    /// How often it is shown anew.
    #[command(flatten)]
    pub watch: WatchArgs,
}

/// How often something is shown anew.
#[derive(Clone, Debug, Default, Args)]
pub struct WatchArgs {
    /// Show it again and again until Ctrl-C; off a terminal one JSON document a line
    #[arg(long, short, value_name = "EVERY", num_args = 0..=1, require_equals = true, default_missing_value = "1s", value_parser = rhythm)]
    pub watch: Option<Duration>,
}

/// How a change is made.
#[derive(Clone, Debug, Args)]
pub struct ActArgs {
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Wait until it has ended (the default)
    #[arg(long, overrides_with = "no_wait")]
    pub wait: bool,
    /// Return as soon as it is begun
    #[arg(long)]
    pub no_wait: bool,
    /// Longest wait; then exit code 6, while it goes on
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = patience)]
    pub timeout: Duration,
    /// Ask nothing
    #[arg(long, short)]
    pub yes: bool,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// The swarm at a glance: nodes, health, what is being done
    Status(WatchArgs),
    /// The health score, with each deduction; exit code 7 below --min
    Health {
        /// Lowest score that is good enough
        #[arg(long, value_name = "SCORE", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
        min: u8,
    },
    /// Nodes with load, reservations and leases
    #[command(visible_alias = "node")]
    Nodes(ListArgs),
    /// Services with load and the last verdict
    #[command(visible_alias = "service")]
    Services(ListArgs),
    /// Replicas of a service (or of all) with their load
    Ps {
        /// Name or ID of a service
        #[arg(add = complete::services())]
        service: Option<String>,
        /// How.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Alerts that stand, and whether they are being helped
    Alerts(ListArgs),
    /// What is under way
    Actions(ListArgs),
    /// What was done: actions with outcome and time to help
    History {
        /// How many, newest first
        #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
        /// Only this service
        #[arg(long, value_name = "SERVICE", add = complete::services())]
        service: Option<String>,
        /// How.
        #[command(flatten)]
        list: ListArgs,
    },
    /// What the balancers see of the replicas
    Lb {
        /// Name of a service
        #[arg(add = complete::services())]
        service: Option<String>,
        /// How.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Why a service is or is not touched, and what would change it
    Explain {
        /// Name or ID of a service
        #[arg(add = complete::services())]
        service: String,
        /// Its decisions and refusals of so long, too
        #[arg(long, value_name = "DURATION", value_parser = patience)]
        since: Option<Duration>,
    },
    /// The journal: alerts, decisions, refusals, steps of actions
    Events {
        /// Go on with what comes
        #[arg(long, short = 'F')]
        follow: bool,
        /// How far back
        #[arg(long, value_name = "DURATION", value_parser = patience)]
        since: Option<Duration>,
        /// How many at most, the newest
        #[arg(long, short = 'n', default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
        /// Only these kinds
        #[arg(long, value_delimiter = ',', value_enum)]
        kind: Vec<EntryKind>,
        /// Only this service
        #[arg(long, value_name = "SERVICE", add = complete::services())]
        service: Option<String>,
        /// Only this node
        #[arg(long, value_name = "NODE", add = complete::nodes())]
        node: Option<String>,
    },
    /// Move one replica of a service to another node, successor first
    Migrate {
        /// Name or ID of a service
        #[arg(add = complete::services())]
        service: String,
        /// The node to leave; needed where replicas run on several
        #[arg(long, value_name = "NODE", add = complete::nodes())]
        from: Option<String>,
        /// The node to go to; the one with most room where absent
        #[arg(long, value_name = "NODE", add = complete::nodes())]
        to: Option<String>,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
    /// Set the number of replicas of a service
    Scale {
        /// Service and number, such as web=3
        #[arg(value_name = "SERVICE=REPLICAS", add = complete::counts())]
        what: String,
        /// Where the new replica is to run, or whose replica goes
        #[arg(long, value_name = "NODE", add = complete::nodes())]
        node: Option<String>,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
    /// Let all services leave a node, successors first, and keep it empty
    Drain {
        /// Host name or ID of a node
        #[arg(add = complete::nodes())]
        node: String,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
    /// Let a drained or paused node take tasks again
    Undrain {
        /// Host name or ID of a node
        #[arg(add = complete::nodes())]
        node: String,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
    /// Take back what is under way
    Cancel {
        /// A service, a node, or an action
        #[arg(add = complete::under_way())]
        what: String,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
    /// No automation, for a service or for all; what is under way ends first
    Pause {
        /// Name or ID of a service; all where absent
        #[arg(add = complete::services())]
        service: Option<String>,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
    /// Take a pause back
    Resume {
        /// Name or ID of a service; the pause of all where absent
        #[arg(add = complete::services())]
        service: Option<String>,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
    /// Decide and explain only (on), or act again (off)
    Observe {
        /// On or off.
        #[arg(value_enum)]
        state: Switch,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
    /// Protect a service: sets its labels
    Enable {
        /// Name or ID of a service
        #[arg(add = complete::services())]
        service: String,
        /// Never fewer replicas; scaling is off unless --min and --max are given
        #[arg(long, value_name = "N", requires = "max", value_parser = count)]
        min: Option<u32>,
        /// Never more replicas
        #[arg(long, value_name = "N", requires = "min", value_parser = count)]
        max: Option<u32>,
        /// Let two of a single replica run for a moment, so that it can be moved
        #[arg(long)]
        surge: bool,
        /// Decide and explain only for it
        #[arg(long)]
        observe: bool,
        /// Say what would be changed, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Protect a service no longer
    Disable {
        /// Name or ID of a service
        #[arg(add = complete::services())]
        service: String,
        /// Say what would be changed, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Give services another image, wait, and roll back where it does not run (exit code 5)
    Update {
        /// Names or IDs
        #[arg(required = true, add = complete::services())]
        services: Vec<String>,
        /// The image
        #[arg(long)]
        image: String,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
    /// Give services the spec from before their last change
    Rollback {
        /// Names or IDs
        #[arg(required = true, add = complete::services())]
        services: Vec<String>,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
    /// Deploy a stack, wait, and roll back what does not run (exit code 5)
    Deploy {
        /// Compose file; may be given several times
        #[arg(long, short, value_name = "FILE", required = true)]
        compose_file: Vec<PathBuf>,
        /// Name of the stack
        stack: String,
        /// What is rolled back: the services that failed, all that were changed, or nothing
        #[arg(long, value_enum, default_value_t = Rollback::Service)]
        rollback: Rollback,
        /// Remove services that the file no longer names
        #[arg(long)]
        prune: bool,
        /// Send the registry's login to the nodes
        #[arg(long)]
        with_registry_auth: bool,
        /// Whether digests are looked up: always, changed, never
        #[arg(long, value_name = "WHEN", value_parser = ["always", "changed", "never"])]
        resolve_image: Option<String>,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
    /// Install SwarmGuard: preflight, secrets, services, and a check at the end
    Install {
        /// Decide and explain only, change nothing
        #[arg(long)]
        observe: bool,
        /// Balance the services on this overlay network, too
        #[arg(long, value_name = "NETWORK")]
        balancer: Option<String>,
        /// Print the stack file and do nothing
        #[arg(long)]
        print: bool,
        /// Put the images of this archive (docker save) on every node
        #[arg(long, value_name = "TAR")]
        load: Option<PathBuf>,
        /// Who logs in to the other nodes for --load
        #[arg(long, value_name = "USER", requires = "load")]
        ssh_user: Option<String>,
        /// Image of the agent
        #[arg(long, env = "SWARMGUARD_AGENT_IMAGE", value_name = "IMAGE")]
        agent_image: Option<String>,
        /// Image of the coordinator
        #[arg(long, env = "SWARMGUARD_COORDINATOR_IMAGE", value_name = "IMAGE")]
        coordinator_image: Option<String>,
        /// Image of the balancer
        #[arg(long, env = "SWARMGUARD_BALANCER_IMAGE", value_name = "IMAGE")]
        balancer_image: Option<String>,
        /// A capability that the nodes do not have, as in some LXC containers; the agent does without
        #[arg(long, value_name = "NAME", value_parser = ["SYS_RESOURCE", "SYS_PTRACE"])]
        without_capability: Vec<String>,
        /// Install also where the preflight fails
        #[arg(long)]
        force: bool,
        /// Longest wait for each service to run
        #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = patience)]
        timeout: Duration,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Check the swarm and SwarmGuard; each line says what to do; exit code 7 where something fails
    Check {
        /// Only what must hold before an installation
        #[arg(long)]
        pre: bool,
        /// Whether this service can be protected, too
        #[arg(long, value_name = "SERVICE", add = complete::services())]
        service: Option<String>,
        /// Only what is not well
        #[arg(long)]
        short: bool,
        /// Warnings are failures
        #[arg(long)]
        strict: bool,
        /// Try again for so long
        #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "2m", value_parser = patience)]
        wait: Option<Duration>,
    },
    /// Remove SwarmGuard; what is under way is taken back first; lists what is left (nothing)
    Uninstall {
        /// Keep the journal's volumes
        #[arg(long)]
        keep_journal: bool,
        /// Take the labels off all services, too
        #[arg(long)]
        remove_labels: bool,
        /// Go on where no coordinator answers
        #[arg(long)]
        force: bool,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
    /// Give agents, coordinators and balancers other images; what fails gives all of them back (exit code 5)
    Upgrade {
        /// Image of the agent
        #[arg(long, env = "SWARMGUARD_AGENT_IMAGE", value_name = "IMAGE")]
        agent_image: Option<String>,
        /// Image of the coordinator
        #[arg(long, env = "SWARMGUARD_COORDINATOR_IMAGE", value_name = "IMAGE")]
        coordinator_image: Option<String>,
        /// Image of the balancer
        #[arg(long, env = "SWARMGUARD_BALANCER_IMAGE", value_name = "IMAGE")]
        balancer_image: Option<String>,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
    /// Make a swarm where there is none, and say how other nodes join
    Init {
        /// Address that other nodes reach this one at
        #[arg(long, value_name = "ADDRESS")]
        advertise_addr: Option<String>,
        /// An overlay network to make, too
        #[arg(long, value_name = "NAME")]
        network: Option<String>,
    },
    /// Remove what this node no longer needs: stopped containers, images without a name, unused networks
    Cleanup {
        /// What stays
        #[arg(long, value_enum, value_delimiter = ',')]
        keep: Vec<Kind>,
        /// Unused volumes with their data, too
        #[arg(long)]
        volumes: bool,
        /// Ask nothing
        #[arg(long, short)]
        yes: bool,
        /// Say what would go, and remove nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// The tokens of operators and balancers
    Token {
        /// What to do.
        #[command(subcommand)]
        what: TokenCommand,
    },
    /// Who is told what happens: chats, mail, webhooks
    Notify {
        /// What to do.
        #[command(subcommand)]
        what: NotifyCommand,
    },
    /// Write an archive for whoever is to help, without what is secret
    Bundle {
        /// File to write
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Break something on purpose, within rails, and report what came of it
    Drill {
        /// What to do.
        #[command(subcommand)]
        what: DrillCommand,
    },
    /// The swarm in a terminal, once a second; off a terminal one picture
    Top {
        /// Between two looks, 250ms to 60s
        #[arg(long, short, value_name = "DURATION", default_value = "1s", value_parser = glance)]
        delay: Duration,
        /// Allow changes (migrate, pause, drain, cancel), each after its plan and a typed yes
        #[arg(long)]
        write: bool,
    },
    /// Serve the page on this machine, through the same way in, with commands allowed; Ctrl-C ends it
    Ui {
        /// Port on 127.0.0.1; one that is free where absent
        #[arg(long, value_name = "PORT", default_value_t = 0)]
        port: u16,
    },
    /// Print what makes a shell complete commands, services and nodes
    Completion {
        /// For which
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one for each command
    Man {
        /// Directory to write to
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Versions of command line, coordinator and engine
    Version,
}

/// What can be done with notifications.
#[derive(Clone, Debug, Subcommand)]
pub enum NotifyCommand {
    /// The channels, and how telling them goes
    Ls(ListArgs),
    /// Send a test message to a channel, and say whether it was taken
    Test {
        /// Its name
        channel: String,
    },
    /// Make a file (TOML) the channels of all coordinators, as a Docker secret
    Set {
        /// The file; docs/notifications.md says what is in it
        file: PathBuf,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
}

/// What can be done with tokens.
#[derive(Clone, Debug, Subcommand)]
pub enum TokenCommand {
    /// Replace a token and print the new one; the old one is worth nothing then
    Rotate {
        /// Whose
        #[arg(value_parser = ["operator", "balancer"])]
        which: String,
        /// How.
        #[command(flatten)]
        act: ActArgs,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
