//! Sending bytes at a stated rate: into the answer to the caller, or as UDP to a configured sink.
//!
//! The bytes must leave the container's network namespace, so loopback will not do, and they must never reach a machine
//! that is no part of the test: the sink comes from the service's configuration, never from a request.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::StreamExt;
use futures_util::stream::unfold;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// One piece of an answer, at most.
const CHUNK_BYTES: u64 = 64 * 1024;
/// One datagram: below every usual MTU, so that none is fragmented.
const DATAGRAM_BYTES: u64 = 1200;
const TICK: Duration = Duration::from_millis(10);
/// RFC 863: whatever arrives there is thrown away.
const DISCARD_PORT: u16 = 9;

/// How much to send, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct NetworkPlan {
    /// Megabits (10^6) of payload a second.
    pub mbps: f64,
    /// From start to end.
    pub duration: Duration,
}

/// What may be sent now, by the bytes already sent; a receiver that cannot keep up is not flooded afterwards.
#[derive(Debug)]
struct Pace {
    plan: NetworkPlan,
    start: Instant,
    sent: u64,
}

impl Pace {
    fn new(plan: NetworkPlan) -> Self {
        Pace { plan, start: Instant::now(), sent: 0 }
    }

    fn bytes_until(&self, elapsed: Duration) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded by the query's limits"
        )]
        let bytes = (self.plan.mbps * 1e6 / 8.0 * elapsed.as_secs_f64()) as u64;
        bytes
    }

    /// Waits until at least `least` bytes are due and says how many, at most `most`; `None` at the end.
    async fn due(&mut self, least: u64, most: u64) -> Option<u64> {
        loop {
            let elapsed = self.start.elapsed();
            if elapsed >= self.plan.duration {
                return None;
            }
            let allowed = self.bytes_until(elapsed);
            let lag = self.bytes_until(Duration::from_secs(1)).max(least);
            self.sent = self.sent.max(allowed.saturating_sub(lag));
            let due = (allowed - self.sent.min(allowed)).min(most);
            if due >= least {
                self.sent += due;
                return Some(due);
            }
            tokio::time::sleep(TICK).await;
        }
    }
}

/// An answer that lasts for the plan's duration, or until `stop` becomes true or is dropped.
pub fn body(plan: NetworkPlan, stop: watch::Receiver<bool>) -> Body {
    let zeros = Bytes::from(vec![0_u8; usize::try_from(CHUNK_BYTES).unwrap_or_default()]);
    let stream = unfold((Pace::new(plan), zeros), |(mut pace, zeros)| async move {
        let due = pace.due(1, CHUNK_BYTES).await?;
        let piece = zeros.slice(..usize::try_from(due).unwrap_or_default());
        Some((Ok::<_, std::convert::Infallible>(piece), (pace, zeros)))
    });
    let stopped = Box::pin(async move {
        let mut stop = stop;
        let _ = stop.wait_for(|stop| *stop).await;
    });
    Body::from_stream(stream.take_until(stopped))
}

/// A task that sends datagrams until its plan ends or this is dropped.
#[derive(Debug)]
pub struct UdpLoad {
    task: JoinHandle<()>,
}

impl UdpLoad {
    /// Starts sending to `peer`.
    ///
    /// # Errors
    /// The operating system's, where no socket is to be had.
    pub async fn start(plan: NetworkPlan, peer: SocketAddr) -> std::io::Result<Self> {
        let any: IpAddr = if peer.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        Ok(UdpLoad { task: tokio::spawn(send(plan, socket, peer)) })
    }
}

impl Drop for UdpLoad {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn send(plan: NetworkPlan, socket: UdpSocket, peer: SocketAddr) {
    let zeros = vec![0_u8; usize::try_from(DATAGRAM_BYTES).unwrap_or_default()];
    let mut pace = Pace::new(plan);
    // Whole datagrams only, so that the headers' share of the traffic is known.
    while pace.due(DATAGRAM_BYTES, DATAGRAM_BYTES).await.is_some() {
        // Not connected, so that the ICMP answer of a port nobody listens on is no error; a full queue is waited out.
        if socket.send_to(&zeros, peer).await.is_err() {
            tokio::time::sleep(TICK).await;
        }
    }
}

/// The discard port of the IPv4 default gateway: in a container, the node it runs on.
///
/// # Errors
/// Without `/proc/net/route` or a default route.
pub fn gateway() -> std::io::Result<SocketAddr> {
    let table = std::fs::read_to_string("/proc/net/route")?;
    let missing = || std::io::Error::other("no default route in /proc/net/route, so no gateway to send to");
    parse_gateway(&table).map(|ip| SocketAddr::new(ip.into(), DISCARD_PORT)).ok_or_else(missing)
}

/// The table gives addresses as the kernel holds them, in network order read as a native integer.
fn parse_gateway(table: &str) -> Option<Ipv4Addr> {
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (destination, gateway) = (words.next()?, words.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok().filter(|ip| *ip != 0)?;
        (destination == "00000000").then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_is_found() {
        let table = "Iface\tDestination\tGateway \tFlags\n\
                     eth0\t0000000A\t00000000\t0001\n\
                     eth1\t00000000\t010012AC\t0003\n";
        assert_eq!(parse_gateway(table), Some(Ipv4Addr::new(172, 18, 0, 1)));
        assert_eq!(parse_gateway("Iface\tDestination\tGateway\n"), None);
    }

    #[tokio::test]
    async fn datagrams_carry_the_bytes_asked_for() {
        let sink = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let plan = NetworkPlan { mbps: 4.0, duration: Duration::from_secs(1) };
        let _load = UdpLoad::start(plan, sink.local_addr().unwrap()).await.unwrap();
        let (mut got, mut buffer) = (0_usize, vec![0; 2048]);
        while let Ok(read) = tokio::time::timeout(Duration::from_secs(3), sink.recv(&mut buffer)).await {
            got += read.unwrap();
        }
        // 500 kB; a busy machine may lose some at the end or in the socket's queue, never add any.
        assert!((200_000..=500_000).contains(&got), "{got} bytes");
    }

    #[tokio::test]
    async fn a_body_ends_when_told() {
        let (stop, stopped) = watch::channel(false);
        let plan = NetworkPlan { mbps: 8.0, duration: Duration::from_secs(600) };
        let mut stream = body(plan, stopped).into_data_stream();
        assert!(stream.next().await.unwrap().unwrap().len() <= 64 * 1024);
        stop.send(true).unwrap();
        while stream.next().await.is_some() {} // ends, or the test hangs
    }
}
