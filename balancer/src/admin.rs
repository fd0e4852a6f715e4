//! `/metrics` and `/healthz` on an address of their own, and the `healthcheck` command.
//!
//! The command does not ask there: whoever can reach that address could take all its places, and Swarm would restart what
//! is well. It asks on a socket that only this user's processes on this machine can reach.

use std::{
    convert::Infallible,
    net::SocketAddr,
    os::linux::net::SocketAddrExt as _,
    os::unix::net::{SocketAddr as UnixAddress, UnixListener as StdListener, UnixStream as StdStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use swarmguard_runtime::http::serve_figures;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UnixListener, UnixStream},
};

use crate::proxy::{Global, answer};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer to a health check, in bytes.
const MAX_ANSWER_BYTES: u64 = 1_024;
/// What is answered when all is well.
const WELL: &str = "ok\n";

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

/// The socket of health checks has no place in any file system: it works with a root that is read-only. Balancers on one
/// network are told apart by the port of their admin address.
fn health_address(admin: SocketAddr) -> std::io::Result<UnixAddress> {
    UnixAddress::from_abstract_name(format!("swarmguard-balancer-health-{}", admin.port()))
}

/// Listens for health checks.
///
/// # Errors
/// When another balancer in this network namespace has the same admin port.
pub fn health_listener(admin: SocketAddr) -> Result<UnixListener> {
    let address = health_address(admin)?;
    let listener = StdListener::bind_addr(&address)
        .with_context(|| format!("cannot listen for health checks of --admin-addr {admin}"))?;
    listener.set_nonblocking(true)?;
    Ok(UnixListener::from_std(listener)?)
}

/// Answers health checks until the process ends: one line each, nothing is read.
pub async fn answer_healthchecks(global: Arc<Global>, listener: UnixListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let own = rustix::process::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| [own, 0].contains(&peer.uid())) {
            continue;
        }
        let said = if *global.closing.borrow() {
            "stopping\n"
        } else if !global.ready() {
            "no service is known, and no coordinator can be reached\n"
        } else {
            WELL
        };
        // A line always fits; whoever went away needs no answer.
        let _ = stream.write_all(said.as_bytes()).await;
    }
}

/// Asks a running balancer whether it serves.
///
/// # Errors
/// When it does not answer, or says no.
pub async fn healthcheck(admin: SocketAddr) -> Result<()> {
    let said = tokio::time::timeout(PATIENCE, ask(admin)).await.context("no answer in time")??;
    ensure!(said == WELL, "the balancer says: {}", said.trim());
    Ok(())
}

async fn ask(admin: SocketAddr) -> Result<String> {
    let stream = StdStream::connect_addr(&health_address(admin)?)
        .with_context(|| format!("no balancer with --admin-addr {admin} runs here"))?;
    stream.set_nonblocking(true)?;
    let mut said = String::new();
    UnixStream::from_std(stream)?.take(MAX_ANSWER_BYTES).read_to_string(&mut said).await?;
    Ok(said)
}
