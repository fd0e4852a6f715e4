//! Names of services and nodes for a shell's completion, asked of the coordinator while somebody types.
//!
//! The shell calls this program with the line so far (`swarmguard completion SHELL` prints what makes it do so). A
//! coordinator that is slow or away completes nothing: a shell that hangs or prints errors is worse than one that knows
//! no names.

use std::{collections::BTreeMap, ffi::OsStr, time::Duration};

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use swarmguard_common::api::Overview;

use crate::{
    cli::Global,
    out::{Format, style::Colour},
    session::Session,
};

/// Longest that a shell is kept waiting.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// Names of services.
pub fn services() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| candidates(current, service_names))
}

/// Host names of nodes.
pub fn nodes() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| candidates(current, node_names))
}

/// What can be cancelled: what is under way, and what it is about.
pub fn under_way() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| candidates(current, under_way_names))
}

/// Services with a `=` behind, for `scale`.
pub fn counts() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        candidates(current, |overview| {
            service_names(overview).into_iter().map(|name| format!("{name}=")).collect()
        })
    })
}

fn service_names(overview: &Overview) -> Vec<String> {
    overview.services.iter().map(|service| service.name.clone()).collect()
}

fn node_names(overview: &Overview) -> Vec<String> {
    overview.nodes.iter().map(|node| node.hostname.clone()).collect()
}

fn under_way_names(overview: &Overview) -> Vec<String> {
    let mut names: Vec<String> = overview
        .actions
        .iter()
        .flat_map(|action| [action.service.clone(), action.source.clone(), Some(action.action.clone())])
        .flatten()
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn candidates(current: &OsStr, names: fn(&Overview) -> Vec<String>) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let Some(overview) = overview() else { return Vec::new() };
    matching(names(&overview), current).into_iter().map(CompletionCandidate::new).collect()
}

fn matching(names: Vec<String>, current: &str) -> Vec<String> {
    // What a shell would take for something else is not offered: names come from Swarm, which allows only harmless ones.
    let harmless = |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || "._-=".contains(c));
    names.into_iter().filter(|name| name.starts_with(current)).filter(harmless).collect()
}

/// The overview of the coordinator that the line names so far.
fn overview() -> Option<Overview> {
    let words: Vec<String> = std::env::args().skip_while(|word| word != "--").skip(1).collect();
    let env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let session = Session::new(global(&words, &env), env);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let asked = runtime.block_on(async { tokio::time::timeout(PATIENCE, session.overview()).await });
    runtime.shutdown_background();
    asked.ok()?.ok()
}

/// Which coordinator: from the line, which is not whole yet and so cannot be parsed as one.
fn global(words: &[String], env: &BTreeMap<String, String>) -> Global {
    let said = |names: &[&str], variable: &str| {
        let mut words = words.iter();
        let mut found = env.get(variable).filter(|value| !value.is_empty()).cloned();
        while let Some(word) = words.next() {
            match word.split_once('=') {
                Some((name, value)) if names.contains(&name) => found = Some(value.to_owned()),
                None if names.contains(&word.as_str()) => found = words.next().cloned().or(found),
                _ => {}
            }
        }
        found
    };
    let coordinator = said(&["--coordinator"], "SWARMGUARD_COORDINATOR").unwrap_or_default();
    Global {
        host: said(&["--host", "-H"], ""),
        context: said(&["--context"], ""),
        coordinator: coordinator.split(',').filter(|url| !url.is_empty()).map(ToOwned::to_owned).collect(),
        token_file: said(&["--token-file"], "SWARMGUARD_TOKEN_FILE").map(Into::into),
        ca: said(&["--ca"], "SWARMGUARD_CA").map(Into::into),
        cert: said(&["--cert"], "SWARMGUARD_CERT").map(Into::into),
        key: said(&["--key"], "SWARMGUARD_KEY").map(Into::into),
        output: Format::Json,
        color: Colour::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(ToOwned::to_owned).collect()
    }

    #[test]
    fn the_line_so_far_names_the_coordinator() {
        let env = BTreeMap::from([("SWARMGUARD_COORDINATOR".to_owned(), "https://a:7480".to_owned())]);
        let found = global(&words("swarmguard -H ssh://m1 explain sh"), &BTreeMap::new());
        assert_eq!((found.host.as_deref(), found.coordinator.len()), (Some("ssh://m1"), 0));
        let found = global(&words("swarmguard --context=prod drain"), &env);
        assert_eq!(
            (found.context.as_deref(), found.coordinator),
            (Some("prod"), vec!["https://a:7480".to_owned()])
        );
        assert_eq!(
            global(&words("swarmguard --host"), &BTreeMap::new()).host,
            None,
            "its value is not typed yet"
        );
    }

    #[test]
    fn only_what_begins_so_and_no_shell_would_misread_is_offered() {
        let names = ["shop_web", "shop_api", "db", "$(reboot)"].map(ToOwned::to_owned).to_vec();
        assert_eq!(matching(names.clone(), "shop_"), ["shop_web", "shop_api"]);
        assert_eq!(matching(names, "").len(), 3);
    }
}
