//! Killed containers: one, or all that Swarm runs on this node.

use std::{collections::HashMap, time::Duration};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    query_parameters::{KillContainerOptionsBuilder, ListContainersOptionsBuilder},
};

use super::DrillError;

/// Longest wait for an answer, in seconds.
const PATIENCE: u64 = 20;
/// What Swarm starts anew on a node that it is cut off from is killed again after this long.
const AGAIN: Duration = Duration::from_millis(250);
const TASK: &str = "com.docker.swarm.task.id";

fn engine(socket: &str) -> Result<Docker, DrillError> {
    Docker::connect_with_unix(socket, PATIENCE, API_DEFAULT_VERSION).map_err(refused("reach its socket"))
}

fn refused(what: impl Into<String>) -> impl FnOnce(bollard::errors::Error) -> DrillError {
    let what = what.into();
    move |source| DrillError::Engine { what, source: Box::new(source) }
}

/// Kills a container.
pub(super) async fn once(socket: &str, container: &str) -> Result<(), DrillError> {
    let docker = engine(socket)?;
    let options = KillContainerOptionsBuilder::default().signal("KILL").build();
    docker.kill_container(container, Some(options)).await.map_err(refused(format!("kill {container}")))
}

/// Kills all containers of Swarm's but those spared, again and again until it is dropped.
pub(super) async fn all(socket: &str, spare: &[String]) {
    loop {
        if let Ok(docker) = engine(socket) {
            let filters = HashMap::from([("label", vec![TASK]), ("status", vec!["running"])]);
            let options = ListContainersOptionsBuilder::default().filters(&filters).build();
            let found = docker.list_containers(Some(options)).await.unwrap_or_default();
            for id in found.into_iter().filter_map(|container| container.id) {
                if !spare.iter().any(|spared| id.starts_with(spared.as_str())) && !is_own(&id) {
                    let options = KillContainerOptionsBuilder::default().signal("KILL").build();
                    let _ = docker.kill_container(&id, Some(options)).await;
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether this process runs in that container: its ID stands in the paths of what is mounted into it.
fn is_own(id: &str) -> bool {
    std::fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| mounts.contains(id))
}
