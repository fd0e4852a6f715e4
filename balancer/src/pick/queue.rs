//! A simulated queue: four replicas whose CPU is limited by quota and period, as containers' is, requests that come evenly
//! and take exponentially long. What the algorithms are tuned by, and what must not get worse.

use std::collections::VecDeque;

use fastrand::Rng;
use swarmguard_common::labels::Algorithm;

use super::{Candidate, Tuning, pick};

/// Replicas.
const REPLICAS: usize = 4;
/// Requests that one works on at a time.
const SLOTS: usize = 4;
/// Step of the simulation, in milliseconds.
const STEP: f64 = 0.1;
/// Period of the CPU limit, in milliseconds, and what may be used in it.
const PERIOD: f64 = 10.0;
const QUOTA: f64 = 2.0;
/// Not counted at the beginning, in milliseconds.
const WARM_UP: f64 = 3_000.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Equal,
    /// The first one has half of the CPU, and needs twice as much of it.
    Slow,
    /// The first one has a quarter of its CPU for half a second out of two.
    Bursts,
}

#[derive(Default)]
struct Server {
    /// Work left and when it came.
    running: Vec<(f64, f64)>,
    queue: VecDeque<(f64, f64)>,
    left: f64,
    refilled: f64,
    used: f64,
    score: f64,
    sent: u32,
    latency: f64,
    turn: u32,
    hits: u32,
}

struct Outcome {
    p99: f64,
    p999: f64,
    spread: f64,
}

impl Server {
    fn in_flight(&self) -> usize {
        self.running.len() + self.queue.len()
    }

    fn candidate(&self, cost: f64, turn: u32) -> Candidate {
        #[expect(clippy::cast_possible_truncation, reason = "figures of a simulation")]
        Candidate {
            leases: u32::try_from(self.in_flight()).expect("few"),
            others: 0,
            score: Some((self.score + cost * f64::from(self.sent)) as f32),
            latency_us: (self.latency > 0.0).then_some(self.latency as f32 * 1e3),
            strained: false,
            rested: turn.wrapping_sub(self.turn),
        }
    }

    /// Works for one step; calls `done` with how long each request took that ended.
    fn work(&mut self, now: f64, smooth: f64, mut done: impl FnMut(f64)) {
        let mut cpu = STEP.min(self.left);
        while cpu > 1e-9 && !self.running.is_empty() {
            let share = cpu / f64::from(u32::try_from(self.running.len()).expect("few"));
            let share = self.running.iter().map(|(work, _)| *work).fold(share, f64::min);
            for (work, _) in &mut self.running {
                *work -= share;
                cpu -= share;
                self.left -= share;
                self.used += share;
            }
            while let Some(at) = self.running.iter().position(|(work, _)| *work <= 1e-9) {
                let company = f64::from(u32::try_from(self.in_flight()).expect("few"));
                let took = now - self.running.swap_remove(at).1;
                let sample = took / company;
                let first = self.latency <= 0.0;
                self.latency = if first { sample } else { self.latency + (sample - self.latency) / smooth };
                done(took);
                self.running.extend(self.queue.pop_front());
            }
        }
    }
}

fn simulate(algorithm: Algorithm, kind: Kind, seed: u64) -> Outcome {
    let mut rng = Rng::with_seed(seed);
    let gap = 1_000.0 / if kind == Kind::Equal { 480.0 } else { 380.0 };
    let mut all: Vec<Server> = std::iter::repeat_with(Server::default).take(REPLICAS).collect();
    for server in &mut all {
        server.refilled = rng.f64() * PERIOD;
    }
    let (mut took, mut turn, mut due, mut figures, mut cost, mut now) =
        (Vec::new(), 0_u32, 0.0, 1_000.0, 0.0, 0.0);
    while now < 40_000.0 {
        now += STEP;
        for (place, server) in
            all.iter_mut().enumerate().filter(|(_, server)| now >= server.refilled + PERIOD)
        {
            server.refilled += PERIOD;
            let part = match kind {
                Kind::Slow if place == 0 => 0.5,
                Kind::Bursts if place == 0 && now % 2_000.0 < 500.0 => 0.25,
                _ => 1.0,
            };
            server.left = QUOTA * part;
        }
        if now >= figures {
            figures += 1_000.0;
            let sent: u32 = all.iter().map(|server| server.sent).sum();
            let mut moving = 0.0;
            for (place, server) in all.iter_mut().enumerate() {
                let limit = if kind == Kind::Slow && place == 0 { 100.0 } else { 200.0 };
                let cpu = (server.used / limit * 100.0).min(100.0) * 0.5;
                moving += cpu;
                (server.score, server.used, server.sent) = (cpu + 6.0, 0.0, 0);
            }
            cost = moving / f64::from(sent.max(1));
        }
        while due <= now {
            due += gap;
            turn += 1;
            let candidates: Vec<Candidate> = all.iter().map(|server| server.candidate(cost, turn)).collect();
            let (place, _) =
                pick(algorithm, &candidates, Tuning::default(), u64::from(turn), &mut rng).expect("some");
            let server = &mut all[place];
            (server.turn, server.hits, server.sent) = (turn, server.hits + 1, server.sent + 1);
            let slow = if kind == Kind::Slow && place == 0 { 2.0 } else { 1.0 };
            let work = (-(1.0 - rng.f64()).ln()).min(5.0) * slow;
            if server.running.len() < SLOTS {
                server.running.push((work, now));
            } else {
                server.queue.push_back((work, now));
            }
        }
        for server in &mut all {
            server.work(now, f64::from(crate::replica::SMOOTH), |ms| {
                if now > WARM_UP {
                    took.push(ms);
                }
            });
        }
    }
    took.sort_by(f64::total_cmp);
    let most = all.iter().map(|server| server.hits).max().expect("four");
    let sum: u32 = all.iter().map(|server| server.hits).sum();
    let spread = f64::from(most) * 4.0 / f64::from(sum) - 1.0;
    Outcome { p99: took[took.len() * 99 / 100], p999: took[took.len() * 999 / 1_000], spread }
}

/// Means over a few seeds.
fn mean(algorithm: Algorithm, kind: Kind) -> Outcome {
    const SEEDS: u32 = 3;
    let all: Vec<Outcome> = (0..SEEDS).map(|seed| simulate(algorithm, kind, u64::from(seed))).collect();
    let mean = |of: fn(&Outcome) -> f64| all.iter().map(of).sum::<f64>() / f64::from(SEEDS);
    let mean = Outcome { p99: mean(|it| it.p99), p999: mean(|it| it.p999), spread: mean(|it| it.spread) };
    eprintln!("{algorithm:?} {kind:?}: p99 {:.1} p99.9 {:.1} spread {:.3}", mean.p99, mean.p999, mean.spread);
    mean
}

#[test]
fn equal_replicas_are_shared_equally_and_no_algorithm_is_worse_than_turns() {
    let turns = mean(Algorithm::RoundRobin, Kind::Equal);
    for (_, algorithm) in Algorithm::ALL {
        let outcome = mean(algorithm, Kind::Equal);
        assert!(outcome.spread < 0.15, "{algorithm:?}: {}", outcome.spread);
        assert!(outcome.p99 <= turns.p99 * 1.01, "{algorithm:?}: {} {}", outcome.p99, turns.p99);
    }
    // Fewest in flight with ties by lot, as it was: 17.9 and 24.4 ms.
    let (lease, hcl) = (mean(Algorithm::Lease, Kind::Equal), mean(Algorithm::Hcl, Kind::Equal));
    assert!(lease.p99 < 18.5 && lease.p999 < 25.5, "{} {}", lease.p99, lease.p999);
    assert!(hcl.p99 < 19.0 && hcl.p999 < 26.5, "{} {}", hcl.p99, hcl.p999);
}

#[test]
fn a_slow_replica_and_one_in_bursts_are_left_to_what_they_can_do() {
    for kind in [Kind::Slow, Kind::Bursts] {
        let turns = mean(Algorithm::RoundRobin, kind);
        for algorithm in [Algorithm::Metrics, Algorithm::Hybrid] {
            let outcome = mean(algorithm, kind);
            assert!(outcome.p99 < turns.p99 / 2.0, "{algorithm:?} {kind:?}: {} {}", outcome.p99, turns.p99);
        }
        // Fewest in flight with ties by lot: 44 and 84 ms where one is slow, 20 and 57 where one is in bursts.
        for algorithm in [Algorithm::Lease, Algorithm::Hcl] {
            let outcome = mean(algorithm, kind);
            assert!(
                outcome.p99 < 20.0 && outcome.p999 < 40.0,
                "{algorithm:?} {kind:?}: {} {}",
                outcome.p99,
                outcome.p999
            );
        }
    }
}
