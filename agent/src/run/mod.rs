//! The running agent: what it finds at start, and the loop around the sampler.

mod alarm;
mod kernel;
mod watching;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, bail};
use swarmguard_common::{domain::NodeId, wire::agent::Hello};
use swarmguard_runtime::clock;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    bpf::is_cgroup2,
    config::{Link, Settings},
    discovery::engine::Engine,
    http::{self, Served},
    model::Capacity,
    sources::node,
    state::Agent,
    uplink::{
        self, Shared, Uplink,
        addresses::{Addresses, Wanted},
    },
};
use watching::Loop;

/// Link speed assumed where neither the driver nor the operator says.
pub const ASSUMED_MBPS: u32 = 1_000;

/// Where the node's cgroup v2 hierarchy really is below `configured`: there, or where a hybrid setup puts it.
pub fn cgroup_root(configured: &Path) -> Option<PathBuf> {
    [configured.to_path_buf(), configured.join("unified")].into_iter().find(|path| is_cgroup2(path))
}

/// What the node has, and the link speed that the driver says.
pub fn capacity(settings: &Settings) -> (Capacity, Option<u32>) {
    let said = match settings.link_mbps {
        Link::Fixed(mbps) => Some(mbps),
        Link::Auto => node::link_mbps(&settings.proc_root),
    };
    let capacity = Capacity {
        cpu_millis: node::cpu_millis(&settings.proc_root),
        memory_bytes: node::memory_bytes(&settings.proc_root),
        network_mbps: Some(said.unwrap_or(ASSUMED_MBPS)),
    };
    (capacity, said)
}

/// Runs until told to stop.
///
/// # Errors
/// When nothing can work: neither containers can be seen nor anybody be told, or the HTTP address is taken.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let root = cgroup_root(&settings.cgroup_root);
    let engine = engine_of(&settings);
    let blind = root.is_none().then(|| {
        format!("no cgroup v2 at {}: containers cannot be seen; boot with systemd.unified_cgroup_hierarchy=1, or name \
                 the place with --cgroup-root", settings.cgroup_root.display())
    });
    let node_id = uplink::node_of(&settings.identity);
    if let Some(why) = &blind {
        if settings.coordinators == Wanted::None || node_id.is_err() {
            bail!("nothing can be done here: {why}; and there is no coordinator that could be told");
        }
        tracing::error!("{why}; coordinators are told that this node is blind");
    }
    let shared = Shared::new(agent(&settings, node_id.ok(), blind.is_some(), engine.is_some()).await?);
    let served = Served { shared: shared.clone(), vitals: Arc::new(Mutex::default()), blind };
    let mut tasks = tokio::task::JoinSet::new();
    if let Some(address) = settings.http() {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot serve HTTP on {address} (--http-addr)"))?;
        let served = served.clone();
        tasks.spawn(async move {
            http::serve(listener, served).await;
            anyhow::bail!("the HTTP interface ended")
        });
    }
    if settings.coordinators != Wanted::None {
        let seed = shared.lock().hello.epoch;
        let uplink = Uplink {
            shared: shared.clone(),
            identity: settings.identity.clone(),
            addresses: Addresses::new(settings.coordinators.clone(), engine.clone()),
            endpoints: uplink::real_endpoints(),
            seed,
        };
        tasks.spawn(async move {
            uplink.run().await;
            Ok(())
        });
    }
    let looping = Loop::start(&settings, root, engine, shared, served).context("cannot have a timer")?;
    tokio::select! {
        ended = looping.run() => ended.context("the timer broke"),
        Some(ended) = tasks.join_next() => ended.context("a part of the agent failed")?,
        stopped = stop() => stopped,
    }
}

async fn stop() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("stopping");
    Ok(())
}

fn engine_of(settings: &Settings) -> Option<Engine> {
    let socket = settings.docker.0.as_ref()?;
    match Engine::at(socket) {
        Ok(engine) => Some(engine),
        Err(error) => {
            tracing::warn!("{error}: containers have no names, the coordinator finds out what they are");
            if settings.coordinators == Wanted::Auto {
                tracing::error!(
                    "without an engine there is no way to find coordinators: list them in --coordinators"
                );
            }
            None
        }
    }
}

async fn agent(
    settings: &Settings,
    node: Option<NodeId>,
    blind: bool,
    engine: bool,
) -> anyhow::Result<Agent> {
    let (capacity, link_mbps) = capacity(settings);
    if link_mbps.is_none() {
        tracing::warn!(
            "the driver does not say how fast the link is: {ASSUMED_MBPS} Mbit/s are taken as 100 %; say it with \
             --link-mbps, or per service with the label swarmguard.network.mbps"
        );
    }
    if capacity.cpu_millis == 0 || capacity.memory_bytes == 0 {
        bail!(
            "{} shows neither CPUs nor memory: is the node's /proc mounted there (--proc-root)?",
            settings.proc_root.display()
        );
    }
    let hello = Hello {
        // Replaced as soon as there is a certificate; nothing is sent before.
        node: node.or_else(|| "unknown".parse().ok()).context("no node ID")?,
        epoch: clock::wall_ms(),
        hostname: hostname(&settings.proc_root),
        version: env!("CARGO_PKG_VERSION").into(),
        cpu_millis: capacity.cpu_millis,
        memory_bytes: capacity.memory_bytes,
        link_mbps,
        blind,
    };
    let most = usize::try_from(settings.max_containers).unwrap_or(usize::MAX);
    let mut agent = Agent::new(hello, capacity, most);
    agent.expect_names(engine);
    if settings.coordinators == Wanted::None {
        agent.tell_nobody();
    }
    Ok(agent)
}

/// The node's host name: inside a container the own one is the container's.
fn hostname(proc_root: &Path) -> String {
    // A container has a UTS namespace of its own, and /proc/sys/kernel/hostname shows the reader's, so the first
    // process's environment would be needed; the file below is what is left, and right where both are one.
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let read = std::fs::read_to_string(proc_root.join("sys/kernel/hostname"));
    read.map_or(own, |text| text.trim().chars().take(255).collect())
}

/// Ten files per container: the usual 1,024 would do for a hundred containers.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("cannot raise the limit of open files: {error}");
    }
}
