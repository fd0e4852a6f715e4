//! One client connection: TLS where it is, then HTTP/1.1 or HTTP/2, whichever the client speaks.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    rc::Rc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::Request;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::{HttpService, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use swarmguard_runtime::clock;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
    sync::Notify,
};
use tokio_rustls::TlsAcceptor;

use super::{
    body::{After, AnswerBody},
    exchange::Guard,
    fast,
    headers::Client,
    io::{ClientIo, Limits, Turn},
    progress::Progress,
    seats::Seat,
    streams::Streams,
    tls,
    worker::Worker,
};
use crate::{memory::Charge, stats::bump};

/// What an HTTP/2 client sends first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Requests that one HTTP/2 connection may have open.
const MAX_STREAMS: u32 = 100;
/// Of each request, what a client may send before a replica takes it, and of each answer, what waits for a client, in bytes.
const STREAM_BYTES: u32 = 64 * 1_024;
/// What a client may send over one connection before replicas take it, in bytes.
const CONNECTION_BYTES: u32 = 256 * 1_024;
/// What hyper keeps for a connection before anything waits in it, in bytes.
const BASE_BYTES: usize = 16 * 1_024;

/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves a connection until it ends.
pub async fn connection(
    worker: &Rc<Worker>,
    stream: TcpStream,
    peer: SocketAddr,
    secure: bool,
    seat: Rc<Seat>,
) {
    // Fails only on a socket that is broken already.
    let _: io::Result<()> = stream.set_nodelay(true);
    let client = Client::new(peer.ip(), secure).with_seat(seat);
    if !secure {
        return plain(worker, stream, client).await;
    }
    let Some(config) = &worker.global.tls else { return };
    let handshake = TlsAcceptor::from(config.load_full()).accept(stream);
    match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) if stream.get_ref().1.alpn_protocol() == Some(tls::HTTP2) => {
            Box::pin(speak_http2(worker, Bytes::new(), stream, client)).await;
        }
        Ok(Ok(stream)) => Box::pin(plain(worker, stream, client)).await,
        Ok(Err(error)) => {
            bump(&worker.stats.tls_failures);
            tracing::debug!(%error, %peer, "a TLS handshake failed");
        }
        Err(_) => bump(&worker.stats.tls_failures),
    }
}

/// HTTP/1.1, or HTTP/2 by prior knowledge.
async fn plain<S>(worker: &Rc<Worker>, stream: S, client: Client)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some((mut stream, read)) = fast::serve(worker, stream, &client).await else { return };
    let patience = worker.global.settings.head_timeout;
    // On the heap, so that connections which never come here need not be so large.
    match tokio::time::timeout(patience, which(&mut stream, read)).await {
        Ok(Ok((read, true))) => Box::pin(speak_http2(worker, read, stream, client)).await,
        Ok(Ok((read, false))) => Box::pin(speak_http1(worker, read, stream, client)).await,
        // Broken or silent: there is nobody to tell.
        Ok(Err(_)) | Err(_) => {}
    }
}

/// Reads on until it is clear which protocol it is; true for HTTP/2.
async fn which(stream: &mut (impl AsyncRead + Unpin), read: Bytes) -> io::Result<(Bytes, bool)> {
    let mut buffer = BytesMut::from(read);
    loop {
        let common = buffer.len().min(PREFACE.len());
        let may_be_http2 = buffer[..common] == PREFACE[..common];
        if !may_be_http2 || common == PREFACE.len() {
            return Ok((buffer.freeze(), may_be_http2));
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Pays for a connection that hyper serves; `None` where there is no memory for one.
fn charge(worker: &Worker, first: &Bytes) -> Option<Charge> {
    let charge = worker.global.memory.charge(BASE_BYTES + first.len());
    if charge.is_none() {
        bump(&worker.stats.refused_memory);
    }
    charge
}

async fn speak_http1<S>(worker: &Rc<Worker>, first: Bytes, mut stream: S, client: Client)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let settings = &worker.global.settings;
    let Some(charge) = charge(worker, &first) else {
        return fast::shed(worker, &client, &mut stream).await;
    };
    let turn = Turn::default();
    let limits = Limits { head: settings.head_timeout, stall: settings.idle_timeout };
    let io = TokioIo::new(ClientIo::new(first, stream, limits, turn.clone(), Some(charge)));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(settings.idle_timeout)
        .max_headers(settings.max_headers.into())
        .max_buf_size(settings.max_head_bytes as usize);
    let (ip, seat) = (client.ip, client.seat.clone());
    let connection = builder.serve_connection(io, answering(worker, client, Some(turn))).with_upgrades();
    // Two types with the same method and no trait in common.
    drive(worker, ip, seat, connection, http1::UpgradeableConnection::graceful_shutdown).await;
}

async fn speak_http2<S>(worker: &Rc<Worker>, first: Bytes, stream: S, client: Client)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let settings = &worker.global.settings;
    let Some(charge) = charge(worker, &first) else { return };
    let limits = Limits { head: settings.head_timeout, stall: settings.idle_timeout };
    let io = TokioIo::new(ClientIo::new(first, stream, limits, Turn::default(), Some(charge)));
    let end = Rc::new(Notify::new());
    let mut builder = http2::Builder::new(Streams::new(worker, &end));
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(settings.idle_timeout / 2)
        .keep_alive_timeout(settings.head_timeout)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(STREAM_BYTES as usize)
        .initial_stream_window_size(STREAM_BYTES)
        .initial_connection_window_size(CONNECTION_BYTES)
        .max_header_list_size(settings.max_head_bytes);
    let (ip, seat) = (client.ip, client.seat.clone());
    let connection = builder.serve_connection(io, answering(worker, client, None));
    tokio::select! {
        biased;
        () = drive(worker, ip, seat, connection, http2::Connection::graceful_shutdown) => {}
        () = end.notified() => {}
    }
}

/// What answers the requests of one connection.
fn answering(
    worker: &Rc<Worker>,
    client: Client,
    turn: Option<Turn>,
) -> impl HttpService<Incoming, ResBody = AnswerBody<Guard>, Error = Infallible, Future: 'static> + use<> {
    let (worker, client) = (Rc::clone(worker), Rc::new(client));
    service_fn(move |request: Request<Incoming>| {
        let (worker, client, turn) = (Rc::clone(&worker), Rc::clone(&client), turn.clone());
        if let Some(turn) = &turn {
            turn.begin();
        }
        if let Some(seat) = &client.seat {
            seat.begin();
        }
        let (ended, seat) = (turn.clone(), client.seat.clone());
        let after = After::new(move || {
            if let Some(turn) = ended {
                turn.end();
            }
            if let Some(seat) = seat {
                seat.end(clock::now());
            }
        });
        let progress = Progress::start();
        if turn.is_none() {
            Streams::note(&progress);
        }
        async move {
            let mut answer = worker.answer(&client, request, turn, progress).await;
            answer.body_mut().then(after);
            Ok(answer)
        }
    })
}

/// Drives a connection to its end; once the balancer is told to stop, `finish` makes it end after what is under way.
async fn drive<C>(
    worker: &Rc<Worker>,
    client: IpAddr,
    seat: Option<Rc<Seat>>,
    connection: C,
    finish: impl Fn(Pin<&mut C>),
) where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = pin!(connection);
    let mut closing = worker.global.closing.clone();
    let evicted = poll_fn(|context| match &seat {
        Some(seat) => seat.poll_evicted(context),
        None => std::task::Poll::Pending,
    });
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = evicted => {
            bump(&worker.stats.evicted);
            return;
        }
        _ = closing.wait_for(|closing| *closing) => {
            finish(connection.as_mut());
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %client, "a connection ended early");
    }
}
