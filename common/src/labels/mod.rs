//! The labels `swarmguard.*` of a service: what they are, what they may say, what holds where they say nothing.
//!
//! A label that makes no sense is reported by name and value and the whole service is left alone: acting on half of
//! what an operator asked for would be worse than not acting. Labels of the balancer are apart: one that is wrong keeps the
//! service from being balanced, not from being protected.

mod route;
mod value;

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

pub use route::{Algorithm, RouteLabels};

use crate::domain::BasisPoints;
use value::{Reader, bounded, duration, one_of, percent, yes_or_no};

/// Prefix of every label of ours.
pub const PREFIX: &str = "swarmguard.";
/// Prefix of those that tell the balancer what to do.
const ROUTE_PREFIX: &str = "swarmguard.lb.";

/// A label that cannot be obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("label {key}={value:?} makes no sense: {allowed}")]
pub struct LabelError {
    /// The label's whole name.
    pub key: String,
    /// Its value, shortened.
    pub value: String,
    /// What is allowed instead.
    pub allowed: String,
}

/// When a service counts as hot, and on what bandwidth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// `swarmguard.cpu.high`: CPU utilisation from which a replica is hot.
    pub cpu_high: BasisPoints,
    /// `swarmguard.memory.high`: needed memory from which a replica is hot.
    pub memory_high: BasisPoints,
    /// `swarmguard.network.low`: up to here the network says that load is not the reason.
    pub network_low: BasisPoints,
    /// `swarmguard.network.high`: from here the network says that load is the reason.
    pub network_high: BasisPoints,
    /// `swarmguard.network.mbps`: bandwidth that is 100 %, in Mbit/s; the node's link speed where `None`.
    pub network_mbps: Option<u32>,
    /// `swarmguard.hold`: how long a condition must stand before the agent raises it, in milliseconds.
    pub hold_ms: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            cpu_high: BasisPoints::from_percent(75),
            memory_high: BasisPoints::from_percent(80),
            network_low: BasisPoints::from_percent(35),
            network_high: BasisPoints::from_percent(65),
            network_mbps: None,
            hold_ms: 300,
        }
    }
}

/// A raised condition clears below this share of its threshold.
pub const CLEAR_RATIO: f64 = 0.85;

/// How long a raised alert stands before anything is done, where `swarmguard.act-after` says nothing.
pub const ACT_AFTER: Duration = Duration::from_secs(3);

/// A part of SwarmGuard that runs as a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// `swarmguard-agent`.
    Agent,
    /// `swarmguard-coordinator`.
    Coordinator,
    /// `swarmguard-balancer`.
    Balancer,
}

/// How a service may be moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrateMode {
    /// Never.
    Off,
    /// As the policy thinks right; a singleton stays, because two of it would run for a moment.
    #[default]
    Auto,
    /// As [`Self::Auto`], singletons too.
    Surge,
}

/// Reasons to refuse a migration that an operator may wave through with `swarmguard.migrate.allow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allowance {
    /// No healthcheck: "running" then only means that the container started.
    NoHealthcheck,
    /// Node-local volumes, binds and anonymous volumes: their data stays behind.
    LocalVolumes,
    /// `{{.Task.Slot}}` templates: two tasks do not share a slot, the successor has another number.
    SlotTemplates,
}

/// How many replicas one step may add.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleStep {
    /// As many as demand plainly asks for, at most as many again as there are.
    #[default]
    Auto,
    /// At most this many.
    AtMost(u32),
}

/// What a service scales out on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleSignal {
    /// CPU in use, to be kept at `cpu.high` of what the replicas may have.
    Cpu,
    /// Requests in flight, so many for each replica.
    InFlight(u32),
    /// 95 of 100 requests are to be answered within so many milliseconds.
    LatencyP95Ms(u32),
}

/// When a replica is replaced by a fresh one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Replace {
    /// Its memory grows so that the kernel would soon kill it.
    Leak,
}

/// Everything that a service's labels say about its protection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServicePolicy {
    /// `swarmguard.enable`: nothing is done to a service without it.
    pub enabled: bool,
    /// `swarmguard.observe`: decide and explain, change nothing.
    pub observe: bool,
    /// `swarmguard.drill`: faults may be made on purpose where its replicas run.
    pub drill: bool,
    /// `swarmguard.role`: a part of SwarmGuard itself, which is never touched.
    pub role: Option<Part>,
    /// Thresholds for the agents.
    pub thresholds: Thresholds,
    /// `swarmguard.migrate`: `off`, `auto` or `surge`.
    pub migrate: MigrateMode,
    /// `swarmguard.migrate.allow`: a comma-separated list of reasons that do not stop a migration.
    pub allow: Vec<Allowance>,
    /// `swarmguard.act-after`: how long a raised alert stands before anything is done; where `None`, [`ACT_AFTER`],
    /// which stalled tasks may shorten.
    pub act_after: Option<Duration>,
    /// `swarmguard.start-deadline`: from the start of its container until a new replica must be healthy; where `None`,
    /// what its healthcheck allows, and 2 minutes at least.
    pub start_deadline: Option<Duration>,
    /// `swarmguard.cooldown`: between two migrations of the service.
    pub cooldown: Duration,
    /// `swarmguard.scale.min`: never fewer replicas than this. Scaling is off unless both bounds are set.
    pub scale_min: Option<u32>,
    /// `swarmguard.scale.max`: never more replicas than this.
    pub scale_max: Option<u32>,
    /// `swarmguard.scale.memory`: memory takes part in scaling in.
    pub scale_memory: bool,
    /// `swarmguard.scale.on`: what it scales out on; of several the one that asks for most counts.
    pub scale_on: Vec<ScaleSignal>,
    /// `swarmguard.scale.step`: most replicas added at once.
    pub scale_step: ScaleStep,
    /// `swarmguard.warm-up`: how long a new replica's figures say nothing about its load; learned where `None`.
    pub warm_up: Option<Duration>,
    /// `swarmguard.replace`: when a replica is replaced by a fresh one.
    pub replace: Vec<Replace>,
    /// `swarmguard.scale.up.cooldown`: between two steps up.
    pub up_cooldown: Duration,
    /// `swarmguard.scale.down.cooldown`: between two steps down.
    pub down_cooldown: Duration,
    /// `swarmguard.scale.down.window`: how long a replica must have been spare.
    pub down_window: Duration,
    /// `swarmguard.scale.margin`: kept below the threshold when a replica is judged spare.
    pub margin: BasisPoints,
    /// `swarmguard.rebalance`: may be moved to a node that returned.
    pub rebalance: bool,
    /// `swarmguard.job.retries`: how often a Swarm job is run again after its node was lost.
    pub job_retries: u32,
    /// `swarmguard.notify`: the channel that is told of it, whatever services that channel asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<String>,
    /// `swarmguard.lb.connect`: connections of containers to its virtual address go to the replica with fewest.
    pub connect: bool,
    /// `swarmguard.lb.*`, where `swarmguard.lb.port` is set and none of them is wrong.
    pub route: Option<RouteLabels>,
    /// Labels `swarmguard.lb.*` that make no sense: the service is not balanced, all else holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub route_errors: Vec<LabelError>,
}

impl Default for ServicePolicy {
    fn default() -> Self {
        Self {
            enabled: false,
            observe: false,
            drill: false,
            role: None,
            thresholds: Thresholds::default(),
            migrate: MigrateMode::Auto,
            allow: Vec::new(),
            act_after: None,
            start_deadline: None,
            cooldown: Duration::from_secs(60),
            scale_min: None,
            scale_max: None,
            scale_memory: false,
            scale_on: vec![ScaleSignal::Cpu],
            scale_step: ScaleStep::Auto,
            warm_up: None,
            replace: Vec::new(),
            up_cooldown: Duration::ZERO,
            down_cooldown: Duration::from_secs(5),
            down_window: Duration::from_secs(300),
            margin: BasisPoints::from_percent(10),
            rebalance: false,
            job_retries: 3,
            notify: None,
            connect: false,
            route: None,
            route_errors: Vec::new(),
        }
    }
}

impl ServicePolicy {
    /// Reads the `swarmguard.*` labels of a service; others are not looked at.
    ///
    /// # Errors
    /// Every label that makes no sense, unknown names and contradictions included, not only the first. Those that begin
    /// with `swarmguard.lb.` are no error by themselves: they stand in [`Self::route_errors`].
    pub fn from_labels<'a>(
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Vec<LabelError>> {
        let ours: BTreeMap<&str, &str> =
            labels.into_iter().filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value))).collect();
        let mut read = Reader::new(ours);
        let mut policy = Self::default();
        read.take("enable", yes_or_no, &mut policy.enabled);
        read.take("observe", yes_or_no, &mut policy.observe);
        read.take("drill", yes_or_no, &mut policy.drill);
        let parts =
            [("agent", Part::Agent), ("coordinator", Part::Coordinator), ("balancer", Part::Balancer)];
        read.take("role", |text| one_of(text, &parts).map(Some), &mut policy.role);
        read_thresholds(&mut read, &mut policy.thresholds);
        read.take(
            "migrate",
            |text| {
                one_of(
                    text,
                    &[("off", MigrateMode::Off), ("auto", MigrateMode::Auto), ("surge", MigrateMode::Surge)],
                )
            },
            &mut policy.migrate,
        );
        read.take("migrate.allow", allowances, &mut policy.allow);
        read.take("act-after", |text| duration(text, 0, 3_600).map(Some), &mut policy.act_after);
        read.take("start-deadline", |text| duration(text, 1, 86_400).map(Some), &mut policy.start_deadline);
        read.take("cooldown", |text| duration(text, 0, 86_400), &mut policy.cooldown);
        read_scaling(&mut read, &mut policy);
        read.take("rebalance", yes_or_no, &mut policy.rebalance);
        read.take("job.retries", |text| bounded(text, 0, 100), &mut policy.job_retries);
        read.take("notify", |text| channel(text).map(Some), &mut policy.notify);
        // Needs no port, so it is read before the labels that do.
        read.take("lb.connect", yes_or_no, &mut policy.connect);
        policy.route = route::read(&mut read);
        let (route_errors, errors) =
            read.finish().into_iter().partition(|error| error.key.starts_with(ROUTE_PREFIX));
        policy.route_errors = route_errors;
        if !policy.route_errors.is_empty() {
            policy.route = None;
            policy.connect = false;
        }
        if errors.is_empty() {
            return Ok(policy);
        }
        Err(policy.route_errors.into_iter().chain(errors).collect())
    }
}

fn read_thresholds(read: &mut Reader<'_>, thresholds: &mut Thresholds) {
    read.take("cpu.high", percent, &mut thresholds.cpu_high);
    read.take("memory.high", percent, &mut thresholds.memory_high);
    read.take("network.low", percent, &mut thresholds.network_low);
    read.take("network.high", percent, &mut thresholds.network_high);
    read.take("network.mbps", |text| bounded(text, 1, 1_000_000).map(Some), &mut thresholds.network_mbps);
    let mut hold = Duration::from_millis(u64::from(thresholds.hold_ms));
    read.take("hold", |text| duration(text, 0, 60), &mut hold);
    thresholds.hold_ms = u32::try_from(hold.as_millis()).unwrap_or(u32::MAX);
    if thresholds.network_low > thresholds.network_high {
        read.refuse("network.low", format!("at most network.high, which is {}", thresholds.network_high));
    }
}

fn read_scaling(read: &mut Reader<'_>, policy: &mut ServicePolicy) {
    read.take("scale.min", |text| bounded(text, 1, 10_000).map(Some), &mut policy.scale_min);
    read.take("scale.max", |text| bounded(text, 1, 10_000).map(Some), &mut policy.scale_max);
    read.take("scale.memory", yes_or_no, &mut policy.scale_memory);
    read.take("scale.on", scale_signals, &mut policy.scale_on);
    read.take("scale.step", scale_step, &mut policy.scale_step);
    read.take("warm-up", |text| duration(text, 0, 3_600).map(Some), &mut policy.warm_up);
    read.take("replace", replacements, &mut policy.replace);
    read.take("scale.up.cooldown", |text| duration(text, 0, 86_400), &mut policy.up_cooldown);
    read.take("scale.down.cooldown", |text| duration(text, 0, 86_400), &mut policy.down_cooldown);
    read.take("scale.down.window", |text| duration(text, 1, 86_400), &mut policy.down_window);
    read.take("scale.margin", percent, &mut policy.margin);
    match (policy.scale_min, policy.scale_max) {
        (Some(min), Some(max)) if min > max => {
            read.refuse("scale.min", format!("at most scale.max, which is {max}"));
        }
        (Some(_), None) => read.refuse("scale.min", "only together with scale.max".into()),
        (None, Some(_)) => read.refuse("scale.max", "only together with scale.min".into()),
        _ => {}
    }
}

fn channel(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=40).contains(&text.len()) && text.chars().all(plain) {
        return Ok(text.to_owned());
    }
    Err("the name of a channel: 1 to 40 letters, digits, hyphens, dots or underscores".into())
}

fn scale_step(text: &str) -> Result<ScaleStep, String> {
    if text == "auto" {
        return Ok(ScaleStep::Auto);
    }
    bounded(text, 1, 100).map(ScaleStep::AtMost).map_err(|allowed| format!("auto, or {allowed}"))
}

/// A comma-separated list of `cpu`, `in-flight:20`, `latency-p95:200ms`, each at most once.
fn scale_signals(text: &str) -> Result<Vec<ScaleSignal>, String> {
    let allowed = || "a list of cpu, in-flight:<1 to 100000>, latency-p95:<1ms to 10m>".to_owned();
    let mut found: Vec<ScaleSignal> = Vec::new();
    for word in text.split(',').map(str::trim) {
        let signal = match word.split_once(':') {
            None if word == "cpu" => ScaleSignal::Cpu,
            Some(("in-flight", number)) => {
                ScaleSignal::InFlight(bounded(number, 1, 100_000).map_err(|_| allowed())?)
            }
            Some(("latency-p95", goal)) => {
                let goal = duration(goal, 0, 600).map_err(|_| allowed())?.as_millis();
                let goal = u32::try_from(goal).ok().filter(|ms| *ms > 0).ok_or_else(allowed)?;
                ScaleSignal::LatencyP95Ms(goal)
            }
            _ => return Err(allowed()),
        };
        if found.iter().any(|other| std::mem::discriminant(other) == std::mem::discriminant(&signal)) {
            return Err(format!("{}, each once", allowed()));
        }
        found.push(signal);
    }
    Ok(found)
}

fn replacements(text: &str) -> Result<Vec<Replace>, String> {
    let known = [("leak", Replace::Leak)];
    text.split(',').map(|word| one_of(word.trim(), &known)).collect()
}

fn allowances(text: &str) -> Result<Vec<Allowance>, String> {
    let known = [
        ("no-healthcheck", Allowance::NoHealthcheck),
        ("local-volumes", Allowance::LocalVolumes),
        ("slot-templates", Allowance::SlotTemplates),
    ];
    text.split(',').map(|word| one_of(word.trim(), &known)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(labels: &[(&str, &str)]) -> Result<ServicePolicy, Vec<LabelError>> {
        ServicePolicy::from_labels(labels.iter().copied())
    }

    #[test]
    fn nothing_said_means_not_enabled_and_the_documented_defaults() {
        let policy = read(&[("com.docker.stack.namespace", "shop")]).expect("no label of ours");
        assert_eq!(policy, ServicePolicy::default());
        assert!(!policy.enabled);
    }

    #[test]
    fn labels_are_read() {
        let policy = read(&[
            ("swarmguard.enable", "true"),
            ("swarmguard.migrate", "surge"),
            ("swarmguard.cpu.high", "62.5"),
            ("swarmguard.network.mbps", "100"),
            ("swarmguard.scale.min", "2"),
            ("swarmguard.scale.max", "6"),
            ("swarmguard.act-after", "1500ms"),
            ("swarmguard.migrate.allow", "no-healthcheck, local-volumes"),
        ])
        .expect("all sensible");
        assert!(policy.enabled);
        assert_eq!(policy.migrate, MigrateMode::Surge);
        assert_eq!(policy.thresholds.cpu_high, BasisPoints(6_250));
        assert_eq!(policy.thresholds.network_mbps, Some(100));
        assert_eq!((policy.scale_min, policy.scale_max), (Some(2), Some(6)));
        assert_eq!(policy.act_after, Some(Duration::from_millis(1_500)));
        assert_eq!(policy.allow, [Allowance::NoHealthcheck, Allowance::LocalVolumes]);
    }

    #[test]
    fn what_is_scaled_on_and_by_how_much() {
        let policy = read(&[
            ("swarmguard.scale.on", "cpu, in-flight:20,latency-p95:200ms"),
            ("swarmguard.scale.step", "auto"),
            ("swarmguard.warm-up", "90s"),
            ("swarmguard.replace", "leak"),
        ])
        .expect("all sensible");
        let expected = [ScaleSignal::Cpu, ScaleSignal::InFlight(20), ScaleSignal::LatencyP95Ms(200)];
        assert_eq!(policy.scale_on, expected);
        assert_eq!((policy.scale_step, policy.warm_up), (ScaleStep::Auto, Some(Duration::from_secs(90))));
        assert_eq!(policy.replace, [Replace::Leak]);
        assert_eq!(
            read(&[("swarmguard.scale.step", "3")]).expect("sensible").scale_step,
            ScaleStep::AtMost(3)
        );
        for wrong in
            ["", "cpu,cpu", "in-flight", "in-flight:0", "latency-p95:0ms", "latency-p95:20", "memory"]
        {
            assert!(read(&[("swarmguard.scale.on", wrong)]).is_err(), "{wrong:?}");
        }
        assert!(read(&[("swarmguard.scale.step", "double")]).is_err());
    }

    #[test]
    fn balancing_at_connect_needs_no_port() {
        let policy = read(&[("swarmguard.lb.connect", "true")]).expect("sensible");
        assert!(policy.connect && policy.route.is_none());
        assert_eq!(read(&[("swarmguard.lb.connect", "on")]).map(|policy| policy.route_errors.len()), Ok(1));
    }

    #[test]
    fn hosts_that_could_not_match_are_refused_by_name_and_the_others_are_folded() {
        let hosts = |text: &str| {
            let policy =
                read(&[("swarmguard.lb.port", "80"), ("swarmguard.lb.host", text)]).expect("protected");
            let errors: Vec<String> = policy.route_errors.iter().map(ToString::to_string).collect();
            policy.route.map(|route| route.hosts).ok_or_else(|| errors.concat())
        };
        for (text, folded) in [
            ("www.Example.org., shop_web", vec!["www.example.org", "shop_web"]),
            ("*.example.org", vec!["*.example.org"]),
            ("*", vec!["*"]),
        ] {
            assert_eq!(hosts(text), Ok(folded.into_iter().map(String::from).collect()), "{text}");
        }
        for text in
            ["app-*.example.org", "shop.*", "*example.org", "a..b", "", ".", "a.example:80", "a b", "*.*.b"]
        {
            let error = hosts(&format!("fine.example, {text}")).expect_err(text);
            assert!(
                error.contains("lb.host") && error.contains(&format!("{:?}", format!(" {text}"))),
                "{error}"
            );
        }
    }

    #[test]
    fn a_wrong_label_of_the_balancer_does_not_stop_scaling() {
        let policy = read(&[
            ("swarmguard.enable", "true"),
            ("swarmguard.scale.min", "2"),
            ("swarmguard.scale.max", "6"),
            ("swarmguard.lb.port", "80"),
            ("swarmguard.lb.host", "*example.org"),
            ("swarmguard.lb.colour", "red"),
        ])
        .expect("the balancer's labels only");
        assert!(policy.enabled && policy.scale_max == Some(6) && policy.route.is_none());
        let named: Vec<&str> = policy.route_errors.iter().map(|error| error.key.as_str()).collect();
        assert_eq!(named, ["swarmguard.lb.host", "swarmguard.lb.colour"]);
        let both =
            read(&[("swarmguard.enable", "maybe"), ("swarmguard.lb.path", "x")]).expect_err("the first");
        assert_eq!(both.len(), 3, "all are told together, the missing port too: {both:?}");
    }

    #[test]
    fn connections_are_upgraded_to_websocket_and_to_what_is_named() {
        let upgrades = |text: &str| {
            let policy =
                read(&[("swarmguard.lb.port", "80"), ("swarmguard.lb.upgrade", text)]).expect("protected");
            policy.route.map(|route| route.upgrades)
        };
        let default = read(&[("swarmguard.lb.port", "80")]).expect("sensible").route.expect("a route");
        assert_eq!(default.upgrades, ["websocket"]);
        assert_eq!(upgrades("WebSocket, tcp"), Some(vec!["websocket".to_owned(), "tcp".to_owned()]));
        assert_eq!(upgrades("none"), Some(Vec::new()));
        for text in ["h2c", "websocket,h2c", "", "a b"] {
            assert_eq!(upgrades(text), None, "{text}");
        }
    }

    #[test]
    fn every_senseless_label_is_named_with_its_value() {
        let errors = read(&[
            ("swarmguard.enable", "yes please"),
            ("swarmguard.cpu.high", "140"),
            ("swarmguard.cpu.hgih", "70"),
            ("swarmguard.scale.min", "5"),
            ("swarmguard.scale.max", "2"),
        ])
        .expect_err("four of them are wrong");
        let named: Vec<&str> = errors.iter().map(|error| error.key.as_str()).collect();
        assert_eq!(
            named,
            ["swarmguard.enable", "swarmguard.cpu.high", "swarmguard.scale.min", "swarmguard.cpu.hgih"]
        );
        assert!(errors[1].to_string().contains("\"140\""), "{}", errors[1]);
    }
}
