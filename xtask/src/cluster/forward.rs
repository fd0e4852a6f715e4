//! The forwarder: unix sockets on this machine, TCP connections inside the cluster's network namespace.
//!
//! A process of its own, started inside that namespace, so that a test or a person can use a node's API without
//! the cluster's addresses ever appearing in the machine's own network.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::process::{Daemon, Identity};

/// Connections at the same time; more are closed at once and counted in the log.
const MAX_CONNECTIONS: usize = 512;

static OPEN: AtomicUsize = AtomicUsize::new(0);

/// `cluster forward SOCKET=IP:PORT…`: hidden, `up` starts it.
#[derive(clap::Args)]
pub struct Args {
    /// What to listen on and where to connect
    #[arg(required = true)]
    routes: Vec<String>,
}

/// A socket file and the address behind it.
pub type Route = (PathBuf, Ipv4Addr, u16);

/// Starts the forwarder inside `namespace`.
///
/// # Errors
/// Where it cannot be started.
pub fn start(cluster: &Path, namespace: &str, routes: &[Route]) -> Result<Identity> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(["cluster", "forward"]);
    command.args(routes.iter().map(|(socket, ip, port)| format!("{}={ip}:{port}", socket.display())));
    let log = cluster.join("forwarder.log");
    Daemon { command, cluster, log, namespace: Some(namespace) }.start()
}

/// Serves until it is killed.
///
/// # Errors
/// Where a socket cannot be made.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut threads = Vec::new();
    for route in &args.routes {
        let (path, target) =
            route.rsplit_once('=').with_context(|| format!("{route} is not SOCKET=IP:PORT"))?;
        let target: SocketAddr = target.parse().with_context(|| format!("{target} is not IP:PORT"))?;
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {path}"))?;
        threads.push(std::thread::spawn(move || accept(&listener, target)));
    }
    for thread in threads {
        if thread.join().is_err() {
            bail!("a listener panicked");
        }
    }
    bail!("all listeners closed")
}

fn accept(listener: &UnixListener, target: SocketAddr) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of descriptors: wait for some to come back.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        if OPEN.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
            OPEN.fetch_sub(1, Ordering::SeqCst);
            eprintln!("refused a connection to {target}: {MAX_CONNECTIONS} are open");
            continue;
        }
        std::thread::spawn(move || {
            if let Err(error) = relay(&stream, target) {
                eprintln!("connection to {target}: {error}");
            }
            OPEN.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn relay(near: &UnixStream, target: SocketAddr) -> io::Result<()> {
    let far = TcpStream::connect_timeout(&target, Duration::from_secs(3))?;
    far.set_nodelay(true)?;
    detect_death(far.as_raw_fd())?;
    let (near_in, far_out) = (near.try_clone()?, far.try_clone()?);
    let there = std::thread::spawn(move || {
        let copied = io::copy(&mut &near_in, &mut &far_out);
        // Half a close is passed on: `docker load` and attached sessions end their input long before the answer.
        let _ = far_out.shutdown(Shutdown::Write);
        if copied.is_err() {
            let _ = far_out.shutdown(Shutdown::Both);
        }
    });
    let back = io::copy(&mut &far, &mut &*near).map(|_| ());
    // Nothing more will come, so the other direction has no reader either.
    let _ = near.shutdown(Shutdown::Both);
    let _ = far.shutdown(Shutdown::Both);
    let _ = there.join();
    back
}

/// A node whose power is cut sends no reset: without this, a client that waits for events would wait for ever.
fn detect_death(socket: RawFd) -> io::Result<()> {
    let options = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 5),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 2),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 5),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 20_000),
    ];
    for (level, name, value) in options {
        let value: libc::c_int = value;
        let size = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
        // SAFETY: pointer and size describe `value`, and the descriptor is open.
        let status = unsafe { libc::setsockopt(socket, level, name, (&raw const value).cast(), size) };
        if status < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
