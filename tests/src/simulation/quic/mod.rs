//! The same clusters over real QUIC: agents' uplinks and coordinators' ingest, loops and brains, each on a simulated
//! machine with a clock of its own, over a simulated network that delays, loses, reorders and duplicates datagrams.
//!
//! The [`World`] decides what goes wrong, as in the simulation without a network; here it happens to hosts and links.
//! Handshakes, streams, datagrams, retransmission and mutual TLS are the programs' own, certificates are made for each
//! run. Everything runs on one thread in simulated time, and all chance comes from the seed.

mod agent;
mod clocks;
mod coordinator;
mod eyes;
mod impostor;
mod socket;
mod tap;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use swarmguard_common::{domain::NodeId, journal::Kind, time::Time};
use swarmguard_runtime::identity::{
    IdentityError, Unit,
    issue::{Authority, KeyKind},
};
use turmoil::Sim;

use super::{Outcome, Sabotage, Scenario, World};
use crate::swarm_model::TICK_MS;
use clocks::Simulated;
use eyes::Eyes;
use socket::Wire;

/// The cluster's ID, as certificates name it.
const CLUSTER: &str = "simulatedcluster";
/// What the impostor calls its machine.
const IMPOSTOR: &str = "impostor";
/// One step of the simulated machines. Datagrams arrive between two of them.
const STEP: Duration = Duration::from_millis(10);
/// How far a machine's clock may be off, in parts per million; a bad crystal's is a tenth of that.
const DRIFT_PPM: i64 = 2_000;
/// Longest trouble; packets cost more than parcels.
const MOST_TROUBLED: Duration = Duration::from_secs(60);
/// Calm that every run has at least before it may end.
const LEAST_CALM: Duration = Duration::from_secs(60);
/// Datagrams that wait at one socket; more are dropped.
const SOCKET_QUEUE: usize = 1_024;

/// What a seed tries over QUIC.
pub fn scenario(seed: u64) -> Scenario {
    let scenario = super::scenario(seed);
    let trouble_every = scenario.trouble_every.map(|every| every.min(Duration::from_secs(15)));
    Scenario { troubled: scenario.troubled.min(MOST_TROUBLED), trouble_every, ..scenario }
}

/// Runs one seed.
pub fn run(seed: u64, verbose: bool) -> Outcome {
    run_sabotaged(seed, verbose, Sabotage::None)
}

/// Runs one seed with something broken on purpose, which a checker must notice.
pub fn run_sabotaged(seed: u64, verbose: bool, sabotage: Sabotage) -> Outcome {
    let common = Arc::new(Common {
        world: Mutex::new(World::of(scenario(seed), seed, verbose, sabotage)),
        eyes: Mutex::default(),
        wire: Arc::default(),
        sabotage,
    });
    match Cluster::new(Arc::clone(&common), seed) {
        Ok(cluster) => cluster.run(),
        Err(error) => {
            let mut world = common.world();
            let now = world.now;
            world.checks.fail(now, format!("the certificates cannot be made: {error}"));
        }
    }
    let (trace, seen) = (common.wire.trace().clone(), common.eyes().seen);
    let mut world = common.world();
    let now = world.now;
    world.story.tell(now, || format!("{trace:?} {seen:?}"));
    let mut outcome = world.outcome(seed);
    let counts = [
        ("quic_connections", seen.connections),
        ("quic_superseded", seen.superseded),
        ("quic_alerts", seen.alerts),
        ("quic_alerts_again", seen.alerts_again),
        ("quic_leases_lapsed", seen.lapsed),
        ("quic_impostors_refused", seen.refused),
        ("quic_datagrams", trace.datagrams),
        ("quic_datagrams_lost", trace.lost),
        ("quic_datagrams_doubled", trace.duplicated),
    ];
    outcome.actions.extend(counts.map(|(name, count)| (name.to_owned(), count)));
    outcome
}

/// What all hosts and the driver share. They take turns on one thread; the locks only say so to the compiler.
struct Common {
    world: Mutex<World>,
    eyes: Mutex<Eyes>,
    wire: Arc<Wire>,
    sabotage: Sabotage,
}

impl Common {
    /// Never held across an await.
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never held across an await, and never while the world is taken afterwards.
    fn eyes(&self) -> MutexGuard<'_, Eyes> {
        self.eyes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A host of the network, and what of the world has been done to it.
struct Host {
    name: String,
    runs: bool,
    /// What tells its present life from others, as was carried out; `None` before the first look.
    lives: Option<u64>,
}

/// The simulated machines.
struct Cluster {
    sim: Sim<'static>,
    common: Arc<Common>,
    agents: BTreeMap<NodeId, Host>,
    coordinators: BTreeMap<NodeId, Host>,
    /// Cuts that the network has, and how: 1 only towards the coordinator, 2 only towards the agent, else both ways.
    cuts: BTreeMap<(NodeId, NodeId), u8>,
    rng: fastrand::Rng,
    // Before the directory, and both last: hosts read clocks and files until they are gone.
    clocks: Simulated,
    certificates: tempfile::TempDir,
}

impl Cluster {
    fn new(common: Arc<Common>, seed: u64) -> Result<Self, IdentityError> {
        let certificates = tempfile::tempdir()
            .map_err(|source| IdentityError::Read { path: std::env::temp_dir(), source })?;
        let (nodes, delay_ms) = {
            let world = common.world();
            common.wire.set_loss(world.scenario.loss);
            let nodes: Vec<(NodeId, bool)> =
                world.swarm.nodes.values().map(|node| (node.id.clone(), node.manager)).collect();
            (nodes, world.scenario.delay_ms.max(2))
        };
        let sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(STEP)
            .simulation_duration(Duration::MAX)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(delay_ms))
            .udp_capacity(SOCKET_QUEUE)
            .build();
        let mut cluster = Self {
            sim,
            common,
            agents: BTreeMap::new(),
            coordinators: BTreeMap::new(),
            cuts: BTreeMap::new(),
            rng: fastrand::Rng::with_seed(seed ^ 0x51_1C),
            clocks: Simulated::begin(),
            certificates,
        };
        cluster.populate(&nodes)?;
        Ok(cluster)
    }

    /// Makes certificates and hosts for everybody. `nodes`: which there are, and whether each is a manager.
    fn populate(&mut self, nodes: &[(NodeId, bool)]) -> Result<(), IdentityError> {
        let authority = Authority::with_keys(KeyKind::Ed25519, CLUSTER)?;
        let root = self.certificates.path().to_owned();
        let issue = |name: &str, unit| {
            let at = root.join(name);
            std::fs::create_dir_all(&at)
                .map_err(|source| IdentityError::Read { path: at.clone(), source })?;
            authority.issue(name, unit, &at)?;
            Ok::<PathBuf, IdentityError>(at)
        };
        let managers = || nodes.iter().filter(|(_, manager)| *manager).map(|(node, _)| node);
        let coordinators: Vec<SocketAddr> = managers()
            .map(|node| SocketAddr::new(self.sim.lookup(format!("coordinator-{node}")), coordinator::PORT))
            .collect();
        for (node, manager) in nodes {
            issue(node.as_str(), if *manager { Unit::Manager } else { Unit::Worker })?;
        }
        for (node, own) in managers().zip(&coordinators) {
            let certificate = root.join(node.as_str());
            let plan =
                coordinator::Plan { node: node.clone(), certificate, own: *own, seed: self.rng.u64(..) };
            let common = Arc::clone(&self.common);
            let host = self.host(format!("coordinator-{node}"), move || {
                coordinator::run(Arc::clone(&common), plan.clone())
            });
            self.coordinators.insert(node.clone(), host);
        }
        for (node, manager) in nodes {
            let name = format!("agent-{node}");
            let plan = agent::Plan {
                node: node.clone(),
                certificate: root.join(node.as_str()),
                coordinators: coordinators.clone(),
                own: SocketAddr::new(self.sim.lookup(name.as_str()), 0),
                named: *manager || self.rng.bool(),
                seed: self.rng.u64(..),
            };
            let common = Arc::clone(&self.common);
            let host = self.host(name, move || {
                let (common, plan) = (Arc::clone(&common), plan.clone());
                async move {
                    agent::run(common, plan).await;
                    Ok(())
                }
            });
            self.agents.insert(node.clone(), host);
        }
        let Some((victim, _)) = nodes.last() else { return Ok(()) };
        let certificate = match self.common.sabotage {
            // It cannot be told from its victim then: the checkers must speak.
            Sabotage::LendsCertificate => root.join(victim.as_str()),
            _ => issue("nodeofsomebodyelse", Unit::Worker)?,
        };
        let own = SocketAddr::new(self.sim.lookup(IMPOSTOR), 0);
        let (victim, seed) = (victim.clone(), self.rng.u64(..));
        let plan = impostor::Plan { victim, certificate, coordinators, own, seed };
        let common = Arc::clone(&self.common);
        self.host(IMPOSTOR.into(), move || impostor::run(Arc::clone(&common), plan.clone()));
        Ok(())
    }

    /// A host joins the network, a step after the one before it, with a clock of its own.
    fn host<F, Fut>(&mut self, name: String, software: F) -> Host
    where
        F: Fn() -> Fut + 'static,
        Fut: Future<Output = turmoil::Result> + 'static,
    {
        let began = Time::from_millis(3_600_000 + self.rng.u64(0..1_000_000_000));
        self.clocks.give(self.sim.elapsed(), began, self.rng.i64(-DRIFT_PPM..=DRIFT_PPM));
        self.sim.host(name.as_str(), software);
        self.step();
        Host { name, runs: true, lives: None }
    }

    /// One step of all machines.
    fn step(&mut self) {
        if let Err(error) = self.sim.step() {
            self.common.eyes().found.push(format!("a program ended: {error}"));
        }
    }

    fn run(mut self) {
        // The services come up before anything is watched or disturbed.
        self.turns(Duration::from_secs(10));
        let (troubled, calm) = {
            let mut world = self.common.world();
            let World { checks, swarm, scenario, .. } = &mut *world;
            checks.start(swarm);
            (scenario.troubled, scenario.calm)
        };
        self.turns(troubled);
        self.common.world().calm();
        self.common.wire.set_loss(0);
        self.turns(LEAST_CALM);
        let end = self.common.world().now + calm;
        while !self.is_settled() && self.common.world().now < end {
            self.turns(Duration::from_secs(5));
            if !self.common.world().checks.failures.is_empty() {
                return;
            }
        }
        let alerts = self.common.eyes().alerts();
        self.common.world().finish_with(alerts);
    }

    /// Whether everything that was begun has come to its end.
    fn is_settled(&self) -> bool {
        self.common.eyes().alerts() == 0 && self.common.world().is_settled()
    }

    fn turns(&mut self, duration: Duration) {
        let end = self.common.world().now + duration;
        while self.common.world().now < end && self.common.world().checks.failures.is_empty() {
            self.turn();
        }
    }

    /// One step of the model, then as many of the machines.
    fn turn(&mut self) {
        self.common.world().turn();
        self.break_and_mend();
        let steps = TICK_MS / u64::try_from(STEP.as_millis()).unwrap_or(TICK_MS);
        for _ in 0..steps {
            self.step();
        }
        self.look();
    }

    /// What the world says of hosts and links is done to them.
    fn break_and_mend(&mut self) {
        let common = Arc::clone(&self.common);
        // Copied first: what a host leaves behind when it ends must find nothing locked.
        let (now, agents, coordinators, cuts) = {
            let world = common.world();
            let of_agent = |node: &NodeId| (world.swarm.nodes[node].up, world.epoch_of(node));
            let cut = |agent: &NodeId| {
                let to = self.coordinators.keys().filter(|to| world.network.is_cut(agent, to));
                to.map(|to| (agent.clone(), to.clone())).collect::<Vec<_>>()
            };
            let agents: Vec<(bool, u64)> = self.agents.keys().map(of_agent).collect();
            let coordinators: Vec<(bool, u64)> =
                self.coordinators.keys().map(|node| world.coordinator_is(node)).collect();
            let cuts: BTreeSet<(NodeId, NodeId)> = self.agents.keys().flat_map(cut).collect();
            (world.now, agents, coordinators, cuts)
        };
        let mut steady = BTreeMap::new();
        for ((node, host), (up, lives)) in self.agents.iter_mut().zip(agents) {
            steady.insert((node.clone(), false), set(&mut self.sim, host, up, lives));
        }
        for ((node, host), (up, lives)) in self.coordinators.iter_mut().zip(coordinators) {
            let is_steady = set(&mut self.sim, host, up, lives);
            if !is_steady {
                common.eyes().ends(node);
            }
            steady.insert((node.clone(), true), is_steady);
        }
        self.cut_and_join(&cuts);
        let mut eyes = common.eyes();
        for agent in self.agents.keys() {
            for coordinator in self.coordinators.keys() {
                let both = steady[&(agent.clone(), false)] && steady[&(coordinator.clone(), true)];
                let clear = both && !cuts.contains(&(agent.clone(), coordinator.clone()));
                eyes.way(agent, coordinator, clear, now);
            }
        }
    }

    /// Links between agents and coordinators are cut, half of them one way only, or joined again.
    fn cut_and_join(&mut self, wanted: &BTreeSet<(NodeId, NodeId)>) {
        for key in wanted {
            if self.cuts.contains_key(key) {
                continue;
            }
            let (a, b) = (self.agents[&key.0].name.as_str(), self.coordinators[&key.1].name.as_str());
            let how = self.rng.u8(0..4);
            match how {
                1 => self.sim.partition_oneway(a, b),
                2 => self.sim.partition_oneway(b, a),
                _ => self.sim.partition(a, b),
            }
            self.cuts.insert(key.clone(), how);
        }
        let (sim, agents, coordinators) = (&self.sim, &self.agents, &self.coordinators);
        self.cuts.retain(|key, how| {
            let stays = wanted.contains(key);
            if !stays {
                let (a, b) = (agents[&key.0].name.as_str(), coordinators[&key.1].name.as_str());
                match how {
                    1 => sim.repair_oneway(a, b),
                    2 => sim.repair_oneway(b, a),
                    _ => sim.repair(a, b),
                }
            }
            stays
        });
    }

    /// Lets all checkers look.
    fn look(&self) {
        let mut world = self.common.world();
        let mut eyes = self.common.eyes();
        for node in self.coordinators.keys() {
            for entry in eyes.entries(node) {
                let now = world.now;
                world.checks.entry(now, &entry);
                if entry.kind != Kind::Alert {
                    world.story.tell(now, || format!("{node}: [{}] {}", entry.code, entry.text));
                }
            }
        }
        let epochs = self.agents.keys().map(|node| (node.clone(), world.epoch_of(node))).collect();
        eyes.compare(world.now, &epochs);
        let found = std::mem::take(&mut eyes.found);
        world.look(found);
    }
}

/// Lets a host run or not. When `lives` is another than before, what runs there ends in any case. Answers whether it ran before and still does.
fn set(sim: &mut Sim<'_>, host: &mut Host, up: bool, lives: u64) -> bool {
    let anew = host.lives.is_some_and(|before| before != lives);
    host.lives = Some(lives);
    let ran = host.runs && !anew;
    if host.runs && (anew || !up) {
        sim.crash(host.name.as_str());
        host.runs = false;
    }
    if up && !host.runs {
        sim.bounce(host.name.as_str());
        host.runs = true;
    }
    ran && up
}
