//! The tier `watch`: what operators watch SwarmGuard by. Debian's promtool plays the cases of every alert; then its
//! Prometheus finds the real programs by the coordinator's `/api/v1/targets`, scrapes them and evaluates the rules, and
//! every name in rules and dashboards must be one that they show, and every panel's query must answer with data.

mod fixtures;
mod haproxy;
mod names;
mod prometheus;
mod stage;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::clock::Stopwatch;
use crate::dashboards::{filled, panels};
use crate::host::{self, Package};
use crate::test::{Counts, Log, cargo_test};
use crate::workspace::{cargo, root};
use prometheus::Prometheus;
use stage::Stage;

const MAIL: &[Package] =
    &[Package { name: "python3-aiosmtpd", why: "a mail server that notifications are sent to" }];
/// Sends mail to it.
const MAIL_TEST: &[&str] =
    &["test", "--package", "swarmguard-coordinator", "--test", "notify", "--", "--ignored", "mail_goes"];

/// Longest wait for all queries to answer.
const PATIENCE: Duration = Duration::from_secs(90);

/// Plays the tier.
///
/// # Errors
/// Where Prometheus or the programs cannot be had; what fails of the checks is counted.
pub fn play(install: bool, log: &mut Log) -> Result<Counts> {
    let tools = tools(install)?;
    let mut counts = Counts::default();
    for arguments in [["check", "rules", "rules.yml"], ["test", "rules", "tests.yml"]] {
        let mut promtool = Command::new(tools.join("usr/bin/promtool"));
        promtool.args(arguments).current_dir(root().join("deploy/prometheus"));
        let passed = log.command(&mut promtool, |_| {})?;
        counts += Counts { passed: u32::from(passed), failed: u32::from(!passed) };
    }
    // A wrong rule file is refused, and by its name.
    let wrong = tempfile::tempdir().context("cannot make a temporary directory")?;
    std::fs::write(
        wrong.path().join("wrong.yml"),
        "groups: [{name: x, rules: [{alert: A, expr: 'sum('}]}]\n",
    )
    .context("cannot write a rule file")?;
    let mut promtool = Command::new(tools.join("usr/bin/promtool"));
    let refused =
        !log.command(promtool.args(["check", "rules", "wrong.yml"]).current_dir(wrong.path()), |_| {})?;
    counts += Counts { passed: u32::from(refused), failed: u32::from(!refused) };
    host::ensure(MAIL, install)?;
    counts += cargo_test(cargo(), MAIL_TEST, log)?;
    log.doing("starting the programs")?;
    let built = Stage::build()?;
    counts += haproxy::play(&built.played, install, log)?;
    let stage = built.start()?;
    let prometheus = Prometheus::start(&tools.join("usr/bin/prometheus"), &stage)?;
    counts += names_occur(&prometheus, log)?;
    counts += panels_answer(&prometheus, &stage, log)?;
    Ok(counts)
}

/// Prometheus' programs, without its package's service.
fn tools(install: bool) -> Result<PathBuf> {
    let dir = root().join("target/watch/debian");
    if !dir.join("usr/bin/prometheus").exists() {
        host::unpack(&["prometheus"], "Prometheus and promtool", &dir, install)?;
    }
    Ok(dir)
}

/// Every name in rules and dashboards is one that a program shows.
fn names_occur(prometheus: &Prometheus, log: &mut Log) -> Result<Counts> {
    let wanted = names::wanted()?;
    let watch = Stopwatch::start();
    loop {
        let shown = prometheus.families()?;
        let missing: Vec<&String> = wanted.iter().filter(|name| !names::is_shown(name, &shown)).collect();
        if missing.is_empty() {
            log.line(&format!("{} names in rules and dashboards, all scraped", wanted.len()))?;
            return Ok(Counts { passed: 1, failed: 0 });
        }
        if watch.elapsed() > PATIENCE {
            log.line(&format!("these names are in no scrape: {missing:?}"))?;
            return Ok(Counts { passed: 0, failed: 1 });
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Every query of every panel answers with data, and so do all three jobs.
fn panels_answer(prometheus: &Prometheus, stage: &Stage, log: &mut Log) -> Result<Counts> {
    let watch = Stopwatch::start();
    let mut waiting: Vec<(String, String)> =
        ["swarmguard-coordinator", "swarmguard-agent", "swarmguard-balancer"]
            .iter()
            .map(|job| (format!("job {job}"), format!("up{{job=\"{job}\"}} == 1")))
            .collect();
    for dashboard in panels::ALL {
        for panel in dashboard.panels {
            for (query, _) in panel.queries {
                waiting.push((format!("{} / {}", dashboard.title, panel.title), filled(query)));
            }
        }
    }
    for (metric, why) in stage.groups.unknown() {
        let before = waiting.len();
        waiting.retain(|(_, query)| !query.contains(metric));
        log.line(&format!(
            "{} queries of {metric} not asked on this machine: {why}",
            before - waiting.len()
        ))?;
    }
    let all = u32::try_from(waiting.len()).context("too many panels")?;
    loop {
        let mut left = Vec::new();
        for (place, query) in waiting {
            if !prometheus.has_data(&query).with_context(|| format!("{place}: {query}"))? {
                left.push((place, query));
            }
        }
        waiting = left;
        if waiting.is_empty() || watch.elapsed() > PATIENCE {
            break;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    for (place, query) in &waiting {
        log.line(&format!("no data: {place}: {query}"))?;
    }
    let failed = u32::try_from(waiting.len()).context("too many panels")?;
    log.line(&format!("{} of {all} queries answered within {watch}", all - failed))?;
    if failed == all {
        bail!("no query has an answer: nothing is scraped");
    }
    Ok(Counts { passed: all - failed, failed })
}
