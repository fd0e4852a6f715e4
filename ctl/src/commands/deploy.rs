//! `deploy`: looked over, handed to `docker stack deploy`, waited for, and taken back where it does not run.
//!
//! A service's first deployment has nothing to go back to and stays as it is, with its errors told. So does one whose
//! earlier spec never ran: going back to it would only bring the older mistake again.

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, process::Stdio};

use serde_json::{Value, json};
use tokio::process::Command;

use super::rollout::{self, Ended, Watched};
use crate::{
    cli::{ActArgs, Rollback},
    compose,
    engine::Engine,
    failure::{Exit, Failure, Outcome},
    session::Session,
};

/// What is to be deployed.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Compose files.
    pub files: Vec<PathBuf>,
    /// Name of the stack.
    pub stack: String,
    /// What is rolled back.
    pub rollback: Rollback,
    /// As docker's own.
    pub prune: bool,
    /// As docker's own.
    pub with_registry_auth: bool,
    /// As docker's own.
    pub resolve_image: Option<String>,
}

/// A service of the stack as it was before.
struct Before {
    spec: Value,
    version: u64,
    ran: bool,
}

/// Deploys, and stays until it has ended.
pub async fn deploy(session: &Session, wanted: &Wanted, args: &ActArgs) -> Outcome<Exit> {
    look_over(session, wanted)?;
    let engine = session.engine().await?;
    let before = stack(engine, &wanted.stack).await?;
    if args.dry_run {
        session.print(&format!("would: docker stack deploy {}\n", wanted.stack))?;
        return Ok(Exit::Done);
    }
    hand_over(session, wanted).await?;
    if args.no_wait {
        return Ok(Exit::Done);
    }
    let after = services_of(engine, &wanted.stack).await?;
    let mut changed = Vec::new();
    for service in &after {
        let watched = Watched::of(service);
        if before.get(&watched.name).is_none_or(|before| before.version < watched.version) {
            changed.push(watched);
        }
    }
    let mut failed = Vec::new();
    let mut undone = Vec::new();
    let mut late = Vec::new();
    for watched in &changed {
        match rollout::until_over(session, engine, watched, args.timeout).await? {
            Ended::Done => {}
            Ended::RolledBack(why) => undone.push((watched.name.clone(), why)),
            Ended::Failed(why) => failed.push((watched.name.clone(), why)),
            Ended::TooLate => late.push(watched.name.clone()),
        }
    }
    for (name, why) in failed.iter().chain(&undone) {
        session.note(&format!("{name} failed: {why}"));
    }
    let back: Vec<&str> = match wanted.rollback {
        Rollback::Never => Vec::new(),
        Rollback::Service => failed.iter().map(|(name, _)| name.as_str()).collect(),
        Rollback::Stack if failed.is_empty() && undone.is_empty() => Vec::new(),
        Rollback::Stack => changed.iter().map(|watched| watched.name.as_str()).collect(),
    };
    let mut stays = Vec::new();
    for name in back {
        match before.get(name) {
            Some(earlier) if earlier.ran => {
                rollout::take_back(session, engine, name, &earlier.spec, args.timeout).await?;
                undone.push((name.into(), "rolled back".into()));
            }
            Some(_) => stays.push(format!("{name} (its earlier spec never ran either)")),
            None => stays.push(format!("{name} (its first deployment)")),
        }
    }
    let value = json!({
        "stack": wanted.stack,
        "changed": changed.iter().map(|watched| &watched.name).collect::<Vec<_>>(),
        "failed": failed.iter().map(|(name, why)| json!({"service": name, "why": why})).collect::<Vec<_>>(),
        "rolled_back": undone.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        "not_over": late,
    });
    session.answer("Result", value, &wanted.stack, || {
        let mut text = format!(
            "{}: {} of {} services run as the file says\n",
            wanted.stack,
            changed.len().saturating_sub(failed.len() + undone.len() + late.len()),
            changed.len()
        );
        for (name, _) in &undone {
            text += &format!("{name} has its spec from before\n");
        }
        for name in &stays {
            text += &format!("{name} has nothing to go back to and stays as it is\n");
        }
        text
    })?;
    Ok(match () {
        () if !undone.is_empty() => Exit::Undone,
        () if !failed.is_empty() => Exit::Failed,
        () if !late.is_empty() => {
            session.note(&format!(
                "not over after {}s, going on: {}",
                args.timeout.as_secs(),
                late.join(", ")
            ));
            Exit::TimedOut
        }
        () => Exit::Done,
    })
}

fn look_over(session: &Session, wanted: &Wanted) -> Outcome {
    let mut wrong = Vec::new();
    for file in &wanted.files {
        for lint in compose::lint(&compose::read(file)?) {
            let line = format!("{}: {}: {}", file.display(), lint.service, lint.text);
            if lint.wrong { wrong.push(line) } else { session.note(&format!("warning: {line}")) }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failure::usage(wrong.join("\n       "))
        .hint("nothing was deployed; docs/labels.md lists what is allowed")
        .code("labels"))
}

async fn services_of(engine: &Engine, stack: &str) -> Outcome<Vec<Value>> {
    engine.list("/services", &json!({"label": [format!("com.docker.stack.namespace={stack}")]})).await
}

async fn stack(engine: &Engine, name: &str) -> Outcome<BTreeMap<String, Before>> {
    let mut found = BTreeMap::new();
    for service in services_of(engine, name).await? {
        let watched = Watched::of(&service);
        let tasks = engine.list("/tasks", &json!({"service": [watched.id]})).await?;
        let ran = tasks.iter().any(|task| {
            matches!(task["Status"]["State"].as_str(), Some("running" | "shutdown" | "complete"))
        });
        found.insert(watched.name, Before { spec: service["Spec"].clone(), version: watched.version, ran });
    }
    Ok(found)
}

/// Runs docker's own command against the same engine.
async fn hand_over(session: &Session, wanted: &Wanted) -> Outcome {
    let mut command = Command::new("docker");
    if let Some(host) = &session.global.host {
        command.args(["--host", host]);
    }
    if let Some(context) = &session.global.context {
        command.args(["--context", context]);
    }
    command.args(["stack", "deploy"]);
    for file in &wanted.files {
        command.args([OsString::from("--compose-file"), file.into()]);
    }
    if wanted.prune {
        command.arg("--prune");
    }
    if wanted.with_registry_auth {
        command.arg("--with-registry-auth");
    }
    if let Some(when) = &wanted.resolve_image {
        command.args(["--resolve-image", when]);
    }
    command.arg(&wanted.stack);
    // Its words go beside the answer, which programs read.
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let output = command.spawn().map_err(|error| {
        Failure::failed(format!("docker cannot be started: {error}"))
            .hint("install docker's command line, which reads compose files")
    })?;
    let ended =
        output.wait_with_output().await.map_err(|error| Failure::failed(format!("docker: {error}")))?;
    session.note(String::from_utf8_lossy(&ended.stdout).trim_end());
    if ended.status.success() {
        return Ok(());
    }
    Err(Failure::failed(format!("docker stack deploy {} ended with {}", wanted.stack, ended.status))
        .hint("what docker says stands above; parts may have been deployed"))
}
