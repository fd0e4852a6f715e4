//! `upgrade`: other images for agents, coordinators and balancers, in that order. What fails gives all of them back.

use http::Method;
use serde_json::{Value, json};

use super::{
    check, labels,
    rollout::{self, Ended, Watched},
    uninstall::calm,
};
use crate::{
    cli::ActArgs,
    engine::Engine,
    failure::{Exit, Failure, Outcome},
    session::Session,
};

/// Parts in the order in which they are replaced: an older coordinator understands newer agents' silence better than
/// newer agents an older coordinator's words, and balancers go on with the routes they have.
const ORDER: [&str; 3] = ["agent", "coordinator", "balancer"];

/// Images by part.
#[derive(Clone, Debug, Default)]
pub struct Images {
    /// Of the agent.
    pub agent: Option<String>,
    /// Of the coordinator.
    pub coordinator: Option<String>,
    /// Of the balancer.
    pub balancer: Option<String>,
}

impl Images {
    fn of(&self, part: &str) -> Option<&String> {
        match part {
            "agent" => self.agent.as_ref(),
            "coordinator" => self.coordinator.as_ref(),
            _ => self.balancer.as_ref(),
        }
    }
}

struct Replaced {
    name: String,
    before: Value,
}

/// Upgrades.
pub async fn upgrade(session: &Session, images: &Images, args: &ActArgs) -> Outcome<Exit> {
    let engine = session.engine().await?;
    let mut wanted = Vec::new();
    for part in ORDER {
        let Some(image) = images.of(part) else { continue };
        let found = engine.list("/services", &json!({"label": [format!("swarmguard.role={part}")]})).await?;
        if found.is_empty() {
            return Err(Failure::usage(format!("there is no {part} to upgrade")).hint("swarmguard install"));
        }
        for service in found {
            let was = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].as_str().unwrap_or_default();
            if was != image {
                wanted.push((
                    service["Spec"]["Name"].as_str().unwrap_or_default().to_owned(),
                    image.clone(),
                    was.to_owned(),
                ));
            }
        }
    }
    if wanted.is_empty() {
        session.note("nothing to upgrade: all parts have these images (or none was named)");
        return Ok(Exit::Done);
    }
    if args.dry_run {
        for (name, image, was) in &wanted {
            session.print(&format!("would: {name} from {was} to {image}\n"))?;
        }
        return Ok(Exit::Done);
    }
    let parts: Vec<&str> = wanted.iter().map(|(name, ..)| name.as_str()).collect();
    session.confirm(&format!("Upgrade {}?", parts.join(", ")), args.yes)?;
    let was_paused = session.overview().await.is_ok_and(|overview| overview.coordination.paused);
    calm(session, false, args.timeout).await?;
    let mut replaced = Vec::new();
    let ended = replace(session, engine, &wanted, args, &mut replaced).await;
    // The coordinator that we spoke to may be gone: a new way to it.
    let anew = Session::new(session.global.clone(), session.env.clone());
    if !matches!(ended, Ok(None)) {
        for part in replaced.iter().rev() {
            rollout::take_back(session, engine, &part.name, &part.before, args.timeout).await?;
            session.note(&format!("{} has its image from before", part.name));
        }
    }
    if !was_paused {
        resume(&anew).await?;
    }
    match ended? {
        None => {
            let wanted = check::Wanted { wait: Some(args.timeout), ..check::Wanted::default() };
            check::check(&anew, &wanted).await
        }
        Some(why) => {
            session.note(&format!("the upgrade failed, everything is as before: {why}"));
            Ok(Exit::Undone)
        }
    }
}

/// Replaces all; what failed, if anything did.
async fn replace(
    session: &Session,
    engine: &Engine,
    wanted: &[(String, String, String)],
    args: &ActArgs,
    replaced: &mut Vec<Replaced>,
) -> Outcome<Option<String>> {
    for (name, image, _) in wanted {
        let service = labels::service(engine, name).await?;
        let mut spec = service["Spec"].clone();
        spec["TaskTemplate"]["ContainerSpec"]["Image"] = image.as_str().into();
        replaced.push(Replaced { name: name.clone(), before: service["Spec"].clone() });
        labels::write(engine, &service, &spec).await?;
        let watched = Watched::of(&labels::service(engine, name).await?);
        match rollout::until_over(session, engine, &watched, args.timeout).await? {
            Ended::Done => session.note(&format!("{name} runs {image}")),
            Ended::Failed(why) | Ended::RolledBack(why) => return Ok(Some(format!("{name}: {why}"))),
            Ended::TooLate => return Ok(Some(format!("{name}: not over after {}s", args.timeout.as_secs()))),
        }
    }
    Ok(None)
}

/// A coordinator that was just started takes commands a moment later.
async fn resume(session: &Session) -> Outcome {
    let mut last = Failure::failed("");
    for _ in 0..60 {
        match session.coordinator().await {
            Ok(coordinator) => match coordinator.command("resume", &json!({})).await {
                Ok(_) => return Ok(()),
                Err(failure) => last = failure,
            },
            Err(failure) => last = failure,
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    Err(last.context("automation is still paused").hint("swarmguard resume"))
}

/// New token: a new secret under the same file name, so that nothing else changes.
pub async fn rotate(session: &Session, which: &str, args: &ActArgs) -> Outcome<Exit> {
    let engine = session.engine().await?;
    let file = format!("swarmguard-{which}-token");
    let secrets = engine.list("/secrets", &json!({"name": [file]})).await?;
    let name = |secret: &Value| secret["Spec"]["Name"].as_str().unwrap_or_default().to_owned();
    let number = secrets
        .iter()
        .filter_map(|secret| {
            if name(secret) == file {
                Some(1)
            } else {
                name(secret).strip_prefix(&format!("{file}-"))?.parse::<u32>().ok()
            }
        })
        .max();
    let Some(number) = number else {
        return Err(Failure::usage(format!("there is no secret {file}")).hint("swarmguard install makes it"));
    };
    if args.dry_run {
        session.print(&format!("would: replace {file} and restart the services that use it\n"))?;
        return Ok(Exit::Done);
    }
    session.confirm(&format!("Replace {file}? The old token is worth nothing then."), args.yes)?;
    let token = super::install::random()?;
    let made = super::install::secret(engine, &format!("{file}-{}", number + 1), &token).await?;
    let uses = |secret: &Value| secret["File"]["Name"] == *file;
    for service in engine.list("/services", &json!({"label": ["swarmguard.role"]})).await? {
        let mut spec = service["Spec"].clone();
        let Some(list) = spec["TaskTemplate"]["ContainerSpec"]["Secrets"].as_array_mut() else { continue };
        if !list.iter().any(uses) {
            continue;
        }
        for secret in list.iter_mut().filter(|secret| uses(secret)) {
            secret["SecretID"] = made.as_str().into();
            secret["SecretName"] = format!("{file}-{}", number + 1).into();
        }
        labels::write(engine, &service, &spec).await?;
        let of = service["Spec"]["Name"].as_str().unwrap_or_default();
        let watched = Watched::of(&labels::service(engine, of).await?);
        if let Ended::Failed(why) | Ended::RolledBack(why) =
            rollout::until_over(session, engine, &watched, args.timeout).await?
        {
            return Err(Failure::failed(format!("{of} does not run with the new token: {why}")));
        }
    }
    for secret in &secrets {
        let path = format!("/secrets/{}", secret["ID"].as_str().unwrap_or_default());
        if !engine.raw(Method::DELETE, &path, None).await?.status.is_success() {
            session.note(&format!("warning: {} is still in use and stays", name(secret)));
        }
    }
    let token = String::from_utf8_lossy(&token).into_owned();
    session.answer("Token", json!({"token": token}), &token, || format!("{token}\n"))?;
    Ok(Exit::Done)
}
