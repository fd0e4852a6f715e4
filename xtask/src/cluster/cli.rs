//! The `cluster` commands.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;

use super::{Cluster, Options, docker, forward, net, remote, vm_node};
use crate::cache;
use crate::clock::Stopwatch;
use crate::deploy;
use crate::host::InstallArgs;
use crate::image;
use crate::programs::Build;
use crate::progress::Progress;
use crate::rootfs::{self, Engine};

/// `cargo xtask cluster`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Verb,
}

#[derive(clap::Args)]
struct Name {
    /// Which cluster
    #[arg(long, default_value = "default")]
    name: String,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a swarm and print how to reach it
    Up(UpArgs),
    /// Remove a cluster, also what is left of one that crashed
    Down {
        #[command(flatten)]
        name: Name,
        /// All clusters of this work tree
        #[arg(long)]
        all: bool,
    },
    /// Show the nodes, their sockets and how the swarm sees them
    Status(Name),
    /// Run a command on a node as root; its exit status is this command's
    Exec {
        /// Node, such as node1 or 1
        node: String,
        /// Program and arguments
        #[arg(last = true, required = true)]
        words: Vec<String>,
        #[command(flatten)]
        name: Name,
    },
    /// Run the docker command line of the cluster's engine version against a node
    Docker {
        /// Node, such as node1 or 1
        node: String,
        /// Arguments of docker
        #[arg(last = true)]
        words: Vec<String>,
        #[command(flatten)]
        name: Name,
    },
    /// Run a command of this machine inside the cluster's network
    Netns {
        /// Program and arguments
        #[arg(last = true, required = true)]
        words: Vec<String>,
        #[command(flatten)]
        name: Name,
    },
    /// Print a node's console and the log of its engine
    Logs {
        /// Node, such as node1 or 1
        node: String,
        #[command(flatten)]
        name: Name,
    },
    /// Load image archives on all nodes
    Load {
        /// What `docker save` or `cargo xtask image` wrote
        #[arg(required = true)]
        archives: Vec<PathBuf>,
        #[command(flatten)]
        name: Name,
    },
    /// Copy a file to a node
    Copy {
        /// File on this machine
        from: PathBuf,
        /// NODE:PATH
        to: String,
        #[command(flatten)]
        name: Name,
    },
    /// Cut a node's power
    Kill {
        /// Node, such as node1 or 1
        node: String,
        #[command(flatten)]
        name: Name,
    },
    /// Start a node that was killed, and wait for its engine
    Boot {
        /// Node, such as node1 or 1
        node: String,
        #[command(flatten)]
        name: Name,
    },
    /// Cut a node off from the others; this machine still reaches it
    Partition {
        /// Node, such as node1 or 1
        node: String,
        #[command(flatten)]
        name: Name,
    },
    /// Undo `partition`
    Heal {
        /// Node, such as node1 or 1
        node: String,
        #[command(flatten)]
        name: Name,
    },
    /// Load the images and deploy SwarmGuard: stack, operator's token, balancers on an overlay network
    Deploy(DeployArgs),
    #[command(hide = true)]
    Forward(forward::Args),
}

/// Which cluster to make; shared with the commands that make one for themselves.
#[derive(clap::Args, Clone)]
pub struct UpArgs {
    /// Name, so that several can be up
    #[arg(long, default_value = "default")]
    name: String,
    /// Number of nodes, 1 to 9
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// How many of them are managers
    #[arg(long, default_value_t = 1)]
    managers: usize,
    /// Docker Engine's version
    #[arg(long, value_enum, default_value_t = Engine::default())]
    engine: Engine,
    /// Namespaces on this kernel instead of virtual machines
    #[arg(long)]
    native: bool,
    /// CPUs of each native node, for instance 0.5 [default: at most 1, together at most three quarters of the machine]
    #[arg(long, value_parser = cpus, requires = "native")]
    cpus: Option<u32>,
    /// Memory of a node, in MiB; a native one is held to it where this machine has that controller in cgroup v2
    #[arg(long, default_value_t = 1536)]
    memory: u32,
    #[command(flatten)]
    install: InstallArgs,
}

impl UpArgs {
    /// As the library takes them.
    pub fn options(&self) -> Options {
        Options {
            name: self.name.clone(),
            nodes: self.nodes,
            managers: self.managers,
            engine: self.engine,
            native: self.native,
            cpu_millis: self.cpus,
            memory_mib: self.memory,
            install: self.install.allowed(),
        }
    }
}

#[derive(clap::Args)]
struct DeployArgs {
    #[command(flatten)]
    name: Name,
    /// How the programs are built
    #[arg(long, value_enum, default_value_t = Build::Dev)]
    build: Build,
    /// Take the images that an earlier run has built
    #[arg(long)]
    no_build: bool,
    /// Also a workload that can be told to be busy, behind the balancers: the stack demo
    #[arg(long)]
    workload: bool,
    #[command(flatten)]
    install: InstallArgs,
}

/// A number of CPUs, in thousandths.
fn cpus(text: &str) -> Result<u32, String> {
    let cpus: Option<f64> = text.parse().ok().filter(|cpus| (0.1..=64.0).contains(cpus));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
    let millis = cpus.map(|cpus| (cpus * 1_000.0).round() as u32);
    millis.ok_or_else(|| "a number from 0.1 to 64 is allowed".to_owned())
}

/// Does what was asked.
///
/// # Errors
/// What the verb says.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.command {
        Verb::Up(args) => return up(args),
        Verb::Down { name, all } => return down(&name.name, *all),
        Verb::Status(name) => return status(&name.name),
        Verb::Exec { node, words, name } => {
            let cluster = Cluster::open(&name.name)?;
            return Ok(exit(remote::exec_attached(cluster.node(node)?, words)?));
        }
        Verb::Docker { node, words, name } => {
            return docker_command(&Cluster::open(&name.name)?, node, words);
        }
        Verb::Netns { words, name } => return netns(&Cluster::open(&name.name)?, words),
        Verb::Logs { node, name } => logs(&Cluster::open(&name.name)?, node)?,
        Verb::Load { archives, name } => load(&Cluster::open(&name.name)?, archives)?,
        Verb::Copy { from, to, name } => {
            let (node, path) = to.split_once(':').with_context(|| format!("{to:?} is not NODE:PATH"))?;
            Cluster::open(&name.name)?.copy(from, node, path)?;
        }
        Verb::Kill { node, name } => Cluster::open(&name.name)?.kill(node)?,
        Verb::Boot { node, name } => {
            let progress = Progress::start("boot");
            Cluster::open(&name.name)?.boot(node, &progress)?;
        }
        Verb::Partition { node, name } => Cluster::open(&name.name)?.partition(node)?,
        Verb::Heal { node, name } => Cluster::open(&name.name)?.heal(node)?,
        Verb::Deploy(args) => deploy_all(args)?,
        Verb::Forward(args) => return forward::run(args),
    }
    Ok(ExitCode::SUCCESS)
}

fn exit(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}

fn up(args: &UpArgs) -> Result<ExitCode> {
    let progress = Progress::start("cluster");
    let cluster = super::up(&args.options(), &progress)?;
    let watch = progress.watch();
    drop(progress);
    for node in &cluster.state().nodes {
        println!("{:6} {:11} DOCKER_HOST=unix://{}", node.name, node.ip.to_string(), node.socket.display());
    }
    println!("up in {watch}; cargo xtask cluster down --name {} removes it", args.name);
    Ok(ExitCode::SUCCESS)
}

fn down(name: &str, all: bool) -> Result<ExitCode> {
    let watch = Stopwatch::start();
    let names = if all { all_names()? } else { vec![name.to_owned()] };
    for name in names {
        match super::down(&name)? {
            true => println!("cluster {name} is down (in {watch})"),
            false if !all => println!("there is no cluster {name}"),
            false => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn all_names() -> Result<Vec<String>> {
    let place = cache::clusters();
    let Ok(entries) = fs::read_dir(&place) else { return Ok(Vec::new()) };
    let names = entries.flatten().filter(|entry| entry.path().is_dir());
    Ok(names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| super::state::check_name(name).is_ok())
        .collect())
}

fn status(name: &str) -> Result<ExitCode> {
    let cluster = Cluster::open(name)?;
    let state = cluster.state();
    let members = state
        .nodes
        .iter()
        .find_map(|node| docker::members(&node.socket).ok().filter(|members| !members.is_empty()))
        .unwrap_or_default();
    println!("cluster {name}: engine {}, {:?}", state.engine, state.kind);
    println!("{:6} {:11} {:8} {:9} {:8} {:12} socket", "node", "address", "runs", "engine", "swarm", "role");
    let mut healthy = true;
    for node in &state.nodes {
        let runs = state.process(&node.name).is_some_and(crate::process::Identity::alive);
        let cut = net::is_partitioned(&state.hub(), &node.name);
        let engine = docker::version(&node.socket).ok();
        let member = members.iter().find(|member| member.name == node.name);
        healthy &= runs && !cut && engine.is_some() && member.is_some_and(|member| member.state == "ready");
        println!(
            "{:6} {:11} {:8} {:9} {:8} {:12} {}",
            node.name,
            node.ip.to_string(),
            if cut {
                "cut off"
            } else if runs {
                "yes"
            } else {
                "no"
            },
            engine.as_deref().unwrap_or("-"),
            member.map_or("-", |member| &member.state),
            member.map_or("-".to_owned(), |member| format!("{} {}", member.role, member.availability)),
            node.socket.display()
        );
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The docker program of the node's own Debian suite, with that suite's loader and libraries: the machine may have
/// none, or an older C library.
fn docker_command(cluster: &Cluster, node: &str, words: &[String]) -> Result<ExitCode> {
    let socket = cluster.socket(node)?;
    let tree = rootfs::tree(cluster.state().engine, false)?.tree;
    let status = Command::new(tree.join("lib64/ld-linux-x86-64.so.2"))
        .arg("--library-path")
        .arg(tree.join("usr/lib/x86_64-linux-gnu"))
        .arg(tree.join("usr/bin/docker"))
        .args(words)
        .env("DOCKER_HOST", format!("unix://{}", socket.display()))
        .env_remove("DOCKER_CONTEXT")
        .status()
        .context("cannot run docker from the cached root file system")?;
    Ok(exit(status.code().unwrap_or(1)))
}

fn deploy_all(args: &DeployArgs) -> Result<()> {
    let cluster = Cluster::open(&args.name.name)?;
    let progress = Progress::start("deploy");
    let images = if args.no_build {
        image::built(args.build)?
    } else {
        image::build_default(&[], args.build, args.install.allowed())?
    };
    let operator = deploy::balanced(&cluster, &images, &progress)?;
    if args.workload {
        deploy::workload(&cluster, &images, &progress)?;
    }
    drop(progress);
    let manager = cluster.state().nodes.first().map(|node| node.ip.to_string()).unwrap_or_default();
    println!("operator's token: {}", operator.display());
    println!(
        "API: cargo xtask cluster netns --name {} -- curl -s http://{manager}:7480/api/v1/nodes",
        args.name.name
    );
    println!("overlay network for balanced services: {}", deploy::NETWORK);
    println!("balancers: port 8081 of the nodes that `docker service ps balancer_balancer` names");
    Ok(())
}

fn netns(cluster: &Cluster, words: &[String]) -> Result<ExitCode> {
    let [program, arguments @ ..] = words else { bail!("no program given") };
    let status = cluster
        .netns_command(program)?
        .args(arguments)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    Ok(exit(status.code().unwrap_or(1)))
}

fn logs(cluster: &Cluster, node: &str) -> Result<()> {
    let node = cluster.node(node)?;
    let mut out = std::io::stdout().lock();
    for (title, path) in [("console", vm_node::console(node)), ("dockerd", vm_node::log(node))] {
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        writeln!(out, "==> {} of {} ({}) <==", title, node.name, path.display())
            .and_then(|()| out.write_all(&text))
            .context("cannot print")?;
    }
    Ok(())
}

fn load(cluster: &Cluster, archives: &[PathBuf]) -> Result<()> {
    let progress = Progress::start("load");
    for archive in archives {
        progress.doing(archive.display().to_string());
        cluster.load_image(archive)?;
        progress.done(format!("{} is on all nodes", archive.display()));
    }
    Ok(())
}
