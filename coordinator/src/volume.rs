//! `swarmguard-coordinator remove-volume`: volumes belong to nodes, so each manager removes its own at the end.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context as _, bail};

/// For the whole call.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer read, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;

/// Removes it; one that is not there is removed.
///
/// # Errors
/// When it is in use, or the engine does not answer.
pub fn remove(engine: &str, name: &str) -> anyhow::Result<()> {
    let path = engine.strip_prefix("unix://").context("--docker must name a socket here: unix:///path")?;
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)) {
        bail!("{name:?} is no name of a volume");
    }
    let mut stream =
        UnixStream::connect(path).with_context(|| format!("cannot reach the engine at {path}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request =
        format!("DELETE /volumes/{name}?force=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("the engine does not listen")?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer).context("the engine does not answer")?;
    match answer.split(' ').nth(1) {
        Some("204" | "404") => Ok(()),
        _ => {
            let words = answer.split_once("\r\n\r\n").map_or(answer.as_str(), |(_, body)| body);
            bail!("volume {name} cannot be removed: {}", words.trim())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;

    /// What comes of an engine's answer, and what it was asked.
    fn tried(answer: &'static str) -> (anyhow::Result<()>, String) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let engine = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut asked = [0; 512];
            let length = stream.read(&mut asked).expect("a request");
            stream.write_all(answer.as_bytes()).expect("written");
            String::from_utf8_lossy(&asked[..length]).into_owned()
        });
        let removed = remove(&format!("unix://{}", path.display()), "swarmguard_state");
        (removed, engine.join().expect("no panic"))
    }

    #[test]
    fn what_is_gone_is_removed_and_what_is_in_use_is_told() {
        let (removed, asked) = tried("HTTP/1.1 204 No Content\r\n\r\n");
        assert!(removed.is_ok() && asked.starts_with("DELETE /volumes/swarmguard_state?force=1 "), "{asked}");
        assert!(tried("HTTP/1.1 404 Not Found\r\n\r\n{}").0.is_ok());
        let (in_use, _) = tried("HTTP/1.1 409 Conflict\r\n\r\n{\"message\":\"volume is in use\"}");
        assert!(in_use.expect_err("in use").to_string().contains("volume is in use"));
        assert!(remove("tcp://x:1", "v").is_err() && remove("unix:///x", "../v").is_err());
    }
}
