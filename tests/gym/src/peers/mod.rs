//! Other projects' rules in the same loop, written from what they publish. Each sees what it would see on its own platform
//! and acts on Swarm at once, without SwarmGuard's care: that is part of what is compared.

mod hpa;
mod kpa;
mod low_node_load;
mod prototype;

use std::{collections::BTreeMap, time::Duration};

pub use hpa::Hpa;
pub use kpa::Kpa;
pub use low_node_load::LowNodeLoad;
pub use prototype::Prototype;
use swarmguard_common::domain::TaskId;
use swarmguard_tests::swarm_model::ModelService;

use crate::{
    Time,
    controller::{Act, End, Kind, Stage},
    machines::Machines,
};

/// CPU time of each replica when it was looked at last, and what it used on average since.
#[derive(Debug, Default)]
struct Meter {
    at: Option<Time>,
    seen: BTreeMap<TaskId, f64>,
    /// CPUs that each used, of those that were there all the time.
    used: BTreeMap<TaskId, f64>,
}

impl Meter {
    fn look(&mut self, now: Time, machines: &Machines) {
        let since = self.at.map_or(0.0, |at| (now - at).as_secs_f64() * 1e6);
        self.used.clear();
        for (task, replica) in &machines.replicas {
            if let Some(before) = self.seen.get(task).filter(|_| since > 0.0) {
                self.used.insert(task.clone(), (replica.counters.cpu_us - before) / since);
            }
        }
        self.seen = machines.replicas.iter().map(|(task, it)| (task.clone(), it.counters.cpu_us)).collect();
        self.at = Some(now);
    }
}

/// A thing that is due every so often.
#[derive(Debug)]
struct Every {
    every: Duration,
    next: Option<Time>,
}

impl Every {
    fn new(every: Duration) -> Self {
        Self { every, next: None }
    }

    /// The first time somewhere within the period, as no loop begins with the load.
    fn is_due(&mut self, now: Time, phase: f64) -> bool {
        let next = *self.next.get_or_insert(now + self.every.mul_f64(phase.clamp(0.0, 1.0)));
        if now < next {
            return false;
        }
        self.next = Some(next + self.every);
        true
    }
}

/// Replicas that Swarm is asked for.
fn replicas(stage: &Stage<'_>, service: usize) -> u64 {
    stage.swarm.services.get(&stage.machines.services[service].id).map_or(0, ModelService::replicas)
}

/// What a service's labels allow; `None` where it does not scale.
fn bounds(machines: &Machines, service: usize) -> Option<(u64, u64)> {
    let policy = &machines.spec(service).policy;
    if !policy.enabled {
        return None;
    }
    Some((u64::from(policy.scale_min?), u64::from(policy.scale_max?)))
}

/// What a service asks for per replica: its limit, else its reservation, else one CPU, as a platform wants it said.
fn requested(machines: &Machines, service: usize) -> f64 {
    let spec = machines.spec(service);
    spec.cpus.or(spec.reserve_cpus).unwrap_or(1.0)
}

/// `docker service scale`, noted.
fn scale(stage: &mut Stage<'_>, service: usize, to: u64, text: String) {
    let from = replicas(stage, service);
    if from == to {
        return;
    }
    let id = stage.machines.services[service].id.clone();
    let written = stage
        .swarm
        .operator_update(&id, |spec| spec["Mode"]["Replicated"]["Replicas"] = serde_json::json!(to));
    if written.is_err() {
        return;
    }
    let kind = if to > from { Kind::Out } else { Kind::In };
    let now = stage.now;
    stage.acts.begin(Act {
        kind,
        service,
        source: None,
        target: None,
        from,
        to,
        asked: false,
        text,
        begun: now,
        ended: Some((now, End::Done)),
        helped: None,
        judged: String::new(),
    });
}
