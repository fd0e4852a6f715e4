//! The built program under clients that other people wrote: curl, wrk, h2load, and a WebSocket library.
//!
//! Ignored by a plain `cargo test`, which needs nothing but Rust; `cargo xtask test --only clients` installs the clients
//! and runs it.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use support::{After, PATIENCE, Replica, say};
use swarmguard_runtime::identity::{Unit, issue::Authority};

/// The program, killed when dropped.
struct Program {
    child: Child,
    plain: SocketAddr,
    tls: SocketAddr,
}

impl Program {
    fn start(replicas: &[&Replica], identity: &Path) -> Self {
        let nodes: Vec<String> = replicas.iter().map(|replica| replica.address.to_string()).collect();
        let [plain, tls, admin] = [(); 3].map(|()| free());
        let child = Command::new(env!("CARGO_BIN_EXE_swarmguard-balancer"))
            .args(["--workers=1", "--log=warn", "--listen-ip=127.0.0.1"])
            .arg(format!("--port={}", plain.port()))
            .arg(format!("--tls-port={}", tls.port()))
            .arg(format!("--admin-addr={admin}"))
            .arg(format!("--worker-nodes={}", nodes.join(",")))
            .arg(format!("--tls-cert={}", identity.join("cert.pem").display()))
            .arg(format!("--tls-key={}", identity.join("key.pem").display()))
            .spawn()
            .unwrap();
        let program = Self { child, plain, tls };
        support::eventually("it listens", || TcpStream::connect(plain).is_ok());
        program
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let ended = self.child.try_wait().unwrap();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(status) = ended
            && !std::thread::panicking()
        {
            panic!("the balancer ended by itself ({status})");
        }
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// What the certificate below is for.
const NAME: &str = "swarm-worker";

/// A certificate of an authority of its own; the directory holds `ca.pem`, too.
fn identity() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    Authority::create("test").unwrap().issue("host", Unit::Worker, directory.path()).unwrap();
    directory
}

/// Answers with method, path and the length of the body that it read, however that was framed.
fn counting() -> Replica {
    Replica::new(|stream, head, _| {
        let lower = head.to_ascii_lowercase();
        let length = |line: &str| line.strip_prefix("content-length: ").and_then(|it| it.trim().parse().ok());
        let read = if lower.contains("transfer-encoding: chunked") {
            read_chunks(stream)
        } else {
            let length: usize = lower.lines().find_map(length).unwrap_or(0);
            let mut body = vec![0; length];
            stream.read_exact(&mut body).ok().map(|()| length)
        };
        let Some(read) = read else { return After::Close };
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        if method == "HEAD" {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n");
            return After::Keep;
        }
        if path == "/big" {
            return say(stream, 200, &"x".repeat(5_000_000));
        }
        // A window of a kilobyte takes a turn for each, and turns are slow on a busy machine.
        if path == "/some" {
            return say(stream, 200, &"x".repeat(200_000));
        }
        say(stream, 200, &format!("{method} {path} {read}"))
    })
}

fn read_chunks(stream: &mut TcpStream) -> Option<usize> {
    let mut whole = 0;
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0; 1];
            stream.read_exact(&mut byte).ok()?;
            line.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&line);
        let size = usize::from_str_radix(text.split(';').next()?.trim(), 16).ok()?;
        let mut data = vec![0; size + 2];
        stream.read_exact(&mut data).ok()?;
        whole += size;
        if size == 0 {
            return Some(whole);
        }
    }
}

/// Runs a program to its end, which must come in time; its output where it succeeded.
fn run(program: &str, arguments: &[&str]) -> String {
    let limit = (PATIENCE * 3).as_secs().to_string();
    let output: Output = Command::new("timeout")
        .arg(limit)
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

#[test]
#[ignore = "needs curl: cargo xtask test --only clients"]
fn curl_in_all_its_ways() {
    let (one, two, identity) = (counting(), counting(), identity());
    let program = Program::start(&[&one, &two], identity.path());
    let plain = format!("http://{}", program.plain);
    let body = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(body.path(), vec![b'b'; 3_000_000]).unwrap();
    let data = format!("@{}", body.path().display());
    let tls_port = program.tls.port();
    let (secure, resolve) = (format!("https://{NAME}:{tls_port}"), format!("{NAME}:{tls_port}:127.0.0.1"));
    let roots = identity.path().join("ca.pem").display().to_string();
    let tls = ["--cacert", &roots, "--resolve", &resolve];
    for (options, base) in [
        (vec!["--http1.1"], &plain),
        (vec!["--http1.0"], &plain),
        (vec!["--http2"], &plain),
        (vec!["--http2-prior-knowledge"], &plain),
        ([&["--http1.1"], &tls[..]].concat(), &secure),
        ([&["--http2"], &tls[..]].concat(), &secure),
    ] {
        let curl = |more: &[&str], path: &str| {
            let url = format!("{base}{path}");
            run("curl", &[&["-sS", "--fail-with-body"], &options[..], more, &[&url]].concat())
        };
        assert_eq!(curl(&[], "/a?b=c"), "GET /a?b=c 0", "{options:?}");
        assert!(curl(&["-I"], "/").contains("200"), "{options:?}");
        assert_eq!(curl(&["-d", "four"], "/p"), "POST /p 4", "{options:?}");
        // Large ones ask with `Expect: 100-continue` first.
        assert_eq!(curl(&["--data-binary", &data], "/p"), "POST /p 3000000", "{options:?}");
        assert_eq!(curl(&["-X", "DELETE"], "/d"), "DELETE /d 0", "{options:?}");
        assert_eq!(curl(&[], "/big").len(), 5_000_000, "{options:?}");
        if !options.contains(&"--http1.0") {
            let chunked = ["-H", "Transfer-Encoding: chunked", "--data-binary", &data];
            assert_eq!(curl(&chunked, "/c"), "POST /c 3000000", "{options:?}");
        }
        // Debian 12's curl breaks off such connections by itself, whatever server it talks to.
        if !options.contains(&"--http2-prior-knowledge") {
            let many = curl(&["-Z", "--parallel-max", "20"], "/m/[1-60]");
            assert_eq!(many.matches("GET /m/").count(), 60, "{options:?}: {many}");
        }
    }
}

#[test]
#[ignore = "needs wrk: cargo xtask test --only clients"]
fn wrk_sees_no_error() {
    let (one, two, identity) = (counting(), counting(), identity());
    let program = Program::start(&[&one, &two], identity.path());
    let text = run("wrk", &["-t1", "-c16", "-d2s", &format!("http://{}/", program.plain)]);
    assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "{text}");
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "requests").unwrap();
    let sent: usize = words[at - 1].parse().unwrap();
    assert!(sent > 100, "{text}");
    let (first, second) = (one.seen().len(), two.seen().len());
    // wrk leaves those under way uncounted when its time is over; none is sent twice.
    assert!((sent..=sent + 16).contains(&(first + second)), "{sent} sent, {first} and {second} arrived");
}

#[test]
#[ignore = "needs h2load: cargo xtask test --only clients"]
fn h2load_sees_no_error() {
    let (one, two, identity) = (counting(), counting(), identity());
    let program = Program::start(&[&one, &two], identity.path());
    let (plain, secure) =
        (format!("http://{}/", program.plain), format!("https://127.0.0.1:{}/", program.tls.port()));
    for (number, arguments) in [
        ["-n2000", "-c8", "-m16", "--h1", &plain],
        ["-n2000", "-c8", "-m16", "-t1", &plain],
        ["-n2000", "-c8", "-m16", "-t1", &secure],
        ["-n2000", "-c8", "-m16", "--h1", &secure],
    ]
    .iter()
    .enumerate()
    {
        let text = run("h2load", arguments);
        assert!(text.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{arguments:?}: {text}");
        let arrived = one.seen().len() + two.seen().len();
        assert_eq!(arrived, 2_000 * (number + 1), "{arguments:?}: each arrives once");
    }
}

/// Server and client in one: echoes through the balancer, then both ends close.
const WEBSOCKETS: &str = r#"
import asyncio, os, sys, websockets

async def echo(socket, path=None):
    try:
        while True:
            await socket.send(await socket.recv())
    except websockets.ConnectionClosed as closed:
        assert closed.code == 4001, closed

async def serve(port):
    async with websockets.serve(echo, "127.0.0.1", port, max_size=None):
        await asyncio.Future()

async def ask(port):
    async with websockets.connect(f"ws://127.0.0.1:{port}/chat?room=1", max_size=None) as socket:
        for message in ["text", "", "ünicode", b"", os.urandom(10), os.urandom(1_000_000)] + list(map(str, range(500))):
            await socket.send(message)
            assert await socket.recv() == message
        await (await socket.ping())
        await socket.close(code=4001, reason="enough")
    assert socket.close_code == 4001, socket.close_code

async def many(port):
    await asyncio.gather(*(ask(port) for _ in range(10)))
    print("echoed")

asyncio.run(serve(int(sys.argv[2])) if sys.argv[1] == "serve" else many(int(sys.argv[2])))
"#;

/// A child that is killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs python3-websockets: cargo xtask test --only clients"]
fn a_websocket_library_on_both_ends_notices_nothing() {
    let identity = identity();
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), WEBSOCKETS).unwrap();
    let script = script.path().display().to_string();
    let server = free();
    let port = server.port().to_string();
    // Debian's, which is where the package is.
    let child = Command::new("/usr/bin/python3").args([&script, "serve", &port]).spawn().unwrap();
    let _server = Killed(child);
    support::eventually("the server listens", || TcpStream::connect(server).is_ok());
    let replica =
        Replica { address: server, heads: std::sync::Arc::default(), connections: std::sync::Arc::default() };
    let program = Program::start(&[&replica], identity.path());
    let text = run("/usr/bin/python3", &[&script, "ask", &program.plain.port().to_string()]);
    assert_eq!(text.trim(), "echoed");
}

/// Checks of HTTP/2 by an implementation that is not ours.
const CONFORMANCE: &str = include_str!("conformance.py");

#[test]
#[ignore = "needs python3-h2: cargo xtask test --only clients"]
fn an_independent_http2_finds_nothing_wrong() {
    let identity = identity();
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), CONFORMANCE).unwrap();
    let replica = counting();
    let program = Program::start(&[&replica], identity.path());
    let (script, port) = (script.path().display().to_string(), program.plain.port().to_string());
    let text = run("/usr/bin/python3", &[&script, &port]);
    assert!(text.trim().ends_with("all 13 checks passed"), "{text}");
}
