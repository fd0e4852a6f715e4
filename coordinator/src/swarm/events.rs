//! The engine's events: what changed, so that only that is read anew. They are hints: what they miss, the next full
//! reading finds. Swarm has events for nodes, services and configs, but none for tasks; a task's container has some, on
//! its own node only.

use std::collections::HashMap;

use bollard::{
    API_DEFAULT_VERSION, Docker,
    models::{EventMessage, EventMessageTypeEnum},
    query_parameters::EventsOptionsBuilder,
};
use futures_util::{Stream, StreamExt as _};
use swarmguard_common::domain::{ServiceId, TaskId};

/// For connecting and for the beginning of an answer, in seconds.
const PATIENCE_S: u64 = 15;

/// What an event says has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Some node.
    Node,
    /// A service's own object.
    Service(ServiceId),
    /// One of our records.
    Record,
    /// A task's container.
    Task(TaskId, Option<ServiceId>),
}

/// The engine at `unix:///path` or `tcp://host:port`, for its events.
pub(super) fn connect(address: &str) -> Result<Docker, bollard::errors::Error> {
    // bollard names no version in its requests, so each engine answers in its own.
    match address.strip_prefix("unix://") {
        Some(path) => Docker::connect_with_unix(path, PATIENCE_S, API_DEFAULT_VERSION),
        None => Docker::connect_with_http(address, PATIENCE_S, API_DEFAULT_VERSION),
    }
}

/// What changes from now on, until the engine goes away. What is none of ours is left out.
pub(super) fn listen(
    docker: &Docker,
) -> impl Stream<Item = Result<Option<Change>, bollard::errors::Error>> + Unpin + Send + use<> {
    let filters = HashMap::from([
        ("type", vec!["service", "node", "config", "container"]),
        ("event", vec!["create", "update", "remove", "start", "die", "health_status"]),
    ]);
    let options = EventsOptionsBuilder::default().filters(&filters).build();
    docker.events(Some(options)).map(|event| event.map(|event| change(&event))).boxed()
}

fn change(event: &EventMessage) -> Option<Change> {
    let actor = event.actor.as_ref()?;
    let attribute = |name: &str| actor.attributes.as_ref()?.get(name);
    match event.typ? {
        EventMessageTypeEnum::NODE => Some(Change::Node),
        EventMessageTypeEnum::SERVICE => Some(Change::Service(actor.id.as_ref()?.parse().ok()?)),
        // One without a name may be ours.
        EventMessageTypeEnum::CONFIG
            if attribute("name").is_none_or(|name| name.starts_with("swarmguard-")) =>
        {
            Some(Change::Record)
        }
        EventMessageTypeEnum::CONTAINER => {
            let task = attribute("com.docker.swarm.task.id")?.parse().ok()?;
            let service = attribute("com.docker.swarm.service.id").and_then(|id| id.parse().ok());
            Some(Change::Task(task, service))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<Change> {
        change(&serde_json::from_str(text).expect("an event"))
    }

    #[test]
    fn events_name_what_changed() {
        let service = r#"{"Type":"service","Action":"update","Actor":{"ID":"s1","Attributes":{"name":"web"}},"scope":"swarm","time":1}"#;
        assert_eq!(of(service), Some(Change::Service("s1".parse().expect("an ID"))));
        let node =
            r#"{"Type":"node","Action":"update","Actor":{"ID":"n1","Attributes":{"state.new":"down"}}}"#;
        assert_eq!(of(node), Some(Change::Node));
        let record = r#"{"Type":"config","Action":"create","Actor":{"ID":"c","Attributes":{"name":"swarmguard-act-s1"}}}"#;
        assert_eq!(of(record), Some(Change::Record));
        assert_eq!(of(&record.replace("swarmguard-act-s1", "other")), None);
        let container = r#"{"status":"health_status: healthy","id":"x","Type":"container","Action":"health_status: healthy",
            "Actor":{"ID":"x","Attributes":{"com.docker.swarm.task.id":"t1","com.docker.swarm.service.id":"s1"}}}"#;
        let (task, service) = ("t1".parse().expect("an ID"), "s1".parse().ok());
        assert_eq!(of(container), Some(Change::Task(task, service)));
        let plain = r#"{"Type":"container","Action":"die","Actor":{"ID":"x","Attributes":{"image":"y"}}}"#;
        assert_eq!(of(plain), None, "a container of no service");
    }
}
