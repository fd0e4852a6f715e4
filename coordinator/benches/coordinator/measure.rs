//! The coordinator under measurement, and how its figures are taken and printed.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::json;
use swarmguard_common::clock;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// One figure over several rounds.
pub struct Row {
    row: String,
    unit: &'static str,
    value: f64,
    min: f64,
    max: f64,
    target: &'static str,
}

impl Row {
    /// Median and spread of the rounds; at least one is needed.
    pub fn of(row: &str, unit: &'static str, target: &'static str, rounds: &[f64]) -> Self {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) =
            (sorted.first().copied().unwrap_or(f64::NAN), sorted.last().copied().unwrap_or(f64::NAN));
        Self { row: row.into(), unit, value: percentile(&sorted, 0.5), min, max, target }
    }

    /// Two rows, p50 and p99, of many single figures.
    pub fn percentiles(
        row: &str,
        unit: &'static str,
        target: &'static str,
        mut figures: Vec<f64>,
    ) -> [Self; 2] {
        figures.sort_by(f64::total_cmp);
        [("p50", 0.5, ""), ("p99", 0.99, target)].map(|(name, share, target)| {
            let mut one = Self::of(&format!("{row}.{name}"), unit, target, &figures);
            one.value = percentile(&figures, share);
            one
        })
    }
}

/// All rows as a table.
pub fn print(rows: &[Row]) {
    println!("{:<40} {:>10} {:>10} {:>10} {:<6} target", "row", "value", "min", "max", "unit");
    for Row { row, unit, value, min, max, target } in rows {
        println!("{row:<40} {value:>10.3} {min:>10.3} {max:>10.3} {unit:<6} {target}");
    }
}

/// All rows as a file; nothing else does what a coordinator does, so there is no peer to compare with.
pub fn write(rows: &[Row], to: &Path) -> anyhow::Result<()> {
    let none = serde_json::Value::Null;
    let rows: Vec<_> = rows
        .iter()
        .map(|Row { row, unit, value, min, max, .. }| {
            json!({"row": row, "unit": unit, "value": value, "min": min, "max": max, "peer": none, "peer_value": none,
                "ratio": none, "command": "cargo xtask bench coordinator"})
        })
        .collect();
    let all = json!({"machine": machine(), "rows": rows});
    if let Some(dir) = to.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    std::fs::write(to, format!("{all:#}\n")).with_context(|| format!("cannot write {}", to.display()))
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{count} x {}, Linux {}", model.trim_start_matches([' ', '\t', ':']), kernel.trim())
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
    let at = (float(sorted.len().saturating_sub(1)) * share).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// A count as a figure; all of ours are far below 2^32.
pub fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

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
    pub async fn spawn(program: &Path, dir: &Path, socket: &Path) -> anyhow::Result<Self> {
        // Free a moment ago; whoever takes them in between makes the start fail, not the figures wrong.
        let quic = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let api = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(program)
            .arg("--observe")
            .arg(format!("--quic-addr={quic}"))
            .arg(format!("--api-addr={api}"))
            .arg(format!("--docker=unix://{}", socket.display()))
            .arg(format!("--identity=files:{}", dir.join("0").display()))
            .arg(format!("--state-dir={}", dir.join("state").display()))
            .arg("--log=warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let coordinator = Self { child, quic, api };
        coordinator.until(Duration::from_secs(60), |text| text.contains("snapshot_age_seconds")).await?;
        Ok(coordinator)
    }

    /// Its figures as text.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(self.api).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
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
