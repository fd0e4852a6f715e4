//! The API's listener: TLS and plain HTTP on one port, told apart by the first byte.
//!
//! One port, because an operator who has published 7480 must not have to publish another for commands, and because a
//! browser's or Prometheus' plain read and an operator's https command then need no different configuration.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use swarmguard_runtime::{
    crowd::Crowd,
    identity::{Peer, Unit},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;

use super::Via;

/// Connections at once.
const MAX_CONNECTIONS: usize = 1_024;
/// Of those, from one address.
const MAX_PER_ADDRESS: usize = 64;
/// Longest wait for the first byte, a TLS handshake, or the head of a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(15);
/// First byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// TLS settings of the API from those of the node's identity: the same certificate, other protocols.
pub fn tls_config(mut identity: rustls::ServerConfig) -> Arc<rustls::ServerConfig> {
    identity.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(identity)
}

/// Serves until `stop` says so; then lets requests that are under way finish for a moment. Operators' certificates count
/// only where they name `cluster`: two swarms may have been given the same authority.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    cluster: String,
    tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    mut stop: watch::Receiver<bool>,
) {
    let cluster: Arc<str> = cluster.into();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let crowd = Crowd::new(MAX_PER_ADDRESS);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly; a pause lets some be closed.
                tracing::warn!("the API cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let held = (crowd.enter(peer.ip()), Arc::clone(&slots).try_acquire_owned());
        let (Some(place), Ok(slot)) = held else {
            tracing::debug!(%peer, "the API has too many connections, one was closed");
            continue;
        };
        let (router, cluster, stop) = (router.clone(), Arc::clone(&cluster), stop.clone());
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.borrow()));
        tokio::spawn(async move {
            if let Err(why) = connection(stream, peer, router, &cluster, acceptor, stop).await {
                tracing::debug!(%peer, "a connection to the API ended: {why}");
            }
            drop((place, slot));
        });
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    cluster: &str,
    acceptor: TlsAcceptor,
    stop: watch::Receiver<bool>,
) -> Result<(), String> {
    let late = |_| "nothing came in time".to_owned();
    let mut first = [0];
    let peeked = tokio::time::timeout(HEAD_DEADLINE, stream.peek(&mut first)).await.map_err(late)?;
    if peeked.map_err(|error| error.to_string())? == 0 {
        return Ok(());
    }
    // Small answers; waiting for more to send only delays them.
    let _ = stream.set_nodelay(true);
    if first[0] != TLS_HANDSHAKE {
        return requests(stream, Via { peer, tls: false, operator: None, manager: None }, router, stop).await;
    }
    let stream = tokio::time::timeout(HEAD_DEADLINE, acceptor.accept(stream)).await.map_err(late)?;
    let stream = stream.map_err(|error| error.to_string())?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let bearer = certificate.and_then(|certificate| Peer::of(certificate).ok());
    let bearer = bearer.filter(|bearer| bearer.cluster == cluster);
    let named = |unit: Unit| bearer.as_ref().filter(|one| one.unit == unit).map(|one| one.name.clone());
    let (operator, manager) = (named(Unit::Operator), named(Unit::Manager));
    requests(stream, Via { peer, tls: true, operator, manager }, router, stop).await
}

pub(super) async fn requests<S>(
    stream: S,
    via: Via,
    router: Router,
    mut stop: watch::Receiver<bool>,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router.layer(Extension(via)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(64 * 1024);
    let served = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    tokio::select! {
        ended = served.as_mut() => return ended.map_err(|error| error.to_string()),
        _ = stop.wait_for(|stop| *stop) => served.as_mut().graceful_shutdown(),
    }
    // Event streams never finish by themselves.
    match tokio::time::timeout(Duration::from_secs(1), served).await {
        Ok(ended) => ended.map_err(|error| error.to_string()),
        Err(_) => Ok(()),
    }
}
