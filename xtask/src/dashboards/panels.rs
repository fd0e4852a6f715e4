//! What the dashboards show.

use super::{
    Dashboard,
    Kind::{Figure, Lines},
    Panel,
};

/// Marks on every dashboard: actions that ended.
pub const ENDED: &str =
    "sum by (kind, outcome) (increase(swarmguard_coordinator_actions_total[$__interval])) > 0";

/// All dashboards.
pub const ALL: &[Dashboard] = &[OVERVIEW, SERVICE, NODE, BALANCER, CONTROL_PLANE];

const fn figure(
    title: &'static str,
    unit: &'static str,
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel { title, kind: Figure, unit, queries }
}

const fn lines(
    title: &'static str,
    unit: &'static str,
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel { title, kind: Lines, unit, queries }
}

const OVERVIEW: Dashboard = Dashboard {
    uid: "overview",
    title: "Overview",
    filter: None,
    panels: &[
        figure("Health", "none", &[("max(swarmguard_coordinator_health_score)", "")]),
        figure("Coordinators that act (1 is right)", "none", &[("sum(swarmguard_coordinator_acting)", "")]),
        figure("Alerts that stand", "none", &[("max(swarmguard_coordinator_alerts_standing)", "")]),
        figure("Actions under way", "none", &[("max(swarmguard_coordinator_actions_running)", "")]),
        lines("Nodes", "none", &[("max by (state) (swarmguard_coordinator_nodes)", "{{state}}")]),
        lines(
            "Replicas",
            "none",
            &[(
                "sum by (state) (max by (service, state) (swarmguard_coordinator_service_replicas))",
                "{{state}}",
            )],
        ),
        lines(
            "CPU of nodes",
            "percentunit",
            &[("max by (node) (swarmguard_agent_node_utilisation_ratio{resource=\"cpu\"})", "{{node}}")],
        ),
        lines(
            "Memory of nodes",
            "percentunit",
            &[("max by (node) (swarmguard_agent_node_utilisation_ratio{resource=\"memory\"})", "{{node}}")],
        ),
        lines(
            "Tasks wait for a CPU",
            "percentunit",
            &[(
                "max by (node) (rate(swarmguard_agent_node_pressure_seconds_total{resource=\"cpu\"}[$__rate_interval]))",
                "{{node}}",
            )],
        ),
        lines(
            "Requests through balancers",
            "reqps",
            &[(
                "sum by (service) (rate(swarmguard_balancer_service_requests_total[$__rate_interval]))",
                "{{service}}",
            )],
        ),
        lines(
            "Actions that ended in the last hour",
            "none",
            &[(
                "sum by (kind, outcome) (increase(swarmguard_coordinator_actions_total[1h]))",
                "{{kind}} {{outcome}}",
            )],
        ),
        lines(
            "Alerts of Prometheus",
            "none",
            &[("count by (alertname) (ALERTS{alertstate=\"firing\"})", "{{alertname}}")],
        ),
    ],
};

const SERVICE: Dashboard = Dashboard {
    uid: "service",
    title: "Service",
    filter: Some(("service", "label_values(swarmguard_coordinator_service_replicas, service)")),
    panels: &[
        lines(
            "Replicas",
            "none",
            &[(
                "max by (service, state) (swarmguard_coordinator_service_replicas{service=~\"$service\"})",
                "{{service}} {{state}}",
            )],
        ),
        lines(
            "CPUs in use",
            "none",
            &[(
                "sum by (service) (rate(swarmguard_agent_service_cpu_seconds_total{service=~\"$service\"}[$__rate_interval]))",
                "{{service}}",
            )],
        ),
        lines(
            "Hottest replica: CPU",
            "percentunit",
            &[(
                "max by (service) (swarmguard_agent_service_cpu_utilisation_max_ratio{service=~\"$service\"})",
                "{{service}}",
            )],
        ),
        lines(
            "Hottest replica: memory",
            "percentunit",
            &[(
                "max by (service) (swarmguard_agent_service_memory_utilisation_max_ratio{service=~\"$service\"})",
                "{{service}}",
            )],
        ),
        lines(
            "Memory",
            "bytes",
            &[(
                "sum by (service) (swarmguard_agent_service_memory_working_set_bytes{service=~\"$service\"})",
                "{{service}}",
            )],
        ),
        lines(
            "Network",
            "Bps",
            &[
                (
                    "sum by (service) (rate(swarmguard_agent_service_network_receive_bytes_total{service=~\"$service\"}[$__rate_interval])) or sum by (service) (swarmguard_agent_service_containers{service=~\"$service\"}) * 0",
                    "{{service}} received",
                ),
                (
                    "sum by (service) (rate(swarmguard_agent_service_network_transmit_bytes_total{service=~\"$service\"}[$__rate_interval])) or sum by (service) (swarmguard_agent_service_containers{service=~\"$service\"}) * 0",
                    "{{service}} sent",
                ),
            ],
        ),
        lines(
            "Replicas wait, summed up",
            "percentunit",
            &[(
                "sum by (service, resource) (rate(swarmguard_agent_service_pressure_seconds_total{service=~\"$service\"}[$__rate_interval]))",
                "{{service}} {{resource}}",
            )],
        ),
        lines(
            "Held back by CPU limits",
            "percentunit",
            &[(
                "sum by (service) (rate(swarmguard_agent_service_cpu_throttled_periods_total{service=~\"$service\"}[$__rate_interval])) / (sum by (service) (rate(swarmguard_agent_service_cpu_periods_total{service=~\"$service\"}[$__rate_interval])) > 0)",
                "{{service}}",
            )],
        ),
        lines(
            "Answers by class",
            "reqps",
            &[(
                "sum by (service, class) (rate(swarmguard_balancer_service_responses_total[$__rate_interval]))",
                "{{service}} {{class}}",
            )],
        ),
        lines(
            "Time to first byte",
            "s",
            &[
                (
                    "histogram_quantile(0.5, sum by (service, le) (rate(swarmguard_balancer_first_byte_seconds_bucket[$__rate_interval])))",
                    "{{service}} p50",
                ),
                (
                    "histogram_quantile(0.99, sum by (service, le) (rate(swarmguard_balancer_first_byte_seconds_bucket[$__rate_interval])))",
                    "{{service}} p99",
                ),
            ],
        ),
        lines(
            "Tasks that failed within 10 minutes",
            "none",
            &[(
                "sum by (service) (increase(swarmguard_coordinator_task_failures_total{service=~\"$service\"}[10m])) or max by (service) (swarmguard_coordinator_service_protected{service=~\"$service\"}) * 0",
                "{{service}}",
            )],
        ),
        lines(
            "Refused for",
            "s",
            &[(
                "time() - min by (service, rule) (swarmguard_coordinator_service_refused_since_timestamp_seconds{service=~\"$service\"}) or max by (service) (swarmguard_coordinator_service_protected{service=~\"$service\"}) * 0",
                "{{service}} {{rule}}",
            )],
        ),
    ],
};

const NODE: Dashboard = Dashboard {
    uid: "node",
    title: "Node",
    filter: Some(("node", "label_values(swarmguard_agent_build_info, node)")),
    panels: &[
        lines(
            "CPU",
            "percentunit",
            &[(
                "max by (node) (swarmguard_agent_node_utilisation_ratio{resource=\"cpu\",node=~\"$node\"})",
                "{{node}}",
            )],
        ),
        lines(
            "Memory",
            "percentunit",
            &[(
                "max by (node) (swarmguard_agent_node_utilisation_ratio{resource=\"memory\",node=~\"$node\"})",
                "{{node}}",
            )],
        ),
        lines(
            "Tasks wait",
            "percentunit",
            &[(
                "max by (node, resource) (rate(swarmguard_agent_node_pressure_seconds_total{node=~\"$node\"}[$__rate_interval]))",
                "{{node}} {{resource}}",
            )],
        ),
        lines(
            "Network",
            "Bps",
            &[
                (
                    "max by (node) (rate(swarmguard_agent_node_network_receive_bytes_total{node=~\"$node\"}[$__rate_interval])) or max by (node) (swarmguard_agent_containers{node=~\"$node\"}) * 0",
                    "{{node}} received",
                ),
                (
                    "max by (node) (rate(swarmguard_agent_node_network_transmit_bytes_total{node=~\"$node\"}[$__rate_interval])) or max by (node) (swarmguard_agent_containers{node=~\"$node\"}) * 0",
                    "{{node}} sent",
                ),
            ],
        ),
        lines(
            "Containers",
            "none",
            &[("max by (node) (swarmguard_agent_containers{node=~\"$node\"})", "{{node}}")],
        ),
        lines(
            "Tasks that Swarm wants there",
            "none",
            &[("max by (node) (swarmguard_coordinator_node_replicas{node=~\"$node\"})", "{{node}}")],
        ),
        lines(
            "CPUs reserved",
            "none",
            &[(
                "max by (node) (swarmguard_coordinator_node_reserved_cpu_cores{node=~\"$node\"})",
                "{{node}}",
            )],
        ),
        lines(
            "Since the agent was heard",
            "s",
            &[("min by (node) (swarmguard_coordinator_node_lease_age_seconds{node=~\"$node\"})", "{{node}}")],
        ),
        lines(
            "CPU of the agent",
            "percentunit",
            &[(
                "max by (node) (rate(process_cpu_seconds_total{job=\"swarmguard-agent\",node=~\"$node\"}[$__rate_interval]))",
                "{{node}}",
            )],
        ),
        lines(
            "Sampling",
            "s",
            &[(
                "max by (node) (swarmguard_agent_sampling_interval_seconds{node=~\"$node\"})",
                "{{node}} interval",
            )],
        ),
        lines(
            "Coordinators connected",
            "none",
            &[("sum by (node) (swarmguard_agent_coordinator_connected{node=~\"$node\"})", "{{node}}")],
        ),
        lines(
            "Dropped in 10 minutes",
            "none",
            &[(
                "sum by (node, queue) (increase(swarmguard_agent_dropped_total{node=~\"$node\"}[10m]))",
                "{{node}} {{queue}}",
            )],
        ),
    ],
};

const BALANCER: Dashboard = Dashboard {
    uid: "balancer",
    title: "Balancer",
    filter: Some(("service", "label_values(swarmguard_balancer_service_requests_total, service)")),
    panels: &[
        lines(
            "Requests",
            "reqps",
            &[(
                "sum by (service) (rate(swarmguard_balancer_service_requests_total{service=~\"$service\"}[$__rate_interval]))",
                "{{service}}",
            )],
        ),
        lines(
            "Not answered by a replica",
            "reqps",
            &[
                (
                    "sum by (reason) (rate(swarmguard_balancer_failures_total[$__rate_interval]))",
                    "failed: {{reason}}",
                ),
                (
                    "sum by (reason) (rate(swarmguard_balancer_refused_total[$__rate_interval]))",
                    "refused: {{reason}}",
                ),
            ],
        ),
        lines(
            "Time to first byte by algorithm, p99",
            "s",
            &[(
                "histogram_quantile(0.99, sum by (algorithm, le) (rate(swarmguard_balancer_first_byte_seconds_bucket[$__rate_interval]) * on (instance, service) group_left (algorithm) swarmguard_balancer_service_algorithm_info))",
                "{{algorithm}}",
            )],
        ),
        lines(
            "Spread: busiest replica above the mean (15 % is much)",
            "percentunit",
            &[(
                "max by (service) (sum by (service, task) (rate(swarmguard_balancer_replica_requests_total{service=~\"$service\"}[$__rate_interval]))) / avg by (service) (sum by (service, task) (rate(swarmguard_balancer_replica_requests_total{service=~\"$service\"}[$__rate_interval]))) - 1",
                "{{service}}",
            )],
        ),
        lines(
            "Requests by replica",
            "reqps",
            &[(
                "sum by (service, node, task) (rate(swarmguard_balancer_replica_requests_total{service=~\"$service\"}[$__rate_interval]))",
                "{{service}} {{node}} {{task}}",
            )],
        ),
        lines(
            "In flight by replica",
            "none",
            &[(
                "sum by (service, node, task) (swarmguard_balancer_replica_in_flight{service=~\"$service\"})",
                "{{service}} {{node}} {{task}}",
            )],
        ),
        lines(
            "Replicas that get nothing",
            "none",
            &[
                (
                    "sum by (service) (swarmguard_balancer_replica_sick{service=~\"$service\"})",
                    "{{service}} sick",
                ),
                (
                    "sum by (service) (swarmguard_balancer_replica_ejected{service=~\"$service\"})",
                    "{{service}} ejected",
                ),
                (
                    "sum by (service) (swarmguard_balancer_replica_draining{service=~\"$service\"})",
                    "{{service}} draining",
                ),
            ],
        ),
        lines(
            "Picks",
            "ops",
            &[("sum by (reason) (rate(swarmguard_balancer_picks_total[$__rate_interval]))", "{{reason}}")],
        ),
        lines(
            "Time of a pick",
            "s",
            &[(
                "sum by (instance) (rate(swarmguard_balancer_pick_duration_seconds_sum[$__rate_interval])) / sum by (instance) (rate(swarmguard_balancer_pick_duration_seconds_count[$__rate_interval]))",
                "{{instance}}",
            )],
        ),
        lines(
            "Sent again, and waiting for room",
            "none",
            &[
                (
                    "sum by (instance) (rate(swarmguard_balancer_retries_total[$__rate_interval]))",
                    "{{instance}} retries a second",
                ),
                (
                    "sum by (service) (swarmguard_balancer_service_waiting{service=~\"$service\"})",
                    "{{service}} waiting",
                ),
            ],
        ),
        lines(
            "Connections",
            "none",
            &[("sum by (instance) (swarmguard_balancer_connections_open)", "{{instance}}")],
        ),
        lines(
            "Memory that clients take, of the limit",
            "percentunit",
            &[(
                "swarmguard_balancer_client_memory_bytes / swarmguard_balancer_client_memory_limit_bytes",
                "{{instance}}",
            )],
        ),
    ],
};

const CONTROL_PLANE: Dashboard = Dashboard {
    uid: "control-plane",
    title: "Control plane",
    filter: None,
    panels: &[
        figure(
            "Age of what is known of Swarm",
            "s",
            &[("max(time() - swarmguard_coordinator_last_snapshot_timestamp_seconds)", "")],
        ),
        figure("Nobody acts", "none", &[("max(swarmguard_coordinator_nobody_acts)", "")]),
        figure(
            "Nearest end of a certificate",
            "s",
            &[(
                "min(swarmguard_coordinator_certificate_expiry_timestamp_seconds or swarmguard_agent_certificate_expiry_timestamp_seconds) - time()",
                "",
            )],
        ),
        figure(
            "Journal entries lost in a day",
            "none",
            &[("sum(increase(swarmguard_coordinator_journal_lost_total[1d]))", "")],
        ),
        lines("Acts", "none", &[("max by (node) (swarmguard_coordinator_acting)", "{{node}}")]),
        lines("Leases of nodes", "none", &[("max by (state) (swarmguard_coordinator_leases)", "{{state}}")]),
        lines(
            "Judging, p99",
            "s",
            &[(
                "histogram_quantile(0.99, sum by (node, le) (rate(swarmguard_coordinator_judge_duration_seconds_bucket[$__rate_interval])))",
                "{{node}}",
            )],
        ),
        lines(
            "Calls to Swarm, mean since the start",
            "s",
            &[(
                "sum by (kind) (swarmguard_coordinator_command_duration_seconds_sum) / (sum by (kind) (swarmguard_coordinator_command_duration_seconds_count) > 0)",
                "{{kind}}",
            )],
        ),
        lines(
            "Calls to Swarm by outcome",
            "none",
            &[(
                "sum by (kind, outcome) (increase(swarmguard_coordinator_commands_total[1h]))",
                "{{kind}} {{outcome}}",
            )],
        ),
        lines(
            "Reports of agents",
            "ops",
            &[("sum by (node) (rate(swarmguard_coordinator_reports_total[$__rate_interval]))", "{{node}}")],
        ),
        lines(
            "Refused",
            "none",
            &[
                (
                    "sum by (reason) (increase(swarmguard_coordinator_ingest_refused_total[10m]))",
                    "agents and balancers: {{reason}}",
                ),
                (
                    "sum by (reason) (increase(swarmguard_coordinator_api_refused_total[10m]))",
                    "API: {{reason}}",
                ),
            ],
        ),
        lines(
            "Peers",
            "none",
            &[("max by (node, peer) (swarmguard_coordinator_peers)", "{{node}} {{peer}}")],
        ),
        lines(
            "Journal entries",
            "ops",
            &[(
                "sum by (kind) (rate(swarmguard_coordinator_journal_entries_total[$__rate_interval]))",
                "{{kind}}",
            )],
        ),
        lines(
            "Decisions and refusals in 10 minutes",
            "none",
            &[
                ("sum by (rule) (increase(swarmguard_coordinator_decisions_total[10m]))", "{{rule}}"),
                ("sum by (rule) (increase(swarmguard_coordinator_refusals_total[10m]))", "refused: {{rule}}"),
            ],
        ),
        lines(
            "Time to help, p90",
            "s",
            &[(
                "histogram_quantile(0.9, sum by (le) (rate(swarmguard_coordinator_mttr_seconds_bucket[1h]))) or vector(0)",
                "p90",
            )],
        ),
        lines(
            "Memory of SwarmGuard",
            "bytes",
            &[("process_resident_memory_bytes{job=~\"swarmguard-.*\"}", "{{job}} {{instance}}")],
        ),
        lines(
            "Versions",
            "none",
            &[
                ("count by (version) (swarmguard_coordinator_build_info)", "coordinator {{version}}"),
                ("count by (version) (swarmguard_agent_build_info)", "agent {{version}}"),
                ("count by (version) (swarmguard_balancer_build_info)", "balancer {{version}}"),
            ],
        ),
    ],
};
