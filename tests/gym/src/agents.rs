//! The agents of all nodes: the real agent's own state, pace and conditions, fed with what a kernel would count. What they
//! tell is what real agents would tell.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_agent::{
    model::{Capacity, Limits},
    pace::{Pace, Tick},
    sources::{
        cpu::CpuStat,
        group::{FastReading, SlowReading},
        network::{NetworkReading, Traffic},
        node::{CpuTicks, NodeReading},
        pressure::Pressure,
    },
    state::{Agent, Description, Told},
};
use swarmguard_common::{
    domain::TaskId,
    kernel::{GroupCounters, NetCounters, Waits},
    wire::agent::{ContainerChange, Hello, ToAgent},
};
use swarmguard_core::brain::{AgentEvent, AgentInput, AgentOrder, AgentOutput, ConnectionId};

use crate::{
    Time,
    machines::{Change, Machines, Replica},
    number::{count, count32, real},
    scenario::ServiceSpec,
};

const REPORT_EVERY: Duration = Duration::from_millis(250);
/// `memory.stat` and pressure are read this often, and this often while a container is hot, as the agent's sampler does.
const SLOW_EVERY: Duration = Duration::from_secs(1);
const SLOW_EVERY_HOT: Duration = Duration::from_millis(250);
/// A container is sampled at every tick for so long after its start.
const NEW: Duration = Duration::from_secs(5);
/// Most messages taken from an agent at once.
const MOST_MESSAGES: usize = 256;

/// One agent for each node.
#[derive(Debug)]
pub struct Agents {
    all: Vec<NodeAgent>,
    connections: u64,
}

#[derive(Debug)]
struct NodeAgent {
    agent: Agent,
    told: Told,
    connection: Option<ConnectionId>,
    acknowledged: u64,
    pace: Pace,
    watched: BTreeMap<TaskId, Watched>,
    next_report: Time,
}

#[derive(Debug)]
struct Watched {
    handle: u32,
    slow_at: Option<Time>,
    hot: bool,
    lied: f64,
}

impl Agents {
    /// Agents that have just started, one for each node.
    pub fn new(machines: &Machines) -> Self {
        let specs = &machines.scenario().nodes;
        let all = machines.nodes.iter().zip(specs).zip(1_u64..).map(|((node, spec), epoch)| {
            let hello = Hello {
                node: node.id.clone(),
                epoch,
                hostname: format!("node{epoch}"),
                version: "gym".into(),
                cpu_millis: count32(spec.cpus * 1_000.0),
                memory_bytes: spec.memory,
                link_mbps: Some(spec.link_mbps),
                blind: false,
            };
            let capacity = Capacity {
                cpu_millis: hello.cpu_millis,
                memory_bytes: spec.memory,
                network_mbps: Some(spec.link_mbps),
            };
            let mut agent = Agent::new(hello, capacity, swarmguard_agent::state::DEFAULT_MAX_CONTAINERS);
            agent.expect_names(true);
            NodeAgent {
                agent,
                told: Told::default(),
                connection: None,
                acknowledged: 0,
                pace: Pace::default(),
                watched: BTreeMap::new(),
                next_report: Time::ZERO,
            }
        });
        Self { all: all.collect(), connections: 0 }
    }

    /// One sampling interval has passed. `up` says which nodes have power.
    pub fn sample(&mut self, now: Time, machines: &Machines, up: &[bool]) {
        for (index, agent) in self.all.iter_mut().enumerate() {
            if up[index] {
                agent.sample(now, index, machines);
            } else {
                agent.lose_power();
            }
        }
    }

    /// What the coordinator hears from all of them now.
    pub fn tell(&mut self, now: Time, machines: &Machines, up: &[bool]) -> Vec<AgentInput> {
        let mut heard = Vec::new();
        for (index, agent) in self.all.iter_mut().enumerate() {
            let node = &machines.nodes[index];
            if !up[index] || node.mute_until > now {
                if let Some(connection) = agent.connection.take() {
                    let what = AgentEvent::Disconnected;
                    heard.push(AgentInput { node: node.id.clone(), connection, what });
                }
                continue;
            }
            let connection = match agent.connection {
                Some(connection) => connection,
                None => {
                    self.connections += 1;
                    let connection = ConnectionId(self.connections);
                    agent.connection = Some(connection);
                    agent.told = Told::after(agent.acknowledged);
                    agent.agent.tell_standing(now);
                    let what = AgentEvent::Connected(agent.agent.hello.clone());
                    heard.push(AgentInput { node: node.id.clone(), connection, what });
                    connection
                }
            };
            let messages = agent.agent.messages(now, &mut agent.told, MOST_MESSAGES);
            let input = |what| AgentInput { node: node.id.clone(), connection, what };
            heard.extend(messages.into_iter().map(|message| input(AgentEvent::Message(message))));
            if now >= agent.next_report {
                agent.next_report = now + REPORT_EVERY;
                let (load, tasks) = agent.agent.loads(&mut agent.told);
                heard.push(input(AgentEvent::Report(agent.agent.report(load, tasks))));
            }
        }
        heard
    }

    /// The coordinator said something to one of them.
    pub fn hear(&mut self, output: AgentOutput) {
        let found = self.all.iter_mut().find(|agent| agent.connection == Some(output.connection));
        let Some(agent) = found else { return };
        match output.what {
            AgentOrder::Send(ToAgent::Acknowledge { seq }) => {
                agent.acknowledged = seq;
                agent.agent.acknowledge(seq);
            }
            AgentOrder::Send(message) => agent.agent.learn(message),
            AgentOrder::Close { .. } => agent.connection = None,
        }
    }

    /// The coordinator's program has started anew: every connection is new.
    pub fn reconnect(&mut self) {
        for agent in &mut self.all {
            agent.connection = None;
        }
    }
}

impl NodeAgent {
    /// What ran there is gone, and the program with it.
    fn lose_power(&mut self) {
        if self.watched.is_empty() {
            return;
        }
        let (mut hello, capacity) = (self.agent.hello.clone(), self.agent.capacity);
        hello.epoch += 1_000;
        self.agent = Agent::new(hello, capacity, swarmguard_agent::state::DEFAULT_MAX_CONTAINERS);
        self.agent.expect_names(true);
        (self.acknowledged, self.pace) = (0, Pace::default());
        self.watched.clear();
    }

    fn sample(&mut self, now: Time, index: usize, machines: &Machines) {
        for (_, change) in machines.changes.iter().filter(|(node, _)| *node == index) {
            self.change(now, change, machines);
        }
        self.sample_node(now, index, machines);
        let here: Vec<&Replica> =
            machines.replicas.values().filter(|replica| replica.node == index).collect();
        let used_us: f64 = here.iter().map(|replica| replica.counters.cpu_us).sum();
        let hot = here.iter().any(|replica| now - replica.born < NEW)
            || self.watched.values().any(|watched| watched.hot);
        let tick = Tick {
            used_usec: Some(count(used_us)),
            alarming: if hot { None } else { self.agent.alarming() },
            hot,
        };
        if !self.pace.due(now, tick) {
            return;
        }
        let lies = machines.nodes[index].lies_until > now;
        for replica in here {
            let spec = machines.spec(replica.service);
            let Some(watched) = self.watched.get_mut(&replica.task) else { continue };
            let every = if watched.hot { SLOW_EVERY_HOT } else { SLOW_EVERY };
            if watched.slow_at.is_none_or(|at| now - at >= every) {
                watched.slow_at = Some(now);
                self.agent.sample_slow(now, watched.handle, slow(replica));
            }
            if lies {
                // As if it had always used all that it may.
                let cap = replica.cap(spec, machines.scenario().nodes[index].cpus);
                watched.lied +=
                    (cap - replica.used).max(0.0) * real(crate::number::micros(crate::machines::STEP));
            }
            let fast = fast(replica, spec, watched.lied);
            watched.hot = self.agent.sample(now, watched.handle, fast, Some(network(replica)));
        }
    }

    fn change(&mut self, now: Time, change: &Change, machines: &Machines) {
        match change {
            Change::Started(task) => {
                let Some(replica) = machines.replicas.get(task) else { return };
                let spec = machines.spec(replica.service);
                let limits = Limits {
                    cpu_millis: spec.cpus.map(|cpus| count32(cpus * 1_000.0)),
                    memory_bytes: spec.memory,
                };
                if let Some(handle) = self.agent.born(now, &replica.container, limits) {
                    let watched = Watched { handle, slow_at: None, hot: false, lied: 0.0 };
                    self.watched.insert(task.clone(), watched);
                }
                self.agent.describe(
                    &replica.container,
                    Description {
                        name: format!("{}.{task}", spec.name),
                        task: Some(task.clone()),
                        service: Some(replica.service_id.clone()),
                        service_name: Some(spec.name.clone()),
                        healthcheck: Some(spec.healthcheck),
                        local_volumes: Vec::new(),
                        pid: None,
                        shared_network: false,
                    },
                );
                let container = replica.container.clone();
                self.agent.engine_event(now, container, Some(task.clone()), ContainerChange::Started);
            }
            Change::Healthy(task) => {
                if let Some(replica) = machines.replicas.get(task) {
                    let container = replica.container.clone();
                    self.agent.engine_event(now, container, Some(task.clone()), ContainerChange::Healthy);
                }
            }
            Change::Ended(task, status) => {
                let Some(watched) = self.watched.remove(task) else { return };
                if let Some(container) = self.agent.containers().get(&watched.handle) {
                    let (id, died) = (container.id.clone(), ContainerChange::Died { status: *status });
                    self.agent.engine_event(now, id, Some(task.clone()), died);
                }
                self.agent.died(watched.handle);
            }
        }
    }

    fn sample_node(&mut self, now: Time, index: usize, machines: &Machines) {
        let (node, spec) = (&machines.nodes[index], &machines.scenario().nodes[index]);
        let here = machines.replicas.values().filter(|replica| replica.node == index);
        // Half of what the kernel calls active can be had back without pain.
        let held: f64 =
            here.map(|replica| replica.cache * machines.spec(replica.service).cache_active * 0.5).sum();
        let all = (now - Time::ZERO).as_secs_f64() * spec.cpus * 100.0;
        let available = (real(spec.memory) - node.need - held).max(0.0);
        let pressure = |us: f64| Some(Pressure { some_usec: count(us), full_usec: None });
        let reading = NodeReading {
            cpu: Some(CpuTicks { busy: count(node.busy_us / 10_000.0), all: count(all) }),
            memory: Some((spec.memory, count(available))),
            psi_cpu: pressure(node.psi_cpu_us),
            psi_memory: pressure(node.psi_memory_us),
            psi_io: pressure(0.0),
            network: Some(Traffic { rx_bytes: count(node.bytes.0), tx_bytes: count(node.bytes.1) }),
        };
        // A tick of the kernel's CPU account is 10 ms of one CPU: shorter readings would only tell rounding.
        if now.as_millis() % 200 < 100 {
            self.agent.sample_node(now, reading, false);
        }
    }
}

fn fast(replica: &Replica, spec: &ServiceSpec, lied_us: f64) -> FastReading {
    FastReading {
        cpu: Some(CpuStat {
            usage_usec: count(replica.counters.cpu_us + lied_us),
            periods: spec.cpus.map(|_| replica.counters.periods),
        }),
        memory_bytes: Some(count(replica.need + replica.cache)),
    }
}

fn slow(replica: &Replica) -> SlowReading {
    let counters = &replica.counters;
    let pressure = |us: f64| Some(Pressure { some_usec: count(us), full_usec: Some(0) });
    SlowReading {
        page_cache_bytes: Some(count(replica.cache)),
        psi_cpu: pressure(counters.psi_cpu_us),
        psi_memory: pressure(counters.psi_memory_us),
        psi_io: pressure(0.0),
        oom_kills: Some(counters.oom_kills),
        run_queue: Some(Waits { total_ns: count(counters.run_queue_ns), ..Waits::default() }),
    }
}

fn network(replica: &Replica) -> NetworkReading {
    let counters = &replica.counters;
    let (rx_bytes, tx_bytes) = (count(counters.bytes.0), count(counters.bytes.1));
    NetworkReading {
        traffic: Traffic { rx_bytes, tx_bytes },
        counters: Some(GroupCounters {
            net: NetCounters { rx_bytes, tx_bytes, ..NetCounters::default() },
            requests_started: counters.started,
            requests_dropped: counters.dropped,
            answers: counters.answers,
        }),
        requests: true,
        unread: false,
    }
}
