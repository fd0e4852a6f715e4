//! The coordinator's families of figures.

swarmguard_runtime::families! {
    BUILD = Gauge "swarmguard_coordinator_build_info" ["version"] "1, with the version of the coordinator";
    ACTING = Gauge "swarmguard_coordinator_acting" [] "1 on the coordinator that acts";
    NOBODY_ACTS = Gauge "swarmguard_coordinator_nobody_acts" [] "1 while nobody acts, as far as this coordinator can tell";
    OBSERVE = Gauge "swarmguard_coordinator_observe" [] "1 while it decides and explains only";
    PAUSED = Gauge "swarmguard_coordinator_paused" [] "1 while automation is paused for all services";
    BLIND = Gauge "swarmguard_coordinator_blind" [] "1 while no snapshot is fresh enough to decide by";
    LAST_SNAPSHOT = Gauge "swarmguard_coordinator_last_snapshot_timestamp_seconds" [] "when Swarm was last read, seconds since the Unix epoch; absent before";
    SNAPSHOT_FAILURES = Counter "swarmguard_coordinator_snapshot_failures_total" [] "readings of Swarm that failed";
    HEALTH = Gauge "swarmguard_coordinator_health_score" [] "health of the swarm, 0 to 100";
    MANAGERS = Gauge "swarmguard_coordinator_managers" [] "managers of the swarm, each of which should have a coordinator";
    PEERS = Gauge "swarmguard_coordinator_peers" ["peer"] "agents and balancers connected now";
    NODES = Gauge "swarmguard_coordinator_nodes" ["state"] "nodes by state: ready, down";
    LEASES = Gauge "swarmguard_coordinator_leases" ["state"] "node leases by state: live, suspect, lapsed";
    NODE_LEASE_AGE = Gauge "swarmguard_coordinator_node_lease_age_seconds" ["node"] "time since the agent of the node was last heard";
    NODE_RESERVED = Gauge "swarmguard_coordinator_node_reserved_cpu_cores" ["node"] "CPUs reserved by the tasks on the node";
    NODE_REPLICAS = Gauge "swarmguard_coordinator_node_replicas" ["node"] "tasks that Swarm wants on the node";
    SERVICES = Gauge "swarmguard_coordinator_services" [] "services of the swarm";
    SERVICE_REPLICAS = Gauge "swarmguard_coordinator_service_replicas" ["service", "state"] "tasks of the service: wanted, running, pending";
    SERVICE_PROTECTED = Gauge "swarmguard_coordinator_service_protected" ["service"] "1 where swarmguard.enable=true and all labels make sense";
    SERVICE_LABELS_INVALID = Gauge "swarmguard_coordinator_service_labels_invalid" ["service"] "1 where labels make no sense, so that the service is left alone";
    SERVICE_REFUSED_SINCE = Gauge "swarmguard_coordinator_service_refused_since_timestamp_seconds" ["service", "rule"] "since when the service is refused by that rule, seconds since the Unix epoch; absent where it is not";
    TASK_FAILURES = Counter "swarmguard_coordinator_task_failures_total" ["service"] "tasks that failed or were rejected";
    ALERT_EDGES = Counter "swarmguard_coordinator_alert_edges_total" ["condition", "edge"] "alert edges taken in";
    ALERTS_STANDING = Gauge "swarmguard_coordinator_alerts_standing" [] "alerts that stand now";
    ALERTS_UNHELPED = Gauge "swarmguard_coordinator_alerts_unhelped" ["service", "rule"] "alerts of protected services that stand for 10 s and that the rule forbids to help";
    DECISIONS = Counter "swarmguard_coordinator_decisions_total" ["rule"] "decisions to act";
    REFUSALS = Counter "swarmguard_coordinator_refusals_total" ["rule"] "decisions not to act";
    ACTIONS = Counter "swarmguard_coordinator_actions_total" ["kind", "outcome"] "actions that ended: done, undone";
    ACTIONS_RUNNING = Gauge "swarmguard_coordinator_actions_running" [] "actions under way";
    ACTION_OLDEST = Gauge "swarmguard_coordinator_action_oldest_start_timestamp_seconds" [] "when the oldest action under way began, seconds since the Unix epoch; absent without one";
    MTTR = Histogram "swarmguard_coordinator_mttr_seconds" [] "first sample over the threshold to the successor serving and the old replica out of use";
    COMMANDS = Counter "swarmguard_coordinator_commands_total" ["kind", "outcome"] "calls to Swarm and balancers";
    COMMAND_DURATION = Histogram "swarmguard_coordinator_command_duration_seconds" ["kind"] "how long such a call took";
    JUDGE_DURATION = Histogram "swarmguard_coordinator_judge_duration_seconds" [] "how long judging one batch of inputs took";
    REPORTS = Counter "swarmguard_coordinator_reports_total" [] "reports of agents taken in";
    INGEST_REFUSED = Counter "swarmguard_coordinator_ingest_refused_total" ["reason"] "connections, frames and messages refused";
    API_REFUSED = Counter "swarmguard_coordinator_api_refused_total" ["reason"] "requests to the API refused";
    CERTIFICATE = Gauge "swarmguard_coordinator_certificate_expiry_timestamp_seconds" [] "when the certificate expires, seconds since the Unix epoch";
    JOURNAL_ENTRIES = Counter "swarmguard_coordinator_journal_entries_total" ["kind"] "journal entries";
    JOURNAL_LOST = Counter "swarmguard_coordinator_journal_lost_total" [] "journal entries that did not reach the disk";
    JOURNAL_SET_ASIDE = Counter "swarmguard_coordinator_journal_set_aside_total" [] "times that a broken journal was set aside";
    NOTIFY_SENT = Counter "swarmguard_coordinator_notify_sent_total" ["channel"] "messages that the receiver took";
    NOTIFY_FAILED = Counter "swarmguard_coordinator_notify_failed_total" ["channel"] "tries that the receiver did not take";
    NOTIFY_DROPPED = Counter "swarmguard_coordinator_notify_dropped_total" ["channel"] "messages given up: too many, or older than 6 hours";
    DRILL_ACTIVE = Gauge "swarmguard_coordinator_drill_active" [] "drills under way";
}
