//! `swarmguard-agent doctor`: what this kernel and this node offer, what is used of it, and why.

use std::{io::Write as _, path::Path, process::ExitCode};

use serde::Serialize;
use swarmguard_runtime::{clock::now, identity::Identity};

use crate::{
    bpf::KernelFacts,
    config::Settings,
    discovery::{engine::Engine, scan},
    run::{ASSUMED_MBPS, NESTED, capacity, cgroup_root, is_nested, node_group},
    sources::{BUFFER_BYTES, group::Group, network::Networks, node::NodeSource, node_group::NodeGroup},
    uplink::addresses::Wanted,
};

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What.
    pub what: String,
    /// It can be used.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What is used, and in whose place where it is not the best.
    pub chosen: String,
}

/// Looks at everything, prints it, and says by the exit status whether the agent could do its work.
///
/// # Errors
/// When the report cannot be written.
pub async fn run(settings: &Settings, json: bool) -> anyhow::Result<ExitCode> {
    let checks = examine(settings).await;
    // Not println: whoever reads may stop early, which is no reason to panic.
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&checks)?)?;
    } else {
        for check in &checks {
            let mark = if check.ok { "ok     " } else { "missing" };
            writeln!(out, "{mark} {}: {}\n        {}", check.what, check.found, check.chosen)?;
        }
    }
    let works = checks.iter().any(|check| check.what == "cgroup v2" && check.ok);
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Looks at everything.
pub async fn examine(settings: &Settings) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut add = |what: &str, ok: bool, found: String, chosen: &str| {
        checks.push(Check { what: what.into(), ok, found, chosen: chosen.into() });
    };
    let root = cgroup_root(&settings.cgroup_root);
    let shown = settings.cgroup_root.display();
    match &root {
        Some(root) => {
            add("cgroup v2", true, root.display().to_string(), "containers are found and measured here");
        }
        None => add("cgroup v2", false, format!("none at {shown}"), "the node reports itself blind"),
    }
    if let Some(root) = &root {
        let facts = KernelFacts::probe(root);
        add(
            "kernel",
            true,
            facts.release.clone(),
            if facts.btf { "with type information" } else { "without type information" },
        );
        if !facts.cgroup2_root && !is_nested(root) {
            add(
                "whole hierarchy",
                false,
                "this mount shows only a part of it".into(),
                "bind the host's /sys/fs/cgroup",
            );
        }
        containers(root, &mut add);
        let (networks, findings) = Networks::open(root, &settings.proc_root, settings.bpf);
        for finding in findings {
            let chosen = if finding.ok { "used" } else { finding.instead };
            add(finding.what, finding.ok, finding.detail, chosen);
        }
        drop(networks);
    }
    node(settings, root.as_deref(), &mut add);
    match Identity::load(&settings.identity) {
        Ok(identity) => {
            let days = identity.valid_for().as_secs() / 86_400;
            let found = format!("{}: node {}, valid for {days} days", settings.identity, identity.own.name);
            add("identity", true, found, "alerts are sent under this name");
        }
        Err(error) => add("identity", false, error.to_string(), "coordinators cannot be told anything"),
    }
    engine(settings, &mut add).await;
    checks
}

fn containers(root: &Path, add: &mut impl FnMut(&str, bool, String, &str)) {
    let found = scan::walk(root);
    let sample = found.containers.iter().find_map(|(id, dir)| Some((id, Group::open(dir).ok()?)));
    let count = found.containers.len();
    add("containers", count > 0, format!("{count} found"), "watched while they live");
    let Some((id, group)) = sample else { return };
    let missing: Vec<&str> = group.missing().collect();
    let found = if missing.is_empty() {
        "all files are there".to_owned()
    } else {
        format!("without {}", missing.join(", "))
    };
    add(
        "controllers",
        missing.is_empty(),
        format!("{found} (container {id})"),
        "kept descriptors, one pread for each file",
    );
}

/// What stands for the node: the machine, or a cgroup of it.
fn place(
    settings: &Settings,
    root: Option<&Path>,
    add: &mut impl FnMut(&str, bool, String, &str),
) -> Option<NodeGroup> {
    let kind =
        container_kind(&settings.proc_root).map(|kind| format!(", container={kind}")).unwrap_or_default();
    match node_group(settings, root) {
        Ok(Some(group)) => {
            let found = format!("the cgroup {}, CPUs from {}{kind}", group.dir().display(), group.origin());
            add("node", true, found, "its limits, CPU time and pressure are the node's");
            Some(group)
        }
        Ok(None) => {
            if root.is_some_and(is_nested) {
                let chosen = "the whole machine is taken for the node: say --node-cgroup /, and --node-cpus where \
                              its limit is not in cpu.max";
                add("node", false, format!("{NESTED}{kind}"), chosen);
            }
            None
        }
        Err(error) => {
            add("node", false, error.to_string(), "the agent does not start like this");
            None
        }
    }
}

/// What the first process of a container is told that it runs in, by LXC, systemd-nspawn and Podman.
fn container_kind(proc_root: &Path) -> Option<String> {
    let environment = std::fs::read(proc_root.join("1/environ")).ok()?;
    let kind = environment.split(|byte| *byte == 0).find_map(|word| word.strip_prefix(b"container="))?;
    let kind: String =
        String::from_utf8_lossy(kind).chars().filter(char::is_ascii_graphic).take(32).collect();
    (!kind.is_empty()).then_some(kind)
}

fn node(settings: &Settings, root: Option<&Path>, add: &mut impl FnMut(&str, bool, String, &str)) {
    let group = place(settings, root, add);
    let (capacity, link) = capacity(settings, group.as_ref());
    let shown = group.as_ref().map_or(&settings.proc_root as &Path, NodeGroup::dir).display().to_string();
    let source = NodeSource::open(&settings.proc_root).within(group);
    let reading = source.read(now(), &mut vec![0; BUFFER_BYTES]);
    let cpu = reading.cpu.is_some() && reading.memory.is_some();
    add("node figures", cpu, format!("CPU and memory from {shown}"), "node load in every report");
    let pressure = reading.psi_cpu.is_some();
    let chosen =
        if pressure { "stalls take part in alerts" } else { "alerts rest on use alone; boot with psi=1" };
    add("pressure", pressure, format!("of {shown}"), chosen);
    let found = link.map_or_else(|| "the driver does not say".into(), |mbps| format!("{mbps} Mbit/s"));
    let chosen = if link.is_some() {
        "100 % of the network".into()
    } else {
        format!("{ASSUMED_MBPS} Mbit/s are taken as 100 %; say --link-mbps")
    };
    add("link speed", link.is_some(), found, &chosen);
    let cpus = f64::from(capacity.cpu_millis) / 1_000.0;
    let found = format!("{cpus} CPUs, {} MiB", capacity.memory_bytes >> 20);
    add("capacity", capacity.cpu_millis > 0, found, "what containers without limits are measured against");
}

async fn engine(settings: &Settings, add: &mut impl FnMut(&str, bool, String, &str)) {
    let without = "containers have no names here; the coordinator finds out what they are";
    let Some(socket) = &settings.docker.0 else {
        add("engine", false, "switched off".into(), without);
        return;
    };
    let engine = match Engine::at(socket) {
        Ok(engine) => engine,
        Err(error) => {
            add("engine", false, error.to_string(), without);
            return;
        }
    };
    match engine.node().await {
        Ok((_, name)) => {
            add(
                "engine",
                true,
                format!("{} on {}", socket.display(), name.unwrap_or_default()),
                "names containers, tells of their health",
            );
            if settings.coordinators == Wanted::Auto {
                let managers = engine.managers().await;
                let found: Vec<String> = managers.iter().map(ToString::to_string).collect();
                let found =
                    if found.is_empty() { "this node is in no swarm".into() } else { found.join(", ") };
                add("coordinators", !managers.is_empty(), found, "one connection to each");
            }
        }
        Err(error) => add("engine", false, error.to_string(), without),
    }
}
