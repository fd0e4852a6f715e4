//! How long an alert is on its way: from the agent's write to the judgement's queue, at 10,000 a second on loopback.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use swarmguard_common::{
    time::Time,
    wire::agent::{Hello, TaskIntro, ToCoordinator},
};
use swarmguard_coordinator::{
    ingest::{Event, Ingest, Limits, hub::Hub},
    metrics::Metrics,
};
use swarmguard_core::brain::AgentEvent;
use swarmguard_runtime::{
    clock, frame,
    identity::{Identity, Source},
    transport,
};
use swarmguard_tests::figures::Row;

use crate::{agents::alert, node_id};

const AGENTS: u64 = 50;
const PER_AGENT_AND_S: u64 = 200;
const SECONDS: u64 = 3;

/// The rows p50 and p99.
pub async fn measure(dir: &Path) -> anyhow::Result<[Row; 2]> {
    let identity = Identity::load(&Source::Files(dir.join("0")))?;
    let config = transport::server_config(identity.server_config()?)?;
    let endpoint = transport::bind("127.0.0.1:0".parse()?, Some(config))?;
    let to = endpoint.local_addr()?;
    let cluster = identity.own.cluster.clone();
    let (ingest, mut inputs) =
        Ingest::new(Limits::default(), cluster, None, Arc::new(Hub::default()), Metrics::new());
    let serving = tokio::spawn(ingest.serve(endpoint.clone()));
    let client = transport::bind("127.0.0.1:0".parse()?, None)?;
    let begins = clock::now() + Duration::from_secs(3);
    for number in 0..AGENTS {
        let number = usize::try_from(number)?;
        let identity = Identity::load(&Source::Files(dir.join(number.to_string())))?;
        let config = transport::client_config(identity.client_config()?)?;
        let connection = client.connect_with(config, to, "swarm-manager")?.await?;
        tokio::spawn(speak(connection, number, begins));
    }
    let wanted = usize::try_from(AGENTS * PER_AGENT_AND_S * SECONDS)?;
    let mut figures = Vec::with_capacity(wanted);
    while figures.len() < wanted {
        let event = tokio::time::timeout(Duration::from_secs(30), inputs.events.recv());
        let event = event.await.context("alerts were lost on the way")?.context("ingest ended")?;
        let Event::Input(input) = event else { continue };
        let AgentEvent::Message(ToCoordinator::Alert(alert)) = input.what else { continue };
        figures.push(clock::now().since(Time::from_micros(alert.seq)).as_secs_f64() * 1_000.0);
    }
    serving.abort();
    endpoint.close(0_u32.into(), b"done");
    Ok(Row::percentiles("alert.oneway_ms", "ms", "<= 2", figures))
}

async fn speak(connection: quinn::Connection, number: usize, begins: Time) -> anyhow::Result<()> {
    let (mut send, _receive) = connection.open_bi().await?;
    let hello = Hello {
        node: node_id(number)?,
        epoch: 1,
        hostname: String::new(),
        version: String::new(),
        cpu_millis: 1_000,
        memory_bytes: 1,
        link_mbps: None,
        blind: false,
    };
    frame::write(&mut send, &ToCoordinator::Hello(hello)).await?;
    let intro = TaskIntro {
        handle: 1,
        container: "c".parse()?,
        task: None,
        service: None,
        cpu_limit_millis: None,
        memory_limit_bytes: None,
        healthcheck: None,
        local_volumes: Vec::new(),
    };
    frame::write(&mut send, &ToCoordinator::Task(intro)).await?;
    let gap = Duration::from_secs(1) / u32::try_from(PER_AGENT_AND_S)?;
    let offset = gap * u32::try_from(number)? / u32::try_from(AGENTS)?;
    for count in 0..PER_AGENT_AND_S * SECONDS {
        let at = begins + offset + gap * u32::try_from(count)?;
        tokio::time::sleep(at.since(clock::now())).await;
        // The sequence number is the time of sending, which only has to grow.
        let message = ToCoordinator::Alert(alert(1, clock::now().as_micros(), 1));
        frame::write(&mut send, &message).await?;
    }
    // Until everything has arrived.
    connection.closed().await;
    Ok(())
}
