//! The engine's own statistics beside the agent's: one stream for each container, and what the engine uses for them.

use std::{
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use swarmguard_common::clock;

use crate::{
    process::{Agent, cpu},
    report::{Report, Row, Spread},
};

/// Opens a stream for every running container and compares the engine's CPU time per sample with the agent's.
pub fn measure(seconds: u64, socket: &Path, report: &mut Report) -> Result<()> {
    let ids = containers(socket)?;
    if ids.is_empty() {
        report.skip("agent.vs_engine_stats", "the engine has no running container");
        return Ok(());
    }
    let root = swarmguard_agent::run::cgroup_root("/sys/fs/cgroup".as_ref()).context("no cgroup v2")?;
    let engine = peer_pid(socket)?;
    let window = Duration::from_secs(seconds.max(5));
    let (mut ours, mut theirs) = (Spread::default(), Spread::default());
    let agent = Agent::start(&root, &["--interval=1s"])?;
    agent.wait_for(ids.len())?;
    ours.add(agent.measure(window)?.us_per_sample());
    drop(agent);

    let idle = used(engine, window)?;
    let streams: Vec<_> = ids.iter().map(|id| stream(socket, id)).collect::<Result<_>>()?;
    thread::sleep(Duration::from_secs(3));
    let busy = used(engine, window)?;
    drop(streams);
    let samples = window.as_secs_f64() * ids.len() as f64;
    theirs.add((busy.as_secs_f64() - idle.as_secs_f64()).max(0.0) * 1e6 / samples);
    let name = format!("agent.vs_engine_stats.{}x1hz", ids.len());
    report.add(Row::new(name, "us", &ours).beside("engine stats", &theirs));
    Ok(())
}

fn used(pid: u32, window: Duration) -> Result<Duration> {
    let (before, began) = (cpu(pid)?, clock::now());
    thread::sleep(window);
    let scale = window.as_secs_f64() / (clock::now() - began).as_secs_f64();
    Ok((cpu(pid)? - before).mul_f64(scale))
}

/// The engine at the far end of the socket, which must be a process of this machine.
fn peer_pid(socket: &Path) -> Result<u32> {
    let stream = UnixStream::connect(socket)?;
    let mut about = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>())?;
    // SAFETY: the structure and its length are ours.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut about).cast(),
            &raw mut length,
        )
    };
    if result != 0 || about.pid <= 0 {
        bail!("who serves {} cannot be found out", socket.display());
    }
    Ok(u32::try_from(about.pid)?)
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
