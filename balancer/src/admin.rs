//! `/metrics` and `/healthz` on an address of their own, and the `healthcheck` command that asks there.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{Empty, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use swarmguard_runtime::http::serve_figures;
use tokio::net::{TcpListener, TcpStream};

use crate::proxy::{Global, answer};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until the process ends.
pub async fn run(global: Arc<Global>, listener: TcpListener) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&global, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    serve_figures(listener, service).await;
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
