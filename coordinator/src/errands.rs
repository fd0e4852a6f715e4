//! The short commands of the program: health check, certificates, tokens.

use std::{
    fmt::Display,
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail};
use sha2::{Digest, Sha256};
use swarmguard_runtime::identity::{Unit, issue::Authority};

use crate::config::CreateCerts;

/// A starved node answers late, and that is when restarting the coordinator would be worst.
const HEALTH_DEADLINE: Duration = Duration::from_secs(25);
/// Largest answer read, in bytes.
const MAX_ANSWER: u64 = 64 * 1024;

/// Asks the coordinator on this machine whether it is well; answers what it says.
///
/// # Errors
/// When it does not answer, or says that it is not.
pub fn healthcheck(socket: Option<&Path>, api: SocketAddr) -> anyhow::Result<String> {
    // The socket has places of its own, which nobody from outside can take: a flood of the port is no reason to be
    // restarted.
    if let Some(socket) = socket
        && let Ok(stream) = UnixStream::connect(socket)
    {
        stream.set_read_timeout(Some(HEALTH_DEADLINE))?;
        let shown = socket.display();
        return verdict(&shown, ask(stream).with_context(|| format!("no answer at {shown}"))?);
    }
    let address = match api.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), api.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), api.port()),
        _ => api,
    };
    let connect = || -> std::io::Result<String> {
        let stream = TcpStream::connect_timeout(&address, HEALTH_DEADLINE)?;
        stream.set_read_timeout(Some(HEALTH_DEADLINE))?;
        ask(stream)
    };
    verdict(&address, connect().with_context(|| format!("no answer from http://{address}/healthz"))?)
}

fn ask(mut stream: impl Read + Write) -> std::io::Result<String> {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    Ok(answer)
}

fn verdict(of: &dyn Display, answer: String) -> anyhow::Result<String> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if !head.starts_with("HTTP/1.1 200") {
        bail!("/healthz at {of} says {:?}: {body}", head.lines().next().unwrap_or_default());
    }
    Ok(body.into())
}

/// Makes an authority and the wanted certificates.
///
/// # Errors
/// When a file cannot be written, or nothing is wanted.
pub fn create_certs(wanted: &CreateCerts) -> anyhow::Result<()> {
    let bearers = [
        (Unit::Manager, "manager", &wanted.manager),
        (Unit::Worker, "worker", &wanted.worker),
        (Unit::Operator, "operator", &wanted.operator),
    ];
    if bearers.iter().all(|(_, _, names)| names.is_empty()) {
        bail!("nothing to make: name at least one --manager, --worker or --operator");
    }
    if wanted.out.join("ca.pem").exists() {
        bail!(
            "{} exists: its key was not kept, so make all certificates anew in an empty directory",
            wanted.out.join("ca.pem").display()
        );
    }
    let authority = Authority::create(&wanted.cluster)?;
    for (unit, word, names) in bearers {
        for name in names {
            let dir = wanted.out.join(format!("{word}-{name}"));
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            authority.issue(name, unit, &dir)?;
            println!("{}", dir.display());
        }
    }
    let ca = wanted.out.join("ca.pem");
    fs::write(&ca, authority.pem()).with_context(|| format!("cannot write {}", ca.display()))?;
    println!("{} (trusted by all; the authority's key was not kept)", ca.display());
    Ok(())
}

/// 256 random bits as text.
///
/// # Errors
/// When the system gives no random bytes.
pub fn token() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    let mut random = fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    random.read_exact(&mut bytes).context("cannot read /dev/urandom")?;
    // Hashed, so that what is printed says nothing of the generator's state.
    Ok(format!("{:x}", Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use swarmguard_common::domain::Role;
    use swarmguard_runtime::identity::{Identity, Source};

    use super::*;

    #[test]
    fn certificates_are_usable_by_those_they_are_made_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let wanted = CreateCerts {
            out: dir.path().into(),
            cluster: "cluster1".into(),
            manager: vec!["node1".into()],
            worker: vec![],
            operator: vec!["anna".into()],
        };
        create_certs(&wanted).expect("made");
        let load = |name: &str| Identity::load(&Source::Files(dir.path().join(name))).expect("loads").own;
        assert!(load("manager-node1").may(Role::Coordinator));
        assert!(load("operator-anna").may(Role::Operator));
        assert!(create_certs(&wanted).expect_err("not over an old authority").to_string().contains("ca.pem"));
    }

    #[test]
    fn tokens_differ_and_are_long_enough() {
        let (one, two) = (token().expect("random"), token().expect("random"));
        assert!(one != two && one.len() == 64);
    }

    #[test]
    fn nobody_there_is_not_well() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("known");
        let nowhere = Some(Path::new("/nonexistent/api.sock"));
        let error = healthcheck(nowhere, free).expect_err("nobody listens");
        assert!(error.to_string().contains("/healthz"), "{error:#}");
    }
}
