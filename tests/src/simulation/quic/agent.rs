//! A node's agent: the real state, conditions and uplink, fed with kernel counters that the simulated load makes.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
    time::Duration,
};

use swarmguard_agent::{
    model::{Capacity, Limits},
    sources::{
        cpu::CpuStat,
        group::{FastReading, SlowReading},
        network::{NetworkReading, Traffic},
        node::NodeReading,
        pressure::Pressure,
    },
    state::{Agent, DEFAULT_MAX_CONTAINERS, Description},
    uplink::{MakeEndpoint, Shared, Uplink, addresses::Addresses, addresses::Wanted},
};
use swarmguard_common::{
    domain::{BasisPoints, ContainerId, NodeId, TaskId},
    time::Time,
    wire::agent::{ContainerChange, Hello, NodeLoad, TaskLoad},
};
use swarmguard_runtime::{clock, identity::Source};
use tokio::time::MissedTickBehavior;

use super::{
    super::{
        World,
        load::{NODE_CPU_MILLIS, NODE_MEMORY_BYTES},
    },
    Common, socket,
};

/// Ten samples a second, as the agent takes them when something moves.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// Every so many samples the slow figures are read.
const SLOW_EVERY: u64 = 5;
/// Every so many samples the checkers are told what stands.
const TELL_EVERY: u64 = 3;
/// The bandwidth that the services' labels call 100 %, in bytes a second.
const BANDWIDTH: u64 = 100_000_000 / 8;

/// What an agent is started with; the same at each start.
#[derive(Clone)]
pub(super) struct Plan {
    pub node: NodeId,
    pub certificate: PathBuf,
    pub coordinators: Vec<SocketAddr>,
    pub own: SocketAddr,
    /// Has an engine to ask, so that containers come with names and events; else coordinators name them.
    pub named: bool,
    pub seed: u64,
}

/// One start of the agent, to its end: which is that of its host.
pub(super) async fn run(common: Arc<Common>, plan: Plan) {
    let epoch = common.world().epoch_of(&plan.node);
    let hello = Hello {
        node: plan.node.clone(),
        epoch,
        hostname: plan.node.to_string(),
        version: "simulated".into(),
        cpu_millis: NODE_CPU_MILLIS,
        memory_bytes: NODE_MEMORY_BYTES,
        link_mbps: Some(1_000),
        blind: false,
    };
    let capacity =
        Capacity { cpu_millis: NODE_CPU_MILLIS, memory_bytes: NODE_MEMORY_BYTES, network_mbps: Some(1_000) };
    let mut agent = Agent::new(hello, capacity, DEFAULT_MAX_CONTAINERS);
    agent.expect_names(plan.named);
    let shared = Shared::new(agent);
    let list = plan.coordinators.iter().map(|address| (address.ip().to_string(), address.port()));
    let seed = plan.seed.wrapping_add(epoch.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let uplink = Uplink {
        shared: shared.clone(),
        identity: Source::Files(plan.certificate.clone()),
        addresses: Addresses::new(Wanted::List(list.collect()), None),
        endpoints: endpoints(&common, plan.own, seed),
        seed,
    };
    tokio::spawn(uplink.run());
    let mut body = Body { plan, shared, counters: BTreeMap::new(), node: NodeReading::default(), taken: 0 };
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        body.sample(&common);
    }
}

fn endpoints(common: &Arc<Common>, own: SocketAddr, seed: u64) -> MakeEndpoint {
    let (wire, made) = (Arc::clone(&common.wire), AtomicU64::new(seed));
    Arc::new(move |_| socket::endpoint(&wire, own.ip(), 0, None, made.fetch_add(1, Ordering::Relaxed)))
}

/// The kernel and the engine that the agent looks at.
struct Body {
    plan: Plan,
    shared: Shared,
    counters: BTreeMap<TaskId, Counters>,
    node: NodeReading,
    taken: u64,
}

/// A container's counters, which only grow.
struct Counters {
    handle: u32,
    container: ContainerId,
    fast: FastReading,
    slow: SlowReading,
    traffic: Traffic,
    /// When the engine says what it is; `None` once it has.
    named_at: Option<Time>,
    healthy: bool,
}

impl Body {
    fn sample(&mut self, common: &Common) {
        let now = clock::now();
        let (node, loads) = {
            let mut world = common.world();
            let World { now, load, swarm, rng, .. } = &mut *world;
            load.measure(*now, &self.plan.node, swarm, rng)
        };
        self.bury(now, &loads);
        self.bear(common, now, &loads);
        self.count(now, node, &loads);
        if self.taken.is_multiple_of(TELL_EVERY) {
            self.tell(common, now);
        }
        self.taken += 1;
        self.shared.wake();
    }

    /// Containers that ended.
    fn bury(&mut self, now: Time, loads: &BTreeMap<TaskId, TaskLoad>) {
        let (named, shared) = (self.plan.named, &self.shared);
        self.counters.retain(|task, counters| {
            let lives = loads.contains_key(task);
            if !lives {
                let mut agent = shared.lock();
                if named {
                    let died = ContainerChange::Died { status: 0 };
                    agent.engine_event(now, counters.container.clone(), Some(task.clone()), died);
                }
                agent.died(counters.handle);
            }
            lives
        });
    }

    /// Containers that came, that the engine names, or that became healthy.
    fn bear(&mut self, common: &Common, now: Time, loads: &BTreeMap<TaskId, TaskLoad>) {
        let mut world = common.world();
        let mut agent = self.shared.lock();
        for task in loads.keys() {
            let Some(found) = world.swarm.tasks.get(task) else { continue };
            let (service, serves) = (found.service.clone(), found.serves());
            if !self.counters.contains_key(task) {
                let Some(container) = found.container() else { continue };
                let Some(handle) = agent.born(now, &container, Limits::default()) else { continue };
                // Mostly at once, now and then later than the agent waits for it.
                let after = if world.rng.u8(0..8) == 0 { world.rng.u64(0..4_000) } else { 20 };
                let counters = Counters {
                    handle,
                    container: container.clone(),
                    fast: FastReading { cpu: Some(CpuStat::default()), memory_bytes: Some(0) },
                    slow: SlowReading { page_cache_bytes: Some(0), ..SlowReading::default() },
                    traffic: Traffic::default(),
                    named_at: self.plan.named.then_some(now + Duration::from_millis(after)),
                    healthy: false,
                };
                self.counters.insert(task.clone(), counters);
                if self.plan.named {
                    agent.engine_event(now, container, Some(task.clone()), ContainerChange::Started);
                }
            }
            let Some(counters) = self.counters.get_mut(task) else { continue };
            if counters.named_at.is_some_and(|at| at <= now) {
                counters.named_at = None;
                let description = Description {
                    name: task.to_string(),
                    task: Some(task.clone()),
                    service: Some(service),
                    healthcheck: Some(true),
                    ..Description::default()
                };
                counters.handle = agent.describe(&counters.container, description).unwrap_or(counters.handle);
            }
            if self.plan.named && serves && !counters.healthy {
                agent.engine_event(
                    now,
                    counters.container.clone(),
                    Some(task.clone()),
                    ContainerChange::Healthy,
                );
            }
            counters.healthy |= serves;
        }
    }

    /// Lets the counters grow by what the load says, and hands them to the agent.
    fn count(&mut self, now: Time, node: NodeLoad, loads: &BTreeMap<TaskId, TaskLoad>) {
        let mut agent = self.shared.lock();
        for (task, load) in loads {
            let Some(counters) = self.counters.get_mut(task) else { continue };
            counters.grow(load);
            let network = NetworkReading { traffic: counters.traffic, ..NetworkReading::default() };
            agent.sample(now, counters.handle, counters.fast, Some(network));
            if self.taken.is_multiple_of(SLOW_EVERY) {
                agent.sample_slow(now, counters.handle, counters.slow);
            }
        }
        grow_node(&mut self.node, node);
        agent.sample_node(now, self.node, false);
    }

    /// Tells the checkers which conditions stand, by container, and for how long.
    fn tell(&self, common: &Common, now: Time) {
        let mut standing = BTreeMap::new();
        for container in self.shared.lock().containers().values() {
            container.conditions.standing(|change| {
                standing.insert((container.id.clone(), change.condition as u8), now.since(change.since));
            });
        }
        common.eyes().stands(&self.plan.node, standing);
    }
}

fn micros(of: Duration, share: Option<BasisPoints>) -> u64 {
    u64::try_from(of.as_micros()).unwrap_or(0) * u64::from(share.map_or(0, |share| share.0)) / 10_000
}

fn grow_pressure(pressure: &mut Option<Pressure>, share: Option<BasisPoints>) {
    pressure.get_or_insert_default().some_usec += micros(SAMPLE_EVERY, share);
}

impl Counters {
    fn grow(&mut self, load: &TaskLoad) {
        if let Some(cpu) = &mut self.fast.cpu {
            cpu.usage_usec +=
                u64::from(load.cpu_millis) * micros(SAMPLE_EVERY, Some(BasisPoints::FULL)) / 1_000;
        }
        self.fast.memory_bytes = Some(u64::from(load.memory_kib) * 1_024);
        self.traffic.rx_bytes += BANDWIDTH * micros(SAMPLE_EVERY, load.network) / 1_000_000;
        grow_pressure(&mut self.slow.psi_cpu, load.psi_cpu);
        grow_pressure(&mut self.slow.psi_memory, load.psi_memory);
    }
}

fn grow_node(reading: &mut NodeReading, load: NodeLoad) {
    let ticks = reading.cpu.get_or_insert_default();
    ticks.busy += micros(SAMPLE_EVERY, load.cpu);
    ticks.all += micros(SAMPLE_EVERY, Some(BasisPoints::FULL));
    let used = NODE_MEMORY_BYTES / 10_000 * u64::from(load.memory.map_or(0, |share| share.0));
    reading.memory = Some((NODE_MEMORY_BYTES, NODE_MEMORY_BYTES - used));
    reading.network.get_or_insert_default().rx_bytes +=
        10 * BANDWIDTH * micros(SAMPLE_EVERY, load.network) / 1_000_000;
    grow_pressure(&mut reading.psi_cpu, load.psi_cpu);
    grow_pressure(&mut reading.psi_memory, load.psi_memory);
    grow_pressure(&mut reading.psi_io, load.psi_io);
}
