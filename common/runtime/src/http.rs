//! Serving a program's own figures over HTTP/1.1 to whoever asks, without letting them take more than their share.
//!
//! Not for the balanced requests, and not for the operator API, which has TLS, event streams and commands: those have
//! servers of their own.

use std::{error::Error, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{
    Request, Response,
    body::{Body, Incoming},
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::crowd::Crowd;

/// Connections at once. More wait in the listener's queue: scrapers are few.
const MAX_CONNECTIONS: usize = 32;
/// Of those, from one address.
const MAX_PER_ADDRESS: usize = 16;
/// Longest wait for the head of a request, and for the next one on a connection that is kept.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Longest that one connection is served, so that a reader who takes nothing holds no place for ever.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(600);
/// Most bytes of a head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Pause after an accept that failed: mostly for want of descriptors, of which some are closed meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// Who asks: an extension of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker(pub SocketAddr);

/// Serves until the process ends.
pub async fn serve_figures<S, B>(listener: TcpListener, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let crowd = Crowd::new(MAX_PER_ADDRESS);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // Closed at once: one client is not to take all places.
        let Some(share) = crowd.enter(peer.ip().to_canonical()) else { continue };
        let service = service.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Asker(peer));
            service.call(request)
        });
        tokio::spawn(async move {
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(MAX_HEAD_BYTES);
            let served = http.serve_connection(TokioIo::new(stream), service);
            // A scraper that goes away, or that takes too long, is its own business.
            let _ = tokio::time::timeout(CONNECTION_DEADLINE, served).await;
            drop((place, share));
        });
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper::service::service_fn;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    #[tokio::test]
    async fn who_says_nothing_is_sent_away_and_others_are_served() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let answer = service_fn(async |_| Ok::<_, Infallible>(Response::new("figures".to_owned())));
        tokio::spawn(serve_figures(listener, answer));
        let mut silent = Vec::new();
        for number in 0..MAX_CONNECTIONS {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            let last = if number < MAX_PER_ADDRESS { 2 } else { 3 };
            socket.bind(([127, 0, 0, last], 0).into()).expect("loopback has many addresses");
            silent.push(socket.connect(address).await.expect("connected"));
        }
        // All places are taken: this one is answered when those who say nothing were sent away.
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("sent");
        let mut text = String::new();
        let read = stream.read_to_string(&mut text);
        tokio::time::timeout(Duration::from_secs(120), read).await.expect("in time").expect("text");
        assert!(text.ends_with("figures"), "{text}");
    }

    #[tokio::test]
    async fn one_address_does_not_get_all_places() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let answer = service_fn(async |request: Request<Incoming>| {
            let asker = request.extensions().get::<Asker>().expect("known").0.ip();
            Ok::<_, Infallible>(Response::new(asker.to_string()))
        });
        tokio::spawn(serve_figures(listener, answer));
        let mut held = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            held.push(TcpStream::connect(address).await.expect("connected"));
        }
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.7:0".parse().expect("an address")).expect("loopback has many addresses");
        let mut other = socket.connect(address).await.expect("connected");
        other.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("sent");
        let mut text = String::new();
        let read = other.read_to_string(&mut text);
        tokio::time::timeout(HEAD_DEADLINE / 2, read).await.expect("at once").expect("text");
        assert!(text.ends_with("127.0.0.7"), "{text}");
    }
}
