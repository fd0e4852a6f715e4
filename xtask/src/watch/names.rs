//! Which names rules and dashboards use, and that every rule has its cases and its runbook.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result};

use crate::dashboards::panels;
use crate::workspace::root;

/// What the programs' names begin with.
const PREFIXES: [&str; 2] = ["swarmguard_", "process_"];

/// Names of metrics in all rules and dashboards.
///
/// # Errors
/// Where the rules cannot be read.
pub fn wanted() -> Result<BTreeSet<String>> {
    let rules = read("deploy/prometheus/rules.yml")?;
    // Only expressions: a service may be called like a metric in a text.
    let expressions = rules.lines().skip_while(|line| !line.contains("expr:")).scan(false, |inside, line| {
        let before = std::mem::replace(inside, line.trim_start().starts_with("expr:"));
        Some(if before { line } else { "" })
    });
    let mut names: BTreeSet<String> = expressions.flat_map(names).collect();
    for dashboard in panels::ALL {
        let filter = dashboard.filter.map(|(_, query)| query);
        let queries = dashboard.panels.iter().flat_map(|panel| panel.queries.iter().map(|(query, _)| *query));
        names.extend(queries.chain(filter).chain([panels::ENDED]).flat_map(self::names));
    }
    Ok(names)
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {path}"))
}

/// The metrics that an expression names.
fn names(expression: &str) -> impl Iterator<Item = String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix))).map(str::to_owned)
}

/// Whether a name is one of these families, or a sample of one.
pub fn is_shown(name: &str, families: &BTreeSet<String>) -> bool {
    let whole = |name: &str| families.contains(name);
    let suffixes = ["_total", "_bucket", "_sum", "_count"];
    whole(name) || suffixes.iter().any(|suffix| name.strip_suffix(suffix).is_some_and(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str) -> String {
        read(path).expect("a file of the work tree")
    }

    fn alerts() -> Vec<String> {
        let rules = text("deploy/prometheus/rules.yml");
        let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
        names.map(str::to_owned).collect()
    }

    #[test]
    fn every_alert_has_a_case_that_fires_one_that_is_quiet_and_a_runbook() {
        let (cases, runbooks) = (text("deploy/prometheus/tests.yml"), text("docs/runbooks.md"));
        let alerts = alerts();
        assert!(alerts.len() >= 38, "{alerts:?}");
        for alert in &alerts {
            assert!(cases.contains(&format!("- name: {alert} fires\n")), "{alert}: no case that fires");
            // The watchdog is never quiet: that is its purpose.
            let quiet = cases.contains(&format!("- name: {alert} is quiet\n"));
            assert!(quiet || alert == "SwarmguardWatchdog", "{alert}: no case that is quiet");
            let section = runbooks.split("\n## ").find(|section| section.starts_with(&format!("{alert}\n")));
            let section = section.unwrap_or_else(|| panic!("{alert}: no section in docs/runbooks.md"));
            assert!(section.contains("Likely: ") && section.contains("```console\n$ "), "{alert}: {section}");
        }
        let sections = runbooks.split("\n## ").skip(1).filter_map(|section| section.lines().next());
        for section in sections {
            assert!(alerts.iter().any(|alert| alert == section), "{section}: a runbook of no alert");
        }
    }

    #[test]
    fn runbooks_use_commands_that_there_are() {
        let (runbooks, reference) = (text("docs/runbooks.md"), text("docs/cli.md"));
        let commands = runbooks.lines().filter_map(|line| line.strip_prefix("$ swarmguard "));
        let mut seen = 0;
        for command in commands {
            let mut words = command.split(' ');
            let first = words.next().expect("a word");
            let second = words.clone().next().filter(|word| first == "notify" && !word.starts_with('-'));
            let name = second.map_or_else(|| first.to_owned(), |second| format!("{first} {second}"));
            let heading = format!("\n### swarmguard {name}");
            let section = reference.split_once(heading.as_str()).map(|(_, rest)| rest);
            let section = section.unwrap_or_else(|| panic!("docs/cli.md has no `swarmguard {name}`"));
            let section = section.split("\n### ").next().unwrap_or_default();
            for flag in words.filter(|word| word.starts_with("--")) {
                assert!(section.contains(flag), "`swarmguard {name}` has no {flag}: {command}");
            }
            seen += 1;
        }
        assert!(seen > 60, "{seen}");
    }

    #[test]
    fn every_name_in_rules_and_dashboards_is_documented() {
        let documented = text("docs/metrics.md");
        let known: BTreeSet<String> = documented.split('`').map(str::to_owned).collect();
        let names = wanted().expect("the rules");
        assert!(names.len() > 60, "{names:?}");
        for name in names {
            assert!(is_shown(&name, &known), "{name} is not in docs/metrics.md");
        }
    }
}
