//! As a plugin of docker's command line: `docker swarmguard …`, when the program lies as `docker-swarmguard` in one of
//! docker's plugin directories (`~/.docker/cli-plugins`, `/usr/libexec/docker/cli-plugins`).

use std::{collections::BTreeMap, ffi::OsString, path::Path};

/// What docker asks its plugins first.
const METADATA: &str = "docker-cli-plugin-metadata";
const WORD: &str = "swarmguard";

/// What is wanted of us.
#[derive(Debug, PartialEq, Eq)]
pub enum Wanted {
    /// To introduce ourselves.
    Metadata,
    /// To run with these arguments.
    Run(Vec<OsString>),
}

/// Docker passes its whole line on, its own options in front. Those that name an engine hold for us too.
pub fn arguments(args: Vec<OsString>, env: &mut BTreeMap<String, String>) -> Wanted {
    let called = args.first().and_then(|name| Path::new(name).file_name()).and_then(|name| name.to_str());
    if called != Some("docker-swarmguard") {
        return Wanted::Run(args);
    }
    if args.get(1).is_some_and(|word| word == METADATA) {
        return Wanted::Metadata;
    }
    let Some(at) = args.iter().position(|word| word == WORD) else { return Wanted::Run(args) };
    let mut ours = vec![OsString::from("swarmguard")];
    let mut before = args[1..at].iter();
    while let Some(option) = before.next() {
        let text = option.to_string_lossy();
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (text.into_owned(), None),
        };
        let mut value =
            || value.clone().or_else(|| before.next().map(|value| value.to_string_lossy().into_owned()));
        match name.as_str() {
            "-c" | "--context" => ours.extend(value().map(|value| format!("--context={value}").into())),
            "-H" | "--host" => ours.extend(value().map(|value| format!("--host={value}").into())),
            "--config" => drop(value().map(|value| env.insert("DOCKER_CONFIG".into(), value))),
            "-l" | "--log-level" => drop(value()),
            _ => {}
        }
    }
    ours.extend_from_slice(&args[at + 1..]);
    Wanted::Run(ours)
}

/// How we introduce ourselves.
pub fn metadata() -> String {
    serde_json::json!({
        "SchemaVersion": "0.1.0",
        "Vendor": "SwarmGuard",
        "Version": env!("CARGO_PKG_VERSION"),
        "ShortDescription": "Watch and command SwarmGuard",
        "URL": env!("CARGO_PKG_REPOSITORY"),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> (Wanted, BTreeMap<String, String>) {
        let mut env = BTreeMap::new();
        (arguments(line.split(' ').map(OsString::from).collect(), &mut env), env)
    }

    fn words(line: &str) -> Wanted {
        Wanted::Run(line.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn dockers_own_options_hold_for_us_too() {
        let (wanted, env) = run("/x/docker-swarmguard --config /c -c prod -D swarmguard status -o json");
        assert_eq!(wanted, words("swarmguard --context=prod status -o json"));
        assert_eq!(env.get("DOCKER_CONFIG").map(String::as_str), Some("/c"));
        assert_eq!(
            run("docker-swarmguard --host=ssh://m1 swarmguard ps").0,
            words("swarmguard --host=ssh://m1 ps")
        );
        assert_eq!(run("docker-swarmguard docker-cli-plugin-metadata").0, Wanted::Metadata);
        assert_eq!(run("swarmguard -c x status").0, words("swarmguard -c x status"));
    }
}
