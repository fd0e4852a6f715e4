//! Malformed and abusive HTTP/2, frame by frame: no crash, no hang, and nothing reaches an HTTP/1.1 replica that could
//! be read as another request there.

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use proptest::prelude::{ProptestConfig, any, prop, proptest};
use support::{After, Lb, Replica, coordinator::Coordinator, eventually, say};
use swarmguard_balancer::source::labels;
use swarmguard_runtime::clock;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header block of literals without indexing and without Huffman coding (RFC 7541, 6.2.2).
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // A length of 127 and more needs continuation bytes.
            match text.len() {
                short @ 0..127 => block.push(u8::try_from(short).expect("short")),
                long => {
                    block.push(127);
                    let mut rest = long - 127;
                    while rest >= 128 {
                        block.push(u8::try_from(rest % 128).expect("a remainder") | 128);
                        rest /= 128;
                    }
                    block.push(u8::try_from(rest).expect("the rest"));
                }
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

fn plain<'a>(method: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let fields = [(":method", method), (":scheme", "http"), (":path", "/"), (":authority", "x")];
    fields.into_iter().chain(more.iter().copied()).collect()
}

fn start(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes.extend(frames.concat());
    bytes
}

/// Sends bytes and reads until the balancer closes, or has said nothing for a while.
fn shout(lb: &Lb, bytes: &[u8]) {
    let mut stream = TcpStream::connect(lb.addresses[0]).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("set");
    // It may refuse before everything was sent.
    let _ = stream.write_all(bytes);
    let mut buffer = [0; 4_096];
    while let Ok(1..) = stream.read(&mut buffer) {}
}

#[test]
fn a_plain_request_made_of_frames_arrives() {
    // The tests below prove something only if such frames are understood at all.
    let replica = Replica::named("fine");
    let lb = Lb::with(&[&replica], &[]);
    let fields = block(&plain("GET", &[("x-long", &"l".repeat(300))]));
    shout(&lb, &start(&[frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields)]));
    let seen = replica.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].starts_with("GET / HTTP/1.1\r\n") && seen[0].contains(&"l".repeat(300)), "{seen:?}");
}

/// Header fields that would mean something else, or more, once written down as HTTP/1.1.
const SMUGGLING: &[&[(&str, &str)]] = &[
    &[("x", "y\r\nsmuggled: 1")],
    &[("x", "y\nsmuggled: 1")],
    &[("x\r\nsmuggled", "1")],
    &[("x: y\r\nsmuggled", "1")],
    &[("x smuggled", "1")],
    &[("SMUGGLED", "1")],
    &[("transfer-encoding", "chunked"), ("smuggled", "1")],
    &[("connection", "smuggled"), ("smuggled", "1")],
    &[("upgrade", "smuggled")],
    &[("x", "y\0smuggled")],
    &[(":path", "/smuggled")],
    &[(":smuggled", "1")],
    &[("content-length", "3"), ("content-length", "5"), ("smuggled", "1")],
    &[("content-length", "3, 5"), ("smuggled", "1")],
    &[("content-length", "+3"), ("smuggled", "1")],
    &[("host", "smuggled")],
    &[("", "smuggled")],
];

#[test]
fn fields_that_mean_more_in_http1_go_nowhere() {
    let replica = Replica::named("fine");
    let lb = Lb::with(&[&replica], &["--own-paths=false"]);
    for fields in SMUGGLING {
        let headers = block(&plain("POST", fields));
        let body = frame(DATA, END_STREAM, 1, b"abc");
        shout(&lb, &start(&[frame(HEADERS, END_HEADERS, 1, &headers), body]));
        let seen = replica.seen();
        assert!(seen.iter().all(|head| !head.contains("smuggled")), "{fields:?} arrived as {seen:?}");
        assert_eq!(lb.get("/").text(), "fine", "and the balancer still serves after {fields:?}");
    }
}

#[test]
fn paths_and_methods_that_are_more_than_that_go_nowhere() {
    let replica = Replica::named("fine");
    let lb = Lb::with(&[&replica], &["--own-paths=false"]);
    for (method, path) in [
        ("GET", "/ HTTP/1.1\r\nsmuggled: 1"),
        ("GET", "/ smuggled"),
        ("GET", "smuggled"),
        ("GET / HTTP/1.1\r\nsmuggled: 1\r\n\r\nGET", "/"),
        ("GET smuggled", "/"),
        ("CONNECT", "/smuggled"),
    ] {
        let fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x")];
        shout(&lb, &start(&[frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields))]));
        let seen = replica.seen();
        assert!(
            seen.iter().all(|head| !head.contains("smuggled")),
            "{method:?} {path:?} arrived as {seen:?}"
        );
        assert_eq!(lb.get("/").text(), "fine", "and the balancer still serves after {method:?} {path:?}");
    }
}

#[test]
fn a_body_that_is_not_as_long_as_announced_is_no_second_request() {
    let replica = Replica::named("fine");
    let lb = Lb::with(&[&replica], &["--own-paths=false"]);
    for (length, body) in [("3", &b"abcGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"[..]), ("50", b"abc")] {
        let headers = block(&plain("POST", &[("content-length", length)]));
        shout(&lb, &start(&[frame(HEADERS, END_HEADERS, 1, &headers), frame(DATA, END_STREAM, 1, body)]));
        let seen = replica.seen();
        assert!(seen.iter().all(|head| !head.contains("/smuggled")), "{length}: {seen:?}");
    }
    eventually("no lease is left", || lb.in_flight() == 0);
    assert_eq!(lb.get("/").text(), "fine");
}

#[test]
fn streams_opened_and_reset_at_once_leave_nothing_behind() {
    let replica = Replica::named("fine");
    let lb = Lb::with(&[&replica], &[]);
    let fields = block(&plain("GET", &[]));
    let frames: Vec<Vec<u8>> = (0..2_000_u32)
        .flat_map(|n| {
            let stream = 2 * n + 1;
            let cancel = 8_u32.to_be_bytes();
            [frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields), frame(RST_STREAM, 0, stream, &cancel)]
        })
        .collect();
    for _ in 0..5 {
        shout(&lb, &start(&frames));
    }
    eventually("no lease is left", || lb.in_flight() == 0);
    assert_eq!(lb.get("/").text(), "fine");
}

#[test]
fn a_head_without_end_is_cut_off() {
    let replica = Replica::named("fine");
    let lb = Lb::with(&[&replica], &[]);
    let part = block(&[("x", &"y".repeat(8_000))]);
    let mut frames = vec![frame(HEADERS, END_STREAM, 1, &block(&plain("GET", &[])))];
    frames.extend((0..200).map(|_| frame(CONTINUATION, 0, 1, &part)));
    shout(&lb, &start(&frames));
    assert!(replica.seen().is_empty());
    assert_eq!(lb.get("/").text(), "fine");
}

#[test]
fn a_client_that_falls_silent_is_cut_off() {
    let replica = Replica::named("fine");
    let lb = Lb::with(&[&replica], &["--head-timeout=200ms", "--idle-timeout=300ms"]);
    for bytes in [&PREFACE[..10], PREFACE, &start(&[])] {
        let mut client = lb.connect();
        client.send(bytes);
        let mut rest = Vec::new();
        // Whatever it says before, it closes; the client's own patience would be an error.
        assert!(client.stream.read_to_end(&mut rest).is_ok_and(|_| true), "{bytes:?}");
    }
    // Headers, then a body that never comes.
    let mut client = lb.connect();
    let headers = block(&plain("POST", &[("content-length", "5")]));
    client.send(&start(&[frame(HEADERS, END_HEADERS, 1, &headers)]));
    eventually("no lease is left", || lb.in_flight() == 0);
}

/// Answers with a megabyte.
fn big() -> Replica {
    Replica::new(|stream, _, _| {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n";
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b'x'; 1_048_576]));
        if sent.is_ok() { After::Keep } else { After::Close }
    })
}

/// Settings that give each stream this window, the same for the connection, and requests.
fn ask_much(window: u32, requests: u32) -> Vec<u8> {
    let mut settings = vec![0, 4];
    settings.extend(window.to_be_bytes());
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &settings));
    bytes.extend(frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes()));
    let fields = block(&plain("GET", &[]));
    for number in 0..requests {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &fields));
    }
    bytes
}

#[test]
fn answers_that_a_client_does_not_take_are_given_up_each_by_itself() {
    let replica = big();
    let lb = Lb::with(&[&replica], &["--idle-timeout=1s"]);
    let mut client = lb.connect();
    // There is no room for answers, but the connection lives.
    client.send(&ask_much(0, 20));
    eventually("they are in flight", || lb.in_flight() == 20);
    eventually("they are given up", || lb.in_flight() == 0);
    assert_eq!(lb.global.stats.totals().unread, 20);
    assert_eq!(lb.global.stats.totals().upstream_failures, 0, "that is no fault of the replica");
}

#[test]
fn a_request_without_room_gets_the_place_of_a_stream_that_nobody_reads() {
    let replica = Replica::new(|stream, head, _| {
        if head.starts_with("GET /small") {
            return say(stream, 200, "fine");
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n";
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b'x'; 1_048_576]));
        if sent.is_ok() { After::Keep } else { After::Close }
    });
    let coordinator = Coordinator::start();
    let mut arguments = coordinator.arguments();
    arguments.push("--queue-timeout=5s".to_owned());
    let lb = Lb::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let mut labels = labels(replica.address.port());
    labels.max_in_flight = 20;
    coordinator.routes(&labels, &[("a", replica.address.ip())]);
    eventually("the replica is known", || !lb.global.table.load().services.is_empty());
    let mut client = lb.connect();
    client.send(&ask_much(0, 20));
    eventually("all places are taken", || lb.in_flight() == 20);
    let begun = clock::now();
    assert_eq!(lb.get("/small").text(), "fine");
    let took = clock::now().since(begun);
    assert!(took < Duration::from_secs(4), "{took:?}");
    let totals = lb.global.stats.totals();
    assert_eq!((totals.cut_for_room, totals.refused_full, totals.upstream_failures), (1, 0, 0));
    assert_eq!(lb.in_flight(), 19, "the others keep their places while nobody needs them");
}

#[test]
fn what_clients_do_not_read_stays_within_the_memory_there_is_for_them() {
    let replica = big();
    let most = 4_194_304;
    let lb = Lb::with(&[&replica], &["--idle-timeout=1s", "--client-memory-bytes=4194304"]);
    let mut clients: Vec<_> = (0..5).map(|_| lb.connect()).collect();
    for client in &mut clients {
        client.send(&ask_much(0x7fff_ffff, 100));
    }
    let mut peak = 0;
    eventually("what does not fit is cut or refused", || {
        peak = peak.max(lb.global.memory.used());
        let totals = lb.global.stats.totals();
        totals.shed + totals.refused_memory + totals.unread > 0
    });
    assert!(peak <= most, "{peak}");
    eventually("all is given up", || lb.in_flight() == 0);
    drop(clients);
    eventually("memory is given back", || lb.global.memory.used() < 100_000);
    assert_eq!(lb.get("/").status, 200);
}

#[test]
fn those_who_read_get_the_memory_of_those_who_do_not() {
    let replica = Replica::new(|stream, head, _| {
        if head.starts_with("GET /small") {
            return say(stream, 200, "fine");
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n";
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b'x'; 1_048_576]));
        if sent.is_ok() { After::Keep } else { After::Close }
    });
    // Nobody is given up for being slow alone.
    let lb = Lb::with(&[&replica], &["--idle-timeout=1h", "--client-memory-bytes=4194304"]);
    let mut clients: Vec<_> = (0..3).map(|_| lb.connect()).collect();
    for client in &mut clients {
        client.send(&ask_much(0x7fff_ffff, 100));
    }
    eventually("little memory is left", || lb.global.memory.is_strained());
    eventually("somebody else is served again and again", || {
        (0..5).all(|_| lb.get("/small").status == 200) && !lb.global.memory.is_strained()
    });
    assert!(lb.global.stats.totals().shed > 0);
    assert_eq!(lb.global.stats.totals().upstream_failures, 0, "that is no fault of the replica");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn random_frames_never_stop_the_balancer(
        frames in prop::collection::vec(
            (0_u8..12, any::<u8>(), 0_u32..6, prop::collection::vec(any::<u8>(), 0..80)), 1..12,
        ),
        begun: bool,
    ) {
        let replica = Replica::named("fine");
        let lb = Lb::with(&[&replica], &["--head-timeout=100ms", "--idle-timeout=100ms"]);
        let fields = block(&plain("POST", &[]));
        let mut all = Vec::new();
        if begun {
            all.push(frame(HEADERS, END_HEADERS, 1, &fields));
        }
        all.extend(frames.iter().map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload)));
        shout(&lb, &start(&all));
        assert_eq!(lb.get("/").text(), "fine", "{frames:?}");
        eventually("no lease is left", || lb.in_flight() == 0);
    }
}
