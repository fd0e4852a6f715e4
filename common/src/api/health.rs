//! How well the swarm and its protection are, as one number with each deduction from it named.

use serde::{Deserialize, Serialize};

/// The score and why it is not 100.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// 100 less all deductions.
    pub score: u8,
    /// The heaviest first; none at 100.
    pub deductions: Vec<Deduction>,
}

/// Something that costs points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deduction {
    /// Which part of the score.
    pub part: HealthPart,
    /// How many points it costs, at least 1.
    pub points: u8,
    /// One sentence: what is wrong, and with what.
    pub text: String,
    /// Host names of nodes, names of services, ... that it is about; at most 20.
    pub subjects: Vec<String>,
}

/// The parts of the score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthPart {
    /// Nodes are ready, and their agents' leases live.
    Nodes,
    /// There is a coordinator that acts, a reading of Swarm that is fresh, and a quorum to spare.
    Coordinators,
    /// Services run as many replicas as they want.
    Services,
    /// Tasks that failed within 10 minutes.
    FailedTasks,
    /// Alerts that stand and are not helped.
    Alerts,
    /// Balancers are connected, and the replicas of balanced services answer.
    Balancers,
}

impl HealthPart {
    /// Every part.
    pub const ALL: [Self; 6] =
        [Self::Nodes, Self::Coordinators, Self::Services, Self::FailedTasks, Self::Alerts, Self::Balancers];

    /// Most points that it can cost.
    pub const fn weight(self) -> u8 {
        match self {
            Self::Nodes => 25,
            Self::Coordinators => 15,
            Self::Services => 30,
            Self::FailedTasks | Self::Alerts | Self::Balancers => 10,
        }
    }
}

impl Health {
    /// From what was found; deductions of one part never cost more than its weight.
    pub fn of(mut deductions: Vec<Deduction>) -> Self {
        deductions.sort_by(|one, other| other.points.cmp(&one.points).then(one.part.cmp(&other.part)));
        let lost: u32 = HealthPart::ALL
            .iter()
            .map(|part| {
                let of_part = deductions.iter().filter(|deduction| deduction.part == *part);
                let points: u32 = of_part.map(|deduction| u32::from(deduction.points)).sum();
                points.min(part.weight().into())
            })
            .sum();
        let score = u8::try_from(100_u32.saturating_sub(lost)).unwrap_or(0);
        Self { score, deductions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deduction(part: HealthPart, points: u8) -> Deduction {
        Deduction { part, points, text: String::new(), subjects: Vec::new() }
    }

    #[test]
    fn weights_make_a_hundred_and_no_part_costs_more_than_its_own() {
        assert_eq!(HealthPart::ALL.iter().map(|part| u32::from(part.weight())).sum::<u32>(), 100);
        assert_eq!(Health::of(vec![]).score, 100);
        let twice = vec![deduction(HealthPart::Alerts, 8), deduction(HealthPart::Alerts, 8)];
        assert_eq!(Health::of(twice).score, 90);
        let all = HealthPart::ALL.iter().map(|part| deduction(*part, 99)).collect();
        assert_eq!(Health::of(all).score, 0);
        let sorted = Health::of(vec![deduction(HealthPart::Alerts, 2), deduction(HealthPart::Nodes, 9)]);
        assert_eq!((sorted.score, sorted.deductions[0].part), (89, HealthPart::Nodes));
    }
}
