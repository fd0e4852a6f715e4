//! `swarmguard-coordinator stdio`: joins its input and output to the API's socket of the coordinator in this container.
//!
//! The command line runs it through the engine (`docker exec`), so that whoever may use the engine of a manager reaches
//! the coordinator without an open port, a token or a certificate.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    thread,
};

use anyhow::Context as _;

/// Copies both ways until the coordinator closes the connection, which it does when the input has ended.
///
/// # Errors
/// When no coordinator listens at `socket`.
pub fn stdio(socket: &Path) -> anyhow::Result<()> {
    let stream = UnixStream::connect(socket).with_context(|| {
        let shown = socket.display();
        format!("no coordinator serves {shown}: is it still starting, or was it started with another --api-socket?")
    })?;
    // Not the standard handles: those keep what has no line end yet.
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().context("no input")?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned().context("no output")?);
    join(stream, input, output)
}

fn join(
    stream: UnixStream,
    mut input: impl Read + Send + 'static,
    mut output: impl Write,
) -> anyhow::Result<()> {
    let mut towards = stream.try_clone().context("cannot use the connection twice")?;
    // Ends with its input; when the answer ends first, the process does.
    thread::spawn(move || {
        let _ = io::copy(&mut input, &mut towards);
        let _ = towards.shutdown(Shutdown::Write);
    });
    let mut stream = stream;
    io::copy(&mut stream, &mut output).context("the connection broke off")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_are_joined_until_the_other_side_closes() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let answering = thread::spawn(move || {
            let mut asked = String::new();
            theirs.read_to_string(&mut asked).expect("text");
            theirs.write_all(asked.to_uppercase().as_bytes()).expect("written");
        });
        let mut output = Vec::new();
        join(ours, io::Cursor::new(b"status?".to_vec()), &mut output).expect("joined");
        answering.join().expect("no panic");
        assert_eq!(output, b"STATUS?");
    }

    #[test]
    fn nobody_there_says_where_and_why() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = stdio(&dir.path().join("api.sock")).expect_err("nobody").to_string();
        assert!(error.contains("api.sock") && error.contains("--api-socket"), "{error}");
    }
}
