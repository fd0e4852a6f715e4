//! The running agent: what it finds at start, and the loop around the sampler.

mod alarm;
mod kernel;
mod watching;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, bail};
use swarmguard_common::{domain::NodeId, wire::agent::Hello};
use swarmguard_runtime::{clock, health, token::Token};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    bpf::is_cgroup2,
    config::{Link, NodeCpus, Settings},
    discovery::{engine::Engine, scan},
    http::{self, Access, HEALTH_NAME, Served},
    model::Capacity,
    sources::{
        node,
        node_group::{NodeGroup, NodeGroupError},
    },
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

/// The cgroup that is this node, where the settings name one; `root` is what [`cgroup_root`] found.
///
/// # Errors
/// Where there is no such cgroup.
pub fn node_group(settings: &Settings, root: Option<&Path>) -> Result<Option<NodeGroup>, NodeGroupError> {
    let cpus = match settings.node_cpus {
        NodeCpus::Auto => None,
        NodeCpus::Fixed(millis) => Some(millis),
    };
    let Some(below) = &settings.node_cgroup.0 else {
        return if cpus.is_some() { Err(NodeGroupError::CpusAlone) } else { Ok(None) };
    };
    let dir = root.unwrap_or(&settings.cgroup_root).join(below);
    NodeGroup::open(&dir, cpus, &settings.proc_root).map(Some)
}

/// What the node has, and the link speed that the driver says.
pub fn capacity(settings: &Settings, group: Option<&NodeGroup>) -> (Capacity, Option<u32>) {
    let said = match settings.link_mbps {
        Link::Fixed(mbps) => Some(mbps),
        Link::Auto => node::link_mbps(&settings.proc_root),
    };
    let capacity = Capacity {
        cpu_millis: group.map_or_else(|| node::cpu_millis(&settings.proc_root), NodeGroup::cpu_millis),
        memory_bytes: group
            .and_then(NodeGroup::memory_limit)
            .unwrap_or_else(|| node::memory_bytes(&settings.proc_root)),
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
    let group = node_group(&settings, root.as_deref())?;
    tell_of_node(root.as_deref(), group.as_ref());
    let (capacity, link_mbps) = capacity(&settings, group.as_ref());
    let hello = hello(&settings, node_id.ok(), capacity, link_mbps, blind.is_some())?;
    let shared = Shared::new(agent(&settings, hello, capacity, engine.is_some()));
    let served = Served { shared: shared.clone(), vitals: Arc::new(Mutex::default()), blind };
    let mut tasks = tokio::task::JoinSet::new();
    answer_healthchecks(&settings, &served, &mut tasks)?;
    if let Some(address) = settings.http() {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot serve HTTP on {address} (--http-addr)"))?;
        let (served, access) = (served.clone(), access(&settings, address)?);
        tasks.spawn(async move {
            http::serve(listener, served, access).await;
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
    let looping =
        Loop::start(&settings, root, group, engine, shared, served).context("cannot have a timer")?;
    tokio::select! {
        ended = looping.run() => ended.context("the timer broke"),
        Some(ended) = tasks.join_next() => ended.context("a part of the agent failed")?,
        stopped = stop() => stopped,
    }
}

fn access(settings: &Settings, address: SocketAddr) -> anyhow::Result<Access> {
    let file = settings.reader_token_file.as_ref().and_then(|file| file.0.as_ref());
    let token = file.map(|path| Token::from_file(path)).transpose()?;
    if !address.ip().is_loopback() && token.is_none() && !settings.open_reads {
        tracing::warn!(
            "--http-addr {address} is reachable from elsewhere, but only this node itself is answered: name a \
             --reader-token-file, or open it with --open-reads"
        );
    }
    Ok(Access { token, open: settings.open_reads })
}

fn answer_healthchecks(
    settings: &Settings,
    served: &Served,
    tasks: &mut tokio::task::JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let port = settings.known_by();
    // Any port, as tests have it: there is nothing to be known by.
    if port == 0 {
        return Ok(());
    }
    let listener = health::listener(HEALTH_NAME, port).with_context(|| {
        format!(
            "cannot listen for health checks: does another agent with port {port} (--http-addr) run here?"
        )
    })?;
    let served = served.clone();
    tasks.spawn(async move {
        health::answer(listener, || http::healthcheck(&served)).await;
        anyhow::bail!("nobody answers health checks any more")
    });
    Ok(())
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

/// Says what stands for the node, where that is not the machine or should not be.
fn tell_of_node(root: Option<&Path>, group: Option<&NodeGroup>) {
    match (group, root) {
        (Some(group), _) => tracing::info!(
            "this node is the cgroup {}: {} thousandths of a CPU ({})",
            group.dir().display(),
            group.cpu_millis(),
            group.origin()
        ),
        (None, Some(root)) if is_nested(root) => tracing::warn!(
            "{NESTED}: CPU, memory and pressure of the whole machine are taken for this node's; say --node-cgroup /"
        ),
        _ => {}
    }
}

/// What [`is_nested`] found, for people.
pub const NESTED: &str = "this node seems to be a container itself (LXC, Docker in Docker)";

/// Whether the node's cgroup hierarchy is a part of a machine's, with this node's containers in it. A mount that shows
/// nothing but the agent's own cgroup is another mistake.
pub fn is_nested(root: &Path) -> bool {
    // The root of the whole hierarchy has no state of its own, hence no such file.
    root.join("cgroup.type").exists() && !scan::walk(root).containers.is_empty()
}

fn hello(
    settings: &Settings,
    node: Option<NodeId>,
    capacity: Capacity,
    link_mbps: Option<u32>,
    blind: bool,
) -> anyhow::Result<Hello> {
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
    Ok(Hello {
        // Replaced as soon as there is a certificate; nothing is sent before.
        node: node.or_else(|| "unknown".parse().ok()).context("no node ID")?,
        epoch: clock::wall_ms(),
        hostname: hostname(&settings.proc_root),
        version: env!("CARGO_PKG_VERSION").into(),
        cpu_millis: capacity.cpu_millis,
        memory_bytes: capacity.memory_bytes,
        link_mbps,
        blind,
    })
}

fn agent(settings: &Settings, hello: Hello, capacity: Capacity, engine: bool) -> Agent {
    let most = usize::try_from(settings.max_containers).unwrap_or(usize::MAX);
    let mut agent = Agent::new(hello, capacity, most);
    agent.expect_names(engine);
    if settings.coordinators == Wanted::None {
        agent.tell_nobody();
    }
    agent
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
