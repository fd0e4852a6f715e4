//! Where requests go when replicas are not alike: tail latency, failures and spread, by algorithm.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;

use crate::{
    load::{self, Outcome},
    peers::{self, Peer},
    report::Report,
};

/// What is compared. `metrics` and `hybrid` need figures from agents, which are not here: they would fall back.
const CONTENDERS: [Peer; 4] = [
    Peer::SwarmGuard("round-robin"),
    Peer::SwarmGuard("lease"),
    Peer::SwarmGuard("hcl"),
    Peer::HaProxy("leastconn"),
];

/// Kinds of replicas (see [`crate::backend::Kind`]) with the rate that leaves them some room, in requests a second.
/// Four replicas with four slots and 8 ms a request can do 2,000.
const SCENARIOS: [(&str, u32); 4] = [("equal", 1_200), ("slow", 900), ("bursts", 900), ("errors", 900)];

/// Every scenario with every contender, in turns.
pub fn measure(rounds: u32, seconds: u32, report: &mut Report) -> Result<()> {
    for (kind, rate) in SCENARIOS {
        let mut all: BTreeMap<Peer, Vec<Outcome>> = BTreeMap::new();
        for _ in 0..rounds {
            for peer in CONTENDERS {
                let outcome = one(kind, rate, &peer, seconds)?;
                all.entry(peer).or_default().push(outcome);
            }
        }
        let figures = |peer: &Peer, of: &dyn Fn(&Outcome) -> f64| -> Vec<f64> {
            all.get(peer).map(|outcomes| outcomes.iter().map(of).collect()).unwrap_or_default()
        };
        let p99 = |outcome: &Outcome| outcome.quantile_ms(0.99);
        let [rr, _, hcl, haproxy] = CONTENDERS;
        for (suffix, peer) in [("vs_rr", &rr), ("vs_haproxy", &haproxy)] {
            let name = format!("lb.p99_{kind}_{suffix}");
            report.compare(&name, "ms", &figures(&hcl, &p99), &peer.name(), &figures(peer, &p99));
        }
        for peer in &CONTENDERS {
            let name = peer.name().replace(' ', "_");
            report.add(format!("lb.p50_{kind}.{name}"), "ms", &figures(peer, &|it| it.quantile_ms(0.5)));
            report.add(format!("lb.p99_{kind}.{name}"), "ms", &figures(peer, &p99));
            report.add(format!("lb.p999_{kind}.{name}"), "ms", &figures(peer, &|it| it.quantile_ms(0.999)));
            report.add(format!("lb.failed_{kind}.{name}"), "%", &figures(peer, &Outcome::failed_percent));
            report.add(format!("lb.spread_{kind}.{name}"), "%", &figures(peer, &Outcome::spread_percent));
        }
    }
    Ok(())
}

fn one(kind: &str, rate: u32, peer: &Peer, seconds: u32) -> Result<Outcome> {
    let ports = (0..4).map(|_| peers::free_port()).collect::<Result<Vec<u16>>>()?;
    let _replicas = peers::start_replicas(kind, &ports, None)?;
    let proxy = peers::start(peer, &ports, None)?;
    // Connections are made, latencies learnt, the slow start is over.
    load::run(proxy.address, rate / 2, Duration::from_secs(1))?;
    load::run(proxy.address, rate, Duration::from_secs(seconds.into()))
}
