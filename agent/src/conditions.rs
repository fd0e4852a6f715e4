//! Smoothed values → alert edges: hold, hysteresis, refresh. Pure: time and values are passed in.
//!
//! A condition *begins* with the first value at or over its threshold and *stands* until a value is below
//! [`CLEAR_RATIO`] x threshold; a dip in between neither ends it nor its hold. Once it has stood for the hold it is
//! raised, then refreshed every second, then cleared. An unknown value changes nothing: a container that cannot be
//! read is not well.

use std::time::Duration;

use swarmguard_common::{
    domain::{BasisPoints, Condition, Edge},
    labels::{CLEAR_RATIO, Thresholds},
    time::Time,
};

use crate::model::Ewma;

/// Smoothing of the values that are judged. Short, because the hold is what keeps single samples from talking: at ten
/// samples a second a value counts 86 % of its mean, so a full step over a threshold of 75 % is seen in the first whole
/// sample.
pub const SMOOTHING: Duration = Duration::from_millis(50);

/// How often a raised condition is said again.
pub const REFRESH: Duration = Duration::from_secs(1);

/// A sample that comes this much before the hold ends counts as at its end: timers are not exact, and a whole further
/// interval for a late millisecond would be worse.
const HOLD_SLACK: Duration = Duration::from_millis(20);

/// PSI `some` of cpu, or waiting on the run queue, from which a container counts as stalled. Each says what the other
/// does not: PSI whether any task waits, the run queue how many at once. Memory stalls count threefold: a tenth of the
/// time spent waiting for reclaim is felt like a third spent waiting for a CPU.
pub const STALLED_HIGH: BasisPoints = BasisPoints(3_000);
const MEMORY_STALL_WEIGHT: f64 = 3.0;

/// How long a kill for want of memory is alerted after the last one.
const OOM_STANDS: Duration = Duration::from_secs(10);

/// A change to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// What about.
    pub condition: Condition,
    /// Which change.
    pub edge: Edge,
    /// The value that crossed.
    pub value: BasisPoints,
    /// When the condition began to stand (raise, refresh) or ended (clear).
    pub since: Time,
}

/// Values of one container at one moment, as ratios; `None` is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Values {
    /// CPU utilisation.
    pub cpu: Option<f64>,
    /// Memory utilisation.
    pub memory: Option<f64>,
    /// Network utilisation.
    pub network: Option<f64>,
    /// PSI `some` of cpu.
    pub psi_cpu: Option<f64>,
    /// How far waiting for a CPU holds tasks up: see [`crate::model::queued`].
    pub queued: Option<f64>,
    /// PSI `some` of memory.
    pub psi_memory: Option<f64>,
    /// The time that the rates are means over.
    pub span: Duration,
}

/// One condition of one container.
#[derive(Clone, Copy, Debug)]
struct Tracker {
    condition: Condition,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Fine,
    Pending { since: Time },
    Raised { since: Time, told: Time, value: BasisPoints },
}

impl Tracker {
    const fn new(condition: Condition) -> Self {
        Self { condition, state: State::Fine }
    }

    fn change(&self, edge: Edge, value: BasisPoints, since: Time) -> Option<Change> {
        Some(Change { condition: self.condition, edge, value, since })
    }

    /// `began` is when a value that is over the threshold now began to be so.
    fn step(
        &mut self,
        now: Time,
        began: Time,
        value: f64,
        high: BasisPoints,
        hold: Duration,
    ) -> Option<Change> {
        let points = BasisPoints::from_ratio(value);
        let over = value >= high.ratio();
        let under = value < high.ratio() * CLEAR_RATIO;
        match self.state {
            State::Fine if over => {
                self.state = State::Pending { since: began };
                self.raise_if_held(now, points, hold)
            }
            State::Fine => None,
            State::Pending { .. } if under => {
                self.state = State::Fine;
                None
            }
            State::Pending { .. } if over => self.raise_if_held(now, points, hold),
            State::Pending { .. } => None,
            State::Raised { .. } if under => {
                self.state = State::Fine;
                self.change(Edge::Clear, points, now)
            }
            State::Raised { since, told, .. } => {
                let due = now.since(told) >= REFRESH;
                self.state = State::Raised { since, told: if due { now } else { told }, value: points };
                if due { self.change(Edge::Refresh, points, since) } else { None }
            }
        }
    }

    fn raise_if_held(&mut self, now: Time, value: BasisPoints, hold: Duration) -> Option<Change> {
        let State::Pending { since } = self.state else { return None };
        if now.since(since) + HOLD_SLACK < hold {
            return None;
        }
        self.state = State::Raised { since, told: now, value };
        self.change(Edge::Raise, value, since)
    }
}

/// All conditions of one container.
#[derive(Clone, Debug)]
pub struct Conditions {
    cpu: Tracker,
    memory: Tracker,
    network: Tracker,
    stalled: Tracker,
    oom: Tracker,
    smooth_cpu: Ewma,
    smooth_network: Ewma,
    last_oom: Option<Time>,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            cpu: Tracker::new(Condition::CpuHigh),
            memory: Tracker::new(Condition::MemoryHigh),
            network: Tracker::new(Condition::NetworkHigh),
            stalled: Tracker::new(Condition::Stalled),
            oom: Tracker::new(Condition::OomKill),
            smooth_cpu: Ewma::new(SMOOTHING),
            smooth_network: Ewma::new(SMOOTHING),
            last_oom: None,
        }
    }
}

impl Conditions {
    /// Judges new values; each change is told once. Calling it again with the same time changes nothing.
    pub fn step(
        &mut self,
        now: Time,
        values: &Values,
        thresholds: &Thresholds,
        mut tell: impl FnMut(Change),
    ) {
        let hold = Duration::from_millis(u64::from(thresholds.hold_ms));
        // A mean over a span is full use over a part of it: that part began so long ago.
        let began = |mean: f64| now.before(values.span.mul_f64(mean.clamp(0.0, 1.0)));
        let cpu = self.smooth_cpu.update(now, values.cpu);
        if let Some((smooth, raw)) = cpu.zip(values.cpu) {
            self.cpu.step(now, began(raw), smooth, thresholds.cpu_high, hold).map(&mut tell);
        }
        if let Some(memory) = values.memory {
            self.memory.step(now, now, memory, thresholds.memory_high, hold).map(&mut tell);
        }
        let network = self.smooth_network.update(now, values.network);
        if let Some((smooth, raw)) = network.zip(values.network) {
            self.network.step(now, began(raw), smooth, thresholds.network_high, hold).map(&mut tell);
        }
        if let Some(stall) = stall(values) {
            self.stalled.step(now, now, stall, STALLED_HIGH, hold).map(&mut tell);
        }
        if self.last_oom.is_some_and(|last| now.since(last) < OOM_STANDS) {
            self.oom.step(now, now, 1.0, BasisPoints::FULL, Duration::ZERO).map(&mut tell);
        } else if self.last_oom.take().is_some() {
            self.oom.step(now, now, 0.0, BasisPoints::FULL, Duration::ZERO).map(&mut tell);
        }
    }

    /// A process was killed for want of memory. Told at once.
    pub fn oom(&mut self, now: Time, mut tell: impl FnMut(Change)) {
        self.last_oom = Some(now);
        self.oom.step(now, now, 1.0, BasisPoints::FULL, Duration::ZERO).map(&mut tell);
    }

    /// Tells everything that stands, for a coordinator that is new.
    pub fn standing(&self, mut tell: impl FnMut(Change)) {
        for tracker in self.trackers() {
            if let State::Raised { since, value, .. } = tracker.state {
                tracker.change(Edge::Refresh, value, since).map(&mut tell);
            }
        }
    }

    /// Whether anything is at hand that wants frequent looks: a condition stands, or may soon.
    pub fn hot(&self) -> bool {
        self.trackers().iter().any(|tracker| tracker.state != State::Fine)
    }

    /// Whether this condition is raised.
    pub fn raised(&self, condition: Condition) -> bool {
        self.trackers().iter().any(|it| it.condition == condition && matches!(it.state, State::Raised { .. }))
    }

    fn trackers(&self) -> [&Tracker; 5] {
        [&self.cpu, &self.memory, &self.network, &self.stalled, &self.oom]
    }
}

/// One figure for how much a container stalls, 0 to 1; `None` when no share is known.
fn stall(values: &Values) -> Option<f64> {
    let memory = values.psi_memory.map(|share| (share * MEMORY_STALL_WEIGHT).min(1.0));
    [values.psi_cpu, values.queued, memory].into_iter().flatten().reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STEP_MS: u64 = 100;

    /// Feeds CPU values ten times a second and collects (edge, milliseconds after the start, age in milliseconds).
    fn edges(values: impl IntoIterator<Item = f64>) -> Vec<(Edge, u64, u64)> {
        let mut conditions = Conditions::default();
        let mut told = Vec::new();
        for (index, value) in (1_u64..).zip(values) {
            let now = Time::from_millis(10_000 + index * STEP_MS);
            let values =
                Values { cpu: Some(value), span: Duration::from_millis(STEP_MS), ..Values::default() };
            conditions.step(now, &values, &Thresholds::default(), |change| {
                let age = now.since(change.since).as_millis();
                told.push((change.edge, index * STEP_MS, u64::try_from(age).unwrap_or(0)));
            });
        }
        told
    }

    #[test]
    fn a_step_is_raised_within_hold_and_two_intervals_wherever_it_falls() {
        for part in [0.0, 0.1, 0.5, 0.74, 0.9] {
            let told = edges([0.05, part].into_iter().chain([1.0; 10]));
            // The load began within the second sample, (1 - part) of an interval after 100 ms.
            let (edge, at_ms, _) = told[0];
            assert_eq!(edge, Edge::Raise);
            assert!(at_ms <= 200 + 300 + 100, "part {part}: raised {at_ms} ms after the start");
            assert!(at_ms >= 400, "part {part}: the hold was cut short, {at_ms} ms");
        }
    }

    #[test]
    fn a_short_spike_says_nothing() {
        assert_eq!(edges([0.1, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]), []);
    }

    #[test]
    fn values_around_the_threshold_do_not_flutter() {
        let told = edges((0..60).map(|index| if index % 2 == 0 { 0.78 } else { 0.71 }));
        assert_eq!(told.iter().filter(|(edge, ..)| *edge == Edge::Raise).count(), 1, "{told:?}");
        assert!(told.iter().all(|(edge, ..)| *edge != Edge::Clear), "{told:?}");
    }

    #[test]
    fn it_is_refreshed_every_second_and_cleared_below_the_lower_threshold() {
        let told = edges([0.9; 30].into_iter().chain([0.7; 5]).chain([0.5; 3]));
        let kinds: Vec<Edge> = told.iter().map(|(edge, ..)| *edge).collect();
        assert_eq!(
            kinds,
            [Edge::Raise, Edge::Refresh, Edge::Refresh, Edge::Refresh, Edge::Clear],
            "{told:?}"
        );
        assert!(told[1].2 > told[0].2, "a refresh carries the age of the raise: {told:?}");
        // 0.7 lies between 0.85 x 0.75 and 0.75.
        assert_eq!(told[4].1, 3_600);
        assert_eq!(told[4].2, 0);
    }

    #[test]
    fn unknown_neither_clears_nor_raises() {
        let mut conditions = Conditions::default();
        let mut told = Vec::new();
        for index in 0..20_u64 {
            let cpu = (index < 10).then_some(1.0);
            let values = Values { cpu, span: Duration::from_millis(100), ..Values::default() };
            let now = Time::from_millis(1_000 + index * 100);
            conditions.step(now, &values, &Thresholds::default(), |change| told.push(change.edge));
        }
        assert_eq!(told, [Edge::Raise]);
        assert!(conditions.raised(Condition::CpuHigh));
        let mut again = Vec::new();
        conditions.standing(|change| again.push((change.condition, change.edge)));
        assert_eq!(again, [(Condition::CpuHigh, Edge::Refresh)]);
    }

    #[test]
    fn memory_stalls_weigh_more_than_cpu_stalls() {
        let stalls = |psi_cpu, psi_memory| stall(&Values { psi_cpu, psi_memory, ..Values::default() });
        assert_eq!(stalls(None, None), None);
        assert_eq!(stalls(Some(0.2), None), Some(0.2));
        assert!(stalls(Some(0.2), Some(0.11)).is_some_and(|share| share >= STALLED_HIGH.ratio()));
    }

    #[test]
    fn busy_is_not_stalled_and_waiting_on_the_run_queue_is() {
        let told = |queued| {
            let mut conditions = Conditions::default();
            let mut told = Vec::new();
            for step in 0..10 {
                let now = Time::from_millis(10_000 + step * STEP_MS);
                let span = Duration::from_millis(STEP_MS);
                let values = Values { cpu: Some(1.0), psi_cpu: Some(0.1), queued, span, ..Values::default() };
                conditions.step(now, &values, &Thresholds::default(), |change| told.push(change.condition));
            }
            told
        };
        assert_eq!(told(None), [Condition::CpuHigh]);
        assert_eq!(told(Some(0.1)), [Condition::CpuHigh]);
        assert!(told(Some(0.5)).contains(&Condition::Stalled), "half of what tasks want is waiting");
    }

    #[test]
    fn a_kill_is_told_at_once_and_stands_for_a_while() {
        let mut conditions = Conditions::default();
        let mut told = Vec::new();
        let start = Time::from_millis(5_000);
        conditions.oom(start, |change| told.push((change.edge, change.since)));
        for seconds in 1..20 {
            let now = start + Duration::from_secs(seconds);
            conditions.step(now, &Values::default(), &Thresholds::default(), |change| {
                told.push((change.edge, change.since));
            });
        }
        assert_eq!(told.first(), Some(&(Edge::Raise, start)));
        assert_eq!(told.last(), Some(&(Edge::Clear, start + Duration::from_secs(10))));
    }

    proptest! {
        #[test]
        fn edges_alternate_and_refreshes_stand_between(
            values in proptest::collection::vec(proptest::option::of(0.0_f64..1.2), 0..200)
        ) {
            let mut conditions = Conditions::default();
            let mut raised = false;
            let mut now = Time::from_millis(1_000);
            for value in values {
                now = now + Duration::from_millis(100);
                let values = Values { cpu: value, span: Duration::from_millis(100), ..Values::default() };
                let mut changes = Vec::new();
                conditions.step(now, &values, &Thresholds::default(), |change| changes.push(change));
                for change in changes {
                    prop_assert!(change.since <= now);
                    prop_assert_eq!(raised, change.edge != Edge::Raise);
                    raised = change.edge != Edge::Clear;
                }
            }
            prop_assert_eq!(raised, conditions.raised(Condition::CpuHigh));
        }
    }
}
