//! Compose files: read as far as labels and health go, and looked over before they are deployed.

use std::{fs, path::Path};

use serde_json::Value;
use swarmguard_common::labels::{PREFIX, ServicePolicy};

use crate::failure::{Failure, Outcome};

/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// Shortest time for a replica to finish what is under way, in milliseconds.
const SHORT_GRACE_MS: u128 = 5_000;

/// Something about a service of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lint {
    /// It cannot be obeyed; else only a promise is weakened.
    pub wrong: bool,
    /// Which service.
    pub service: String,
    /// What is found, and what to do.
    pub text: String,
}

/// Reads a file as YAML.
///
/// # Errors
/// When it cannot be read or is none.
pub fn read(file: &Path) -> Outcome<Value> {
    let refuse = |why: String| Failure::usage(format!("{}: {why}", file.display()));
    let length = fs::metadata(file).map_err(|error| refuse(error.to_string()))?.len();
    if length > MAX_FILE {
        return Err(refuse(format!("{length} bytes are no compose file")));
    }
    let text = fs::read_to_string(file).map_err(|error| refuse(error.to_string()))?;
    parse(&text).map_err(|why| refuse(why).hint("docker stack config -c FILE says what docker makes of it"))
}

/// Reads YAML.
///
/// # Errors
/// When it is none, or not a mapping.
pub fn parse(text: &str) -> Result<Value, String> {
    let value: Value = serde_norway::from_str(text).map_err(|error| format!("not YAML: {error}"))?;
    if value.is_object() { Ok(value) } else { Err("not a compose file: it has no `services`".into()) }
}

/// Looks over all services of a file.
pub fn lint(file: &Value) -> Vec<Lint> {
    let Some(services) = file["services"].as_object() else { return Vec::new() };
    services.iter().flat_map(|(name, service)| lint_service(name, service)).collect()
}

fn lint_service(name: &str, service: &Value) -> Vec<Lint> {
    let mut found = Vec::new();
    let mut say = |wrong, text: String| found.push(Lint { wrong, service: name.into(), text });
    let ours = |(key, _): &(String, String)| key.starts_with(PREFIX);
    let on_container: Vec<(String, String)> = pairs(&service["labels"]).into_iter().filter(ours).collect();
    if let Some((key, _)) = on_container.first() {
        say(
            true,
            format!("label {key} stands on the container, where nobody reads it: put it under deploy.labels"),
        );
    }
    let labels: Vec<(String, String)> =
        pairs(&service["deploy"]["labels"]).into_iter().filter(ours).collect();
    if labels.iter().any(|(_, value)| value.contains("${")) {
        return found;
    }
    let policy =
        match ServicePolicy::from_labels(labels.iter().map(|(key, value)| (key.as_str(), value.as_str()))) {
            Ok(policy) => policy,
            Err(errors) => {
                errors.iter().for_each(|error| say(true, error.to_string()));
                return found;
            }
        };
    if !policy.enabled {
        return found;
    }
    let waived = policy.allow.contains(&swarmguard_common::labels::Allowance::NoHealthcheck);
    if service["healthcheck"].is_null() && !waived {
        say(false, "no healthcheck: unless the image brings one, it is not moved (swarmguard.migrate.allow=no-healthcheck waives it)".into());
    }
    if let Some(grace) = service["stop_grace_period"].as_str()
        && swarmguard_common::time::duration(grace, std::time::Duration::ZERO..=std::time::Duration::MAX)
            .is_ok_and(|grace| grace.as_millis() < SHORT_GRACE_MS)
    {
        say(
            false,
            format!("stop_grace_period {grace}: requests that are under way may be cut off; 5s or more"),
        );
    }
    if service["deploy"]["update_config"]["failure_action"] == "continue" {
        say(false, "update_config.failure_action continue stops replicas that serve for ones that fail: pause or rollback".into());
    }
    found
}

/// Labels as a mapping or as a list.
fn pairs(labels: &Value) -> Vec<(String, String)> {
    match labels {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), plain(value))).collect(),
        Value::Array(list) => list
            .iter()
            .filter_map(Value::as_str)
            .map(|text| text.split_once('=').unwrap_or((text, "")))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        _ => Vec::new(),
    }
}

/// A scalar as compose passes it on.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(bool, String)> {
        lint(&parse(text).expect("YAML")).into_iter().map(|lint| (lint.wrong, lint.text)).collect()
    }

    #[test]
    fn labels_that_cannot_be_obeyed_or_stand_in_the_wrong_place_are_wrong() {
        let bad = found(
            "services: {web: {image: x, deploy: {labels: {swarmguard.enable: true, swarmguard.cpu.high: 120}}}}",
        );
        assert!(bad.len() == 1 && bad[0].0 && bad[0].1.contains("swarmguard.cpu.high"), "{bad:?}");
        let place = found("services: {web: {labels: [swarmguard.enable=true]}}");
        assert!(place.len() == 1 && place[0].0 && place[0].1.contains("deploy.labels"), "{place:?}");
    }

    #[test]
    fn what_weakens_the_promise_is_told_of_protected_services_only() {
        let text = "services:\n  web:\n    stop_grace_period: 2s\n    deploy:\n      update_config: {failure_action: continue}\n      labels:\n        - swarmguard.enable=true\n  db: {image: y}\n";
        let weak = found(text);
        assert!(weak.iter().all(|(wrong, _)| !wrong) && weak.len() == 3, "{weak:?}");
        let fine =
            "services: {web: {healthcheck: {test: [CMD, x]}, deploy: {labels: {swarmguard.enable: 'true'}}}}";
        assert_eq!(found(fine), []);
        assert!(parse("- a").is_err() && parse(": :").is_err());
    }
}
