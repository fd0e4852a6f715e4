//! The rate model as a whole, from readings to figures and alerts, against counters and clocks that misbehave: wraps,
//! resets, samples without time in between, clocks that step back or stand still for minutes.

use std::time::Duration;

use proptest::prelude::*;
use swarmguard_agent::{
    model::{Capacity, Limits},
    sources::{
        cpu::CpuStat,
        group::{FastReading, SlowReading},
        network::{NetworkReading, Traffic},
        pressure::Pressure,
    },
    state::{Agent, Figures, Told},
};
use swarmguard_common::{
    domain::{Condition, Edge},
    time::Time,
    wire::agent::{Hello, ToCoordinator},
};

const MIB: u64 = 1 << 20;
const CPUS_MILLIS: u32 = 2_000;
const LINK_MBPS: u32 = 1_000;

fn agent() -> (Agent, u32) {
    let hello = Hello {
        node: "node1".parse().expect("an ID"),
        epoch: 1,
        hostname: String::new(),
        version: String::new(),
        cpu_millis: CPUS_MILLIS,
        memory_bytes: 1_024 * MIB,
        link_mbps: None,
        blind: false,
    };
    let capacity =
        Capacity { cpu_millis: CPUS_MILLIS, memory_bytes: 1_024 * MIB, network_mbps: Some(LINK_MBPS) };
    let mut agent = Agent::new(hello, capacity, 10);
    let id = "ab".repeat(32).parse().expect("an ID");
    let handle = agent.born(Time::from_millis(1), &id, Limits::default()).expect("there is room");
    (agent, handle)
}

fn figures(agent: &Agent) -> Figures {
    agent.containers().values().next().expect("one container").figures
}

fn edges(agent: &mut Agent, now: Time) -> Vec<(Condition, Edge)> {
    let messages = agent.messages(now, &mut Told::default(), 10_000);
    let alerts = messages.iter().filter_map(|message| match message {
        ToCoordinator::Alert(alert) => alert.parts(),
        _ => None,
    });
    alerts.collect()
}

/// One sample: how the clock moves before it, in microseconds, and the counters.
#[derive(Clone, Debug)]
struct Sample {
    step_us: i64,
    cpu_usec: u64,
    periods: (u64, u64),
    traffic: Option<(u64, u64)>,
    stalled_usec: u64,
    kills: u64,
}

fn counter() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0_u64..1_000, (u64::MAX - 1_000)..=u64::MAX, Just(0), Just(u64::MAX)]
}

fn sample() -> impl Strategy<Value = Sample> {
    let step = prop_oneof![Just(0_i64), 1_i64..2_000_000, -2_000_000_i64..0, Just(600_000_000)];
    let traffic = proptest::option::of((counter(), counter()));
    (step, counter(), (counter(), counter()), traffic, counter(), counter()).prop_map(
        |(step_us, cpu_usec, periods, traffic, stalled_usec, kills)| Sample {
            step_us,
            cpu_usec,
            periods,
            traffic,
            stalled_usec,
            kills,
        },
    )
}

/// A container that uses 30 % of the node and a fifth of the link, whose counters begin at `start`.
fn steady(agent: &mut Agent, handle: u32, now: Time, start: u64, elapsed: Duration) {
    let micros = u64::try_from(elapsed.as_micros()).expect("short");
    let cpu = CpuStat { usage_usec: start.wrapping_add(micros * 6 / 10), periods: None };
    let bytes = start.wrapping_add(micros * 25);
    let network =
        NetworkReading { traffic: Traffic { rx_bytes: bytes, tx_bytes: 0 }, ..NetworkReading::default() };
    let reading = FastReading { cpu: Some(cpu), memory_bytes: Some(MIB) };
    agent.sample(now, handle, reading, Some(network));
}

proptest! {
    #[test]
    fn no_counters_and_no_clock_make_a_figure_that_is_none(
        samples in proptest::collection::vec(sample(), 1..60)
    ) {
        let (mut agent, handle) = agent();
        let mut now = Time::from_millis(10_000);
        for it in samples {
            now = match u64::try_from(it.step_us) {
                Ok(forward) => now + Duration::from_micros(forward),
                Err(_) => now.before(Duration::from_micros(it.step_us.unsigned_abs())),
            };
            let cpu = CpuStat { usage_usec: it.cpu_usec, periods: Some(it.periods) };
            let network = it.traffic.map(|(rx_bytes, tx_bytes)| NetworkReading {
                traffic: Traffic { rx_bytes, tx_bytes },
                ..NetworkReading::default()
            });
            agent.sample(now, handle, FastReading { cpu: Some(cpu), memory_bytes: Some(it.cpu_usec) }, network);
            let psi = Some(Pressure { some_usec: it.stalled_usec, full_usec: None });
            let slow = SlowReading { psi_cpu: psi, psi_memory: psi, oom_kills: Some(it.kills), ..SlowReading::default() };
            agent.sample_slow(now, handle, slow);
            let figures = figures(&agent);
            let all = [figures.cpu_millis, figures.cpu, figures.rx_bytes_per_s, figures.tx_bytes_per_s, figures.network];
            for figure in all.into_iter().flatten() {
                prop_assert!(figure.is_finite() && figure >= 0.0, "{figures:?}");
            }
            let shares = [figures.throttled, figures.slow.psi_cpu, figures.slow.psi_memory];
            for share in shares.into_iter().flatten() {
                prop_assert!((0.0..=1.0).contains(&share), "{figures:?}");
            }
        }
        // Whatever happened: edges of each condition alternate.
        let told = edges(&mut agent, now);
        for condition in [Condition::CpuHigh, Condition::NetworkHigh, Condition::Stalled, Condition::OomKill] {
            let mut raised = false;
            for (_, edge) in told.iter().filter(|(of, _)| *of == condition) {
                prop_assert_eq!(raised, *edge != Edge::Raise, "{:?}", told);
                raised = *edge != Edge::Clear;
            }
        }
    }

    #[test]
    fn a_steady_load_shows_through_wraps_and_resets_and_never_alerts(
        // Between them lies where a reset cannot be told from a wrap.
        start in prop_oneof![0..=u64::MAX - (1 << 54), u64::MAX - 1_000..=u64::MAX],
        resets in proptest::collection::btree_set(1_u64..80, 0..6),
        pauses in 0_u64..5
    ) {
        let (mut agent, handle) = agent();
        let (mut now, mut began) = (Time::from_millis(10_000), Time::from_millis(10_000));
        let mut start = start;
        for step in 0..100_u64 {
            if resets.contains(&step) {
                // A new life of the cgroup: the counters begin at zero.
                (start, began) = (0, now);
            }
            steady(&mut agent, handle, now, start, now.since(began));
            // Twice at one instant: no time passed, so nothing is known of it, and nothing is made up.
            if step % 17 == pauses {
                steady(&mut agent, handle, now, start, now.since(began));
            }
            now = now + Duration::from_millis(100);
        }
        let figures = figures(&agent);
        let share = figures.cpu.expect("known");
        prop_assert!((share - 0.3).abs() < 0.001, "{figures:?}");
        let network = figures.network.expect("known");
        prop_assert!((network - 0.2).abs() < 0.001, "{figures:?}");
        prop_assert_eq!(edges(&mut agent, now), []);
    }

    #[test]
    fn a_clock_that_steps_back_makes_no_alert_and_is_got_over(
        at in 1_u64..60, back_ms in 1_u64..3_600_000, load in 0.0_f64..0.6
    ) {
        let (mut agent, handle) = agent();
        let mut now = Time::from_millis(10_000_000);
        let mut used = 0.0;
        for step in 0..100_u64 {
            if step == at {
                now = now.before(Duration::from_millis(back_ms));
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and small")]
            let cpu = CpuStat { usage_usec: used as u64, periods: None };
            agent.sample(now, handle, FastReading { cpu: Some(cpu), memory_bytes: None }, None);
            now = now + Duration::from_millis(100);
            used += load * f64::from(CPUS_MILLIS) * 100.0;
        }
        let share = figures(&agent).cpu.expect("known again");
        prop_assert!((share - load).abs() < 0.001, "{share} for {load}");
        prop_assert_eq!(edges(&mut agent, now), []);
    }
}

#[test]
fn a_network_that_was_not_read_anew_counts_as_silent_and_its_rate_is_over_the_time_since_then() {
    let (mut agent, handle) = agent();
    let start = Time::from_millis(10_000);
    let mut sample = |millis: u64, rx_bytes: u64, unread: bool| {
        let traffic = Traffic { rx_bytes, tx_bytes: 0 };
        let network = NetworkReading { traffic, unread, ..NetworkReading::default() };
        let reading = FastReading { cpu: Some(CpuStat::default()), memory_bytes: None };
        agent.sample(start + Duration::from_millis(millis), handle, reading, Some(network));
        figures(&agent).rx_bytes_per_s
    };
    sample(0, 1_000, false);
    assert_eq!(sample(100, 1_000, false), Some(0.0));
    for millis in [200, 300] {
        assert_eq!(sample(millis, 1_000, true), Some(0.0));
    }
    // 3 MB since it was last told to be silent 100 ms ago: spread over 300 ms they would be a third of what they are.
    let seen = sample(400, 3_001_000, false).expect("known");
    let smoothed = 30e6 * (1.0 - (-0.1_f64 / 0.5).exp());
    assert!((seen - smoothed).abs() < 1.0, "{seen}, not {smoothed}");
}

#[test]
fn minutes_asleep_are_a_mean_over_them_and_no_alert() {
    let (mut agent, handle) = agent();
    let start = Time::from_millis(10_000);
    let mut sample = |at_s: u64, usage_usec: u64| {
        let cpu = CpuStat { usage_usec, periods: None };
        let now = start + Duration::from_secs(at_s);
        agent.sample(now, handle, FastReading { cpu: Some(cpu), memory_bytes: None }, None);
    };
    sample(0, 0);
    sample(1, 100_000);
    // Suspended for ten minutes, and a second at work before and after.
    sample(601, 2_100_000);
    let figures = figures(&agent);
    assert!(figures.cpu.is_some_and(|share| share < 0.01), "{figures:?}");
    assert_eq!(edges(&mut agent, start + Duration::from_secs(601)), []);
}
