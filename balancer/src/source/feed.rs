//! Routes, loads and drains from coordinators over QUIC.
//!
//! Every coordinator that can be reached is listened to: drains come from whichever acts. Whose routes are taken says
//! [`super::best`].

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use swarmguard_common::{
    domain::TaskId,
    wire::routes::{BalancerStats, FromRouteSource, Routes, ToRouteSource},
};
use swarmguard_runtime::{
    frame,
    identity::{self, COORDINATOR_NAME},
    transport,
};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{Picture, ReplicaPicture, ServicePicture, addresses, dns::Names, dns::split};
use crate::proxy::Global;

/// Coordinators listened to at once; a swarm has at most a handful of managers.
const MAX_SOURCES: usize = 16;
/// How often the coordinators' names are resolved.
const RESOLVE: Duration = Duration::from_secs(5);
/// Wait after a connection failed, doubled up to [`RETRY_MOST`].
const RETRY: Duration = Duration::from_millis(250);
/// Longest wait between attempts.
const RETRY_MOST: Duration = Duration::from_secs(5);
/// Time to connect.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest token, in bytes.
const MAX_TOKEN_BYTES: u64 = 4_096;
/// "Drained" messages that wait to be sent.
const QUEUE: usize = 256;

/// What a source says.
#[derive(Debug)]
pub enum Said {
    /// Everything there is.
    Routes(Routes),
    /// These are about to be stopped; "drained" goes back through the sender.
    Drain(Vec<TaskId>, mpsc::Sender<Vec<TaskId>>),
    /// These stay.
    Resume(Vec<TaskId>),
    /// The connection is lost.
    Lost,
}

/// Which coordinator said something.
pub type Event = (SocketAddr, Said);

/// Keeps a connection to every coordinator and passes on what they say, until the process ends.
pub async fn run(global: Arc<Global>, names: Names, events: mpsc::Sender<Event>) {
    let mut tasks: BTreeMap<SocketAddr, JoinHandle<()>> = BTreeMap::new();
    loop {
        let mut found = Vec::new();
        for coordinator in &global.settings.coordinators {
            let (host, port) = split(coordinator, 7443);
            let addresses = names.resolve(host).await;
            found.extend(addresses.unwrap_or_default().into_iter().map(|ip| SocketAddr::new(ip, port)));
        }
        found.truncate(MAX_SOURCES);
        // Where names resolve to nothing at all, those that are known are kept: DNS may be what is broken.
        if !found.is_empty() {
            tasks.retain(|address, task| {
                let stays = found.contains(address);
                if !stays {
                    task.abort();
                    let _ = events.try_send((*address, Said::Lost));
                }
                stays
            });
        }
        for address in found {
            tasks
                .entry(address)
                .or_insert_with(|| tokio::spawn(listen(Arc::clone(&global), address, events.clone())));
        }
        tokio::time::sleep(RESOLVE).await;
    }
}

async fn listen(global: Arc<Global>, address: SocketAddr, events: mpsc::Sender<Event>) {
    let mut wait = RETRY;
    loop {
        let started = tokio::time::Instant::now();
        let ended = session(&global, address, &events).await;
        if events.send((address, Said::Lost)).await.is_err() {
            return;
        }
        let error =
            ended.err().map_or_else(|| "the coordinator closed it".to_owned(), |error| format!("{error:#}"));
        tracing::warn!(coordinator = %address, error, "no routes from this coordinator");
        wait = if started.elapsed() > RETRY_MOST { RETRY } else { (wait * 2).min(RETRY_MOST) };
        tokio::time::sleep(wait).await;
    }
}

async fn session(global: &Global, address: SocketAddr, events: &mpsc::Sender<Event>) -> Result<()> {
    let settings = &global.settings;
    // Read anew each time: secrets and roots are rotated.
    let token = token(&settings.token_file)?;
    let tls = identity::anonymous_client_config(&settings.roots)
        .with_context(|| format!("cannot trust coordinators by {}", settings.roots.display()))?;
    let any =
        if address.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let endpoint = transport::bind(SocketAddr::new(any, 0), None)?;
    let connecting = endpoint.connect_with(transport::client_config(tls)?, address, COORDINATOR_NAME)?;
    let connection = tokio::time::timeout(CONNECT, connecting).await.context("no answer in time")??;
    let (mut send, mut receive) = connection.open_bi().await?;
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    frame::write(&mut send, &ToRouteSource::Hello { token, name: format!("balancer {}", name.trim()) })
        .await?;
    let (drained, mut to_send) = mpsc::channel::<Vec<TaskId>>(QUEUE);
    let writer = async {
        let mut figures = global.figures.subscribe();
        loop {
            let message = tokio::select! {
                // What somebody waits for first.
                biased;
                tasks = to_send.recv() => match tasks {
                    Some(tasks) => ToRouteSource::Drained { tasks },
                    None => return anyhow::Ok(()),
                },
                changed = figures.changed() => {
                    changed?;
                    ToRouteSource::Stats(BalancerStats::clone(&figures.borrow_and_update()))
                }
            };
            frame::write(&mut send, &message).await?;
        }
    };
    let reader = async {
        let mut first = true;
        while let Some(message) = frame::read::<FromRouteSource>(&mut receive).await? {
            if std::mem::take(&mut first) {
                tracing::info!(coordinator = %address, "routes come from this coordinator");
            }
            let said = match message {
                FromRouteSource::Routes(routes) => Said::Routes(routes),
                FromRouteSource::Drain { tasks } => Said::Drain(tasks, drained.clone()),
                FromRouteSource::Resume { tasks } => Said::Resume(tasks),
            };
            if events.send((address, said)).await.is_err() {
                bail!("the balancer is closing");
            }
        }
        anyhow::Ok(())
    };
    let ended = tokio::select! {
        ended = reader => ended,
        ended = writer => ended,
    };
    let reason = connection.close_reason();
    connection.close(0_u32.into(), b"");
    // What the coordinator gave as its reason says more than that a stream broke.
    match reason {
        Some(reason) => Err(anyhow::Error::new(reason)),
        None => ended,
    }
}

fn token(path: &Path) -> Result<String> {
    let context = || format!("cannot read the token {} (--token-file)", path.display());
    let bytes = std::fs::metadata(path).with_context(context)?.len();
    if bytes > MAX_TOKEN_BYTES {
        bail!("the token {} has {bytes} bytes, {MAX_TOKEN_BYTES} are allowed", path.display());
    }
    Ok(std::fs::read_to_string(path).with_context(context)?.trim().to_owned())
}

/// What workers need of a coordinator's routes: of each replica the one address that can be reached from here.
pub fn picture(routes: &Routes, subnets: &[addresses::Subnet]) -> Picture {
    let services = routes.services.iter().map(|(id, service)| {
        let replicas = service.replicas.iter().filter_map(|replica| {
            let address = addresses::reachable(&replica.addresses, subnets)?;
            Some(ReplicaPicture {
                task: replica.task.clone(),
                node: replica.node.clone(),
                address: SocketAddr::new(address, service.labels.port),
                ready: replica.ready,
                draining: replica.draining,
                load: replica.load,
            })
        });
        ServicePicture {
            id: id.to_string(),
            name: service.name.clone(),
            labels: service.labels.clone(),
            replicas: replicas.collect(),
        }
    });
    Picture { services: services.collect() }
}
