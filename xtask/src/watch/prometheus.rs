//! Debian's Prometheus, scraping what the coordinator names.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::stage::{Ended, Stage, free_port};
use crate::clock::Stopwatch;
use crate::workspace::root;

/// It runs until dropped.
pub struct Prometheus {
    _process: Ended,
    address: SocketAddr,
}

impl Prometheus {
    /// Starts it with our rules, on a free port of this machine.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(program: &Path, stage: &Stage) -> Result<Self> {
        let dir = stage.dir().join("prometheus");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let config = dir.join("prometheus.yml");
        // The nodes of the played swarm have no addresses of their own: behind each stand the programs of this stage.
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{rules}]\n\
             scrape_configs:\n\
             - job_name: swarmguard\n  honor_labels: true\n\
             \x20 http_sd_configs: [{{url: 'http://{api}/api/v1/targets', refresh_interval: 2s}}]\n\
             \x20 relabel_configs:\n\
             \x20 - {{source_labels: [job], regex: swarmguard-agent, target_label: __address__, replacement: '{agent}'}}\n\
             \x20 - {{source_labels: [job], regex: swarmguard-coordinator, target_label: __address__, replacement: '{api}'}}\n\
             - job_name: swarmguard-balancer\n  static_configs: [{{targets: ['{balancer}']}}]\n",
            rules = root().join("deploy/prometheus/rules.yml").display(),
            api = stage.coordinator,
            agent = stage.agent,
            balancer = stage.balancer_admin,
        );
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
        command.arg(format!("--web.listen-address={address}")).arg("--log.level=warn");
        let log = fs::File::create(dir.join("log")).context("cannot write Prometheus' log")?;
        let process = Ended::start(command.stdout(Stdio::null()).stderr(log))?;
        let prometheus = Self { _process: process, address };
        let waiting = Stopwatch::start();
        while prometheus.get("/-/ready").is_err() {
            let late = waiting.elapsed() > Duration::from_secs(30);
            ensure!(!late, "Prometheus does not start: {}", fs::read_to_string(dir.join("log"))?);
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(prometheus)
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address).context("Prometheus does not answer")?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("Prometheus' answer broke off")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer of HTTP")?;
        ensure!(head.split(' ').nth(1) == Some("200"), "Prometheus says: {body}");
        Ok(body.to_owned())
    }

    fn data(&self, path: &str) -> Result<Value> {
        let answer: Value = serde_json::from_str(&self.get(path)?).context("no JSON of Prometheus")?;
        Ok(answer["data"].clone())
    }

    /// Families that were scraped, by the names that they are declared with.
    ///
    /// # Errors
    /// Where Prometheus does not answer.
    pub fn families(&self) -> Result<BTreeSet<String>> {
        let data = self.data("/api/v1/metadata")?;
        Ok(data.as_object().into_iter().flat_map(|all| all.keys().cloned()).collect())
    }

    /// Whether a query has an answer now; not-a-number is none.
    ///
    /// # Errors
    /// Where the query is wrong.
    pub fn has_data(&self, query: &str) -> Result<bool> {
        let data = self.data(&format!("/api/v1/query?query={}", encoded(query)))?;
        let results = data["result"].as_array().cloned().unwrap_or_default();
        Ok(results.iter().any(|one| one["value"][1].as_str().is_some_and(|value| value != "NaN")))
    }
}

fn encoded(query: &str) -> String {
    query.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
        text
    })
}
