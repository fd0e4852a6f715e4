//! As much of the Docker API as making a swarm needs, over a unix socket with std alone: xtask is compiled before
//! everything else, and a client library would triple that.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::state::{Node, Role};

/// Known to engines 20.10 and later.
const VERSION: &str = "v1.41";

/// For everything that answers at once.
const SHORT: Duration = Duration::from_secs(5);

/// For what an emulated node may take a minute over.
const LONG: Duration = Duration::from_secs(120);

/// Longest answer read, in bytes.
const MAX_ANSWER: u64 = 64 << 20;

/// Whether the engine answers.
pub fn ping(socket: &Path) -> bool {
    request(socket, "GET", "/_ping", Body::None, Duration::from_secs(2)).is_ok()
}

/// The engine's version, such as `20.10.24`.
///
/// # Errors
/// Where the engine does not answer.
pub fn version(socket: &Path) -> Result<String> {
    let answer = json(socket, "GET", "/version", Body::None, SHORT)?;
    Ok(answer["Version"].as_str().unwrap_or("unknown").to_owned())
}

/// Makes the node the first manager of a new swarm.
///
/// # Errors
/// The engine's.
pub fn swarm_init(node: &Node) -> Result<()> {
    let body = json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": node.ip.to_string()});
    json(&node.socket, "POST", "/swarm/init", Body::Json(&body), LONG).map(|_| ())
}

/// What a node must know to join in a role.
///
/// # Errors
/// The engine's.
pub fn join_token(manager: &Node, role: Role) -> Result<String> {
    let answer = json(&manager.socket, "GET", "/swarm", Body::None, LONG)?;
    let key = match role {
        Role::Manager => "Manager",
        Role::Worker => "Worker",
    };
    let token = answer["JoinTokens"][key].as_str().context("the manager gave no join token")?;
    Ok(token.to_owned())
}

/// Has a node join the swarm of `manager`.
///
/// # Errors
/// The engine's.
pub fn swarm_join(node: &Node, manager: &Node, token: &str) -> Result<()> {
    let body = json!({
        "ListenAddr": "0.0.0.0:2377",
        "AdvertiseAddr": node.ip.to_string(),
        "RemoteAddrs": [format!("{}:2377", manager.ip)],
        "JoinToken": token,
    });
    json(&node.socket, "POST", "/swarm/join", Body::Json(&body), LONG).map(|_| ())
}

/// A member of the swarm, as a manager sees it.
pub struct Member {
    /// Host name.
    pub name: String,
    /// `ready`, `down`, `unknown`, `disconnected`.
    pub state: String,
    /// `active`, `pause`, `drain`.
    pub availability: String,
    /// `leader`, `reachable`, `unreachable`, or `worker`.
    pub role: String,
}

/// The swarm's members.
///
/// # Errors
/// The engine's.
pub fn members(manager: &Path) -> Result<Vec<Member>> {
    let answer = json(manager, "GET", "/nodes", Body::None, SHORT)?;
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    Ok(answer.as_array().map_or_else(Vec::new, |nodes| {
        nodes
            .iter()
            .map(|node| Member {
                name: text(&node["Description"]["Hostname"]),
                state: text(&node["Status"]["State"]),
                availability: text(&node["Spec"]["Availability"]),
                role: match (&node["ManagerStatus"]["Leader"], &node["ManagerStatus"]["Reachability"]) {
                    (Value::Bool(true), _) => "leader".to_owned(),
                    (_, Value::String(reachability)) => reachability.clone(),
                    _ => "worker".to_owned(),
                },
            })
            .collect()
    }))
}

/// Loads an image archive.
///
/// # Errors
/// Where it cannot be read or the engine refuses it.
pub fn load_image(socket: &Path, archive: &Path) -> Result<()> {
    let file = File::open(archive).with_context(|| format!("cannot open {}", archive.display()))?;
    let answer = request(socket, "POST", "/images/load?quiet=1", Body::File(file), LONG)?;
    // Errors after the first byte come in a stream of JSON objects with status 200.
    let text = String::from_utf8_lossy(&answer);
    match text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|line| line["error"].as_str().map(str::to_owned))
    {
        Some(error) => bail!("the engine refused {}: {error}", archive.display()),
        None => Ok(()),
    }
}

enum Body<'a> {
    None,
    Json(&'a Value),
    File(File),
}

fn json(socket: &Path, method: &str, path: &str, body: Body<'_>, timeout: Duration) -> Result<Value> {
    let answer = request(socket, method, path, body, timeout)?;
    if answer.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&answer).with_context(|| format!("{method} {path}: the answer is not JSON"))
}

fn request(socket: &Path, method: &str, path: &str, body: Body<'_>, timeout: Duration) -> Result<Vec<u8>> {
    exchange(socket, method, path, body, timeout)
        .with_context(|| format!("{method} {path} at {} failed", socket.display()))
}

fn exchange(socket: &Path, method: &str, path: &str, body: Body<'_>, timeout: Duration) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).context("cannot connect")?;
    stream.set_read_timeout(Some(timeout)).context("cannot set a timeout")?;
    stream.set_write_timeout(Some(timeout)).context("cannot set a timeout")?;
    let path = if path == "/_ping" { path.to_owned() } else { format!("/{VERSION}{path}") };
    let head = |kind: &str, length: u64| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let sent = match body {
        Body::None => stream.write_all(head("text/plain", 0).as_bytes()),
        Body::Json(value) => {
            let text = value.to_string();
            stream.write_all(format!("{}{text}", head("application/json", text.len() as u64)).as_bytes())
        }
        Body::File(mut file) => {
            let length = file.metadata().context("cannot stat the archive")?.len();
            stream
                .write_all(head("application/x-tar", length).as_bytes())
                .and_then(|()| io::copy(&mut file, &mut stream).map(|_| ()))
        }
    };
    // An engine may answer and close before it has read an archive's padding, or all of one it refuses: what counts
    // is its answer.
    match sent {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        sent => sent.context("cannot send")?,
    }
    let mut answer = Vec::new();
    let end = stream.take(MAX_ANSWER).read_to_end(&mut answer);
    // For the same reason the connection may be reset after a whole answer.
    let (status, body) = match (end, parse(&answer)) {
        (Ok(_), parsed) => parsed?,
        (Err(_), Ok(whole)) => whole,
        (Err(error), Err(_)) => return Err(error).context("no whole answer in time"),
    };
    if !(200..300).contains(&status) {
        let text = String::from_utf8_lossy(&body);
        let message = serde_json::from_str::<Value>(&text)
            .ok()
            .and_then(|value| value["message"].as_str().map(str::to_owned))
            .unwrap_or_else(|| text.trim().to_owned());
        bail!("status {status}: {message}");
    }
    Ok(body)
}

/// Status and body of an HTTP/1.1 answer that was read to the connection's end.
fn parse(answer: &[u8]) -> Result<(u16, Vec<u8>)> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("the answer has no head")?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let body = &answer[end + 4..];
    let status =
        head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("the answer has no status")?;
    let header = |name: &str| {
        head.lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| *key == name)
            .map(|(_, v)| v.trim())
    };
    if header("transfer-encoding") == Some("chunked") {
        return Ok((status, unchunk(body)?));
    }
    if let Some(length) = header("content-length").and_then(|text| text.parse::<usize>().ok())
        && body.len() < length
    {
        bail!("the answer ended after {} of {length} bytes", body.len());
    }
    Ok((status, body.to_vec()))
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n").context("a chunk has no length")?;
        let text = String::from_utf8_lossy(&rest[..line]);
        let digits = text.split(';').next().unwrap_or("").trim();
        let length =
            usize::from_str_radix(digits, 16).with_context(|| format!("bad chunk length {digits:?}"))?;
        rest = &rest[line + 2..];
        if length == 0 {
            return Ok(body);
        }
        let Some(chunk) = rest.get(..length) else { bail!("the answer ended within a chunk") };
        body.extend_from_slice(chunk);
        rest = rest.get(length + 2..).context("a chunk has no end")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_chunked_answers() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK";
        assert_eq!(parse(plain).expect("valid"), (200, b"OK".to_vec()));
        let chunked =
            b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).expect("valid"), (404, b"abcd".to_vec()));
    }

    #[test]
    fn cut_answers_are_errors() {
        assert!(parse(b"HTTP/1.1 200 OK\r\n").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nOK").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc").is_err());
    }
}
