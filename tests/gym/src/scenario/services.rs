//! Services of a scenario: their spec as Swarm has it, how their containers behave, and what is asked of them.

use std::time::Duration;

use serde_json::{Value, json};
use swarmguard_common::labels::ServicePolicy;

use super::{BackendSpec, curve::Curve, read::Section};
use crate::number::{count, micros};

/// How requests are spread over replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// In turns, as Swarm's own ingress does.
    RoundRobin,
    /// To the replica with fewest requests, as the balancer does.
    Least,
}

/// A service.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Its name.
    pub name: String,
    /// Replicas at the start.
    pub replicas: u64,
    /// Nodes that its replicas begin on, by index; any where it is empty.
    pub start_on: Vec<usize>,
    /// Service labels.
    pub labels: Vec<(String, String)>,
    /// The labels as SwarmGuard reads them; default where it refuses them.
    pub policy: ServicePolicy,
    /// `--constraint`.
    pub constraints: Vec<String>,
    /// `--placement-pref spread=…`.
    pub spread: Vec<String>,
    /// `--replicas-max-per-node`; 0 for no limit.
    pub max_per_node: u64,
    /// `--limit-cpu`.
    pub cpus: Option<f64>,
    /// `--limit-memory`, bytes.
    pub memory: Option<u64>,
    /// `--reserve-cpu`.
    pub reserve_cpus: Option<f64>,
    /// `--reserve-memory`, bytes.
    pub reserve_memory: Option<u64>,
    /// Whether it has a healthcheck.
    pub healthcheck: bool,
    /// `--health-start-period`.
    pub start_period: Option<Duration>,
    /// `--health-interval`.
    pub health_interval: Duration,
    /// A check fails where a request would wait longer than this; `None`: checks never fail.
    pub health_timeout: Option<Duration>,
    /// `--health-retries`: so many failed checks in a row end the container.
    pub health_retries: u64,
    /// Other fields of the spec, as JSON, put over what the keys above make.
    pub spec: Option<Value>,
    /// Pull and creation of a container.
    pub pull: Duration,
    /// From its start until it is healthy.
    pub healthy: Duration,
    /// From SIGTERM to its end.
    pub stop: Duration,
    /// Share of starts that fail.
    pub failing_starts: f64,
    /// CPU time of a request, on a node of speed 1.
    pub cpu_time: Duration,
    /// Standard deviation of that over its mean; 1 is exponential-like, 0 always the same.
    pub variation: f64,
    /// Requests that a replica works at at once; `None`: one per CPU that it may use.
    pub workers: Option<u64>,
    /// Requests that wait at a replica at most; more are refused.
    pub queue: u64,
    /// A request that waited longer is given up by its client.
    pub timeout: Duration,
    /// A request that took longer is late.
    pub goal: Duration,
    /// Bytes of a request and its answer together.
    pub bytes: f64,
    /// Index of the back end that each request calls.
    pub backend: Option<usize>,
    /// How requests are spread.
    pub balance: Balance,
    /// Requests a second.
    pub demand: Curve,
    /// CPUs of work that the replicas share, apart from requests.
    pub work: Curve,
    /// CPUs that every replica burns, apart from requests.
    pub burn: Curve,
    /// For so long after its start a replica warms up.
    pub warm_up: Duration,
    /// CPUs that warming up burns.
    pub warm_up_cpus: f64,
    /// How many times longer requests take at its beginning.
    pub warm_up_slowdown: f64,
    /// Bytes that a replica needs at rest.
    pub heap: u64,
    /// More bytes for each request that it works at or that waits.
    pub heap_per_request: u64,
    /// Bytes a minute that are never given back.
    pub leak: f64,
    /// Page cache that it fills if it can, bytes.
    pub cache: u64,
    /// Share of the cache that the kernel calls active.
    pub cache_active: f64,
}

pub(super) fn read(section: &Section<'_, '_>, backends: &[BackendSpec], nodes: usize) -> ServiceSpec {
    let (zero, day) = (Duration::ZERO, Duration::from_secs(86_400));
    let ms = Duration::from_millis;
    let labels = section.map("labels");
    let backend = section.text("backend", "");
    let found = backends.iter().position(|known| known.name == backend);
    if !backend.is_empty() && found.is_none() {
        section.refuse("backend", "the name of one of [[backends]]");
    }
    let spec = section.text("spec", "");
    let spec = if spec.is_empty() { None } else { read_spec(section, &spec) };
    let service = ServiceSpec {
        name: section.text("name", ""),
        replicas: section.whole("replicas", 1, 0..=10_000),
        start_on: section.indexes("start_on", nodes),
        policy: read_policy(section, &labels),
        labels,
        constraints: section.texts("constraints"),
        spread: section.texts("spread"),
        max_per_node: section.whole("max_per_node", 0, 0..=10_000),
        cpus: section.maybe_number("cpus", 0.01..=1_024.0),
        memory: section.maybe_bytes("memory"),
        reserve_cpus: section.maybe_number("reserve_cpus", 0.01..=1_024.0),
        reserve_memory: section.maybe_bytes("reserve_memory"),
        healthcheck: section.choice("healthcheck", true, &[("yes", true), ("no", false)]),
        start_period: section.maybe_duration("start_period", zero..=day),
        health_interval: section.duration("health_interval", ms(1_000), ms(100)..=day),
        health_timeout: section.maybe_duration("health_timeout", ms(1)..=day),
        health_retries: section.whole("health_retries", 3, 1..=1_000),
        spec,
        pull: section.duration("pull", ms(300), zero..=day),
        healthy: section.duration("healthy", ms(1_000), zero..=day),
        stop: section.duration("stop", ms(200), zero..=day),
        failing_starts: section.number("failing_starts", 0.0, 0.0..=1.0),
        cpu_time: section.duration("cpu_time", ms(10), Duration::from_micros(1)..=Duration::from_secs(60)),
        variation: section.number("variation", 0.7, 0.0..=10.0),
        workers: section.maybe_whole("workers", 1..=100_000),
        queue: section.whole("queue", 2_000, 1..=100_000),
        timeout: section.duration("timeout", ms(10_000), ms(1)..=day),
        goal: section.duration("goal", ms(250), ms(1)..=day),
        bytes: section.number("bytes", 10_000.0, 0.0..=1e9),
        backend: found,
        balance: section.choice(
            "balance",
            Balance::RoundRobin,
            &[("round-robin", Balance::RoundRobin), ("least", Balance::Least)],
        ),
        demand: Curve::read(&section.tables("demand")),
        work: Curve::read(&section.tables("work")),
        burn: Curve::read(&section.tables("burn")),
        warm_up: section.duration("warm_up", zero, zero..=day),
        warm_up_cpus: section.number("warm_up_cpus", 0.0, 0.0..=1_024.0),
        warm_up_slowdown: section.number("warm_up_slowdown", 1.0, 1.0..=1_000.0),
        heap: section.bytes("heap", 64 << 20),
        heap_per_request: section.bytes("heap_per_request", 256 << 10),
        leak: section.maybe_bytes("leak_per_minute").map_or(0.0, crate::number::real),
        cache: section.bytes("cache", 0),
        cache_active: section.number("cache_active", 0.5, 0.0..=1.0),
    };
    if service.name.is_empty() || !service.name.chars().all(|it| it.is_ascii_alphanumeric() || it == '-') {
        section.refuse("name", "a name of letters, digits and hyphens");
    }
    section.finish(&[]);
    service
}

fn read_spec(section: &Section<'_, '_>, text: &str) -> Option<Value> {
    match serde_json::from_str(text) {
        Ok(spec @ Value::Object(_)) => Some(spec),
        Ok(_) => {
            section.refuse("spec", "a JSON object of Swarm's service spec");
            None
        }
        Err(error) => {
            section.refuse("spec", format!("a JSON object of Swarm's service spec ({error})"));
            None
        }
    }
}

fn read_policy(section: &Section<'_, '_>, labels: &[(String, String)]) -> ServicePolicy {
    let pairs = labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    ServicePolicy::from_labels(pairs).unwrap_or_else(|errors| {
        for error in errors {
            section.refuse("labels", error);
        }
        ServicePolicy::default()
    })
}

impl ServiceSpec {
    /// What Swarm is given.
    pub fn to_spec(&self) -> Value {
        let nanos = |cpus: f64| count(cpus * 1e9);
        let labels: serde_json::Map<String, Value> =
            self.labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let mut container = json!({"Image": "web:1"});
        if self.healthcheck {
            container["Healthcheck"] = json!({
                "Test": ["CMD", "/web", "healthcheck"],
                "Interval": micros(self.health_interval) * 1_000,
                "Retries": self.health_retries,
            });
            if let Some(period) = self.start_period {
                container["Healthcheck"]["StartPeriod"] = json!(micros(period) * 1_000);
            }
        }
        let mut placement = json!({});
        if !self.constraints.is_empty() {
            placement["Constraints"] = json!(self.constraints);
        }
        if !self.spread.is_empty() {
            let spread: Vec<Value> = self
                .spread
                .iter()
                .map(|descriptor| json!({"Spread": {"SpreadDescriptor": descriptor}}))
                .collect();
            placement["Preferences"] = json!(spread);
        }
        if self.max_per_node > 0 {
            placement["MaxReplicas"] = json!(self.max_per_node);
        }
        let mut resources = json!({});
        if self.cpus.is_some() || self.memory.is_some() {
            resources["Limits"] = amounts(self.cpus.map(nanos), self.memory);
        }
        if self.reserve_cpus.is_some() || self.reserve_memory.is_some() {
            resources["Reservations"] = amounts(self.reserve_cpus.map(nanos), self.reserve_memory);
        }
        let mut spec = json!({
            "Name": self.name,
            "Labels": labels,
            "TaskTemplate": {
                "ContainerSpec": container,
                "Resources": resources,
                "Placement": placement,
                "ForceUpdate": 0,
            },
            "Mode": {"Replicated": {"Replicas": self.replicas}},
            "UpdateConfig": {"Parallelism": 1, "Order": "start-first"},
            "EndpointSpec": {"Mode": "vip"},
        });
        if let Some(more) = &self.spec {
            put_over(&mut spec, more);
        }
        spec
    }

    /// Whether anything is asked of it that scaling can help with, and how much one replica can do.
    pub fn scales(&self) -> bool {
        self.policy.enabled && self.policy.scale_min.is_some() && self.policy.scale_max.is_some()
    }
}

fn amounts(nanos: Option<u64>, bytes: Option<u64>) -> Value {
    let mut amounts = json!({});
    if let Some(nanos) = nanos {
        amounts["NanoCPUs"] = json!(nanos);
    }
    if let Some(bytes) = bytes {
        amounts["MemoryBytes"] = json!(bytes);
    }
    amounts
}

/// Objects are merged, everything else is replaced.
fn put_over(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                put_over(below.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above.clone(),
    }
}
