//! Settings: flags, environment, file; every value is checked before anything starts.

use std::{net::SocketAddr, path::PathBuf};

use clap::{ArgAction, Args, Parser, Subcommand};
use swarmguard_runtime::{
    config::{self, ConfigError},
    identity::Source,
};

use crate::api::Plain;

/// Decides when a replica is better off elsewhere, and sees it there without losing a request
#[derive(Clone, Debug, Parser)]
#[command(name = "swarmguard-coordinator", version, args_override_self = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// With what settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Coordinate (what happens without a command, too)
    Run,
    /// Ask the coordinator on this node whether it is well; exit 0 if so
    Healthcheck,
    /// Make certificates, for swarms whose own cannot be used
    Certs {
        /// What to make.
        #[command(subcommand)]
        what: Certs,
    },
    /// Print a new secret, for an operator's or the balancers' token
    Token,
    /// Join input and output to the API of the coordinator in this container (what the command line uses)
    Stdio,
    /// Remove a volume of this node, once nothing uses it (what the command line runs when it uninstalls)
    RemoveVolume {
        /// Its name
        name: String,
    },
}

/// Certificates of the same shape as Swarm's.
#[derive(Clone, Debug, Subcommand)]
pub enum Certs {
    /// Make an authority, and a certificate for each node and operator that is named
    Create(CreateCerts),
}

/// For whom.
#[derive(Clone, Debug, Args)]
pub struct CreateCerts {
    /// Directory to write to; one directory below it for each bearer. The authority's key is not kept.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// ID of the swarm (docker info --format '{{.Swarm.Cluster.ID}}')
    #[arg(long, value_name = "ID", value_parser = identifier)]
    pub cluster: String,
    /// Node ID of a manager (docker node ls); may be given several times
    #[arg(long, value_name = "ID", value_parser = identifier, action = ArgAction::Append)]
    pub manager: Vec<String>,
    /// Node ID of a worker; may be given several times
    #[arg(long, value_name = "ID", value_parser = identifier, action = ArgAction::Append)]
    pub worker: Vec<String>,
    /// Name of a person or program that may give commands; may be given several times
    #[arg(long, value_name = "NAME", value_parser = identifier, action = ArgAction::Append)]
    pub operator: Vec<String>,
}

/// All settings of a running coordinator.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Settings file (TOML, keys as the flags below)
    #[arg(long, env = "SWARMGUARD_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Address (UDP) for agents and balancers
    #[arg(long, env = "SWARMGUARD_QUIC_ADDR", default_value = "0.0.0.0:7443", global = true)]
    pub quic_addr: SocketAddr,
    /// Address (TCP) of the API
    #[arg(long, env = "SWARMGUARD_API_ADDR", default_value = "0.0.0.0:7480", global = true)]
    pub api_addr: SocketAddr,
    /// Unix socket of the API, for whoever may use this manager's engine; none serves none
    #[arg(long, env = "SWARMGUARD_API_SOCKET", default_value = "/run/swarmguard/api.sock", value_parser = file, global = true)]
    pub api_socket: NamedFile,
    /// Address (TCP) where HAProxy asks for weights (agent-check), for instance 0.0.0.0:7481; none answers nobody
    #[arg(long, env = "SWARMGUARD_AGENT_CHECK_ADDR", default_value = "none", value_parser = optional, global = true)]
    pub agent_check_addr: OptionalAddress,
    /// What plain HTTP may be used for; https may always be used for everything
    #[arg(long, env = "SWARMGUARD_API_PLAIN", value_enum, default_value_t = Plain::Reads, global = true)]
    pub api_plain: Plain,
    /// The engine of a manager: unix:///path/of/socket or tcp://host:port
    #[arg(long, env = "SWARMGUARD_DOCKER", default_value = "unix:///var/run/docker.sock", global = true)]
    pub docker: String,
    /// Directory of the journal, or none to keep it in memory only
    #[arg(long, env = "SWARMGUARD_STATE_DIR", default_value = "/var/lib/swarmguard", global = true)]
    pub state_dir: PathBuf,
    /// Largest size of the journal, in MiB
    #[arg(long, env = "SWARMGUARD_JOURNAL_MIB", default_value_t = 256,
        value_parser = clap::value_parser!(u64).range(1..=65_536), global = true)]
    pub journal_mib: u64,
    /// Decide and explain, but change nothing
    #[arg(long, env = "SWARMGUARD_OBSERVE", default_value_t = false, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set, global = true)]
    pub observe: bool,
    /// Most actions under way in the cluster
    #[arg(long, env = "SWARMGUARD_MAX_ACTIONS", default_value_t = 2,
        value_parser = clap::value_parser!(u16).range(1..=100), global = true)]
    pub max_actions: u16,
    /// Certificate: swarm:<directory> or files:<directory>
    #[arg(
        long,
        env = "SWARMGUARD_IDENTITY",
        default_value = "swarm:/var/lib/docker/swarm/certificates",
        global = true
    )]
    pub identity: Source,
    /// File with the token that lets balancers read routes; without it none is let in
    #[arg(long, env = "SWARMGUARD_BALANCER_TOKEN_FILE", value_parser = file, global = true)]
    pub balancer_token_file: Option<NamedFile>,
    /// File with the token for commands over the API; without it they need an operator's certificate
    #[arg(long, env = "SWARMGUARD_OPERATOR_TOKEN_FILE", value_parser = file, global = true)]
    pub operator_token_file: Option<NamedFile>,
    /// File with a token that lets reads in, over plain HTTP too: for Prometheus and for browsers
    #[arg(long, env = "SWARMGUARD_READER_TOKEN_FILE", value_parser = file, global = true)]
    pub reader_token_file: Option<NamedFile>,
    /// File (TOML, a Docker secret) with the channels by which people are told; see docs/notifications.md
    #[arg(long, env = "SWARMGUARD_NOTIFY_FILE", value_parser = file, global = true)]
    pub notify_file: Option<NamedFile>,
    /// Answer reads to everybody who reaches the port; else they need a token, an operator's certificate or loopback
    #[arg(long, env = "SWARMGUARD_OPEN_READS", default_value_t = false, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set, global = true)]
    pub open_reads: bool,
    /// Further names that browsers may call the API by, comma-separated (addresses, node names and localhost always)
    #[arg(long, env = "SWARMGUARD_API_HOSTS", value_delimiter = ',', global = true)]
    pub api_hosts: Vec<String>,
    /// A name of this swarm for people
    #[arg(long, env = "SWARMGUARD_SWARM_NAME", global = true)]
    pub swarm_name: Option<String>,
    /// Log filter, for instance info or swarmguard_coordinator=debug
    #[arg(long, env = "SWARMGUARD_LOG", default_value = "info", global = true)]
    pub log: String,
    /// Write log lines as JSON
    #[arg(long, env = "SWARMGUARD_LOG_JSON", default_value_t = false, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set, global = true)]
    pub log_json: bool,
}

/// A file that is named, or deliberately none: stack files cannot leave a variable out, only empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile(pub Option<PathBuf>);

impl Cli {
    /// Reads flags, environment and file.
    ///
    /// # Errors
    /// As [`config::read`].
    pub fn read() -> Result<Self, ConfigError> {
        config::read()
    }
}

impl Settings {
    /// The journal's directory; `None` for memory only.
    pub fn journal_dir(&self) -> Option<PathBuf> {
        Some(self.state_dir.clone()).filter(|dir| dir.as_os_str() != "none")
    }
}

/// An address, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionalAddress(pub Option<SocketAddr>);

fn optional(text: &str) -> Result<OptionalAddress, String> {
    match text {
        "" | "none" => Ok(OptionalAddress(None)),
        address => address
            .parse()
            .map(|address| OptionalAddress(Some(address)))
            .map_err(|_| "an address and a port, for instance 0.0.0.0:7481, or none".into()),
    }
}

fn file(text: &str) -> Result<NamedFile, String> {
    match text {
        "" | "none" => Ok(NamedFile(None)),
        path => Ok(NamedFile(Some(path.into()))),
    }
}

fn identifier(text: &str) -> Result<String, String> {
    let legal = (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if legal { Ok(text.into()) } else { Err("1 to 64 ASCII letters, digits and hyphens are allowed".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"swarmguard-coordinator").chain(arguments))
    }

    #[test]
    fn defaults_are_those_that_the_documents_name() {
        let settings = parse(&[]).expect("no flag is needed").settings;
        assert_eq!((settings.quic_addr.port(), settings.api_addr.port()), (7_443, 7_480));
        assert!(!settings.observe && settings.api_plain == Plain::Reads);
        assert_eq!(settings.journal_dir(), Some("/var/lib/swarmguard".into()));
    }

    #[test]
    fn later_flags_override_and_booleans_may_stand_alone() {
        let settings = parse(&["--observe=true", "run", "--observe=false"]).expect("sensible").settings;
        assert!(!settings.observe);
        let settings = parse(&["--observe", "run", "--state-dir=none"]).expect("sensible").settings;
        assert!(settings.observe && settings.journal_dir().is_none());
        let empty = parse(&["--balancer-token-file="]).expect("sensible").settings;
        assert_eq!(empty.balancer_token_file, Some(NamedFile(None)));
    }

    #[test]
    fn senseless_values_say_key_value_and_what_is_allowed() {
        for (flag, value, allowed) in [
            ("--quic-addr", "7443", "invalid socket address"),
            ("--api-plain", "some", "reads, all, none"),
            ("--journal-mib", "0", "1..=65536"),
            ("--observe", "maybe", "true, false"),
            ("--max-actions", "0", "1..=100"),
            ("--identity", "/etc", "swarm:<directory>"),
        ] {
            let error = parse(&[&format!("{flag}={value}")]).expect_err(flag).to_string();
            assert!(error.contains(flag) && error.contains(value) && error.contains(allowed), "{error}");
        }
        assert!(parse(&["--no-such-flag"]).is_err());
        let hostile =
            parse(&["certs", "create", "--out=/tmp", "--cluster=a/../b"]).expect_err("refused").to_string();
        assert!(hostile.contains("--cluster") && hostile.contains("a/../b"), "{hostile}");
    }
}
