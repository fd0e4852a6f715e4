//! Koordinator's LowNodeLoad: every minute the nodes' mean use of five minutes; from nodes above the high thresholds for long
//! enough pods are evicted, the largest first, while nodes below the low ones have room. The old pod goes before the new
//! one exists; where the new one goes is the scheduler's affair.

use std::{collections::VecDeque, time::Duration};

use swarmguard_common::domain::TaskId;
use swarmguard_core::swarm::Availability;

use super::{Every, replicas};
use crate::{
    controller::{Act, Controller, End, Kind, Stage},
    machines::Machines,
    number::{real, real_len},
};

const LOOK: Duration = Duration::from_secs(60);
const SAMPLE: Duration = Duration::from_secs(10);
/// Means are taken over so many samples.
const SAMPLES: usize = 30;
/// In the example of its documentation.
const LOW: Use = Use { cpu: 0.20, memory: 0.30 };
const HIGH: Use = Use { cpu: 0.50, memory: 0.60 };
/// More than so many looks in a row must find a node too busy.
const ABNORMAL: u32 = 5;
/// What a pod takes to be gone and started anew is watched for so long.
const SETTLES: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Default)]
struct Use {
    cpu: f64,
    memory: f64,
}

/// The rule, with its memory.
pub struct LowNodeLoad {
    look: Every,
    sample: Every,
    phase: f64,
    nodes: Vec<VecDeque<Use>>,
    busy_us: Vec<f64>,
    abnormal: Vec<u32>,
}

impl LowNodeLoad {
    /// Its loop begins at a moment that the seed chooses.
    pub fn new(machines: &Machines, seed: u64) -> Self {
        Self {
            look: Every::new(LOOK),
            sample: Every::new(SAMPLE),
            phase: fastrand::Rng::with_seed(seed ^ 0x10ad).f64(),
            nodes: vec![VecDeque::new(); machines.nodes.len()],
            busy_us: vec![0.0; machines.nodes.len()],
            abnormal: vec![0; machines.nodes.len()],
        }
    }

    fn measure(&mut self, machines: &Machines) {
        for (index, (node, spec)) in machines.nodes.iter().zip(&machines.scenario().nodes).enumerate() {
            let cpu = (node.busy_us - self.busy_us[index]) / 1e6 / SAMPLE.as_secs_f64() / spec.cpus;
            self.busy_us[index] = node.busy_us;
            let seen = &mut self.nodes[index];
            seen.push_back(Use { cpu, memory: node.need / real(spec.memory) });
            if seen.len() > SAMPLES {
                seen.pop_front();
            }
        }
    }

    fn mean(&self, node: usize) -> Use {
        let seen = &self.nodes[node];
        let of = |value: fn(&Use) -> f64| seen.iter().map(value).sum::<f64>() / real_len(seen.len().max(1));
        Use { cpu: of(|it| it.cpu), memory: of(|it| it.memory) }
    }

    fn balance(&mut self, stage: &mut Stage<'_>) {
        let machines = stage.machines;
        let means: Vec<Use> = (0..machines.nodes.len()).map(|node| self.mean(node)).collect();
        let open = |node: usize| {
            let found = stage.swarm.nodes.get(&machines.nodes[node].id);
            found.is_some_and(|it| it.ready && it.availability() == Availability::Active)
        };
        let is_low =
            |node: &usize| means[*node].cpu < LOW.cpu && means[*node].memory < LOW.memory && open(*node);
        let low: Vec<usize> = (0..means.len()).filter(is_low).collect();
        let mut room = low.iter().fold((0.0, 0.0), |(cpus, memory), node| {
            let spec = &machines.scenario().nodes[*node];
            (
                cpus + (HIGH.cpu - means[*node].cpu) * spec.cpus,
                memory + (HIGH.memory - means[*node].memory) * real(spec.memory),
            )
        });
        let mut evicted = Vec::new();
        for (node, mean) in means.iter().enumerate() {
            let over = mean.cpu > HIGH.cpu || mean.memory > HIGH.memory;
            self.abnormal[node] = if over { self.abnormal[node] + 1 } else { 0 };
            if low.is_empty() || self.abnormal[node] <= ABNORMAL {
                continue;
            }
            let spec = &machines.scenario().nodes[node];
            let mut left = (mean.cpu * spec.cpus, mean.memory * real(spec.memory));
            let mut here: Vec<_> = machines
                .replicas
                .values()
                .filter(|it| it.node == node && machines.spec(it.service).policy.enabled)
                .filter(|it| it.serving_since.is_some() && it.gone_at.is_none())
                .collect();
            here.sort_by(|a, b| b.used.total_cmp(&a.used));
            for replica in here {
                let still = left.0 > HIGH.cpu * spec.cpus || left.1 > HIGH.memory * real(spec.memory);
                if !still || room.0 <= 0.0 || room.1 <= 0.0 {
                    break;
                }
                left = (left.0 - replica.used, left.1 - replica.need);
                room = (room.0 - replica.used, room.1 - replica.need);
                evicted.push((node, replica.service, replica.task.clone(), *mean));
            }
            self.abnormal[node] = 0;
        }
        for (node, service, task, mean) in evicted {
            evict(stage, node, service, &task, mean);
        }
    }
}

fn evict(stage: &mut Stage<'_>, node: usize, service: usize, task: &TaskId, mean: Use) {
    stage.swarm.evict_task(task);
    let (now, from) = (stage.now, replicas(stage, service));
    stage.acts.begin(Act {
        kind: Kind::Move,
        service,
        source: Some(node),
        target: None,
        from,
        to: from,
        asked: false,
        text: format!("node at {:.0} % CPU, {:.0} % memory", mean.cpu * 100.0, mean.memory * 100.0),
        begun: now,
        ended: Some((now + SETTLES, End::Done)),
        helped: None,
        judged: String::new(),
    });
}

impl Controller for LowNodeLoad {
    fn step(&mut self, stage: &mut Stage<'_>) {
        if self.sample.is_due(stage.now, 0.0) {
            self.measure(stage.machines);
        }
        if self.look.is_due(stage.now, self.phase) {
            self.balance(stage);
        }
    }
}
