//! A real Docker Swarm of several nodes on this machine: `up`, `down`, and what tests do to it in between.
//!
//! Nodes are VMs (a kernel each) or, much faster and with less isolation, namespaces. Other xtask commands use
//! [`up`] and [`Cluster`]; programs that are not xtask read the state file.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

mod cli;
mod docker;
mod forward;
mod native_node;
mod net;
pub mod qemu;
pub mod remote;
mod state;
mod teardown;
mod vm_node;

pub use cli::{Args, run};
pub use native_node::has_cpu_controller;
pub use state::{Kind, Node, State};

use crate::process;
use crate::progress::Progress;
use crate::rootfs::Engine;
use crate::{cache, clock, host, interrupt};
use state::{Phase, Role};

/// How long an emulated node may take until its engine answers.
const BOOT_TIMEOUT: Duration = Duration::from_secs(240);

/// How long a formed swarm may take until all its nodes are ready.
const SWARM_TIMEOUT: Duration = Duration::from_secs(180);

/// What cluster to make.
#[derive(Clone, Debug)]
pub struct Options {
    /// Several clusters with different names can be up at a time.
    pub name: String,
    /// 1 to 9.
    pub nodes: usize,
    /// How many of them are managers; at least 1.
    pub managers: usize,
    /// Docker Engine's version.
    pub engine: Engine,
    /// Namespaces instead of VMs.
    pub native: bool,
    /// What each native node may use, in thousandths of a CPU; by the machine where it is not said.
    pub cpu_millis: Option<u32>,
    /// Memory of a node in MiB.
    pub memory_mib: u32,
    /// Whether missing packages may be installed.
    pub install: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            nodes: 3,
            managers: 1,
            engine: Engine::default(),
            native: false,
            cpu_millis: None,
            memory_mib: 1536,
            install: true,
        }
    }
}

/// A cluster that is up.
pub struct Cluster {
    directory: PathBuf,
    state: State,
}

/// Makes a cluster, or returns the one of this name that is up already. Leftovers of one that was not torn down are
/// removed first. Where making it fails or is interrupted, everything made so far is removed.
///
/// # Errors
/// Where a package is missing and may not be installed, this is not root, an option is out of range, another cluster
/// of this name has other settings, or a node does not come up; with the end of its console.
pub fn up(options: &Options, progress: &Progress) -> Result<Cluster> {
    check(options)?;
    let packages = if options.native { host::NAMESPACES } else { host::VIRTUAL_MACHINES };
    host::ensure(packages, options.install)?;
    interrupt::install();
    let directory = directory(&options.name);
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let _turn = turn(&options.name)?;
    if let Some(found) = State::load(&directory)? {
        if let Some(cluster) = reuse(&directory, found, options)? {
            progress.done(format!("cluster {} is up already", options.name));
            return Ok(cluster);
        }
        progress.doing("removing the leftovers of an earlier cluster");
        teardown::remove(&directory)?;
    }
    let made = make(options, &directory, progress);
    made.map_err(|error| {
        progress.doing("removing what was made");
        let kept = teardown::explain_logs(&directory);
        match teardown::remove(&directory) {
            Ok(()) => error.context(format!("cluster {} was not made and has been removed{kept}", options.name)),
            Err(second) => error.context(format!(
                "cluster {} was not made, and not all of it could be removed ({second:#}): run cargo xtask cluster down --name {}",
                options.name, options.name
            )),
        }
    })
}

impl Cluster {
    /// Opens a cluster that `up` made.
    ///
    /// # Errors
    /// Where there is none of this name that is up.
    pub fn open(name: &str) -> Result<Self> {
        let directory = directory(&state::check_name(name)?);
        match State::load(&directory)? {
            Some(state) if state.phase == Phase::Up => Ok(Self { directory, state }),
            _ => bail!("no cluster {name} is up: cargo xtask cluster up --name {name}"),
        }
    }

    /// What it consists of.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Where its state file is, which tests read.
    pub fn state_file(&self) -> PathBuf {
        state::file(&self.directory)
    }

    /// The node called `name`; a bare number means `node<number>`.
    ///
    /// # Errors
    /// Where there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.state.node(name)
    }

    /// The unix socket of a node's engine, on this machine.
    ///
    /// # Errors
    /// Where there is no such node.
    pub fn socket(&self, node: &str) -> Result<&Path> {
        Ok(&self.node(node)?.socket)
    }

    /// Runs a command on a node as root and keeps its output.
    ///
    /// # Errors
    /// Where the node cannot be reached or the program cannot be started; a status other than 0 is no error.
    pub fn exec(&self, node: &str, words: &[&str]) -> Result<remote::Output> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        remote::output(self.node(node)?, &words)
    }

    /// A command of this machine that runs inside the cluster's network, where the nodes' addresses can be reached.
    ///
    /// # Errors
    /// Where the cluster's namespace is gone.
    pub fn netns_command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        process::enter_namespace(&mut command, &self.state.hub())?;
        Ok(command)
    }

    /// Loads an image archive on all nodes at the same time.
    ///
    /// # Errors
    /// Where a node's engine refuses it; names the nodes.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        let failed: Vec<String> = std::thread::scope(|scope| {
            let loads: Vec<_> = self
                .state
                .nodes
                .iter()
                .map(|node| (node, scope.spawn(|| load_durably(node, archive))))
                .collect();
            loads
                .into_iter()
                .filter_map(|(node, load)| match load.join() {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(format!("{}: {error:#}", node.name)),
                    Err(_) => Some(format!("{}: the loader panicked", node.name)),
                })
                .collect()
        });
        if !failed.is_empty() {
            bail!("cannot load {}: {}", archive.display(), failed.join("; "));
        }
        Ok(())
    }

    /// Copies a file to a path on a node.
    ///
    /// # Errors
    /// Where it cannot be read here or written there.
    pub fn copy(&self, from: &Path, node: &str, to: &str) -> Result<()> {
        remote::copy(self.node(node)?, from, to)
    }

    /// Cuts a node's power: nothing is flushed, nobody is told.
    ///
    /// # Errors
    /// Where there is no such node or it does not end.
    pub fn kill(&mut self, node: &str) -> Result<()> {
        let _turn = self.refresh()?;
        let node = self.node(node)?.clone();
        if let Some(identity) = self.state.process(&node.name) {
            process::end(&[identity])?;
        }
        if node.kind == Kind::Native {
            for group in native_node::Groups::of(&self.state.hub(), &node.name)?.all() {
                native_node::remove_cgroup(group)?;
            }
        }
        Ok(())
    }

    /// Starts a node that was killed, with what its disk held, and waits until its engine answers.
    ///
    /// # Errors
    /// Where it runs already or does not come up.
    pub fn boot(&mut self, node: &str, progress: &Progress) -> Result<()> {
        let _turn = self.refresh()?;
        let node = self.node(node)?.clone();
        if self.state.process(&node.name).is_some_and(process::Identity::alive) {
            bail!("{} runs already: cargo xtask cluster kill {} ends it", node.name, node.name);
        }
        let number = 1 + self.state.nodes.iter().position(|other| other.name == node.name).unwrap_or(0);
        let mut starter = Starter::prepare(&self.state, &self.directory, false)?;
        let mut waits = vec![starter.start(&mut self.state, &self.directory, &node, number)?];
        wait_for_engines(&mut waits, progress)
    }

    /// Cuts a node off from the other nodes; this machine still reaches it.
    ///
    /// # Errors
    /// Where there is no such node or it is cut off already.
    pub fn partition(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        if net::is_partitioned(&self.state.hub(), &node.name) {
            bail!("{} is cut off already: cargo xtask cluster heal {}", node.name, node.name);
        }
        net::partition(&self.state.hub(), &node.name, node.ip)
    }

    /// Undoes [`Cluster::partition`].
    ///
    /// # Errors
    /// Where the node is not cut off.
    pub fn heal(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        if !net::is_partitioned(&self.state.hub(), &node.name) {
            bail!("{} is not cut off from the others", node.name);
        }
        net::heal(&self.state.hub(), &node.name)
    }

    /// Removes everything.
    ///
    /// # Errors
    /// Where something cannot be ended or removed; calling it again tries the rest.
    pub fn down(self) -> Result<()> {
        down(&self.state.name).map(|_| ())
    }

    /// Takes the cluster's lock and reads its state again, which another command may have changed.
    fn refresh(&mut self) -> Result<fs::File> {
        let turn = turn(&self.state.name)?;
        self.state = State::load(&self.directory)?
            .with_context(|| format!("cluster {} was removed in the meantime", self.state.name))?;
        Ok(turn)
    }
}

/// Loads an image and has a VM write it to its disk: a node whose power is cut seconds later would otherwise come back
/// with half an image, which no engine repairs.
fn load_durably(node: &Node, archive: &Path) -> Result<()> {
    docker::load_image(&node.socket, archive)?;
    if node.kind == Kind::Vm {
        let synced = remote::output(node, &["sync".to_owned()])?;
        if synced.status != 0 {
            bail!(
                "sync ended with status {}: {}",
                synced.status,
                String::from_utf8_lossy(&synced.stderr).trim()
            );
        }
    }
    Ok(())
}

/// The cgroup v2 directory of a native node, on this machine.
///
/// # Errors
/// Where this machine has no cgroup v2.
pub fn node_cgroup(cluster: &Cluster, node: &Node) -> Result<PathBuf> {
    native_node::cgroup(&cluster.state.hub(), &node.name)
}

/// Whether nodes can be namespaces of this machine.
pub fn native_fits() -> bool {
    native_node::cgroup("any", "node").is_ok()
}

/// Removes the cluster of this name, also what is left of one that was never finished; false where there was none.
///
/// # Errors
/// Where something cannot be ended or removed; calling it again tries the rest.
pub fn down(name: &str) -> Result<bool> {
    let directory = directory(&state::check_name(name)?);
    if !directory.exists() {
        return Ok(false);
    }
    let _turn = turn(name)?;
    let there = State::load(&directory)?.is_some() || !process::marked(&directory).is_empty();
    teardown::remove(&directory)?;
    Ok(there)
}

/// Where the cluster of this name keeps its things.
fn directory(name: &str) -> PathBuf {
    cache::clusters().join(name)
}

fn turn(name: &str) -> Result<fs::File> {
    cache::lock(&cache::clusters().join(format!("{name}.lock")))
}

fn check(options: &Options) -> Result<()> {
    state::check_name(&options.name)?;
    if options.nodes == 0 || options.nodes > net::MAX_NODES {
        bail!("--nodes is 1 to {}, not {}", net::MAX_NODES, options.nodes);
    }
    if options.managers == 0 || options.managers > options.nodes {
        bail!("--managers is 1 to the number of nodes ({}), not {}", options.nodes, options.managers);
    }
    if !(768..=65_536).contains(&options.memory_mib) {
        bail!("--memory is 768 to 65536 MiB, not {}", options.memory_mib);
    }
    let longest = directory(&options.name).join("node1/run/docker.sock");
    // sun_path in unix(7), with its NUL.
    if longest.as_os_str().len() > 107 {
        bail!("{} is too long for a unix socket: move the work tree to a shorter path", longest.display());
    }
    if !rustix::process::geteuid().is_root() {
        bail!("a cluster needs root, for network namespaces and mounts: run this as root");
    }
    Ok(())
}

/// The cluster found, where it is whole and what was asked for.
fn reuse(directory: &Path, found: State, options: &Options) -> Result<Option<Cluster>> {
    let whole = found.phase == Phase::Up && found.processes.iter().all(|tracked| tracked.identity.alive());
    if !whole {
        return Ok(None);
    }
    let kind = if options.native { Kind::Native } else { Kind::Vm };
    let managers = found.nodes.iter().filter(|node| node.role == Role::Manager).count();
    let same = found.engine == options.engine
        && found.kind == kind
        && found.nodes.len() == options.nodes
        && managers == options.managers;
    if !same {
        bail!(
            "cluster {} is up with other settings ({} nodes, {managers} managers, engine {}, {:?}): run cargo xtask cluster down first, or use another --name",
            found.name,
            found.nodes.len(),
            found.engine,
            found.kind
        );
    }
    Ok(Some(Cluster { directory: directory.to_owned(), state: found }))
}

fn make(options: &Options, directory: &Path, progress: &Progress) -> Result<Cluster> {
    let kind = if options.native { Kind::Native } else { Kind::Vm };
    let mut state = State::new(&options.name, options.engine, kind, options.memory_mib);
    let hub = state.hub();
    for number in 1..=options.nodes {
        state.nodes.push(node(options, kind, directory, number));
    }
    state.namespaces.push(hub.clone());
    if kind == Kind::Native {
        for node in &state.nodes {
            state.namespaces.push(format!("{hub}-{}", node.name));
            state.cgroups.extend(native_node::Groups::of(&hub, &node.name)?.all().cloned());
        }
    }
    state.save(directory)?;
    if net::exists(&hub) {
        // Left by an earlier copy of this work tree whose state file was deleted with it.
        teardown::remove(directory)?;
        state.save(directory)?;
    }
    progress.doing("kernel, root file system, guest program");
    let mut starter = Starter::prepare(&state, directory, options.install)?;
    progress.done(format!("{} ready", starter.describe()));
    net::create_hub(&hub)?;
    let mut waits = Vec::new();
    for (index, node) in state.nodes.clone().iter().enumerate() {
        interrupt::check()?;
        fs::create_dir_all(&node.directory)
            .with_context(|| format!("cannot create {}", node.directory.display()))?;
        match kind {
            Kind::Vm => net::create_tap(&hub, &node.name)?,
            Kind::Native => net::create_pair(&hub, &node.name, index + 1, &format!("{hub}-{}", node.name))?,
        }
        waits.push(starter.start(&mut state, directory, node, index + 1)?);
    }
    if kind == Kind::Vm {
        let routes: Vec<forward::Route> = state
            .nodes
            .iter()
            .flat_map(|node| {
                [
                    (node.socket.clone(), node.ip, swarmguard_guest::DOCKER_PORT),
                    (node.agent_socket.clone(), node.ip, swarmguard_guest::AGENT_PORT),
                ]
            })
            .collect();
        let identity = forward::start(directory, &hub, &routes)?;
        state.track("forwarder", identity);
        state.save(directory)?;
    }
    wait_for_engines(&mut waits, progress)?;
    form_swarm(&state.nodes, progress)?;
    state.phase = Phase::Up;
    state.maker = None;
    state.save(directory)?;
    Ok(Cluster { directory: directory.to_owned(), state })
}

fn node(options: &Options, kind: Kind, cluster: &Path, number: usize) -> Node {
    let name = format!("node{number}");
    let own = cluster.join(&name);
    let hub = state::hub(&options.name);
    let (socket, agent_socket, namespace) = match kind {
        Kind::Vm => (cluster.join(format!("{name}.sock")), cluster.join(format!("{name}.agent.sock")), hub),
        Kind::Native => (own.join("run/docker.sock"), own.join("run/agent.sock"), format!("{hub}-{name}")),
    };
    Node {
        ip: net::address(number),
        socket,
        agent_socket,
        role: if number <= options.managers { Role::Manager } else { Role::Worker },
        engine: options.engine,
        kind,
        netns: Path::new("/run/netns").join(namespace),
        cpu_millis: (kind == Kind::Native)
            .then(|| options.cpu_millis.unwrap_or_else(|| native_node::default_cpu_millis(options.nodes))),
        directory: own,
        name,
    }
}

/// What nodes are started from.
enum Starter {
    Vm(vm_node::Boot),
    Native(native_node::Base),
}

impl Starter {
    fn prepare(state: &State, directory: &Path, install: bool) -> Result<Self> {
        Ok(match state.kind {
            Kind::Vm => Self::Vm(vm_node::prepare(state.engine, directory, install)?),
            Kind::Native => Self::Native(native_node::prepare(state.engine, install)?),
        })
    }

    fn describe(&self) -> &'static str {
        match self {
            Self::Vm(boot) if boot.accelerator == qemu::Accelerator::Kvm => "virtual machines (KVM)",
            Self::Vm(_) => "virtual machines (emulated: KVM does not boot here)",
            Self::Native(_) => "namespaces",
        }
    }

    fn start(&mut self, state: &mut State, directory: &Path, node: &Node, number: usize) -> Result<Wait> {
        let (identity, console) = match self {
            Self::Vm(boot) => {
                let started = vm_node::start(node, number, boot, state.memory_mib, &state.hub(), directory)?;
                (started.0, started.1)
            }
            Self::Native(base) => {
                let groups = native_node::Groups::of(&state.hub(), &node.name)?;
                let namespace = format!("{}-{}", state.hub(), node.name);
                let console = qemu::Console::follow(&vm_node::console(node));
                let memory = state.memory_mib;
                (native_node::start(node, base, &groups, memory, &namespace, directory)?, console)
            }
        };
        state.track(&node.name, identity);
        state.save(directory)?;
        Ok(Wait { node: node.clone(), identity, console, ready: false })
    }
}

/// A node that is expected to come up.
struct Wait {
    node: Node,
    identity: process::Identity,
    console: qemu::Console,
    ready: bool,
}

fn wait_for_engines(waits: &mut [Wait], progress: &Progress) -> Result<()> {
    let started = clock::now();
    while let Some(first) = waits.iter().find(|wait| !wait.ready).map(|wait| wait.node.name.clone()) {
        progress.doing(format!("waiting for the engine of {first}"));
        interrupt::pause(Duration::from_millis(100))?;
        let late = clock::now().duration_since(started) > BOOT_TIMEOUT;
        for wait in waits.iter_mut().filter(|wait| !wait.ready) {
            let name = &wait.node.name;
            wait.console.check().with_context(|| format!("{name} failed"))?;
            if !wait.identity.alive() {
                let log = fs::read_to_string(wait.node.directory.join("qemu.log")).unwrap_or_default();
                bail!("{name} ended while it started:\n{}\n{}", wait.console.tail(), qemu::tail(&log, 10));
            }
            // The agent answers first; asking a booting engine costs the node time it needs.
            let booted = wait.console.says(swarmguard_guest::READY);
            if booted && docker::ping(&wait.node.socket) {
                wait.ready = true;
                progress.done(format!("{name}: engine {}", docker::version(&wait.node.socket)?));
            } else if late {
                let log = fs::read_to_string(vm_node::log(&wait.node)).unwrap_or_default();
                bail!(
                    "the engine of {name} does not answer after {} s; its console and log end:\n{}\n{}",
                    BOOT_TIMEOUT.as_secs(),
                    wait.console.tail(),
                    qemu::tail(&log, 15)
                );
            }
        }
    }
    Ok(())
}

fn form_swarm(nodes: &[Node], progress: &Progress) -> Result<()> {
    let Some((first, others)) = nodes.split_first() else { bail!("a cluster has at least one node") };
    progress.doing("making the swarm");
    docker::swarm_init(first)?;
    // Managers one after the other: each join changes the quorum the next one needs.
    for node in others.iter().filter(|node| node.role == Role::Manager) {
        interrupt::check()?;
        docker::swarm_join(node, first, &docker::join_token(first, Role::Manager)?)?;
        progress.done(format!("{}: manager", node.name));
    }
    let token = docker::join_token(first, Role::Worker)?;
    std::thread::scope(|scope| {
        let workers = others.iter().filter(|node| node.role == Role::Worker);
        let joins: Vec<_> =
            workers.map(|node| scope.spawn(|| docker::swarm_join(node, first, &token))).collect();
        joins.into_iter().try_for_each(|join| join.join().unwrap_or_else(|_| bail!("a join panicked")))
    })?;
    wait_for_members(first, nodes.len(), progress)
}

fn wait_for_members(manager: &Node, count: usize, progress: &Progress) -> Result<()> {
    let started = clock::now();
    loop {
        let ready = docker::members(&manager.socket)
            .map(|members| members.iter().filter(|member| member.state == "ready").count())
            .unwrap_or(0);
        if ready == count {
            progress.done(format!("swarm of {count} nodes is ready"));
            return Ok(());
        }
        if clock::now().duration_since(started) > SWARM_TIMEOUT {
            bail!("only {ready} of {count} nodes are ready in the swarm after {} s", SWARM_TIMEOUT.as_secs());
        }
        progress.doing(format!("{ready} of {count} nodes are ready in the swarm"));
        interrupt::pause(Duration::from_millis(200))?;
    }
}
