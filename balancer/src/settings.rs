//! Settings: flags, environment and file, with the names that the balancer was proposed with.
//!
//! Every value is checked here, before anything starts, and a wrong one is named with what is allowed.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, ValueEnum};
use swarmguard_common::labels::Algorithm;
use swarmguard_runtime::config;

use crate::{pick::Tuning, registry::Weighing};

/// What the names of our own variables begin with; those of the proposal that do not are known one by one.
const OWN_PREFIXES: [&str; 2] = ["SWARMGUARD_", "LB_"];

/// HTTP balancer for Swarm services: each request goes to the replica with most room
#[derive(Clone, Debug, Parser)]
#[command(name = "swarmguard-balancer", version, args_override_self = true)]
pub struct Settings {
    /// What to do; without it: serve
    #[command(subcommand)]
    pub command: Option<Command>,
    /// TOML file with any of these settings
    #[arg(long, env = "SWARMGUARD_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, or a tracing filter
    #[arg(long, env = "SWARMGUARD_LOG", default_value = "info")]
    pub log: String,

    /// Address of all listeners
    #[arg(long, env = "SWARMGUARD_LISTEN_IP", default_value = "0.0.0.0")]
    pub listen_ip: IpAddr,
    /// Port for HTTP/1.1 and clear-text HTTP/2
    #[arg(long, env = "LB_PORT", default_value_t = 8081)]
    pub port: u16,
    /// Port for TLS; needs --tls-cert and --tls-key
    #[arg(long, env = "SWARMGUARD_TLS_PORT", default_value_t = 8443)]
    pub tls_port: u16,
    /// PEM file with the certificate chain; TLS is served where it is given, and the file is read again when it changes
    #[arg(long, env = "SWARMGUARD_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with its private key
    #[arg(long, env = "SWARMGUARD_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Where /metrics and /healthz are served; for Prometheus in an overlay network, 0.0.0.0:8085 and no published port
    #[arg(long, env = "SWARMGUARD_ADMIN_ADDR", default_value = "127.0.0.1:8085")]
    pub admin_addr: SocketAddr,
    /// Whether /metrics and /healthz on the public port are the balancer's own: they say which replicas there are, and where
    #[arg(long, env = "SWARMGUARD_OWN_PATHS", default_value_t = false, action = ArgAction::Set)]
    pub own_paths: bool,
    /// Threads that serve, one per core; 0 takes as many as the machine or the CPU limit has
    #[arg(long, env = "SWARMGUARD_WORKERS", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=256))]
    pub workers: u16,

    /// Coordinators, host:port, comma-separated, that routes come from
    #[arg(long, env = "SWARMGUARD_COORDINATORS", value_delimiter = ',', value_parser = host_port)]
    pub coordinators: Vec<String>,
    /// File with the token that coordinators ask for
    #[arg(long, env = "SWARMGUARD_TOKEN_FILE", default_value = "/run/secrets/swarmguard-balancer-token")]
    pub token_file: PathBuf,
    /// PEM file with the roots that coordinators' certificates must end in
    #[arg(long, env = "SWARMGUARD_ROOTS", default_value = "/swarmguard-roots.pem")]
    pub roots: PathBuf,
    /// Services, name or name:port, comma-separated, found as tasks.<name> in DNS where no coordinator can be reached
    #[arg(long, env = "TARGET_SERVICE", value_delimiter = ',', value_parser = name_port)]
    pub target_service: Vec<String>,
    /// Port of the services in TARGET_SERVICE and of WORKER_NODES that name none
    #[arg(long, env = "TARGET_PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub target_port: u16,
    /// Replicas, host or host:port, comma-separated: nothing is discovered then
    #[arg(long, env = "WORKER_NODES", value_delimiter = ',', value_parser = name_port)]
    pub worker_nodes: Vec<String>,
    /// How often names are resolved
    #[arg(long, env = "SWARMGUARD_DNS_INTERVAL", default_value = "1s", value_parser = seconds)]
    pub dns_interval: Duration,

    /// Algorithm of services whose labels name none
    #[arg(long, env = "LB_ALGORITHM", default_value = "lease", value_parser = algorithm)]
    pub algorithm: Algorithm,
    /// A request in flight counts no longer than this
    #[arg(long, env = "LEASE_DURATION", default_value = "30", value_parser = seconds)]
    pub lease_duration: Duration,
    /// How often expired leases are looked for
    #[arg(long, env = "LEASE_CLEANUP_INTERVAL", default_value = "1", value_parser = seconds)]
    pub lease_cleanup_interval: Duration,
    /// Port of the agents' HTTP interface; asked only where WORKER_NODES replaces discovery
    #[arg(long, env = "METRICS_PORT", default_value_t = 8082, value_parser = clap::value_parser!(u16).range(1..))]
    pub metrics_port: u16,
    /// How often figures are to come; those older than three times this are not believed
    #[arg(long, env = "CACHE_TTL", default_value = "1", value_parser = seconds)]
    pub cache_ttl: Duration,
    /// Weight of CPU in the metrics score
    #[arg(long, env = "CPU_WEIGHT", default_value_t = 0.5, value_parser = weight)]
    pub cpu_weight: f64,
    /// Weight of memory in the metrics score
    #[arg(long, env = "MEMORY_WEIGHT", default_value_t = 0.3, value_parser = weight)]
    pub memory_weight: f64,
    /// Weight of network in the metrics score
    #[arg(long, env = "NETWORK_WEIGHT", default_value_t = 0.2, value_parser = weight)]
    pub network_weight: f64,
    /// What one request in flight weighs against the metrics score in the hybrid algorithm
    #[arg(long, env = "LEASE_COUNT_WEIGHT", default_value_t = 10.0, value_parser = weight)]
    pub lease_count_weight: f64,
    /// Whether a simpler algorithm steps in where figures are missing; otherwise such requests get 503
    #[arg(long, env = "FALLBACK_ENABLED", default_value_t = true, action = ArgAction::Set)]
    pub fallback_enabled: bool,

    /// How often each replica's health path is asked; sick ones are asked every second
    #[arg(long, env = "HEALTH_CHECK_INTERVAL", default_value = "5", value_parser = seconds)]
    pub health_check_interval: Duration,
    /// Log every pick with its reason
    #[arg(long, env = "DEBUG_ROUTING", default_value_t = false, action = ArgAction::Set)]
    pub debug_routing: bool,
    /// Log a summary after so many requests of one worker, at most once a second; 0 never
    #[arg(long, env = "LOG_EVERY_N_REQUESTS", default_value_t = 100)]
    pub log_every_n_requests: u64,

    /// Which headers tell replicas about the client: x (X-Forwarded-*), rfc7239 (Forwarded), both, none
    #[arg(long, env = "SWARMGUARD_FORWARDED", default_value = "x")]
    pub forwarded: Forwarded,
    /// Keep such headers as they come in, and add to them; only behind another proxy of your own
    #[arg(long, env = "SWARMGUARD_TRUST_FORWARDED", default_value_t = false, action = ArgAction::Set)]
    pub trust_forwarded: bool,
    /// Largest head of a request or an answer, in bytes
    #[arg(long, env = "SWARMGUARD_MAX_HEAD_BYTES", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(8_192..=1_048_576))]
    pub max_head_bytes: u32,
    /// Most headers in the head of a request or an answer
    #[arg(long, env = "SWARMGUARD_MAX_HEADERS", default_value_t = 256, value_parser = clap::value_parser!(u16).range(16..=4_096))]
    pub max_headers: u16,
    /// Largest request body, in bytes; 0 is no limit
    #[arg(long, env = "SWARMGUARD_MAX_BODY_BYTES", default_value_t = 0)]
    pub max_body_bytes: u64,
    /// Clients connected at once, over all workers
    #[arg(long, env = "SWARMGUARD_MAX_CONNECTIONS", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// Clients of one address connected at once (of IPv6: one /64), over all workers; 0 is half of --max-connections
    #[arg(long, env = "SWARMGUARD_MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 0)]
    pub max_connections_per_address: u32,
    /// Memory for what clients make the balancer keep, over all of them: heads, bodies on their way, HTTP/2. What needs more gets 503
    #[arg(long, env = "SWARMGUARD_CLIENT_MEMORY_BYTES", default_value_t = 100_663_296, value_parser = clap::value_parser!(u64).range(4_194_304..))]
    pub client_memory_bytes: u64,
    /// Time for a client to send a request head
    #[arg(long, env = "SWARMGUARD_HEAD_TIMEOUT", default_value = "15s", value_parser = seconds)]
    pub head_timeout: Duration,
    /// A client without a request, that sends nothing of its body, or reads nothing of its answer is given up after this
    #[arg(long, env = "SWARMGUARD_IDLE_TIMEOUT", default_value = "75s", value_parser = seconds)]
    pub idle_timeout: Duration,
    /// Longest silence of both sides once an answer has begun, and of tunnels (WebSocket)
    #[arg(long, env = "SWARMGUARD_STREAM_TIMEOUT", default_value = "1h", value_parser = seconds)]
    pub stream_timeout: Duration,
    /// Time to connect to a replica
    #[arg(long, env = "SWARMGUARD_CONNECT_TIMEOUT", default_value = "2s", value_parser = seconds)]
    pub connect_timeout: Duration,
    /// A replica whose node acknowledges nothing for so long can no longer be reached: its connection is given up
    #[arg(long, env = "SWARMGUARD_UNREACHABLE_TIMEOUT", default_value = "5s", value_parser = seconds)]
    pub unreachable_timeout: Duration,
    /// How long a request waits for room where every replica has as many in flight as it may
    #[arg(long, env = "SWARMGUARD_QUEUE_TIMEOUT", default_value = "1s", value_parser = seconds)]
    pub queue_timeout: Duration,
    /// Requests of one service that wait so at once
    #[arg(long, env = "SWARMGUARD_QUEUE_LENGTH", default_value_t = 1_024)]
    pub queue_length: u32,
    /// Unused connections kept to each replica, by each worker
    #[arg(long, env = "SWARMGUARD_IDLE_PER_REPLICA", default_value_t = 64)]
    pub idle_per_replica: u32,
    /// Time for requests in flight to end when the balancer is told to stop
    #[arg(long, env = "SWARMGUARD_SHUTDOWN_GRACE", default_value = "8s", value_parser = seconds)]
    pub shutdown_grace: Duration,
}

/// What else the program can do.
#[derive(Clone, Copy, Debug, Parser, PartialEq, Eq)]
pub enum Command {
    /// Ask a running balancer on this machine whether it serves; exit code 0 if so
    Healthcheck,
}

/// Which headers tell replicas about the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Forwarded {
    /// X-Forwarded-For, -Proto, -Host.
    X,
    /// Forwarded (RFC 7239).
    Rfc7239,
    /// All of them.
    Both,
    /// None of them.
    None,
}

impl Forwarded {
    /// Whether X-Forwarded-* are set.
    pub fn x(self) -> bool {
        matches!(self, Self::X | Self::Both)
    }

    /// Whether Forwarded is set.
    pub fn rfc(self) -> bool {
        matches!(self, Self::Rfc7239 | Self::Both)
    }
}

impl Settings {
    /// Reads flags, environment and file; ends the process with the reason where one of them is wrong.
    pub fn read() -> Self {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        let read = Self::merge(arguments, variables);
        read.unwrap_or_else(|error| error.exit())
    }

    fn merge(
        mut arguments: Vec<OsString>,
        variables: impl Iterator<Item = String>,
    ) -> Result<Self, clap::Error> {
        let command = Self::command();
        let unknown = unknown_variables(&command, variables);
        if !unknown.is_empty() {
            let why = format!(
                "unknown environment variables: {}; unset them, or see --help for those that are known",
                unknown.join(", ")
            );
            return Err(command.clone().error(clap::error::ErrorKind::UnknownArgument, why));
        }
        // The file's name is looked for first and leniently: its values stand before the real arguments.
        let lenient = command.clone().ignore_errors(true).try_get_matches_from(&arguments)?;
        if let Some(path) = lenient.get_one::<PathBuf>("config") {
            let known: Vec<String> =
                command.get_arguments().filter_map(|it| it.get_long()).map(str::to_owned).collect();
            let from_file = config::file_as_arguments(path, &known)
                .map_err(|error| command.clone().error(clap::error::ErrorKind::Io, error))?;
            let kept = from_file.into_iter().filter(|argument| !said_by_environment(&command, argument));
            let at = 1.min(arguments.len());
            arguments.splice(at..at, kept);
        }
        let mut settings = Self::from_arg_matches(&command.clone().try_get_matches_from(arguments)?)?;
        // A stack file sets variables that it leaves empty.
        for list in [&mut settings.coordinators, &mut settings.target_service, &mut settings.worker_nodes] {
            list.retain(|item| !item.is_empty());
        }
        if !settings.worker_nodes.is_empty() && !settings.coordinators.is_empty() {
            let why = "--worker-nodes (WORKER_NODES) and --coordinators (SWARMGUARD_COORDINATORS) exclude each other: \
                       either replicas are listed or they are discovered";
            return Err(command.clone().error(clap::error::ErrorKind::ArgumentConflict, why));
        }
        Ok(settings)
    }

    /// Connections of one address.
    pub fn per_address(&self) -> u32 {
        match self.max_connections_per_address {
            0 => self.max_connections.div_ceil(2),
            most => most,
        }
    }

    /// How figures are weighed.
    pub fn weighing(&self) -> Weighing {
        Weighing {
            weights: [self.cpu_weight, self.memory_weight, self.network_weight],
            ttl: self.cache_ttl * 3,
            algorithm: self.algorithm,
        }
    }

    /// What algorithms are told.
    pub fn tuning(&self) -> Tuning {
        #[expect(clippy::cast_possible_truncation, reason = "a weight needs no more than an f32 holds")]
        let lease_weight = self.lease_count_weight as f32;
        Tuning { lease_weight, fallback: self.fallback_enabled }
    }
}

/// Variables that look like ours and are not: a misspelt one would otherwise be a setting that silently does nothing.
fn unknown_variables(command: &clap::Command, variables: impl Iterator<Item = String>) -> Vec<String> {
    let known = |name: &str| {
        command.get_arguments().filter_map(clap::Arg::get_env).any(|it| it.to_str() == Some(name))
    };
    let ours = |name: &String| OWN_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let mut unknown: Vec<String> = variables.filter(|name| ours(name) && !known(name)).collect();
    unknown.sort();
    unknown
}

/// The environment stands above the file; its variables are not all named after the flags.
fn said_by_environment(command: &clap::Command, argument: &OsString) -> bool {
    let text = argument.to_string_lossy();
    let flag = text.trim_start_matches("--").split('=').next().unwrap_or_default();
    let variable = command.get_arguments().find(|it| it.get_long() == Some(flag)).and_then(|it| it.get_env());
    variable.is_some_and(|name| std::env::var_os(name).is_some())
}

/// Seconds as a plain number, as the proposal has them, or a duration with its unit.
fn seconds(text: &str) -> Result<Duration, String> {
    let plain = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let read = plain.or_else(|| humantime::parse_duration(text).ok());
    let range = Duration::from_millis(10)..=Duration::from_secs(86_400);
    read.filter(|it| range.contains(it))
        .ok_or_else(|| "seconds, or a duration with its unit, 10ms to 1day".into())
}

fn weight(text: &str) -> Result<f64, String> {
    let read = text.parse::<f64>().ok().filter(|weight| (0.0..=1_000.0).contains(weight));
    read.ok_or_else(|| "a number from 0 to 1000".into())
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    let known = Algorithm::ALL.iter().find(|(word, _)| *word == text);
    known.map(|(_, algorithm)| *algorithm).ok_or_else(|| {
        let words: Vec<&str> = Algorithm::ALL.iter().map(|(word, _)| *word).collect();
        format!("one of {}", words.join(", "))
    })
}

fn host_port(text: &str) -> Result<String, String> {
    let named = text.rsplit_once(':').is_some_and(|(host, port)| is_name(host) && is_port(port));
    let legal = named || text.is_empty();
    if legal { Ok(text.trim().into()) } else { Err("host:port, comma-separated".into()) }
}

fn name_port(text: &str) -> Result<String, String> {
    let legal = match text.rsplit_once(':') {
        Some((name, port)) => is_name(name) && is_port(port),
        None => text.is_empty() || is_name(text),
    };
    if legal { Ok(text.trim().into()) } else { Err("name or name:port, comma-separated".into()) }
}

fn is_port(text: &str) -> bool {
    text.trim().parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_name(text: &str) -> bool {
    let text = text.trim();
    let legal =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'[' | b']');
    (1..=253).contains(&text.len()) && text.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Settings, String> {
        let all = std::iter::once("swarmguard-balancer").chain(arguments.iter().copied());
        let all = all.map(OsString::from).collect();
        Settings::merge(all, std::iter::empty()).map_err(|error| error.to_string())
    }

    #[test]
    fn misspelt_variables_are_named_and_refused() {
        let with = |names: &[&str]| {
            let all = vec!["swarmguard-balancer".into()];
            let names = names.iter().map(|name| (*name).to_owned());
            Settings::merge(all, names).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(with(&["LB_PORT", "SWARMGUARD_LISTEN_IP", "TARGET_SERVICE", "PATH", "HOME"]), Ok(()));
        let error = with(&["LB_PROT", "SWARMGUARD_LISTENIP", "LB_PORT"]).expect_err("refused");
        assert!(error.contains("LB_PROT, SWARMGUARD_LISTENIP;"), "{error}");
    }

    #[test]
    fn defaults_are_the_proposed_ones() {
        let settings = read(&[]).expect("defaults are sensible");
        assert_eq!((settings.port, settings.metrics_port), (8081, 8082));
        assert_eq!(settings.algorithm, Algorithm::Lease);
        assert_eq!(settings.lease_duration, Duration::from_secs(30));
        assert_eq!(settings.weighing().weights, [0.5, 0.3, 0.2]);
        assert!((settings.tuning().lease_weight - 10.0).abs() < f32::EPSILON);
    }

    #[test]
    fn wrong_values_are_named_with_what_is_allowed() {
        for (flag, value, allowed) in [
            ("--algorithm", "fastest", "round-robin, lease, metrics, hybrid, hcl"),
            ("--lease-duration", "-1", "seconds, or a duration"),
            ("--cpu-weight", "much", "0 to 1000"),
            ("--port", "99999", "99999"),
            ("--coordinators", "manager1", "host:port"),
            ("--tls-cert", "x.pem", "--tls-key"),
            ("--fallback-enabled", "maybe", "true"),
        ] {
            let error = read(&[&format!("{flag}={value}")]).expect_err("refused");
            assert!(error.contains(flag) && error.contains(allowed), "{error}");
        }
    }

    #[test]
    fn empty_lists_are_none_and_contradictions_are_refused() {
        let settings = read(&["--coordinators=", "--worker-nodes=a:1,b"]).expect("sensible");
        assert_eq!((settings.coordinators.len(), settings.worker_nodes.len()), (0, 2));
        assert!(read(&["--coordinators=m:1", "--worker-nodes=a"]).expect_err("refused").contains("exclude"));
    }

    #[test]
    fn a_file_stands_below_flags_and_unknown_keys_are_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "algorithm = 'hcl'\nport = 9000\n").expect("written");
        let path = format!("--config={}", file.path().display());
        let settings = read(&[&path, "--port=9001"]).expect("sensible");
        assert_eq!((settings.algorithm, settings.port), (Algorithm::Hcl, 9001));
        std::fs::write(file.path(), "algoritm = 'hcl'\n").expect("written");
        assert!(read(&[&path]).expect_err("refused").contains("algoritm"));
    }
}
