//! What costs points of the health score: the parts and their weights are in `swarmguard_common::api::HealthPart`.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::{
    api::{Deduction, HealthPart, NodeRow, NodeWord, Overview, ServiceMode, ServiceRow},
    labels::Part,
    time::Time,
};

use super::{Brain, SNAPSHOT_VALID, overview::Beside};

/// Most names in one deduction.
const MAX_SUBJECTS: usize = 20;
/// Failures of tasks count for this long.
pub(super) const FAILURES_COUNT: Duration = Duration::from_secs(600);

impl Brain {
    /// Everything that costs points now.
    pub(super) fn deductions(&self, now: Time, overview: &Overview, beside: &Beside) -> Vec<Deduction> {
        let mut found = Vec::new();
        nodes(&overview.nodes, &mut found);
        self.coordinators(now, overview, beside, &mut found);
        services(&overview.services, &mut found);
        self.failed_tasks(now, &mut found);
        alerts(overview, &mut found);
        balancers(self.balanced_services(), beside, &mut found);
        found
    }

    fn coordinators(&self, now: Time, overview: &Overview, beside: &Beside, found: &mut Vec<Deduction>) {
        let weight = HealthPart::Coordinators.weight();
        let mut add = |points, text: String, subjects| {
            found.push(Deduction { part: HealthPart::Coordinators, points, text, subjects });
        };
        if let Some(trouble) = &beside.trouble {
            return add(weight, format!("Swarm cannot be read: {trouble}"), Vec::new());
        }
        let Some(snapshot) = self.view.snapshot.as_deref() else {
            return add(weight, "Swarm was not read yet".into(), Vec::new());
        };
        if now - snapshot.taken > SNAPSHOT_VALID {
            return add(weight, "what was read of Swarm is too old to act on".into(), Vec::new());
        }
        if overview.coordination.leader.is_none() {
            return add(weight, "no manager holds the raft leadership: nobody acts".into(), Vec::new());
        }
        let managers = snapshot.nodes.values().filter(|node| node.manager).count();
        let lost: Vec<String> = snapshot
            .nodes
            .values()
            .filter(|node| node.manager && node.is_down())
            .map(|node| node.hostname.clone())
            .collect();
        if !lost.is_empty() {
            let spare = managers - lost.len() - (managers / 2 + 1).min(managers - lost.len());
            let text = format!(
                "{} of {managers} managers down, {spare} more may be lost before nothing can be changed",
                lost.len()
            );
            add(if spare == 0 { 10 } else { 5 }, text, lost);
        }
        let own = snapshot.services.values().find(|service| {
            let role = service.policy.as_ref().ok().and_then(|policy| policy.role);
            role == Some(Part::Coordinator)
        });
        if let Some(own) = own {
            let running = self.view.tasks_of(&own.id).filter(|task| task.is_serving()).count();
            if running < managers {
                let text = format!("{running} of {managers} managers have a coordinator that runs");
                add(if running <= 1 { 8 } else { 4 }, text, vec![own.name.clone()]);
            }
        }
    }

    /// Tasks that ended by themselves and badly, by service.
    fn failed_tasks(&self, now: Time, found: &mut Vec<Deduction>) {
        let mut failures: BTreeMap<String, u8> = BTreeMap::new();
        for service in self.view.history.failed_since(now.before(FAILURES_COUNT)) {
            let name = self.service_name(service).unwrap_or_else(|| service.to_string());
            let count = failures.entry(name).or_default();
            *count = count.saturating_add(1);
        }
        for (name, count) in failures {
            let text = format!("{name}: {count} of its tasks failed within 10 minutes");
            let part = HealthPart::FailedTasks;
            found.push(Deduction { part, points: count.clamp(2, 5), text, subjects: vec![name] });
        }
    }

    fn balanced_services(&self) -> usize {
        let services = self.view.snapshot.as_deref().map(|snapshot| snapshot.services.values());
        let balanced = services.into_iter().flatten().filter(|service| {
            let policy = service.policy.as_ref().ok();
            policy.is_some_and(|policy| policy.enabled && policy.route.is_some())
        });
        balanced.count()
    }
}

fn named(names: impl Iterator<Item = String>) -> Vec<String> {
    names.take(MAX_SUBJECTS).collect()
}

/// The share of a weight that `part` of `whole` is, rounded up: what is wrong costs at least a point.
fn share(weight: u8, part: usize, whole: usize) -> u8 {
    let points = (usize::from(weight) * part).div_ceil(whole.max(1));
    u8::try_from(points).unwrap_or(u8::MAX).min(weight)
}

fn nodes(rows: &[NodeRow], found: &mut Vec<Deduction>) {
    let weight = HealthPart::Nodes.weight();
    for (words, what, times) in [
        (&[NodeWord::Down, NodeWord::Unknown][..], "not ready", 2),
        (&[NodeWord::Silent, NodeWord::NoAgent, NodeWord::Blind][..], "without a live lease of its agent", 1),
    ] {
        let concerned = |row: &&NodeRow| row.state.iter().any(|word| words.contains(word));
        let down =
            |row: &&NodeRow| row.state.iter().any(|word| matches!(word, NodeWord::Down | NodeWord::Unknown));
        // A node that is down has no lease either: that is told once.
        let concerned: Vec<&NodeRow> =
            rows.iter().filter(concerned).filter(|row| times == 2 || !down(row)).collect();
        if concerned.is_empty() {
            continue;
        }
        let names = named(concerned.iter().map(|row| row.hostname.clone()));
        let text = format!("{} {what}", list(&names, concerned.len()));
        let points = share(weight, concerned.len() * times, rows.len());
        found.push(Deduction { part: HealthPart::Nodes, points, text, subjects: names });
    }
}

fn services(rows: &[ServiceRow], found: &mut Vec<Deduction>) {
    let weight = HealthPart::Services.weight();
    let counted: Vec<&ServiceRow> = rows.iter().filter(|row| row.mode != ServiceMode::Job).collect();
    let down: Vec<&&ServiceRow> = counted
        .iter()
        .filter(|row| row.running == 0 && row.wanted.is_some_and(|wanted| wanted > 0))
        .collect();
    let short: Vec<&&ServiceRow> = counted
        .iter()
        .filter(|row| row.running > 0 && row.wanted.is_some_and(|wanted| row.running < wanted))
        .collect();
    for (concerned, what, least) in
        [(down, "no replica runs of", 10), (short, "fewer replicas than wanted of", 2)]
    {
        if concerned.is_empty() {
            continue;
        }
        let names = named(concerned.iter().map(|row| row.name.clone()));
        let text = format!("{what} {}", list(&names, concerned.len()));
        let points = share(weight, concerned.len(), counted.len()).max(least);
        found.push(Deduction { part: HealthPart::Services, points, text, subjects: names });
    }
}

fn alerts(overview: &Overview, found: &mut Vec<Deduction>) {
    let mut by_service: BTreeMap<&str, (&str, u64)> = BTreeMap::new();
    for alert in &overview.alerts {
        if let (Some(service), Some(rule)) = (&alert.service, &alert.unhelped) {
            let entry = by_service.entry(service).or_insert((rule, 0));
            entry.1 = entry.1.max(alert.stands_ms);
        }
    }
    for (service, (rule, stands_ms)) in by_service {
        let text = format!("{service} is hot for {} s and not helped: {rule}", stands_ms / 1_000);
        let subjects = vec![service.to_owned()];
        found.push(Deduction { part: HealthPart::Alerts, points: 3, text, subjects });
    }
}

fn balancers(balanced: usize, beside: &Beside, found: &mut Vec<Deduction>) {
    let part = HealthPart::Balancers;
    if balanced > 0 && beside.balancers == 0 {
        let text = format!("{balanced} services are to be balanced, and no balancer is connected here");
        found.push(Deduction { part, points: part.weight(), text, subjects: Vec::new() });
    }
    let out = beside.out_of_balance.len();
    if out > 0 {
        let names = named(beside.out_of_balance.iter().cloned());
        let text = format!("balancers send nothing to {}: they fail", list(&names, out));
        let points = u8::try_from(out).unwrap_or(u8::MAX).saturating_mul(2).min(part.weight());
        found.push(Deduction { part, points, text, subjects: names });
    }
}

/// Names for a sentence: a few, and how many more.
pub(super) fn list(names: &[String], all: usize) -> String {
    const SHOWN: usize = 4;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if all > SHOWN { format!("{shown} and {} more", all - SHOWN) } else { shown }
}
