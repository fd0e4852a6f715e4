//! What the kernel itself accounts to processes and interfaces, apart from cgroups and BPF programs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// CPU time of all threads of a process that live, in seconds.
///
/// # Errors
/// Where the process is gone.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let tasks = format!("/proc/{pid}/task");
    let mut ns = 0.0;
    for task in fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))? {
        let task = task?.path();
        // Time on a CPU, time waiting for one, and how often it came to run.
        match number(&task.join("schedstat"), |text| text.split_whitespace().next()) {
            Ok(used) => ns += used,
            // It ended since the threads were listed.
            Err(_) if !task.exists() => {}
            Err(error) => return Err(error),
        }
    }
    ensure!(Path::new(&tasks).exists(), "process {pid} is gone");
    Ok(ns / 1e9)
}

/// Anonymous memory of a process, in MiB.
///
/// # Errors
/// Where the process is gone.
pub fn anonymous_mb(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let kib = number(Path::new(&path), |text| {
        text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?.trim().strip_suffix(" kB")
    })?;
    Ok(kib / 1024.0)
}

/// Megabits that an interface of this network namespace has sent, on layer 3.
///
/// # Errors
/// Where there is no such interface.
pub fn sent_megabits(interface: &str) -> Result<f64> {
    /// What Ethernet adds to each packet, which interfaces count.
    const LINK_HEADER: f64 = 14.0;
    let figure = |name: &str| {
        let path = format!("/sys/class/net/{interface}/statistics/{name}");
        number(Path::new(&path), |text| Some(text))
    };
    let (bytes, packets) = (figure("tx_bytes")?, figure("tx_packets")?);
    Ok((bytes - LINK_HEADER * packets) * 8.0 / 1e6)
}

/// The number that `find` finds in a file.
fn number(path: &Path, find: impl FnOnce(&str) -> Option<&str>) -> Result<f64> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = find(&text).and_then(|word| word.trim().parse().ok());
    found.with_context(|| format!("{} is not as expected: {text}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_time() {
        let pid = std::process::id();
        assert!(anonymous_mb(pid).expect("its own") > 0.1);
        assert!(cpu_seconds(pid).expect("its own") >= 0.0);
        assert!(sent_megabits("no-such-interface").is_err());
        assert!(sent_megabits("lo").is_ok());
    }
}
