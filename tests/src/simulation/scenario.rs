//! What a run tries: how large the cluster is, what its services say, and which kinds of trouble come.

use std::time::Duration;

use swarmguard_common::domain::ServiceId;

use super::Sabotage;
use crate::swarm_model::{SwarmModel, Workload};

/// Which promises hold in a run, by the kind of trouble in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Only what SwarmGuard itself must survive: its own crashes, the network, a leader change. No replica may be lost.
    OwnFaults,
    /// Operators and nodes interfere too: replicas may be lost to them, but nothing may be left behind.
    Interference,
}

/// What load does in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One node runs hot: a replica there burns CPU, the network stays low.
    HotNode,
    /// Demand for a service rises on all replicas, and falls later.
    Demand,
    /// Values jump about the thresholds; nothing is really wrong.
    Noise,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Which promises hold.
    pub class: Class,
    /// What load does.
    pub pattern: Pattern,
    /// Managers, 1 or 3.
    pub managers: u64,
    /// Workers.
    pub workers: u64,
    /// Replicas of each service at the start.
    pub replicas: Vec<u64>,
    /// `swarmguard.scale.max` of each service; `None`: it does not scale.
    pub scale_max: Vec<Option<u64>>,
    /// `swarmguard.rebalance` of all services.
    pub rebalance: bool,
    /// How its containers behave.
    pub workload: Workload,
    /// Of 1,000 datagrams so many are lost.
    pub loss: u16,
    /// Longest delay of a message, in milliseconds.
    pub delay_ms: u64,
    /// Mean time between two troubles; none where `None`.
    pub trouble_every: Option<Duration>,
    /// How long trouble lasts.
    pub troubled: Duration,
    /// How long everything then has to come to its end.
    pub calm: Duration,
}

impl Scenario {
    pub(super) fn draw(rng: &mut fastrand::Rng) -> Self {
        let class = if rng.u8(0..10) < 6 { Class::OwnFaults } else { Class::Interference };
        let pattern = [Pattern::HotNode, Pattern::HotNode, Pattern::Demand, Pattern::Noise][rng.usize(0..4)];
        let managers = if rng.bool() { 1 } else { 3 };
        let count = rng.usize(1..=3);
        let replicas: Vec<u64> = (0..count).map(|_| rng.u64(1..=4)).collect();
        let scales = |rng: &mut fastrand::Rng| pattern == Pattern::Demand || rng.u8(0..3) == 0;
        let scale_max =
            replicas.iter().map(|replicas| scales(rng).then(|| replicas + rng.u64(1..=3))).collect();
        let slow = rng.u8(0..4) == 0;
        Self {
            class,
            pattern,
            managers,
            workers: rng.u64(2..=4),
            replicas,
            scale_max,
            rebalance: rng.u8(0..3) == 0,
            workload: Workload {
                prepare_ms: rng.u64(50..2_000),
                healthy_ms: if slow { rng.u64(5_000..20_000) } else { rng.u64(200..4_000) },
                stop_ms: rng.u64(50..8_000),
                failing_starts: if rng.u8(0..5) == 0 { rng.u16(0..400) } else { 0 },
                runs_ms: None,
            },
            loss: if rng.bool() { 0 } else { rng.u16(0..200) },
            delay_ms: rng.u64(1..400),
            trouble_every: (rng.u8(0..6) != 0).then(|| Duration::from_millis(rng.u64(1_500..30_000))),
            troubled: Duration::from_secs(rng.u64(60..150)),
            calm: Duration::from_secs(240),
        }
    }

    pub(super) fn create_services(&self, swarm: &mut SwarmModel, sabotage: Sabotage) -> Vec<ServiceId> {
        let create = |(index, replicas): (usize, &u64)| {
            let max = self.scale_max[index].map(|max| max.to_string());
            let min = replicas.to_string();
            let mut labels = vec![
                ("swarmguard.enable", "true"),
                ("swarmguard.migrate", "surge"),
                ("swarmguard.network.mbps", "100"),
                ("swarmguard.scale.down.window", "20s"),
                ("swarmguard.scale.down.cooldown", "20s"),
            ];
            if let Some(max) = &max {
                labels
                    .extend([("swarmguard.scale.min", min.as_str()), ("swarmguard.scale.max", max.as_str())]);
            }
            if self.rebalance {
                labels.push(("swarmguard.rebalance", "true"));
            }
            labels.extend(sabotage.labels());
            let service = swarm.create_service(&format!("web{index}"), *replicas, &labels, self.workload);
            let _ = swarm.operator_update(&service, |spec| {
                // What an operator has must come back exactly, so give it something to lose.
                spec["TaskTemplate"]["Placement"] = serde_json::json!({
                    "Constraints": ["node.hostname!=nowhere"],
                    "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}],
                });
                spec["UpdateConfig"] =
                    serde_json::json!({"Parallelism": 2, "Order": "stop-first", "FailureAction": "rollback"});
            });
            service
        };
        self.replicas.iter().enumerate().map(create).collect()
    }
}
