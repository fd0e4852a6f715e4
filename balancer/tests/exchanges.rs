//! Exchanges as real life has them: clients that dawdle, replicas that answer early or say a lot, tunnels, and headers that
//! only a proxy may say. Each was seen to go wrong somewhere.

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use support::{After, Lb, Replica, coordinator::Coordinator, eventually, say};
use swarmguard_balancer::source::labels;
use swarmguard_common::{labels::RouteLabels, wire::routes::ReplicaState};

/// Reads chunks to their end.
fn read_chunked(stream: &mut TcpStream) -> bool {
    let (mut body, mut byte) = (Vec::new(), [0; 1]);
    while !body.ends_with(b"0\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return false;
        }
        body.push(byte[0]);
    }
    true
}

/// A balancer that hears from a coordinator, with one replica and these labels.
fn routed(replica: &Replica, change: impl FnOnce(&mut RouteLabels), more: &[&str]) -> (Coordinator, Lb) {
    let coordinator = Coordinator::start();
    let arguments = coordinator.arguments();
    let all: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let lb = Lb::start(&all);
    let mut labels = labels(replica.address.port());
    change(&mut labels);
    coordinator.routes(&labels, &[("a", replica.address.ip())]);
    eventually("the replica is known", || !lb.global.table.load().services.is_empty());
    (coordinator, lb)
}

#[test]
fn a_client_that_sends_its_body_slowly_is_no_fault_of_the_replica() {
    let replica = Replica::new(
        |stream, _, _| {
            if read_chunked(stream) { say(stream, 200, "whole") } else { After::Close }
        },
    );
    // The body takes four times as long as the replica has for its answer.
    let (_coordinator, lb) = routed(&replica, |labels| labels.timeout = Duration::from_millis(300), &[]);
    let mut clients: Vec<_> = (0..6).map(|_| lb.connect()).collect();
    for client in &mut clients {
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    }
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(100));
        clients.iter_mut().for_each(|client| client.send(b"4\r\nslow\r\n"));
    }
    for client in &mut clients {
        client.send(b"0\r\n\r\n");
        let answer = client.read(false);
        assert_eq!((answer.status, answer.text().as_str()), (200, "whole"));
    }
    let totals = lb.global.stats.totals();
    assert_eq!((totals.failed_timeout, totals.upstream_failures, totals.ejections), (0, 0, 0));
}

#[test]
fn a_client_that_stops_sending_is_told_408_and_the_replica_is_not_blamed() {
    let replica = Replica::new(|stream, _, _| {
        let _ = read_chunked(stream);
        After::Close
    });
    let lb = Lb::with(&[&replica], &["--idle-timeout=300ms"]);
    for _ in 0..6 {
        let mut client = lb.connect();
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
        assert_eq!(client.read(false).status, 408);
    }
    let totals = lb.global.stats.totals();
    assert_eq!((totals.refused_client_timeout, totals.upstream_failures, totals.ejections), (6, 0, 0));
}

/// Three clients take all places, each in its own way; a fourth one asks.
fn crowded(rate: Option<u32>, request: &str) -> Vec<u16> {
    let replica = Replica::new(|stream, head, _| {
        if head.starts_with("GET /small") {
            return say(stream, 200, "fine");
        }
        if head.starts_with("POST") {
            return if read_chunked(stream) { say(stream, 200, "read") } else { After::Close };
        }
        let answer =
            [&b"HTTP/1.1 200 OK\r\nContent-Length: 33554432\r\n\r\n"[..], &vec![b'x'; 33_554_432]].concat();
        if stream.write_all(&answer).is_ok() { After::Keep } else { After::Close }
    });
    let change = |labels: &mut RouteLabels| (labels.max_in_flight, labels.rate) = (3, rate);
    let (_coordinator, lb) = routed(&replica, change, &["--queue-timeout=5s"]);
    let mut clients: Vec<_> = (0..3).map(|_| lb.connect()).collect();
    for client in &mut clients {
        client.send(request.as_bytes());
    }
    eventually("all places are taken", || lb.in_flight() == 3);
    assert_eq!(lb.get("/small").text(), "fine", "{request:?}");
    let totals = lb.global.stats.totals();
    assert_eq!(
        (totals.cut_for_room, totals.refused_full, totals.upstream_failures),
        (1, 0, 0),
        "{request:?}"
    );
    eventually("one has gone", || lb.in_flight() == 2);
    let mut told = Vec::new();
    for client in &mut clients {
        client.stream.set_read_timeout(Some(Duration::from_millis(200))).expect("set");
        let mut head = [0; 12];
        if client.stream.read_exact(&mut head).is_ok() {
            told.push(String::from_utf8_lossy(&head[9..]).parse().expect("a status"));
        }
    }
    told.sort_unstable();
    told
}

#[test]
fn a_request_without_room_gets_the_place_of_who_stands_still_on_every_path() {
    let unread = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
    assert_eq!(crowded(None, unread), [200, 200, 200], "two are being answered, one was cut");
    assert_eq!(crowded(Some(1_000_000), unread), [200, 200, 200], "the same on hyper's path");
    let half = "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n";
    assert_eq!(crowded(None, half), [408], "it is told, the others still may send");
}

#[test]
fn a_replica_that_has_the_whole_request_and_does_not_answer_is_given_up() {
    let replica = Replica::new(|stream, _, _| {
        let _ = read_chunked(stream);
        std::thread::sleep(Duration::from_secs(30));
        After::Close
    });
    let (_coordinator, lb) = routed(&replica, |labels| labels.timeout = Duration::from_millis(300), &[]);
    let mut client = lb.connect();
    client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfull\r\n0\r\n\r\n");
    assert_eq!(client.read(false).status, 504);
    assert_eq!(lb.global.stats.totals().failed_timeout, 1);
}

#[test]
fn an_open_request_is_not_cut_while_its_answer_streams() {
    let replica = Replica::new(|stream, _, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for _ in 0..12 {
            std::thread::sleep(Duration::from_millis(100));
            if stream.write_all(b"5\r\nline\n\r\n").is_err() {
                return After::Close;
            }
        }
        let _ = stream.write_all(b"0\r\n\r\n");
        After::Close
    });
    // Silence of one side lasts four times as long as a client may be idle.
    let lb = Lb::with(&[&replica], &["--idle-timeout=300ms"]);
    let mut client = lb.connect();
    client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nopen\r\n");
    assert_eq!(client.read(false).text(), "line\n".repeat(12));
}

#[test]
fn an_answer_that_comes_before_the_end_of_the_request_is_the_answer() {
    let replica = Replica::new(|stream, _, _| {
        let text = "too much";
        let head = "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 8\r\n\r\n";
        let _ = stream.write_all(format!("{head}{text}").as_bytes());
        // Closed with most of the request unread, which resets the connection.
        After::Close
    });
    let lb = Lb::with(&[&replica], &[]);
    let body = vec![b'x'; 64 * 1_024];
    for round in 0..20 {
        let mut client = lb.connect();
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n");
        let mut writer = client.stream.try_clone().expect("cloned");
        let body = body.clone();
        let writing = std::thread::spawn(move || {
            for _ in 0..20_000_000 / body.len() {
                if writer.write_all(&body).is_err() {
                    return;
                }
            }
        });
        let answer = client.read(false);
        assert_eq!((answer.status, answer.text().as_str()), (413, "too much"), "round {round}");
        drop(client);
        writing.join().expect("no panic");
    }
    let totals = lb.global.stats.totals();
    assert_eq!((totals.upstream_failures, totals.ejections, totals.failed_broken), (0, 0, 0));
}

#[test]
fn both_paths_take_heads_of_the_same_size_and_a_larger_one_is_not_asked_for_again() {
    let replica = |cookies: usize| {
        Replica::new(move |stream, _, _| {
            let cookies: String = (0..cookies).map(|n| format!("Set-Cookie: c{n}=1\r\n")).collect();
            let answer = format!("HTTP/1.1 200 OK\r\n{cookies}Content-Length: 2\r\n\r\nok");
            if stream.write_all(answer.as_bytes()).is_ok() { After::Keep } else { After::Close }
        })
    };
    let many = replica(120);
    let lb = Lb::with(&[&many], &[]);
    for method in ["GET", "DELETE"] {
        let answer = lb.connect().ask(&format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n"));
        let cookies = answer.headers.iter().filter(|(name, _)| name == "set-cookie").count();
        assert_eq!((answer.status, cookies), (200, 120), "{method}");
    }
    let (one, other) = (replica(300), replica(300));
    let lb = Lb::with(&[&one, &other], &[]);
    for method in ["GET", "DELETE"] {
        assert_eq!(
            lb.connect().ask(&format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n")).status,
            502,
            "{method}"
        );
    }
    assert_eq!(one.seen().len() + other.seen().len(), 2, "each was asked for once");
    let totals = lb.global.stats.totals();
    assert_eq!((totals.failed_too_large, totals.upstream_failures), (2, 0));
    let lb = Lb::with(&[&one], &["--max-headers=400"]);
    assert_eq!(lb.get("/").status, 200, "the limit can be raised");
}

#[test]
fn what_only_a_proxy_may_say_does_not_reach_the_replica_in_any_spelling() {
    let replica = Replica::named("hello");
    let lb = Lb::with(&[&replica], &[]);
    let claims = "X_Forwarded_For: 6.6.6.6\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Port: 666\r\n\
        X-Forwarded-Prefix: /evil\r\nX-Real-IP: 6.6.6.6\r\nTrue-Client-IP: 6.6.6.6\r\nX-Original-URL: /evil\r\n\
        X_Real_Ip: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Rewrite-URL: /evil\r\nProxy: http://evil\r\n\
        Content_Length: 666\r\nTransfer_Encoding: evil\r\n";
    for method in ["GET", "DELETE"] {
        lb.connect().ask(&format!("{method} / HTTP/1.1\r\nHost: x\r\n{claims}X-Request-Id: 7\r\n\r\n"));
        let head = replica.seen().pop().expect("a request").to_ascii_lowercase();
        assert!(!head.contains("666") && !head.contains("evil") && !head.contains("6.6.6.6"), "{head}");
        assert!(
            head.contains("x-forwarded-for: 127.0.0.1\r\n") && head.contains("x-request-id: 7\r\n"),
            "{head}"
        );
    }
    let lb = Lb::with(&[&replica], &["--trust-forwarded=true"]);
    lb.connect().ask(&format!("GET / HTTP/1.1\r\nHost: x\r\n{claims}\r\n"));
    let head = replica.seen().pop().expect("a request").to_ascii_lowercase();
    assert!(
        head.contains("x-forwarded-for: 6.6.6.6, 127.0.0.1\r\n") && head.contains("x-forwarded-port: 666")
    );
    assert!(!head.contains('_'), "another spelling is nobody's: {head}");
}

#[test]
fn hosts_that_are_none_users_in_targets_and_trace_are_refused() {
    let replica = Replica::named("hello");
    let lb = Lb::with(&[&replica], &[]);
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: a@evil.com/x?y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("GET http://user:secret@x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        ("GET http://x/y HTTP/1.1\r\nHost: z\r\n\r\n", 200),
        ("GET / HTTP/1.1\r\nHost: shop_web:8081\r\n\r\n", 200),
    ] {
        assert_eq!(lb.connect().ask(request).status, status, "{request:?}");
    }
    assert_eq!(replica.seen().len(), 2);
    assert!(replica.seen()[0].to_ascii_lowercase().contains("host: x\r\n"), "the target's host counts");
}

#[test]
fn endless_trailers_are_cut_off() {
    let replica = Replica::new(|stream, _, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n");
        while stream.write_all(b"a: b\r\n").is_ok() {}
        After::Close
    });
    let lb = Lb::with(&[&replica], &[]);
    for method in ["GET", "DELETE"] {
        let mut client = lb.connect();
        client.send(format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        let mut all = Vec::new();
        // Cut short, one way or another.
        let _ = client.stream.read_to_end(&mut all);
        assert!(all.len() < 100_000, "{method}: {} bytes", all.len());
    }
    eventually("no lease is left", || lb.in_flight() == 0);
}

#[test]
fn half_a_head_after_a_request_on_the_other_path_is_cut_off_too() {
    let replica = Replica::named("fine");
    let lb = Lb::with(&[&replica], &["--head-timeout=300ms", "--idle-timeout=30s"]);
    let mut client = lb.connect();
    assert_eq!(client.ask("DELETE / HTTP/1.1\r\nHost: x\r\n\r\n").text(), "fine");
    client.send(b"GET / HTTP/1.1\r\nHos");
    client.stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    assert!(client.is_closed(), "within the head's time, not the idle one's");
}

/// Answers an upgrade and echoes.
fn tunnel(protocol: &'static str) -> Replica {
    Replica::new(move |stream, head, _| {
        if !head.to_ascii_lowercase().contains("upgrade: ") {
            return say(stream, 200, "not upgraded");
        }
        let answer = format!("HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n");
        let _ = stream.write_all(answer.as_bytes());
        let mut buffer = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        After::Close
    })
}

#[test]
fn only_websocket_is_upgraded_and_what_a_label_names() {
    let ask = |lb: &Lb, protocol: &str| {
        let mut client = lb.connect();
        let more = "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n";
        client.ask(&format!(
            "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\n{more}\r\n"
        ))
    };
    let replica = tunnel("h2c");
    let lb = Lb::with(&[&replica], &[]);
    for protocol in ["h2c", "tcp", "websocket, h2c"] {
        assert_eq!(ask(&lb, protocol).text(), "not upgraded", "{protocol}");
    }
    assert!(replica.seen().iter().all(|head| !head.to_ascii_lowercase().contains("http2-settings")));
    let replica = tunnel("tcp");
    let (_coordinator, lb) = routed(&replica, |labels| labels.upgrades = vec!["tcp".into()], &[]);
    assert_eq!(ask(&lb, "tcp").status, 101);
    assert_eq!(ask(&lb, "websocket").text(), "not upgraded");
}

#[test]
fn tunnels_hold_their_place_and_end_in_silence() {
    let replica = tunnel("websocket");
    let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let lb = Lb::with(&[&replica], &["--max-connections=2", "--max-connections-per-address=2"]);
    let (mut one, mut two) = (lb.connect(), lb.connect());
    for client in [&mut one, &mut two] {
        client.send(request);
        assert_eq!(client.read(true).status, 101);
    }
    let mut third = lb.connect();
    third.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    third.stream.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
    assert!(third.stream.read(&mut [0; 1]).is_err(), "both places are taken");
    drop((one, two));
    drop(third);
    eventually("places are given back", || lb.in_flight() == 0);
    let lb = Lb::with(&[&replica], &["--stream-timeout=300ms"]);
    let mut quiet = lb.connect();
    quiet.send(request);
    assert_eq!(quiet.read(true).status, 101);
    assert!(quiet.is_closed(), "nothing moves");
    eventually("no lease is left", || lb.in_flight() == 0);
}

#[test]
fn each_client_address_has_a_rate_of_its_own() {
    let replica = Replica::named("fine");
    let (_coordinator, lb) = routed(&replica, |labels| labels.client_rate = Some(1), &[]);
    let statuses: Vec<u16> = (0..5).map(|_| lb.get("/").status).collect();
    assert!(
        statuses[0] == 200 && statuses.iter().filter(|status| **status == 429).count() >= 3,
        "{statuses:?}"
    );
    assert!(lb.global.stats.totals().refused_client_rate >= 3);
}

#[test]
fn where_clients_hold_all_memory_others_are_told_and_it_comes_back() {
    let replica = Replica::named("fine");
    let lb = Lb::with(&[&replica], &["--client-memory-bytes=4194304", "--max-connections-per-address=1000"]);
    let mut heads = Vec::new();
    let half = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}", "a".repeat(60_000));
    for _ in 0..100 {
        let mut client = lb.connect();
        let _ = client.stream.write_all(half.as_bytes());
        heads.push(client);
    }
    eventually("memory is short", || {
        lb.global.memory.is_short() || lb.global.stats.totals().refused_memory > 0
    });
    assert!(lb.global.memory.used() <= 4_194_304);
    drop(heads);
    eventually("memory is given back", || lb.global.memory.used() < 100_000);
    assert_eq!(lb.get("/").text(), "fine");
}

#[test]
fn coordinators_are_told_how_replicas_do() {
    let replica =
        Replica::new(|stream, head, _| say(stream, if head.contains("/bad") { 500 } else { 200 }, "x"));
    let (coordinator, lb) = routed(&replica, |_| {}, &[]);
    for path in ["/", "/", "/bad"] {
        lb.get(path);
    }
    let mut timed = false;
    let stats = loop {
        let stats = coordinator.stats();
        let one = stats.services.first().and_then(|service| service.replicas.first());
        timed |= one.is_some_and(|it| it.p50_us.is_some() && it.p50_us <= it.p99_us);
        if one.is_some_and(|it| it.requests == 3) {
            break stats;
        }
    };
    assert!(stats.ready && timed, "{stats:?}");
    let web = &stats.services[0];
    assert_eq!((web.name.as_str(), web.requests), ("web", 3));
    let one = &web.replicas[0];
    assert_eq!((one.task.as_str(), one.failures, one.in_flight), ("a", 1, 0));
    assert_eq!(one.state, ReplicaState::Serving);
}
