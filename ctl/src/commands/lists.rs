//! The lists: nodes, services, replicas, alerts, actions, history, balanced services.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use swarmguard_common::api::{
    ActionRow, BalancedReplica, Balancers, Conclusion, ContainerStatus, Overview, ServiceRow, Standing,
};

use super::{known_service, status};
use crate::{
    failure::Outcome,
    out::{Cell, Column, Listing, Row, Tone, age, bytes, cpus, percent, time_of_day},
    session::Session,
};

/// A replica's share from which its figure is marked.
const MUCH: u8 = 75;

/// Nodes.
pub async fn nodes(session: &Session) -> Outcome<Listing> {
    Ok(nodes_of(&session.overview().await?))
}

/// Nodes of an overview.
pub fn nodes_of(overview: &Overview) -> Listing {
    let columns = vec![
        Column::text("NODE"),
        Column::text("STATE"),
        Column::figure("CPU"),
        Column::figure("MEM"),
        Column::figure("NET"),
        Column::figure("PSI"),
        Column::figure("RES/CAP"),
        Column::figure("REPLICAS"),
        Column::figure("MEM-RES/CAP").wide(),
        Column::text("LEASE").wide(),
        Column::text("ID").wide(),
    ];
    let rows = overview.nodes.iter().map(|node| {
        let (state, tone) = status::node_state(node);
        let lease = match node.lease_age_ms {
            Some(ms) => format!("{} {}", status::lease_text(node.lease), age(ms)),
            None => status::lease_text(node.lease).into(),
        };
        #[expect(clippy::cast_precision_loss, reason = "only for the order")]
        let reserved = node.reserved_cpu_millis as f64 / node.cpu_millis.max(1) as f64;
        Row {
            name: node.hostname.clone(),
            cells: vec![
                Cell::new(&node.hostname),
                Cell::new(state).tone(tone),
                share(node.cpu_percent),
                share(node.memory_percent),
                share(node.network_percent),
                share(node.psi_percent),
                Cell::figure(
                    format!("{}/{}", cpus(node.reserved_cpu_millis), cpus(node.cpu_millis)),
                    Some(reserved),
                ),
                count(node.replicas),
                Cell::new(format!("{}/{}", bytes(node.reserved_memory_bytes), bytes(node.memory_bytes))),
                Cell::new(lease),
                Cell::new(node.node.as_str()),
            ],
            value: value(node),
        }
    });
    Listing { kind: "NodeList", columns, rows: rows.collect() }
}

fn share(figure: Option<u8>) -> Cell {
    let tone = match figure {
        Some(MUCH..) => Tone::Warn,
        Some(_) => Tone::Plain,
        None => Tone::Dim,
    };
    Cell::figure(percent(figure), figure.map(f64::from)).tone(tone)
}

#[expect(clippy::cast_precision_loss, reason = "only for the order")]
fn count(figure: u64) -> Cell {
    Cell::figure(figure.to_string(), Some(figure as f64))
}

fn value<T: serde::Serialize>(of: &T) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

/// Services.
pub async fn services(session: &Session) -> Outcome<Listing> {
    Ok(services_of(&session.overview().await?))
}

/// The last verdict in a word, and how it is to be looked at.
pub fn verdict(service: &ServiceRow) -> (String, Tone) {
    if service.own {
        return ("swarmguard".into(), Tone::Dim);
    }
    if service.labels_invalid {
        return ("labels invalid".into(), Tone::Bad);
    }
    if !service.protected {
        return ("not protected".into(), Tone::Dim);
    }
    let rule = service.rule.as_deref().unwrap_or("");
    let (mut text, tone) = match service.conclusion {
        None => ("no data".to_owned(), Tone::Warn),
        Some(Conclusion::Calm) if matches!(rule, "" | "calm") => ("calm".into(), Tone::Good),
        Some(Conclusion::Calm) => (format!("calm {rule}"), Tone::Good),
        Some(Conclusion::Act) => (format!("act {rule}"), Tone::Warn),
        Some(Conclusion::Refuse) => (format!("refused {rule}"), Tone::Warn),
    };
    if service.paused {
        text = format!("paused, {text}");
    } else if service.observe {
        text = format!("observed, {text}");
    }
    (text, tone)
}

/// Services of an overview.
pub fn services_of(overview: &Overview) -> Listing {
    let columns = vec![
        Column::text("SERVICE"),
        Column::figure("REPLICAS"),
        Column::text("VERDICT"),
        Column::figure("CPU"),
        Column::figure("MAX"),
        Column::figure("MEM"),
        Column::figure("IN-FLIGHT"),
        Column::figure("LATENCY"),
        Column::figure("ALERTS"),
        Column::text("ACTION"),
        Column::figure("CPUS").wide(),
        Column::figure("BYTES").wide(),
        Column::text("UPDATE").wide(),
        Column::text("ID").wide(),
    ];
    let rows = overview.services.iter().map(|service| {
        let (verdict, tone) = verdict(service);
        let short = service.wanted.is_some_and(|wanted| service.running < wanted);
        let mut replicas = match service.wanted {
            Some(wanted) => format!("{}/{wanted}", service.running),
            None => service.running.to_string(),
        };
        if service.pending > 0 {
            replicas += &format!(" ({} pending)", service.pending);
        }
        let tone_of_replicas = if short { Tone::Bad } else { Tone::Plain };
        let action = overview.actions.iter().find(|action| Some(&action.action) == service.action.as_ref());
        let in_flight = service.in_flight.map_or_else(|| "-".into(), |count| count.to_string());
        let latency = service.latency_ms.map_or_else(|| "-".into(), |ms| format!("{ms:.1}ms"));
        #[expect(clippy::cast_precision_loss, reason = "only for the order")]
        let cells = vec![
            Cell::new(&service.name),
            Cell::figure(replicas, Some(service.running as f64)).tone(tone_of_replicas),
            Cell::new(verdict).tone(tone),
            share(service.cpu_percent),
            share(service.cpu_max_percent),
            share(service.memory_percent),
            Cell::figure(in_flight, service.in_flight.map(|count| count as f64)),
            Cell::figure(latency, service.latency_ms),
            Cell::figure(
                if service.alerts == 0 { "-".into() } else { service.alerts.to_string() },
                Some(service.alerts as f64),
            ),
            Cell::new(action.map_or_else(String::new, |action| format!("{} {}", action.kind, action.step))),
            Cell::figure(cpus(service.cpu_millis), Some(service.cpu_millis as f64)),
            Cell::figure(bytes(service.memory_bytes), Some(service.memory_bytes as f64)),
            Cell::new(service.update.as_deref().unwrap_or("-")),
            Cell::new(service.service.as_str()),
        ];
        Row { name: service.name.clone(), cells, value: value(service) }
    });
    Listing { kind: "ServiceList", columns, rows: rows.collect() }
}

/// Replicas as agents see them; through an engine also those that do not run, with their last error.
pub async fn replicas(session: &Session, service: Option<&str>) -> Outcome<Listing> {
    let overview = session.overview().await?;
    let service = service.map(|wanted| known_service(&overview, wanted)).transpose()?;
    let path = match &service {
        Some(name) => format!("/api/v1/containers?service={}", crate::engine::http::escape(name)),
        None => "/api/v1/containers".into(),
    };
    let containers: Vec<ContainerStatus> = session.coordinator().await?.get(&path).await?;
    let hosts: BTreeMap<&str, &str> =
        overview.nodes.iter().map(|node| (node.node.as_str(), node.hostname.as_str())).collect();
    let tasks = if session.global.coordinator.is_empty() {
        tasks(session, service.as_deref()).await?
    } else {
        Vec::new()
    };
    let mut rows = Vec::new();
    let mut seen = Vec::new();
    for container in &containers {
        let Some(name) = &container.service_name else { continue };
        let task = container.task.as_ref().map(|task| task.as_str());
        let known = tasks.iter().find(|found| found["ID"].as_str() == task);
        seen.extend(task);
        let state = known.map_or("running", |task| task["Status"]["State"].as_str().unwrap_or("unknown"));
        rows.push(replica_row(
            name,
            known,
            hosts.get(container.node.as_str()).copied(),
            state,
            Some(container),
        ));
    }
    for task in tasks.iter().filter(|task| !seen.contains(&task["ID"].as_str().unwrap_or_default())) {
        let state = task["Status"]["State"].as_str().unwrap_or("unknown");
        let id = task["ServiceID"].as_str().unwrap_or_default();
        let Some(of) = overview.services.iter().find(|service| service.service.as_str() == id) else {
            continue;
        };
        let node = task["NodeID"].as_str().and_then(|node| hosts.get(node).copied());
        rows.push(replica_row(&of.name, Some(task), node, state, None));
    }
    rows.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(Listing { kind: "ReplicaList", columns: replica_columns(), rows })
}

/// Replicas as agents see them, for the terminal view.
pub fn containers_of<'a>(
    containers: impl Iterator<Item = &'a ContainerStatus>,
    overview: &Overview,
) -> Listing {
    let rows = containers.filter_map(|container| {
        let node = overview.nodes.iter().find(|node| node.node == container.node);
        let name = container.service_name.as_ref()?;
        Some(replica_row(name, None, node.map(|node| node.hostname.as_str()), "running", Some(container)))
    });
    let mut rows: Vec<Row> = rows.collect();
    rows.sort_by(|one, other| one.name.cmp(&other.name));
    Listing { kind: "ReplicaList", columns: replica_columns(), rows }
}

/// What Swarm wants to run.
async fn tasks(session: &Session, service: Option<&str>) -> Outcome<Vec<Value>> {
    let mut filters = json!({"desired-state": ["running"]});
    if let Some(service) = service {
        filters["service"] = json!([service]);
    }
    session.engine().await?.list("/tasks", &filters).await
}

fn replica_columns() -> Vec<Column> {
    vec![
        Column::text("REPLICA"),
        Column::text("NODE"),
        Column::text("STATE"),
        Column::figure("CPU"),
        Column::figure("MEM"),
        Column::figure("NET"),
        Column::figure("PSI"),
        Column::figure("IN-FLIGHT"),
        Column::figure("LATENCY"),
        Column::text("ERROR"),
        Column::text("TASK").wide(),
        Column::text("CONTAINER").wide(),
    ]
}

fn replica_row(
    service: &str,
    task: Option<&Value>,
    node: Option<&str>,
    state: &str,
    container: Option<&ContainerStatus>,
) -> Row {
    let slot = task.and_then(|task| task["Slot"].as_u64());
    let id = container.and_then(|container| Some(container.task.as_ref()?.as_str()));
    let id = id.or_else(|| task.and_then(|task| task["ID"].as_str())).unwrap_or_default();
    let name = match slot {
        Some(slot) => format!("{service}.{slot}"),
        None => format!("{service}.{}", id.get(..6).unwrap_or(id)),
    };
    let load = container.and_then(|container| container.load);
    let figure = |of: Option<f64>| {
        let shown = of.map_or_else(|| "-".into(), |percent| format!("{percent:.0}%"));
        let tone =
            if of.is_some_and(|percent| percent >= f64::from(MUCH)) { Tone::Warn } else { Tone::Plain };
        Cell::figure(shown, of).tone(tone)
    };
    let in_flight = load.and_then(|load| load.in_flight);
    let latency = load.and_then(|load| load.latency_ms);
    let error = task.and_then(|task| task["Status"]["Err"].as_str()).unwrap_or_default();
    let tone = if state == "running" { Tone::Good } else { Tone::Warn };
    Row {
        cells: vec![
            Cell::new(&name),
            Cell::new(node.unwrap_or("-")),
            Cell::new(state).tone(tone),
            figure(load.and_then(|load| load.cpu_percent)),
            figure(load.and_then(|load| load.memory_percent)),
            figure(load.and_then(|load| load.network_percent)),
            figure(load.and_then(|load| load.psi_cpu_percent)),
            Cell::figure(
                in_flight.map_or_else(|| "-".into(), |count| count.to_string()),
                in_flight.map(f64::from),
            ),
            Cell::figure(latency.map_or_else(|| "-".into(), |ms| format!("{ms:.1}ms")), latency),
            Cell::new(error).tone(Tone::Bad).whole(),
            Cell::new(id),
            Cell::new(container.map_or("", |container| container.container.as_str())),
        ],
        value: json!({
            "name": name, "service": service, "node": node, "state": state, "task": id, "load": load,
            "error": Some(error).filter(|error| !error.is_empty()),
        }),
        name,
    }
}

/// Alerts that stand.
pub async fn alerts(session: &Session) -> Outcome<Listing> {
    let overview = session.overview().await?;
    let columns = vec![
        Column::text("SERVICE"),
        Column::text("NODE"),
        Column::text("CONDITION"),
        Column::figure("VALUE"),
        Column::figure("STANDS"),
        Column::text("HELP"),
        Column::text("TASK").wide(),
    ];
    let rows = overview.alerts.iter().map(|alert| {
        let (help, tone) = match &alert.unhelped {
            _ if alert.stale => ("stale: the task is elsewhere".into(), Tone::Dim),
            Some(rule) => (format!("none: {rule}"), Tone::Bad),
            None => ("under way or not due yet".to_owned(), Tone::Good),
        };
        let service = alert.service.as_deref().unwrap_or("-");
        #[expect(clippy::cast_precision_loss, reason = "only for the order")]
        let stands = Cell::figure(age(alert.stands_ms), Some(alert.stands_ms as f64));
        Row {
            name: format!("{service}@{}", alert.node),
            cells: vec![
                Cell::new(service),
                Cell::new(&alert.node),
                Cell::new(alert.condition.to_string()).tone(Tone::Warn),
                Cell::figure(format!("{}%", alert.percent), Some(f64::from(alert.percent))),
                stands,
                Cell::new(help).tone(tone).whole(),
                Cell::new(alert.task.as_ref().map_or("-", |task| task.as_str())),
            ],
            value: value(alert),
        }
    });
    Ok(Listing { kind: "AlertList", columns, rows: rows.collect() })
}

/// What is under way.
pub async fn actions(session: &Session) -> Outcome<Listing> {
    let overview = session.overview().await?;
    let columns = vec![
        Column::text("KIND"),
        Column::text("SERVICE"),
        Column::text("FROM"),
        Column::text("TO"),
        Column::text("STEP"),
        Column::figure("FOR"),
        Column::figure("TOTAL"),
        Column::text("WAITS-FOR"),
        Column::text("ACTION").wide(),
    ];
    let rows = overview.actions.iter().map(|action| {
        let waits = match (&action.undone, &action.waits_for) {
            (Some(why), _) => Cell::new(format!("is being undone: {why}")).tone(Tone::Bad),
            (None, waits) => Cell::new(waits.as_deref().unwrap_or("-")),
        };
        #[expect(clippy::cast_precision_loss, reason = "only for the order")]
        let figure =
            |ms: Option<u64>| Cell::figure(ms.map_or_else(|| "-".into(), age), ms.map(|ms| ms as f64));
        Row {
            name: action.action.clone(),
            cells: vec![
                Cell::new(&action.kind),
                Cell::new(action.service.as_deref().unwrap_or("-")),
                Cell::new(action.source.as_deref().unwrap_or("-")),
                Cell::new(action.target.as_deref().unwrap_or("-")),
                Cell::new(&action.step),
                figure(Some(action.step_ms)),
                figure(action.total_ms),
                waits.whole(),
                Cell::new(&action.action),
            ],
            value: value(action),
        }
    });
    Ok(Listing { kind: "ActionList", columns, rows: rows.collect() })
}

/// What was done, newest first.
pub async fn history(session: &Session, limit: u16, service: Option<&str>) -> Outcome<Listing> {
    let overview = session.overview().await?;
    let only = service.map(|wanted| known_service(&overview, wanted)).transpose()?;
    let path = format!("/api/v1/history?limit={}", if only.is_some() { 1_000 } else { limit });
    let mut found: Vec<ActionRow> = session.coordinator().await?.get(&path).await?;
    found.retain(|row| only.as_ref().is_none_or(|name| row.service_name.as_ref() == Some(name)));
    found.truncate(limit.into());
    let host = |id: Option<&str>| {
        let id = id?;
        let node = overview.nodes.iter().find(|node| node.node.as_str() == id);
        Some(node.map_or_else(|| id.to_owned(), |node| node.hostname.clone()))
    };
    let columns = vec![
        Column::text("WHEN"),
        Column::text("WHAT"),
        Column::text("SERVICE"),
        Column::text("FROM"),
        Column::text("TO"),
        Column::text("OUTCOME"),
        Column::figure("TOOK"),
        Column::figure("MTTR"),
        Column::text("WHY").wide(),
        Column::text("ACTION").wide(),
    ];
    let rows = found.iter().map(|row| {
        let tone = match row.outcome.as_str() {
            "done" => Tone::Good,
            "undone" => Tone::Bad,
            _ => Tone::Warn,
        };
        let took = row.ended_at_ms.map(|end| end.saturating_sub(row.started_at_ms));
        let ago = age(overview.at_ms.saturating_sub(row.started_at_ms));
        #[expect(clippy::cast_precision_loss, reason = "only for the order")]
        let cells = vec![
            Cell::new(format!("{} {ago} ago", time_of_day(row.started_at_ms))),
            Cell::new(if row.what.is_empty() { "-" } else { &row.what }),
            Cell::new(row.service_name.as_deref().unwrap_or("-")),
            Cell::new(host(row.source.as_ref().map(|id| id.as_str())).unwrap_or_else(|| "-".into())),
            Cell::new(host(row.target.as_ref().map(|id| id.as_str())).unwrap_or_else(|| "-".into())),
            Cell::new(&row.outcome).tone(tone),
            Cell::figure(took.map_or_else(|| "-".into(), age), took.map(|ms| ms as f64)),
            Cell::figure(
                row.mttr_ms.map_or_else(|| "-".into(), |ms| format!("{:.1}s", ms / 1_000.0)),
                row.mttr_ms,
            ),
            Cell::new(&row.reason).whole(),
            Cell::new(&row.action),
        ];
        Row { name: row.action.clone(), cells, value: value(row) }
    });
    Ok(Listing { kind: "HistoryList", columns, rows: rows.collect() })
}

/// What the balancers see of the replicas.
pub async fn balanced(session: &Session, service: Option<&str>) -> Outcome<Listing> {
    let only = match service {
        Some(wanted) => Some(known_service(&session.overview().await?, wanted)?),
        None => None,
    };
    let found: Balancers = session.coordinator().await?.get("/api/v1/balancers").await?;
    let columns = vec![
        Column::text("SERVICE"),
        Column::text("BALANCER"),
        Column::text("REPLICA"),
        Column::text("NODE"),
        Column::text("STATE"),
        Column::figure("REQ/S"),
        Column::figure("IN-FLIGHT"),
        Column::figure("LATENCY"),
        Column::figure("SHARE"),
        Column::figure("FAILED"),
    ];
    let mut rows = Vec::new();
    for balancer in &found.balancers {
        for service in
            balancer.services.iter().filter(|service| only.as_ref().is_none_or(|only| *only == service.name))
        {
            rows.extend(
                service.replicas.iter().map(|replica| balanced_row(&service.name, &balancer.name, replica)),
            );
        }
    }
    rows.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(Listing { kind: "BalancedReplicaList", columns, rows })
}

fn balanced_row(service: &str, balancer: &str, replica: &BalancedReplica) -> Row {
    let (state, tone) = match replica.standing {
        Standing::Ok => ("ok", Tone::Good),
        Standing::Starting => ("starting", Tone::Warn),
        Standing::Draining => ("draining", Tone::Warn),
        Standing::Sick => ("sick", Tone::Bad),
        Standing::Ejected => ("ejected", Tone::Bad),
    };
    let figure = |of: Option<f64>, unit: &str| {
        Cell::figure(of.map_or_else(|| "-".into(), |of| format!("{of:.0}{unit}")), of)
    };
    #[expect(clippy::cast_precision_loss, reason = "only for the order")]
    let cells = vec![
        Cell::new(service),
        Cell::new(balancer),
        Cell::new(replica.task.as_str().get(..12).unwrap_or(replica.task.as_str())),
        Cell::new(replica.node.as_deref().unwrap_or("-")),
        Cell::new(state).tone(tone),
        figure(replica.requests_per_s, ""),
        Cell::figure(replica.in_flight.to_string(), Some(replica.in_flight as f64)),
        figure(replica.latency_ms, "ms"),
        figure(replica.share_of_mean_percent, "%"),
        Cell::figure(replica.failures.to_string(), Some(replica.failures as f64)),
    ];
    let mut value = value(replica);
    value["service"] = service.into();
    value["balancer"] = balancer.into();
    Row { name: format!("{service}/{balancer}/{}", replica.task), cells, value }
}
