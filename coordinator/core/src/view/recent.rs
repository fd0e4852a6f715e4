//! The readings of the last seconds, so that nothing is decided on one of them.
//!
//! What a decision rests on is the median since the reason for it began: a burst or a dip that lasts less than half of
//! that time leaves no trace, while a step that has lasted as long as an alert must stand has come through whole. An
//! average would show neither: long ones are late, short ones let bursts through.

use std::{collections::VecDeque, time::Duration};

use swarmguard_common::{
    time::Time,
    wire::agent::{NodeLoad, TaskLoad},
};

/// Readings older than this count no more: as long as an alert must stand unless labels say otherwise.
pub const SPAN: Duration = Duration::from_secs(3);
/// Agents smooth what they report over half a second: until then readings tell of before a step more than of it. After
/// this three quarters of it show.
const LAG: Duration = Duration::from_millis(700);
/// Most readings kept; agents send four a second.
const MAX_READINGS: usize = 16;

/// Readings, oldest first.
#[derive(Clone, Debug)]
pub struct Recent<T> {
    readings: VecDeque<(Time, T)>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { readings: VecDeque::new() }
    }
}

impl<T: Copy> Recent<T> {
    /// Takes in a reading.
    pub fn push(&mut self, now: Time, reading: T) {
        if self.readings.len() >= MAX_READINGS {
            self.readings.pop_front();
        }
        self.readings.push_back((now, reading));
    }

    /// The readings of something that has stood for `stood`, at most those of [`SPAN`]; the newest where it has not
    /// stood for long enough to have any. Oldest first.
    fn of(&self, now: Time, stood: Duration) -> Vec<T> {
        let from = now.before(stood.saturating_sub(LAG).min(SPAN));
        let found: Vec<T> =
            self.readings.iter().filter(|(at, _)| *at >= from).map(|(_, reading)| *reading).collect();
        if found.is_empty() {
            self.readings.back().map(|(_, reading)| *reading).into_iter().collect()
        } else {
            found
        }
    }
}

impl Recent<TaskLoad> {
    /// Figure by figure the median over the time that something has stood; `None` without any reading.
    pub fn settled(&self, now: Time, stood: Duration) -> Option<TaskLoad> {
        let readings = self.of(now, stood);
        let newest = *readings.last()?;
        let median = |figure: fn(&TaskLoad) -> Option<u32>| median(readings.iter().map(figure));
        let share = |figure: fn(&TaskLoad) -> Option<_>| self::median(readings.iter().map(figure));
        Some(TaskLoad {
            cpu: share(|load| load.cpu),
            memory: share(|load| load.memory),
            network: share(|load| load.network),
            cpu_millis: median(|load| Some(load.cpu_millis)).unwrap_or(newest.cpu_millis),
            memory_kib: median(|load| Some(load.memory_kib)).unwrap_or(newest.memory_kib),
            psi_cpu: share(|load| load.psi_cpu),
            psi_memory: share(|load| load.psi_memory),
            throttled: share(|load| load.throttled),
            in_flight: median(|load| load.in_flight),
            latency_p95_us: median(|load| load.latency_p95_us),
            ..newest
        })
    }
}

impl Recent<NodeLoad> {
    /// Likewise.
    pub fn settled(&self, now: Time, stood: Duration) -> Option<NodeLoad> {
        let readings = self.of(now, stood);
        let newest = *readings.last()?;
        let share = |figure: fn(&NodeLoad) -> Option<_>| median(readings.iter().map(figure));
        Some(NodeLoad {
            cpu: share(|load| load.cpu),
            memory: share(|load| load.memory),
            network: share(|load| load.network),
            psi_cpu: share(|load| load.psi_cpu),
            psi_memory: share(|load| load.psi_memory),
            psi_io: share(|load| load.psi_io),
            ..newest
        })
    }
}

/// The (upper) median of what is known; unknown where the newest is, because unknown is not what it was before.
fn median<V: Ord + Copy>(values: impl DoubleEndedIterator<Item = Option<V>> + Clone) -> Option<V> {
    values.clone().next_back()??;
    let mut known: Vec<V> = values.flatten().collect();
    known.sort_unstable();
    known.get(known.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarmguard_common::domain::BasisPoints;

    /// The settled CPU of a node after these readings, four a second, of which the last comes now.
    fn settled(stood_ms: u64, percents: &[Option<u16>]) -> Option<u16> {
        let mut recent = Recent::default();
        let mut now = Time::from_millis(10_000);
        for percent in percents {
            now = now + Duration::from_millis(250);
            recent.push(now, NodeLoad { cpu: percent.map(BasisPoints::from_percent), ..NodeLoad::default() });
        }
        recent.settled(now, Duration::from_millis(stood_ms)).and_then(|load| load.cpu).map(|cpu| cpu.0 / 100)
    }

    #[test]
    fn a_burst_leaves_no_trace_and_a_step_has_come_through() {
        let level = |percent, count| std::iter::repeat_n(Some(percent), count);
        let burst: Vec<_> = level(10, 12).chain(level(90, 4)).collect();
        assert_eq!(settled(10_000, &burst), Some(10), "a second of it");
        let step: Vec<_> = level(10, 12).chain(level(90, 12)).collect();
        assert_eq!(settled(3_000, &step), Some(90));
        let dip: Vec<_> = level(90, 12).chain(level(10, 4)).collect();
        assert_eq!(settled(10_000, &dip), Some(90));
    }

    #[test]
    fn what_was_before_it_stood_does_not_count() {
        let step = [Some(10), Some(10), Some(10), Some(10), Some(40), Some(70), Some(90), Some(90)];
        assert_eq!(settled(1_000, &step), Some(90), "the first readings tell of before");
        assert_eq!(settled(0, &step), Some(90), "the newest, where it has only begun");
    }

    #[test]
    fn unknown_is_not_what_it_was() {
        assert_eq!(settled(3_000, &[Some(90), Some(90), None]), None);
        assert_eq!(settled(3_000, &[Some(90), None, Some(90)]), Some(90));
        assert_eq!(settled(3_000, &[]), None);
    }

    #[test]
    fn it_is_bounded() {
        let mut recent = Recent::default();
        for ms in 0..1_000 {
            recent.push(Time::from_millis(ms), NodeLoad::default());
        }
        assert_eq!(recent.readings.len(), MAX_READINGS);
    }
}
