//! `uninstall`: takes back what is under way, removes everything, and lists what would be left.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use swarmguard_common::{api::Overview, labels::PREFIX};
use swarmguard_runtime::clock;

use super::{install::STACK, labels};
use crate::{
    engine::Engine,
    failure::{Exit, Failure, Outcome},
    session::Session,
    stack::NAMESPACE,
};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Longest that tasks may take to go.
const GOING: Duration = Duration::from_secs(90);
/// Configs and secrets of ours begin so.
const OURS: &str = "swarmguard-";
/// Removes the volume on every manager.
const SWEEP: &str = "swarmguard_sweep";
/// The coordinators' journal.
const VOLUME: &str = "swarmguard_state";

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The journal's volumes stay.
    pub keep_journal: bool,
    /// Labels of services go, too.
    pub remove_labels: bool,
    /// Also where the coordinators do not answer.
    pub force: bool,
    /// Longest wait for an action to end.
    pub timeout: Duration,
    /// Ask nothing.
    pub yes: bool,
    /// Say what would be done.
    pub dry_run: bool,
}

/// Uninstalls.
pub async fn uninstall(session: &Session, wanted: &Wanted) -> Outcome<Exit> {
    let engine = session.engine().await?;
    let there = left(engine, wanted).await?;
    if there.is_empty() {
        session
            .answer("Result", json!({"left": []}), "nothing", || "nothing of SwarmGuard is here\n".into())?;
        return Ok(Exit::Done);
    }
    if wanted.dry_run {
        session.answer("Plan", json!({"would_remove": there}), "plan", || {
            format!("would remove:\n  {}\n", there.join("\n  "))
        })?;
        return Ok(Exit::Done);
    }
    session.confirm(
        &format!("Remove SwarmGuard ({} objects)? Services keep running.", there.len()),
        wanted.yes,
    )?;
    calm(session, wanted.force, wanted.timeout).await?;
    let image = coordinator_image(engine).await?;
    for service in services(engine).await? {
        remove(engine, &format!("/services/{service}")).await?;
    }
    no_tasks(engine).await?;
    if !wanted.keep_journal
        && let Some(image) = image
    {
        sweep(session, engine, &image).await?;
    }
    for kind in ["configs", "secrets"] {
        for (id, _) in named(engine, kind).await? {
            remove(engine, &format!("/{kind}/{id}")).await?;
        }
    }
    if wanted.remove_labels {
        unlabel(session, engine).await?;
    }
    let left = left(engine, wanted).await?;
    session.answer("Result", json!({"removed": there.len(), "left": left}), "uninstalled", || {
        if left.is_empty() {
            "nothing of SwarmGuard is left: services, tasks, configs, secrets, volumes\n".into()
        } else {
            format!("still there:\n  {}\n", left.join("\n  "))
        }
    })?;
    Ok(if left.is_empty() { Exit::Done } else { Exit::Failed })
}

/// Nothing new begins, and what is under way is taken back or ends.
///
/// # Errors
/// When an action does not end, or nobody is there to end it.
pub async fn calm(session: &Session, force: bool, longest: Duration) -> Outcome {
    let reached = async {
        let coordinator = session.coordinator().await?;
        coordinator.command("pause", &json!({})).await?;
        Ok::<_, Failure>(coordinator)
    };
    let coordinator = match reached.await {
        Ok(coordinator) => coordinator,
        Err(failure) if force => {
            session.note(&format!("{failure}; going on (--force)"));
            return Ok(());
        }
        Err(failure) if under_way(session.engine().await?).await?.is_empty() => {
            session.note(&format!("{failure}; nothing is under way, going on"));
            return Ok(());
        }
        Err(failure) => {
            return Err(failure.context("an action is under way and no coordinator ends it").hint(
                "bring a coordinator back, or --force: then look at node availability and constraints yourself",
            ));
        }
    };
    let begun = clock::now();
    let mut told: Vec<String> = Vec::new();
    loop {
        let overview: Overview = coordinator.get("/api/v1/overview").await?;
        if overview.actions.is_empty() && under_way(session.engine().await?).await?.is_empty() {
            return Ok(());
        }
        for action in &overview.actions {
            if told.contains(&action.action) {
                continue;
            }
            let what = action.service.as_deref().or(action.source.as_deref()).unwrap_or_default();
            match coordinator.command("cancel", &json!({"action": action.action})).await {
                Ok(_) => session.note(&format!("{} {what} is taken back", action.kind)),
                Err(failure) => {
                    session.note(&format!("{} {what}: {failure}; waiting for its end", action.kind));
                }
            }
            told.push(action.action.clone());
        }
        if clock::now() - begun >= longest {
            return Err(Failure::new(Exit::TimedOut, "an action does not end; nothing was removed")
                .hint("swarmguard actions says what it waits for; automation is paused: swarmguard resume"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Records of actions that are not over.
async fn under_way(engine: &Engine) -> Outcome<Vec<String>> {
    let records = engine.list("/configs", &json!({"name": ["swarmguard-act-", "swarmguard-node-"]})).await?;
    let running = records.iter().filter(|record| {
        let labels = record["Spec"]["Labels"].as_object();
        labels.is_some_and(|labels| labels.values().all(|state| state != "over"))
    });
    Ok(running.filter_map(|record| Some(record["Spec"]["Name"].as_str()?.to_owned())).collect())
}

async fn coordinator_image(engine: &Engine) -> Outcome<Option<String>> {
    let found = engine.list("/services", &json!({"label": ["swarmguard.role=coordinator"]})).await?;
    let image =
        found.first().and_then(|service| service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].as_str());
    Ok(image.map(ToOwned::to_owned))
}

async fn services(engine: &Engine) -> Outcome<Vec<String>> {
    let mut found = engine.list("/services", &json!({"label": ["swarmguard.role"]})).await?;
    found.extend(engine.list("/services", &json!({"label": [format!("{NAMESPACE}={STACK}")]})).await?);
    let mut ids: Vec<String> =
        found.iter().filter_map(|service| Some(service["ID"].as_str()?.to_owned())).collect();
    ids.sort();
    ids.dedup();
    Ok(ids)
}

async fn named(engine: &Engine, kind: &str) -> Outcome<Vec<(String, String)>> {
    let found = engine.list(&format!("/{kind}"), &json!({"name": [OURS]})).await?;
    let of = |object: &Value| {
        let name = object["Spec"]["Name"].as_str().filter(|name| name.starts_with(OURS))?;
        Some((object["ID"].as_str()?.to_owned(), name.to_owned()))
    };
    Ok(found.iter().filter_map(of).collect())
}

/// One that is gone already is removed; one that is still in use is tried again.
async fn remove(engine: &Engine, path: &str) -> Outcome {
    let begun = clock::now();
    loop {
        let answer = engine.raw(Method::DELETE, path, None).await?;
        if answer.status.is_success() || answer.status == StatusCode::NOT_FOUND {
            return Ok(());
        }
        if clock::now() - begun >= GOING {
            let words = String::from_utf8_lossy(&answer.body).trim().to_owned();
            return Err(Failure::failed(format!("{path} cannot be removed: {words}"))
                .hint("run swarmguard uninstall again"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn tasks(engine: &Engine) -> Outcome<usize> {
    let label = json!({"label": [format!("{NAMESPACE}={STACK}")]});
    let running = |tasks: &[Value]| tasks.iter().filter(|task| task["Status"]["State"] == "running").count();
    Ok(running(&engine.list("/tasks", &label).await?))
}

async fn no_tasks(engine: &Engine) -> Outcome {
    let begun = clock::now();
    while tasks(engine).await? > 0 {
        if clock::now() - begun >= GOING {
            return Err(Failure::failed("tasks of SwarmGuard still run")
                .hint("docker ps on their nodes; run swarmguard uninstall again"));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Volumes belong to nodes, not to the swarm: a short job on every manager removes them.
async fn sweep(session: &Session, engine: &Engine, image: &str) -> Outcome {
    let spec = json!({
        "Name": SWEEP,
        "Labels": {NAMESPACE: STACK},
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": image,
                "Labels": {NAMESPACE: STACK},
                "Command": ["/swarmguard-coordinator", "remove-volume", VOLUME],
                "Mounts": [{"Type": "bind", "Source": "/var/run/docker.sock", "Target": "/var/run/docker.sock"}],
            },
            "RestartPolicy": {"Condition": "on-failure", "Delay": 1_000_000_000_u64, "MaxAttempts": 5},
            "Placement": {"Constraints": ["node.role == manager", "node.platform.os == linux"]},
        },
        "Mode": {"GlobalJob": {}},
    });
    let made = engine.call(Method::POST, "/services/create", Some(&spec)).await?;
    let id = made["ID"].as_str().or_else(|| made["Id"].as_str()).unwrap_or_default().to_owned();
    let begun = clock::now();
    loop {
        let tasks = engine.list("/tasks", &json!({"service": [id]})).await?;
        let complete = tasks.iter().filter(|task| task["Status"]["State"] == "complete").count();
        let wanted: Vec<&Value> = tasks.iter().filter(|task| task["DesiredState"] == "complete").collect();
        if !tasks.is_empty() && complete >= wanted.len().max(1) {
            break;
        }
        if clock::now() - begun >= GOING {
            let error =
                tasks.iter().find_map(|task| task["Status"]["Err"].as_str()).unwrap_or("no error is told");
            session.note(&format!("warning: volume {VOLUME} was not removed on every manager: {error}; docker volume rm {VOLUME} there"));
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    remove(engine, &format!("/services/{id}")).await
}

/// Takes our labels off all services. One that is in an update is told and left.
async fn unlabel(session: &Session, engine: &Engine) -> Outcome {
    for service in engine.list("/services", &json!({})).await? {
        let Some(before) = service["Spec"]["Labels"].as_object() else { continue };
        if !before.keys().any(|key| key.starts_with(PREFIX)) {
            continue;
        }
        let mut spec = service["Spec"].clone();
        if let Some(labels) = spec["Labels"].as_object_mut() {
            labels.retain(|key, _| !key.starts_with(PREFIX));
        }
        let name = service["Spec"]["Name"].as_str().unwrap_or_default();
        match labels::must_be_at_rest(engine, &service).await {
            Ok(()) => labels::write(engine, &service, &spec).await?,
            Err(failure) => session.note(&format!("{name} keeps its labels: {failure}")),
        }
    }
    Ok(())
}

/// Everything of ours that the engine lists.
async fn left(engine: &Engine, wanted: &Wanted) -> Outcome<Vec<String>> {
    let mut left: Vec<String> =
        services(engine).await?.into_iter().map(|id| format!("service {id}")).collect();
    for kind in ["configs", "secrets"] {
        left.extend(
            named(engine, kind)
                .await?
                .into_iter()
                .map(|(_, name)| format!("{} {name}", kind.trim_end_matches('s'))),
        );
    }
    let running = tasks(engine).await?;
    if running > 0 {
        left.push(format!("{running} running tasks"));
    }
    let networks = engine.list("/networks", &json!({"label": [format!("{NAMESPACE}={STACK}")]})).await?;
    left.extend(networks.iter().filter_map(|network| Some(format!("network {}", network["Name"].as_str()?))));
    if !wanted.keep_journal {
        let volumes = engine.get("/volumes").await?;
        let ours =
            volumes["Volumes"].as_array().into_iter().flatten().filter(|volume| volume["Name"] == VOLUME);
        left.extend(ours.map(|_| format!("volume {VOLUME}")));
    }
    if wanted.remove_labels {
        for service in engine.list("/services", &json!({})).await? {
            let labelled = service["Spec"]["Labels"]
                .as_object()
                .is_some_and(|labels| labels.keys().any(|key| key.starts_with(PREFIX)));
            let own = service["Spec"]["Labels"].get("swarmguard.role").is_some();
            if labelled && !own {
                left.push(format!("labels of {}", service["Spec"]["Name"].as_str().unwrap_or_default()));
            }
        }
    }
    Ok(left)
}
