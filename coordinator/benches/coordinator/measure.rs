//! The coordinator under measurement, and how its figures are taken.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use swarmguard_runtime::clock;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Sum of the samples whose line begins with the coordinator's prefix and `name`.
pub fn value_of(text: &str, name: &str) -> usize {
    let wanted = format!("swarmguard_coordinator_{name}");
    let lines = text.lines().filter(|line| line.starts_with(&wanted));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
    let sum = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as usize;
    sum
}

/// The program, ended when dropped.
pub struct Coordinator {
    child: Child,
    /// Where agents find it.
    pub quic: SocketAddr,
    /// Its API.
    pub api: SocketAddr,
}

impl Coordinator {
    /// Starts the program and waits until it answers.
    pub async fn spawn(program: &Path, dir: &Path, engine: &str) -> anyhow::Result<Self> {
        // Free a moment ago; whoever takes them in between makes the start fail, not the figures wrong.
        let quic = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let api = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(program)
            .arg("--observe")
            .arg(format!("--quic-addr={quic}"))
            .arg(format!("--api-addr={api}"))
            .arg(format!("--docker={engine}"))
            .arg(format!("--identity=files:{}", dir.join("0").display()))
            .arg(format!("--state-dir={}", dir.join("state").display()))
            .arg("--log=warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let coordinator = Self { child, quic, api };
        coordinator
            .until(Duration::from_secs(60), |text| {
                text.contains("\nswarmguard_coordinator_last_snapshot_timestamp_seconds ")
            })
            .await?;
        Ok(coordinator)
    }

    /// Its figures as text.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.api).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    /// Waits until its figures say something.
    pub async fn until(&self, patience: Duration, met: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let began = clock::now();
        loop {
            let text = self.metrics().await.unwrap_or_default();
            if met(&text) {
                return Ok(());
            }
            if clock::now().since(began) > patience {
                bail!("it did not come to that within {} s; its figures now:\n{text}", patience.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// CPUs used over a window, by the kernel's account of the whole process.
    pub async fn cores_over(&self, window: Duration) -> anyhow::Result<f64> {
        let (began, before) = (clock::now(), self.cpu_seconds()?);
        tokio::time::sleep(window).await;
        Ok((self.cpu_seconds()? - before) / clock::now().since(began).as_secs_f64())
    }

    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let mut nanos = 0_u64;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread that has just ended takes its share with it: blocking helpers, microseconds.
            let Ok(text) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            nanos += text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanos).as_secs_f64())
    }

    /// Resident memory now.
    pub fn resident_mib(&self) -> anyhow::Result<f64> {
        self.memory_mib("VmRSS:")
    }

    /// The most that was ever resident.
    pub fn peak_mib(&self) -> anyhow::Result<f64> {
        self.memory_mib("VmHWM:")
    }

    fn memory_mib(&self, key: &str) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line =
            status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().context("a size")?;
        Ok(kib / 1_024.0)
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
