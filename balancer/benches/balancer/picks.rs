//! A whole pick: replicas read, one chosen, the lease taken and returned.

use std::{hint::black_box, rc::Rc};

use anyhow::{Context as _, Result};
use swarmguard_balancer::{
    choose::{Chooser, Wish, example_service},
    pick::Tuning,
    replica::{Load, Outcome},
};
use swarmguard_common::labels::Algorithm;
use swarmguard_runtime::clock;
use swarmguard_tests::figures::{Report, Row, median};

/// Picks timed together.
const TOGETHER: u32 = 5_000;

/// Every algorithm at 3, 100 and 1,000 replicas.
pub fn measure(rounds: u32, report: &mut Report) -> Result<()> {
    let mut worst: Option<Vec<f64>> = None;
    for (word, algorithm) in Algorithm::ALL {
        for count in [3, 100, 1_000] {
            let values = (0..rounds).map(|_| one(algorithm, count)).collect::<Result<Vec<f64>>>()?;
            report.add(Row::of(&format!("lb.pick_ns.{word}.{count}"), "ns", "", &values));
            let slower = worst.as_ref().is_none_or(|worst| median(&values) > median(worst));
            if count == 100 && slower {
                worst = Some(values);
            }
        }
    }
    report.add(Row::of("lb.pick_ns", "ns", "<= 1000", &worst.context("no algorithm")?));
    Ok(())
}

fn one(algorithm: Algorithm, count: u16) -> Result<f64> {
    let start = clock::now();
    let service = example_service(algorithm, count, start);
    let chooser = Chooser::new(Rc::default(), Tuning::default(), 7);
    let mut spread = fastrand::Rng::with_seed(3);
    for replica in &service.replicas {
        let until = start + std::time::Duration::from_secs(3_600);
        let score = spread.f32() * 100.0;
        let load = Load { score, strained: false, in_flight: Some(3), latency_us: Some(4_000), until };
        replica.set_load(Some(load), start);
        let latency = std::time::Duration::from_micros(spread.u64(200..20_000));
        replica.record(Outcome::Answered(latency), start);
    }
    // A few requests in flight, as always under load.
    let mut held = std::collections::VecDeque::new();
    let mut pick = || {
        let choice = chooser.choose(&service, Wish::default(), start);
        held.push_back(choice.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?);
        if held.len() > usize::from(count) * 2 {
            held.pop_front();
        }
        anyhow::Ok(())
    };
    for _ in 0..TOGETHER {
        pick()?;
    }
    let begin = clock::now();
    for _ in 0..TOGETHER {
        black_box(pick()?);
    }
    Ok(clock::now().since(begin).as_secs_f64() * 1e9 / f64::from(TOGETHER))
}
