//! A worker's thread: its runtime, its listeners, and a task for each connection.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use swarmguard_runtime::clock;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::LocalSet,
};

use super::{Global, serve, worker::Worker};
use crate::stats::bump;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4_096;

/// What a client is told that has too many connections: without reading what it wants.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 44\r\nconnection: close\r\nretry-after: 1\r\n\r\ntoo many connections from this address here\n";

/// Runs a worker on the calling thread until the balancer closes; `ready` is told once it listens, or why it cannot.
pub fn run(global: Arc<Global>, index: usize, ready: impl FnOnce(io::Result<Vec<SocketAddr>>)) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ready(Err(error)),
    };
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        match Listeners::open(&global).await {
            Ok(listeners) => {
                ready(listeners.addresses());
                serve(Rc::new(Worker::new(global, index)), listeners).await;
            }
            Err(error) => ready(Err(error)),
        }
    });
}

struct Listeners {
    plain: TcpListener,
    tls: Option<TcpListener>,
}

impl Listeners {
    async fn open(global: &Global) -> io::Result<Self> {
        let settings = &global.settings;
        let plain = listen(SocketAddr::new(settings.listen_ip, settings.port))?;
        let tls = match &global.tls {
            Some(_) => Some(listen(SocketAddr::new(settings.listen_ip, settings.tls_port))?),
            None => None,
        };
        Ok(Self { plain, tls })
    }

    fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        [Some(&self.plain), self.tls.as_ref()].into_iter().flatten().map(TcpListener::local_addr).collect()
    }

    /// The next connection, and whether it is to speak TLS.
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr, bool)> {
        let ((stream, peer), secure) = match &self.tls {
            None => (self.plain.accept().await?, false),
            Some(tls) => tokio::select! {
                accepted = self.plain.accept() => (accepted?, false),
                accepted = tls.accept() => (accepted?, true),
            },
        };
        Ok((stream, peer, secure))
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
    socket.bind(address).map_err(named)?;
    socket.listen(BACKLOG).map_err(named)
}

async fn serve(worker: Rc<Worker>, listeners: Listeners) {
    tokio::task::spawn_local(sweep(Rc::clone(&worker)));
    let workers = u32::try_from(worker.global.stats.workers().len()).unwrap_or(1).max(1);
    let share = worker.global.settings.max_connections.div_ceil(workers);
    let room = Arc::new(Semaphore::new(share as usize));
    let mut closing = worker.global.closing.clone();
    tokio::select! {
        () = accept(&worker, &listeners, &room) => {}
        _ = closing.wait_for(|closing| *closing) => {}
    }
    drop(listeners);
    // All permits are back when the last connection has ended, tunnels included.
    let _ = tokio::time::timeout(worker.global.settings.shutdown_grace, room.acquire_many(share)).await;
}

async fn accept(worker: &Rc<Worker>, listeners: &Listeners, room: &Arc<Semaphore>) {
    loop {
        let (stream, peer, secure) = match listeners.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: somebody idle makes room.
                tracing::warn!(%error, "cannot accept a connection");
                worker.seats.evict();
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        bump(&worker.stats.connections);
        let Some(permit) = place(worker, room).await else { return };
        let Some(seat) = worker.seats.take(&worker.global.addresses, peer.ip(), permit, clock::now()) else {
            bump(&worker.stats.refused_address);
            bump(&worker.stats.connections_closed);
            if !secure {
                refuse(stream);
            }
            continue;
        };
        let worker = Rc::clone(worker);
        tokio::task::spawn_local(async move {
            serve::connection(&worker, stream, peer, secure, Rc::clone(&seat)).await;
            worker.seats.leave(&seat);
            bump(&worker.stats.connections_closed);
        });
    }
}

/// A place for one more connection. Where all are taken, the one that has been without a request for longest makes room;
/// where all have one, this waits.
async fn place(worker: &Worker, room: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(room).try_acquire_owned() {
        return Some(permit);
    }
    worker.seats.evict();
    Arc::clone(room).acquire_owned().await.ok()
}

/// Says why before it closes, as far as that goes without waiting.
fn refuse(stream: TcpStream) {
    if let Ok(mut stream) = stream.into_std() {
        // A client that cannot be told is closed all the same.
        let _: io::Result<usize> = stream.write(TOO_MANY);
    }
}

async fn sweep(worker: Rc<Worker>) {
    let interval = worker.global.settings.lease_cleanup_interval;
    loop {
        tokio::time::sleep(interval).await;
        worker.sweep();
    }
}

#[cfg(test)]
mod tests {
    use super::TOO_MANY;

    #[test]
    fn what_is_told_is_as_long_as_it_says() {
        let text = std::str::from_utf8(TOO_MANY).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
    }
}
