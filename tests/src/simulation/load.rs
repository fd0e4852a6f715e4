//! What the containers use: a pattern of demand, shared out over the replicas and held to what a node has.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::{
    domain::{BasisPoints, NodeId, ServiceId, TaskId},
    time::Time,
    wire::agent::{NodeLoad, TaskLoad},
};

use super::scenario::{Pattern, Scenario};
use crate::swarm_model::{ModelTask, SwarmModel};

/// CPU of every node, in thousandths of one.
pub(super) const NODE_CPU_MILLIS: u32 = 1_000;
/// Memory of every node.
pub(super) const NODE_MEMORY_BYTES: u64 = 1 << 30;

/// Demand over time.
pub(super) struct Load {
    pattern: Pattern,
    begins: Time,
    ends: Time,
    /// Which replica runs hot, by its slot and node, chosen when it begins. One only: two on a node of one CPU would have
    /// half of it each, and neither would be over its threshold.
    hot: Option<(ServiceId, u64, NodeId)>,
    first: Option<ServiceId>,
    quiet: bool,
}

impl Load {
    pub fn new(scenario: &Scenario, start: Time, rng: &mut fastrand::Rng) -> Self {
        let begins = start + Duration::from_secs(rng.u64(12..25));
        Self {
            pattern: scenario.pattern,
            begins,
            ends: begins + Duration::from_secs(rng.u64(20..100)),
            hot: None,
            first: None,
            quiet: false,
        }
    }

    pub fn calm(&mut self) {
        self.quiet = true;
    }

    fn stands(&self, now: Time) -> bool {
        !self.quiet && now >= self.begins && now < self.ends
    }

    /// Chooses the hot replica once the time has come.
    pub fn choose(&mut self, now: Time, swarm: &SwarmModel, services: &[ServiceId]) {
        self.first = services.first().cloned();
        if self.pattern == Pattern::HotNode && self.stands(now) && self.hot.is_none() {
            let service = services.first();
            let mut tasks = service.into_iter().flat_map(|service| swarm.serving(service));
            self.hot = tasks.find_map(|task| Some((task.service.clone(), task.slot, task.node.clone()?)));
        }
    }

    /// CPU and network that a task would use if it could, in thousandths of a CPU and Mbit/s.
    fn demand(&self, now: Time, task: &ModelTask, replicas: usize, rng: &mut fastrand::Rng) -> (u32, u32) {
        let jitter = rng.u32(0..30);
        if !self.stands(now) {
            return (60 + jitter, 2);
        }
        match self.pattern {
            Pattern::HotNode => {
                let hot = self.hot.as_ref().is_some_and(|(service, slot, node)| {
                    *service == task.service && *slot == task.slot && task.node.as_ref() == Some(node)
                });
                if hot { (940 + jitter, 5) } else { (60 + jitter, 5) }
            }
            // The replicas of the first service share a fixed demand.
            Pattern::Demand if self.first.as_ref() == Some(&task.service) => {
                let share = |all: u32| all / u32::try_from(replicas.max(1)).unwrap_or(1);
                (share(1_900) + jitter, share(190))
            }
            Pattern::Demand => (60 + jitter, 2),
            Pattern::Noise => (rng.u32(300..1_000), rng.u32(0..100)),
        }
    }

    /// What the agent of `node` measures now.
    pub fn measure(
        &self,
        now: Time,
        node: &NodeId,
        swarm: &SwarmModel,
        rng: &mut fastrand::Rng,
    ) -> (NodeLoad, BTreeMap<TaskId, TaskLoad>) {
        let running = swarm.tasks.values().filter(|task| task.node.as_ref() == Some(node) && runs(task));
        let wants: Vec<(&ModelTask, u32, u32)> = running
            .map(|task| {
                let replicas = swarm.serving(&task.service).count();
                let (cpu, network) = self.demand(now, task, replicas, rng);
                (task, cpu, network)
            })
            .collect();
        let wanted: u32 = wants.iter().map(|(_, cpu, _)| cpu).sum::<u32>() + 20;
        let short = wanted > NODE_CPU_MILLIS;
        let granted = |cpu: u32| if short { cpu * NODE_CPU_MILLIS / wanted } else { cpu };
        let points = |part: u32, whole: u32| BasisPoints::share(part.into(), whole.into());
        let load = |(task, cpu, network): &(&ModelTask, u32, u32)| {
            let load = TaskLoad {
                handle: 0,
                cpu: points(granted(*cpu), NODE_CPU_MILLIS),
                memory: Some(BasisPoints::from_percent(8)),
                network: points(*network, 100),
                cpu_millis: granted(*cpu),
                memory_kib: 80 * 1_024,
                psi_cpu: Some(if short {
                    BasisPoints::from_percent(40)
                } else {
                    BasisPoints::from_percent(1)
                }),
                psi_memory: Some(BasisPoints::ZERO),
                throttled: Some(BasisPoints::ZERO),
                in_flight: None,
                latency_us: None,
                latency_p95_us: None,
            };
            (task.id.clone(), load)
        };
        let node_load = NodeLoad {
            cpu: points(wanted.min(NODE_CPU_MILLIS), NODE_CPU_MILLIS),
            memory: Some(BasisPoints::from_percent(30)),
            network: points(wants.iter().map(|(_, _, network)| network).sum(), 1_000),
            psi_cpu: Some(if wanted > 900 {
                BasisPoints::from_percent(45)
            } else {
                BasisPoints::from_percent(2)
            }),
            psi_memory: Some(BasisPoints::ZERO),
            psi_io: Some(BasisPoints::ZERO),
            starved: false,
        };
        (node_load, wants.iter().map(load).collect())
    }
}

/// Has a container that runs, wanted or not.
fn runs(task: &ModelTask) -> bool {
    use swarmguard_core::swarm::TaskState;
    (TaskState::Starting..=TaskState::Running).contains(&task.state)
}
