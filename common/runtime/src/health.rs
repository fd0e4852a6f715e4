//! Health checks that no stranger can disturb: on a socket that only processes of the same user in the same network
//! namespace can reach. Were they asked for on a port, whoever takes all its places could have Swarm restart what is well.
//!
//! The socket has no place in any file system, so it works with a root that is read-only. Programs that share a network
//! namespace are told apart by the port that each is known by.

use std::{
    io::{self, Read as _},
    net::Shutdown,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream},
    },
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixListener, UnixStream},
};

/// Longest wait for an answer: a starved node answers late, and that is when a restart would be worst.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest answer read, in bytes.
const MAX_ANSWER_BYTES: u64 = 64 * 1_024;
/// Longest that one who asks is waited for.
const WRITE_DEADLINE: Duration = Duration::from_secs(2);
/// Pause after an accept that failed.
const PAUSE: Duration = Duration::from_millis(50);
/// First line of a good answer, and of another one.
const WELL: &str = "ok\n";
const ILL: &str = "not well\n";

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// Nobody listens, or nobody answers.
    #[error("no {program} that is known by port {port} answers here: {source}")]
    Silent {
        /// Which program.
        program: &'static str,
        /// What it is known by.
        port: u16,
        /// The system's words.
        source: io::Error,
    },
    /// It says that it is not well.
    #[error("the {program} is not well: {said}")]
    Ill {
        /// Which program.
        program: &'static str,
        /// Its words.
        said: String,
    },
}

/// How a program is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether it does what it can.
    pub well: bool,
    /// In words, for whoever reads the check's output.
    pub said: String,
}

fn address(program: &str, port: u16) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("swarmguard-{program}-health-{port}"))
}

/// Listens for health checks of `program`, known by `port`.
///
/// # Errors
/// When another one in this network namespace is known by the same port.
pub fn listener(program: &str, port: u16) -> io::Result<UnixListener> {
    let listener = StdListener::bind_addr(&address(program, port)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Answers until the process ends. Nothing is read, and one is answered at a time.
pub async fn answer(listener: UnixListener, judge: impl Fn() -> Health) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        if !is_ours(&stream) {
            continue;
        }
        let Health { well, said } = judge();
        let text = format!("{}{said}\n", if well { WELL } else { ILL });
        // Whoever went away needs no answer.
        let _ = tokio::time::timeout(WRITE_DEADLINE, stream.write_all(text.as_bytes())).await;
    }
}

fn is_ours(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| [own, 0].contains(&peer.uid()))
}

/// Asks the running `program` how it is. Blocks: it runs in a fresh process every few seconds.
///
/// # Errors
/// When it does not answer, or says that it is not well.
pub fn ask(program: &'static str, port: u16) -> Result<String, HealthError> {
    let answered = || -> io::Result<String> {
        let stream = StdStream::connect_addr(&address(program, port)?)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.take(MAX_ANSWER_BYTES).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = answered().map_err(|source| HealthError::Silent { program, port, source })?;
    match answer.strip_prefix(WELL) {
        Some(said) => Ok(said.trim_end().to_owned()),
        None => {
            let said = answer.strip_prefix(ILL).unwrap_or(&answer).trim_end().to_owned();
            Err(HealthError::Ill { program, said })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_says_how_it_is_and_a_second_one_is_told_apart() {
        let port = 60_000 + u16::try_from(std::process::id() % 5_000).expect("small");
        let first = listener("test", port).expect("nobody else");
        assert!(listener("test", port).is_err(), "that one is taken");
        let second = listener("test", port + 1).expect("another port");
        tokio::spawn(answer(first, || Health { well: true, said: "2 of 2".into() }));
        tokio::spawn(answer(second, || Health { well: false, said: "stuck".into() }));
        let ask = |port| tokio::task::spawn_blocking(move || ask("test", port));
        assert_eq!(ask(port).await.expect("no panic").expect("well"), "2 of 2");
        let said = ask(port + 1).await.expect("no panic").expect_err("it is not").to_string();
        assert_eq!(said, "the test is not well: stuck");
        let nobody = ask(port + 2).await.expect("no panic").expect_err("nobody").to_string();
        assert!(nobody.contains(&format!("port {}", port + 2)), "{nobody}");
    }
}
