//! HAProxy's `agent-check`: a TCP connection on which one line comes (`agent-send`) and one line goes. The line names the
//! service and the node, or an address of the replica: `shop_web w2`.
//!
//! | answer | when |
//! |---|---|
//! | `up ready 75%` | a replica serves there; so much of its configured weight |
//! | `up drain` | it is about to be stopped: no new requests, those in flight end |
//! | `down` | no replica serves there |
//! | nothing | what is known of Swarm is too old, or the line makes no sense: HAProxy then changes nothing |

use std::{net::IpAddr, sync::Arc, time::Duration};

use swarmguard_runtime::clock;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::{Backends, Kind, Replica};
use swarmguard_runtime::crowd::Crowd;

use crate::glance::Glance;

/// Connections at once; each lasts for one line.
const MAX_CONNECTIONS: usize = 512;
/// Of those, from one address.
const MAX_PER_ADDRESS: usize = 256;
/// Longest line.
const MAX_LINE: usize = 512;
/// Longest that a line may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// What is older is not answered from.
const OLDEST: Duration = Duration::from_secs(10);

/// Answers until the process ends.
pub async fn serve(listener: TcpListener, glance: Arc<Glance>) {
    let (places, crowd) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), Crowd::new(MAX_PER_ADDRESS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Some(own) = crowd.enter(peer.ip()) else { continue };
        let glance = Arc::clone(&glance);
        tokio::spawn(async move {
            // Who says nothing is answered nothing.
            let _ = tokio::time::timeout(PATIENCE, one(stream, peer.ip(), &glance)).await;
            drop((place, own));
        });
    }
}

async fn one(mut stream: TcpStream, from: IpAddr, glance: &Glance) -> std::io::Result<()> {
    let mut line = Vec::with_capacity(64);
    let mut byte = [0];
    while line.len() < MAX_LINE && stream.read(&mut byte).await? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    let (backends, now) = (glance.backends(), clock::now());
    let asked = std::str::from_utf8(&line).ok().and_then(|line| Asked::of(line.trim()));
    let Some(asked) = asked.filter(|_| now.since(backends.taken) < OLDEST) else { return Ok(()) };
    let (answer, going) = answer(&backends, &asked);
    if let Some(askers) = glance.askers() {
        let service_of = |task: &swarmguard_common::domain::TaskId| backends.service_of(task);
        askers.asked((from, Kind::HaProxy), now, [asked.service.to_owned()], &going, service_of);
    }
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// A line that makes sense.
struct Asked<'a> {
    service: &'a str,
    place: &'a str,
}

impl<'a> Asked<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (service, place) = (words.next()?, words.next()?);
        words.next().is_none().then_some(Self { service, place })
    }
}

/// The answer, and the replicas that it says are about to go.
fn answer(backends: &Backends, asked: &Asked<'_>) -> (String, Vec<swarmguard_common::domain::TaskId>) {
    let address = asked.place.parse::<IpAddr>().ok();
    let there = |replica: &&Replica| match address {
        Some(address) => replica.addresses.contains(&address) || replica.node_address == Some(address),
        None => replica.node == asked.place,
    };
    let known = backends.services.get(asked.service).map(|backend| backend.replicas.as_slice());
    let here: Vec<&Replica> = known.unwrap_or_default().iter().filter(there).collect();
    let serving = here.iter().filter(|replica| replica.ready && !replica.draining);
    let going = here.iter().filter(|replica| replica.draining).map(|replica| replica.task.clone()).collect();
    // Several replicas on a node share what comes there.
    let weight = serving.map(|replica| replica.weight).max();
    let text = match weight {
        Some(weight) => format!("up ready {weight}%\n"),
        None if here.iter().any(|replica| replica.draining) => "up drain\n".to_owned(),
        None => "down\n".to_owned(),
    };
    (text, going)
}

#[cfg(test)]
mod tests {
    use swarmguard_common::time::Time;

    use super::*;
    use crate::proxies::Backend;

    fn replica(task: &str, node: &str, draining: bool, weight: u8) -> Replica {
        Replica {
            task: task.parse().expect("an ID"),
            node: node.into(),
            node_address: Some(IpAddr::from([10, 0, 0, if node == "w1" { 1 } else { 2 }])),
            addresses: vec![IpAddr::from([10, 1, 0, weight])],
            ready: true,
            draining,
            weight,
        }
    }

    fn said(line: &str) -> String {
        let replicas = vec![
            replica("t1", "w1", false, 75),
            replica("t2", "w2", true, 30),
            Replica { ready: false, ..replica("t3", "w3", false, 100) },
            replica("t4", "w4", true, 20),
            replica("t5", "w4", false, 40),
        ];
        let web = Backend { replicas, ..Backend::default() };
        let backends = Backends { taken: Time::ZERO, services: [("shop_web".to_owned(), web)].into() };
        Asked::of(line).map_or_else(String::new, |asked| answer(&backends, &asked).0)
    }

    #[test]
    fn each_line_is_answered_as_haproxy_reads_it() {
        assert_eq!(said("shop_web w1"), "up ready 75%\n");
        assert_eq!(said("shop_web 10.0.0.1"), "up ready 75%\n", "by the node's address");
        assert_eq!(said("shop_web 10.1.0.75"), "up ready 75%\n", "by the replica's");
        assert_eq!(said("shop_web w2"), "up drain\n");
        assert_eq!(said("shop_web w3"), "down\n", "it does not serve yet");
        assert_eq!(said("shop_web w4"), "up ready 40%\n", "one of two goes");
        assert_eq!(said("shop_web w9"), "down\n");
        assert_eq!(said("nobody w1"), "down\n");
        for nonsense in ["", "shop_web", "shop_web w1 and more", "\u{0}"] {
            assert_eq!(said(nonsense), "", "{nonsense:?}");
        }
    }
}
