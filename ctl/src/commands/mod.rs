//! The commands.

pub mod act;
pub mod bundle;
pub mod check;
pub mod deploy;
pub mod events;
pub mod explain;
pub mod init;
pub mod install;
pub mod labels;
pub mod lists;
pub mod manual;
pub mod notify;
pub mod rollout;
pub mod status;
pub mod uninstall;
pub mod update;
pub mod upgrade;

use std::{future::Future, time::Duration};

use serde_json::json;
use swarmguard_common::api::Overview;

use act::Wanted;
use labels::Enable;

use crate::{
    cli::{Command, ListArgs, NotifyCommand, Switch, TokenCommand},
    drill,
    failure::{Exit, Failure, Outcome},
    out::{Format, Listing, document, table::View},
    session::Session,
    top, ui,
};

/// Runs one.
///
/// # Errors
/// With the exit code that the command ends with.
pub async fn run(session: &Session, command: Command) -> Outcome<Exit> {
    match command {
        Command::Status(watch) => status::status(session, watch.watch).await,
        Command::Health { min } => status::health(session, min).await,
        Command::Nodes(list) => show(session, &list, || lists::nodes(session)).await,
        Command::Services(list) => show(session, &list, || lists::services(session)).await,
        Command::Ps { service, list } => {
            show(session, &list, || lists::replicas(session, service.as_deref())).await
        }
        Command::Alerts(list) => show(session, &list, || lists::alerts(session)).await,
        Command::Actions(list) => show(session, &list, || lists::actions(session)).await,
        Command::History { limit, service, list } => {
            show(session, &list, || lists::history(session, limit, service.as_deref())).await
        }
        Command::Lb { service, list } => {
            show(session, &list, || lists::balanced(session, service.as_deref())).await
        }
        Command::Explain { service, since } => explain::explain(session, &service, since).await,
        Command::Events { follow, since, limit, kind, service, node } => {
            events::events(session, events::Wanted { follow, since, limit, kinds: kind, service, node }).await
        }
        Command::Migrate { service, from, to, act: args } => {
            act::act(session, Wanted::Migrate { service, from, to }, &args).await
        }
        Command::Scale { what, node, act: args } => {
            act::act(session, Wanted::Scale { what, node }, &args).await
        }
        Command::Drain { node, act: args } => act::act(session, Wanted::Drain { node }, &args).await,
        Command::Undrain { node, act: args } => act::undrain(session, &node, &args).await,
        Command::Cancel { what, act: args } => act::act(session, Wanted::Cancel { what }, &args).await,
        Command::Pause { service, act: args } => {
            act::act(session, Wanted::Pause { service, on: true }, &args).await
        }
        Command::Resume { service, act: args } => {
            act::act(session, Wanted::Pause { service, on: false }, &args).await
        }
        Command::Observe { state, act: args } => {
            act::act(session, Wanted::Observe { on: state == Switch::On }, &args).await
        }
        Command::Enable { service, min, max, surge, observe, dry_run } => {
            labels::enable(session, &service, &Enable { min, max, surge, observe }, dry_run).await
        }
        Command::Disable { service, dry_run } => labels::disable(session, &service, dry_run).await,
        Command::Update { services, image, act: args } => {
            update::update(session, &services, &image, &args).await
        }
        Command::Rollback { services, act: args } => update::rollback(session, &services, &args).await,
        Command::Deploy {
            compose_file,
            stack,
            rollback,
            prune,
            with_registry_auth,
            resolve_image,
            act: args,
        } => {
            let wanted = deploy::Wanted {
                files: compose_file,
                stack,
                rollback,
                prune,
                with_registry_auth,
                resolve_image,
            };
            deploy::deploy(session, &wanted, &args).await
        }
        Command::Install {
            observe,
            balancer,
            print,
            load,
            ssh_user,
            agent_image,
            coordinator_image,
            balancer_image,
            without_capability,
            force,
            timeout,
            dry_run,
        } => {
            let named = [
                ("SWARMGUARD_AGENT_IMAGE", agent_image),
                ("SWARMGUARD_COORDINATOR_IMAGE", coordinator_image),
                ("SWARMGUARD_BALANCER_IMAGE", balancer_image),
            ];
            let images = named.into_iter().filter_map(|(name, image)| Some((name.into(), image?))).collect();
            let wanted = install::Wanted {
                observe,
                balancer,
                print,
                load,
                ssh_user,
                images,
                without: without_capability,
                timeout,
                force,
                dry_run,
            };
            install::install(session, &wanted).await
        }
        Command::Check { pre, service, short, strict, wait } => {
            check::check(session, &check::Wanted { pre, service, short, strict, wait }).await
        }
        Command::Uninstall { keep_journal, remove_labels, force, act: args } => {
            let (timeout, yes, dry_run) = (args.timeout, args.yes, args.dry_run);
            let wanted = uninstall::Wanted { keep_journal, remove_labels, force, timeout, yes, dry_run };
            uninstall::uninstall(session, &wanted).await
        }
        Command::Upgrade { agent_image, coordinator_image, balancer_image, act: args } => {
            let images = upgrade::Images {
                agent: agent_image,
                coordinator: coordinator_image,
                balancer: balancer_image,
            };
            upgrade::upgrade(session, &images, &args).await
        }
        Command::Init { advertise_addr, network } => {
            init::init(session, advertise_addr.as_deref(), network.as_deref()).await
        }
        Command::Cleanup { keep, volumes, yes, dry_run } => {
            init::cleanup(session, &keep, volumes, yes, dry_run).await
        }
        Command::Token { what: TokenCommand::Rotate { which, act: args } } => {
            upgrade::rotate(session, &which, &args).await
        }
        Command::Notify { what: NotifyCommand::Ls(list) } => {
            show(session, &list, || notify::channels(session)).await
        }
        Command::Notify { what: NotifyCommand::Test { channel } } => notify::test(session, &channel).await,
        Command::Notify { what: NotifyCommand::Set { file, act: args } } => {
            notify::set(session, &file, &args).await
        }
        Command::Bundle { out } => bundle::bundle(session, out).await,
        Command::Drill { what } => drill::drill(session, what).await,
        Command::Top { delay, write } => top::top(session, delay, write).await,
        Command::Ui { port } => ui::ui(session, port).await,
        Command::Completion { shell } => manual::completion(session, shell),
        Command::Man { out } => manual::manual(session, out.as_deref()),
        Command::Version => version(session).await,
    }
}

/// A list, once or again and again.
async fn show<F, L>(session: &Session, list: &ListArgs, fetch: F) -> Outcome<Exit>
where
    F: Fn() -> L,
    L: Future<Output = Outcome<Listing>>,
{
    let view = View {
        format: session.global.output,
        quiet: list.quiet,
        filters: list.filter.clone(),
        sort: list.sort.clone(),
        no_trunc: list.no_trunc,
    };
    let Some(every) = list.watch.watch else {
        session.print(&fetch().await?.render(&view, session.style)?)?;
        return Ok(Exit::Done);
    };
    again(session, every, async || {
        let listing = fetch().await?;
        if session.style.terminal {
            return listing.render(&view, session.style);
        }
        let text = listing.render(&View { format: Format::Json, ..view.clone() }, session.style)?;
        one_line(&text)
    })
    .await
}

fn one_line(text: &str) -> Outcome<String> {
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| Failure::failed(format!("not JSON: {error}")))?;
    Ok(format!("{value}\n"))
}

/// Shows something anew until Ctrl-C. A coordinator that is away for a moment is said, not fatal.
async fn again(
    session: &Session,
    every: Duration,
    fetch: impl AsyncFn() -> Outcome<String>,
) -> Outcome<Exit> {
    let mut seen = false;
    loop {
        let text = match fetch().await {
            Ok(text) => {
                seen = true;
                text
            }
            Err(failure) if seen && failure.exit == Exit::Unreachable => format!("error: {failure}\n"),
            Err(failure) => return Err(failure),
        };
        if session.style.terminal {
            session.print(&format!("\x1b[H\x1b[2J\x1b[3J{text}"))?;
        } else {
            session.print(&text)?;
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Done),
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// The name of a service, checked against those that there are.
fn known_service(overview: &Overview, wanted: &str) -> Outcome<String> {
    let found =
        overview.services.iter().find(|service| service.name == wanted || service.service.as_str() == wanted);
    match found {
        Some(service) => Ok(service.name.clone()),
        None => {
            Err(unknown("service", wanted, overview.services.iter().map(|service| service.name.as_str())))
        }
    }
}

/// The host name of a node, checked against those that there are.
fn known_node(overview: &Overview, wanted: &str) -> Outcome<String> {
    let found = overview.nodes.iter().find(|node| node.hostname == wanted || node.node.as_str() == wanted);
    match found {
        Some(node) => Ok(node.hostname.clone()),
        None => Err(unknown("node", wanted, overview.nodes.iter().map(|node| node.hostname.as_str()))),
    }
}

/// Names what is wrong, and what may have been meant.
pub fn unknown<'a>(what: &str, wanted: &str, known: impl Iterator<Item = &'a str>) -> Failure {
    // Of a short name nearly every other one is but a few letters away.
    let far = (wanted.chars().count() / 3).min(3);
    let mut near: Vec<(usize, &str)> = known
        .map(|name| if name.contains(wanted) { (0, name) } else { (distance(name, wanted), name) })
        .filter(|(distance, _)| *distance <= far)
        .collect();
    near.sort_unstable();
    let failure = Failure::usage(format!("there is no {what} {wanted:?}")).code(format!("unknown_{what}"));
    match near.first() {
        Some((_, name)) => failure.hint(format!("did you mean {name}?")),
        None => failure.hint(format!("swarmguard {what}s -q lists them")),
    }
}

/// How many characters must be put in, taken out or replaced.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let cost = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

async fn version(session: &Session) -> Outcome<Exit> {
    let own = env!("CARGO_PKG_VERSION");
    let (engine, coordinator) = if session.global.coordinator.is_empty() {
        match session.engine().await {
            Ok(engine) => {
                let version = engine.get("/version").await.unwrap_or_default();
                let shown =
                    format!("{} (API {})", version["Version"].as_str().unwrap_or("unknown"), engine.version);
                (Ok(shown), session.overview().await.map(|overview| overview.version))
            }
            Err(failure) => (Err(failure.clone()), Err(failure)),
        }
    } else {
        (
            Err(Failure::failed("not asked (--coordinator)")),
            session.overview().await.map(|overview| overview.version),
        )
    };
    let shown = |found: &Outcome<String>| match found {
        Ok(version) => version.clone(),
        Err(failure) => format!("unknown: {}", failure.what),
    };
    let value =
        json!({"client": own, "coordinator": coordinator.as_ref().ok(), "engine": engine.as_ref().ok()});
    session.answer("Version", value, own, || {
        format!("client       {own}\ncoordinator  {}\nengine       {}\n", shown(&coordinator), shown(&engine))
    })?;
    Ok(Exit::Done)
}

/// For programs that read line by line.
fn line(kind: &str, value: serde_json::Value) -> String {
    format!("{}\n", document(kind, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_nearly_right_is_offered() {
        let names = ["shop_web", "shop_api", "db"];
        let hint = |wanted: &str| unknown("service", wanted, names.into_iter()).hint.unwrap_or_default();
        assert_eq!(hint("shop_wbe"), "did you mean shop_web?");
        assert_eq!(hint("api"), "did you mean shop_api?");
        assert_eq!(hint("dx"), "swarmguard services -q lists them", "not db: half of it is another name");
        assert_eq!(hint("something-else"), "swarmguard services -q lists them");
        assert_eq!((distance("kitten", "sitting"), distance("", "ab")), (3, 2));
    }
}
