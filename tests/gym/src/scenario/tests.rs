//! Scenario files, good and bad ones: tests.

use super::*;

const SMALL: &str = r#"
about = "two replicas"
length = "5m"
[[nodes]]
count = 3
cpus = 2
[[services]]
name = "web"
replicas = 2
labels = { "swarmguard.enable" = "true", "swarmguard.scale.min" = "2", "swarmguard.scale.max" = "4" }
demand = [{ shape = "steady", level = 20 }]
[bounds]
late_percent = 1
[bounds.web]
most_replicas = 4
"#;

fn wrong(text: &str) -> String {
    Scenario::parse("x", "x.toml", text).expect_err("it is wrong").to_string()
}

#[test]
fn a_small_file_is_read_with_defaults() {
    let scenario = Scenario::parse("small", "small.toml", SMALL).expect("it is right");
    assert_eq!(scenario.nodes.len(), 3);
    assert_eq!(scenario.nodes[0].memory, 8 << 30);
    assert_eq!(scenario.services[0].policy.scale_max, Some(4));
    let keys: Vec<&str> = scenario.goals.iter().map(|goal| goal.key.as_str()).collect();
    assert_eq!(keys, ["late_percent", "web.most_replicas"]);
}

#[test]
fn every_wrong_value_is_named_with_line_key_value_and_what_is_allowed() {
    let text = SMALL
        .replace("cpus = 2", "cpus = 0")
        .replace("\"5m\"", "\"5 fortnights\"")
        .replace("replicas = 2", "replcias = 2");
    let said = wrong(&text);
    assert!(said.contains("x.toml:6: nodes[0].cpus = 0: a number from 0.5 to 1024"), "{said}");
    assert!(said.contains("x.toml:3: length = \"5 fortnights\": a duration with its unit"), "{said}");
    assert!(said.contains("unknown key services[0].replcias: did you mean replicas?"), "{said}");
}

#[test]
fn a_key_that_a_shape_has_no_use_for_is_refused() {
    let said = wrong(&SMALL.replace("level = 20", "level = 20, every = \"3s\""));
    assert!(said.contains("unknown key services[0].demand[0].every"), "{said}");
}

#[test]
fn labels_are_checked_as_the_coordinator_does() {
    let said =
        wrong(&SMALL.replace("\"swarmguard.scale.max\" = \"4\"", "\"swarmguard.scale.max\" = \"four\""));
    assert!(said.contains("swarmguard.scale.max=\"four\""), "{said}");
}

#[test]
fn names_of_services_and_known_misses_must_exist() {
    let said = wrong(&format!("{SMALL}\n[known_misses]\nrelief_s = \"slow\"\n"));
    assert!(said.contains("is no key of [bounds]"), "{said}");
    let said = wrong(&format!("{SMALL}\n[[events]]\nat = \"1m\"\ndo = \"kill\"\nservice = \"wbe\"\n"));
    assert!(said.contains("events[0].service = \"wbe\": the name of one of [[services]]"), "{said}");
    let said = wrong(&format!("{SMALL}\n[[events]]\nat = \"1m\"\n"));
    assert!(said.contains("events[0].do"), "{said}");
}

#[test]
fn what_is_no_toml_is_said_with_its_file() {
    assert!(wrong("length = ").starts_with("x.toml is not TOML"), "{}", wrong("length = "));
}

#[test]
fn every_key_is_documented() {
    let docs = include_str!("../../../../docs/judgement.md");
    let missing: Vec<String> = known_keys()
        .into_iter()
        .filter(|key| !docs.contains(&format!("`{}`", key.rsplit('.').next().unwrap_or(key))))
        .collect();
    assert!(missing.is_empty(), "docs/judgement.md does not name {missing:?}");
}
