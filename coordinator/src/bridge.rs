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

/// What is carried at once, in bytes.
const BUFFER: usize = 64 * 1024;

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
        let _ = carry(&mut input, &mut towards);
        let _ = towards.shutdown(Shutdown::Write);
    });
    let mut stream = stream;
    carry(&mut stream, &mut output).context("the connection broke off")
}

/// What is there is passed on at once. `io::copy` has the kernel move bytes from a socket to a pipe, which passes an
/// answer on only when the connection ends.
fn carry(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                to.write_all(&buffer[..length])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
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
    fn an_answer_comes_through_a_pipe_while_the_connection_stays_open() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let (mut out, output) = io::pipe().expect("a pipe");
        let (input, mut ask) = io::pipe().expect("a pipe");
        let bridge = thread::spawn(move || join(ours, input, output));
        ask.write_all(b"one").expect("written");
        let mut asked = [0; 3];
        theirs.read_exact(&mut asked).expect("asked");
        theirs.write_all(b"two").expect("written");
        let mut answer = [0; 3];
        out.read_exact(&mut answer).expect("answered, though nothing was closed");
        assert_eq!((&asked, &answer), (b"one", b"two"));
        drop(theirs);
        bridge.join().expect("no panic").expect("ended in order");
    }

    #[test]
    fn nobody_there_says_where_and_why() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = stdio(&dir.path().join("api.sock")).expect_err("nobody").to_string();
        assert!(error.contains("api.sock") && error.contains("--api-socket"), "{error}");
    }
}
