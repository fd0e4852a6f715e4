//! Drills: faults on purpose, within rails, watched and reported.
//!
//! What is broken is held by a job on the node ([`fault`]) whose end is the fault's end. A config object of a fixed name is
//! the lock, so that there is one drill in a swarm at a time, and says until when; reports are configs, too. So a drill whose
//! command line dies leaves a job that ends by itself, and a lock that lapses.

pub mod facts;
pub mod fault;
pub mod plan;
pub mod probe;
pub mod rails;
pub mod report;
mod run;
mod watch;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use swarmguard_runtime::clock;

use crate::{
    cli::{DrillCommand, DrillFault},
    engine::Engine,
    failure::{Exit, Failure, Outcome},
    out::document,
    session::Session,
};
use report::{Form, Report};
pub use run::Wanted;

/// The lock.
const LOCK: &str = "swarmguard-drill";
/// Reports are called so, with the drill's ID behind.
const REPORTS: &str = "swarmguard-drill-report-";
/// Services of drills are called so, with the drill's ID behind.
const JOBS: &str = "swarmguard_drill_";
/// Label with the drill's ID.
const ID: &str = "swarmguard.drill.id";
/// Label of the lock: until when, in milliseconds since the Unix epoch.
const UNTIL: &str = "swarmguard.drill.until";
/// Reports that are kept.
const KEPT: usize = 10;

/// Runs what was typed behind `swarmguard drill`.
///
/// # Errors
/// With the exit code that it ends with.
pub async fn drill(session: &Session, command: DrillCommand) -> Outcome<Exit> {
    match command {
        DrillCommand::Ls => list(session).await,
        DrillCommand::Stop => stop(session).await,
        DrillCommand::Report { id, report } => show(session, id.as_deref(), report).await,
        DrillCommand::Plan { file, yes, dry_run } => by_plan(session, &file, yes, dry_run).await,
        DrillCommand::Fault(fault) => run::run(session, &Wanted::of(session, fault).await?).await,
    }
}

/// One drill after the other, each on a swarm that is well again; the first that fails ends it.
async fn by_plan(session: &Session, file: &std::path::Path, yes: bool, dry_run: bool) -> Outcome<Exit> {
    use clap::Parser as _;
    let plan = plan::read(file)?;
    // All of them are understood before the first begins.
    let mut faults: Vec<DrillFault> = Vec::new();
    for (number, step) in plan.drill.iter().enumerate() {
        let parsed = crate::cli::Cli::try_parse_from(step.words());
        let parsed = parsed.map_err(|error| {
            let text = error.render().to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Failure::usage(format!("{}: drill {}: {first}", file.display(), number + 1))
        })?;
        match parsed.command {
            crate::cli::Command::Drill { what: DrillCommand::Fault(fault) } => faults.push(fault),
            _ => {
                let text = format!("{}: drill {}: {:?} is no fault", file.display(), number + 1, step.fault);
                return Err(Failure::usage(text));
            }
        }
    }
    if !yes && !dry_run {
        session.confirm(&format!("Play the {} drills of {}?", faults.len(), file.display()), false)?;
    }
    for fault in faults {
        let mut wanted = Wanted::of(session, fault).await?;
        (wanted.yes, wanted.dry_run) = (true, dry_run || wanted.dry_run);
        let exit = run::run(session, &wanted).await?;
        if exit != Exit::Done {
            return Ok(exit);
        }
        if !wanted.dry_run {
            run::well_again(session).await?;
        }
    }
    Ok(Exit::Done)
}

/// A config object of ours.
struct Config {
    id: String,
    name: String,
    labels: Value,
    data: Vec<u8>,
}

async fn configs(engine: &Engine, prefix: &str) -> Outcome<Vec<Config>> {
    let found = engine.list("/configs", &json!({"name": [prefix]})).await?;
    let mut found: Vec<Config> = found
        .iter()
        .filter_map(|one| {
            let name = one["Spec"]["Name"].as_str().filter(|name| name.starts_with(prefix))?;
            let data = one["Spec"]["Data"].as_str().and_then(|data| STANDARD.decode(data).ok())?;
            let labels = one["Spec"]["Labels"].clone();
            Some(Config { id: one["ID"].as_str()?.into(), name: name.into(), labels, data })
        })
        .collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

async fn lock_of(engine: &Engine) -> Outcome<Option<Config>> {
    Ok(configs(engine, LOCK).await?.into_iter().find(|config| config.name == LOCK))
}

async fn remove(engine: &Engine, path: &str) -> Outcome {
    let answer = engine.raw(Method::DELETE, path, None).await?;
    if answer.status.is_success() || answer.status == StatusCode::NOT_FOUND {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&answer.body).trim().to_owned();
    Err(Failure::failed(format!("{path} cannot be removed: {words}")).hint("swarmguard drill stop"))
}

async fn reports(engine: &Engine) -> Outcome<Vec<Report>> {
    let found = configs(engine, REPORTS).await?;
    let mut found: Vec<Report> =
        found.iter().filter_map(|config| serde_json::from_slice(&config.data).ok()).collect();
    found.sort_by_key(|report| report.at_ms);
    Ok(found)
}

/// What is under way, and what was.
async fn list(session: &Session) -> Outcome<Exit> {
    let engine = session.engine().await?;
    let lock = lock_of(engine).await?;
    let reports = reports(engine).await?;
    let running = lock.as_ref().map(|lock| {
        json!({"id": lock.labels[ID], "what": String::from_utf8_lossy(&lock.data), "until_ms": until(lock)})
    });
    let value = json!({"running": running, "reports": reports});
    session.answer("DrillList", value, "", || {
        let mut text = String::new();
        if let Some(lock) = &lock {
            let left = until(lock).saturating_sub(clock::wall_ms()) / 1_000;
            text +=
                &format!("running  {}, over in {left}s at the latest\n", String::from_utf8_lossy(&lock.data));
        }
        for report in &reports {
            let word = if report.passed { "passed" } else { "failed" };
            text += &format!("{}  {word}  {} {}\n", report.id, report.fault, report.target);
        }
        if text.is_empty() { "no drill was played yet\n".into() } else { text }
    })?;
    Ok(Exit::Done)
}

fn until(lock: &Config) -> u64 {
    lock.labels[UNTIL].as_str().and_then(|until| until.parse().ok()).unwrap_or(0)
}

/// Ends what is under way, whoever began it, and takes away what it has left.
async fn stop(session: &Session) -> Outcome<Exit> {
    let engine = session.engine().await?;
    let mut ended = 0;
    for service in engine.list("/services", &json!({"name": [JOBS]})).await? {
        // The engine's filter takes what begins so; nothing else may ever go.
        if !service["Spec"]["Name"].as_str().is_some_and(|name| name.starts_with(JOBS)) {
            continue;
        }
        let id = service["ID"].as_str().unwrap_or_default();
        remove(engine, &format!("/services/{id}")).await?;
        ended += 1;
    }
    let lock = lock_of(engine).await?;
    if let Some(lock) = &lock {
        remove(engine, &format!("/configs/{}", lock.id)).await?;
    }
    session.answer("Result", json!({"ended": ended, "unlocked": lock.is_some()}), "stopped", || {
        if ended == 0 && lock.is_none() {
            "no drill is under way\n".into()
        } else {
            "the drill is ended\n".into()
        }
    })?;
    Ok(Exit::Done)
}

async fn show(session: &Session, id: Option<&str>, form: Form) -> Outcome<Exit> {
    let all = reports(session.engine().await?).await?;
    let found = match id {
        Some(id) => all.iter().find(|report| report.id == id),
        None => all.last(),
    };
    let report = found.ok_or_else(|| {
        let text =
            id.map_or_else(|| "no drill was played yet".into(), |id| format!("there is no report {id:?}"));
        Failure::usage(text).hint("swarmguard drill ls")
    })?;
    tell(session, report, form)?;
    Ok(Exit::Done)
}

/// Prints a report: as `--output` has it for programs, else in the form that is wanted.
fn tell(session: &Session, report: &Report, form: Form) -> Outcome {
    if session.for_people() {
        return session.print(&report.write(form));
    }
    let value = serde_json::to_value(report).unwrap_or_default();
    match crate::out::for_programs(session.global.output, &document("DrillReport", value))? {
        Some(text) => session.print(&text),
        None => session.print(&format!("{}\n", report.id)),
    }
}

/// Keeps a report in the swarm, and forgets the oldest.
async fn keep(engine: &Engine, report: &Report) -> Outcome {
    let data = serde_json::to_vec(report).map_err(|error| Failure::failed(error.to_string()))?;
    let body = json!({
        "Name": format!("{REPORTS}{}", report.id),
        "Labels": {crate::stack::NAMESPACE: crate::commands::install::STACK, ID: report.id},
        "Data": STANDARD.encode(data),
    });
    engine.call(Method::POST, "/configs/create", Some(&body)).await?;
    let mut all = configs(engine, REPORTS).await?;
    // Their IDs begin with the time.
    while all.len() > KEPT {
        let oldest = all.remove(0);
        remove(engine, &format!("/configs/{}", oldest.id)).await?;
    }
    Ok(())
}
