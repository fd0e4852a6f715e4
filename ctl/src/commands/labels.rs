//! `enable` and `disable`: labels of a service, written into its raw spec. Refused while an update is under way, because
//! every write restarts Swarm's updater, which may then stop a replica before its successor serves.

use http::Method;
use serde_json::{Map, Value, json};
use swarmguard_common::labels::ServicePolicy;

use super::unknown;
use crate::{
    engine::Engine,
    failure::{Exit, Failure, Outcome},
    session::Session,
};

/// What `enable` sets.
#[derive(Clone, Debug, Default)]
pub struct Enable {
    /// `swarmguard.scale.min`.
    pub min: Option<u32>,
    /// `swarmguard.scale.max`.
    pub max: Option<u32>,
    /// `swarmguard.migrate=surge`.
    pub surge: bool,
    /// `swarmguard.observe=true`.
    pub observe: bool,
}

/// A service by name or ID, raw.
///
/// # Errors
/// When there is none; with what may have been meant.
pub async fn service(engine: &Engine, wanted: &str) -> Outcome<Value> {
    let all = engine.list("/services", &json!({})).await?;
    let name = |service: &Value| service["Spec"]["Name"].as_str().unwrap_or_default().to_owned();
    match all.iter().find(|service| name(service) == wanted || service["ID"] == *wanted) {
        Some(service) => Ok(service.clone()),
        None => {
            let names: Vec<String> = all.iter().map(name).collect();
            Err(unknown("service", wanted, names.iter().map(String::as_str)))
        }
    }
}

/// Whether a write would restart Swarm's updater, or cut into an action.
///
/// # Errors
/// Says which of them.
pub async fn must_be_at_rest(engine: &Engine, service: &Value) -> Outcome {
    let name = service["Spec"]["Name"].as_str().unwrap_or_default();
    let id = service["ID"].as_str().unwrap_or_default();
    let refuse = |what: String, hint: &str| Err(Failure::new(Exit::Refused, what).code("rollout").hint(hint));
    if let Some(state @ ("updating" | "rollback_started")) = service["UpdateStatus"]["State"].as_str() {
        return refuse(
            format!(
                "{name} is in an update ({state}): a change now would restart it, and may stop replicas too early"
            ),
            "wait until it has ended: docker service ps, or swarmguard services",
        );
    }
    let record = format!("swarmguard-act-{id}");
    let records = engine.list("/configs", &json!({"name": [record]})).await?;
    let running = records.iter().any(|record| {
        let labels = record["Spec"]["Labels"].as_object();
        labels.is_some_and(|labels| labels.values().all(|state| state != "over"))
    });
    if running {
        return refuse(
            format!("SwarmGuard is moving or scaling {name}"),
            "wait until that has ended, or take it back: swarmguard cancel",
        );
    }
    Ok(())
}

/// Sets the labels.
pub async fn enable(session: &Session, wanted: &str, what: &Enable, dry_run: bool) -> Outcome<Exit> {
    let mut set = vec![("swarmguard.enable", "true".to_owned())];
    set.extend(what.min.map(|min| ("swarmguard.scale.min", min.to_string())));
    set.extend(what.max.map(|max| ("swarmguard.scale.max", max.to_string())));
    if what.surge {
        set.push(("swarmguard.migrate", "surge".into()));
    }
    if what.observe {
        set.push(("swarmguard.observe", "true".into()));
    }
    change(session, wanted, dry_run, |labels| {
        labels.extend(set.iter().map(|(key, value)| ((*key).to_owned(), Value::from(value.as_str()))));
    })
    .await
}

/// Takes protection away; the other labels stay, so that it can be had again as it was.
pub async fn disable(session: &Session, wanted: &str, dry_run: bool) -> Outcome<Exit> {
    change(session, wanted, dry_run, |labels| {
        labels.remove("swarmguard.enable");
    })
    .await
}

async fn change(
    session: &Session,
    wanted: &str,
    dry_run: bool,
    edit: impl FnOnce(&mut Map<String, Value>),
) -> Outcome<Exit> {
    let engine = session.engine().await?;
    let service = service(engine, wanted).await?;
    let name = service["Spec"]["Name"].as_str().unwrap_or_default();
    let before = service["Spec"]["Labels"].as_object().cloned().unwrap_or_default();
    let mut labels = before.clone();
    edit(&mut labels);
    if before.contains_key("swarmguard.role") {
        return Err(Failure::new(
            Exit::Refused,
            format!("{name} is a part of SwarmGuard, which never touches itself"),
        )
        .code("own_service"));
    }
    let pairs = labels.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)));
    if let Err(errors) = ServicePolicy::from_labels(pairs) {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        return Err(Failure::usage(format!("{name}: {}", errors.join("; ")))
            .hint("docs/labels.md lists what is allowed"));
    }
    let changed = differences(&before, &labels);
    if changed.is_empty() {
        session.note(&format!("{name}: nothing to change"));
        return Ok(Exit::Done);
    }
    let value = json!({"service": name, "changed": changed, "dry_run": dry_run});
    if !dry_run {
        must_be_at_rest(engine, &service).await?;
        let mut spec = service["Spec"].clone();
        spec["Labels"] = Value::Object(labels);
        write(engine, &service, &spec).await?;
    }
    session.answer("Result", value, name, || {
        let word = if dry_run { "would change " } else { "" };
        format!("{word}{name}: {}\n", changed.join(", "))
    })?;
    if before.get("swarmguard.enable").is_none() && spec_has_no_healthcheck(&service) && !dry_run {
        session.note(&format!(
            "{name} has no healthcheck in its spec: unless its image brings one, it will not be moved (swarmguard explain {name})"
        ));
    }
    Ok(Exit::Done)
}

fn spec_has_no_healthcheck(service: &Value) -> bool {
    service["Spec"]["TaskTemplate"]["ContainerSpec"]["Healthcheck"].is_null()
}

/// Writes a whole spec, guarded by the version that was read.
///
/// # Errors
/// When somebody else was first, or the engine refuses.
pub async fn write(engine: &Engine, service: &Value, spec: &Value) -> Outcome {
    let mut spec = spec.clone();
    // A leader of 18.03 to 29.6 panics where it is null.
    if spec["TaskTemplate"]["Placement"].is_null() {
        spec["TaskTemplate"]["Placement"] = json!({});
    }
    let (id, version) = (service["ID"].as_str().unwrap_or_default(), &service["Version"]["Index"]);
    let path = format!("/services/{id}/update?version={version}&registryAuthFrom=spec");
    engine.call(Method::POST, &path, Some(&spec)).await.map(drop)
}

fn differences(before: &Map<String, Value>, after: &Map<String, Value>) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found: Vec<String> = after
        .iter()
        .filter(|(key, value)| before.get(*key) != Some(value))
        .map(|(key, value)| format!("{key}={}", text(value)))
        .collect();
    found.extend(before.keys().filter(|key| !after.contains_key(*key)).map(|key| format!("{key} removed")));
    found
}
