//! What a coordinator costs: the real program against an engine that is a file of answers, and 1,000 agents with 50
//! containers each on loopback. The program is a process of its own, so that only its own work is counted.
//!
//! Run by `cargo xtask bench coordinator`; prints a table, and writes JSON where `--json=<path>` says.

mod agents;
mod engine;
mod measure;
mod oneway;

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use swarmguard_common::{
    domain::NodeId,
    wire::{agent::ToCoordinator, codec},
};
use swarmguard_runtime::identity::{Unit, issue::Authority};

use swarmguard_tests::figures::{Report, Row, float};

use crate::measure::Coordinator;

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Agents, each a node.
    pub agents: usize,
    /// Containers of each.
    pub containers: usize,
    /// Windows measured.
    pub rounds: usize,
    /// Length of each.
    pub window: Duration,
    /// Alerts whose way to a decision is timed.
    pub alerts: usize,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` runs this without: it must then cost nothing.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("measures only when started by cargo bench");
        return ExitCode::SUCCESS;
    }
    let number = |name: &str, usual: usize| {
        let found = arguments.iter().find_map(|argument| argument.strip_prefix(name)?.strip_prefix('='));
        found.and_then(|value| value.parse().ok()).unwrap_or(usual)
    };
    let scale = Scale {
        agents: number("--agents", 1_000),
        containers: number("--containers", 50),
        rounds: number("--rounds", 3),
        window: Duration::from_secs(u64::try_from(number("--window-s", 10)).unwrap_or(10)),
        alerts: number("--alerts", 200),
    };
    let named = arguments.iter().find_map(|argument| argument.strip_prefix("--program="));
    let program = named.unwrap_or(env!("CARGO_BIN_EXE_swarmguard-coordinator"));
    let json = arguments.iter().find_map(|argument| argument.strip_prefix("--json="));
    let measured = run(scale, Path::new(program)).and_then(|rows| {
        let mut report = Report::new("cargo xtask bench coordinator");
        rows.into_iter().for_each(|row| report.add(row));
        print!("{report}");
        json.map_or(Ok(()), |path| report.write(Path::new(path)))?;
        report.check()
    });
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(scale: Scale, program: &Path) -> anyhow::Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    let dir = tempfile::tempdir().context("no temporary directory")?;
    runtime.block_on(async {
        certificates(dir.path(), scale.agents)?;
        let mut rows = vec![bytes_of_an_alert()?];
        rows.extend(oneway::measure(dir.path()).await?);
        rows.extend(load(dir.path(), scale, program).await?);
        Ok(rows)
    })
}

/// The node IDs of the swarm; the first is the manager's.
pub fn node_id(number: usize) -> anyhow::Result<NodeId> {
    Ok(format!("node{number:021}").parse()?)
}

fn certificates(dir: &Path, agents: usize) -> anyhow::Result<()> {
    let authority = Authority::create("benchcluster")?;
    for number in 0..agents {
        let at = dir.join(number.to_string());
        std::fs::create_dir(&at).with_context(|| format!("cannot make {}", at.display()))?;
        let unit = if number == 0 { Unit::Manager } else { Unit::Worker };
        authority.issue(node_id(number)?.as_str(), unit, &at)?;
    }
    Ok(())
}

fn bytes_of_an_alert() -> anyhow::Result<Row> {
    let alert = agents::alert(u64::from(u32::MAX), u64::from(u32::MAX), u32::MAX);
    let bytes = codec::encode(&ToCoordinator::Alert(alert))?.len();
    Ok(Row::of("alert.bytes", "B", "<= 64", &[float(bytes)]))
}

async fn load(dir: &Path, scale: Scale, program: &Path) -> anyhow::Result<Vec<Row>> {
    let engine = engine::serve(scale).await?;
    let coordinator = Coordinator::spawn(program, dir, &engine.address()).await?;
    let crowd = agents::start(dir, scale, coordinator.quic).await?;
    coordinator
        .until(Duration::from_secs(120), |text| {
            measure::value_of(text, "leases{state=\"live\"}") >= scale.agents
        })
        .await
        .context("not all agents hold a lease")?;
    tokio::time::sleep(scale.window / 2).await;
    let (mut cores, mut resident) = (Vec::new(), Vec::new());
    let (mut bytes, mut requests) = (Vec::new(), Vec::new());
    engine.take_traffic();
    for round in 0..scale.rounds {
        cores.push(coordinator.cores_over(scale.window).await?);
        resident.push(coordinator.resident_mib()?);
        let (traffic, seconds) = (engine.take_traffic(), scale.window.as_secs_f64());
        bytes.push(float(usize::try_from(traffic.bytes)?) / seconds);
        requests.push(float(usize::try_from(traffic.requests)?) / seconds);
        eprintln!("round {}: {:.3} cores, {:.0} MiB", round + 1, cores[round], resident[round]);
    }
    let mut rows = vec![
        Row::of("coordinator.cores", "cores", "< 1", &cores),
        Row::of("coordinator.rss_mib", "MiB", "< 256", &resident),
        Row::of("engine.bytes_per_s", "B/s", "", &bytes),
        Row::of("engine.requests_per_s", "1/s", "", &requests),
        Row::of("coordinator.peak_rss_mib", "MiB", "", &[coordinator.peak_mib()?]),
    ];
    let before = coordinator.metrics().await?;
    let timed = agents::time_alerts(&crowd, scale, coordinator.api).await?;
    rows.extend(Row::percentiles("coordinator.alert_to_decision_ms", "ms", "", timed));
    let after = coordinator.metrics().await?;
    let refused = measure::value_of(&after, "ingest_refused_total");
    let live = measure::value_of(&after, "leases{state=\"live\"}");
    eprintln!(
        "reports in the meantime: {}, refused: {refused}, live leases: {live}",
        measure::value_of(&after, "reports_total") - measure::value_of(&before, "reports_total")
    );
    if live < scale.agents {
        bail!("only {live} of {} agents hold a lease under load: the figures mean nothing", scale.agents);
    }
    Ok(rows)
}
