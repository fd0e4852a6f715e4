//! What is played: nodes, services, their demand, what happens, and what must come of it. One TOML file each; every key
//! is described in `docs/judgement.md`.

pub mod curve;
mod events;
mod goals;
pub mod read;
mod services;

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use toml::de::DeTable;

pub use curve::Curve;
pub use events::{Event, What};
pub use goals::{Bound, Goal};
pub use services::{Balance, ServiceSpec};

use read::{Reader, Section};

/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Most nodes, and most services.
const MOST_NODES: u64 = 1_000;

/// One scenario.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The file's name without its ending.
    pub name: String,
    /// One or two sentences for people.
    pub about: String,
    /// Which rows of the design it stands for.
    pub covers: Vec<String>,
    /// Simulated time.
    pub length: Duration,
    /// Nothing is scored before.
    pub settle: Duration,
    /// Seeds move demand by up to this share.
    pub jitter: f64,
    /// In the order of the file.
    pub nodes: Vec<NodeSpec>,
    /// Shared by services.
    pub backends: Vec<BackendSpec>,
    /// In the order of the file.
    pub services: Vec<ServiceSpec>,
    /// By time.
    pub events: Vec<Event>,
    /// What must hold, as a median over the seeds.
    pub goals: Vec<Goal>,
    /// Goals that are known not to be met yet, by key, and why.
    pub known_misses: BTreeMap<String, String>,
}

/// A node.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// CPUs.
    pub cpus: f64,
    /// Bytes.
    pub memory: u64,
    /// How fast its CPUs are, 1 for those that request times are given for.
    pub speed: f64,
    /// Link speed, in Mbit/s.
    pub link_mbps: u32,
    /// Node labels.
    pub labels: Vec<(String, String)>,
    /// CPUs that something outside Swarm wants.
    pub outside: Curve,
    /// The CPU shares of what is outside Swarm, in those of so many containers.
    pub outside_weight: u64,
    /// Bytes that something outside Swarm uses.
    pub outside_memory: u64,
}

/// Something that several services call, such as a database.
#[derive(Clone, Debug)]
pub struct BackendSpec {
    /// What services call it by.
    pub name: String,
    /// Calls a second that it can answer.
    pub capacity: f64,
    /// How long an answer takes while it is idle.
    pub time: Duration,
}

impl Scenario {
    /// Reads a file.
    ///
    /// # Errors
    /// Where it cannot be read, or with everything that is wrong in it.
    pub fn load(path: &Path) -> Result<Self> {
        let shown = path.display();
        let bytes = fs::metadata(path).with_context(|| format!("cannot read {shown}"))?.len();
        if bytes > MAX_FILE_BYTES {
            bail!("{shown} has {bytes} bytes, {MAX_FILE_BYTES} are allowed");
        }
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("scenario");
        Self::parse(name, &shown.to_string(), &text)
    }

    /// All of a directory, by name.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_all(dir: &Path) -> Result<Vec<Self>> {
        let listed = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
        let mut paths: Vec<_> = listed.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "toml"));
        paths.sort();
        paths.iter().map(|path| Self::load(path)).collect()
    }

    /// Reads a text; `file` is how messages call it.
    ///
    /// # Errors
    /// With everything that is wrong in it.
    pub fn parse(name: &str, file: &str, text: &str) -> Result<Self> {
        let table = DeTable::parse(text).map_err(|error| anyhow::anyhow!("{file} is not TOML: {error}"))?;
        let reader = Reader::new(file, text);
        let scenario = read_all(name, &reader.section(table.get_ref()));
        let problems = reader.into_problems();
        if !problems.is_empty() {
            bail!("{}", problems.join("\n"));
        }
        Ok(scenario)
    }
}

fn read_all(name: &str, root: &Section<'_, '_>) -> Scenario {
    let seconds = Duration::from_secs;
    let length = root.duration("length", seconds(1_200), seconds(10)..=seconds(7 * 86_400));
    let settle = root.duration("settle", seconds(30), Duration::ZERO..=seconds(86_400));
    if settle >= length {
        root.refuse("settle", "less than length");
    }
    let nodes = read_nodes(root);
    let backends: Vec<BackendSpec> = root.tables("backends").iter().map(read_backend).collect();
    let services: Vec<ServiceSpec> = root
        .tables("services")
        .iter()
        .map(|section| services::read(section, &backends, nodes.len()))
        .collect();
    if services.is_empty() {
        root.refuse("services", "at least one [[services]]");
    }
    for (index, service) in services.iter().enumerate() {
        if services[..index].iter().any(|other| other.name == service.name) {
            root.refuse("services", format!("two services are called {:?}; names differ", service.name));
        }
    }
    let mut events: Vec<Event> = root
        .tables("events")
        .iter()
        .filter_map(|section| events::read(section, &services, nodes.len()))
        .collect();
    events.sort_by_key(|event| event.at);
    let goals = root.table("bounds").map(|section| goals::read(&section, &services)).unwrap_or_default();
    let known_misses = read_misses(root, &goals);
    let scenario = Scenario {
        name: name.into(),
        about: root.text("about", ""),
        covers: root.texts("covers"),
        length,
        settle,
        jitter: root.number("jitter", 0.03, 0.0..=0.5),
        nodes,
        backends,
        services,
        events,
        goals,
        known_misses,
    };
    root.finish(&[]);
    scenario
}

fn read_misses(root: &Section<'_, '_>, goals: &[Goal]) -> BTreeMap<String, String> {
    let misses: BTreeMap<String, String> = root.map("known_misses").into_iter().collect();
    for (key, why) in &misses {
        if !goals.iter().any(|goal| goal.key == *key) {
            root.refuse("known_misses", format!("{key:?} is no key of [bounds] in this file"));
        }
        if why.trim().is_empty() {
            root.refuse("known_misses", format!("{key:?} needs a reason"));
        }
    }
    misses
}

fn read_nodes(root: &Section<'_, '_>) -> Vec<NodeSpec> {
    let mut nodes = Vec::new();
    for section in root.tables("nodes") {
        let count = section.whole("count", 1, 1..=MOST_NODES);
        let node = NodeSpec {
            cpus: section.number("cpus", 4.0, 0.5..=1_024.0),
            memory: section.bytes("memory", 8 << 30),
            speed: section.number("speed", 1.0, 0.1..=10.0),
            link_mbps: u32::try_from(section.whole("link_mbps", 1_000, 1..=1_000_000)).unwrap_or(1_000),
            labels: section.map("labels"),
            outside: Curve::read(&section.tables("outside")),
            outside_weight: section.whole("outside_weight", 1, 1..=1_000),
            outside_memory: section.bytes("outside_memory", 512 << 20),
        };
        if node.memory <= node.outside_memory {
            section.refuse("outside_memory", "less than the node's memory");
        }
        section.finish(&[]);
        nodes.extend((0..count).map(|_| node.clone()));
    }
    if nodes.is_empty() {
        root.refuse("nodes", "at least one [[nodes]]");
    }
    nodes
}

fn read_backend(section: &Section<'_, '_>) -> BackendSpec {
    let backend = BackendSpec {
        name: section.text("name", "backend"),
        capacity: section.number("capacity", 1_000.0, 0.1..=1e9),
        time: section.duration("time", Duration::from_millis(5), Duration::ZERO..=Duration::from_secs(60)),
    };
    section.finish(&[]);
    backend
}

/// Every key that a file may have, as `section.key`, for the check that all are documented.
pub fn known_keys() -> Vec<String> {
    let text = "nodes = [{outside = [{}]}]\nbackends = [{}]\n[bounds]\n[[services]]\nname = \"web\"\ndemand = [{}]\nwork = \
                [{}]\nburn = [{}]\n[[events]]\nservice = \"web\"\n";
    let Ok(table) = DeTable::parse(text) else { return Vec::new() };
    let reader = Reader::new("", text);
    read_all("", &reader.section(table.get_ref()));
    reader.known()
}

#[cfg(test)]
mod tests;
