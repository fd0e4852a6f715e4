//! The proxies that are compared, as child processes: ours, nginx and HAProxy, each with one thread and the same replicas.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;

use crate::backend::Kind;

/// A port that was free a moment ago may be taken meanwhile, by a connection of somebody else's.
const ATTEMPTS: u32 = 5;
/// Time for a child to listen.
const START: Duration = Duration::from_secs(20);

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Measures this build of the balancer.
pub fn use_program(program: PathBuf) {
    // Called once, before anything is measured.
    let _ = PROGRAM.set(program);
}

/// Length of a large answer, in bytes.
const LARGE: usize = 64 * 1_024;

/// A proxy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// Ours, with this algorithm.
    SwarmGuard(&'static str),
    /// nginx, round-robin.
    Nginx,
    /// HAProxy with this `balance`.
    HaProxy(&'static str),
}

impl Peer {
    /// For the table.
    pub fn name(&self) -> String {
        match self {
            Self::SwarmGuard(algorithm) => format!("swarmguard {algorithm}"),
            Self::Nginx => "nginx".into(),
            Self::HaProxy(balance) => format!("haproxy {balance}"),
        }
    }

    /// The same as one word, for names of rows.
    pub fn word(&self) -> String {
        self.name().replace(' ', "_").replace(['(', ')'], "")
    }
}

/// What clients speak with a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 in clear text by prior knowledge. Ours tells them apart by itself.
    Http2,
}

/// A child that is killed when dropped, with its own children.
pub struct Running {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    _directory: tempfile::TempDir,
}

/// A port that is free now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Starts a proxy in front of replicas, on CPU `cpu` where one is named. Ours asks agents at `metrics_port` where there
/// are any.
pub fn start(
    peer: &Peer,
    replicas: &[SocketAddr],
    metrics_port: Option<u16>,
    cpu: Option<u32>,
) -> Result<Running> {
    start_with(peer, Front::Http1, replicas, metrics_port, cpu, 8_192)
}

/// The same for clients that speak `front`.
pub fn start_speaking(
    peer: &Peer,
    front: Front,
    replicas: &[SocketAddr],
    cpu: Option<u32>,
) -> Result<Running> {
    start_with(peer, front, replicas, None, cpu, 8_192)
}

/// The same for so many connections.
pub fn start_for(peer: &Peer, front: Front, replicas: &[SocketAddr], connections: u32) -> Result<Running> {
    start_with(peer, front, replicas, None, None, connections)
}

fn start_with(
    peer: &Peer,
    front: Front,
    replicas: &[SocketAddr],
    metrics_port: Option<u16>,
    cpu: Option<u32>,
    connections: u32,
) -> Result<Running> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match start_once(peer, front, replicas, metrics_port, cpu, connections) {
            Ok(running) => return Ok(running),
            Err(error) => last = Some(error),
        }
    }
    Err(last.context("nothing was tried")?).with_context(|| format!("cannot start {}", peer.name()))
}

fn start_once(
    peer: &Peer,
    front: Front,
    replicas: &[SocketAddr],
    metrics_port: Option<u16>,
    cpu: Option<u32>,
    connections: u32,
) -> Result<Running> {
    let port = free_port()?;
    let directory = tempfile::tempdir()?;
    let mut command = pinned(cpu);
    match peer {
        Peer::SwarmGuard(algorithm) => ours(&mut command, algorithm, port, replicas, metrics_port)?,
        Peer::Nginx => nginx(&mut command, directory.path(), front, port, replicas, connections)?,
        Peer::HaProxy(balance) => {
            haproxy(&mut command, directory.path(), balance, front, port, replicas, connections)?;
        }
    }
    running(command, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), directory)
}

/// Starts a replica of a kind: this program itself, as a child.
pub fn start_replica(kind: Kind, address: SocketAddr, rounds_a_ms: u64) -> Result<Running> {
    let word = kind.to_possible_value().context("every kind has a name")?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg(format!("--backend={}", word.get_name()))
        .arg(format!("--address={address}"))
        .arg(format!("--rounds-a-ms={rounds_a_ms}"));
    running(command, address, tempfile::tempdir()?)
}

fn pinned(cpu: Option<u32>) -> Command {
    match cpu {
        Some(cpu) => {
            let mut command = Command::new("taskset");
            command.arg("-c").arg(cpu.to_string());
            command
        }
        None => Command::new("env"),
    }
}

fn running(mut command: Command, address: SocketAddr, directory: tempfile::TempDir) -> Result<Running> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let mut running = Running { child, address, _directory: directory };
    let mut waited = Duration::ZERO;
    while TcpStream::connect(address).is_err() {
        if let Some(status) = running.child.try_wait()? {
            bail!("it ended at once ({status})");
        }
        if waited > START {
            bail!("it does not listen on {address}");
        }
        std::thread::sleep(Duration::from_millis(20));
        waited += Duration::from_millis(20);
    }
    Ok(running)
}

fn ours(
    command: &mut Command,
    algorithm: &str,
    port: u16,
    replicas: &[SocketAddr],
    metrics_port: Option<u16>,
) -> Result<()> {
    let nodes: Vec<String> = replicas.iter().map(SocketAddr::to_string).collect();
    command
        .arg(PROGRAM.get_or_init(|| env!("CARGO_BIN_EXE_swarmguard-balancer").into()))
        .args(["--workers=1", "--log=error", "--listen-ip=127.0.0.1"])
        .arg(format!("--algorithm={algorithm}"))
        .arg(format!("--port={port}"))
        .arg(format!("--admin-addr=127.0.0.1:{}", free_port()?))
        .arg(format!("--worker-nodes={}", nodes.join(",")));
    if let Some(port) = metrics_port {
        command.arg(format!("--metrics-port={port}"));
    }
    Ok(())
}

fn nginx(
    command: &mut Command,
    directory: &Path,
    front: Front,
    port: u16,
    replicas: &[SocketAddr],
    connections: u32,
) -> Result<()> {
    let servers: String = replicas.iter().map(|address| format!("server {address};\n")).collect();
    let base = directory.display();
    let http2 = if front == Front::Http2 { " http2" } else { "" };
    let text = format!(
        "worker_processes 1; daemon off; pid {base}/pid; error_log /dev/null;\n\
         events {{ worker_connections {connections}; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {base}; proxy_temp_path {base};\n\
         fastcgi_temp_path {base}; uwsgi_temp_path {base}; scgi_temp_path {base};\n\
         map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}\n\
         upstream replicas {{ {servers} keepalive 256; keepalive_requests 1000000000; }}\n\
         server {{ listen 127.0.0.1:{port}{http2} backlog=4096; location / {{ proxy_http_version 1.1;\n\
         proxy_set_header Connection $connection_upgrade; proxy_set_header Upgrade $http_upgrade; proxy_set_header Host $host;\n\
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
         proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $host;\n\
         proxy_pass http://replicas; }} }} }}\n"
    );
    let path = directory.join("nginx.conf");
    fs::write(&path, text)?;
    command.arg("nginx").arg("-c").arg(path);
    Ok(())
}

fn haproxy(
    command: &mut Command,
    directory: &Path,
    balance: &str,
    front: Front,
    port: u16,
    replicas: &[SocketAddr],
    connections: u32,
) -> Result<()> {
    let server = |(n, address): (usize, &SocketAddr)| format!("  server s{n} {address} pool-max-conn 512\n");
    let servers: String = replicas.iter().enumerate().map(server).collect();
    let http2 = if front == Front::Http2 { " proto h2" } else { "" };
    let text = format!(
        "global\n  nbthread 1\n  no strict-limits\n  maxconn {connections}\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  \
         timeout server 60s\n  option forwardfor\n  http-reuse always\nfrontend clients\n  bind 127.0.0.1:{port}{http2} backlog 4096\n  \
         http-request set-header X-Forwarded-Proto http\n  http-request set-header X-Forwarded-Host %[req.hdr(host)]\n  \
         default_backend replicas\nbackend replicas\n  balance {balance}\n{servers}"
    );
    let path = directory.join("haproxy.cfg");
    fs::write(&path, text)?;
    command.arg("haproxy").args(["-q", "-db", "-f"]).arg(path);
    Ok(())
}

impl Running {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process and its children.
    pub fn processes(&self) -> Vec<u32> {
        processes(self.child.id())
    }

    /// CPU time of the process, its threads and its children so far, in nanoseconds.
    pub fn cpu_ns(&self) -> u64 {
        processes(self.child.id()).into_iter().map(cpu_of).sum()
    }
}

fn processes(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|it| it.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

/// CPU time of a process's living threads so far, in nanoseconds; 0 where it is gone.
pub fn cpu_of(pid: u32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let spent = |path: std::path::PathBuf| {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    threads.filter_map(|thread| spent(thread.ok()?.path())).sum()
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // nginx's worker ends with its master only when asked politely.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// nginx as a replica that answers at once.
pub fn start_static(cpu: u32) -> Result<Running> {
    let port = free_port()?;
    let directory = tempfile::tempdir()?;
    let base = directory.path().display();
    let text = format!(
        "worker_processes 1; daemon off; pid {base}/pid; error_log /dev/null;\n\
         events {{ worker_connections 8192; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {base}; proxy_temp_path {base};\n\
         fastcgi_temp_path {base}; uwsgi_temp_path {base}; scgi_temp_path {base};\n\
         server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 \"hello, a small answer\\n\"; }}\n\
         location /large {{ root {base}; }} }} }}\n"
    );
    fs::write(directory.path().join("large"), vec![b'x'; LARGE])?;
    let path = directory.path().join("nginx.conf");
    fs::write(&path, text)?;
    let mut command = pinned(Some(cpu));
    command.arg("nginx").arg("-c").arg(path);
    running(command, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), directory)
}
