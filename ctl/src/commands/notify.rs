//! Who is notified: the channels, a test of one, and setting them up as a Docker secret.

use std::path::Path;

use http::Method;
use serde_json::{Value, json};
use swarmguard_common::api::NotifyChannel;

use crate::{
    cli::ActArgs,
    commands::{labels, rollout},
    failure::{Exit, Failure, Outcome},
    out::{Cell, Column, Listing, Row, Tone},
    session::Session,
};
use rollout::{Ended, Watched};

/// File of the secret in the coordinators' containers.
const FILE: &str = "swarmguard-notify";
/// Variable that names it.
const VARIABLE: &str = "SWARMGUARD_NOTIFY_FILE";

/// The channels of the coordinator that answers.
///
/// # Errors
/// When no coordinator answers.
pub async fn channels(session: &Session) -> Outcome<Listing> {
    let found: Vec<NotifyChannel> = session.coordinator().await?.get("/api/v1/notify").await?;
    let columns = vec![
        Column::text("CHANNEL"),
        Column::text("KIND"),
        Column::figure("WAITING"),
        Column::figure("SENT"),
        Column::figure("FAILED"),
        Column::figure("DROPPED"),
        Column::text("LAST ERROR"),
    ];
    let rows = found.iter().map(|channel| {
        #[expect(clippy::cast_precision_loss, reason = "only for the order")]
        let figure = |count: u64| Cell::figure(count.to_string(), Some(count as f64));
        let tone = if channel.last_error.is_some() { Tone::Bad } else { Tone::Good };
        Row {
            name: channel.name.clone(),
            cells: vec![
                Cell::new(&channel.name),
                Cell::new(&channel.kind),
                figure(channel.waiting),
                figure(channel.sent),
                figure(channel.failed),
                figure(channel.dropped),
                Cell::new(channel.last_error.as_deref().unwrap_or("-")).tone(tone),
            ],
            value: json!(channel),
        }
    });
    Ok(Listing { kind: "NotifyChannelList", columns, rows: rows.collect() })
}

/// Sends a test message and says whether it was taken.
///
/// # Errors
/// When the receiver does not take it.
pub async fn test(session: &Session, channel: &str) -> Outcome<Exit> {
    let answer = session.coordinator().await?.command("notify-test", &json!({"channel": channel})).await?;
    session.answer("NotifyTest", answer, channel, || format!("{channel} took the message\n"))?;
    Ok(Exit::Done)
}

/// Makes a file the coordinators' channels.
///
/// # Errors
/// When it makes no sense, before anything is changed; when the coordinators do not run with it.
pub async fn set(session: &Session, file: &Path, args: &ActArgs) -> Outcome<Exit> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", file.display())))?;
    let coordinator = session.coordinator().await?;
    let checked = coordinator.command("notify-check", &json!({"toml": text})).await?;
    let names: Vec<String> = checked["channels"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|channel| format!("{} ({})", text_of(channel, "name"), text_of(channel, "kind")))
        .collect();
    let all = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
    if args.dry_run {
        session.print(&format!("would: notify {all}, and restart the coordinators one after the other\n"))?;
        return Ok(Exit::Done);
    }
    let question = format!("Notify {all}? The coordinators are restarted one after the other.");
    session.confirm(&question, args.yes)?;
    let engine = session.engine().await?;
    let before = engine.list("/secrets", &json!({"name": [FILE]})).await?;
    let number = before
        .iter()
        .filter_map(|secret| {
            text_of(&secret["Spec"], "Name").strip_prefix(FILE)?.strip_prefix('-')?.parse::<u32>().ok()
        })
        .max()
        .unwrap_or(0)
        + 1;
    let name = format!("{FILE}-{number}");
    let made = super::install::secret(engine, &name, text.as_bytes()).await?;
    let mut told = false;
    for service in engine.list("/services", &json!({"label": ["swarmguard.role=coordinator"]})).await? {
        let spec = with_secret(service["Spec"].clone(), &made, &name);
        labels::write(engine, &service, &spec).await?;
        told = true;
        let of = text_of(&service["Spec"], "Name");
        if args.no_wait {
            continue;
        }
        let watched = Watched::of(&labels::service(engine, of).await?);
        if let Ended::Failed(why) | Ended::RolledBack(why) =
            rollout::until_over(session, engine, &watched, args.timeout).await?
        {
            return Err(Failure::failed(format!("{of} does not run with the new channels: {why}")));
        }
    }
    if !told {
        return Err(Failure::failed("there is no service with the label swarmguard.role=coordinator")
            .hint("a coordinator that runs elsewhere takes --notify-file"));
    }
    for secret in before.iter().filter(|_| !args.no_wait) {
        let path = format!("/secrets/{}", text_of(secret, "ID"));
        if !engine.raw(Method::DELETE, &path, None).await?.status.is_success() {
            session.note(&format!("warning: {} is still in use and stays", text_of(&secret["Spec"], "Name")));
        }
    }
    session.answer("NotifyChannels", checked, &all, || format!("told from now on: {all}\n"))?;
    Ok(Exit::Done)
}

fn text_of<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// A coordinator's spec with the secret in place of an earlier one.
fn with_secret(mut spec: Value, id: &str, name: &str) -> Value {
    let container = &mut spec["TaskTemplate"]["ContainerSpec"];
    let mut secrets = container["Secrets"].as_array().cloned().unwrap_or_default();
    secrets.retain(|secret| secret["File"]["Name"] != FILE);
    secrets.push(json!({"SecretID": id, "SecretName": name,
        "File": {"Name": FILE, "UID": "0", "GID": "0", "Mode": 0o400}}));
    container["Secrets"] = secrets.into();
    let mut env = container["Env"].as_array().cloned().unwrap_or_default();
    env.retain(|line| !line.as_str().is_some_and(|line| line.starts_with(&format!("{VARIABLE}="))));
    env.push(format!("{VARIABLE}=/run/secrets/{FILE}").into());
    container["Env"] = env.into();
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_takes_the_place_of_the_one_before_and_nothing_else_changes() {
        let spec = json!({"Name": "c", "TaskTemplate": {"ContainerSpec": {"Image": "i", "Env": ["A=b"],
            "Secrets": [{"SecretID": "t", "SecretName": "token", "File": {"Name": "token"}}]}}});
        let once = with_secret(spec, "s1", "swarmguard-notify-1");
        let twice = with_secret(once, "s2", "swarmguard-notify-2");
        let container = &twice["TaskTemplate"]["ContainerSpec"];
        assert_eq!(container["Env"], json!(["A=b", "SWARMGUARD_NOTIFY_FILE=/run/secrets/swarmguard-notify"]));
        let names: Vec<&str> = container["Secrets"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|one| text_of(one, "SecretName"))
            .collect();
        assert_eq!(names, ["token", "swarmguard-notify-2"]);
        assert_eq!((&container["Image"], &twice["Name"]), (&json!("i"), &json!("c")));
    }
}
