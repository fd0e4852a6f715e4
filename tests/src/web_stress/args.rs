//! What `web-stress` can be told on its command line or by environment, each value checked before anything starts.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// A web service that can be told to burn CPU, hold memory or send bytes.
#[derive(Debug, Parser)]
#[command(name = "web-stress", version)]
pub struct Cli {
    /// What to do; without one it serves.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: Serve,
}

/// What to do other than serve.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ask a running web-stress on this machine whether it is healthy: exit 0 if so (for an image's HEALTHCHECK).
    Healthcheck,
}

/// How to serve.
#[derive(Clone, Debug, Args)]
pub struct Serve {
    /// Where to listen.
    #[arg(long, env = "WEB_STRESS_ADDR", default_value = "0.0.0.0:8080", global = true)]
    pub addr: SocketAddr,
    /// Wait this long before listening at all, as a slow starter does.
    #[arg(long, env = "WEB_STRESS_START_DELAY", default_value = "0s", value_parser = delay)]
    pub start_delay: Duration,
    /// Listen, but answer /health with 503 for this long.
    #[arg(long, env = "WEB_STRESS_HEALTH_DELAY", default_value = "0s", value_parser = delay)]
    pub health_delay: Duration,
    /// After SIGTERM, go on answering for this long, each time with `Connection: close`, before the listener
    /// closes: connections that were made but not yet accepted would otherwise be reset.
    #[arg(long, env = "WEB_STRESS_LINGER", default_value = "2s", value_parser = linger)]
    pub linger: Duration,
    /// After SIGTERM, exit at last after this long, even with requests in flight. Keep it under the
    /// service's stop grace period (Swarm's default: 10 s).
    #[arg(long, env = "WEB_STRESS_DRAIN_TIMEOUT", default_value = "8s", value_parser = linger)]
    pub drain_timeout: Duration,
    /// Where /stress/network sends its bytes: `body` (the answer to the caller), `gateway` (UDP to the
    /// container's default gateway, the discard port: the node itself, nobody further; not with host
    /// networking) or an address and port that takes UDP.
    #[arg(long, env = "WEB_STRESS_NETWORK_SINK", default_value = "body", value_parser = sink)]
    pub network_sink: Sink,
    /// CPUs that 100 % of a CPU load stand for, where neither a limit nor the CPUs allowed show it, as on a node that is
    /// a cgroup; 0: what they show.
    #[arg(long, env = "WEB_STRESS_CPUS", default_value = "0", value_parser = cpus)]
    pub cpus: f64,
    /// Keep this many per cent of the CPUs busy from the start, as somebody who was there before does.
    #[arg(long, env = "WEB_STRESS_BUSY", default_value = "0", value_parser = percent)]
    pub busy: f64,
}

impl Serve {
    /// CPUs that 100 % of a CPU load stand for.
    pub fn allowance(&self) -> f64 {
        if self.cpus > 0.0 { self.cpus } else { super::allowance::cpus() }
    }
}

/// Where /stress/network sends its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Into the answer, so to whoever asked.
    Body,
    /// UDP to the default gateway's discard port.
    Gateway,
    /// UDP to this address.
    Udp(SocketAddr),
}

fn cpus(text: &str) -> Result<f64, String> {
    within(text, 1024.0, "a number of CPUs")
}

fn percent(text: &str) -> Result<f64, String> {
    within(text, 100.0, "per cent")
}

fn within(text: &str, most: f64, what: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok().filter(|number| (0.0..=most).contains(number));
    number.ok_or_else(|| format!("`{text}` is not {what} from 0 to {most}"))
}

fn delay(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(3600))
}

fn linger(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(300))
}

fn bounded(text: &str, max: Duration) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text)
        .map_err(|e| format!("`{text}` is not a duration such as 500ms or 3s: {e}"))?;
    if parsed > max {
        return Err(format!("`{text}` is too long, allowed: 0s to {}", humantime::format_duration(max)));
    }
    Ok(parsed)
}

fn sink(text: &str) -> Result<Sink, String> {
    match text {
        "body" => Ok(Sink::Body),
        "gateway" => Ok(Sink::Gateway),
        other => other
            .parse()
            .map(Sink::Udp)
            .map_err(|_| format!("`{other}`: allowed are body, gateway, or ADDRESS:PORT in figures")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold_and_every_flag_is_checked() {
        let cli = Cli::try_parse_from(["web-stress"]).unwrap();
        assert_eq!((cli.serve.start_delay, cli.serve.network_sink), (Duration::ZERO, Sink::Body));
        let cli = Cli::try_parse_from(["web-stress", "--start-delay", "4s", "--network-sink", "127.0.0.1:9"]);
        let serve = cli.unwrap().serve;
        assert_eq!(serve.start_delay, Duration::from_secs(4));
        assert_eq!(serve.network_sink, Sink::Udp("127.0.0.1:9".parse().unwrap()));
        let busy = Cli::try_parse_from(["web-stress", "--cpus", "0.5", "--busy", "40"]).unwrap().serve;
        assert_eq!((busy.cpus, busy.busy), (0.5, 40.0));
        assert!(Cli::try_parse_from(["web-stress", "--busy", "101"]).is_err());
        for bad in [["--start-delay", "soon"], ["--start-delay", "2h"], ["--network-sink", "example.org:9"]] {
            let error = Cli::try_parse_from(["web-stress", bad[0], bad[1]]).unwrap_err().to_string();
            assert!(error.contains(bad[1]) && error.contains(bad[0]), "{error}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
