//! Commands to the coordinator, watched to their end through its journal.

use std::{future::Future, time::Duration};

use serde_json::{Value, json};
use swarmguard_common::{
    api::{Accepted, Overview, Plan, Problem},
    journal::Entry,
};
use swarmguard_runtime::clock;

use super::{events, known_node, known_service};
use crate::{
    cli::ActArgs,
    coordinator::{Coordinator, Event},
    failure::{Exit, Failure, Outcome},
    session::Session,
};

/// Between two looks at what the journal does not tell.
const LOOK: Duration = Duration::from_millis(500);

/// A command, and how one knows that it has ended.
#[derive(Clone, Debug)]
pub struct Order {
    /// The command's name.
    pub name: &'static str,
    /// Its parameters.
    pub body: Value,
    /// What the journal tells of it.
    pub end: End,
    /// How it is taken back, where it can be.
    pub cancel: Option<String>,
}

/// How one knows that a command has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It is done when it is taken.
    AtOnce,
    /// Its action is done.
    Action,
    /// Its action is undone, as was wanted.
    Undone,
    /// The service has so many replicas.
    Replicas(String, u64),
}

/// Builds the order from names that were checked.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// `migrate`.
    Migrate {
        /// Which service.
        service: String,
        /// The node to leave.
        from: Option<String>,
        /// The node to go to.
        to: Option<String>,
    },
    /// `scale`.
    Scale {
        /// `service=count`.
        what: String,
        /// Which node.
        node: Option<String>,
    },
    /// `rollback`.
    Rollback {
        /// Which service.
        service: String,
    },
    /// `drain`.
    Drain {
        /// Which node.
        node: String,
    },
    /// `cancel`.
    Cancel {
        /// A service, a node or an action.
        what: String,
    },
    /// `pause` and `resume`.
    Pause {
        /// Which service; all where absent.
        service: Option<String>,
        /// Pause, or resume.
        on: bool,
    },
    /// `observe`.
    Observe {
        /// On or off.
        on: bool,
    },
}

impl Wanted {
    fn order(self, overview: &Overview) -> Outcome<Order> {
        let node = |wanted: Option<String>| wanted.map(|wanted| node_id(overview, &wanted)).transpose();
        let order = |name, body, end, cancel| Ok(Order { name, body, end, cancel });
        match self {
            Self::Migrate { service, from, to } => {
                let service = known_service(overview, &service)?;
                let mut body = json!({"service": service});
                for (key, node) in [("source", node(from)?), ("target", node(to)?)] {
                    if let Some(node) = node {
                        body[key] = node.into();
                    }
                }
                order("migrate", body, End::Action, Some(service))
            }
            Self::Scale { what, node: at } => {
                let (service, count) = what.split_once('=').ok_or_else(|| wrong_scale(&what))?;
                let count: u64 = count.parse().map_err(|_| wrong_scale(&what))?;
                let service = known_service(overview, service)?;
                let mut body = json!({"service": service, "replicas": count});
                if let Some(node) = node(at)? {
                    body["node"] = node.into();
                }
                order("scale", body, End::Replicas(service.clone(), count), Some(service))
            }
            Self::Rollback { service } => {
                let service = known_service(overview, &service)?;
                order("rollback", json!({"service": service}), End::Action, Some(service))
            }
            Self::Drain { node } => {
                let host = known_node(overview, &node)?;
                order("drain", json!({"node": node_id(overview, &node)?}), End::Action, Some(host))
            }
            Self::Cancel { what } => {
                let body = if overview.actions.iter().any(|action| action.action == what) {
                    json!({"action": what})
                } else if let Ok(service) = known_service(overview, &what) {
                    json!({"service": service})
                } else if overview
                    .nodes
                    .iter()
                    .any(|node| node.hostname == what || node.node.as_str() == what)
                {
                    json!({"node": node_id(overview, &what)?})
                } else {
                    return Err(Failure::usage(format!("{what:?} is no service, no node and no action"))
                        .hint("swarmguard actions lists what is under way"));
                };
                order("cancel", body, End::Undone, None)
            }
            Self::Pause { service, on } => {
                let service = service.map(|service| known_service(overview, &service)).transpose()?;
                let body = service.map_or_else(|| json!({}), |service| json!({"service": service}));
                order(if on { "pause" } else { "resume" }, body, End::AtOnce, None)
            }
            Self::Observe { on } => order("observe", json!({"on": on}), End::AtOnce, None),
        }
    }
}

fn wrong_scale(what: &str) -> Failure {
    Failure::usage(format!("{what:?} says no service and number")).hint("swarmguard scale web=3")
}

fn node_id(overview: &Overview, wanted: &str) -> Outcome<String> {
    let host = known_node(overview, wanted)?;
    let same: Vec<&str> = overview
        .nodes
        .iter()
        .filter(|node| node.hostname == host && (wanted == host || node.node.as_str() == wanted))
        .map(|node| node.node.as_str())
        .collect();
    match same.as_slice() {
        [one] => Ok((*one).into()),
        _ => Err(Failure::usage(format!("several nodes are called {wanted:?}"))
            .hint("name it by its ID: swarmguard nodes -o wide")),
    }
}

/// Gives the command, and stays until it has ended.
pub async fn act(session: &Session, wanted: Wanted, args: &ActArgs) -> Outcome<Exit> {
    let overview = session.overview().await?;
    let order = wanted.order(&overview)?;
    let coordinator = session.coordinator().await?;
    if args.dry_run {
        let path = format!("{}?dry_run=true", order.name);
        let plan: Plan = read(coordinator.command(&path, &order.body).await?)?;
        let value = serde_json::to_value(&plan).unwrap_or_default();
        session.answer("Plan", value, order.name, || format!("would: {}\n", plan.text))?;
        return Ok(Exit::Done);
    }
    let newest: Vec<Entry> = coordinator.get("/api/v1/journal?limit=1").await?;
    let since = newest.iter().map(|entry| entry.id).max().unwrap_or(0);
    let accepted: Accepted = read(coordinator.command(order.name, &order.body).await?)?;
    if session.for_people() {
        session.print(&format!("{}\n", accepted.text))?;
    }
    let over =
        order.end == End::AtOnce || args.no_wait || (accepted.action.is_none() && order.end == End::Action);
    let exit = if over {
        Exit::Done
    } else {
        let watch = Watch {
            session,
            coordinator,
            overview: &overview,
            order: &order,
            action: accepted.action.as_deref(),
            since,
        };
        patiently(session, args.timeout, order.cancel.as_deref(), watch.until_over()).await?
    };
    if !session.for_people() {
        let value = json!({"text": accepted.text, "action": accepted.action, "outcome": outcome(exit)});
        session.answer("Result", value, accepted.action.as_deref().unwrap_or(order.name), String::new)?;
    }
    Ok(exit)
}

fn outcome(exit: Exit) -> &'static str {
    match exit {
        Exit::Done => "done",
        Exit::Undone => "undone",
        Exit::TimedOut => "timed_out",
        Exit::Detached => "detached",
        _ => "failed",
    }
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Outcome<T> {
    serde_json::from_value(value)
        .map_err(|error| Failure::failed(format!("the answer is not understood: {error}")))
}

/// Waits, but not for ever, and not against the user's will.
///
/// # Errors
/// As what is waited for.
pub async fn patiently(
    session: &Session,
    longest: Duration,
    cancel: Option<&str>,
    what: impl Future<Output = Outcome<Exit>>,
) -> Outcome<Exit> {
    let cancel = cancel.map_or_else(String::new, |what| format!("; take it back: swarmguard cancel {what}"));
    tokio::select! {
        ended = what => ended,
        _ = tokio::signal::ctrl_c() => {
            session.note(&format!("it goes on{cancel}"));
            Ok(Exit::Detached)
        }
        () = tokio::time::sleep(longest) => {
            session.note(&format!("not over after {}s, it goes on{cancel}", longest.as_secs()));
            Ok(Exit::TimedOut)
        }
    }
}

struct Watch<'a> {
    session: &'a Session,
    coordinator: &'a Coordinator,
    overview: &'a Overview,
    order: &'a Order,
    action: Option<&'a str>,
    since: u64,
}

impl Watch<'_> {
    async fn until_over(mut self) -> Outcome<Exit> {
        loop {
            let path = format!("/api/v1/events?since={}", self.since);
            let mut events = match self.coordinator.events(&path).await {
                Ok(events) => events,
                Err(failure) if failure.exit == Exit::Unreachable => {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    () = tokio::time::sleep(LOOK) => match self.count_reached().await {
                        true => return Ok(Exit::Done),
                        false => continue,
                    },
                };
                match event {
                    Some(event) => {
                        if let Some(exit) = self.hear(&event)? {
                            return Ok(exit);
                        }
                    }
                    // The coordinator is away; what it does is kept in Swarm.
                    None => break,
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn count_reached(&self) -> bool {
        let End::Replicas(service, count) = &self.order.end else { return false };
        let Ok(overview) = self.session.overview().await else { return false };
        overview.services.iter().any(|row| {
            row.name == *service
                && row.wanted == Some(*count)
                && row.running == *count
                && row.action.is_none()
        })
    }

    fn hear(&mut self, event: &Event) -> Outcome<Option<Exit>> {
        let Ok(entry) = serde_json::from_str::<Entry>(&event.data) else { return Ok(None) };
        self.since = self.since.max(entry.id);
        let token = entry.action.as_deref();
        let ours = match &self.order.end {
            End::Replicas(service, _) => entry.service_name.as_ref() == Some(service) && token.is_some(),
            // The moves of a drain have its token in front.
            _ => token.zip(self.action).is_some_and(|(token, ours)| {
                token == ours || token.strip_prefix(ours).is_some_and(|rest| rest.starts_with('-'))
            }),
        };
        if !ours {
            return Ok(None);
        }
        if self.session.for_people() {
            self.session.print(&format!("{}\n", events::text(&entry, self.overview, self.session.style)))?;
        }
        let itself = token == self.action;
        match (entry.code.as_str(), &self.order.end) {
            ("undone", End::Undone) if itself => Ok(Some(Exit::Done)),
            ("done", End::Undone) if itself => {
                self.session.note("it was done before it could be taken back");
                Ok(Some(Exit::Failed))
            }
            ("done", End::Action) if itself => Ok(Some(Exit::Done)),
            ("undone", _) if itself => {
                self.session.note(&format!("undone: {}", entry.text));
                Ok(Some(if gave_up(&entry) { Exit::Refused } else { Exit::Undone }))
            }
            _ => Ok(None),
        }
    }
}

/// A drain that a service did not leave is a refusal: the node takes tasks again.
fn gave_up(entry: &Entry) -> bool {
    entry.text.starts_with("service_stays")
}

/// Gives a node back to Swarm's scheduler, through the engine: the coordinator has no part in it.
pub async fn undrain(session: &Session, wanted: &str, args: &ActArgs) -> Outcome<Exit> {
    let engine = session.engine().await?;
    let nodes = engine.list("/nodes", &json!({})).await?;
    let host = |node: &Value| node["Description"]["Hostname"].as_str().unwrap_or_default().to_owned();
    let mut found = nodes.iter().filter(|node| host(node) == wanted || node["ID"] == *wanted);
    let names: Vec<String> = nodes.iter().map(host).collect();
    let node =
        found.next().ok_or_else(|| super::unknown("node", wanted, names.iter().map(String::as_str)))?;
    if found.next().is_some() {
        return Err(Failure::usage(format!("several nodes are called {wanted:?}")).hint("name it by its ID"));
    }
    let (id, version) = (node["ID"].as_str().unwrap_or_default(), &node["Version"]["Index"]);
    if node["Spec"]["Availability"] == "active" {
        session.note(&format!("{wanted} takes tasks already"));
        return Ok(Exit::Done);
    }
    if args.dry_run {
        session.print(&format!("would: {wanted} takes tasks again\n"))?;
        return Ok(Exit::Done);
    }
    let records = engine.list("/configs", &json!({"name": [format!("swarmguard-node-{id}")]})).await?;
    if node["Spec"]["Availability"] == "pause" && !records.is_empty() {
        return Err(Failure::new(
            Exit::Refused,
            format!("{wanted} is paused by an action that is under way"),
        )
        .code("action_running")
        .hint(format!("swarmguard cancel {wanted}, or wait until it has ended")));
    }
    let mut spec = node["Spec"].clone();
    spec["Availability"] = "active".into();
    engine.call(http::Method::POST, &format!("/nodes/{id}/update?version={version}"), Some(&spec)).await?;
    let value = json!({"node": id, "hostname": host(node), "at_ms": clock::wall_ms()});
    session.answer("Result", value, wanted, || format!("{wanted} takes tasks again\n"))?;
    Ok(Exit::Done)
}

/// What the API says where it refuses; for the terminal view.
pub fn refusal(problem: &Problem) -> String {
    match &problem.otherwise {
        Some(otherwise) => format!("{} ({}); {otherwise}", problem.detail, problem.code),
        None => format!("{} ({})", problem.detail, problem.code),
    }
}
