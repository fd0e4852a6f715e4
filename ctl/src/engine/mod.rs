//! The engine's API: found as docker finds it, spoken as raw JSON, so that a spec goes back as it came.

pub mod address;
pub mod connect;
pub mod exec;
pub mod http;

use std::sync::{Mutex, PoisonError};

use ::http::{Method, StatusCode};
use bytes::Bytes;
use serde_json::Value;

use crate::failure::{Exit, Failure, Outcome};
use connect::Connector;
use http::{Answer, Sender};

/// An engine.
#[derive(Debug)]
pub struct Engine {
    /// How connections are made.
    pub connector: Connector,
    /// Highest API version that it speaks, such as `1.41`.
    pub version: String,
    idle: Mutex<Option<Sender>>,
}

impl Engine {
    /// Connects, and asks for the API's version.
    ///
    /// # Errors
    /// When it cannot be reached or is none.
    pub async fn connect(connector: Connector) -> Outcome<Self> {
        let mut sender =
            http::handshake(connector.open().await?).await.map_err(|why| connector.unreachable(&why))?;
        let answer =
            sender.send(Method::GET, "/_ping", &[], None).await.map_err(|why| connector.unreachable(&why))?;
        let version =
            answer.headers.get("api-version").and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
        let version = version.filter(|text| text.chars().all(|c| c.is_ascii_digit() || c == '.'));
        let version =
            version.ok_or_else(|| connector.unreachable("what answers there is no docker engine"))?;
        Ok(Self { connector, version, idle: Mutex::new(Some(sender)) })
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn get(&self, path: &str) -> Outcome<Value> {
        self.call(Method::GET, path, None).await
    }

    /// Reads JSON, with `?filters=`.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn list(&self, path: &str, filters: &Value) -> Outcome<Vec<Value>> {
        let path = format!("{path}?filters={}", http::escape(&filters.to_string()));
        match self.get(&path).await? {
            Value::Array(items) => Ok(items),
            _ => Err(Failure::failed(format!("{path}: the engine did not answer with a list"))),
        }
    }

    /// One call with its answer.
    ///
    /// # Errors
    /// When the engine refuses it or does not answer.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Outcome<Value> {
        let answer = self.raw(method.clone(), path, body).await?;
        if !answer.status.is_success() {
            return Err(refusal(&method, path, &answer));
        }
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer.body).map_err(|error| {
            Failure::failed(format!("{method} {path}: the engine's answer is no JSON: {error}"))
        })
    }

    /// One call; what the engine says is for the caller.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn raw(&self, method: Method, path: &str, body: Option<&Value>) -> Outcome<Answer> {
        let path = format!("/v{}{path}", self.version);
        let body = body.map(|body| Bytes::from(body.to_string()));
        // One that the engine closed meanwhile is replaced; only reads are repeated.
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut sender) = kept.filter(|_| method == Method::GET)
            && let Ok(answer) = sender.send(method.clone(), &path, &[], body.clone()).await
        {
            self.keep(sender);
            return Ok(answer);
        }
        let mut sender = self.sender().await?;
        let sent = sender.send(method.clone(), &path, &[], body).await;
        let answer = sent.map_err(|why| self.connector.unreachable(&format!("{method} {path}: {why}")))?;
        self.keep(sender);
        Ok(answer)
    }

    /// Hands an archive of images over.
    ///
    /// # Errors
    /// When the engine does not take it.
    pub async fn load_images(&self, archive: Bytes) -> Outcome {
        let path = format!("/v{}/images/load?quiet=1", self.version);
        let headers = [("content-type", "application/x-tar")];
        let sent = self.sender().await?.send(Method::POST, &path, &headers, Some(archive)).await;
        let answer = sent.map_err(|why| self.connector.unreachable(&format!("images/load: {why}")))?;
        if answer.status.is_success() && !String::from_utf8_lossy(&answer.body).contains("\"error\"") {
            return Ok(());
        }
        Err(refusal(&Method::POST, "/images/load", &answer))
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// When the engine cannot be reached.
    pub async fn sender(&self) -> Outcome<Sender> {
        let stream = self.connector.open().await?;
        http::handshake(stream).await.map_err(|why| self.connector.unreachable(&why))
    }

    fn keep(&self, sender: Sender) {
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    }
}

/// What an engine's refusal means.
fn refusal(method: &Method, path: &str, answer: &Answer) -> Failure {
    let said = serde_json::from_slice::<Value>(&answer.body).ok();
    let said = said.as_ref().and_then(|value| value.get("message")?.as_str());
    let words =
        said.map_or_else(|| String::from_utf8_lossy(&answer.body).trim().to_owned(), ToOwned::to_owned);
    let what = format!("the engine refused {method} {}: {words}", path.split('?').next().unwrap_or(path));
    if words.contains("not a swarm manager") || words.contains("swarm manager") {
        return Failure::unreachable(words)
            .hint("name a manager's engine: --host ssh://user@manager, --context, or DOCKER_HOST");
    }
    if words.contains("out of sequence") {
        return Failure::new(Exit::Failed, format!("{what}: somebody else changed it at the same moment"))
            .hint("run the command again")
            .code("out_of_sequence");
    }
    let exit = if answer.status == StatusCode::FORBIDDEN { Exit::Unreachable } else { Exit::Failed };
    Failure::new(exit, what).code(answer.status.as_u16().to_string())
}
