//! Settings: flags, environment, file; every value checked before anything starts.

use std::{
    net::SocketAddr,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use clap::{ArgAction, Args, Parser, Subcommand, builder::RangedU64ValueParser};
use swarmguard_common::{domain::BasisPoints, time};
use swarmguard_runtime::{
    config::{self, ConfigError},
    identity::Source,
};

use crate::{drill::Drill, uplink::addresses::Wanted};

/// Samples this node's containers and alerts SwarmGuard's coordinators
#[derive(Clone, Debug, Parser)]
#[command(name = "swarmguard-agent", version, args_override_self = true)]
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
    /// Watch this node (what happens without a command, too)
    Run,
    /// Ask the agent on this node whether it is well; exit 0 if so
    Healthcheck,
    /// Say what this kernel offers, what is used of it, and why
    Doctor {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a fault and hold it, for `swarmguard drill`; it ends with this process
    Drill(Drill),
}

/// All settings.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// Settings file (TOML, keys as the flags below)
    #[arg(long, env = "SWARMGUARD_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Address of the HTTP interface; others than this node itself also need the reader's token, or --open-reads
    #[arg(long, env = "SWARMGUARD_HTTP_ADDR", default_value = "127.0.0.1:8082", global = true)]
    pub http_addr: SocketAddr,
    /// Port of the HTTP interface, instead of that of --http-addr
    #[arg(long, env = "API_PORT", value_parser = clap::value_parser!(u16).range(1..), global = true)]
    pub api_port: Option<u16>,
    /// Serve HTTP at all
    #[arg(long, env = "API_ENABLED", default_value_t = true, action = ArgAction::Set, global = true)]
    pub api_enabled: bool,
    /// File with a token that lets others read (Authorization: Bearer …), the same as the coordinators' reader token
    #[arg(long, env = "SWARMGUARD_READER_TOKEN_FILE", value_parser = file, global = true)]
    pub reader_token_file: Option<NamedFile>,
    /// Answer reads to everybody who reaches the HTTP address
    #[arg(long, env = "SWARMGUARD_OPEN_READS", default_value_t = false, num_args = 0..=1, require_equals = true,
        default_missing_value = "true", action = ArgAction::Set, global = true)]
    pub open_reads: bool,
    /// Where the node's cgroup hierarchy is mounted
    #[arg(long, env = "SWARMGUARD_CGROUP_ROOT", default_value = "/sys/fs/cgroup", global = true)]
    pub cgroup_root: PathBuf,
    /// Where the node's /proc is mounted
    #[arg(long, env = "SWARMGUARD_PROC_ROOT", default_value = "/proc", global = true)]
    pub proc_root: PathBuf,
    /// The cgroup that is this node, below --cgroup-root, or none: for nodes that are LXC containers or Docker in Docker (/ is all that the root shows)
    #[arg(long, env = "SWARMGUARD_NODE_CGROUP", default_value = "none", value_parser = node_cgroup, global = true)]
    pub node_cgroup: NodeCgroup,
    /// CPUs of that cgroup, for instance 1.5, or auto (its cpu.max)
    #[arg(long, env = "SWARMGUARD_NODE_CPUS", default_value = "auto", value_parser = node_cpus, global = true)]
    pub node_cpus: NodeCpus,
    /// Socket of the local engine, or `none`
    #[arg(long, env = "SWARMGUARD_DOCKER", default_value = "unix:///var/run/docker.sock", value_parser = socket, global = true)]
    pub docker: Socket,
    /// Certificate: swarm:<directory> or files:<directory>
    #[arg(
        long,
        env = "SWARMGUARD_IDENTITY",
        default_value = "swarm:/var/lib/docker/swarm/certificates",
        global = true
    )]
    pub identity: Source,
    /// Coordinators: auto (every manager of this swarm), none, or a comma-separated list of host[:port]
    #[arg(long, env = "SWARMGUARD_COORDINATORS", default_value = "auto", global = true)]
    pub coordinators: Wanted,
    /// Sampling interval, 20ms to 10s
    #[arg(long, env = "SWARMGUARD_INTERVAL", default_value = "100ms", value_parser = interval, global = true)]
    pub interval: Duration,
    /// Sample less often while nothing moves (alerts come no later for it)
    #[arg(long, env = "SWARMGUARD_ADAPTIVE", default_value_t = true, action = ArgAction::Set, global = true)]
    pub adaptive: bool,
    /// What the agent may use of one CPU, in per cent, 0.05 to 100; sampling slows before it is exceeded
    #[arg(long, env = "SWARMGUARD_BUDGET", default_value = "1", value_parser = percent, global = true)]
    pub budget: BasisPoints,
    /// Most containers watched
    #[arg(long, env = "SWARMGUARD_MAX_CONTAINERS", default_value_t = crate::state::DEFAULT_MAX_CONTAINERS as u64,
        value_parser = RangedU64ValueParser::<u64>::new().range(1..=4096), global = true)]
    pub max_containers: u64,
    /// Speed of the link in Mbit/s, or auto (what the driver says, else 1000)
    #[arg(long, env = "SWARMGUARD_LINK_MBPS", default_value = "auto", value_parser = link, global = true)]
    pub link_mbps: Link,
    /// Use BPF programs where the kernel takes them
    #[arg(long, env = "SWARMGUARD_BPF", default_value_t = true, action = ArgAction::Set, global = true)]
    pub bpf: bool,
    /// Log filter, for instance info or swarmguard_agent=debug
    #[arg(long, env = "SWARMGUARD_LOG", default_value = "info", global = true)]
    pub log: String,
    /// Write log lines as JSON
    #[arg(long, env = "SWARMGUARD_LOG_JSON", default_value_t = false, action = ArgAction::Set, global = true)]
    pub log_json: bool,
}

/// A file that is named, or deliberately none: stack files cannot leave a variable out, only empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile(pub Option<PathBuf>);

/// Where the engine's socket is, if it is to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket(pub Option<PathBuf>);

/// The cgroup that is the node, relative to the cgroup root; `None` where the node is a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCgroup(pub Option<PathBuf>);

/// What the node's cgroup may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeCpus {
    /// As its `cpu.max` says.
    Auto,
    /// This much, in thousandths of a CPU.
    Fixed(u32),
}

/// How fast the link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// As the driver says.
    Auto,
    /// This much, in Mbit/s.
    Fixed(u32),
}

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
    /// The address to serve HTTP on; `None` when it is switched off.
    pub fn http(&self) -> Option<SocketAddr> {
        let address = SocketAddr::new(self.http_addr.ip(), self.known_by());
        self.api_enabled.then_some(address)
    }

    /// The port that health checks know this agent by, whether HTTP is served there or not.
    pub fn known_by(&self) -> u16 {
        self.api_port.unwrap_or(self.http_addr.port())
    }
}

fn file(text: &str) -> Result<NamedFile, String> {
    match text {
        "" | "none" => Ok(NamedFile(None)),
        path => Ok(NamedFile(Some(path.into()))),
    }
}

fn socket(text: &str) -> Result<Socket, String> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    match path {
        "none" => Ok(Socket(None)),
        path if path.starts_with('/') => Ok(Socket(Some(path.into()))),
        _ => Err("unix:///path/of/socket or none is allowed".into()),
    }
}

fn node_cgroup(text: &str) -> Result<NodeCgroup, String> {
    if text == "none" {
        return Ok(NodeCgroup(None));
    }
    let below = text.strip_prefix('/').map(Path::new);
    let plain = |path: &&Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    let path = below.filter(plain).ok_or("none, or a path that begins with / and has no .. is allowed")?;
    Ok(NodeCgroup(Some(path.into())))
}

fn node_cpus(text: &str) -> Result<NodeCpus, String> {
    if text == "auto" {
        return Ok(NodeCpus::Auto);
    }
    let cpus: Option<f64> = text.parse().ok().filter(|cpus| (0.01..=4096.0).contains(cpus));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
    let millis = cpus.map(|cpus| (cpus * 1_000.0).round() as u32);
    millis.map(NodeCpus::Fixed).ok_or_else(|| "auto or a number from 0.01 to 4096 is allowed".into())
}

fn interval(text: &str) -> Result<Duration, String> {
    time::duration(text, Duration::from_millis(20)..=Duration::from_secs(10))
}

fn percent(text: &str) -> Result<BasisPoints, String> {
    let number: Option<f64> = text.trim_end_matches('%').trim().parse().ok();
    let read = number.filter(|number| (0.05..=100.0).contains(number));
    read.map(|percent| BasisPoints::from_ratio(percent / 100.0))
        .ok_or_else(|| "per cent, 0.05 to 100, is allowed".into())
}

fn link(text: &str) -> Result<Link, String> {
    if text == "auto" {
        return Ok(Link::Auto);
    }
    let mbps = text.parse().ok().filter(|mbps| (1..=1_000_000).contains(mbps));
    mbps.map(Link::Fixed).ok_or_else(|| "auto or a whole number from 1 to 1000000 is allowed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"swarmguard-agent").chain(arguments))
    }

    #[test]
    fn defaults_are_sensible_and_flags_are_read_on_both_sides_of_a_command() {
        let cli = parse(&[]).expect("no flag is needed");
        assert_eq!(
            cli.settings.http(),
            Some("127.0.0.1:8082".parse().expect("an address")),
            "not for strangers"
        );
        assert!(!cli.settings.open_reads && cli.settings.reader_token_file.is_none());
        assert_eq!(cli.settings.interval, Duration::from_millis(100));
        assert_eq!(cli.settings.budget, BasisPoints::from_percent(1));
        let cli = parse(&["--api-port=9000", "healthcheck", "--http-addr", "127.0.0.1:1"]).expect("sensible");
        assert_eq!(cli.settings.http(), Some("127.0.0.1:9000".parse().expect("an address")));
        assert!(matches!(cli.command, Some(Command::Healthcheck)));
        let later = parse(&["--interval=1s", "--interval=200ms", "--api-enabled=false"]).expect("sensible");
        assert_eq!(later.settings.interval, Duration::from_millis(200));
        assert_eq!((later.settings.http(), later.settings.known_by()), (None, 8_082));
    }

    #[test]
    fn a_node_can_be_a_cgroup() {
        let settings = parse(&[]).expect("no flag is needed").settings;
        assert_eq!((settings.node_cgroup, settings.node_cpus), (NodeCgroup(None), NodeCpus::Auto));
        let settings = parse(&["--node-cgroup=/", "--node-cpus=0.5"]).expect("sensible").settings;
        assert_eq!(settings.node_cgroup, NodeCgroup(Some("".into())));
        assert_eq!(settings.node_cpus, NodeCpus::Fixed(500));
        let settings = parse(&["--node-cgroup", "/lxc/node1"]).expect("sensible").settings;
        assert_eq!(settings.node_cgroup, NodeCgroup(Some("lxc/node1".into())));
    }

    #[test]
    fn senseless_values_say_key_value_and_what_is_allowed() {
        for (flag, value, allowed) in [
            ("--interval", "1ms", "20ms to 10s"),
            ("--interval", "100", "20ms to 10s"),
            ("--budget", "0", "0.05 to 100"),
            ("--budget", "NaN", "0.05 to 100"),
            ("--link-mbps", "fast", "1 to 1000000"),
            ("--max-containers", "0", "1..=4096"),
            ("--coordinators", "a,,b", "comma-separated"),
            ("--identity", "/etc", "swarm:<directory>"),
            ("--docker", "tcp://x", "unix://"),
            ("--http-addr", "8082", "invalid socket address"),
            ("--api-enabled", "yes", "true"),
            ("--bpf", "maybe", "false"),
            ("--node-cgroup", "lxc/1", "begins with /"),
            ("--node-cgroup", "/a/../b", "no .."),
            ("--node-cpus", "0", "0.01 to 4096"),
            ("--node-cpus", "5000", "0.01 to 4096"),
            ("--node-cpus", "NaN", "0.01 to 4096"),
        ] {
            let error = parse(&[flag, value]).expect_err(flag).to_string();
            assert!(error.contains(flag) && error.contains(value) && error.contains(allowed), "{error}");
        }
        assert!(parse(&["--no-such-flag"]).is_err());
    }
}
