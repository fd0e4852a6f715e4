//! The engine's own statistics beside the agent's: one stream for each container, and what the engine uses for them.
//!
//! The engine is all of its processes: since 18.09 dockerd asks containerd for figures, which asks each container's shim.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use swarmguard_runtime::clock;

use swarmguard_tests::figures::{Report, Row};

use crate::process::{Agent, cpu};

/// Names of the engine's processes, as far as the kernel keeps them.
const ENGINE: [&str; 3] = ["dockerd", "containerd", "containerd-shim"];

/// Opens a stream for every running container and compares the engine's CPU time per sample with the agent's, in
/// turns. `cgroup` is a part of the path of the engine's own cgroup, where there are several engines.
pub fn measure(
    seconds: u64,
    rounds: usize,
    socket: &Path,
    cgroup: &str,
    root: &Path,
    report: &mut Report,
) -> Result<()> {
    let ids = containers(socket)?;
    if ids.is_empty() {
        report.skip("agent.vs_engine_stats", "the engine has no running container");
        return Ok(());
    }
    let engine = processes(cgroup)?;
    ensure!(!engine.is_empty(), "the engine's processes are not to be found on this machine");
    let window = Duration::from_secs(seconds.max(5));
    let samples = window.as_secs_f64() * ids.len() as f64;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let agent = Agent::start(root, &["--interval=1s"])?;
        agent.wait_for(ids.len())?;
        ours.push(agent.measure(window)?.us_per_sample());
        drop(agent);

        let idle = used(&engine, window)?;
        let streams: Vec<_> = ids.iter().map(|id| stream(socket, id)).collect::<Result<_>>()?;
        thread::sleep(Duration::from_secs(3));
        let busy = used(&engine, window)?;
        for stream in streams {
            // Ends the thread that reads it, and the engine's work for it.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        theirs.push((busy.as_secs_f64() - idle.as_secs_f64()).max(0.0) * 1e6 / samples);
    }
    let name = format!("agent.vs_engine_stats.{}x1hz", ids.len());
    report.announce(Row::of(&name, "us", "<= peer / 100", &ours).beside("engine stats", &theirs));
    Ok(())
}

fn processes(cgroup: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that ends meanwhile was none of the engine's.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let within = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if ENGINE.contains(&name.trim()) && within.contains(cgroup) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn used(engine: &[u32], window: Duration) -> Result<Duration> {
    let all = || -> Result<Duration> { engine.iter().map(|pid| cpu(*pid)).sum() };
    let (before, began) = (all()?, clock::now());
    thread::sleep(window);
    let scale = window.as_secs_f64() / (clock::now() - began).as_secs_f64();
    Ok((all()? - before).mul_f64(scale))
}

fn request(socket: &Path, path: &str) -> Result<UnixStream> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("no engine at {}", socket.display()))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: engine\r\n\r\n")?;
    Ok(stream)
}

fn containers(socket: &Path) -> Result<Vec<String>> {
    let mut text = String::new();
    request(socket, "/containers/json")?.read_to_string(&mut text)?;
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body).context("no answer")?;
    let all: Vec<serde_json::Value> = serde_json::from_str(body).context("the engine's list is no JSON")?;
    Ok(all.iter().filter_map(|it| it["Id"].as_str().map(Into::into)).collect())
}

/// A stream that is read to its end by a thread of its own.
fn stream(socket: &Path, id: &str) -> Result<UnixStream> {
    let stream = request(socket, &format!("/containers/{id}/stats?stream=1"))?;
    let mut reader = stream.try_clone()?;
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1_024];
        while matches!(reader.read(&mut buffer), Ok(length) if length > 0) {}
    });
    Ok(stream)
}
