//! A Docker engine's API, as raw JSON.
//!
//! Not a typed client: what these tests must prove is that nothing of a service's spec was lost or changed, also
//! fields that no client library knows yet.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use axum::body::Bytes;
use axum::http::Method;
use serde_json::{Value, json};

use crate::http::{Endpoint, text};

const LIMIT: Duration = Duration::from_secs(60);

/// One node's engine.
#[derive(Clone, Debug)]
pub struct Engine {
    endpoint: Endpoint,
    api: String,
}

impl Engine {
    /// Connects and takes the engine's highest API version.
    ///
    /// # Errors
    /// Where it does not answer, or not as an engine.
    pub async fn connect(endpoint: Endpoint) -> Result<Self> {
        let version = endpoint.get_json("/version").await?;
        let api = version["ApiVersion"].as_str().context("the engine does not say its API version")?;
        Ok(Engine { api: format!("/v{api}"), endpoint })
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The engine's own version, for instance `20.10.24+dfsg1`.
    ///
    /// # Errors
    /// Where it does not answer.
    pub async fn version(&self) -> Result<String> {
        Ok(self.endpoint.get_json("/version").await?["Version"].as_str().unwrap_or("unknown").to_owned())
    }

    /// GET of an API path such as `/nodes`.
    ///
    /// # Errors
    /// Where it does not answer with 2xx and JSON.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.endpoint.get_json(&format!("{}{path}", self.api)).await
    }

    /// POST of JSON (or of nothing, where it is null) to an API path.
    ///
    /// # Errors
    /// Where it does not answer with 2xx; the message holds the engine's words.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        self.exchange(Method::POST, path, body, LIMIT).await
    }

    /// DELETE of an API path.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.exchange(Method::DELETE, path, Bytes::new(), LIMIT).await.map(drop)
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes, limit: Duration) -> Result<Value> {
        let (status, answer) =
            self.endpoint.call(method.clone(), &format!("{}{path}", self.api), body, limit).await?;
        ensure!(status.is_success(), "{method} {}{path}: {status}: {}", self.endpoint, text(&answer));
        if answer.is_empty() {
            return Ok(Value::Null);
        }
        // Several answers are JSON lines or text; only single documents are of use here.
        Ok(serde_json::from_slice(&answer).unwrap_or(Value::Null))
    }

    /// Loads an image archive unless the image is there already.
    ///
    /// # Errors
    /// Where the archive cannot be read, or the image is not there afterwards.
    pub async fn load_image(&self, id: &str, archive: &Path) -> Result<()> {
        if self.get(&format!("/images/{id}/json")).await.is_ok() {
            return Ok(());
        }
        let bytes =
            tokio::fs::read(archive).await.with_context(|| format!("cannot read {}", archive.display()))?;
        self.exchange(Method::POST, "/images/load?quiet=1", bytes.into(), Duration::from_secs(300)).await?;
        let there = self.get(&format!("/images/{id}/json")).await;
        there.with_context(|| format!("{} holds another image than {id}", archive.display())).map(drop)
    }

    /// Creates a service from its spec and returns its ID.
    ///
    /// # Errors
    /// The engine's.
    pub async fn create_service(&self, spec: &Value) -> Result<String> {
        let answer = self.post("/services/create", spec).await?;
        answer["ID"].as_str().map(str::to_owned).context("the engine gave the new service no ID")
    }

    /// Replaces a service's spec, as an operator would: read, change, write, and again on a lost race.
    ///
    /// # Errors
    /// The engine's, or after ten lost races.
    pub async fn update_service(&self, id: &str, change: impl Fn(&mut Value)) -> Result<()> {
        for _ in 0..10 {
            let mut service = self.get(&format!("/services/{id}")).await?;
            let version = service["Version"]["Index"].as_u64().context("the service has no version")?;
            change(&mut service["Spec"]);
            match self.post(&format!("/services/{id}/update?version={version}"), &service["Spec"]).await {
                Ok(_) => return Ok(()),
                Err(error) if error.to_string().contains("out of sequence") => {}
                Err(error) => return Err(error),
            }
        }
        bail!("service {id}: ten updates in a row came too late")
    }

    /// A service's spec.
    ///
    /// # Errors
    /// The engine's.
    pub async fn service_spec(&self, id: &str) -> Result<Value> {
        Ok(self.get(&format!("/services/{id}")).await?["Spec"].take())
    }

    /// A service by its name.
    ///
    /// # Errors
    /// The engine's, or where there is none.
    pub async fn service_by_name(&self, name: &str) -> Result<Value> {
        let mut services = self.get(&format!("/services?filters={}", filter("name", name))).await?;
        let list = services.as_array_mut().context("no list of services")?;
        // The filter takes prefixes, too.
        let exact = list.iter_mut().find(|service| service["Spec"]["Name"] == name);
        exact.map(Value::take).with_context(|| format!("no service is called {name}"))
    }

    /// All tasks of a service that Swarm still knows.
    ///
    /// # Errors
    /// The engine's.
    pub async fn tasks(&self, service: &str) -> Result<Vec<Value>> {
        let mut tasks = self.get(&format!("/tasks?filters={}", filter("service", service))).await?;
        Ok(tasks.as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// IDs of the containers of a service, by its name, that run on this node.
    ///
    /// # Errors
    /// The engine's, or where a container has no ID.
    pub async fn running_of(&self, service: &str) -> Result<Vec<String>> {
        let containers = self.get("/containers/json").await?;
        let all = containers.as_array().into_iter().flatten();
        let ours = all.filter(|container| container["Labels"]["com.docker.swarm.service.name"] == service);
        ours.map(|container| Ok(container["Id"].as_str().context("a container without ID")?.to_owned()))
            .collect()
    }

    /// What this engine remembers of a container's events of these kinds, oldest first. It remembers 256 events in all,
    /// health checks included.
    ///
    /// # Errors
    /// The engine's.
    pub async fn past_events(&self, container: &str, kinds: &[&str]) -> Result<Vec<Value>> {
        let filters = escaped(&json!({"container": [container], "event": kinds}));
        // A time that has come ends the stream.
        let now_ms = swarmguard_runtime::clock::wall_ms();
        let until = format!("{}.{:03}000000", now_ms / 1_000, now_ms % 1_000);
        let path = format!("{}/events?since=1&until={until}&filters={filters}", self.api);
        let (status, answer) = self.endpoint.call(Method::GET, &path, Bytes::new(), LIMIT).await?;
        ensure!(status.is_success(), "GET {}{path}: {status}: {}", self.endpoint, text(&answer));
        let lines = serde_json::Deserializer::from_slice(&answer).into_iter::<Value>();
        lines.collect::<Result<_, _>>().context("the engine's events are no JSON")
    }

    /// Sets a node's availability, as an operator would.
    ///
    /// # Errors
    /// The engine's.
    pub async fn set_availability(&self, node: &str, availability: &str) -> Result<()> {
        let mut read = self.get(&format!("/nodes/{node}")).await?;
        let version = read["Version"]["Index"].as_u64().context("the node has no version")?;
        read["Spec"]["Availability"] = json!(availability);
        self.post(&format!("/nodes/{node}/update?version={version}"), &read["Spec"]).await.map(drop)
    }

    /// Runs a program in a container of this node and returns what it printed (both streams, framing removed).
    ///
    /// # Errors
    /// The engine's, or where the program exits with anything but 0.
    pub async fn exec(&self, container: &str, argv: &[&str]) -> Result<String> {
        let ask = json!({"AttachStdout": true, "AttachStderr": true, "Cmd": argv});
        let created = self.post(&format!("/containers/{container}/exec"), &ask).await?;
        let id = created["Id"].as_str().context("the engine gave the exec no ID")?.to_owned();
        let start = format!("{}/exec/{id}/start", self.api);
        let (_, output) =
            self.endpoint.call(Method::POST, &start, json!({"Detach": false}).to_string(), LIMIT).await?;
        let state = self.get(&format!("/exec/{id}/json")).await?;
        let output = unframe(&output);
        ensure!(state["ExitCode"] == 0, "{argv:?} in {container} ended with {}: {output}", state["ExitCode"]);
        Ok(output)
    }
}

/// A filter as the API wants it, escaped for a query.
fn filter(key: &str, value: &str) -> String {
    escaped(&json!({ key: [value] }))
}

fn escaped(filters: &Value) -> String {
    filters.to_string().replace('"', "%22").replace('{', "%7B").replace('}', "%7D")
}

/// Takes the 8-byte headers out of an attached stream.
fn unframe(raw: &[u8]) -> String {
    let (mut text, mut rest) = (Vec::new(), raw);
    while let Some((head, tail)) = rest.split_first_chunk::<8>() {
        let size =
            usize::try_from(u32::from_be_bytes([head[4], head[5], head[6], head[7]])).unwrap_or(usize::MAX);
        let size = size.min(tail.len());
        text.extend_from_slice(&tail[..size]);
        rest = &tail[size..];
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing_is_taken_out_also_where_it_is_cut() {
        let raw = [&[1, 0, 0, 0, 0, 0, 0, 3][..], b"one", &[2, 0, 0, 0, 0, 0, 0, 9], b"two"].concat();
        assert_eq!(unframe(&raw), "onetwo");
        assert_eq!(unframe(&raw[..4]), "");
    }

    #[test]
    fn filters_are_escaped() {
        assert_eq!(filter("service", "ab"), "%7B%22service%22:[%22ab%22]%7D");
    }
}
