//! UDP sockets of the simulated network as QUIC wants them, with loss and duplicates. Delay, reordering and partitions
//! are the network's own.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::FutureExt as _;
use quinn::{
    AsyncUdpSocket, Endpoint, Runtime, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use swarmguard_runtime::transport::{self, TransportError};

/// Of 1,000 datagrams so many come twice besides those that loss adds: networks do that without being bad.
const DUPLICATES: u16 = 5;

/// What all sockets of one run share: how bad the network is, and what went over it.
#[derive(Debug, Default)]
pub(super) struct Wire {
    /// Of 1,000 datagrams so many are lost.
    loss: AtomicU16,
    trace: Mutex<Trace>,
}

/// Every datagram in order, as a digest: two runs of a seed have the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace {
    /// Datagrams that were sent, lost and duplicated ones included.
    pub datagrams: u64,
    pub lost: u64,
    pub duplicated: u64,
    /// Of time, source and destination of each. Not of the bytes: keys differ from run to run.
    pub digest: u64,
}

impl Wire {
    pub fn set_loss(&self, per_mille: u16) {
        self.loss.store(per_mille, Ordering::Relaxed);
    }

    pub fn trace(&self) -> MutexGuard<'_, Trace> {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self, from: SocketAddr, to: SocketAddr, times: usize) {
        let mut trace = self.trace();
        let mut digest = DefaultHasher::new();
        (trace.digest, turmoil::sim_elapsed(), from, to, times).hash(&mut digest);
        trace.digest = digest.finish();
        trace.datagrams += 1;
        trace.lost += u64::from(times == 0);
        trace.duplicated += u64::from(times > 1);
    }
}

/// A QUIC endpoint of the simulated host with this address, which is the one that asks, on `port` (any free one where 0). The seed decides its
/// connection IDs and which of its datagrams are lost.
///
/// # Errors
/// When the port is taken.
pub(super) fn endpoint(
    wire: &Arc<Wire>,
    ip: IpAddr,
    port: u16,
    server: Option<quinn::ServerConfig>,
    seed: u64,
) -> Result<Endpoint, TransportError> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let bound = turmoil::net::UdpSocket::bind(address).now_or_never();
    let bound = bound.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()));
    let inner = bound.map_err(|source| TransportError::Bind { address, source })?;
    let rng = Mutex::new(fastrand::Rng::with_seed(seed));
    let own = SocketAddr::new(ip, inner.local_addr()?.port());
    let socket = Arc::new(Socket { inner, own, wire: Arc::clone(wire), rng });
    let mut bytes = [0; 32];
    fastrand::Rng::with_seed(!seed).fill(&mut bytes);
    let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime);
    transport::endpoint(socket, runtime, server, Some(bytes))
}

#[derive(Debug)]
struct Socket {
    inner: turmoil::net::UdpSocket,
    own: SocketAddr,
    wire: Arc<Wire>,
    rng: Mutex<fastrand::Rng>,
}

/// The simulated network takes everything at once.
#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Socket {
    /// How often the next datagram arrives.
    fn times(&self) -> usize {
        let loss = self.wire.loss.load(Ordering::Relaxed);
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        match rng.u16(0..1_000) {
            draw if draw < loss => 0,
            draw if draw < loss + loss / 4 + DUPLICATES => 2,
            _ => 1,
        }
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(size) {
            let times = self.times();
            self.wire.sent(self.own, transmit.destination, times);
            for _ in 0..times {
                self.inner.try_send_to(datagram, transmit.destination)?;
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(buffer), Some(meta)) = (buffers.first_mut(), meta.first_mut()) else {
            return Poll::Ready(Ok(0));
        };
        loop {
            match self.inner.try_recv_from(buffer) {
                Ok((len, addr)) => {
                    *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                    return Poll::Ready(Ok(1));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            match pin!(self.inner.readable()).poll(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.own)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}
