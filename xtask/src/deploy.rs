//! SwarmGuard on a cluster, deployed the way a user does it: images loaded, secrets and configs made, stack files given to
//! `docker stack deploy` on a manager.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cluster::{self, Cluster, Kind};
use crate::image::{self, Image};
use crate::interrupt;
use crate::programs::{self, Build};
use crate::progress::Progress;
use crate::rootfs;
use crate::workspace::root;

/// The overlay network that balancers and the services behind them are on.
pub const NETWORK: &str = "balanced";

/// Balancers, each on a node of its own.
const BALANCERS: u32 = 2;

/// The capability that the agent can do without: it then hears of stalls when it samples them.
const SPARED: (&str, u32) = ("SYS_RESOURCE", 24);

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

/// SwarmGuard itself, without tokens.
///
/// # Errors
/// Where the stack is refused.
pub fn plain(cluster: &Cluster, images: &[Image], progress: &Progress) -> Result<()> {
    let files = stack(cluster)?;
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    together(cluster, &files, "swarmguard", images, &[])?;
    progress.done("SwarmGuard deployed: docker stack deploy -c stack.yml swarmguard");
    Ok(())
}

/// Images, SwarmGuard with tokens for operators and balancers, the overlay network [`NETWORK`] and balancers on it.
/// Returns the file with the operators' token.
///
/// # Errors
/// Where an engine refuses something.
pub fn balanced(cluster: &Cluster, images: &[Image], progress: &Progress) -> Result<PathBuf> {
    let operator = commanded(cluster, images, progress)?;
    on_manager(cluster, &["docker", "network", "create", "--driver", "overlay", NETWORK])?;
    balancers(cluster, images, NETWORK, progress)?;
    Ok(operator)
}

/// A workload behind the balancers of [`balanced`]: the stack `demo`.
///
/// # Errors
/// Where the stack is refused.
pub fn workload(cluster: &Cluster, images: &[Image], progress: &Progress) -> Result<()> {
    let network = format!("BALANCED_NETWORK={NETWORK}");
    together(cluster, &["deploy/web-stress-balanced.yml"], "demo", images, &[network])?;
    progress.done("workload deployed: docker stack deploy -c web-stress-balanced.yml demo");
    Ok(())
}

/// Loads all images and deploys SwarmGuard with tokens for balancers and operators; returns the file with the operators'
/// token.
///
/// # Errors
/// Where an engine refuses an image, a secret or the stack.
pub fn commanded(cluster: &Cluster, images: &[Image], progress: &Progress) -> Result<PathBuf> {
    load_those(cluster, images.iter(), progress)?;
    secret(cluster, "swarmguard-balancer-token")?;
    let operator = secret(cluster, "swarmguard-operator-token")?;
    let roots = on_manager(cluster, &["docker", "info", "--format", "{{.Swarm.Cluster.TLSInfo.TrustRoot}}"])?;
    create(cluster, "config", "swarmguard-roots", &roots)?;
    progress.done("tokens and roots made: docker secret create, docker config create");
    let mut files = stack(cluster)?;
    files.extend(["deploy/balancer-token.yml", "deploy/operator-token.yml"].map(str::to_owned));
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    together(cluster, &files, "swarmguard", images, &["SWARMGUARD_API_PLAIN=all".to_owned()])?;
    progress.done(
        "SwarmGuard deployed: docker stack deploy -c stack.yml -c balancer-token.yml -c operator-token.yml swarmguard",
    );
    Ok(operator)
}

/// Deploys balancers on an overlay network that is there.
///
/// # Errors
/// Where the stack is refused.
pub fn balancers(cluster: &Cluster, images: &[Image], network: &str, progress: &Progress) -> Result<()> {
    let address = cluster.state().nodes.first().context("a cluster without nodes")?.ip;
    let mut variables = vec![
        format!("SWARMGUARD_COORDINATORS={address}:7443"),
        format!("BALANCED_NETWORK={network}"),
        format!("BALANCER_REPLICAS={BALANCERS}"),
    ];
    if !has_cpu_limits(cluster)? {
        variables.push("BALANCER_CPUS=0".to_owned());
    }
    let mut files = vec!["deploy/balancer.yml"];
    if let Some(last) = spare_node(cluster) {
        let text = format!(
            "version: \"3.8\"\nservices:\n  balancer:\n    deploy:\n      placement:\n        constraints: [node.hostname != {last}]\n"
        );
        fs::create_dir_all(root().join("target/deploy")).context("cannot create target/deploy")?;
        fs::write(root().join(PLACES), text).with_context(|| format!("cannot write {PLACES}"))?;
        files.push(PLACES);
    }
    together(cluster, &files, "balancer", images, &variables)?;
    progress.done("balancers deployed: docker stack deploy -c balancer.yml balancer");
    Ok(())
}

/// Where balancers may run, in addition to the stack's own file.
const PLACES: &str = "target/deploy/balancer-places.yml";

/// The node that stays without a balancer, where there are enough others: one that can be drained or lost while every
/// request that clients send still has a door.
fn spare_node(cluster: &Cluster) -> Option<&str> {
    let nodes = &cluster.state().nodes;
    let enough = nodes.len() > usize::try_from(BALANCERS).unwrap_or(usize::MAX);
    nodes.last().filter(|_| enough).map(|node| node.name.as_str())
}

/// Deploys stack files that make one stack inside a manager node, with more variables (`NAME=value`).
///
/// # Errors
/// Where a file cannot be copied, or `docker stack deploy` fails; with its words.
pub fn together(
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
    words.extend(settings(cluster));
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

/// What differs from the defaults. The scenarios read the API from a network of their own. On slow processors, emulated or a part of one, ten readings a second cost several times
/// as much as elsewhere. A native node is a cgroup of this machine, which has its figures and its limits.
fn settings(cluster: &Cluster) -> Vec<String> {
    // Only this machine can reach these nodes.
    let open = ["SWARMGUARD_OPEN_READS=true", "SWARMGUARD_AGENT_HTTP_ADDR=0.0.0.0:8082"].map(str::to_owned);
    let mut settings = vec!["SWARMGUARD_BUDGET=5".to_owned()];
    settings.extend(open);
    let cpu_millis = cluster.state().nodes.first().and_then(|node| node.cpu_millis);
    if let Some(millis) = cpu_millis {
        let cpus = f64::from(millis) / 1_000.0;
        settings.push("SWARMGUARD_NODE_CGROUP=/".to_owned());
        settings.push(format!("SWARMGUARD_NODE_CPUS={cpus}"));
        settings.push(format!("WEB_STRESS_CPUS={cpus}"));
    }
    settings
}

/// The stack's files for this cluster. Nodes that are namespaces have of this machine's controllers what it does not keep
/// in cgroup v1, and of its capabilities what this process has.
fn stack(cluster: &Cluster) -> Result<Vec<String>> {
    let mut files = vec!["deploy/stack.yml".to_owned()];
    let first = cluster.state().nodes.first().context("a cluster without nodes")?;
    if first.kind != Kind::Native {
        return Ok(files);
    }
    if !has_cpu_limits(cluster)? {
        files.push("deploy/without-cpu-limits.yml".to_owned());
    }
    let (capability, bit) = SPARED;
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    if bounds(&status).is_none_or(|bounds| bounds >> bit & 1 != 1) {
        let text = fs::read_to_string(root().join(&files[0])).context("cannot read deploy/stack.yml")?;
        let kept: Vec<&str> = text.lines().filter(|line| line.trim() != format!("- {capability}")).collect();
        files[0] = "target/deploy/stack.yml".to_owned();
        fs::create_dir_all(root().join("target/deploy")).context("cannot create target/deploy")?;
        fs::write(root().join(&files[0]), kept.join("\n")).context("cannot write target/deploy/stack.yml")?;
    }
    Ok(files)
}

/// The bounding set of capabilities in a process's status file.
fn bounds(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
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
    let here = root().join("target/deploy").join(format!("{}-{name}", cluster.state().name));
    let what = || format!("cannot write {}", here.display());
    fs::create_dir_all(root().join("target/deploy")).with_context(what)?;
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

/// The end-to-end program, to be run inside the cluster's network.
///
/// # Errors
/// Where the network is gone.
pub fn e2e(cluster: &Cluster, build: Build) -> Result<Command> {
    let mut command = cluster.netns_command(programs::program("swarmguard-e2e", build))?;
    command.current_dir(root()).arg("--state").arg(absolute(&cluster.state_file()));
    command.arg("--images").arg(image::list(build));
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", docker(cluster)?.display()));
    Ok(command)
}

/// A directory with docker's command line, of the nodes' own Debian suite with that suite's libraries: this machine may
/// have none, or an older C library.
fn docker(cluster: &Cluster) -> Result<PathBuf> {
    let tree = rootfs::tree(cluster.state().engine, false)?.tree;
    let dir = root().join("target/deploy/bin");
    let script = format!(
        "#!/bin/sh\nexec {0}/lib64/ld-linux-x86-64.so.2 --library-path {0}/usr/lib/x86_64-linux-gnu {0}/usr/bin/docker \"$@\"\n",
        tree.display()
    );
    let file = dir.join("docker");
    let what = || format!("cannot write {}", file.display());
    fs::create_dir_all(&dir).with_context(what)?;
    fs::write(&file, script).with_context(what)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).with_context(what)?;
    Ok(dir)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Whether containers can have CPU limits: not on native nodes of a machine that keeps that controller in cgroup v1.
fn has_cpu_limits(cluster: &Cluster) -> Result<bool> {
    let first = cluster.state().nodes.first().context("a cluster without nodes")?;
    if first.kind != Kind::Native {
        return Ok(true);
    }
    Ok(cluster::has_cpu_controller(&cluster::node_cgroup(cluster, first)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounding_set_is_found() {
        let set = bounds("Name:\tx\nCapEff:\t00\nCapBnd:\t000001fffeffffff\n").expect("a set");
        assert_eq!(set >> SPARED.1 & 1, 0);
        assert_eq!(set >> 21 & 1, 1);
    }
}
