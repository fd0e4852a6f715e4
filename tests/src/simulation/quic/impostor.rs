//! Somebody who is part of the swarm and says that it is another node: its certificate is good, and not the one that the
//! hello needs.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use swarmguard_common::{
    domain::NodeId,
    wire::agent::{Hello, ToAgent, ToCoordinator},
};
use swarmguard_runtime::{
    frame,
    identity::{COORDINATOR_NAME, Identity, Source},
    transport,
};

use super::{Common, IMPOSTOR, socket};

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(7);
/// For one attempt.
const PATIENCE: Duration = Duration::from_secs(10);

/// What it is started with.
#[derive(Clone)]
pub(super) struct Plan {
    /// Whom it says it is.
    pub victim: NodeId,
    pub certificate: PathBuf,
    pub coordinators: Vec<SocketAddr>,
    pub own: SocketAddr,
    pub seed: u64,
}

/// Knocks at one coordinator after the other.
///
/// # Errors
/// When its certificate cannot be used.
pub(super) async fn run(common: Arc<Common>, plan: Plan) -> turmoil::Result {
    let identity = Identity::load(&Source::Files(plan.certificate.clone()))?;
    let mut seed = plan.seed;
    for coordinator in plan.coordinators.iter().cycle() {
        tokio::time::sleep(PAUSE).await;
        seed += 1;
        let tried = tokio::time::timeout(PATIENCE, knock(&common, &plan, &identity, *coordinator, seed));
        match tried.await {
            Ok(Ok(Some(ToAgent::Welcome { .. }))) => {
                let text = format!("{coordinator} welcomed somebody else as {}", plan.victim);
                common.eyes().found.push(text);
            }
            Ok(Ok(_) | Err(_)) => common.eyes().seen.refused += 1,
            // Nobody there.
            Err(_) => {}
        }
    }
    Ok(())
}

async fn knock(
    common: &Common,
    plan: &Plan,
    identity: &Identity,
    coordinator: SocketAddr,
    seed: u64,
) -> turmoil::Result<Option<ToAgent>> {
    let endpoint = socket::endpoint(&common.wire, plan.own.ip(), 0, None, seed)?;
    let config = transport::client_config(identity.client_config()?)?;
    let connection = endpoint.connect_with(config, coordinator, COORDINATOR_NAME)?.await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    let hello = Hello {
        node: plan.victim.clone(),
        epoch: u64::MAX,
        hostname: IMPOSTOR.into(),
        version: "simulated".into(),
        cpu_millis: 1_000,
        memory_bytes: 1 << 30,
        link_mbps: None,
        blind: false,
    };
    frame::write(&mut send, &ToCoordinator::Hello(hello)).await?;
    Ok(frame::read(&mut receive).await?)
}
