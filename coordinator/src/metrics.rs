//! The coordinator's own figures for Prometheus. One struct with public members, so that the place that knows a figure
//! sets it directly; nothing is judged by them.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, text},
    metrics::{MetricType, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

/// A gauge that holds a fraction.
pub type Fraction = Gauge<f64, AtomicU64>;

/// A gauge that is absent until it is known: 0 would be a value.
#[derive(Clone, Debug, Default)]
pub struct OnceKnown(Arc<Mutex<Option<f64>>>);

impl OnceKnown {
    /// From now on it is known.
    pub fn set(&self, value: f64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }
}

impl EncodeMetric for OnceKnown {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(value) => encoder.encode_gauge(&value),
            None => Ok(()),
        }
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

/// One label: why.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabel {
    /// A stable word.
    pub reason: String,
}

/// One label: by which rule.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RuleLabel {
    /// A stable word.
    pub rule: String,
}

/// One label: in which state.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StateLabel {
    /// A stable word.
    pub state: String,
}

/// What an alert was about and which edge it was.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct AlertLabel {
    /// The condition, for instance `cpu_high`.
    pub condition: String,
    /// `raise`, `refresh` or `clear`.
    pub edge: String,
}

/// What was called and how it ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// What was called or done.
    pub kind: String,
    /// `ok`, `conflict`, ... or how an action ended.
    pub outcome: String,
}

/// One label: which kind of peer.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PeerLabel {
    /// `agent` or `balancer`.
    pub peer: String,
}

/// Largest number of different label values kept in one family; what comes later is counted under `other`.
const MAX_SERIES: usize = 64;

/// All figures.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Peers connected now.
    pub peers: Family<PeerLabel, Gauge>,
    /// What ingest refused.
    pub ingest_refused: Family<ReasonLabel, Counter>,
    /// Reports taken in.
    pub reports: Counter,
    /// Alert edges taken in.
    pub alerts: Family<AlertLabel, Counter>,
    /// Alerts that stand now.
    pub alerts_standing: Gauge,
    /// Node leases by state.
    pub leases: Family<StateLabel, Gauge>,
    /// Decisions by rule.
    pub decisions: Family<RuleLabel, Counter>,
    /// Refusals by rule.
    pub refusals: Family<ReasonLabel, Counter>,
    /// Actions that ended.
    pub actions: Family<OutcomeLabel, Counter>,
    /// Actions under way.
    pub actions_running: Gauge,
    /// First sample over the threshold to the successor serving.
    pub mttr: Histogram,
    /// Commands to Swarm and balancers by outcome.
    pub commands: Family<OutcomeLabel, Counter>,
    /// How long a command took.
    pub command_latency: Histogram,
    /// Age of the newest snapshot, once there is one.
    pub snapshot_age: OnceKnown,
    /// When it was taken, once there is one.
    pub last_snapshot: OnceKnown,
    /// 1 while no snapshot is fresh enough to decide by.
    pub blind: Gauge,
    /// 1 while nobody acts, as far as this coordinator can tell.
    pub nobody_acts: Gauge,
    /// Snapshots that could not be taken.
    pub snapshot_failures: Counter,
    /// Time that judging one batch of inputs took.
    pub judge_latency: Histogram,
    /// Time left to our own certificate.
    pub certificate_left: Fraction,
    /// 1 on the coordinator that acts.
    pub leader: Gauge,
    /// Journal entries by kind.
    pub journal: Family<StateLabel, Counter>,
    /// Journal entries that did not reach the disk.
    pub journal_lost: Counter,
    /// Times that a broken journal was set aside.
    pub journal_set_aside: Counter,
    /// Requests to the API that were refused.
    pub api_refused: Family<ReasonLabel, Counter>,
}

impl Metrics {
    /// Registers every figure under the prefix `swarmguard_coordinator`.
    pub fn new() -> Arc<Self> {
        let seconds = || Histogram::new([0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]);
        let mut all = Self {
            registry: Registry::with_prefix("swarmguard_coordinator"),
            peers: Family::default(),
            ingest_refused: Family::default(),
            reports: Counter::default(),
            alerts: Family::default(),
            alerts_standing: Gauge::default(),
            leases: Family::default(),
            decisions: Family::default(),
            refusals: Family::default(),
            actions: Family::default(),
            actions_running: Gauge::default(),
            mttr: Histogram::new([1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0]),
            commands: Family::default(),
            command_latency: seconds(),
            snapshot_age: OnceKnown::default(),
            last_snapshot: OnceKnown::default(),
            blind: Gauge::default(),
            nobody_acts: Gauge::default(),
            snapshot_failures: Counter::default(),
            judge_latency: Histogram::new([
                0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3,
            ]),
            certificate_left: Fraction::default(),
            leader: Gauge::default(),
            journal: Family::default(),
            journal_lost: Counter::default(),
            journal_set_aside: Counter::default(),
            api_refused: Family::default(),
        };
        all.register();
        Arc::new(all)
    }

    fn register(&mut self) {
        let to = &mut self.registry;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        to.register("build", "Version of the coordinator", build);
        to.register("peers", "Peers connected now", self.peers.clone());
        to.register(
            "ingest_refused",
            "Connections, frames and messages refused",
            self.ingest_refused.clone(),
        );
        to.register("reports", "Reports taken in", self.reports.clone());
        to.register("alerts", "Alert edges taken in", self.alerts.clone());
        to.register("alerts_standing", "Alerts that stand now", self.alerts_standing.clone());
        to.register("leases", "Node leases by state", self.leases.clone());
        to.register("decisions", "Decisions to act, by rule", self.decisions.clone());
        to.register("refusals", "Decisions not to act, by reason", self.refusals.clone());
        to.register("actions", "Actions that ended, by kind and outcome", self.actions.clone());
        to.register("actions_running", "Actions under way", self.actions_running.clone());
        let help = "First sample over the threshold to the successor serving and the old replica out of use";
        to.register_with_unit("mttr", help, Unit::Seconds, self.mttr.clone());
        to.register("commands", "Calls to Swarm and balancers, by kind and outcome", self.commands.clone());
        to.register_with_unit(
            "command_latency",
            "How long a call took",
            Unit::Seconds,
            self.command_latency.clone(),
        );
        to.register_with_unit(
            "snapshot_age",
            "Age of the newest snapshot",
            Unit::Seconds,
            self.snapshot_age.clone(),
        );
        to.register_with_unit(
            "last_snapshot_timestamp",
            "When the newest snapshot was taken, since 1970",
            Unit::Seconds,
            self.last_snapshot.clone(),
        );
        to.register("blind", "1 while no snapshot is fresh enough to decide by", self.blind.clone());
        let help = "1 while nobody acts, as far as this coordinator can tell";
        to.register("nobody_acts", help, self.nobody_acts.clone());
        to.register("snapshot_failures", "Snapshots that could not be taken", self.snapshot_failures.clone());
        let help = "Time that judging one batch of inputs took";
        to.register_with_unit("judge_latency", help, Unit::Seconds, self.judge_latency.clone());
        let help = "Time until our own certificate expires";
        to.register_with_unit("certificate_left", help, Unit::Seconds, self.certificate_left.clone());
        to.register("leader", "1 on the coordinator that acts", self.leader.clone());
        to.register("journal_entries", "Journal entries by kind", self.journal.clone());
        to.register("journal_lost", "Journal entries that did not reach the disk", self.journal_lost.clone());
        to.register(
            "journal_set_aside",
            "Times that a broken journal was set aside",
            self.journal_set_aside.clone(),
        );
        to.register("api_refused", "Requests to the API that were refused", self.api_refused.clone());
    }

    /// The figures in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut out = String::new();
        if text::encode(&mut out, &self.registry).is_err() {
            // Writing to a string cannot fail; should an encoder ever refuse, the scrape shows it.
            out.clear();
            let _ = writeln!(out, "# the metrics could not be encoded");
        }
        out
    }
}

/// Keeps the number of series bounded: words come from our own code and so are few, but nothing may grow without end.
#[derive(Debug, Default)]
pub struct Words(std::collections::BTreeSet<String>);

impl Words {
    /// `word`, or `other` when there are too many already.
    pub fn admit(&mut self, word: &str) -> String {
        if !self.0.contains(word) {
            if self.0.len() >= MAX_SERIES {
                return "other".into();
            }
            self.0.insert(word.into());
        }
        word.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_what_was_counted() {
        let metrics = Metrics::new();
        metrics.ingest_refused.get_or_create(&ReasonLabel { reason: "token".into() }).inc();
        metrics.mttr.observe(4.2);
        let text = metrics.text();
        assert!(!text.contains("snapshot_timestamp_seconds 0"), "none is not the first of 1970: {text}");
        metrics.last_snapshot.set(1.7e9);
        let text = metrics.text();
        assert!(text.contains("swarmguard_coordinator_last_snapshot_timestamp_seconds 1700000000"), "{text}");
        assert!(text.contains("swarmguard_coordinator_ingest_refused_total{reason=\"token\"} 1"), "{text}");
        assert!(text.contains("swarmguard_coordinator_mttr_seconds_bucket{le=\"5.0\"} 1"), "{text}");
    }

    #[test]
    fn words_are_bounded() {
        let mut words = Words::default();
        for number in 0..MAX_SERIES {
            assert_eq!(words.admit(&number.to_string()), number.to_string());
        }
        assert_eq!(words.admit("one more"), "other");
        assert_eq!(words.admit("0"), "0");
    }
}
