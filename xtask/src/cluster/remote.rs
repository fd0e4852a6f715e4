//! Commands and files for a node, by its agent: the machine's side of `swarmguard_guest::protocol`.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use swarmguard_guest::protocol::{Kind, join, read_frame, write_frame};

use super::state::Node;

/// What a command's standard input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    None,
    /// This process's own.
    Inherit,
}

/// What a command left.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// Exit status, 128 + signal where a signal ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// Runs `words` on the node as root, hands its output on as it comes, and returns its exit status.
///
/// # Errors
/// Where the node cannot be reached or the program cannot be started.
pub fn exec(node: &Node, words: &[String], input: Input, mut sink: impl FnMut(Kind, &[u8])) -> Result<i32> {
    let mut stream = connect(node)?;
    write_frame(&mut stream, Kind::Run, &join(words)).context("cannot send the command")?;
    match input {
        Input::None => write_frame(&mut stream, Kind::Data, &[]).context("cannot send the command")?,
        Input::Inherit => {
            let to = stream.try_clone().context("cannot share the connection")?;
            // Not joined: a read from a terminal cannot be ended, and the process ends soon after the command.
            std::thread::spawn(move || feed(to));
        }
    }
    finish(&mut stream, &node.name, |kind, payload| sink(kind, payload))
}

/// As [`exec`], with the output kept.
///
/// # Errors
/// As [`exec`].
pub fn output(node: &Node, words: &[String]) -> Result<Output> {
    let mut kept = Output::default();
    let status = exec(node, words, Input::None, |kind, payload| match kind {
        Kind::Stdout => kept.stdout.extend_from_slice(payload),
        _ => kept.stderr.extend_from_slice(payload),
    })?;
    Ok(Output { status, ..kept })
}

/// As [`exec`], to this process's own output.
///
/// # Errors
/// As [`exec`].
pub fn exec_attached(node: &Node, words: &[String]) -> Result<i32> {
    let mut broken = false;
    let status = exec(node, words, Input::Inherit, |kind, payload| {
        let written = match kind {
            Kind::Stdout => io::stdout().write_all(payload).and_then(|()| io::stdout().flush()),
            _ => io::stderr().write_all(payload),
        };
        broken |= written.is_err();
    })?;
    Ok(if broken && status == 0 { 1 } else { status })
}

/// Copies a file to a path on the node, with its permissions.
///
/// # Errors
/// Where it cannot be read here or written there.
pub fn copy(node: &Node, from: &Path, to: &str) -> Result<()> {
    let mut file = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    let mode = file.metadata().context("cannot stat the file")?.permissions().mode() & 0o7777;
    let mut stream = connect(node)?;
    let request = join(&[format!("{mode:o}"), to.to_owned()]);
    write_frame(&mut stream, Kind::Copy, &request).context("cannot send the request")?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buffer).with_context(|| format!("cannot read {}", from.display()))?;
        // An empty frame ends the file, so the last one is sent by the same line.
        if let Err(error) = write_frame(&mut stream, Kind::Data, &buffer[..count]) {
            // The node says why before it closes.
            return finish(&mut stream, &node.name, |_, _| {}).and(Err(error.into()));
        }
        if count == 0 {
            break;
        }
    }
    finish(&mut stream, &node.name, |_, _| {}).map(|_| ())
}

fn connect(node: &Node) -> Result<UnixStream> {
    UnixStream::connect(&node.agent_socket)
        .with_context(|| format!("cannot reach {} at {}", node.name, node.agent_socket.display()))
}

fn finish(stream: &mut UnixStream, node: &str, mut sink: impl FnMut(Kind, &[u8])) -> Result<i32> {
    loop {
        match read_frame(stream).with_context(|| format!("lost the connection to {node}"))? {
            Some((kind @ (Kind::Stdout | Kind::Stderr), payload)) => sink(kind, &payload),
            Some((Kind::Exit, payload)) => {
                let text = String::from_utf8_lossy(&payload);
                return text.parse().with_context(|| format!("{node} sent a bad exit status {text:?}"));
            }
            Some((Kind::Error, payload)) => bail!("{node}: {}", String::from_utf8_lossy(&payload)),
            Some((kind, _)) => bail!("{node} sent an unexpected frame {kind:?}"),
            None => bail!("{node} closed the connection: is it up (cargo xtask cluster status)?"),
        }
    }
}

fn feed(mut to: UnixStream) {
    let mut buffer = vec![0; 64 << 10];
    let mut stdin = io::stdin().lock();
    loop {
        let count = stdin.read(&mut buffer).unwrap_or(0);
        if write_frame(&mut to, Kind::Data, &buffer[..count]).is_err() || count == 0 {
            return;
        }
    }
}
