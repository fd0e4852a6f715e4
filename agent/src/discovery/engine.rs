//! The local engine: names of containers, what happens to them, and where the managers are. Everything it says is
//! extra; an engine that is away, old or strange costs names, never figures.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use bollard::{
    Docker,
    models::{ContainerInspectResponse, ContainerSummary, EventMessage, MountPoint},
    query_parameters::{EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder},
};
use futures_util::{Stream, StreamExt as _};
use swarmguard_common::{
    domain::{ContainerId, NodeId},
    wire::agent::{ContainerChange, MAX_LOCAL_VOLUMES},
};

use crate::state::Description;

/// How long one answer may take. An engine on a node that runs hot is slow.
const PATIENCE: Duration = Duration::from_secs(20);

const TASK_ID: &str = "com.docker.swarm.task.id";
const SERVICE_ID: &str = "com.docker.swarm.service.id";
const SERVICE_NAME: &str = "com.docker.swarm.service.name";

/// The engine at a unix socket.
#[derive(Clone, Debug)]
pub struct Engine {
    docker: Docker,
    socket: PathBuf,
}

/// Why the engine gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No socket there, or no right to it.
    #[error("no engine at {socket}: {source}")]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: bollard::errors::Error,
    },
    /// It answered with an error or in words that are not understood.
    #[error("the engine did not answer {what}: {source}")]
    Answer {
        /// What was asked.
        what: &'static str,
        /// Why not.
        source: bollard::errors::Error,
    },
    /// It did not answer at all.
    #[error("the engine did not answer {what} within {} s", PATIENCE.as_secs())]
    Late {
        /// What was asked.
        what: &'static str,
    },
}

/// What happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// Which.
    pub container: ContainerId,
    /// Its task, from its label.
    pub task: Option<swarmguard_common::domain::TaskId>,
    /// What.
    pub what: What,
}

/// Events that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// For the coordinators.
    Change(ContainerChange),
    /// A process was killed for want of memory.
    Oom,
}

impl Engine {
    /// Does not connect yet; each question does.
    ///
    /// # Errors
    /// When there is no such socket.
    pub fn at(socket: &Path) -> Result<Self, EngineError> {
        let text = socket.display().to_string();
        let docker = Docker::connect_with_unix(&text, PATIENCE.as_secs(), bollard::API_DEFAULT_VERSION)
            .map_err(|source| EngineError::Socket { socket: socket.into(), source })?;
        Ok(Self { docker, socket: socket.into() })
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// All containers that exist, by ID, with what a list says of them.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn list(&self) -> Result<HashMap<ContainerId, Description>, EngineError> {
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let all = answer("list", self.docker.list_containers(Some(options))).await?;
        Ok(all.into_iter().filter_map(described).collect())
    }

    /// One container in detail.
    ///
    /// # Errors
    /// When the engine does not answer, or does not know it.
    pub async fn inspect(&self, id: &ContainerId) -> Result<Description, EngineError> {
        let about = self.docker.inspect_container(id.as_str(), None::<InspectContainerOptions>);
        Ok(inspected(answer("inspect", about).await?))
    }

    /// Where the managers are that this node knows; empty when it is in no swarm or does not say.
    pub async fn managers(&self) -> Vec<IpAddr> {
        let info = match answer("info", self.docker.info()).await {
            Ok(info) => info,
            Err(error) => {
                tracing::warn!("cannot find coordinators: {error}");
                return Vec::new();
            }
        };
        let peers = info.swarm.and_then(|swarm| swarm.remote_managers).unwrap_or_default();
        peers.into_iter().filter_map(|peer| manager(&peer.addr?)).collect()
    }

    /// This node's ID and host name, as far as the engine says.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn node(&self) -> Result<(Option<NodeId>, Option<String>), EngineError> {
        let info = answer("info", self.docker.info()).await?;
        let node = info.swarm.and_then(|swarm| swarm.node_id).and_then(|id| id.parse().ok());
        Ok((node, info.name))
    }

    /// What happens to containers from now on. Ends when the engine goes away.
    pub fn events(&self) -> impl Stream<Item = Result<Happening, EngineError>> + Unpin + use<> {
        let filters = HashMap::from([("type", vec!["container"])]);
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        let stream = self.docker.events(Some(options)).filter_map(|event| async move {
            match event {
                Ok(event) => happening(&event).map(Ok),
                Err(source) => Some(Err(EngineError::Answer { what: "events", source })),
            }
        });
        Box::pin(stream)
    }
}

async fn answer<T>(
    what: &'static str,
    question: impl Future<Output = Result<T, bollard::errors::Error>>,
) -> Result<T, EngineError> {
    match tokio::time::timeout(PATIENCE, question).await {
        Ok(answer) => answer.map_err(|source| EngineError::Answer { what, source }),
        Err(_) => Err(EngineError::Late { what }),
    }
}

/// The address of a manager from `host:port` of its raft port.
fn manager(address: &str) -> Option<IpAddr> {
    let (host, _) = address.rsplit_once(':')?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn described(summary: ContainerSummary) -> Option<(ContainerId, Description)> {
    let id = summary.id?.parse().ok()?;
    let name = summary.names.unwrap_or_default().into_iter().next().unwrap_or_default();
    let mode = summary.host_config.and_then(|config| config.network_mode).unwrap_or_default();
    Some((id, with_labels(&name, &summary.labels.unwrap_or_default(), &mode)))
}

fn inspected(about: ContainerInspectResponse) -> Description {
    let mode = about.host_config.and_then(|config| config.network_mode).unwrap_or_default();
    let state = about.state;
    let config = about.config;
    let tests =
        config.as_ref().and_then(|config| config.healthcheck.as_ref()).and_then(|check| check.test.clone());
    let labels = config.and_then(|config| config.labels).unwrap_or_default();
    // Docker writes ["NONE"] where a service switches off what the image brings.
    let tested =
        tests.is_some_and(|test| test.first().is_some_and(|word| word != "NONE" && !word.is_empty()));
    let pid = state.as_ref().and_then(|state| state.pid).and_then(|pid| u32::try_from(pid).ok());
    Description {
        healthcheck: Some(
            tested
                || state.is_some_and(|state| {
                    state.health.is_some_and(|health| {
                        health.status.is_some_and(|status| {
                            use bollard::models::HealthStatusEnum as Health;
                            matches!(status, Health::STARTING | Health::HEALTHY | Health::UNHEALTHY)
                        })
                    })
                }),
        ),
        pid: pid.filter(|pid| *pid > 0),
        local_volumes: about
            .mounts
            .unwrap_or_default()
            .into_iter()
            .filter_map(own_volume)
            .take(MAX_LOCAL_VOLUMES)
            .collect(),
        ..with_labels(&about.name.unwrap_or_default(), &labels, &mode)
    }
}

/// Where an anonymous volume is mounted: what an image asks for with `VOLUME`, made anew for each container. Others are in
/// the service's spec.
fn own_volume(mount: MountPoint) -> Option<String> {
    let name = mount.name?;
    let is_anonymous = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_local = mount.driver.is_none_or(|driver| driver == "local") && mount.rw != Some(false);
    (is_anonymous && is_local).then(|| mount.destination.unwrap_or_default().chars().take(255).collect())
}

fn with_labels(name: &str, labels: &HashMap<String, String>, network_mode: &str) -> Description {
    Description {
        name: name.trim_start_matches('/').chars().take(255).collect(),
        task: labels.get(TASK_ID).and_then(|id| id.parse().ok()),
        service: labels.get(SERVICE_ID).and_then(|id| id.parse().ok()),
        service_name: labels.get(SERVICE_NAME).map(|name| name.chars().take(255).collect()),
        healthcheck: None,
        local_volumes: Vec::new(),
        pid: None,
        shared_network: network_mode == "host" || network_mode.starts_with("container:"),
    }
}

fn happening(event: &EventMessage) -> Option<Happening> {
    let actor = event.actor.as_ref()?;
    let attributes = actor.attributes.as_ref();
    let attribute = |key: &str| attributes.and_then(|all| all.get(key));
    let what = match event.action.as_deref()? {
        "start" => What::Change(ContainerChange::Started),
        "health_status: healthy" => What::Change(ContainerChange::Healthy),
        "health_status: unhealthy" => What::Change(ContainerChange::Unhealthy),
        "die" => {
            let status = attribute("exitCode").and_then(|code| code.parse().ok()).unwrap_or(-1);
            What::Change(ContainerChange::Died { status })
        }
        "oom" => What::Oom,
        _ => return None,
    };
    let task = attribute(TASK_ID).and_then(|id| id.parse().ok());
    Some(Happening { container: actor.id.as_ref()?.parse().ok()?, task, what })
}

/// Reads bytes as each of the engine's answers; for fuzzing. Panics on a defect.
pub(crate) fn try_bytes(data: &[u8]) {
    const LONGEST: usize = 255;
    let check = |description: &Description| {
        let named = description.service_name.as_deref().unwrap_or_default();
        for name in [description.name.as_str(), named] {
            assert!(name.chars().count() <= LONGEST, "a name of {} characters", name.chars().count());
        }
        assert_ne!(description.pid, Some(0));
    };
    if let Ok(event) = serde_json::from_slice::<EventMessage>(data) {
        let _ = happening(&event);
    }
    if let Ok(about) = serde_json::from_slice::<ContainerInspectResponse>(data) {
        check(&inspected(about));
    }
    if let Ok(list) = serde_json::from_slice::<Vec<ContainerSummary>>(data) {
        list.into_iter().filter_map(described).for_each(|(_, description)| check(&description));
    }
    let _ = manager(&String::from_utf8_lossy(data));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(json: &str) -> Option<Happening> {
        happening(&serde_json::from_str(json).expect("an event"))
    }

    #[test]
    fn events_of_an_engine_20_10() {
        let id = "ab".repeat(32);
        let json = |action: &str| {
            format!(
                r#"{{"status":"{action}","id":"{id}","from":"web","Type":"container","Action":"{action}","Actor":{{"ID":"{id}",
                "Attributes":{{"com.docker.swarm.task.id":"t1","exitCode":"137","image":"web"}}}},"scope":"local","time":1,"timeNano":2}}"#
            )
        };
        let died = event(&json("die")).expect("known");
        assert_eq!(died.container.to_string(), id);
        assert_eq!(died.task.map(|task| task.to_string()), Some("t1".into()));
        assert_eq!(died.what, What::Change(ContainerChange::Died { status: 137 }));
        let healthy = event(&json("health_status: healthy")).expect("known");
        assert_eq!(healthy.what, What::Change(ContainerChange::Healthy));
        assert_eq!(event(&json("oom")).map(|it| it.what), Some(What::Oom));
        assert_eq!(event(&json("exec_start: sh")), None);
    }

    #[test]
    fn an_inspection_tells_healthcheck_process_and_network() {
        let about: ContainerInspectResponse = serde_json::from_str(
            &r#"{"Id":"x","Name":"/web.1.t1","State":{"Status":"running","Pid":77,"Health":{"Status":"starting"}},
            "HostConfig":{"NetworkMode":"host"},
            "Mounts":[{"Type":"volume","Name":"NAME","Driver":"local","Destination":"/data","RW":true},
            {"Type":"volume","Name":"pgdata","Driver":"local","Destination":"/pg","RW":true},
            {"Type":"bind","Source":"/srv","Destination":"/srv","RW":true},
            {"Type":"volume","Name":"NAME","Driver":"local","Destination":"/ro","RW":false}],
            "Config":{"Healthcheck":{"Test":["CMD","/web","check"]},
            "Labels":{"com.docker.swarm.service.id":"s1","com.docker.swarm.service.name":"web"}}}"#
                .replace("NAME", &"0a".repeat(32)),
        )
        .expect("an inspection");
        let description = inspected(about);
        assert_eq!(description.name, "web.1.t1");
        assert_eq!((description.healthcheck, description.pid), (Some(true), Some(77)));
        assert!(description.shared_network);
        assert_eq!(
            description.local_volumes,
            ["/data"],
            "the named one is in the service's spec, the last only read"
        );
        assert_eq!(description.service_name.as_deref(), Some("web"));
        let bare: ContainerInspectResponse =
            serde_json::from_str(r#"{"State":{"Pid":0},"Config":{"Healthcheck":{"Test":["NONE"]}}}"#)
                .expect("one");
        assert_eq!(inspected(bare), Description { healthcheck: Some(false), ..Description::default() });
    }

    #[test]
    fn managers_by_their_raft_address() {
        assert_eq!(manager("192.168.7.1:2377"), "192.168.7.1".parse().ok());
        assert_eq!(manager("[fd00::1]:2377"), "fd00::1".parse().ok());
        assert_eq!(manager("nonsense"), None);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(action in ".{0,40}", id in ".{0,80}", code in ".{0,8}", address in ".{0,40}") {
            let event = serde_json::json!({"Type": "container", "Action": action,
                "Actor": {"ID": id, "Attributes": {"exitCode": code}}});
            if let Ok(event) = serde_json::from_value::<EventMessage>(event) {
                let _ = happening(&event);
            }
            let _ = manager(&address);
        }
    }
}
