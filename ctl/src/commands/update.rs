//! `update` and `rollback`: one service after the other, each waited for.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde_json::{Value, json};
use swarmguard_runtime::clock;

use super::{
    labels::{self, must_be_at_rest},
    rollout::{self, Ended, Watched},
};
use crate::{
    cli::ActArgs,
    engine::Engine,
    failure::{Exit, Failure, Outcome},
    session::Session,
};

/// Between two looks whether an action has ended.
const LOOK: Duration = Duration::from_secs(1);

/// Sets an image; on failure every service that was changed gets its spec from before.
pub async fn update(session: &Session, names: &[String], image: &str, args: &ActArgs) -> Outcome<Exit> {
    let engine = session.engine().await?;
    let pinned = pinned(session, engine, image).await?;
    for name in names {
        let service = at_rest(session, engine, name, args.timeout).await?;
        let before = service["Spec"].clone();
        let was = before["TaskTemplate"]["ContainerSpec"]["Image"].as_str().unwrap_or_default().to_owned();
        if args.dry_run {
            session.print(&format!("would: {name} from {was} to {pinned}\n"))?;
            continue;
        }
        if was == pinned {
            session.note(&format!("{name} has {pinned} already"));
            continue;
        }
        let mut spec = before.clone();
        spec["TaskTemplate"]["ContainerSpec"]["Image"] = pinned.as_str().into();
        labels::write(engine, &service, &spec).await?;
        if args.no_wait {
            continue;
        }
        let watched = Watched::of(&labels::service(engine, name).await?);
        match rollout::until_over(session, engine, &watched, args.timeout).await? {
            Ended::Done => {
                session.answer(
                    "Result",
                    json!({"service": name, "image": pinned, "outcome": "done"}),
                    name,
                    || format!("{name}: {was} -> {pinned}\n"),
                )?;
            }
            Ended::TooLate => return Ok(too_late(session, name, args.timeout)),
            Ended::RolledBack(why) => return undone(session, name, &why, "Swarm rolled it back"),
            Ended::Failed(why) => {
                rollout::take_back(session, engine, name, &before, args.timeout).await?;
                return undone(session, name, &why, "it has its spec from before again");
            }
        }
    }
    Ok(Exit::Done)
}

fn too_late(session: &Session, name: &str, longest: Duration) -> Exit {
    session.note(&format!(
        "{name}: not over after {}s, it goes on; take it back: swarmguard rollback {name}",
        longest.as_secs()
    ));
    Exit::TimedOut
}

fn undone(session: &Session, name: &str, why: &str, what: &str) -> Outcome<Exit> {
    session.note(&format!("{name} failed: {why}"));
    let value = json!({"service": name, "outcome": "rolled_back", "why": why});
    session.answer("Result", value, name, || format!("{name}: {what}\n"))?;
    Ok(Exit::Undone)
}

/// The service once neither an update nor an action is under way on it.
async fn at_rest(session: &Session, engine: &Engine, name: &str, longest: Duration) -> Outcome<Value> {
    let begun = clock::now();
    let mut told = false;
    loop {
        let service = labels::service(engine, name).await?;
        match must_be_at_rest(engine, &service).await {
            Ok(()) => return Ok(service),
            Err(failure) if clock::now() - begun >= longest => return Err(failure),
            Err(failure) => {
                if !told {
                    session.note(&format!("{}; waiting", failure.what));
                    told = true;
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

/// The image by its digest, so that all nodes run the same; as it is where no registry knows it.
async fn pinned(session: &Session, engine: &Engine, image: &str) -> Outcome<String> {
    if image.is_empty() || image.contains(char::is_whitespace) {
        return Err(Failure::usage(format!("--image: {image:?} names no image")));
    }
    if image.contains('@') || image.starts_with("sha256:") {
        return Ok(image.into());
    }
    let answer = engine.raw(http::Method::GET, &format!("/distribution/{image}/json"), None).await?;
    let found: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    match found["Descriptor"]["digest"].as_str() {
        Some(digest) if answer.status == StatusCode::OK => Ok(format!("{image}@{digest}")),
        _ => {
            session.note(&format!(
                "{image}: no registry was asked for its digest; nodes use what they have or pull"
            ));
            Ok(image.into())
        }
    }
}

/// Gives services the spec from before the operator's last change.
pub async fn rollback(session: &Session, names: &[String], args: &ActArgs) -> Outcome<Exit> {
    let engine = session.engine().await?;
    let mut wanted = Vec::new();
    for name in names {
        let service = at_rest(session, engine, name, args.timeout).await?;
        let earlier = operators_previous(engine, &service).await?;
        wanted.push((name, service, earlier));
    }
    let image =
        |spec: &Value| spec["TaskTemplate"]["ContainerSpec"]["Image"].as_str().unwrap_or_default().to_owned();
    for (name, service, earlier) in &wanted {
        session.note(&format!("{name}: {} -> {}", image(&service["Spec"]), image(earlier)));
    }
    if args.dry_run {
        return Ok(Exit::Done);
    }
    session.confirm(&format!("Roll back {}?", names.join(", ")), args.yes)?;
    for (name, _, earlier) in &wanted {
        match rollout::take_back(session, engine, name, earlier, args.timeout).await? {
            Ended::TooLate => return Ok(too_late(session, name, args.timeout)),
            _ => session.answer("Result", json!({"service": name, "outcome": "done"}), name, || {
                format!("{name} has its spec from before\n")
            })?,
        }
    }
    Ok(Exit::Done)
}

/// Swarm keeps one previous spec, and a move of ours leaves the present one there too. What the operator had before
/// stands in the record of that move.
async fn operators_previous(engine: &Engine, service: &Value) -> Outcome<Value> {
    let name = service["Spec"]["Name"].as_str().unwrap_or_default();
    let id = service["ID"].as_str().unwrap_or_default();
    let none = || {
        Failure::new(Exit::Refused, format!("{name} was never changed: there is no spec from before"))
            .code("no_previous_spec")
    };
    let previous = &service["PreviousSpec"];
    if !previous.is_null() && previous != &service["Spec"] {
        return Ok(previous.clone());
    }
    let records = engine.list("/configs", &json!({"name": [format!("swarmguard-act-{id}")]})).await?;
    let data = records
        .first()
        .and_then(|record| record["Spec"]["Data"].as_str())
        .and_then(|data| STANDARD.decode(data).ok())
        .ok_or_else(none)?;
    let before: Value = serde_json::from_slice(&data).map_err(|_| none())?;
    match &before["previous_spec"] {
        Value::Null => Err(none()),
        spec => Ok(spec.clone()),
    }
}
