//! `cargo xtask test`: every test tier, fastest first, one line each, and a count at the end.
//!
//! Tiers go on after a failed one: a broken unit test should not hide what a real Swarm says. What a tier prints is kept
//! in `target/test/`, and shown where the tier failed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::clock::Stopwatch;
use crate::host::{self, Package};
use crate::interrupt;
use crate::workspace::{cargo, root};

/// `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Only what needs neither root nor virtual machines
    #[arg(long)]
    quick: bool,
    /// Seeds of the simulation, each a whole cluster with faults; 2000, or 60 with --quick, unless said otherwise
    #[arg(long, value_name = "SEEDS")]
    simulate: Option<u32>,
    /// Seeds of the simulation over QUIC, which cost more; 20 unless said otherwise
    #[arg(long, value_name = "SEEDS")]
    simulate_quic: Option<u32>,
    /// Only the tiers whose name starts with this; may be given several times
    #[arg(long = "only", value_name = "TIER")]
    only: Vec<String>,
    /// These scenarios of the Swarm tiers on each engine, or all, instead of the usual ones (all on the newest engine, a few on the older ones); may be given several times
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
    /// Everything: also virtual machines and the tier model, and every scenario on every engine
    #[arg(long, conflicts_with = "quick")]
    all: bool,
    #[command(flatten)]
    install: crate::host::InstallArgs,
}

/// How a tier went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed, or a tier that could not be played at all.
    pub failed: u32,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// How one tier went, as `target/test/summary.json` has it.
#[derive(Debug, Serialize)]
pub struct Played {
    tier: String,
    passed: u32,
    failed: u32,
    seconds: f64,
}

/// `target/test/summary.json`.
#[derive(Debug, Default, Serialize)]
struct Summary {
    tiers: Vec<Played>,
    /// Compilation included.
    total_seconds: f64,
}

impl std::ops::AddAssign<Option<Played>> for Summary {
    fn add_assign(&mut self, played: Option<Played>) {
        self.tiers.extend(played);
    }
}

impl Summary {
    fn counts(&self) -> Counts {
        let mut all = Counts::default();
        for tier in &self.tiers {
            all += Counts { passed: tier.passed, failed: tier.failed };
        }
        all
    }

    fn write(&self) -> Result<PathBuf> {
        let path = root().join("target/test/summary.json");
        let text = serde_json::to_vec_pretty(self).context("cannot write the summary as JSON")?;
        fs::create_dir_all(root().join("target/test"))
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// Plays the tiers.
///
/// # Errors
/// Where `target/test` cannot be written; a failed tier is counted.
pub fn run(args: &Args) -> Result<ExitCode> {
    let watch = Stopwatch::start();
    interrupt::install();
    let mut all = Summary::default();
    let wanted =
        |name: &str| args.only.is_empty() || args.only.iter().any(|only| name.starts_with(only.as_str()));
    for (name, what, arguments) in CARGO_TIERS {
        if wanted(name) {
            all += tier(name, what, |log| cargo_test(cargo(), arguments, log));
        }
    }
    if wanted("simulation") {
        let seeds = args.simulate.unwrap_or(if args.quick { 60 } else { 2_000 });
        all += tier("simulation", "whole clusters in simulated time, by seed", |log| {
            simulate(cargo(), seeds, &[], &[], log)
        });
    }
    if !args.quick && wanted("simulation-quic") {
        let seeds = args.simulate_quic.unwrap_or(20);
        all += tier("simulation-quic", "agents and coordinators over QUIC on a simulated network", |log| {
            let mut counts = simulate(seeded(), seeds, &["--features", "quic"], &["--quic"], log)?;
            counts += cargo_test(seeded(), QUIC_CHECKERS, log)?;
            Ok(counts)
        });
    }
    if !args.quick && wanted("clients") {
        all += tier("clients", "the balancer under clients that other people wrote", |log| {
            host::ensure(CLIENTS, args.install.allowed())?;
            let mut command = cargo();
            crate::bench::with_proxies(&mut command, args.install.allowed())?;
            cargo_test(command, CLIENT_TESTS, log)
        });
    }
    // By its name, or with everything: it takes three minutes.
    let on_request = args.all || !args.only.is_empty();
    if on_request && wanted("watch") {
        all += tier("watch", "metrics, alerts and dashboards with a real Prometheus", |log| {
            crate::watch::play(args.install.allowed(), log)
        });
    }
    // They play a server of their own.
    if !args.quick && wanted("contract") {
        all += tier("contract", "the API against its description, by requests made from it", |log| {
            crate::browser::contract(args.install.allowed(), log)
        });
    }
    if !args.quick && wanted("browser") {
        all += tier("browser", "the coordinator's page in a real browser", |log| {
            crate::browser::check(args.install.allowed(), log)
        });
    }
    if !args.quick {
        let real = real::Tiers::new(args.install.allowed(), args.scenarios.clone(), args.all);
        for (name, what) in real::TIERS {
            let asked = real::is_usual(name) || args.all || !args.only.is_empty();
            if asked && wanted(name) {
                all += tier(name, what, |log| real.play(name, log));
            }
        }
    }
    interrupt::check()?;
    all.total_seconds = watch.seconds();
    let kept = all.write()?;
    let Counts { passed, failed } = all.counts();
    println!("all tiers played in {watch}; seconds of each in {}", kept.display());
    println!("{passed} passed, {failed} failed");
    Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

mod real;

/// Tiers that are plain `cargo test`: name, what is in them, arguments.
const CARGO_TIERS: [(&str, &str, &[&str]); 2] = [
    ("unit", "unit tests, properties, fixtures", &["test", "--lib", "--bins"]),
    (
        "integration",
        "programs against played peers, actions against a model of Swarm",
        &["test", "--test", "*"],
    ),
];

/// That the checkers of the simulation over QUIC can fail. Not among the others: it needs a tokio whose clock can be
/// paused, which the programs are built without.
const QUIC_CHECKERS: &[&str] =
    &["test", "--package", "swarmguard-tests", "--features", "quic", "--test", "checkers_quic"];

/// Tests that need other people's programs, and so are ignored by a plain `cargo test`.
const CLIENT_TESTS: &[&str] = &[
    "test",
    "--package",
    "swarmguard-balancer",
    "--test",
    "clients",
    "--test",
    "differential",
    "--",
    "--ignored",
];

/// Those programs.
const CLIENTS: &[Package] = &[
    Package { name: "curl", why: "asking the balancer in every version of HTTP, with and without TLS" },
    Package { name: "wrk", why: "sending the balancer as much as it takes" },
    Package { name: "nghttp2-client", why: "loading the balancer over HTTP/2 (h2load)" },
    Package {
        name: "python3-h2",
        why: "checking the balancer's HTTP/2 by an implementation that is not ours",
    },
    Package { name: "python3-websockets", why: "WebSockets through the balancer" },
];

/// Plays one tier and prints its line; nothing after Ctrl-C, when only the end is left to be told.
fn tier(name: &str, what: &str, play: impl FnOnce(&mut Log) -> Result<Counts>) -> Option<Played> {
    interrupt::check().ok()?;
    let watch = Stopwatch::start();
    let outcome = Log::create(name).and_then(|mut log| {
        let counts = play(&mut log);
        log.bar.finish_and_clear();
        if !matches!(counts, Ok(counts) if counts.failed == 0) {
            log.show();
        }
        counts
    });
    let counts = match outcome {
        Ok(counts) => {
            println!("tier {name} ({what}): {} passed, {} failed in {watch}", counts.passed, counts.failed);
            counts
        }
        Err(error) => {
            println!("tier {name} ({what}): could not be played after {watch}: {error:#}");
            Counts { passed: 0, failed: 1 }
        }
    };
    let Counts { passed, failed } = counts;
    Some(Played { tier: name.to_owned(), passed, failed, seconds: watch.seconds() })
}

/// Where a tier's output goes, and the line that shows that it lives.
pub struct Log {
    file: File,
    path: PathBuf,
    bar: ProgressBar,
}

/// Lines shown of a failed tier.
const SHOWN: usize = 80;

impl Log {
    fn create(name: &str) -> Result<Self> {
        let dir = root().join("target/test");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let path = dir.join(format!("{name}.log"));
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Ok(Log { file, path, bar })
    }

    /// Runs `command` to its end, its output into the log; every line of it also goes to `line`. True where it ended
    /// with success.
    ///
    /// # Errors
    /// Where it cannot be started or its output cannot be kept.
    pub fn command(&mut self, command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
        interrupt::check()?;
        let shown = format!("{command:?}");
        writeln!(self.file, "$ {shown}").context("cannot write the log")?;
        let errors = self.file.try_clone().context("cannot write the log")?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
        let output = child.stdout.take().context("a command without output")?;
        for text in BufReader::new(output).lines() {
            let text = text.with_context(|| format!("cannot read what {shown} says"))?;
            writeln!(self.file, "{text}").context("cannot write the log")?;
            self.bar.set_message(text.clone());
            line(&text);
        }
        Ok(child.wait().with_context(|| format!("cannot wait for {shown}"))?.success())
    }

    /// Says what is being done.
    ///
    /// # Errors
    /// Where the log cannot be written.
    pub fn doing(&mut self, what: &str) -> Result<()> {
        self.bar.set_message(what.to_owned());
        writeln!(self.file, "# {what}").context("cannot write the log")
    }

    /// Keeps a line of output.
    ///
    /// # Errors
    /// Where the log cannot be written.
    pub fn line(&mut self, text: &str) -> Result<()> {
        self.bar.set_message(text.to_owned());
        writeln!(self.file, "{text}").context("cannot write the log")
    }

    fn show(&self) {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        println!("--- the end of {} ---", self.path.display());
        for line in &lines[lines.len().saturating_sub(SHOWN)..] {
            println!("{line}");
        }
        println!("---");
    }
}

/// As `cargo`, for a tokio whose own chance (whom it wakes first) can be seeded.
fn seeded() -> Command {
    let mut cargo = cargo();
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    cargo.env("RUSTFLAGS", format!("{flags} --cfg tokio_unstable").trim_start());
    cargo
}

/// Runs `cargo test` with these arguments and counts.
///
/// # Errors
/// Where it does not compile.
pub fn cargo_test(mut cargo: Command, arguments: &[&str], log: &mut Log) -> Result<Counts> {
    let mut counts = Counts::default();
    // What stands behind `--` is the harness's.
    let own = arguments.iter().position(|argument| *argument == "--").unwrap_or(arguments.len());
    let (own, harnesses) = arguments.split_at(own);
    cargo.args(own).arg("--no-fail-fast").args(harnesses);
    let success = log.command(&mut cargo, |line| counts += harness(line).unwrap_or_default())?;
    // Without a count it did not compile; with failures cargo says no as well.
    ensure!(success || counts.failed > 0, "cargo {} failed, see above", arguments.join(" "));
    Ok(counts)
}

fn simulate(
    mut cargo: Command,
    seeds: u32,
    features: &[&str],
    arguments: &[&str],
    log: &mut Log,
) -> Result<Counts> {
    let mut counts = None;
    cargo.args(["run", "--quiet", "--package", "swarmguard-tests", "--bin", "swarmguard-simulate"]);
    cargo.args(features).args(["--", "--seeds", &seeds.to_string()]).args(arguments);
    log.command(&mut cargo, |line| {
        // It ends with a line like those of our other programs, without a name before it.
        counts = summary(&format!("simulation: {line}"), "simulation").or(counts);
    })?;
    counts.context("the simulation ended without a count")
}

/// The counts of a line that ends one of the test harness's runs.
fn harness(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| {
        let before = rest.split(&format!(" {word};")).next()?;
        before.rsplit(' ').next()?.parse().ok()
    };
    Some(Counts { passed: number("passed")?, failed: number("failed")? })
}

/// The counts of a line such as `swarm: 3 passed, 1 failed`, as our own programs end.
pub fn summary(line: &str, tier: &str) -> Option<Counts> {
    let rest = line.strip_prefix(tier)?.strip_prefix(": ")?;
    let (passed, failed) = rest.split_once(" passed, ")?;
    Some(Counts { passed: passed.parse().ok()?, failed: failed.strip_suffix(" failed")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s";
        assert_eq!(harness(line), Some(Counts { passed: 12, failed: 3 }));
        assert_eq!(harness("test result of something else"), None);
        assert_eq!(summary("swarm: 7 passed, 2 failed", "swarm"), Some(Counts { passed: 7, failed: 2 }));
        assert_eq!(summary("swarm 20.10: migration ok (3 s)", "swarm"), None);
        assert_eq!(summary("kernel: x passed, 2 failed", "kernel"), None);
    }

    #[test]
    fn the_summary_has_all_tiers_and_their_sum() {
        let mut all = Summary::default();
        for (tier, failed) in [("unit", 0), ("swarm", 2)] {
            all += Some(Played { tier: tier.to_owned(), passed: 3, failed, seconds: 1.5 });
        }
        all += None;
        assert_eq!(all.counts(), Counts { passed: 6, failed: 2 });
        let json = serde_json::to_value(&all).expect("JSON");
        assert_eq!(json["tiers"][1]["tier"], "swarm");
        assert_eq!(json["tiers"][1]["seconds"], 1.5);
    }
}
