//! HTTP to the engine: one request, one bounded answer, over its unix socket or plain TCP, at its own highest API version.
//!
//! Not a typed client: specs must come and go as raw JSON, or fields that a library does not know would be reset.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Body as _, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    net::{TcpStream, UnixStream},
    sync::Mutex,
    time::timeout,
};

use super::split::Objects;

/// Longest answer that is taken whole, in bytes.
const MAX_ANSWER_BYTES: usize = 16 << 20;
/// Longest list that is taken object by object, in bytes: some 100,000 tasks with their past.
const MAX_LIST_BYTES: usize = 2 << 30;
/// For connecting.
const CONNECT: Duration = Duration::from_secs(5);
/// For one request, its answer included; of a list for each piece of it.
const REQUEST: Duration = Duration::from_secs(15);
/// Connections kept for the next readings.
const MAX_IDLE: usize = 6;
/// Longest piece of an engine's words that is passed on, in bytes.
const MAX_WORDS: usize = 500;

/// An engine that did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// It answered with an error.
    #[error("{request}: the engine answered {status}: {words}")]
    Answer {
        /// Method and path.
        request: String,
        /// Its status.
        status: u16,
        /// What it said.
        words: String,
    },
    /// It did not answer, or not so that one could understand it. What was asked may have been done.
    #[error("{request}: no usable answer from the engine at {at}: {why}")]
    NoAnswer {
        /// Method and path.
        request: String,
        /// Where.
        at: String,
        /// Why.
        why: String,
    },
    /// An address that is none.
    #[error("the engine's address {0:?} is not one: use unix:///path or tcp://host:port")]
    Address(String),
}

#[derive(Clone, Debug)]
enum Address {
    Unix(PathBuf),
    Tcp(String),
}

type Sender = http1::SendRequest<Full<Bytes>>;

/// An engine's API.
#[derive(Debug)]
pub struct Engine {
    address: Address,
    shown: String,
    /// `/v1.41`, once it is known.
    version: Mutex<Option<String>>,
    idle: Mutex<Vec<Sender>>,
}

impl Engine {
    /// The engine at `unix:///path` or `tcp://host:port`. Nothing is connected yet.
    ///
    /// # Errors
    /// When the address is of another kind.
    pub fn new(address: &str) -> Result<Self, EngineError> {
        let parsed = match address.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Address::Unix(path.into()),
            Some(("tcp" | "http", host)) if host.contains(':') => {
                Address::Tcp(host.trim_end_matches('/').into())
            }
            _ => return Err(EngineError::Address(address.chars().take(200).collect())),
        };
        Ok(Self { address: parsed, shown: address.into(), version: Mutex::default(), idle: Mutex::default() })
    }

    /// Reads one object at a path below the API version.
    pub(super) async fn get(&self, path: &str) -> Result<Bytes, EngineError> {
        let path = format!("{}{path}", self.version().await?);
        let request = format!("GET {path}");
        let (mut sender, body) = self.begin(&path).await?;
        let bytes = timeout(REQUEST, whole(body)).await;
        let bytes = bytes.map_err(|_| self.no_answer(&request, &"timed out"))?;
        let bytes = bytes.map_err(|why| self.no_answer(&request, &why))?;
        if timeout(CONNECT, sender.ready()).await.is_ok_and(|ready| ready.is_ok()) {
            self.keep(sender).await;
        }
        Ok(bytes)
    }

    /// Reads a list; `take` gets the text of each object as it arrives.
    pub(super) async fn list(
        &self,
        path: &str,
        mut take: impl FnMut(&[u8]) + Send,
    ) -> Result<(), EngineError> {
        let path = format!("{}{path}", self.version().await?);
        let request = format!("GET {path}");
        let (mut sender, mut body) = self.begin(&path).await?;
        let (mut objects, mut bytes) = (Objects::new(), 0);
        loop {
            let frame = match timeout(REQUEST, body.frame()).await {
                Ok(None) => break,
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(self.no_answer(&request, &error)),
                Err(_) => return Err(self.no_answer(&request, &"its answer stopped in the middle")),
            };
            let Some(data) = frame.data_ref() else { continue };
            bytes += data.len();
            if bytes > MAX_LIST_BYTES {
                let why = format!("its answer is longer than {MAX_LIST_BYTES} bytes");
                return Err(self.no_answer(&request, &why));
            }
            objects.push(data, &mut take).map_err(|why| self.no_answer(&request, &why))?;
        }
        objects.end().map_err(|why| self.no_answer(&request, &why))?;
        if timeout(CONNECT, sender.ready()).await.is_ok_and(|ready| ready.is_ok()) {
            self.keep(sender).await;
        }
        Ok(())
    }

    /// Asks, and answers with the body of an answer that is one.
    async fn begin(&self, path: &str) -> Result<(Sender, Incoming), EngineError> {
        let request = format!("GET {path}");
        // An idle connection may have died since: then once more on a new one. Reading twice does no harm.
        let mut answered = None;
        if let Some(mut sender) = self.idle_sender().await {
            let sent = timeout(REQUEST, sender.send_request(self.request(&Method::GET, path, None))).await;
            answered = match sent {
                Ok(Ok(answer)) => Some((sender, answer)),
                Ok(Err(_)) => None,
                Err(_) => return Err(self.no_answer(&request, &"timed out")),
            };
        }
        let (sender, answer) = match answered {
            Some(answered) => answered,
            None => {
                let mut sender = self.connect(&request).await?;
                let sent =
                    timeout(REQUEST, sender.send_request(self.request(&Method::GET, path, None))).await;
                let answer = sent
                    .map_err(|_| self.no_answer(&request, &"timed out"))?
                    .map_err(|error| self.no_answer(&request, &error))?;
                (sender, answer)
            }
        };
        let status = answer.status();
        if status.is_success() {
            return Ok((sender, answer.into_body()));
        }
        let said = timeout(REQUEST, whole(answer.into_body())).await;
        let said = said.map_err(|_| self.no_answer(&request, &"timed out"))?;
        Err(refusal(request, status, &said.unwrap_or_default()))
    }

    async fn keep(&self, sender: Sender) {
        let mut idle = self.idle.lock().await;
        if idle.len() < MAX_IDLE {
            idle.push(sender);
        }
    }

    /// Changes something, on a connection of its own: one that the engine was about to close would leave it open
    /// whether it was done.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Bytes, EngineError> {
        let path = format!("{}{path}", self.version().await?);
        let request = format!("{method} {path}");
        let sender = self.connect(&request).await?;
        self.exchange(sender, method, &path, body)
            .await
            .unwrap_or_else(|why| Err(self.no_answer(&request, &why)))
    }

    /// The path prefix of the engine's highest API version, asked for once.
    async fn version(&self) -> Result<String, EngineError> {
        let mut known = self.version.lock().await;
        if let Some(version) = known.as_ref() {
            return Ok(version.clone());
        }
        let mut sender = self.connect("GET /_ping").await?;
        let sent = timeout(REQUEST, sender.send_request(self.request(&Method::GET, "/_ping", None))).await;
        let answer = sent
            .map_err(|_| self.no_answer("GET /_ping", &"timed out"))?
            .map_err(|error| self.no_answer("GET /_ping", &error))?;
        let version = answer.headers().get("api-version").and_then(|value| value.to_str().ok());
        let plain =
            |text: &&str| !text.is_empty() && text.chars().all(|char| char.is_ascii_digit() || char == '.');
        let version =
            version.filter(plain).ok_or_else(|| self.no_answer("GET /_ping", &"it names no API version"))?;
        let prefix = format!("/v{version}");
        *known = Some(prefix.clone());
        Ok(prefix)
    }

    /// The address, as it was given.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Forgets what is known of the engine: it may be another version after its restart.
    pub(super) async fn forget(&self) {
        *self.version.lock().await = None;
        self.idle.lock().await.clear();
    }

    async fn idle_sender(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().await;
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    async fn connect(&self, request: &str) -> Result<Sender, EngineError> {
        match timeout(CONNECT, self.handshake()).await {
            Ok(Ok(sender)) => Ok(sender),
            Ok(Err(why)) => Err(self.no_answer(request, &why)),
            Err(_) => Err(self.no_answer(request, &"connecting timed out")),
        }
    }

    async fn handshake(&self) -> Result<Sender, String> {
        let text = |error: std::io::Error| error.to_string();
        let sender = match &self.address {
            Address::Unix(path) => spawn(UnixStream::connect(path).await.map_err(text)?).await,
            Address::Tcp(host) => spawn(TcpStream::connect(host.as_str()).await.map_err(text)?).await,
        };
        sender.map_err(|error| error.to_string())
    }

    /// One request and its answer. The outer error is a connection that broke, the inner one the engine's word.
    async fn exchange(
        &self,
        mut sender: Sender,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Result<Bytes, EngineError>, String> {
        let request = self.request(&method, path, body);
        let answered = async {
            let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = answer.status();
            Ok::<_, String>((status, whole(answer.into_body()).await?))
        };
        let (status, bytes) = timeout(REQUEST, answered).await.map_err(|_| "timed out".to_string())??;
        if status.is_success() {
            return Ok(Ok(bytes));
        }
        Ok(Err(refusal(format!("{method} {path}"), status, &bytes)))
    }

    fn request(&self, method: &Method, path: &str, body: Option<&Value>) -> Request<Full<Bytes>> {
        let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let mut request = Request::new(Full::new(bytes));
        *request.method_mut() = method.clone();
        // A path that is no URI is answered by the engine with an error, which names it.
        *request.uri_mut() = path.parse().unwrap_or_else(|_| http::Uri::from_static("/invalid-path"));
        let headers = request.headers_mut();
        headers.insert(header::HOST, header::HeaderValue::from_static("docker"));
        if body.is_some() {
            headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        }
        request
    }

    pub(super) fn no_answer(&self, request: &str, why: &impl std::fmt::Display) -> EngineError {
        EngineError::NoAnswer { request: request.into(), at: self.shown.clone(), why: why.to_string() }
    }
}

/// An answer to its end, bounded. Into one piece of memory as it comes: a large swarm's tasks are tens of megabytes, and
/// to collect the frames first would take them twice.
async fn whole(mut body: Incoming) -> Result<Bytes, String> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut bytes = Vec::with_capacity(announced.min(MAX_ANSWER_BYTES));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > MAX_ANSWER_BYTES {
            return Err(format!("its answer is longer than {MAX_ANSWER_BYTES} bytes"));
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes.into())
}

async fn spawn<S>(stream: S) -> Result<Sender, hyper::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends when the sender is dropped or the engine closes; what went wrong is told to the sender.
    tokio::spawn(connection);
    Ok(sender)
}

fn refusal(request: String, status: StatusCode, body: &Bytes) -> EngineError {
    let said: Option<String> = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|value| value.get("message")?.as_str().map(Into::into));
    let words = said.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    EngineError::Answer { request, status: status.as_u16(), words: words.chars().take(MAX_WORDS).collect() }
}

/// `?filters=` for a GET, escaped.
pub(super) fn filters(filters: &Value) -> String {
    let escaped: String = filters
        .to_string()
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    format!("?filters={escaped}")
}
