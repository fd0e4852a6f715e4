//! One HTTP request over TCP or a unix socket.
//!
//! No pool and no retries: a test must see each failure where it happened. What polls does so a few times a second.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::body::Bytes;
use axum::http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Largest answer taken, in bytes.
const ANSWER_BYTES: usize = 32 << 20;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// An address and port.
    Tcp(SocketAddr),
    /// An address and port, asked for this host: what a balancer chooses the service by.
    Host(SocketAddr, String),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(out, "unix://{}", path.display()),
            Endpoint::Tcp(addr) => write!(out, "http://{addr}"),
            Endpoint::Host(addr, host) => write!(out, "http://{addr} ({host})"),
        }
    }
}

impl Endpoint {
    /// Sends one request and reads the whole answer, each within `limit`.
    ///
    /// # Errors
    /// Where no connection is made, the answer is no HTTP, too large, or late.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes)> {
        let what = format!("{method} {self}{path}");
        let body = body.into();
        let exchange = async {
            let answer = self.send(method, path, body).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?;
            Ok::<_, anyhow::Error>((status, body.to_bytes()))
        };
        match timeout(limit, exchange).await {
            Ok(done) => done.with_context(|| what),
            Err(_) => bail!("{what}: no answer within {limit:?}"),
        }
    }

    /// GET that expects 200 and JSON.
    ///
    /// # Errors
    /// As [`Self::call`], or where status or body are others.
    pub async fn get_json(&self, path: &str) -> Result<Value> {
        let (status, body) = self.call(Method::GET, path, Bytes::new(), Duration::from_secs(60)).await?;
        if !status.is_success() {
            bail!("GET {self}{path}: {status}: {}", text(&body));
        }
        serde_json::from_slice(&body).with_context(|| format!("GET {self}{path}: the answer is no JSON"))
    }

    /// Sends one request and returns as soon as the answer's head is there; its body may go on for ever.
    ///
    /// # Errors
    /// Where no connection is made, or the answer is no HTTP.
    pub async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        self.send_with(method, path, &[], body).await
    }

    /// As [`Self::send`], with more headers.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn send_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let mut sender = match self {
            Endpoint::Unix(socket) => handshake(UnixStream::connect(socket).await?).await?,
            Endpoint::Tcp(addr) | Endpoint::Host(addr, _) => {
                let stream = TcpStream::connect(addr).await?;
                stream.set_nodelay(true)?;
                handshake(stream).await?
            }
        };
        let host = match self {
            Endpoint::Host(_, host) => host,
            _ => "localhost",
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if body.first() == Some(&b'{') {
            request = request.header(header::CONTENT_TYPE, "application/json");
        } else if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/x-tar");
        }
        Ok(sender.send_request(request.body(Full::new(body))?).await?)
    }
}

/// An answer's body as text for messages, cut to a sensible length.
pub fn text(body: &Bytes) -> String {
    String::from_utf8_lossy(body).trim().chars().take(600).collect()
}

/// Makes an HTTP/1 connection of `stream`; a task of its own drives it until either side closes.
///
/// # Errors
/// hyper's.
pub async fn handshake<S>(stream: S) -> Result<http1::SendRequest<Full<Bytes>>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its error is also the error of the request under way.
    tokio::spawn(async move { connection.await.ok() });
    Ok(sender)
}
