//! Requests through the whole balancer, over real sockets: what arrives, what comes back, and what is never sent twice.

mod support;

use std::{
    io::{Read, Write},
    time::Duration,
};

use support::{After, Client, Lb, Replica, eventually, read_head, say};

#[test]
fn a_plain_request_arrives_once_with_the_client_named() {
    let replica = Replica::named("hello");
    let lb = Lb::with(&[&replica], &[]);
    let mut client = lb.connect();
    for _ in 0..3 {
        let answer = client.ask("GET /a?b HTTP/1.1\r\nHost: x.example\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n");
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
    }
    let heads = replica.seen();
    assert_eq!(heads.len(), 3);
    assert!(heads[0].starts_with("GET /a?b HTTP/1.1\r\n"), "{}", heads[0]);
    assert!(heads[0].contains("Host: x.example\r\n") && heads[0].contains("x-forwarded-for: 127.0.0.1\r\n"));
    assert!(!heads[0].contains("6.6.6.6"));
    assert_eq!(replica.connections.load(std::sync::atomic::Ordering::SeqCst), 1, "the connection is kept");
    assert_eq!(lb.global.stats.totals().requests_fast, 3);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let replica =
        Replica::new(|stream, head, _| say(stream, 200, head.split(' ').nth(1).unwrap_or_default()));
    let lb = Lb::with(&[&replica], &[]);
    let mut client = lb.connect();
    let requests: String = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
    client.send(requests.as_bytes());
    for n in 0..20 {
        assert_eq!(client.read(false).text(), format!("/{n}"));
    }
}

#[test]
fn answers_of_every_shape_pass() {
    let big: String = "0123456789abcdef".repeat(200_000);
    let expected = big.clone();
    let replica = Replica::new(move |stream, head, _| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let text = match path {
            "/chunks" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n".into(),
            "/close" => "HTTP/1.1 200 OK\r\n\r\nuntil the end".into(),
            "/none" => "HTTP/1.1 204 No Content\r\n\r\n".into(),
            "/interim" => "HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into(),
            "/big" => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{big}", big.len()),
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n".to_owned(),
        };
        let written = stream.write_all(text.as_bytes());
        if path == "/close" || written.is_err() { After::Close } else { After::Keep }
    });
    let lb = Lb::with(&[&replica], &[]);
    let mut client = lb.connect();
    let mut ask =
        |method: &str, path: &str| client.ask(&format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    let chunks = ask("GET", "/chunks");
    assert_eq!((chunks.text().as_str(), chunks.trailers.as_str()), ("abcde", "T: 1"));
    assert_eq!(ask("GET", "/none").status, 204);
    assert_eq!(ask("GET", "/interim").text(), "ok");
    let head = ask("HEAD", "/head");
    assert_eq!((head.status, head.header("content-length")), (200, Some("7")));
    assert_eq!(ask("GET", "/big").text(), expected);
    let close = ask("GET", "/close");
    assert_eq!((close.text().as_str(), close.header("connection")), ("until the end", Some("close")));
}

#[test]
fn bodies_stream_both_ways_at_once() {
    // Echoes each chunk before it reads the next, so it works only if nothing on the way gathers bodies.
    let replica = Replica::new(|stream, _, _| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").expect("written");
        loop {
            let mut size = Vec::new();
            let mut byte = [0; 1];
            while !size.ends_with(b"\r\n") {
                stream.read_exact(&mut byte).expect("a chunk");
                size.push(byte[0]);
            }
            stream.write_all(&size).expect("written");
            let size = usize::from_str_radix(String::from_utf8_lossy(&size).trim(), 16).expect("a size");
            let mut data = vec![0; size + 2];
            stream.read_exact(&mut data).expect("its data");
            stream.write_all(&data).expect("written");
            if size == 0 {
                return After::Keep;
            }
        }
    });
    let lb = Lb::with(&[&replica], &[]);
    let mut client = lb.connect();
    client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(b"5\r\nfirst\r\n");
    let head = read_head(&mut client.stream).expect("the answer begins before the request ends");
    assert!(head.starts_with("HTTP/1.1 200"));
    let mut reader = client.stream.try_clone().expect("cloned");
    let mut expect = |text: &str| {
        let mut read = vec![0; text.len()];
        reader.read_exact(&mut read).expect("an echo");
        assert_eq!(String::from_utf8_lossy(&read), text);
    };
    expect("5\r\nfirst\r\n");
    client.stream.write_all(b"6\r\nsecond\r\n").expect("written");
    expect("6\r\nsecond\r\n");
}

#[test]
fn websockets_and_other_upgrades_become_tunnels() {
    let replica = Replica::new(|stream, head, _| {
        assert!(head.to_ascii_lowercase().contains("upgrade: websocket\r\n"), "{head}");
        let answer = b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
        stream.write_all(answer).expect("written");
        let mut buffer = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..count]).expect("echoed");
        }
        After::Close
    });
    let lb = Lb::with(&[&replica], &[]);
    let mut client = lb.connect();
    client.send(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: y\r\n\r\n");
    let answer = client.read(true);
    assert_eq!((answer.status, answer.header("sec-websocket-accept")), (101, Some("x")));
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    for word in ["one", "two"] {
        client.send(word.as_bytes());
        let mut read = [0; 3];
        client.stream.read_exact(&mut read).expect("an echo");
        assert_eq!(&read, word.as_bytes());
    }
    assert_eq!(lb.in_flight(), 1, "a tunnel is a request in flight");
    drop(client);
    eventually("the lease is returned", || lb.in_flight() == 0);
}

#[test]
fn a_dead_replica_costs_nobody_a_request() {
    let alive = Replica::named("alive");
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.local_addr().expect("an address")
    };
    let nodes = format!("--worker-nodes={},{dead}", alive.address);
    let lb = Lb::start(&[&nodes, "--algorithm=round-robin", "--health-check-interval=3600"]);
    let mut client = lb.connect();
    for _ in 0..40 {
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n").text(), "alive");
        // Nothing of it was sent to the dead one, so that even a POST goes elsewhere.
        let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(lb.connect().ask(post).text(), "alive");
    }
}

#[test]
fn safe_requests_go_elsewhere_after_a_failure_and_unsafe_ones_never() {
    let well = Replica::named("well");
    let breaks = Replica::new(|_, _, _| After::Close);
    let lb = Lb::with(&[&well, &breaks], &["--algorithm=round-robin"]);
    for _ in 0..2 {
        assert_eq!(lb.get("/").text(), "well");
    }
    let broken_before = breaks.seen().len();
    assert!(broken_before > 0, "it was tried");
    let (mut failed, mut sent) = (0, 0);
    while failed == 0 && sent < 20 {
        sent += 1;
        let mut client = lb.connect();
        let answer = client.ask("POST /once HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        failed += usize::from(answer.status == 502);
    }
    let seen = |replica: &Replica| replica.seen().iter().filter(|head| head.contains("POST /once")).count();
    assert!(failed > 0, "one of them came to the one that breaks");
    assert_eq!(failed, seen(&breaks), "each POST that broke was answered 502");
    assert_eq!(seen(&well) + seen(&breaks), sent, "and none was sent twice");
}

#[test]
fn what_was_sent_over_a_kept_connection_that_breaks_is_not_sent_again_where_it_must_not_be() {
    // The first request is answered and the connection kept; the second one is read, and then it breaks.
    let breaks = || {
        Replica::new(
            |stream, head, _| {
                if head.contains("/first") { say(stream, 200, "kept") } else { After::Close }
            },
        )
    };
    let (one, other) = (breaks(), breaks());
    let lb = Lb::with(&[&one, &other], &["--algorithm=round-robin"]);
    let seen = |what: &str| {
        let heads = one.seen().into_iter().chain(other.seen());
        heads.filter(|head| head.contains(what)).count()
    };
    for (number, request) in ["POST", "PATCH", "PUT"].into_iter().enumerate() {
        for path in ["/first", "/first", "/second"] {
            let body = "Content-Length: 4\r\n\r\nbody";
            let answer =
                lb.connect().ask(&format!("{request} {path}/{number} HTTP/1.1\r\nHost: x\r\n{body}"));
            let expected = if path == "/second" { 502 } else { 200 };
            assert_eq!(answer.status, expected, "{request} {path}: {answer:?}");
        }
        assert_eq!(seen(&format!("/second/{number}")), 1, "{request} was sent more than once");
    }
}

#[test]
fn an_unavailable_answer_is_tried_elsewhere_within_the_budget() {
    let well = Replica::named("well");
    let ill = Replica::new(|stream, _, _| say(stream, 503, "ill"));
    let lb = Lb::with(&[&well, &ill], &["--algorithm=round-robin"]);
    for _ in 0..10 {
        assert_eq!(lb.get("/").text(), "well");
    }
    let all_ill = Lb::with(&[&ill], &[]);
    let before = ill.seen().len();
    let answers: Vec<u16> = (0..10).map(|_| all_ill.get("/").status).collect();
    assert_eq!(answers, [503; 10], "the service's own answer is passed on");
    assert_eq!(ill.seen().len() - before, 10, "there was nowhere else to try");
}

#[test]
fn a_connection_that_the_replica_closed_meanwhile_is_not_the_clients_problem() {
    let replica = Replica::new(|stream, _, _| {
        say(stream, 200, "once");
        After::Close
    });
    let lb = Lb::with(&[&replica], &[]);
    let mut fast = lb.connect();
    let mut slow = lb.connect();
    for _ in 0..20 {
        assert_eq!(fast.ask("GET / HTTP/1.1\r\nHost: x\r\n\r\n").text(), "once");
        assert_eq!(slow.ask("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").text(), "once");
    }
    assert_eq!(lb.global.stats.totals().failed_broken, 0);
}

#[test]
fn without_replicas_the_answer_says_when_to_come_back_and_recovery_is_quick() {
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.local_addr().expect("an address")
    };
    let nodes = format!("--worker-nodes={address}");
    let lb = Lb::start(&[&nodes, "--health-check-interval=3600"]);
    // It is tried as long as there is nothing better, over both of the ways through the balancer.
    let post = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    for answer in [lb.get("/"), lb.connect().ask(post)] {
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
    }
    let nobody = Lb::start(&["--target-service=nothing"]);
    let answer = nobody.get("/");
    assert!(matches!(answer.status, 404 | 503), "{answer:?}");
    let back = Replica::at(address, |stream, _, _| say(stream, 200, "back"));
    eventually("it is back", || lb.get("/").text() == "back");
    drop(back);
}

#[test]
fn a_client_that_goes_away_returns_its_lease() {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let receiver = std::sync::Mutex::new(receiver);
    let replica = Replica::new(move |_, _, _| {
        // Never answers while the test runs.
        let _ = receiver.lock().expect("the only one").recv();
        After::Close
    });
    let lb = Lb::with(&[&replica], &[]);
    for request in
        ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"]
    {
        let mut client = lb.connect();
        client.send(request.as_bytes());
        eventually("the request is in flight", || lb.in_flight() == 1);
        drop(client);
        eventually("the lease is returned", || lb.in_flight() == 0);
        let _ = sender.send(());
    }
}

#[test]
fn requests_in_flight_end_when_the_balancer_is_told_to_stop() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let replica = Replica::new(move |stream, _, _| {
        let _ = wait.lock().expect("the only one").recv();
        say(stream, 200, "done")
    });
    let mut lb = Lb::with(&[&replica], &[]);
    let (mut busy, mut idle) = (lb.connect(), lb.connect());
    busy.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually("the request is in flight", || lb.in_flight() == 1);
    lb.tell_to_stop();
    assert!(idle.is_closed(), "an idle connection is closed at once");
    go.send(()).expect("it waits");
    let answer = busy.read(false);
    assert_eq!((answer.text().as_str(), answer.header("connection")), ("done", Some("close")));
    let address = lb.addresses[0];
    eventually("nobody listens any more", || std::net::TcpStream::connect(address).is_err());
}

#[test]
fn both_metrics_formats_and_health_are_served_where_clients_are_not() {
    let replica = Replica::named("x");
    let lb = Lb::with(&[&replica], &[]);
    lb.get("/");
    let admin = |head: &str| {
        Client::connect(lb.admin).ask(&format!("{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    };
    let json: serde_json::Value = serde_json::from_slice(&admin("GET /metrics").body).expect("JSON");
    assert!(json["total_requests"].as_u64().expect("a number") >= 1);
    assert_eq!(json["routing_decisions"].as_object().expect("an object").values().next(), Some(&1.into()));
    let scrape = "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain\r\nConnection: close\r\n\r\n";
    let text = Client::connect(lb.admin).ask(scrape).text();
    for line in [
        "swarmguard_balancer_requests_total 1\n",
        "swarmguard_balancer_replica_requests_total{service=\"default\",",
        "swarmguard_balancer_service_responses_total{service=\"default\",class=\"2xx\"} 1\n",
        "swarmguard_balancer_first_byte_seconds_count{service=\"default\"} 1\n",
        "swarmguard_balancer_first_byte_seconds_bucket{service=\"default\",le=\"+Inf\"} 1\n",
        "swarmguard_balancer_failures_total{reason=\"broken\"} 0\n",
        "swarmguard_balancer_refused_total{reason=\"no_route\"} 0\n",
        "swarmguard_balancer_pick_duration_seconds_count ",
        "swarmguard_balancer_build_info{version=",
        "process_resident_memory_bytes ",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert_eq!(admin("GET /healthz").text(), "ok\n");
    assert_eq!(lb.get("/metrics").text(), "x", "clients see the service's own path");
    let open = Lb::with(&[&replica], &["--own-paths=true"]);
    assert_eq!(open.get("/healthz").text(), "ok\n");
}

#[test]
fn expired_leases_no_longer_count() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let replica = Replica::new(move |stream, _, _| {
        let _ = wait.lock().expect("the only one").recv();
        say(stream, 200, "late")
    });
    let lb = Lb::with(&[&replica], &["--lease-duration=100ms", "--lease-cleanup-interval=20ms"]);
    let mut client = lb.connect();
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let leases = || lb.global.table.load().services[0].replicas[0].leases();
    eventually("the lease is taken", || leases() == 1);
    eventually("the lease expires", || leases() == 0);
    assert_eq!(lb.in_flight(), 1);
    std::thread::sleep(Duration::from_millis(1));
    go.send(()).expect("it waits");
    assert_eq!(client.read(false).text(), "late");
    eventually("it is over", || lb.in_flight() == 0);
    assert_eq!(leases(), 0);
}
