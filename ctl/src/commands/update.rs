//! `update` and `rollback`: one service after the other, each waited for.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use swarmguard_runtime::clock;

use super::{
    act::{Wanted, act},
    known_service,
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
    // Names first: they are wrong more often, and asking a registry takes its time.
    for name in names {
        labels::service(engine, name).await?;
    }
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

/// Gives services the spec from before the operator's last change. The coordinator knows it, also where moves of its own
/// came in between; without one, what Swarm itself remembers is restored.
pub async fn rollback(session: &Session, names: &[String], args: &ActArgs) -> Outcome<Exit> {
    let coordinator = match session.coordinator().await {
        Ok(coordinator) => coordinator,
        Err(failure) if failure.exit == Exit::Unreachable && session.global.coordinator.is_empty() => {
            session.note(&format!("{failure}; going back to what Swarm itself remembers"));
            return rollback_by_engine(session, names, args).await;
        }
        Err(failure) => return Err(failure),
    };
    let overview = session.overview().await?;
    let (names, others) = parted(session, names).await?;
    if !others.is_empty() {
        let exit = rollback_by_engine(session, &others, args).await?;
        if exit != Exit::Done || names.is_empty() {
            return Ok(exit);
        }
    }
    for name in &names {
        let service = known_service(&overview, name)?;
        let answer = coordinator.command("rollback?dry_run=true", &json!({"service": service})).await?;
        session.note(&format!("would: {}", answer["text"].as_str().unwrap_or_default()));
    }
    if args.dry_run {
        return Ok(Exit::Done);
    }
    session.confirm(&format!("Roll back {}?", names.join(", ")), args.yes)?;
    for name in &names {
        let exit = act(session, Wanted::Rollback { service: name.clone() }, args).await?;
        if exit != Exit::Done {
            return Ok(exit);
        }
        // By address there is no engine to look at: the coordinator has said that it is done.
        if args.no_wait || !session.global.coordinator.is_empty() {
            continue;
        }
        let engine = session.engine().await?;
        let watched = Watched::of(&labels::service(engine, name).await?);
        match rollout::until_over(session, engine, &watched, args.timeout).await? {
            Ended::Done => {}
            Ended::TooLate => return Ok(too_late(session, name, args.timeout)),
            Ended::Failed(why) | Ended::RolledBack(why) => {
                return Err(Failure::failed(format!("{name} does not run with its spec from before: {why}"))
                    .hint(format!("docker service ps {name} --no-trunc")));
            }
        }
    }
    Ok(Exit::Done)
}

/// Replicated services, and the others: the coordinator never touches those, so Swarm's own memory of them is right.
async fn parted(session: &Session, names: &[String]) -> Outcome<(Vec<String>, Vec<String>)> {
    if !session.global.coordinator.is_empty() {
        return Ok((names.to_vec(), Vec::new()));
    }
    let engine = session.engine().await?;
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    for name in names {
        let mode = &labels::service(engine, name).await?["Spec"]["Mode"];
        if mode.get("Replicated").is_some() { ours.push(name.clone()) } else { others.push(name.clone()) }
    }
    Ok((ours, others))
}

async fn rollback_by_engine(session: &Session, names: &[String], args: &ActArgs) -> Outcome<Exit> {
    let engine = session.engine().await?;
    let mut wanted = Vec::new();
    for name in names {
        let service = at_rest(session, engine, name, args.timeout).await?;
        let earlier = service["PreviousSpec"].clone();
        if earlier.is_null() || earlier == service["Spec"] {
            return Err(Failure::new(Exit::Refused, format!("Swarm remembers no other spec of {name}"))
                .code("no_previous_spec")
                .hint("with a coordinator running, what it keeps is used: swarmguard check"));
        }
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
