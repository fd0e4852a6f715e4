//! The prototype that SwarmGuard began as: a look every 5 s, two breaches in a row; CPU or memory high and network low: away
//! from the node by a constraint, with every replica rolled; all three high: one more; fewer when the others could do it.

use std::time::Duration;

use serde_json::json;

use super::{Every, Meter, bounds, replicas, scale};
use crate::{
    Time,
    controller::{Act, Controller, End, Kind, Stage},
    machines::Machines,
    number::real,
};

const LOOK: Duration = Duration::from_secs(5);
const BREACHES: u32 = 2;
const MOVE_COOLDOWN: Duration = Duration::from_secs(60);
const OUT_COOLDOWN: Duration = Duration::from_secs(60);
const IN_COOLDOWN: Duration = Duration::from_secs(180);
const CPU: f64 = 0.75;
const MEMORY: f64 = 0.80;
const NETWORK_LOW: f64 = 0.35;
const NETWORK_HIGH: f64 = 0.65;
/// 100 % of its network: 100 Mbit/s, fixed.
const NETWORK_BYTES: f64 = 12_500_000.0;

/// The rule, with its memory.
pub struct Prototype {
    look: Every,
    phase: f64,
    meter: Meter,
    bytes: std::collections::BTreeMap<swarmguard_common::domain::TaskId, f64>,
    services: Vec<Memory>,
}

#[derive(Clone, Copy, Default)]
struct Memory {
    breaches: u32,
    moved: Option<Time>,
    scaled: Option<Time>,
}

struct Seen {
    cpu: f64,
    memory: f64,
    network: f64,
    node: usize,
}

impl Prototype {
    /// Its loop begins at a moment that the seed chooses.
    pub fn new(machines: &Machines, seed: u64) -> Self {
        Self {
            look: Every::new(LOOK),
            phase: fastrand::Rng::with_seed(seed ^ 0x9a).f64(),
            meter: Meter::default(),
            bytes: std::collections::BTreeMap::new(),
            services: vec![Memory::default(); machines.services.len()],
        }
    }

    fn see(&self, stage: &Stage<'_>, service: usize) -> Vec<Seen> {
        let machines = stage.machines;
        let spec = machines.spec(service);
        let of_service = machines
            .replicas
            .values()
            .filter(|replica| replica.service == service && replica.serving_since.is_some());
        of_service
            .filter_map(|replica| {
                let node = &machines.scenario().nodes[replica.node];
                let used = self.meter.used.get(&replica.task)?;
                let bytes = replica.counters.bytes.0 + replica.counters.bytes.1;
                let before = self.bytes.get(&replica.task).copied().unwrap_or(bytes);
                Some(Seen {
                    cpu: used / replica.cap(spec, node.cpus),
                    memory: (replica.need + replica.cache) / spec.memory.map_or(real(node.memory), real),
                    network: (bytes - before) / LOOK.as_secs_f64() / NETWORK_BYTES,
                    node: replica.node,
                })
            })
            .collect()
    }

    fn judge(&mut self, stage: &mut Stage<'_>, service: usize) {
        if !stage.machines.spec(service).policy.enabled {
            return;
        }
        let now = stage.now;
        let seen = self.see(stage, service);
        let memory = &mut self.services[service];
        let hot = seen.iter().find(|it| it.cpu >= CPU || it.memory >= MEMORY);
        let rested = |at: Option<Time>, cooldown| at.is_none_or(|at| now - at >= cooldown);
        let Some(hot) = hot else {
            memory.breaches = 0;
            if let Some((min, _)) = bounds(stage.machines, service) {
                let current = replicas(stage, service);
                let all: f64 = seen.iter().map(|it| it.cpu).sum();
                let spare = current > min.max(1) && all < CPU * real(current - 1);
                if spare && rested(memory.scaled, IN_COOLDOWN) && !seen.is_empty() {
                    memory.scaled = Some(now);
                    scale(stage, service, current - 1, format!("all use {:.0} % together", all * 100.0));
                }
            }
            return;
        };
        memory.breaches += 1;
        if memory.breaches < BREACHES {
            return;
        }
        let text = format!(
            "CPU {:.0} %, memory {:.0} %, network {:.0} %",
            hot.cpu * 100.0,
            hot.memory * 100.0,
            hot.network * 100.0
        );
        let all_high = hot.cpu >= CPU && hot.memory >= MEMORY && hot.network >= NETWORK_HIGH;
        if hot.network < NETWORK_LOW && rested(memory.moved, MOVE_COOLDOWN) {
            (memory.moved, memory.breaches) = (Some(now), 0);
            let node = hot.node;
            drop(seen);
            move_away(stage, service, node, text);
        } else if all_high
            && rested(memory.scaled, OUT_COOLDOWN)
            && let Some((_, max)) = bounds(stage.machines, service)
        {
            (memory.scaled, memory.breaches) = (Some(now), 0);
            let current = replicas(stage, service);
            scale(stage, service, (current + 1).min(max), text);
        }
    }
}

fn move_away(stage: &mut Stage<'_>, service: usize, node: usize, text: String) {
    let id = stage.machines.services[service].id.clone();
    let host = stage.swarm.hostname(&stage.machines.nodes[node].id);
    let base = stage.machines.spec(service).constraints.clone();
    let from = replicas(stage, service);
    let written = stage.swarm.operator_update(&id, |spec| {
        let mut constraints = base;
        constraints.push(format!("node.hostname!={host}"));
        spec["TaskTemplate"]["Placement"]["Constraints"] = json!(constraints);
        let forced = spec["TaskTemplate"]["ForceUpdate"].as_u64().unwrap_or(0);
        spec["TaskTemplate"]["ForceUpdate"] = json!(forced + 1);
        spec["UpdateConfig"] = json!({"Parallelism": 1, "Order": "start-first"});
    });
    if written.is_err() {
        return;
    }
    let now = stage.now;
    stage.acts.begin(Act {
        kind: Kind::Move,
        service,
        source: Some(node),
        target: None,
        from,
        to: from,
        asked: false,
        text,
        begun: now,
        ended: Some((now + Duration::from_secs(20), End::Done)),
        helped: None,
        judged: String::new(),
    });
}

impl Controller for Prototype {
    fn step(&mut self, stage: &mut Stage<'_>) {
        if !self.look.is_due(stage.now, self.phase) {
            return;
        }
        self.meter.look(stage.now, stage.machines);
        for service in 0..stage.machines.services.len() {
            self.judge(stage, service);
        }
        let bytes = |counters: &crate::machines::Counters| counters.bytes.0 + counters.bytes.1;
        self.bytes =
            stage.machines.replicas.iter().map(|(task, it)| (task.clone(), bytes(&it.counters))).collect();
    }
}
