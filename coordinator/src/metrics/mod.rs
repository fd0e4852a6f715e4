//! The coordinator's figures for Prometheus. One struct with public members, so that the place that knows a figure sets it
//! directly; nothing is judged by them.

pub mod families;
mod seen;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use swarmguard_common::api::Overview;
use swarmguard_core::swarm::Snapshot;
use swarmguard_runtime::{
    exposition::{Counter, Counters, Gauge, Histograms, Level, Scrape},
    process,
};

use seen::Seen;

/// Bounds of the times that people wait for.
const MTTR_BOUNDS: &[f64] = &[1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0];
/// Bounds of the times that calls take.
const CALL_BOUNDS: &[f64] = &[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
/// Bounds of the times that judging takes.
const JUDGE_BOUNDS: &[f64] = &[0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3];

/// All figures.
#[derive(Debug)]
pub struct Metrics {
    /// Agents connected now.
    pub agents: Level,
    /// Balancers connected now.
    pub balancers: Level,
    /// What ingest refused, by reason.
    pub ingest_refused: Counters<1>,
    /// Reports taken in.
    pub reports: Counter,
    /// Alert edges taken in, by condition and edge.
    pub alert_edges: Counters<2>,
    /// Alerts that stand now.
    pub alerts_standing: Gauge,
    /// Node leases by state.
    pub leases: Mutex<BTreeMap<&'static str, u64>>,
    /// Decisions by rule.
    pub decisions: Counters<1>,
    /// Refusals by rule.
    pub refusals: Counters<1>,
    /// Actions that ended, by kind and outcome.
    pub actions: Counters<2>,
    /// Actions under way.
    pub actions_running: Gauge,
    /// First sample over the threshold to the successor serving.
    pub mttr: Histograms<0>,
    /// Commands to Swarm and balancers, by kind and outcome.
    pub commands: Counters<2>,
    /// How long a command took, by kind.
    pub command_duration: Histograms<1>,
    /// When the newest snapshot was taken, once there is one.
    pub last_snapshot: Gauge,
    /// 1 while no snapshot is fresh enough to decide by.
    pub blind: Gauge,
    /// 1 while nobody acts, as far as this coordinator can tell.
    pub nobody_acts: Gauge,
    /// Snapshots that could not be taken.
    pub snapshot_failures: Counter,
    /// Time that judging one batch of inputs took.
    pub judge_duration: Histograms<0>,
    /// When our own certificate expires, seconds since the Unix epoch.
    pub certificate_expiry: Gauge,
    /// 1 on the coordinator that acts.
    pub acting: Gauge,
    /// Journal entries by kind.
    pub journal: Counters<1>,
    /// Journal entries that did not reach the disk.
    pub journal_lost: Counter,
    /// Times that a broken journal was set aside.
    pub journal_set_aside: Counter,
    /// Requests to the API that were refused, by reason.
    pub api_refused: Counters<1>,
    /// Notifications taken, by channel.
    pub notify_sent: Counters<1>,
    /// Tries that were not taken.
    pub notify_failed: Counters<1>,
    /// Notifications given up.
    pub notify_dropped: Counters<1>,
    /// Drills under way.
    pub drill_active: Gauge,
    task_failures: Counters<1>,
    seen: Mutex<Seen>,
}

impl Metrics {
    /// Nothing counted yet. What alerts watch begins at 0: Prometheus does not see the first of a counter that begins with it.
    pub fn new() -> Arc<Self> {
        let metrics = Self::unseen();
        for kind in ["migrate", "scale_out", "scale_in", "drain"] {
            for outcome in ["done", "undone"] {
                metrics.actions.inc_by([kind, outcome], 0);
            }
        }
        for reason in
            ["certificate", "wrong_node", "not_listed", "wrong_token", "queue_full", "datagram_flood"]
        {
            metrics.ingest_refused.inc_by([reason], 0);
        }
        metrics.api_refused.inc_by(["wrong_token"], 0);
        Arc::new(metrics)
    }

    fn unseen() -> Self {
        Self {
            agents: Level::default(),
            balancers: Level::default(),
            ingest_refused: Counters::default(),
            reports: Counter::default(),
            alert_edges: Counters::default(),
            alerts_standing: Gauge::default(),
            leases: Mutex::default(),
            decisions: Counters::default(),
            refusals: Counters::default(),
            actions: Counters::default(),
            actions_running: Gauge::default(),
            mttr: Histograms::new(MTTR_BOUNDS),
            commands: Counters::default(),
            command_duration: Histograms::new(CALL_BOUNDS),
            last_snapshot: Gauge::default(),
            blind: Gauge::default(),
            nobody_acts: Gauge::default(),
            snapshot_failures: Counter::default(),
            judge_duration: Histograms::new(JUDGE_BOUNDS),
            certificate_expiry: Gauge::default(),
            acting: Gauge::default(),
            journal: Counters::default(),
            journal_lost: Counter::default(),
            journal_set_aside: Counter::default(),
            api_refused: Counters::default(),
            notify_sent: Counters::default(),
            notify_failed: Counters::default(),
            notify_dropped: Counters::default(),
            drill_active: Gauge::default(),
            task_failures: Counters::default(),
            seen: Mutex::default(),
        }
    }

    /// Takes in what the loop sees now.
    pub fn overview(&self, overview: &Arc<Overview>) {
        self.seen().overview(overview);
    }

    /// Takes in a reading of Swarm: tasks that failed since the last one, and drills.
    pub fn snapshot(&self, snapshot: &Snapshot) {
        self.seen().failures(snapshot, &self.task_failures);
        let drills = snapshot.records.keys().filter(|name| name.starts_with("swarmguard-drill-")).count();
        self.drill_active.set(f64::from(u32::try_from(drills).unwrap_or(u32::MAX)));
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The figures in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut scrape = Scrape::new();
        scrape.family(families::BUILD).put(&[env!("CARGO_PKG_VERSION")], 1);
        self.coordination(&mut scrape);
        self.judgement(&mut scrape);
        self.seen().write(&mut scrape);
        self.peers(&mut scrape);
        scrape.known(families::CERTIFICATE, self.certificate_expiry.get());
        self.journal.write(scrape.family(families::JOURNAL_ENTRIES));
        scrape.one(families::JOURNAL_LOST, self.journal_lost.get());
        scrape.one(families::JOURNAL_SET_ASIDE, self.journal_set_aside.get());
        self.notify_sent.write(scrape.family(families::NOTIFY_SENT));
        self.notify_failed.write(scrape.family(families::NOTIFY_FAILED));
        self.notify_dropped.write(scrape.family(families::NOTIFY_DROPPED));
        scrape.known(families::DRILL_ACTIVE, self.drill_active.get());
        process::write(&mut scrape);
        scrape.end()
    }

    fn coordination(&self, scrape: &mut Scrape) {
        scrape.one(families::ACTING, self.acting.get().unwrap_or(0.0));
        scrape.known(families::NOBODY_ACTS, self.nobody_acts.get());
        scrape.known(families::BLIND, self.blind.get());
        scrape.known(families::LAST_SNAPSHOT, self.last_snapshot.get());
        scrape.one(families::SNAPSHOT_FAILURES, self.snapshot_failures.get());
    }

    fn judgement(&self, scrape: &mut Scrape) {
        self.task_failures.write(scrape.family(families::TASK_FAILURES));
        self.alert_edges.write(scrape.family(families::ALERT_EDGES));
        scrape.known(families::ALERTS_STANDING, self.alerts_standing.get());
        self.decisions.write(scrape.family(families::DECISIONS));
        self.refusals.write(scrape.family(families::REFUSALS));
        self.actions.write(scrape.family(families::ACTIONS));
        scrape.known(families::ACTIONS_RUNNING, self.actions_running.get());
        self.mttr.write(scrape.family(families::MTTR));
        self.commands.write(scrape.family(families::COMMANDS));
        self.command_duration.write(scrape.family(families::COMMAND_DURATION));
        self.judge_duration.write(scrape.family(families::JUDGE_DURATION));
    }

    fn peers(&self, scrape: &mut Scrape) {
        let mut peers = scrape.family(families::PEERS);
        peers.put(&["agent"], self.agents.get());
        peers.put(&["balancer"], self.balancers.get());
        let mut leases = scrape.family(families::LEASES);
        for (state, count) in &*self.leases.lock().unwrap_or_else(PoisonError::into_inner) {
            leases.put(&[state], count);
        }
        scrape.one(families::REPORTS, self.reports.get());
        self.ingest_refused.write(scrape.family(families::INGEST_REFUSED));
        self.api_refused.write(scrape.family(families::API_REFUSED));
    }
}

#[cfg(test)]
mod tests {
    use swarmguard_runtime::exposition::{Kind, table};

    use super::*;

    #[test]
    fn the_text_names_what_was_counted() {
        let metrics = Metrics::new();
        metrics.ingest_refused.inc(["token"]);
        metrics.mttr.observe([], 4.2);
        let text = metrics.text();
        assert!(!text.contains("snapshot_timestamp_seconds 0"), "none is not the first of 1970: {text}");
        metrics.last_snapshot.set(1.7e9);
        let text = metrics.text();
        assert!(
            text.contains("swarmguard_coordinator_last_snapshot_timestamp_seconds 1700000000\n"),
            "{text}"
        );
        assert!(text.contains("swarmguard_coordinator_ingest_refused_total{reason=\"token\"} 1\n"), "{text}");
        assert!(text.contains("swarmguard_coordinator_mttr_seconds_bucket{le=\"5\"} 1\n"), "{text}");
    }

    #[test]
    fn the_documentation_lists_every_family() {
        let text = include_str!("../../../docs/metrics.md");
        let table = table(families::FAMILIES);
        assert!(text.contains(&table), "docs/metrics.md lacks, or has another version of:\n{table}");
    }

    #[test]
    fn names_are_as_prometheus_wants_them() {
        for family in families::FAMILIES {
            assert_eq!(family.kind == Kind::Counter, family.name.ends_with("_total"), "{}", family.name);
            let ms = ["_ms", "_millis", "_percent", "_kib", "_mib"];
            assert!(!ms.iter().any(|unit| family.name.ends_with(unit)), "{}: a base unit", family.name);
        }
    }
}
