//! Malformed, ambiguous, slow and oversized input: no crash, no hang, and nothing reaches a replica that a client did
//! not plainly ask for.

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use proptest::prelude::{ProptestConfig, Strategy, any, prop, proptest};
use support::{After, Lb, Replica, eventually, say};

/// Reads a request's body as a careful server would, so that a smuggled request shows as a head of its own.
fn careful() -> Replica {
    Replica::new(|stream, head, _| {
        let lower = head.to_ascii_lowercase();
        let length = |line: &str| line.strip_prefix("content-length: ").and_then(|it| it.trim().parse().ok());
        if lower.contains("transfer-encoding: chunked") {
            let mut body = Vec::new();
            let mut byte = [0; 1];
            while !body.ends_with(b"0\r\n\r\n") {
                if stream.read(&mut byte).unwrap_or(0) == 0 {
                    return After::Close;
                }
                body.push(byte[0]);
            }
        } else if let Some(length) = lower.lines().find_map(length) {
            let mut body: Vec<u8> = vec![0; length];
            if stream.read_exact(&mut body).is_err() {
                return After::Close;
            }
        }
        say(stream, 200, "fine")
    })
}

/// Sends bytes and reads until the balancer closes, or has said nothing for a while.
fn shout(lb: &Lb, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(lb.addresses[0]).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
    // It may refuse before everything was sent.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut buffer = [0; 4_096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Requests that one parser may read as one request and another as two.
const SMUGGLING: &[&str] = &[
    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 44\r\nContent-Length: 0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\nA: bbbbb\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0, 44\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\nA: bbbbb\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff1\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nConnection: Content-Length\r\nContent-Length: 38\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: xxxxx\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n26\r\nGET /smuggled HTTP/1.1\r\nHost: xxxxx\r\n\r\n\r\n0\r\n\r\n",
    "GET /\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nA: b\rGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
    "GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
    "GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n",
];

#[test]
fn nothing_is_smuggled_and_nothing_ambiguous_is_passed_on() {
    for request in SMUGGLING {
        let replica = careful();
        let lb = Lb::with(&[&replica], &["--own-paths=false"]);
        let answer = shout(&lb, request.as_bytes());
        // What the balancer itself took for a second request is one; what it passed on as a body must stay one.
        let allowed = answer.matches("HTTP/1.1 ").count();
        let seen = replica.seen();
        assert!(seen.len() <= allowed.max(1), "{request:?}\nanswers: {answer}\nseen: {seen:?}");
        for head in &seen {
            let lower = head.to_ascii_lowercase();
            let both = lower.contains("\r\ncontent-length:") && lower.contains("\r\ntransfer-encoding:");
            assert!(!both, "{request:?} arrived as {head:?}");
            assert_eq!(lower.matches("\r\nhost:").count(), 1, "{request:?} arrived as {head:?}");
        }
        assert_eq!(lb.get("/").text(), "fine", "and the balancer still serves after {request:?}");
    }
}

#[test]
fn a_smuggled_answer_is_not_given_to_the_next_client() {
    // The replica sends more than it announced: the surplus must not become the next request's answer.
    let replica = Replica::new(|stream, _, before| {
        let extra = if before == 0 { "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil" } else { "" };
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood{extra}");
        if stream.write_all(answer.as_bytes()).is_ok() { After::Keep } else { After::Close }
    });
    let lb = Lb::with(&[&replica], &[]);
    for _ in 0..5 {
        assert_eq!(lb.get("/").text(), "good");
    }
}

#[test]
fn answers_that_make_no_sense_become_502() {
    for answer in [
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Surprise\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let replica = Replica::new(move |stream, _, _| {
            let _ = stream.write_all(answer.as_bytes());
            After::Close
        });
        let lb = Lb::with(&[&replica], &[]);
        let heard = lb.get("/");
        assert_eq!(heard.status, 502, "{answer:?}: {heard:?}");
    }
}

#[test]
fn huge_heads_are_refused() {
    let replica = careful();
    let lb = Lb::with(&[&replica], &[]);
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(100_000));
    assert!(shout(&lb, head.as_bytes()).starts_with("HTTP/1.1 431"), "one long header");
    let many: String = (0..2_000).map(|n| format!("h{n}: 1\r\n")).collect();
    let answer = shout(&lb, format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431"), "many headers: {answer}");
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    let answer = shout(&lb, long.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 4"), "a long path: {answer}");
    assert!(replica.seen().is_empty());
}

#[test]
fn bodies_beyond_the_limit_are_refused() {
    let replica = careful();
    let lb = Lb::with(&[&replica], &["--max-body-bytes=10"]);
    let announced = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n";
    assert_eq!(lb.connect().ask(announced).status, 413);
    assert!(replica.seen().is_empty());
    let chunked =
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n";
    assert_eq!(lb.connect().ask(chunked).status, 413);
    assert_eq!(lb.connect().ask("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok").text(), "fine");
}

#[test]
fn clients_that_dawdle_are_cut_off() {
    let replica = careful();
    let lb = Lb::with(&[&replica], &["--head-timeout=200ms", "--idle-timeout=300ms"]);
    let mut half = lb.connect();
    half.send(b"GET / HTTP/1.1\r\nHos");
    assert!(half.is_closed(), "half a head");
    let mut idle = lb.connect();
    assert_eq!(idle.ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n").status, 200);
    assert!(idle.is_closed(), "nothing after an answer");
    let mut body = lb.connect();
    body.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab");
    let answer = body.read(false);
    assert_eq!(answer.status, 408, "half a body");
    eventually("no lease is left", || lb.in_flight() == 0);
}

#[test]
fn a_head_that_drips_in_is_cut_off() {
    // Each byte comes in time; the head as a whole does not.
    let replica = careful();
    let lb = Lb::with(&[&replica], &["--head-timeout=300ms", "--idle-timeout=300ms"]);
    for request in ["GET / HTTP/1.1\r\nHost: x\r\n", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"] {
        let mut client = lb.connect();
        let mut drops = request.bytes().chain("A: a\r\n".bytes().cycle());
        let mut sent = 0;
        while client.stream.write_all(&[drops.next().expect("endless")]).is_ok() {
            sent += 1;
            assert!(sent < 400, "it was let drip for ever");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(replica.seen().is_empty());
    assert_eq!(lb.get("/").text(), "fine");
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let replica = Replica::new(|stream, _, _| {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
        while stream.write_all(&[b'x'; 65_536]).is_ok() {}
        After::Close
    });
    let lb = Lb::with(&[&replica], &["--idle-timeout=300ms"]);
    for method in ["GET", "DELETE"] {
        let mut client = lb.connect();
        client.send(format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        eventually("the request is in flight", || lb.in_flight() == 1);
        eventually("it is given up", || lb.in_flight() == 0);
    }
}

#[test]
fn where_all_places_are_taken_the_longest_idle_makes_room_and_requests_under_way_do_not() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let replica = Replica::new(move |stream, head, _| {
        if head.contains("/wait") {
            let _ = wait.lock().expect("the only one").recv();
        }
        say(stream, 200, "fine")
    });
    let lb = Lb::with(&[&replica], &["--max-connections=3", "--max-connections-per-address=9"]);
    let mut busy = lb.connect();
    busy.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually("a request is under way", || lb.in_flight() == 1);
    let (mut old, mut young) = (lb.connect(), lb.connect());
    old.send(b"GET / HTTP/1.1\r\nHos");
    assert_eq!(young.ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n").text(), "fine");
    assert_eq!(lb.get("/").text(), "fine", "room was made");
    assert!(old.is_closed(), "half a head is no request");
    assert_eq!(young.ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n").text(), "fine");
    go.send(()).expect("it waits");
    assert_eq!(busy.read(false).text(), "fine");
    assert!(lb.global.stats.totals().evicted >= 1);
}

#[test]
fn one_address_does_not_get_all_places() {
    let replica = Replica::named("fine");
    let lb = Lb::with(&[&replica], &["--max-connections=10", "--max-connections-per-address=2"]);
    let (mut first, second) = (lb.connect(), lb.connect());
    assert_eq!(first.ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n").text(), "fine");
    let mut third = lb.connect();
    assert!(third.is_closed());
    assert_eq!(lb.global.stats.totals().refused_address, 1);
    drop(second);
    eventually("a place is free again", || {
        let mut fourth = lb.connect();
        let _ = fourth.stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut status = [0; 12];
        fourth.stream.read_exact(&mut status).is_ok() && status.ends_with(b"200")
    });
}

/// A head of likely and unlikely parts, with what may follow it.
fn head() -> impl Strategy<Value = String> {
    let method =
        prop::sample::select(vec!["GET", "HEAD", "POST", "OPTIONS", "PUT", "get", "G\tT", "", "CONNECT"]);
    let path =
        prop::sample::select(vec!["/", "/a?b#c", "*", "http://y/", "//", "/%zz", "", "/a b", "/\u{e9}"]);
    let version = prop::sample::select(vec!["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "http/1.1", "HTTP/1.11", ""]);
    let line = prop::sample::select(vec![
        "Host: x",
        "Host: y",
        "Host:",
        "Host: a b",
        "Content-Length: 0",
        "Content-Length: 5",
        "Content-Length: -1",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: ,chunked",
        "Connection: close",
        "Connection: keep-alive, upgrade",
        "Upgrade: websocket",
        "Expect: 100-continue",
        "Expect: nonsense",
        "TE: trailers",
        "Trailer: Host",
        "Cookie: a=b; c",
        "A:",
        ": b",
        " folded",
        "\tfolded",
        "A\u{0}: b",
        "A: \u{7f}",
        "X-Forwarded-For: 1.2.3.4",
        "Forwarded: for=x",
        "Content-length:5",
        "Keep-Alive: timeout=0",
        "Proxy-Connection: close",
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    ]);
    let end = prop::sample::select(vec!["\r\n", "\n", "\r", "\r\n\r\n"]);
    let rest = prop::sample::select(vec![
        "",
        "hello",
        "0\r\n\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "5;x\r\nhel",
        "-1\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ]);
    (method, path, version, prop::collection::vec((line, end.clone()), 0..8), end, rest).prop_map(
        |(method, path, version, lines, end, rest)| {
            let lines: String = lines.iter().map(|(line, end)| format!("{line}{end}")).collect();
            format!("{method} {path} {version}{end}{lines}\r\n{rest}")
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn heads_of_random_parts_are_answered_or_refused_and_never_multiply(
        heads in prop::collection::vec(head(), 1..6),
    ) {
        let replica = careful();
        let lb = Lb::with(&[&replica], &["--head-timeout=100ms", "--idle-timeout=100ms", "--own-paths=false"]);
        let bytes = heads.concat();
        let answer = shout(&lb, bytes.as_bytes());
        let seen = replica.seen();
        // A request may be written over a new line of itself, but none is made up: each begins where one was written.
        let written = bytes.matches("HTTP/1.").count();
        assert!(seen.len() <= written, "{bytes:?} became {seen:?}, answered {answer:?}");
        for head in &seen {
            let lower = head.to_ascii_lowercase();
            let both = lower.contains("\r\ncontent-length:") && lower.contains("\r\ntransfer-encoding:");
            assert!(!both && lower.matches("\r\nhost:").count() == 1, "{bytes:?} arrived as {head:?}");
        }
        assert_eq!(lb.get("/").text(), "fine", "{bytes:?}");
        eventually("no lease is left", || lb.in_flight() == 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn heads_with_random_damage_never_stop_the_balancer(
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), which in 0..SMUGGLING.len(),
    ) {
        let replica = careful();
        let lb = Lb::with(&[&replica], &["--head-timeout=100ms", "--idle-timeout=100ms"]);
        let mut bytes = SMUGGLING[which].as_bytes().to_vec();
        for (at, byte) in cuts {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        shout(&lb, &bytes);
        assert_eq!(lb.get("/").text(), "fine", "{:?}", String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn heads_that_never_end_leave_memory_for_requests() {
    let replica = careful();
    let lb = Lb::with(&[&replica], &["--client-memory-bytes=4194304", "--max-connections-per-address=1000"]);
    let half = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}", "a".repeat(60_000));
    let heads: Vec<_> = (0..100)
        .map(|_| {
            let mut client = lb.connect();
            let _ = client.stream.write_all(half.as_bytes());
            client
        })
        .collect();
    eventually("some are refused", || lb.global.stats.totals().refused_memory > 0);
    for method in ["GET", "DELETE"] {
        let answer = lb.connect().ask(&format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!(answer.text(), "fine", "{method}");
    }
    drop(heads);
}
