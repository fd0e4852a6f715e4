//! Figures of services and nodes for Prometheus, from the overview that the loop makes once a second.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use swarmguard_common::{
    api::{Conclusion, NodeWord, Overview},
    domain::TaskId,
};
use swarmguard_core::swarm::Snapshot;
use swarmguard_runtime::exposition::{Counters, Scrape};

use super::families;

/// Most services shown one by one, and most nodes.
const MAX_ROWS: usize = 2_000;

/// The newest overview, and what has to be remembered from one to the next.
#[derive(Debug, Default)]
pub(super) struct Seen {
    newest: Option<Arc<Overview>>,
    /// By service: the rule that refuses it, and since when; wall clock in milliseconds.
    refused: BTreeMap<String, (String, u64)>,
    /// Failures of the last snapshot; `None` before the first, so that what failed before the start does not count.
    failed: Option<BTreeSet<TaskId>>,
}

impl Seen {
    pub(super) fn overview(&mut self, overview: &Arc<Overview>) {
        let mut refused = BTreeMap::new();
        for row in overview.services.iter().take(MAX_ROWS) {
            let (Some(Conclusion::Refuse), Some(rule)) = (row.conclusion, &row.rule) else { continue };
            let before = self.refused.get(&row.name).filter(|(known, _)| known == rule);
            let since = before.map_or(overview.at_ms, |(_, since)| *since);
            refused.insert(row.name.clone(), (rule.clone(), since));
        }
        self.refused = refused;
        self.newest = Some(Arc::clone(overview));
    }

    /// Counts the tasks that failed since the last snapshot, by service.
    pub(super) fn failures(&mut self, snapshot: &Snapshot, count: &Counters<1>) {
        let failed: BTreeSet<TaskId> = snapshot.failures.keys().cloned().collect();
        if let Some(before) = self.failed.replace(failed) {
            let new = snapshot.failures.iter().filter(|(task, _)| !before.contains(*task));
            for service in new.filter_map(|(_, failure)| snapshot.services.get(&failure.service)) {
                count.inc([&service.name]);
            }
        }
        let names: BTreeSet<&str> = snapshot.services.values().map(|one| one.name.as_str()).collect();
        count.retain(|[service]| names.contains(service.as_str()) || service == "other");
    }

    pub(super) fn write(&self, scrape: &mut Scrape) {
        let Some(newest) = &self.newest else { return };
        whole(scrape, newest);
        nodes(scrape, newest);
        services(scrape, newest);
        let mut since = scrape.family(families::SERVICE_REFUSED_SINCE);
        for (service, (rule, at_ms)) in &self.refused {
            since.put(&[service, rule], seconds(*at_ms));
        }
        let mut unhelped: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for alert in &newest.alerts {
            if let (Some(service), Some(rule)) = (&alert.service, &alert.unhelped) {
                *unhelped.entry((service, rule)).or_default() += 1;
            }
        }
        let mut samples = scrape.family(families::ALERTS_UNHELPED);
        for ((service, rule), count) in unhelped {
            samples.put(&[service, rule], count);
        }
    }
}

fn whole(scrape: &mut Scrape, overview: &Overview) {
    scrape.one(families::OBSERVE, u8::from(overview.coordination.observe));
    scrape.one(families::PAUSED, u8::from(overview.coordination.paused));
    scrape.one(families::HEALTH, overview.health.score);
    let oldest = overview.actions.iter().filter_map(|action| action.total_ms).max();
    scrape.known(families::ACTION_OLDEST, oldest.map(|total| seconds(overview.at_ms.saturating_sub(total))));
}

fn nodes(scrape: &mut Scrape, overview: &Overview) {
    let has = |words: &[NodeWord]| {
        let rows = overview.nodes.iter();
        rows.filter(|row| row.state.iter().any(|word| words.contains(word))).count()
    };
    scrape.one(families::MANAGERS, has(&[NodeWord::Manager, NodeWord::Leader]));
    let down = has(&[NodeWord::Down, NodeWord::Unknown]);
    let mut states = scrape.family(families::NODES);
    states.put(&["ready"], overview.nodes.len() - down);
    states.put(&["down"], down);
    let rows = || overview.nodes.iter().take(MAX_ROWS);
    let mut ages = scrape.family(families::NODE_LEASE_AGE);
    for (row, age_ms) in rows().filter_map(|row| Some((row, row.lease_age_ms?))) {
        ages.put(&[&row.hostname], seconds(age_ms));
    }
    let mut reserved = scrape.family(families::NODE_RESERVED);
    for row in rows() {
        reserved.put(&[&row.hostname], seconds(row.reserved_cpu_millis));
    }
    let mut replicas = scrape.family(families::NODE_REPLICAS);
    for row in rows() {
        replicas.put(&[&row.hostname], row.replicas);
    }
}

fn services(scrape: &mut Scrape, overview: &Overview) {
    scrape.one(families::SERVICES, overview.services.len());
    let rows = || overview.services.iter().take(MAX_ROWS);
    let mut replicas = scrape.family(families::SERVICE_REPLICAS);
    for row in rows() {
        if let Some(wanted) = row.wanted {
            replicas.put(&[&row.name, "wanted"], wanted);
        }
        replicas.put(&[&row.name, "running"], row.running);
        replicas.put(&[&row.name, "pending"], row.pending);
    }
    let mut protected = scrape.family(families::SERVICE_PROTECTED);
    for row in rows() {
        protected.put(&[&row.name], u8::from(row.protected));
    }
    let mut invalid = scrape.family(families::SERVICE_LABELS_INVALID);
    for row in rows() {
        invalid.put(&[&row.name], u8::from(row.labels_invalid));
    }
}

/// Seconds from milliseconds, or whole ones from thousandths.
#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit for a long time")]
fn seconds(thousandths: u64) -> f64 {
    thousandths as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use swarmguard_core::swarm::{Failure, TaskState};

    use super::*;

    fn overview(at_ms: u64, rule: Option<&str>) -> Arc<Overview> {
        let service = serde_json::json!({
            "service": "s1", "name": "web", "mode": "replicated", "protected": true, "own": false, "running": 1,
            "wanted": 2, "pending": 1, "cpu_millis": 0, "memory_bytes": 0, "observe": false, "paused": false,
            "labels_invalid": false, "alerts": 1, "conclusion": rule.map(|_| "refuse"), "rule": rule
        });
        let alert = serde_json::json!({
            "condition": "cpu_high", "service": "web", "node": "m1", "percent": 90, "stands_ms": 20_000,
            "unhelped": rule, "stale": false
        });
        let overview = serde_json::json!({
            "api_version": "v", "version": "v", "at_ms": at_ms, "swarm": {"id": "c"},
            "coordination": {"acting": true, "observe": true, "paused": false, "balancers": 0},
            "health": {"score": 90, "deductions": []}, "banner": [], "nodes": [], "services": [service],
            "actions": [], "alerts": [alert], "last_day": {"moved": 0, "scaled": 0, "undone": 0}
        });
        Arc::new(serde_json::from_value(overview).expect("an overview"))
    }

    fn text(seen: &Seen) -> String {
        let mut scrape = Scrape::new();
        seen.write(&mut scrape);
        scrape.end()
    }

    #[test]
    fn a_refusal_counts_from_its_beginning_and_ends_with_its_rule() {
        let mut seen = Seen::default();
        let since = |rule: &str, at: &str| {
            format!("service_refused_since_timestamp_seconds{{service=\"web\",rule=\"{rule}\"}} {at}\n")
        };
        seen.overview(&overview(10_000, Some("singleton")));
        seen.overview(&overview(15_500, Some("singleton")));
        let first = text(&seen);
        assert!(first.contains(&since("singleton", "10")), "{first}");
        assert!(first.contains("alerts_unhelped{service=\"web\",rule=\"singleton\"} 1\n"), "{first}");
        assert!(first.contains("service_replicas{service=\"web\",state=\"pending\"} 1\n"), "{first}");
        assert!(first.contains("coordinator_observe 1\n") && first.contains("health_score 90\n"), "{first}");
        seen.overview(&overview(16_500, Some("cooldown")));
        assert!(text(&seen).contains(&since("cooldown", "16.5")));
        seen.overview(&overview(17_000, None));
        assert!(!text(&seen).contains("_since_timestamp_seconds{"));
    }

    #[test]
    fn failures_count_once_and_none_from_before_the_start() {
        let service = swarmguard_core::swarm::Service {
            id: "s1".parse().expect("an ID"),
            version: 1,
            name: "web".into(),
            mode: swarmguard_core::swarm::Mode::Global,
            policy: Err(Vec::new()),
            spec: serde_json::Value::Null,
            previous_spec: None,
            update_state: None,
            job_iteration: None,
            virtual_addresses: Vec::new(),
        };
        let mut snapshot = Snapshot::default();
        snapshot.services.insert(service.id.clone(), service.clone());
        let fail = |snapshot: &mut Snapshot, task: &str| {
            let failure = Failure {
                service: service.id.clone(),
                slot: 1,
                node: None,
                state: TaskState::Failed,
                message: String::new(),
                version: 1,
            };
            snapshot.failures.insert(task.parse().expect("an ID"), failure);
        };
        let (mut seen, count) = (Seen::default(), Counters::default());
        fail(&mut snapshot, "t1");
        seen.failures(&snapshot, &count);
        assert_eq!(count.get(["web"]), 0);
        fail(&mut snapshot, "t2");
        seen.failures(&snapshot, &count);
        seen.failures(&snapshot, &count);
        assert_eq!(count.get(["web"]), 1);
        snapshot.services.clear();
        seen.failures(&snapshot, &count);
        assert_eq!(count.get(["web"]), 0, "a service that is gone is forgotten");
    }
}
