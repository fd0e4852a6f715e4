//! The same requests, made by a grammar and then damaged, through both paths of the balancer, and through nginx and HAProxy:
//! what the replica is asked and what the client is answered must be the same on both paths, and where another proxy
//! differs the difference is one that is known, with the RFC's section that allows it.
//!
//! The part with nginx and HAProxy is ignored by a plain `cargo test`; `cargo xtask test --only clients` runs it.

mod support;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use fastrand::Rng;
use support::{After, Lb, Replica, coordinator::Coordinator, eventually};
use swarmguard_balancer::source::labels;

/// Headers that proxies add or may drop, each in its own way: not compared.
const OWN: [&str; 10] = [
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "content-length",
    "transfer-encoding",
    "via",
];

/// A replica that reads bodies by the letter and answers with what it was asked.
fn witness() -> Replica {
    Replica::new(|stream, head, _| {
        let mut lines = head.lines();
        let line = lines.next().unwrap_or_default().to_owned();
        let mut headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let Some(body) = body(stream, &headers) else { return After::Close };
        headers.retain(|(name, _)| !OWN.contains(&name.as_str()));
        headers.sort();
        let text = format!("{line} {headers:?} {:?}", String::from_utf8_lossy(&body));
        // To HEAD the same, without a body: what it was asked stands in a header, too.
        let told: String = text.chars().filter(|it| it.is_ascii_graphic()).collect();
        let content = if line.starts_with("HEAD ") { "" } else { &text };
        let answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Asked: {told}\r\n\r\n{content}", text.len());
        if stream.write_all(answer.as_bytes()).is_ok() { After::Keep } else { After::Close }
    })
}

fn body(stream: &mut TcpStream, headers: &[(String, String)]) -> Option<Vec<u8>> {
    let value = |name: &str| headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str());
    let mut body = Vec::new();
    if value("transfer-encoding").is_some() {
        loop {
            let size = text_line(stream)?;
            let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
            let mut data = vec![0; size];
            stream.read_exact(&mut data).ok()?;
            body.extend_from_slice(&data);
            if size == 0 {
                while !text_line(stream)?.is_empty() {}
                return Some(body);
            }
            text_line(stream)?;
        }
    }
    body.resize(value("content-length").map_or(Some(0), |length| length.parse().ok())?, 0);
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

fn text_line(stream: &mut TcpStream) -> Option<String> {
    let (mut line, mut byte) = (Vec::new(), [0; 1]);
    while !line.ends_with(b"\r\n") {
        stream.read_exact(&mut byte).ok()?;
        line.push(byte[0]);
    }
    line.truncate(line.len() - 2);
    String::from_utf8(line).ok()
}

/// What a client hears: statuses of all answers, and what the replica says that it was asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Heard {
    statuses: Vec<u16>,
    asked: Vec<String>,
}

impl Heard {
    /// Refused, and nothing was asked of the replica.
    fn is_refusal(&self) -> bool {
        self.asked.is_empty() && self.statuses.iter().all(|status| *status >= 400)
    }
}

fn shout(address: SocketAddr, bytes: &[u8]) -> Heard {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_millis(400))).expect("set");
    let _ = stream.write_all(bytes);
    let (mut all, mut buffer) = (Vec::new(), [0; 8_192]);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        all.extend_from_slice(&buffer[..count]);
    }
    let text = String::from_utf8_lossy(&all);
    let status = |line: &str| {
        line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "))?.get(..3)?.parse().ok()
    };
    let asked = |line: &str| line.to_ascii_lowercase().starts_with("x-asked: ").then(|| line[9..].to_owned());
    // An answer's body may end without a line's end, so that the next status follows it.
    let lines: Vec<&str> = text.split("\r\n").collect();
    let statuses =
        lines.iter().filter_map(|line| status(line.rfind("HTTP/1.").map_or(line, |at| &line[at..])));
    let statuses = statuses.filter(|status: &u16| *status >= 200).collect();
    Heard { statuses, asked: lines.iter().filter_map(|line| asked(line)).collect() }
}

/// As often as they stand here.
const METHODS: [&str; 17] = [
    "GET", "GET", "GET", "GET", "GET", "GET", "GET", "HEAD", "OPTIONS", "POST", "POST", "PUT", "DELETE",
    "PATCH", "TRACE", "get", "G@T",
];
/// Likewise.
const VERSIONS: [&str; 10] = [
    "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0",
    "HTTP/1.2", "HTTP/2.0",
];

/// Requests of likely and unlikely parts; every other one is damaged at a place or two.
fn requests(count: usize) -> Vec<Vec<u8>> {
    let mut rng = Rng::with_seed(20_261_129);
    let mut pick = |from: &[&str]| from[rng.usize(..from.len())].to_owned();
    let lines = [
        "Accept: */*",
        "accept:a",
        "X-A:  spaces  ",
        "X-Empty:",
        "Cookie: a=b; c=d",
        "Cookie: e=f",
        "X-Twice: 1",
        "X-Twice: 2",
        "X_Forwarded_For: 6.6.6.6",
        "X-Forwarded-For: 6.6.6.6",
        "X-Real-IP: 6.6.6.6",
        "Forwarded: for=6.6.6.6",
        "Connection: x-hop",
        "X-Hop: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: close",
        "TE: trailers",
        "Trailer: X-T",
        "Upgrade: h2c",
        "Expect: 100-continue",
        "Range: bytes=0-1",
        "Host: y",
        "Host: a@b",
        "Transfer-Encoding: gzip",
        " folded",
        "Bad Name: x",
        "X-Ctl: a\u{1}b",
        "Content-Length: 3",
        "X-Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ];
    let mut all = Vec::with_capacity(count);
    for number in 0..count {
        let method = pick(&METHODS);
        let target = pick(&[
            "/",
            "/a/b?c=d",
            "/a//b",
            "/%2e%2e/x",
            "/a;b",
            "/?",
            "*",
            "http://x/abs",
            "/a|b",
            "//x",
            "/a\\b",
        ]);
        let version = pick(&VERSIONS);
        let mut text = format!("{method} {target} {version}\r\n");
        if number % 12 != 0 {
            text += &format!("Host: {}\r\n", pick(&["x", "x:80", "X.Example", "x."]));
        }
        for _ in 0..number % 4 {
            text += &format!("{}\r\n", pick(&lines));
        }
        let framed = matches!(method.as_str(), "POST" | "PUT" | "PATCH");
        text += &match (framed, number % 3) {
            (false, 0) | (true, 2) => "Connection: close\r\n\r\n".to_owned(),
            (false, _) => "\r\n".to_owned(),
            (true, 0) => "Content-Length: 5\r\n\r\nhello".to_owned(),
            (true, _) => "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned(),
        };
        all.push(text.into_bytes());
    }
    for request in all.iter_mut().skip(1).step_by(2) {
        for _ in 0..rng.usize(1..3) {
            let at = rng.usize(..request.len());
            match rng.u8(..4) {
                0 => request[at] = rng.u8(..),
                1 => request.insert(at, b"\r\n \t:,/\0"[rng.usize(..8)]),
                2 => {
                    request.remove(at);
                }
                _ => request.insert(at, request[at]),
            }
        }
    }
    all
}

/// Everything through everybody, a few at a time.
fn through(addresses: &[SocketAddr], requests: &[Vec<u8>]) -> Vec<Vec<Heard>> {
    let next = Mutex::new(0);
    let heard = Mutex::new(vec![Vec::new(); requests.len()]);
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                loop {
                    let number = {
                        let mut next = next.lock().expect("nobody panicked");
                        *next += 1;
                        *next - 1
                    };
                    let Some(request) = requests.get(number) else { return };
                    let all = addresses.iter().map(|address| shout(*address, request)).collect();
                    heard.lock().expect("nobody panicked")[number] = all;
                }
            });
        }
    });
    heard.into_inner().expect("nobody panicked")
}

/// The fast path, and the same with a rate that nobody reaches: rated services take the other one.
fn both_paths(replica: &Replica) -> (Coordinator, Lb, Lb) {
    let settings = ["--head-timeout=300ms", "--idle-timeout=300ms", "--health-check-interval=3600"];
    let fast = Lb::with(&[replica], &settings);
    let coordinator = Coordinator::start();
    let arguments = coordinator.arguments();
    let all: Vec<&str> = arguments.iter().map(String::as_str).chain(settings).collect();
    let slow = Lb::start(&all);
    let mut rated = labels(replica.address.port());
    rated.rate = Some(10_000_000);
    coordinator.routes(&rated, &[("a", replica.address.ip())]);
    eventually("the replica is known", || !slow.global.table.load().services.is_empty());
    (coordinator, fast, slow)
}

#[test]
fn both_paths_say_the_same() {
    let replica = witness();
    let (_coordinator, fast, slow) = both_paths(&replica);
    let requests = requests(600);
    let heard = through(&[fast.addresses[0], slow.addresses[0]], &requests);
    let taken = fast.global.stats.totals().requests_fast;
    assert!(taken > 40 && slow.global.stats.totals().requests_fast == 0, "{taken} took the fast path");
    for (request, heard) in requests.iter().zip(&heard) {
        assert_eq!(heard[0], heard[1], "{:?}", String::from_utf8_lossy(request));
    }
}

/// Answers whose end can be read in more than one way, and some that cannot: each with what RFC 9112, 6 makes of it.
const ANSWERS: [(&str, &str, Told); 16] = [
    ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "6.3, 6", Told::Body("hello")),
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "6.3, 4",
        Told::Body("hello"),
    ),
    ("HTTP/1.1 200 OK\r\n\r\nhello", "6.3, 8", Told::Body("hello")),
    (
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "6.3, 3",
        Told::Body("hello"),
    ),
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "6.3, 3",
        Told::Body("hello"),
    ),
    ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "6.3, 5", Told::Body("hello")),
    ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 3\r\n\r\nhello", "6.3, 5", Told::Refused),
    ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", "6.3, 5", Told::Body("hello")),
    ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", "6.3, 5", Told::Refused),
    ("HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\nhello", "6.3, 5", Told::Refused),
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "6.1",
        Told::Refused,
    ),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello", "6.1", Told::Refused),
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "6.1",
        Told::Refused,
    ),
    ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "6.1", Told::Refused),
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nT: 1\r\n\r\n",
        "7.1",
        Told::Body("hello"),
    ),
    ("HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n", "6.3, 1", Told::Body("")),
];

/// What a client is told in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Body(&'static str),
    /// 502.
    Refused,
}

/// A replica that answers the number in the path, and then says something that nobody asked for: whoever keeps a
/// connection whose answer may not have ended hears it as the next answer.
fn ambiguous() -> Replica {
    Replica::new(|stream, head, _| {
        let number = head.split(['/', ' ']).nth(2).and_then(|number| number.parse::<usize>().ok());
        let Some((answer, ..)) = number.and_then(|number| ANSWERS.get(number)) else { return After::Close };
        let _ = stream.write_all(answer.as_bytes());
        let lasts = answer.contains("Content-Length: 5\r\n\r\n") || answer.ends_with("0\r\n\r\n");
        if lasts { After::Keep } else { After::Close }
    })
}

/// Status, whether the head names chunks and a length, and the body without chunks.
fn hear_answer(address: SocketAddr, number: usize) -> (u16, bool, Vec<u8>) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    let request = format!("GET /{number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let at = all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&all[..at]).to_ascii_lowercase();
    let status = head[9..12].parse().expect("a status");
    let chunked = head.contains("transfer-encoding");
    let both = chunked && head.contains("content-length");
    let mut rest = &all[at + 4..];
    if !chunked {
        return (status, both, rest.to_vec());
    }
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = String::from_utf8_lossy(&rest[..end]);
        let size =
            usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16).expect("a size");
        if size == 0 {
            break;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
    (status, both, body)
}

#[test]
fn both_paths_find_the_same_end_of_an_answer() {
    let replica = ambiguous();
    let (_coordinator, fast, slow) = both_paths(&replica);
    for (number, (answer, section, told)) in ANSWERS.into_iter().enumerate() {
        for lb in [&fast, &slow] {
            let (status, both, body) = hear_answer(lb.addresses[0], number);
            let heard = String::from_utf8_lossy(&body);
            assert!(!both, "{answer:?} ({section}): a length and chunks are passed on");
            match told {
                Told::Body(expected) => {
                    assert!(status < 300 && heard == expected, "{answer:?} ({section}): {status} {heard:?}");
                }
                Told::Refused => assert_eq!(status, 502, "{answer:?} ({section})"),
            }
        }
    }
    assert!(fast.global.stats.totals().requests_fast >= 16 && slow.global.stats.totals().requests_fast == 0);
}

/// What other proxies do differently, and what allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    /// The balancer refuses what the other one mends: RFC 9112, 2.2 and 3: an invalid request line should be refused.
    Stricter,
    /// The balancer passes on what the other one refuses: RFC 9112, 3.2, RFC 9110, 5.5, 9.1: methods, targets and values
    /// that it need not understand.
    MoreLenient,
    /// Both refuse or both pass on, with other words: RFC 9110, 7.6: what an intermediary may change.
    Rewritten,
    /// Another number of answers: pipelined garbage (RFC 9112, 9.3.2) or an `Expect` (RFC 9110, 10.1.1).
    Answers,
}

fn difference(ours: &Heard, theirs: &Heard) -> Option<Difference> {
    if ours == theirs || (ours.is_refusal() && theirs.is_refusal()) {
        return None;
    }
    Some(match (ours.asked.len(), theirs.asked.len()) {
        (0, 1..) => Difference::Stricter,
        (1.., 0) => Difference::MoreLenient,
        (a, b) if a == b && ours.asked != theirs.asked => Difference::Rewritten,
        _ => Difference::Answers,
    })
}

struct Peer(Child, SocketAddr, #[expect(dead_code, reason = "holds the configuration")] tempfile::TempDir);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn peer(program: &str, configuration: impl Fn(&str, u16) -> String, arguments: &[&str]) -> Peer {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("configuration");
    std::fs::write(&path, configuration(&directory.path().display().to_string(), port)).expect("written");
    let mut command = Command::new(program);
    let child = command.args(arguments).arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    eventually("it listens", || TcpStream::connect(address).is_ok());
    Peer(child, address, directory)
}

fn nginx(to: SocketAddr) -> Peer {
    peer(
        "nginx",
        |base, port| {
            format!(
                "worker_processes 1; daemon off; master_process off; pid {base}/pid; error_log /dev/null;\n\
                 events {{ }} http {{ access_log off; client_body_temp_path {base}; proxy_temp_path {base};\n\
                 fastcgi_temp_path {base}; uwsgi_temp_path {base}; scgi_temp_path {base}; keepalive_timeout 1s;\n\
                 server {{ listen 127.0.0.1:{port}; location / {{ proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
                 proxy_set_header Host $http_host; proxy_pass http://{to}; }} }} }}\n"
            )
        },
        &["-c"],
    )
}

fn haproxy(to: SocketAddr) -> Peer {
    peer(
        "haproxy",
        |_, port| {
            format!(
                "defaults\n  mode http\n  timeout connect 1s\n  timeout client 1s\n  timeout server 1s\nfrontend f\n  \
                 bind 127.0.0.1:{port}\n  default_backend b\nbackend b\n  server s {to}\n"
            )
        },
        &["-q", "-db", "-f"],
    )
}

#[test]
#[ignore = "needs nginx and HAProxy: cargo xtask test --only clients"]
fn where_nginx_and_haproxy_differ_is_known() {
    let replica = witness();
    let (_coordinator, fast, slow) = both_paths(&replica);
    let (nginx, haproxy) = (nginx(replica.address), haproxy(replica.address));
    let answers = ambiguous();
    let (nginx_answers, haproxy_answers) = (self::nginx(answers.address), self::haproxy(answers.address));
    let requests = requests(3_000);
    let heard = through(&[fast.addresses[0], slow.addresses[0], nginx.1, haproxy.1], &requests);
    let mut counts: BTreeMap<(&str, Difference), (usize, String)> = BTreeMap::new();
    for (request, heard) in requests.iter().zip(&heard) {
        let text = String::from_utf8_lossy(request).into_owned();
        assert_eq!(heard[0], heard[1], "{text:?}");
        for (name, theirs) in [("nginx", &heard[2]), ("haproxy", &heard[3])] {
            let Some(difference) = difference(&heard[0], theirs) else { continue };
            let known = counts
                .entry((name, difference))
                .or_insert_with(|| (0, format!("{text:?}\n  ours {:?}\n  {name} {theirs:?}", heard[0])));
            known.0 += 1;
        }
        // Whoever else lets it through: never more requests than the client wrote.
        let written = text.matches("HTTP/1.").count();
        assert!(heard[0].asked.len() <= written.max(1), "{text:?} became {:?}", heard[0]);
    }
    for (number, (answer, section, told)) in ANSWERS.into_iter().enumerate() {
        let told = match told {
            Told::Body(body) => body.to_owned(),
            Told::Refused => "502".to_owned(),
        };
        for (name, address) in [("nginx", &nginx_answers), ("haproxy", &haproxy_answers)] {
            let (status, _, body) = hear_answer(address.1, number);
            let heard =
                if status >= 500 { status.to_string() } else { String::from_utf8_lossy(&body).into_owned() };
            if heard != told {
                println!(
                    "{name} answers {heard:?} where the balancer answers {told:?} (RFC 9112, {section}): {answer:?}"
                );
            }
        }
    }
    for ((name, difference), (count, example)) in &counts {
        println!("{name} {difference:?}: {count} of {}, such as {example}", requests.len());
    }
    let share = |name: &str| -> usize {
        counts.iter().filter(|((it, _), _)| *it == name).map(|(_, (count, _))| count).sum()
    };
    assert!(share("nginx") * 2 < requests.len() && share("haproxy") * 2 < requests.len());
}
