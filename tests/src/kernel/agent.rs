//! The agent under test: the real program, asked over HTTP.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use swarmguard_runtime::clock::now;
use tokio::process::{Child, Command};

use crate::http::Endpoint;

const PORT: u16 = 18_082;
/// Longest wait for the agent to see a new container.
const SEES: Duration = Duration::from_secs(60);
/// After a container is first seen: the windows that the agent averages over are full by then.
const WARM: Duration = Duration::from_secs(4);
const EVERY: Duration = Duration::from_millis(100);
/// The agent's figures are means that a value this old counts a third in: so far they lag behind.
const LAG: Duration = Duration::from_millis(500);

/// What was measured over the same time.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// The mean of the agent's figure.
    pub figure: f64,
    /// How much the known counter grew in a second.
    pub known: f64,
}

/// A running agent; ends when dropped.
#[derive(Debug)]
pub struct Agent {
    endpoint: Endpoint,
    child: Child,
}

impl Agent {
    /// Starts `program` with nothing but what it finds on this machine: no engine, no coordinator.
    ///
    /// # Errors
    /// Where it cannot be started or does not come to answer.
    pub async fn start(program: &Path) -> Result<Self> {
        let addr = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
        let child = Command::new(program)
            .env("SWARMGUARD_HTTP_ADDR", addr.to_string())
            .env("SWARMGUARD_COORDINATORS", "none")
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut agent = Agent { endpoint: Endpoint::Tcp(addr), child };
        let start = now();
        while agent.endpoint.get_json("/metrics/containers").await.is_err() {
            if let Some(status) = agent.child.try_wait()? {
                bail!("the agent ended at once: {status}");
            }
            if now() - start > SEES {
                bail!("the agent does not answer on {addr}");
            }
            tokio::time::sleep(EVERY).await;
        }
        Ok(agent)
    }

    /// Mean of one figure of one container over `window`.
    ///
    /// # Errors
    /// Where the agent never names the container, or the figure is missing.
    pub async fn mean(&self, container: &str, figure: &str, window: Duration) -> Result<f64> {
        Ok(self.compare(container, figure, window, || Ok(0.0)).await?.figure)
    }

    /// Mean of one figure of one container over `window`, and the growth of the counter `known` over the time that the
    /// figure speaks of.
    ///
    /// # Errors
    /// Where the agent never names the container, or the figure or the counter is missing.
    pub async fn compare(
        &self,
        container: &str,
        figure: &str,
        window: Duration,
        known: impl Fn() -> Result<f64>,
    ) -> Result<Compared> {
        let start = now();
        while self.container(container).await?.is_none() {
            if now() - start > SEES {
                bail!("the agent does not see container {container}");
            }
            tokio::time::sleep(EVERY).await;
        }
        tokio::time::sleep(WARM).await;
        let (first_at, first) = (now(), known()?);
        let mut last = (first_at, first);
        tokio::time::sleep(LAG).await;
        let (mut sum, mut count, start) = (0.0, 0.0, now());
        while now() - start < window {
            if now() - start < window.saturating_sub(LAG) {
                last = (now(), known()?);
            }
            let found = self.container(container).await?;
            let found = found.with_context(|| format!("the agent lost container {container}"))?;
            sum += found[figure].as_f64().with_context(|| format!("no {figure} in {found}"))?;
            count += 1.0;
            tokio::time::sleep(EVERY).await;
        }
        let (last_at, last) = last;
        let seconds = last_at.since(first_at).as_secs_f64();
        ensure!(seconds > 0.0, "nothing was measured within {window:?}");
        Ok(Compared { figure: sum / count, known: (last - first) / seconds })
    }

    async fn container(&self, id: &str) -> Result<Option<Value>> {
        let mut answer = self.endpoint.get_json("/metrics/containers").await?;
        let list = answer["containers"].as_array_mut().context("no list of containers")?;
        // Short or long, as the agent likes it.
        let is = |value: &Value| {
            value["container_id"].as_str().is_some_and(|text| text.len() >= 12 && id.starts_with(text))
        };
        Ok(list.iter_mut().find(|value| is(value)).map(Value::take))
    }
}
