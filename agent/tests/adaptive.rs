//! The adaptive rate against the fixed one, over every moment at which a load can begin: an alert comes within the hold
//! and two sampling intervals with either; of the network, where the hold is no whole number of intervals, one more.
//! Pace and state are the real ones; only the sampler's reading is played.

use std::time::Duration;

use proptest::prelude::*;
use swarmguard_agent::{
    model::{Capacity, Limits},
    pace::{Pace, Tick},
    sources::{
        cpu::CpuStat,
        group::FastReading,
        network::{NetworkReading, Traffic},
    },
    state::{Agent, Told},
};
use swarmguard_common::{
    domain::{Condition, Edge},
    labels::Thresholds,
    time::Time,
    wire::agent::{Hello, ToAgent, ToCoordinator},
};

const INTERVAL: Duration = Duration::from_millis(100);
const MEMORY: u64 = 256 << 20;
const LINK_MBPS: u32 = 1_000;
const CPUS_MILLIS: u32 = 4_000;

/// Fastest that memory is filled here, in bytes a microsecond of CPU time: 16 GB/s.
const FILLS: f64 = 16_000.0;

/// What one container does from `begins_us` on. Before, it does nothing but what `resting` says.
#[derive(Clone, Copy, Debug)]
struct Load {
    begins_us: u64,
    what: Condition,
    /// Share of what it may use; of the threshold on, for 1 is all there is.
    level: f64,
    /// CPU that it and its neighbour use all the time, in thousandths of a CPU.
    resting_millis: f64,
    hold_ms: u32,
}

impl Load {
    fn since(&self, us: u64) -> f64 {
        us.saturating_sub(self.begins_us) as f64
    }

    fn cpu_usec(&self, us: u64) -> f64 {
        let resting = us as f64 * self.resting_millis / 1_000.0;
        resting
            + match self.what {
                Condition::CpuHigh => self.since(us) * self.level,
                // What filling costs; what receives may cost the receiver nothing.
                Condition::MemoryHigh => (self.memory(us) - self.memory(0)) / FILLS,
                _ => 0.0,
            }
    }

    fn memory(&self, us: u64) -> f64 {
        let resting = 0.2 * MEMORY as f64;
        match self.what {
            Condition::MemoryHigh => {
                (resting + self.since(us) * FILLS).min(self.level * MEMORY as f64).max(resting)
            }
            _ => resting,
        }
    }

    fn received(&self, us: u64) -> f64 {
        match self.what {
            // Mbit/s are bits a microsecond.
            Condition::NetworkHigh => self.since(us) * self.level * f64::from(LINK_MBPS) / 8.0,
            _ => 0.0,
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and small")]
fn whole(value: f64) -> u64 {
    value as u64
}

/// Plays the load until it is told, and answers microseconds from its beginning to that.
fn told_after(load: Load, adaptive: bool) -> Option<u64> {
    let hello = Hello {
        node: "node1".parse().expect("an ID"),
        epoch: 1,
        hostname: String::new(),
        version: String::new(),
        cpu_millis: CPUS_MILLIS,
        memory_bytes: 16 * MEMORY,
        link_mbps: None,
        blind: false,
    };
    let capacity =
        Capacity { cpu_millis: CPUS_MILLIS, memory_bytes: 16 * MEMORY, network_mbps: Some(LINK_MBPS) };
    let mut agent = Agent::new(hello, capacity, 10);
    agent.learn(ToAgent::Thresholds {
        default: Thresholds { hold_ms: load.hold_ms, ..Thresholds::default() },
        services: Default::default(),
        containers: Default::default(),
    });
    let limits = Limits { cpu_millis: Some(1_000), memory_bytes: Some(MEMORY) };
    let start = Time::from_millis(10_000);
    let handles = ["ab", "cd"]
        .map(|id| agent.born(start, &id.repeat(32).parse().expect("an ID"), limits).expect("there is room"));
    let (mut pace, mut told, mut hot) = (Pace::default(), Told::default(), false);
    for tick in 0..100_u32 {
        let now = start + INTERVAL * tick;
        let us = u64::try_from((INTERVAL * tick).as_micros()).expect("short");
        let neighbour = us as f64 * load.resting_millis / 1_000.0;
        let used_usec = Some(whole(load.cpu_usec(us) + neighbour));
        if adaptive && !pace.due(now, Tick { used_usec, alarming: agent.alarming(), hot }) {
            continue;
        }
        let busy = [load.cpu_usec(us), neighbour];
        let received = [load.received(us), 0.0];
        let memory = [load.memory(us), load.memory(0)];
        hot = false;
        for (at, handle) in handles.iter().enumerate() {
            let cpu = CpuStat { usage_usec: whole(busy[at]), periods: None };
            let reading = FastReading { cpu: Some(cpu), memory_bytes: Some(whole(memory[at])) };
            let traffic = Traffic { rx_bytes: whole(received[at]), tx_bytes: 0 };
            let network = NetworkReading { traffic, ..NetworkReading::default() };
            hot |= agent.sample(now, *handle, reading, Some(network));
        }
        let raised = |message: &ToCoordinator| matches!(message, ToCoordinator::Alert(alert) if alert.parts() == Some((load.what, Edge::Raise)));
        if agent.messages(now, &mut told, 1_000).iter().any(raised) {
            return Some(us - load.begins_us);
        }
    }
    None
}

fn load() -> impl Strategy<Value = Load> {
    let what =
        prop_oneof![Just(Condition::CpuHigh), Just(Condition::MemoryHigh), Just(Condition::NetworkHigh)];
    let hold = prop_oneof![Just(300_u32), 100_u32..1_000];
    (1_000_000_u64..2_000_000, what, 0.0_f64..150.0, hold).prop_map(
        |(begins_us, what, resting_millis, hold_ms)| Load {
            begins_us,
            what,
            level: 1.0,
            resting_millis,
            hold_ms,
        },
    )
}

proptest! {
    #[test]
    fn a_full_load_is_told_within_the_hold_and_two_intervals(load in load()) {
        let odd = load.what == Condition::NetworkHigh && load.hold_ms % 100 != 0;
        let interval_us = u64::try_from(INTERVAL.as_micros()).expect("short");
        let most = u64::from(load.hold_ms) * 1_000 + if odd { 3 } else { 2 } * interval_us;
        // Memory is not at its threshold before it has been filled so far.
        let filling = if load.what == Condition::MemoryHigh { whole(0.6 * MEMORY as f64 / FILLS) } else { 0 };
        for adaptive in [false, true] {
            let after = told_after(load, adaptive);
            prop_assert!(after.is_some_and(|us| us <= most + filling), "adaptive {}: {:?}", adaptive, after);
        }
    }

    /// However close to its threshold a load is: what the fixed rate tells the adaptive one tells, and at most one
    /// interval later; of networks, which may begin unseen, at most three.
    #[test]
    fn any_load_is_told_about_as_soon_as_with_the_fixed_rate(load in load(), over in 0.81_f64..1.0) {
        let load = Load { level: over, ..load };
        let fixed = told_after(load, false).expect("every such load is told");
        let adaptive = told_after(load, true).expect("every load that the fixed rate tells");
        let intervals = if load.what == Condition::NetworkHigh { 3 } else { 1 };
        let later = intervals * u64::try_from(INTERVAL.as_micros()).expect("short");
        prop_assert!(adaptive <= fixed + later, "{} us, and {} us with the fixed rate", adaptive, fixed);
    }
}

#[test]
fn nothing_that_moves_is_sampled_seldom() {
    let mut pace = Pace::default();
    let passes = (0..100_u32).filter(|tick| {
        let now = Time::from_millis(10_000) + INTERVAL * *tick;
        pace.due(now, Tick { used_usec: Some(u64::from(*tick) * 100), alarming: None, hot: false })
    });
    assert_eq!(passes.count(), 34);
}
