//! `/metrics` and `/healthz` on an address of their own, and the `healthcheck` command that asks there.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{Empty, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::proxy::{Global, answer};

/// Connections at once.
const AT_ONCE: usize = 32;
/// Time to send a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until the process ends.
pub async fn run(global: Arc<Global>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let global = Arc::clone(&global);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let response = respond(&global, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            // A scraper that goes away is its own business.
            let _: hyper::Result<()> = builder.serve_connection(TokioIo::new(stream), service).await;
            drop(permit);
        });
    }
}

fn respond(global: &Global, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let own = answer::own(global, request.uri().path(), request.headers(), Full::new);
    own.unwrap_or_else(|| answer::error(StatusCode::NOT_FOUND, "here are /metrics and /healthz", Full::new))
}

/// Asks a running balancer whether it serves.
///
/// # Errors
/// When it does not answer, or says no.
pub async fn healthcheck(address: SocketAddr) -> Result<()> {
    let status = tokio::time::timeout(PATIENCE, ask(address)).await.context("no answer in time")??;
    ensure!(status == StatusCode::OK, "the balancer answers {status}");
    Ok(())
}

async fn ask(address: SocketAddr) -> Result<StatusCode> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("no balancer answers on {address} (--admin-addr)"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/healthz").header(header::HOST, "localhost").body(Empty::<Bytes>::new())?;
    Ok(sender.send_request(request).await?.status())
}
