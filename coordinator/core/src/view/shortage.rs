//! Whether a node is short of CPU or memory, and since when.
//!
//! A node is short of CPU when its CPUs are busy, not when tasks wait: those that their own limit holds back wait on idle
//! nodes too. It is short from a high threshold on and no longer below a low one, so that relief goes on until it is done.

use std::time::Duration;

use swarmguard_common::{domain::BasisPoints, labels::CLEAR_RATIO, time::Time, wire::agent::NodeLoad};

/// Busy share of the CPUs from which a node is short.
pub const CPU_SHORT: BasisPoints = BasisPoints(8_500);
/// Share of memory in use from which a node is short.
pub const MEMORY_SHORT: BasisPoints = BasisPoints(9_000);
/// Share of the time that tasks stall for memory from which a node is short of it.
pub const MEMORY_STALLS: BasisPoints = BasisPoints(2_000);
/// Memory in use below which it is no longer short.
const MEMORY_CLEAR: BasisPoints = BasisPoints(8_500);

/// What a node is short of, by figures that have settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shortage {
    /// Of CPU, since then.
    pub cpu: Option<Time>,
    /// Of memory, since then.
    pub memory: Option<Time>,
}

impl Shortage {
    /// Takes in settled figures; unknown ones are no shortage.
    pub fn update(&mut self, now: Time, load: Option<&NodeLoad>) {
        let cpu = load.and_then(|load| load.cpu);
        let memory = load.and_then(|load| load.memory);
        let stalls = load.and_then(|load| load.psi_memory).unwrap_or_default();
        let over = |value: Option<BasisPoints>, high: BasisPoints| value.is_some_and(|value| value >= high);
        self.cpu = next(now, self.cpu, over(cpu, CPU_SHORT), over(cpu, CPU_SHORT.scaled(CLEAR_RATIO)));
        self.memory = next(
            now,
            self.memory,
            over(memory, MEMORY_SHORT) || stalls >= MEMORY_STALLS,
            over(memory, MEMORY_CLEAR) || stalls >= MEMORY_STALLS.scaled(0.5),
        );
    }

    /// For how long it has been short of CPU, or of memory.
    pub fn lasted(&self, now: Time) -> [Option<Duration>; 2] {
        [self.cpu, self.memory].map(|since| since.map(|since| now - since))
    }
}

fn next(now: Time, since: Option<Time>, begins: bool, stays: bool) -> Option<Time> {
    match since {
        Some(since) if stays => Some(since),
        _ => begins.then_some(now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_from_the_high_threshold_until_below_the_low_one() {
        let mut shortage = Shortage::default();
        let mut at = |ms: u64, cpu: u16, memory: u16, psi_cpu: u16| {
            let load = NodeLoad {
                cpu: Some(BasisPoints::from_percent(cpu)),
                memory: Some(BasisPoints::from_percent(memory)),
                psi_cpu: Some(BasisPoints::from_percent(psi_cpu)),
                ..NodeLoad::default()
            };
            shortage.update(Time::from_millis(ms), Some(&load));
            shortage
        };
        assert_eq!(at(0, 30, 50, 75), Shortage::default(), "tasks that wait at their own limits");
        assert_eq!(at(1_000, 86, 50, 0).cpu, Some(Time::from_millis(1_000)));
        assert_eq!(at(2_000, 74, 50, 0).cpu, Some(Time::from_millis(1_000)));
        assert_eq!(at(3_000, 70, 91, 0), Shortage { cpu: None, memory: Some(Time::from_millis(3_000)) });
        assert_eq!(
            at(4_000, 74, 86, 0).lasted(Time::from_millis(5_000)),
            [None, Some(Duration::from_secs(2))]
        );
        shortage.update(Time::from_millis(6_000), None);
        assert_eq!(shortage, Shortage::default());
    }
}
