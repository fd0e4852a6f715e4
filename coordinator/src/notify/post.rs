//! One POST to a receiver: a connection of its own, a deadline, and a short look at the answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// Longest that one message may take.
pub const DEADLINE: Duration = Duration::from_secs(15);
/// Bytes of an answer that are read; nothing depends on them.
const MAX_ANSWER: usize = 16 * 1024;

/// Why a message was not taken. Texts name neither address nor secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// In words.
    pub why: String,
    /// How long the receiver asks us to wait.
    pub after: Option<Duration>,
    /// Trying again soon is of no use: the request itself is wrong.
    pub hopeless: bool,
}

impl Refused {
    /// It may work the next time.
    pub fn passing(why: impl Into<String>) -> Self {
        Self { why: why.into(), after: None, hopeless: false }
    }
}

/// Sends a body; an answer of 2xx means that it was taken.
///
/// # Errors
/// Why it was not.
pub async fn post(
    tls: &Arc<rustls::ClientConfig>,
    uri: &Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: String,
) -> Result<(), Refused> {
    tokio::time::timeout(DEADLINE, exchange(tls, uri, headers, body))
        .await
        .unwrap_or_else(|_| Err(Refused::passing(format!("no answer within {} s", DEADLINE.as_secs()))))
}

async fn exchange(
    tls: &Arc<rustls::ClientConfig>,
    uri: &Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: String,
) -> Result<(), Refused> {
    let secure = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let passing = |what: &str, error: &dyn std::fmt::Display| Refused::passing(format!("{what}: {error}"));
    let stream =
        TcpStream::connect((host.as_str(), port)).await.map_err(|error| passing("cannot connect", &error))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map(|authority| {
        // A name and a password there are not part of the host.
        authority.as_str().rsplit('@').next().unwrap_or_default().to_owned()
    });
    let mut request = Request::post(path)
        .header(header::HOST, authority.unwrap_or_default())
        .header(header::USER_AGENT, concat!("swarmguard/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request =
        request.body(Full::new(Bytes::from(body))).map_err(|error| passing("no request", &error))?;
    if secure {
        let name = rustls::pki_types::ServerName::try_from(host).map_err(|error| passing("TLS", &error))?;
        let connecting = TlsConnector::from(Arc::clone(tls)).connect(name, stream);
        let stream = connecting.await.map_err(|error| passing("TLS", &error))?;
        send(stream, request).await
    } else {
        send(stream, request).await
    }
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(), Refused> {
    let broke = |error: hyper::Error| Refused::passing(format!("the connection broke: {error}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
    // Ends with the exchange: the sender is dropped then.
    let carried = tokio::spawn(async move { drop(connection.await) });
    let answered = sender.send_request(request).await;
    let outcome = match answered {
        Ok(answer) => {
            let (head, body) = answer.into_parts();
            // Only so that the receiver sees its answer taken.
            let _ = Limited::new(body, MAX_ANSWER).collect().await;
            judged(head.status, &head.headers)
        }
        Err(error) => Err(broke(error)),
    };
    carried.abort();
    outcome
}

fn judged(status: StatusCode, headers: &HeaderMap) -> Result<(), Refused> {
    if status.is_success() {
        return Ok(());
    }
    let again =
        matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS);
    Err(Refused {
        why: format!("it answered {status}"),
        after: headers.get(header::RETRY_AFTER).and_then(|value| seconds(value.to_str().ok()?)),
        hopeless: !again && !status.is_server_error(),
    })
}

/// `Retry-After` in seconds. A date would need both clocks to agree; receivers of this kind send seconds.
fn seconds(text: &str) -> Option<Duration> {
    let seconds: f64 = text.trim().parse().ok()?;
    (seconds.is_finite() && seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(86_400.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_say_whether_and_when_to_try_again() {
        let mut headers = HeaderMap::new();
        assert_eq!(judged(StatusCode::NO_CONTENT, &headers), Ok(()));
        let broken = judged(StatusCode::BAD_GATEWAY, &headers).expect_err("no");
        assert!(!broken.hopeless && broken.after.is_none());
        assert!(judged(StatusCode::NOT_FOUND, &headers).expect_err("no").hopeless);
        assert!(
            judged(StatusCode::FOUND, &headers).expect_err("no").hopeless,
            "nobody is followed elsewhere"
        );
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2.5"));
        let later = judged(StatusCode::TOO_MANY_REQUESTS, &headers).expect_err("no");
        assert_eq!((later.hopeless, later.after), (false, Some(Duration::from_millis(2_500))));
        for nonsense in ["-1", "soon", "NaN", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(seconds(nonsense), None, "{nonsense}");
        }
        assert_eq!(seconds("1e300"), Some(Duration::from_secs(86_400)));
    }
}
