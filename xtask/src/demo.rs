//! `cargo xtask demo`: from nothing to a hot replica that leaves its node, in one command.
//!
//! The cluster, the deployment and the end are here; what happens on the cluster is played by `swarmguard-e2e`, inside the
//! cluster's network.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::clock::Stopwatch;
use crate::cluster::{self, Cluster};
use crate::host::InstallArgs;
use crate::image::{self, Image, root};
use crate::interrupt;
use crate::progress::Progress;
use crate::rootfs::Engine;

pub mod balance;

/// What is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Scenario {
    /// A replica runs hot and leaves its node
    Heat,
    /// Requests go through the balancers while replicas move, come, go and die
    Balance,
}

/// `cargo xtask demo`.
#[derive(clap::Args)]
pub struct Args {
    /// What is played
    #[arg(long, value_enum, default_value_t = Scenario::Heat)]
    scenario: Scenario,
    /// Docker Engine's version
    #[arg(long, value_enum, default_value_t = Engine::V20_10)]
    engine: Engine,
    /// Number of nodes, 3 to 9
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
    nodes: u8,
    /// Leave everything running, and say how to look around
    #[arg(long)]
    keep: bool,
    /// Namespaces on this kernel instead of virtual machines; needs a kernel with IPVS
    #[arg(long)]
    native: bool,
    /// Take the images and programs that an earlier run has built
    #[arg(long)]
    no_build: bool,
    /// Name of the cluster
    #[arg(long, default_value = "demo")]
    name: String,
    /// What the replica is told once traffic flows, in the scenario heat
    #[arg(long, default_value = "/stress/cpu?target=90&duration=600&ramp=2")]
    heat: String,
    /// Only this part of the scenario balance: spread, move, scale, coordinators, outage; may be given several times
    #[arg(long = "part", value_name = "PART")]
    parts: Vec<String>,
    /// Where the report goes [default: target/demo/report.json, or report-balance.json there]
    #[arg(long)]
    report: Option<PathBuf>,
    #[command(flatten)]
    install: InstallArgs,
}

/// Plays the demo. Success only where the replica moved, no request failed, and spec and availability are as before.
///
/// # Errors
/// Where something it needs cannot be had; what was made is removed, unless `--keep`.
pub fn run(args: &Args) -> Result<ExitCode> {
    let watch = Stopwatch::start();
    let progress = Progress::start("demo");
    let images = if args.no_build {
        image::built()?
    } else {
        let images = image::build_default(&[], args.install.allowed())?;
        progress.done("images built");
        images
    };
    let options = cluster::Options {
        name: args.name.clone(),
        nodes: usize::from(args.nodes),
        engine: args.engine,
        native: args.native,
        install: args.install.allowed(),
        ..cluster::Options::default()
    };
    let cluster = cluster::up(&options, &progress)?;
    let played = match args.scenario {
        Scenario::Heat => play(args, &cluster, &images, progress),
        Scenario::Balance => balance::play(args, &cluster, &images, progress),
    };
    if args.keep {
        explain(&cluster);
    } else {
        cluster.down()?;
    }
    let passed = played?;
    let verdict = match args.scenario {
        _ if !passed => "FAILED",
        Scenario::Heat => "passed: moved, nothing lost, nothing left behind",
        Scenario::Balance => "passed: moved, scaled, coordinators and replicas killed, nothing lost",
    };
    println!("demo: {verdict} (in {watch})");
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Args {
    fn report(&self, name: &str) -> PathBuf {
        root().join(self.report.clone().unwrap_or_else(|| Path::new("target/demo").join(name)))
    }
}

fn play(args: &Args, cluster: &Cluster, images: &[Image], progress: Progress) -> Result<bool> {
    load(cluster, images, &progress)?;
    deploy(cluster, "deploy/stack.yml", "swarmguard", images)?;
    progress.done("SwarmGuard deployed: docker stack deploy -c stack.yml swarmguard");
    deploy(cluster, "deploy/web-stress.yml", "demo", images)?;
    progress.done("workload deployed: docker stack deploy -c web-stress.yml demo");
    drop(progress);
    let mut e2e = e2e(cluster)?;
    e2e.arg("demo").arg("--heat").arg(&args.heat).arg("--report").arg(args.report("report.json"));
    wait(&mut e2e)
}

/// Loads the images on every node, but for the balancer's.
///
/// # Errors
/// Where an engine refuses one.
pub fn load(cluster: &Cluster, images: &[Image], progress: &Progress) -> Result<()> {
    load_those(cluster, images.iter().filter(|image| image.name != "balancer"), progress)
}

fn load_those<'a>(
    cluster: &Cluster,
    images: impl Iterator<Item = &'a Image>,
    progress: &Progress,
) -> Result<()> {
    for image in images {
        progress.doing(format!("loading {} on every node", image.name));
        cluster.load_image(&image.archive)?;
        interrupt::check()?;
    }
    progress.done("images loaded on every node");
    Ok(())
}

/// Deploys a stack file inside a manager node, the way a user does.
///
/// # Errors
/// Where the file cannot be copied, or `docker stack deploy` fails; with its words.
pub fn deploy(cluster: &Cluster, file: &str, stack: &str, images: &[Image]) -> Result<()> {
    deploy_together(cluster, &[file], stack, images, &[])
}

/// As [`deploy`], of several files that make one stack, with more variables (`NAME=value`).
///
/// # Errors
/// As [`deploy`].
pub fn deploy_together(
    cluster: &Cluster,
    files: &[&str],
    stack: &str,
    images: &[Image],
    variables: &[String],
) -> Result<()> {
    let mut words = vec!["env".to_owned()];
    for image in images {
        let variable = match image.name.as_str() {
            "web-stress" => "WEB_STRESS_IMAGE".to_owned(),
            name => format!("SWARMGUARD_{}_IMAGE", name.to_uppercase()),
        };
        words.push(format!("{variable}={}", image.id));
    }
    words.extend(SETTINGS.map(str::to_owned));
    words.extend_from_slice(variables);
    words.extend(["docker", "stack", "deploy", "--resolve-image", "never"].map(str::to_owned));
    let node = manager(cluster)?;
    for (number, file) in files.iter().enumerate() {
        let there = format!("/root/{stack}-{number}.yml");
        cluster.copy(&root().join(file), node, &there)?;
        words.extend(["-c".to_owned(), there]);
    }
    words.push(stack.to_owned());
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    on_manager(cluster, &words).with_context(|| format!("cannot deploy {} as {stack}", files.join(", ")))?;
    Ok(())
}

/// Makes a token that nobody knows, as a secret; returns the file with it on this machine.
///
/// # Errors
/// Where the file cannot be written, or the manager refuses the secret.
pub fn secret(cluster: &Cluster, name: &str) -> Result<PathBuf> {
    let mut bytes = [0_u8; 32];
    let random = fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    random.context("cannot read /dev/urandom")?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    create(cluster, "secret", name, &token)
}

/// `docker secret create` or `docker config create`, by way of a file on the manager.
fn create(cluster: &Cluster, kind: &str, name: &str, content: &str) -> Result<PathBuf> {
    let here = root().join("target/demo").join(format!("{}-{name}", cluster.state().name));
    let what = || format!("cannot write {}", here.display());
    fs::create_dir_all(root().join("target/demo")).with_context(what)?;
    fs::write(&here, content).with_context(what)?;
    let there = format!("/root/{name}");
    cluster.copy(&here, manager(cluster)?, &there)?;
    on_manager(cluster, &["docker", kind, "create", name, &there])?;
    Ok(here)
}

fn manager(cluster: &Cluster) -> Result<&str> {
    Ok(&cluster.state().nodes.first().context("a cluster without nodes")?.name)
}

/// Runs a command inside the manager node and returns what it printed.
///
/// # Errors
/// Where it cannot be run or does not succeed; with its words.
pub fn on_manager(cluster: &Cluster, words: &[&str]) -> Result<String> {
    let node = manager(cluster)?;
    let output = cluster.exec(node, words)?;
    let shown = words.iter().filter(|word| !word.contains('=')).copied().collect::<Vec<_>>().join(" ");
    ensure!(
        output.status == 0,
        "{shown} on {node} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What differs from the defaults: the scenarios read the API from a network of their own; and where processors are emulated, ten readings a second cost several times
/// as much there.
const SETTINGS: [&str; 2] = ["SWARMGUARD_BUDGET=5", "SWARMGUARD_OPEN_READS=true"];

/// The end-to-end program, to be run inside the cluster's network.
///
/// # Errors
/// Where the network is gone.
pub fn e2e(cluster: &Cluster) -> Result<Command> {
    let mut command = cluster.netns_command(image::program("swarmguard-e2e"))?;
    command.current_dir(root()).arg("--state").arg(absolute(&cluster.state_file()));
    command.arg("--images").arg(root().join("target/images/images.json"));
    Ok(command)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Runs a command to its end; true where that was a success. A signal to this process ends the command.
///
/// # Errors
/// Where it cannot be started, or the user asked to stop.
pub fn wait(command: &mut Command) -> Result<bool> {
    let mut child =
        command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a program")? {
            interrupt::check()?;
            return Ok(status.success());
        }
        if interrupt::pause(Duration::from_millis(50)).is_err() {
            let _ = child.kill();
            let _ = child.wait();
            bail!("interrupted");
        }
    }
}

fn explain(cluster: &Cluster) {
    let name = &cluster.state().name;
    let manager = cluster.state().nodes.first().map(|node| node.ip.to_string()).unwrap_or_default();
    println!("The cluster {name} goes on running. To look around:");
    println!("  cargo xtask cluster status --name {name}");
    println!("  cargo xtask cluster docker --name {name} 1 -- service ps demo_web");
    println!("  cargo xtask cluster netns --name {name} -- curl -s http://{manager}:7480/api/v1/journal");
    println!("  cargo xtask cluster netns --name {name} -- curl -s http://{manager}:8082/metrics/containers");
    println!(
        "  cargo xtask cluster netns --name {name} -- curl 'http://{manager}:8080/stress/cpu?target=90&duration=120'"
    );
    println!("  cargo xtask cluster down --name {name}");
}
