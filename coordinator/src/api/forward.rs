//! Commands that came to a coordinator that does not act: sent on to the one that does, over TLS with both certificates.
//!
//! A command is sent on once. The other side believes the name of the operator because a manager's certificate says it:
//! who has a manager's key is root of the swarm anyhow.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::TlsConnector;

use super::{Api, access::OPERATOR, problem::Problem};

/// Longest that the other coordinator may take, connecting included.
const DEADLINE: Duration = Duration::from_secs(15);
/// Largest answer.
const MAX_ANSWER: usize = 256 * 1024;

/// How other coordinators are reached.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Our certificate as a client; replaced when Swarm renews it.
    pub tls: watch::Receiver<Arc<rustls::ClientConfig>>,
    /// Port of the API, the same on all managers.
    pub port: u16,
}

/// TLS settings towards other coordinators from those of the node's identity.
pub fn tls_config(mut identity: rustls::ClientConfig) -> Arc<rustls::ClientConfig> {
    identity.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(identity)
}

/// A command to be sent on.
pub(super) struct Order<'a> {
    pub path: &'a str,
    pub by: &'a str,
    pub body: Bytes,
}

impl Api {
    /// The answer of the coordinator that acts; `None` where it is not known how to reach it.
    pub(super) async fn sent_on(&self, order: Order<'_>) -> Option<Result<Response, Problem>> {
        let forward = self.0.forward.as_ref()?;
        let acts = self.ask(|brain, facts| facts.addressee(brain)?.address).await.ok()??;
        let address = SocketAddr::new(acts, forward.port);
        let sent = tokio::time::timeout(DEADLINE, exchange(forward, address, order)).await;
        let why = match sent {
            Ok(Ok(answer)) => return Some(Ok(answer)),
            Ok(Err(why)) => why,
            Err(_) => format!("no answer within {} s", DEADLINE.as_secs()),
        };
        tracing::warn!(%address, "a command could not be sent on: {why}");
        let detail = format!(
            "the coordinator that acts, at {address}, was not reached: {why}; whether it took the command stands in its journal"
        );
        Some(Err(Problem::new(StatusCode::BAD_GATEWAY, "leader_unreachable", detail)))
    }
}

async fn exchange(forward: &Forward, address: SocketAddr, order: Order<'_>) -> Result<Response, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(|error| text(&error))?;
    let tls = Arc::clone(&forward.tls.borrow());
    let name =
        "swarm-manager".try_into().map_err(|error: rustls::pki_types::InvalidDnsNameError| text(&error))?;
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(|error| text(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    // Ends with the exchange: the sender is dropped then.
    tokio::spawn(async move { drop(connection.await) });
    let request = Request::post(order.path)
        .header(header::HOST, "swarm-manager")
        .header(header::CONTENT_TYPE, "application/json")
        .header(OPERATOR, order.by)
        .body(Full::new(order.body))
        .map_err(|error| text(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| text(&error))?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| error.to_string())?.to_bytes();
    let mut response = (head.status, Body::from(body)).into_response();
    if let Some(kind) = head.headers.get(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    }
    Ok(response)
}
