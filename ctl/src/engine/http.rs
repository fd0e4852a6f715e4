//! HTTP/1.1 over any stream: bounded answers, event streams, and connections that are taken over.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::connect::AnyStream;

/// Longest answer that is taken.
const MAX_ANSWER_BYTES: usize = 256 << 20;
/// Longest wait for the whole of an answer.
const REQUEST: Duration = Duration::from_secs(60);

/// A connection that takes requests one after the other.
#[derive(Debug)]
pub struct Sender(http1::SendRequest<Full<Bytes>>);

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its content.
    pub body: Bytes,
}

/// Begins to speak HTTP.
///
/// # Errors
/// When the other side does not.
pub async fn handshake(stream: AnyStream) -> Result<Sender, String> {
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // Ends when the sender is dropped or the other side closes; the sender hears of it.
    tokio::spawn(connection.with_upgrades());
    Ok(Sender(sender))
}

impl Sender {
    /// A request and its whole answer.
    ///
    /// # Errors
    /// When the connection breaks, or the answer is too long or too late.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Bytes>,
    ) -> Result<Answer, String> {
        let answered = async {
            let answer = self.open(method, path, headers, body).await?;
            let (parts, body) = answer.into_parts();
            let body = whole(body).await?;
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        };
        timeout(REQUEST, answered).await.map_err(|_| format!("no answer within {}s", REQUEST.as_secs()))?
    }

    /// A request whose answer is read as it comes.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn open(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Bytes>,
    ) -> Result<Response<Incoming>, String> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        if body.is_some() && !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).map_err(|_| format!("header {name} has a bad value"))?;
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(body.unwrap_or_default())).map_err(|error| error.to_string())?;
        self.0.ready().await.map_err(|error| error.to_string())?;
        self.0.send_request(request).await.map_err(|error| error.to_string())
    }

    /// A request after which the connection carries something else; answers the refusal where there is one.
    ///
    /// # Errors
    /// When the connection breaks, or the other side goes on speaking HTTP.
    pub async fn upgrade(mut self, path: &str, body: Bytes) -> Result<Upgraded, String> {
        let headers = [("connection", "Upgrade"), ("upgrade", "tcp")];
        let answer = timeout(REQUEST, self.open(Method::POST, path, &headers, Some(body)));
        let answer = answer.await.map_err(|_| "no answer in time".to_owned())??;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = answer.status();
            let body = whole(answer.into_body()).await.unwrap_or_default();
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim()));
        }
        hyper::upgrade::on(answer).await.map_err(|error| error.to_string())
    }
}

async fn whole(mut body: Incoming) -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > MAX_ANSWER_BYTES {
            return Err(format!("the answer is longer than {MAX_ANSWER_BYTES} bytes"));
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes.into())
}

/// For a place in a query.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}
