//! HTTP/2 on both sides, gRPC's trailers, and TLS with a certificate that changes.

mod support;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use support::{Lb, Replica, coordinator::Coordinator, eventually};
use swarmguard_balancer::source::labels;
use swarmguard_runtime::identity::{Unit, issue::Authority};
use tokio::net::{TcpListener, TcpStream};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// A gRPC-like server: HTTP/2 without TLS, echoes messages as they come and ends with trailers.
async fn serve_grpc(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let service = service_fn(|request: Request<Incoming>| async move {
            assert_eq!(request.version(), Version::HTTP_2);
            let te = request.headers().get("te").cloned();
            let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, hyper::Error>>(4);
            tokio::spawn(async move {
                let mut body = request.into_body();
                while let Some(Ok(frame)) = body.frame().await {
                    let _ = sender.send(Ok(frame)).await;
                }
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                let _ = sender.send(Ok(Frame::trailers(trailers))).await;
            });
            let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
            let stream = futures_stream(receiver);
            let mut response = Response::new(StreamBody::new(stream));
            if let Some(te) = te {
                response.headers_mut().insert("seen-te", te);
            }
            Ok::<_, std::convert::Infallible>(response)
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
    }
}

type Frames = Arc<tokio::sync::Mutex<tokio::sync::mpsc::Receiver<Result<Frame<Bytes>, hyper::Error>>>>;

fn futures_stream(
    frames: Frames,
) -> std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, hyper::Error>> + Send>> {
    Box::pin(futures_util::stream::unfold(frames, |frames| async move {
        let next = frames.lock().await.recv().await;
        next.map(|frame| (frame, frames))
    }))
}

async fn http2_client<B>(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
) -> hyper::client::conn::http2::SendRequest<B>
where
    B: http_body::Body + Unpin + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

#[test]
fn grpc_passes_with_streams_and_trailers() {
    let runtime = runtime();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("bound");
    let address = listener.local_addr().expect("an address");
    runtime.spawn(serve_grpc(listener));
    let coordinator = Coordinator::start();
    let arguments = coordinator.arguments();
    let lb = Lb::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let http2 = swarmguard_common::labels::RouteLabels { http2: true, ..labels(address.port()) };
    coordinator.routes(&http2, &[("a", address.ip())]);
    eventually("routes are known", || !lb.global.table.load().services.is_empty());
    runtime.block_on(async {
        let stream = TcpStream::connect(lb.addresses[0]).await.expect("connected");
        let mut client = http2_client(stream).await;
        for _ in 0..3 {
            let (sender, receiver) = tokio::sync::mpsc::channel(4);
            let body = StreamBody::new(futures_stream(Arc::new(tokio::sync::Mutex::new(receiver))));
            let request =
                Request::post(format!("http://{address}/a.B/C")).header("te", "trailers").body(body);
            client.ready().await.expect("ready");
            let answer = client.send_request(request.expect("a request"));
            sender.send(Ok(Frame::data(Bytes::from_static(b"one")))).await.expect("sent");
            let mut answer = answer.await.expect("an answer before the request ended");
            assert_eq!(answer.headers()["seen-te"], "trailers");
            let first = answer.frame().await.expect("a frame").expect("whole").into_data().expect("data");
            assert_eq!(first, "one");
            drop(sender);
            let rest = answer.collect().await.expect("an end");
            assert_eq!(rest.trailers().expect("trailers")["grpc-status"], "0");
        }
    });
    eventually("no lease is left", || lb.in_flight() == 0);
}

#[test]
fn many_http2_requests_at_once_reach_an_http1_replica() {
    let runtime = runtime();
    let replica = Replica::named("hello");
    let lb = Lb::with(&[&replica], &[]);
    runtime.block_on(async {
        let stream = TcpStream::connect(lb.addresses[0]).await.expect("connected");
        let client = http2_client::<Full<Bytes>>(stream).await;
        let asked = (0..50).map(|n| {
            let mut client = client.clone();
            async move {
                let request =
                    Request::get(format!("http://h.example/{n}")).body(Full::default()).expect("a request");
                let answer = client.send_request(request).await.expect("an answer");
                assert_eq!(answer.version(), Version::HTTP_2);
                answer.collect().await.expect("a body").to_bytes()
            }
        });
        for body in futures_util::future::join_all(asked).await {
            assert_eq!(body, "hello");
        }
    });
    let heads = replica.seen();
    assert_eq!(heads.len(), 50);
    assert!(
        heads.iter().all(|head| head.to_ascii_lowercase().contains("\r\nhost: h.example\r\n")),
        "{}",
        heads[0]
    );
}

async fn tls(
    address: SocketAddr,
    roots: &Path,
    protocol: &[u8],
) -> Option<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut store = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(roots).expect("a file") {
        store.add(root.expect("a certificate")).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("swarm-worker").expect("a name");
    let stream = TcpStream::connect(address).await.expect("connected");
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
    Some(stream)
}

#[test]
fn tls_speaks_both_protocols_and_takes_a_new_certificate() {
    let runtime = runtime();
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name);
    let issue = || {
        let authority = Authority::create("c").expect("made");
        authority.issue("host", Unit::Worker, directory.path()).expect("issued");
    };
    issue();
    let first_roots = file("first.pem");
    std::fs::copy(file("ca.pem"), &first_roots).expect("copied");
    let replica = Replica::named("secret");
    let certificate = format!("--tls-cert={}", file("cert.pem").display());
    let key = format!("--tls-key={}", file("key.pem").display());
    let lb = Lb::with(&[&replica], &[&certificate, &key]);
    let address = lb.addresses[1];
    runtime.block_on(async {
        let stream = tls(address, &first_roots, b"h2").await.expect("HTTP/2 over TLS");
        let mut client = http2_client::<Full<Bytes>>(stream).await;
        let request = Request::get("https://h.example/").body(Full::default()).expect("a request");
        let answer = client.send_request(request).await.expect("an answer");
        assert_eq!(answer.collect().await.expect("a body").to_bytes(), "secret");
        let stream = tls(address, &first_roots, b"http/1.1").await.expect("HTTP/1.1 over TLS");
        let (mut client, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
        tokio::spawn(connection);
        for method in ["GET", "DELETE", "GET"] {
            let request =
                Request::builder().method(method).header("host", "h.example").body(Full::<Bytes>::default());
            client.ready().await.expect("kept open");
            let answer = client.send_request(request.expect("a request")).await.expect("an answer");
            assert_eq!(answer.collect().await.expect("a body").to_bytes(), "secret");
        }
    });
    assert!(replica.seen().iter().all(|head| head.contains("x-forwarded-proto: https\r\n")));
    issue();
    let second_roots = file("ca.pem");
    eventually("the new certificate is served", || {
        std::thread::sleep(Duration::from_millis(100));
        runtime.block_on(tls(address, &second_roots, b"http/1.1")).is_some()
    });
}
