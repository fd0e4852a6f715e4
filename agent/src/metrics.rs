//! `/metrics` for Prometheus, written at each scrape from what the agent knows, so that nothing is kept twice. Containers
//! are summed up by service; `/metrics/detail` has each of them.

use std::collections::BTreeMap;

use swarmguard_common::domain::BasisPoints;
use swarmguard_runtime::{
    exposition::{Family, Scrape},
    process,
};

use crate::{
    http::Served,
    state::{Agent, Container, Counted, ServiceSums},
    uplink::Links,
};

swarmguard_runtime::families! {
    BUILD = Gauge "swarmguard_agent_build_info" ["version"] "1, with the version of the agent";
    NODE = Gauge "swarmguard_agent_node_info" ["node"] "1, with the host name of the node";
    CONTAINERS = Gauge "swarmguard_agent_containers" [] "containers watched";
    SEEN = Counter "swarmguard_agent_containers_seen_total" [] "containers watched since the start";
    SAMPLES = Counter "swarmguard_agent_samples_total" [] "container samples taken";
    ALERTS = Counter "swarmguard_agent_alerts_total" [] "alert edges told";
    UNACKNOWLEDGED = Gauge "swarmguard_agent_alerts_unacknowledged" [] "alerts that some coordinator has not acknowledged";
    DROPPED = Counter "swarmguard_agent_dropped_total" ["queue"] "what found no room";
    SERVICE_CONTAINERS = Gauge "swarmguard_agent_service_containers" ["service"] "containers of the service on this node; an empty service: of none";
    SERVICE_CPU = Counter "swarmguard_agent_service_cpu_seconds_total" ["service"] "CPU time that they used";
    SERVICE_CPU_MOST = Gauge "swarmguard_agent_service_cpu_utilisation_max_ratio" ["service"] "highest CPU use of one of them, of cpu.max or of the node, 0 to 1";
    SERVICE_MEMORY = Gauge "swarmguard_agent_service_memory_working_set_bytes" ["service"] "memory that they need: all but page cache";
    SERVICE_MEMORY_MOST = Gauge "swarmguard_agent_service_memory_utilisation_max_ratio" ["service"] "highest memory use of one of them, of memory.max or of the node, 0 to 1";
    SERVICE_RECEIVED = Counter "swarmguard_agent_service_network_receive_bytes_total" ["service"] "layer 3 bytes that they received";
    SERVICE_SENT = Counter "swarmguard_agent_service_network_transmit_bytes_total" ["service"] "layer 3 bytes that they sent";
    SERVICE_PRESSURE = Counter "swarmguard_agent_service_pressure_seconds_total" ["service", "resource"] "time in which some task of a container waited for the resource, summed over containers";
    SERVICE_PERIODS = Counter "swarmguard_agent_service_cpu_periods_total" ["service"] "periods of cpu.max in which they wanted to run";
    SERVICE_THROTTLED = Counter "swarmguard_agent_service_cpu_throttled_periods_total" ["service"] "of those, held back by cpu.max";
    SERVICE_OOM = Counter "swarmguard_agent_service_oom_kills_total" ["service"] "processes of theirs killed for want of memory";
    SERVICE_IN_FLIGHT = Gauge "swarmguard_agent_service_requests_in_flight" ["service"] "requests received and not answered, where the kernel follows them";
    NODE_USE = Gauge "swarmguard_agent_node_utilisation_ratio" ["resource"] "use of the node, 0 to 1";
    NODE_PRESSURE = Counter "swarmguard_agent_node_pressure_seconds_total" ["resource"] "time in which some task of the node waited for the resource";
    NODE_RECEIVED = Counter "swarmguard_agent_node_network_receive_bytes_total" [] "layer 3 bytes received by the interface of the default route";
    NODE_SENT = Counter "swarmguard_agent_node_network_transmit_bytes_total" [] "layer 3 bytes sent by it";
    NODE_CPUS = Gauge "swarmguard_agent_node_cpu_cores" [] "CPUs that the node has";
    NODE_MEMORY = Gauge "swarmguard_agent_node_memory_bytes" [] "memory that the node has";
    STARVED = Gauge "swarmguard_agent_node_starved" [] "1 while the agent's own timers fire late";
    OWN_CPU = Gauge "swarmguard_agent_own_cpu_ratio" [] "CPU use of the agent itself as a share of one CPU, over 5 s";
    INTERVAL = Gauge "swarmguard_agent_sampling_interval_seconds" [] "interval of sampling at present";
    OVER_BUDGET = Gauge "swarmguard_agent_over_budget" [] "1 while sampling is slowed to stay within the budget";
    PASSES = Counter "swarmguard_agent_passes_total" [] "passes over all containers";
    IDLE_TICKS = Counter "swarmguard_agent_idle_ticks_total" [] "ticks without a pass because nothing could be the matter";
    LATE_TICKS = Counter "swarmguard_agent_late_ticks_total" [] "ticks that came more than 100 ms late";
    STALLS = Counter "swarmguard_agent_stalls_total" [] "times that the kernel told of a container stalling for memory";
    BLIND = Gauge "swarmguard_agent_blind" [] "1 where there is no cgroup v2, so that containers cannot be seen";
    CONNECTED = Gauge "swarmguard_agent_coordinator_connected" ["coordinator"] "1 while connected";
    CONNECTIONS = Counter "swarmguard_agent_coordinator_connections_total" ["coordinator"] "connections made";
    CONNECTION_FAILURES = Counter "swarmguard_agent_coordinator_failures_total" ["coordinator"] "attempts to connect that failed";
    CERTIFICATE = Gauge "swarmguard_agent_certificate_expiry_timestamp_seconds" [] "when the certificate expires, seconds since the Unix epoch";
    CONNECT_ADDRESSES = Gauge "swarmguard_agent_connect_addresses" [] "virtual addresses balanced at connect(), by set of networks";
    CONNECT_CONTAINERS = Gauge "swarmguard_agent_connect_containers" [] "containers whose connections are balanced";
    CONNECT_OPEN = Gauge "swarmguard_agent_connect_open" [] "balanced connections open now";
    CONNECT_LEFT_OUT = Gauge "swarmguard_agent_connect_left_out" [] "addresses and replicas left to Swarm for want of room";
    CONNECT_AMBIGUOUS = Gauge "swarmguard_agent_connect_ambiguous" [] "addresses left to Swarm that a container has twice";
    CONNECT_DIRECTED = Counter "swarmguard_agent_connect_directed_total" [] "connections sent to a replica";
    CONNECT_REFUSED = Counter "swarmguard_agent_connect_refused_total" [] "connections left to Swarm for want of memory";
}

/// The families of `/metrics/detail`.
pub mod detail {
    swarmguard_runtime::families! {
        CPU = Counter "swarmguard_agent_container_cpu_seconds_total" ["service", "task", "container"] "CPU time used";
        CPU_USE = Gauge "swarmguard_agent_container_cpu_utilisation_ratio" ["service", "task", "container"] "CPU used of cpu.max or of the node, 0 to 1";
        MEMORY = Gauge "swarmguard_agent_container_memory_working_set_bytes" ["service", "task", "container"] "memory needed: all but page cache";
        MEMORY_USE = Gauge "swarmguard_agent_container_memory_utilisation_ratio" ["service", "task", "container"] "memory needed, of memory.max or of the node, 0 to 1";
        RECEIVED = Counter "swarmguard_agent_container_network_receive_bytes_total" ["service", "task", "container"] "layer 3 bytes received";
        SENT = Counter "swarmguard_agent_container_network_transmit_bytes_total" ["service", "task", "container"] "layer 3 bytes sent";
        NETWORK_USE = Gauge "swarmguard_agent_container_network_utilisation_ratio" ["service", "task", "container"] "bytes both ways of the bandwidth, 0 to 1";
        PRESSURE = Counter "swarmguard_agent_container_pressure_seconds_total" ["service", "task", "container", "resource"] "time in which some task waited for the resource";
        RUN_QUEUE = Counter "swarmguard_agent_container_run_queue_seconds_total" ["service", "task", "container"] "time that its tasks together waited for a CPU";
        PERIODS = Counter "swarmguard_agent_container_cpu_periods_total" ["service", "task", "container"] "periods of cpu.max in which it wanted to run";
        THROTTLED = Counter "swarmguard_agent_container_cpu_throttled_periods_total" ["service", "task", "container"] "of those, held back by cpu.max";
        OOM = Counter "swarmguard_agent_container_oom_kills_total" ["service", "task", "container"] "processes killed for want of memory";
        IN_FLIGHT = Gauge "swarmguard_agent_container_requests_in_flight" ["service", "task", "container"] "requests received and not answered";
        ANSWER = Gauge "swarmguard_agent_container_answer_seconds" ["service", "task", "container"] "median time from a request's first byte to its answer's";
    }
}

const PRESSURES: [(&str, Counted); 3] =
    [("cpu", Counted::StalledCpu), ("memory", Counted::StalledMemory), ("io", Counted::StalledIo)];

/// Everything but single containers, as OpenMetrics text.
pub fn summary(served: &Served) -> String {
    let mut scrape = Scrape::new();
    scrape.family(BUILD).put(&[env!("CARGO_PKG_VERSION")], 1);
    {
        let agent = served.shared.lock();
        scrape.family(NODE).put(&[&agent.hello.hostname], 1);
        scrape.one(CONTAINERS, agent.containers().len());
        scrape.one(SEEN, agent.counts.seen);
        scrape.one(SAMPLES, agent.counts.samples);
        scrape.one(ALERTS, agent.counts.alerts);
        scrape.one(UNACKNOWLEDGED, agent.outbox().len());
        services(&mut scrape, &agent.sums());
        node(&mut scrape, &agent);
    }
    let links = served.shared.links().clone();
    dropped(&mut scrape, served, &links);
    own(&mut scrape, served);
    coordinators(&mut scrape, &links);
    connect(&mut scrape, served);
    process::write(&mut scrape);
    scrape.end()
}

/// Each container, as OpenMetrics text.
pub fn containers(served: &Served) -> String {
    let agent = served.shared.lock();
    let mut scrape = Scrape::new();
    let named: Vec<(&Container, [String; 3])> =
        agent.containers().values().map(|container| (container, labels(&agent, container))).collect();
    let mut add = |family: Family, value: &dyn Fn(&Container) -> Option<f64>| {
        let mut samples = scrape.family(family);
        for (container, labels) in &named {
            if let Some(value) = value(container) {
                samples.put(&labels.each_ref().map(String::as_str), value);
            }
        }
    };
    let counted = |what: Counted, unit: f64| move |it: &Container| Some(scaled(it.totals().get(what)?, unit));
    add(detail::CPU, &counted(Counted::Cpu, 1e6));
    add(detail::CPU_USE, &|it| it.figures.cpu);
    #[expect(clippy::cast_precision_loss, reason = "figures of a scrape are floats")]
    add(detail::MEMORY, &|it| it.figures.memory_bytes.map(|bytes| bytes as f64));
    add(detail::MEMORY_USE, &|it| it.figures.memory);
    add(detail::RECEIVED, &counted(Counted::Received, 1.0));
    add(detail::SENT, &counted(Counted::Sent, 1.0));
    add(detail::NETWORK_USE, &|it| it.figures.network);
    add(detail::RUN_QUEUE, &counted(Counted::RunQueue, 1e9));
    add(detail::PERIODS, &counted(Counted::Periods, 1.0));
    add(detail::THROTTLED, &counted(Counted::Throttled, 1.0));
    add(detail::OOM, &counted(Counted::OomKills, 1.0));
    add(detail::IN_FLIGHT, &|it| it.figures.in_flight.map(f64::from));
    add(detail::ANSWER, &|it| it.figures.latency_us.map(|micros| f64::from(micros) / 1e6));
    let mut pressure = scrape.family(detail::PRESSURE);
    for (container, [service, task, id]) in &named {
        for (resource, what) in PRESSURES {
            if let Some(micros) = container.totals().get(what) {
                pressure.put(&[service, task, id, resource], scaled(micros, 1e6));
            }
        }
    }
    scrape.end()
}

/// Service, task, and as much of the container's ID as the engine shows.
fn labels(agent: &Agent, container: &Container) -> [String; 3] {
    let task = container.task().map(ToString::to_string).unwrap_or_default();
    let id: String = container.id.as_str().chars().take(12).collect();
    [agent.service_of(container).unwrap_or_default().into(), task, id]
}

fn services(scrape: &mut Scrape, sums: &BTreeMap<String, ServiceSums>) {
    let mut add = |family: Family, value: &dyn Fn(&ServiceSums) -> Option<f64>| {
        let mut samples = scrape.family(family);
        for (service, sum) in sums {
            if let Some(value) = value(sum) {
                samples.put(&[service], value);
            }
        }
    };
    let counted = |what: Counted, unit: f64| move |it: &ServiceSums| Some(scaled(it.totals.get(what)?, unit));
    add(SERVICE_CONTAINERS, &|it| Some(scaled(it.containers, 1.0)));
    add(SERVICE_CPU, &counted(Counted::Cpu, 1e6));
    add(SERVICE_CPU_MOST, &|it| it.cpu_most);
    add(SERVICE_MEMORY, &|it| Some(scaled(it.memory_bytes, 1.0)));
    add(SERVICE_MEMORY_MOST, &|it| it.memory_most);
    add(SERVICE_RECEIVED, &counted(Counted::Received, 1.0));
    add(SERVICE_SENT, &counted(Counted::Sent, 1.0));
    add(SERVICE_PERIODS, &counted(Counted::Periods, 1.0));
    add(SERVICE_THROTTLED, &counted(Counted::Throttled, 1.0));
    add(SERVICE_OOM, &counted(Counted::OomKills, 1.0));
    add(SERVICE_IN_FLIGHT, &|it| it.in_flight.map(|count| scaled(count, 1.0)));
    let mut pressure = scrape.family(SERVICE_PRESSURE);
    for (service, sum) in sums {
        for (resource, what) in PRESSURES {
            if let Some(micros) = sum.totals.get(what) {
                pressure.put(&[service, resource], scaled(micros, 1e6));
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures of a scrape are floats")]
fn scaled(count: u64, unit: f64) -> f64 {
    count as f64 / unit
}

fn node(scrape: &mut Scrape, agent: &Agent) {
    let (load, reading) = (agent.node, agent.node_reading());
    let mut used = scrape.family(NODE_USE);
    for (resource, share) in [("cpu", load.cpu), ("memory", load.memory), ("network", load.network)] {
        if let Some(share) = share.map(BasisPoints::ratio) {
            used.put(&[resource], share);
        }
    }
    let mut pressure = scrape.family(NODE_PRESSURE);
    for (resource, stalled) in
        [("cpu", reading.psi_cpu), ("memory", reading.psi_memory), ("io", reading.psi_io)]
    {
        if let Some(stalled) = stalled {
            pressure.put(&[resource], scaled(stalled.some_usec, 1e6));
        }
    }
    scrape.known(NODE_RECEIVED, reading.network.map(|traffic| traffic.rx_bytes));
    scrape.known(NODE_SENT, reading.network.map(|traffic| traffic.tx_bytes));
    scrape.one(NODE_CPUS, f64::from(agent.capacity.cpu_millis) / 1_000.0);
    scrape.one(NODE_MEMORY, agent.capacity.memory_bytes);
    scrape.one(STARVED, u8::from(load.starved));
}

fn own(scrape: &mut Scrape, served: &Served) {
    let vitals = served.vitals();
    scrape.known(OWN_CPU, vitals.own_share);
    scrape.one(INTERVAL, vitals.interval.as_secs_f64());
    scrape.one(OVER_BUDGET, u8::from(vitals.slowed));
    scrape.one(PASSES, vitals.passes);
    scrape.one(IDLE_TICKS, vitals.idle_ticks);
    scrape.one(LATE_TICKS, vitals.late_ticks);
    scrape.one(STALLS, vitals.stalls);
    scrape.one(BLIND, u8::from(served.blind.is_some()));
}

/// Balancing at `connect()`, where the kernel can.
fn connect(scrape: &mut Scrape, served: &Served) {
    let figures = served.vitals().connect;
    scrape.known(CONNECT_ADDRESSES, figures.map(|it| it.frontends));
    scrape.known(CONNECT_CONTAINERS, figures.map(|it| it.containers));
    scrape.known(CONNECT_OPEN, figures.map(|it| it.open));
    scrape.known(CONNECT_LEFT_OUT, figures.map(|it| it.left_out));
    scrape.known(CONNECT_AMBIGUOUS, figures.map(|it| it.ambiguous));
    scrape.known(CONNECT_DIRECTED, figures.map(|it| it.directed));
    scrape.known(CONNECT_REFUSED, figures.map(|it| it.refused));
}

fn coordinators(scrape: &mut Scrape, links: &Links) {
    type Value = fn(&crate::uplink::Link) -> u64;
    let families: [(Family, Value); 3] = [
        (CONNECTED, |link| link.connected.into()),
        (CONNECTIONS, |link| link.connections),
        (CONNECTION_FAILURES, |link| link.failures),
    ];
    for (family, read) in families {
        let mut samples = scrape.family(family);
        for (address, link) in &links.by_address {
            samples.put(&[&address.to_string()], read(link));
        }
    }
    scrape.known(CERTIFICATE, links.certificate_expires_at);
}

fn dropped(scrape: &mut Scrape, served: &Served, links: &Links) {
    let agent = served.shared.lock();
    let mut samples = scrape.family(DROPPED);
    for (queue, count) in [
        ("alerts", agent.outbox().dropped()),
        ("reports", links.reports_dropped),
        ("engine_events", agent.counts.events_dropped),
        ("containers", agent.counts.refused),
    ] {
        samples.put(&[queue], count);
    }
}

#[cfg(test)]
mod tests {
    use swarmguard_runtime::exposition::table;

    #[test]
    fn the_documentation_lists_every_family() {
        let text = include_str!("../../docs/metrics.md");
        for table in [table(super::FAMILIES), table(super::detail::FAMILIES)] {
            assert!(text.contains(&table), "docs/metrics.md lacks, or has another version of:\n{table}");
        }
    }
}
