//! Where requests go when replicas are not alike: tail latency, failures and spread, by algorithm.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use swarmguard_tests::figures::{Report, Row};

use crate::{
    backend::{self, Kind, Replicas},
    load::{self, Outcome},
    peers::{self, Peer},
};

/// What is compared. Those of ours that weigh figures get them from agents, as they do in a swarm.
const CONTENDERS: [Peer; 7] = [
    Peer::SwarmGuard("round-robin"),
    Peer::SwarmGuard("hcl"),
    Peer::SwarmGuard("lease"),
    Peer::SwarmGuard("metrics"),
    Peer::SwarmGuard("hybrid"),
    Peer::HaProxy("leastconn"),
    Peer::HaProxy("random(2)"),
];

/// Kinds of replicas with the rate that leaves them some room, in requests a second. Four replicas that may use a fifth
/// of a CPU can do 800 requests of a millisecond; three of them, 600.
const SCENARIOS: [(&str, Kind, u32); 4] = [
    ("equal", Kind::Equal, 480),
    ("slow", Kind::Slow, 380),
    ("bursts", Kind::Bursts, 380),
    ("errors", Kind::Errors, 380),
];

/// Time to learn, before what counts.
const WARM_UP: Duration = Duration::from_secs(2);

/// Every scenario with every contender, in turns.
pub fn measure(rounds: u32, seconds: u32, report: &mut Report) -> Result<()> {
    let speed = backend::calibrate()?;
    for (name, kind, rate) in SCENARIOS {
        let mut all: BTreeMap<Peer, Vec<Outcome>> = BTreeMap::new();
        for _ in 0..rounds {
            for peer in CONTENDERS {
                let outcome = one(kind, rate, &peer, seconds, speed)?;
                all.entry(peer).or_default().push(outcome);
            }
        }
        let figures = |peer: &Peer, of: &dyn Fn(&Outcome) -> f64| -> Vec<f64> {
            all.get(peer).map(|outcomes| outcomes.iter().map(of).collect()).unwrap_or_default()
        };
        let p99 = |outcome: &Outcome| outcome.quantile_ms(0.99);
        let p50 = |outcome: &Outcome| outcome.quantile_ms(0.5);
        let p999 = |outcome: &Outcome| outcome.quantile_ms(0.999);
        let [rr, hcl, lease, metrics, hybrid, least, random] = CONTENDERS;
        let mut beside = |what: &str, of: &dyn Fn(&Outcome) -> f64, target, ours: &Peer, peer: &Peer| {
            let (algorithm, other) = (ours.word(), peer.word());
            let row = Row::of(
                &format!("lb.{what}_{name}.{algorithm}_vs_{other}"),
                "ms",
                target,
                &figures(ours, of),
            );
            report.add(row.beside(&peer.name(), &figures(peer, of)));
        };
        let against_rr = if name == "slow" { "<= 0.4 x peer" } else { "<= peer" };
        beside("p99", &p99, against_rr, &hcl, &rr);
        for ours in [&hcl, &lease] {
            for peer in [&least, &random] {
                beside("p99", &p99, "<= peer", ours, peer);
                beside("p999", &p999, "<= peer", ours, peer);
            }
            beside("p50", &p50, "<= 1.05 x peer", ours, &least);
        }
        // Figures are a second old: what was sent since counts, or all requests of a second go to one replica.
        for ours in [&metrics, &hybrid] {
            beside("p99", &p99, "<= peer", ours, &rr);
        }
        for peer in &CONTENDERS {
            let who = peer.word();
            let mut add = |what: &str, unit, of: &dyn Fn(&Outcome) -> f64| {
                report.add(Row::of(&format!("lb.{what}_{name}.{who}"), unit, "", &figures(peer, of)));
            };
            add("p50", "ms", &p50);
            add("p99", "ms", &p99);
            add("p999", "ms", &p999);
            add("failed", "%", &Outcome::failed_percent);
            add("spread", "%", &Outcome::spread_percent);
        }
    }
    Ok(())
}

fn one(kind: Kind, rate: u32, peer: &Peer, seconds: u32, speed: u64) -> Result<Outcome> {
    let replicas = Replicas::start(kind, speed)?;
    let proxy = peers::start(peer, &replicas.addresses, Some(replicas.metrics_port), None)?;
    // Connections are made, latencies learnt, figures are there, the slow start is over.
    load::run(proxy.address, rate / 2, WARM_UP)?;
    load::run(proxy.address, rate, Duration::from_secs(seconds.into()))
}
