//! The command agent of a node: runs a program or writes a file for whoever connects.
//!
//! No authentication: it listens only inside the cluster's own network namespace or on a socket file that only
//! root can reach, like the unprotected Docker API beside it.

use std::fs;
use std::io::{Read, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use swarmguard_guest::protocol::{Kind, read_frame, split, write_frame};

use crate::sys::{self, Result, context};

/// Requests answered at the same time; more are refused.
const MAX_REQUESTS: usize = 64;

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Serves on `0.0.0.0:PORT` or, where the address is a path, on a unix socket; never returns on success.
pub fn serve(address: &str) -> Result<()> {
    if address.starts_with('/') {
        // A socket left by an earlier boot of this node would make the bind fail.
        let _ = fs::remove_file(address);
        let listener = context(UnixListener::bind(address), || format!("cannot listen on {address}"))?;
        for stream in listener.incoming().flatten() {
            handle(Peer::Unix(stream));
        }
    } else {
        let listener = context(TcpListener::bind(address), || format!("cannot listen on {address}"))?;
        for stream in listener.incoming().flatten() {
            let _ = stream.set_nodelay(true);
            handle(Peer::Tcp(stream));
        }
    }
    Err(format!("the listener on {address} closed"))
}

enum Peer {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Peer {
    fn try_clone(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    fn close(&self) {
        // Fails only where the peer is gone already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Peer {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl std::io::Write for Peer {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn handle(mut peer: Peer) {
    if RUNNING.fetch_add(1, Ordering::SeqCst) >= MAX_REQUESTS {
        RUNNING.fetch_sub(1, Ordering::SeqCst);
        let _ = write_frame(&mut peer, Kind::Error, b"the node already runs 64 commands");
        return;
    }
    std::thread::spawn(move || {
        if let Err(error) = answer(&mut peer) {
            let _ = write_frame(&mut peer, Kind::Error, error.as_bytes());
        }
        peer.close();
        RUNNING.fetch_sub(1, Ordering::SeqCst);
    });
}

fn answer(peer: &mut Peer) -> Result<()> {
    match context(read_frame(peer), || "cannot read the request".to_owned())? {
        Some((Kind::Run, payload)) => run(peer, &split(&payload)),
        Some((Kind::Copy, payload)) => copy(peer, &split(&payload)),
        Some((kind, _)) => Err(format!("expected a request, not {kind:?}")),
        None => Ok(()),
    }
}

fn copy(peer: &mut Peer, words: &[String]) -> Result<()> {
    let [mode, path] = words else { return Err("a copy request needs mode and path".to_owned()) };
    let mode = context(u32::from_str_radix(mode, 8), || format!("bad mode {mode}"))?;
    if let Some(parent) = std::path::Path::new(path).parent() {
        context(fs::create_dir_all(parent), || format!("cannot create {}", parent.display()))?;
    }
    // Written beside and renamed, so that a program that is running can be replaced and a cut leaves no half.
    let beside = format!("{path}.sg-copy");
    let _ = fs::remove_file(&beside);
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside);
    let mut file = context(opened, || format!("cannot create {beside}"))?;
    loop {
        match context(read_frame(peer), || format!("cannot receive {path}"))? {
            Some((Kind::Data, data)) if data.is_empty() => break,
            Some((Kind::Data, data)) => context(file.write_all(&data), || format!("cannot write {beside}"))?,
            _ => return Err(format!("the sender of {path} stopped in the middle")),
        }
    }
    context(fs::rename(&beside, path), || format!("cannot rename {beside} to {path}"))?;
    context(write_frame(peer, Kind::Exit, b"0"), || "cannot answer".to_owned())
}

fn run(peer: &mut Peer, words: &[String]) -> Result<()> {
    let [program, arguments @ ..] = words else { return Err("a run request needs a program".to_owned()) };
    let mut child = context(
        Command::new(program)
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn(),
        || format!("cannot run {program}"),
    )?;
    let out = Arc::new(Mutex::new(context(peer.try_clone(), || "cannot share the connection".to_owned())?));
    let group = child.id();
    let ended = Arc::new(Mutex::new(false));
    let mut pumps = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        pumps.push(pump(stdout, Kind::Stdout, Arc::clone(&out)));
    }
    if let Some(stderr) = child.stderr.take() {
        pumps.push(pump(stderr, Kind::Stderr, Arc::clone(&out)));
    }
    let mut input = context(peer.try_clone(), || "cannot share the connection".to_owned())?;
    let stdin = child.stdin.take();
    let watch = Arc::clone(&ended);
    std::thread::spawn(move || feed(&mut input, stdin, group, &watch));
    let status = context(child.wait(), || format!("cannot wait for {program}"))?;
    *ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
    // Output that a process left in the background would hold open is not waited for.
    for pump in pumps {
        let deadline = 20;
        for _ in 0..deadline {
            if pump.is_finished() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(25));
        }
    }
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
    context(write_frame(&mut *out, Kind::Exit, code.to_string().as_bytes()), || "cannot answer".to_owned())
}

fn pump(
    mut from: impl Read + Send + 'static,
    kind: Kind,
    to: Arc<Mutex<Peer>>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
            if write_frame(&mut *to, kind, &buffer[..count]).is_err() {
                return;
            }
        }
    })
}

/// Passes standard input on; when the caller goes away the command is killed, as a terminal would.
fn feed(input: &mut Peer, mut stdin: Option<ChildStdin>, group: u32, ended: &Mutex<bool>) {
    loop {
        match read_frame(input) {
            Ok(Some((Kind::Data, data))) if data.is_empty() => stdin = None,
            Ok(Some((Kind::Data, data))) => {
                if stdin.as_mut().is_some_and(|pipe| pipe.write_all(&data).is_err()) {
                    stdin = None;
                }
            }
            _ => break,
        }
    }
    // Under the lock: once `ended` is set the process id may belong to somebody else.
    let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
    if !*ended {
        sys::kill_group(group);
    }
}
