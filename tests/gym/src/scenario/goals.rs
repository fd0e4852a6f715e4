//! What must come of a scenario: bounds on its scores, held as medians over the seeds.

use super::{ServiceSpec, read::Section};

/// A score that is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Requests later than their goal, refused or lost, in per cent; the mean over the services.
    LatePercent,
    /// The same of the service that fares worst.
    WorstLatePercent,
    /// Unasked actions an hour.
    ActionsPerHour,
    /// Those of them that helped nothing, an hour.
    UselessPerHour,
    /// Unasked actions in all, at least.
    LeastActions,
    /// From the first five bad seconds until half a minute without any, in seconds.
    ReliefS,
    /// Replica-seconds over the oracle's.
    Cost,
    /// The busiest minute of any node, in per cent of its CPUs.
    WorstNodePercent,
    /// Containers that the kernel or a failed check ended.
    Kills,
    /// Replicas of one service, the most at any time.
    MostReplicas(usize),
    /// The same, at the end.
    EndReplicas(usize),
    /// The same, at least.
    EndReplicasLeast(usize),
}

/// A bound with its value.
#[derive(Clone, Debug)]
pub struct Goal {
    /// As it stands in the file.
    pub key: String,
    /// Which score.
    pub bound: Bound,
    /// The most that is allowed, or the least where the bound is one from below.
    pub value: f64,
}

impl Goal {
    /// Whether a score keeps it.
    pub fn holds(&self, score: f64) -> bool {
        match self.bound {
            Bound::LeastActions | Bound::EndReplicasLeast(_) => score >= self.value,
            _ => score <= self.value,
        }
    }
}

pub(super) fn read(section: &Section<'_, '_>, services: &[ServiceSpec]) -> Vec<Goal> {
    let plain = [
        ("late_percent", Bound::LatePercent),
        ("worst_late_percent", Bound::WorstLatePercent),
        ("actions_per_hour", Bound::ActionsPerHour),
        ("useless_per_hour", Bound::UselessPerHour),
        ("least_actions", Bound::LeastActions),
        ("relief_s", Bound::ReliefS),
        ("cost", Bound::Cost),
        ("worst_node_percent", Bound::WorstNodePercent),
        ("kills", Bound::Kills),
    ];
    let mut goals = Vec::new();
    for (key, bound) in plain {
        if let Some(value) = section.maybe_number(key, 0.0..=1e9) {
            goals.push(Goal { key: key.into(), bound, value });
        }
    }
    for (index, service) in services.iter().enumerate() {
        let Some(of_service) = names_table(section, &service.name) else { continue };
        let counts: [(&'static str, Bound); 3] = [
            ("most_replicas", Bound::MostReplicas(index)),
            ("end_replicas", Bound::EndReplicas(index)),
            ("end_replicas_least", Bound::EndReplicasLeast(index)),
        ];
        for (key, bound) in counts {
            if let Some(value) = of_service.maybe_number(key, 0.0..=1e6) {
                goals.push(Goal { key: format!("{}.{key}", service.name), bound, value });
            }
        }
        of_service.finish(&[]);
    }
    section.finish(&services.iter().map(|service| service.name.clone()).collect::<Vec<_>>());
    goals
}

fn names_table<'r, 't>(section: &Section<'r, 't>, name: &str) -> Option<Section<'r, 't>> {
    section.has(name).then(|| section.named_table(name)).flatten()
}
