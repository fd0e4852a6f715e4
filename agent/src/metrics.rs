//! `/metrics` for Prometheus: built anew at each scrape from what the agent knows, so that nothing is kept twice.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use swarmguard_common::domain::BasisPoints;
use swarmguard_runtime::clock;

use crate::{
    http::Served,
    state::{Agent, Container},
    uplink::Links,
};

type FloatGauge = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ContainerLabels {
    container_id: String,
    container_name: String,
    service_name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Coordinator {
    coordinator: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Resource {
    resource: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Queue {
    queue: &'static str,
}

/// Everything as OpenMetrics text.
///
/// # Errors
/// Never in practice: writing to a string does not fail.
pub fn encode(served: &Served) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("swarmguard_agent");
    {
        let agent = served.shared.lock();
        containers(&mut registry, &agent);
        node(&mut registry, &agent);
    }
    own(&mut registry, served);
    let links = served.shared.links().clone();
    connect(&mut registry, served);
    coordinators(&mut registry, &links);
    drops(&mut registry, served, &links);
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// A gauge per container that is left out where it is not known.
fn containers(registry: &mut Registry, agent: &Agent) {
    let mut add = |name: &str, help: &str, value: &dyn Fn(&Container) -> Option<f64>| {
        let family = Family::<ContainerLabels, FloatGauge>::default();
        for container in agent.containers().values() {
            if let Some(value) = value(container) {
                family.get_or_create(&labels(agent, container)).set(value);
            }
        }
        registry.register(name, help, family);
    };
    add("container_cpu_utilisation_ratio", "CPU used of cpu.max or of the node, 0 to 1", &|it| {
        it.figures.cpu
    });
    add("container_cpu_cores", "CPUs in use", &|it| it.figures.cpu_millis.map(|millis| millis / 1_000.0));
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    add("container_memory_working_set_bytes", "memory in use less page cache", &|it| {
        it.figures.memory_bytes.map(|bytes| bytes as f64)
    });
    add("container_memory_utilisation_ratio", "memory needed, of memory.max or of the node, 0 to 1", &|it| {
        it.figures.memory
    });
    add("container_network_receive_bytes_per_second", "layer 3 bytes received", &|it| {
        it.figures.rx_bytes_per_s
    });
    add("container_network_transmit_bytes_per_second", "layer 3 bytes sent", &|it| it.figures.tx_bytes_per_s);
    add("container_network_utilisation_ratio", "bytes both ways of the bandwidth, 0 to 1", &|it| {
        it.figures.network
    });
    add("container_pressure_cpu_ratio", "share of time that some task stalled for a CPU", &|it| {
        it.figures.slow.psi_cpu
    });
    add("container_pressure_memory_ratio", "share of time that some task stalled for memory", &|it| {
        it.figures.slow.psi_memory
    });
    add("container_pressure_io_ratio", "share of time that some task stalled for disks", &|it| {
        it.figures.slow.psi_io
    });
    add(
        "container_run_queue_ratio",
        "CPUs that its tasks together waited for, 1 is one task all the time",
        &|it| it.figures.slow.run_queue,
    );
    add("container_requests_in_flight", "requests that were received and not answered", &|it| {
        it.figures.in_flight.map(f64::from)
    });
    add("container_answer_seconds", "median time from a request's first byte to its answer's", &|it| {
        it.figures.latency_us.map(|micros| f64::from(micros) / 1_000_000.0)
    });
    add("container_throttled_ratio", "share of periods held back by cpu.max", &|it| it.figures.throttled);
}

fn labels(agent: &Agent, container: &Container) -> ContainerLabels {
    let description = container.description.as_ref();
    ContainerLabels {
        container_id: container.id.to_string(),
        container_name: description.map(|it| it.name.clone()).unwrap_or_default(),
        service_name: agent.service_of(container).unwrap_or_default().into(),
    }
}

fn node(registry: &mut Registry, agent: &Agent) {
    let load = agent.node;
    let use_of = Family::<Resource, FloatGauge>::default();
    let pressure = Family::<Resource, FloatGauge>::default();
    let set = |family: &Family<Resource, FloatGauge>, resource, value: Option<BasisPoints>| {
        if let Some(value) = value {
            family.get_or_create(&Resource { resource }).set(value.ratio());
        }
    };
    set(&use_of, "cpu", load.cpu);
    set(&use_of, "memory", load.memory);
    set(&use_of, "network", load.network);
    set(&pressure, "cpu", load.psi_cpu);
    set(&pressure, "memory", load.psi_memory);
    set(&pressure, "io", load.psi_io);
    registry.register("node_utilisation_ratio", "use of the node, 0 to 1", use_of);
    registry.register("node_pressure_ratio", "share of time that some task of the node stalled", pressure);
    gauge(
        registry,
        "node_starved",
        "1 while the agent's own timers fire late",
        f64::from(u8::from(load.starved)),
    );
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    let watched = agent.containers().len() as f64;
    gauge(registry, "containers", "containers watched", watched);
    counter(registry, "containers_seen", "containers watched since the start", agent.counts.seen);
    counter(registry, "samples", "container samples taken", agent.counts.samples);
    counter(registry, "alerts", "alert edges told", agent.counts.alerts);
}

fn own(registry: &mut Registry, served: &Served) {
    let vitals = served.vitals();
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    {
        let cpu = Counter::<f64, AtomicU64>::default();
        cpu.inc_by(vitals.own.cpu_usec as f64 / 1_000_000.0);
        registry.register_with_unit("cpu", "CPU time of the agent itself", Unit::Seconds, cpu);
        if let Some(bytes) = vitals.own.resident_bytes {
            gauge(registry, "resident_memory_bytes", "resident memory of the agent itself", bytes as f64);
        }
    }
    if let Some(share) = vitals.own_share {
        gauge(
            registry,
            "cpu_core_ratio",
            "CPU use of the agent itself as a share of one CPU, over 5 s",
            share,
        );
    }
    let interval = vitals.interval.as_secs_f64();
    gauge(registry, "sampling_interval_seconds", "interval of sampling at present", interval);
    let slowed = f64::from(u8::from(vitals.slowed));
    gauge(registry, "over_budget", "1 while sampling is slowed to stay within the budget", slowed);
    counter(registry, "passes", "passes over all containers", vitals.passes);
    counter(
        registry,
        "idle_ticks",
        "ticks without a pass because nothing could be the matter",
        vitals.idle_ticks,
    );
    counter(registry, "late_ticks", "ticks that came more than 100 ms late", vitals.late_ticks);
    counter(
        registry,
        "stalls",
        "times that the kernel told of a container stalling for memory",
        vitals.stalls,
    );
    let blind = f64::from(u8::from(served.blind.is_some()));
    gauge(registry, "blind", "1 where there is no cgroup v2, so that containers cannot be seen", blind);
}

/// Balancing at `connect()`, where the kernel can.
fn connect(registry: &mut Registry, served: &Served) {
    let Some(figures) = served.vitals().connect else { return };
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    for (name, help, value) in [
        ("connect_addresses", "virtual addresses balanced, by set of networks", figures.frontends as f64),
        ("connect_containers", "containers whose connections are balanced", figures.containers as f64),
        ("connect_open", "balanced connections open now", figures.open as f64),
        (
            "connect_left_out",
            "addresses and replicas left to Swarm for want of room",
            figures.left_out as f64,
        ),
        ("connect_ambiguous", "addresses left to Swarm that a container has twice", figures.ambiguous as f64),
    ] {
        gauge(registry, name, help, value);
    }
    counter(registry, "connect_directed", "connections sent to a replica", figures.directed);
    counter(registry, "connect_refused", "connections left to Swarm for want of memory", figures.refused);
}

fn coordinators(registry: &mut Registry, links: &Links) {
    let connected = Family::<Coordinator, FloatGauge>::default();
    let connections = Family::<Coordinator, Counter>::default();
    let failures = Family::<Coordinator, Counter>::default();
    let acknowledged = Family::<Coordinator, Counter>::default();
    for (address, link) in &links.by_address {
        let label = Coordinator { coordinator: address.to_string() };
        connected.get_or_create(&label).set(f64::from(u8::from(link.connected)));
        connections.get_or_create(&label).inc_by(link.connections);
        failures.get_or_create(&label).inc_by(link.failures);
        acknowledged.get_or_create(&label).inc_by(link.acknowledged);
    }
    registry.register("coordinator_connected", "1 while connected", connected);
    registry.register("coordinator_connections", "connections made", connections);
    registry.register("coordinator_failures", "attempts that failed", failures);
    registry.register(
        "coordinator_acknowledged_alerts",
        "number of the last alert acknowledged",
        acknowledged,
    );
    if let Some(expires_at) = links.certificate_expires_at {
        #[expect(clippy::cast_precision_loss, reason = "seconds need no more than 53 bits")]
        let (expires_at, now) = (expires_at as f64, clock::wall_ms() as f64 / 1_000.0);
        let help = "when the certificate expires, seconds since the Unix epoch";
        gauge(registry, "certificate_expiry_timestamp_seconds", help, expires_at);
        gauge(
            registry,
            "certificate_valid_seconds",
            "time until the certificate expires",
            (expires_at - now).max(0.0),
        );
    }
}

fn drops(registry: &mut Registry, served: &Served, links: &Links) {
    let agent = served.shared.lock();
    let dropped = Family::<Queue, Counter>::default();
    for (queue, count) in [
        ("alerts", agent.outbox().dropped()),
        ("reports", links.reports_dropped),
        ("engine_events", agent.counts.events_dropped),
        ("containers", agent.counts.refused),
    ] {
        dropped.get_or_create(&Queue { queue }).inc_by(count);
    }
    registry.register("dropped", "what found no room, by queue", dropped);
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    let waiting = agent.outbox().len() as f64;
    gauge(registry, "alerts_kept", "alerts that some coordinator has not acknowledged", waiting);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = FloatGauge::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter: Counter = Counter::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}
