//! Routes and drains from a coordinator: real QUIC, real certificates, real requests.

mod support;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Mutex, mpsc},
    time::Duration,
};

use support::{After, Lb, Replica, coordinator::Coordinator, eventually, say};
use swarmguard_balancer::source::labels;
use swarmguard_common::{
    domain::BasisPoints,
    labels::{Algorithm, RouteLabels},
    wire::routes::{FromRouteSource, ReplicaLoad},
};

/// Two replicas of one service: same port, different addresses.
fn pair(
    first: impl Fn(&mut std::net::TcpStream) -> After + Send + Sync + 'static,
) -> (Replica, Replica, [IpAddr; 2], u16) {
    let one: IpAddr = "127.0.0.1".parse().expect("an address");
    let two: IpAddr = "127.0.0.2".parse().expect("an address");
    let a = Replica::at(SocketAddr::new(one, 0), move |stream, _, _| first(stream));
    let port = a.address.port();
    let b = Replica::at(SocketAddr::new(two, port), |stream, _, _| say(stream, 200, "b"));
    (a, b, [one, two], port)
}

fn start(coordinator: &Coordinator, more: &[&str]) -> Lb {
    let arguments = coordinator.arguments();
    let all: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Lb::start(&all)
}

#[test]
fn a_drained_replica_gets_nothing_new_and_is_reported_when_its_last_request_ended() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let (a, b, [one, two], port) = pair(move |stream| {
        let _ = wait.lock().expect("the only one").recv();
        say(stream, 200, "a")
    });
    let coordinator = Coordinator::start();
    let lb = start(&coordinator, &[]);
    let task = |name: &str| name.parse().expect("letters");
    coordinator.routes(&labels(port), &[("a", one)]);
    eventually("a is known", || !lb.global.table.load().services.is_empty());
    let mut busy = lb.connect();
    busy.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually("a request is in flight at a", || lb.in_flight() == 1);
    coordinator.routes(&labels(port), &[("a", one), ("b", two)]);
    eventually("b is known", || lb.global.table.load().services[0].replicas.len() == 2);
    coordinator.say(FromRouteSource::Drain { tasks: vec![task("a"), task("stranger")] });
    assert_eq!(coordinator.drained(), [task("stranger")], "what is not known here has nothing in flight");
    for _ in 0..30 {
        assert_eq!(lb.get("/").text(), "b");
    }
    // New routes still list it: the announced drain stands.
    coordinator.routes(&labels(port), &[("a", one), ("b", two)]);
    assert_eq!(lb.get("/").text(), "b");
    assert!(!coordinator.drained_already(), "a request is in flight");
    go.send(()).expect("it waits");
    assert_eq!(busy.read(false).text(), "a");
    assert_eq!(coordinator.drained(), [task("a")]);
    assert_eq!(a.seen().len(), 1);
    assert!(b.seen().len() >= 31);
    coordinator.say(FromRouteSource::Resume { tasks: vec![task("a")] });
    for _ in 0..2_000 {
        go.send(()).expect("it waits");
    }
    eventually("a takes requests again", || lb.get("/").text() == "a");
}

#[test]
fn labels_set_rate_cookie_and_bounds() {
    let (_a, _b, [one, two], port) = pair(|stream| say(stream, 200, "a"));
    let coordinator = Coordinator::start();
    let lb = start(&coordinator, &[]);
    let sticky = swarmguard_common::labels::RouteLabels {
        sticky: true,
        algorithm: Some(Algorithm::RoundRobin),
        ..labels(port)
    };
    coordinator.routes(&sticky, &[("a", one), ("b", two)]);
    eventually("routes are known", || !lb.global.table.load().services.is_empty());
    for method in ["GET", "DELETE"] {
        let first = lb.connect().ask(&format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n"));
        let cookie =
            first.header("set-cookie").expect("a cookie").split(';').next().expect("a pair").to_owned();
        for _ in 0..6 {
            let request = format!("{method} / HTTP/1.1\r\nHost: x\r\nCookie: a=b; {cookie}\r\n\r\n");
            let again = lb.connect().ask(&request);
            assert_eq!((again.text(), again.header("set-cookie")), (first.text(), None));
        }
    }
    let limited = swarmguard_common::labels::RouteLabels { rate: Some(1), ..labels(port) };
    coordinator.routes(&limited, &[("a", one), ("b", two)]);
    eventually("the limit applies", || lb.global.table.load().services[0].limit.is_some());
    let statuses: Vec<u16> = (0..5).map(|_| lb.get("/").status).collect();
    assert!(statuses.contains(&429), "{statuses:?}");
    let shop = swarmguard_common::labels::RouteLabels { hosts: vec!["shop.example".into()], ..labels(port) };
    coordinator.routes(&shop, &[("a", one)]);
    eventually("the host is asked for", || lb.get("/").status == 404);
    assert_eq!(lb.connect().ask("GET / HTTP/1.1\r\nHost: SHOP.example:8081\r\n\r\n").text(), "a");
}

#[test]
fn where_every_replica_is_busy_requests_wait_for_room_and_then_hear_when_to_come_back() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let (_a, _b, [one, _], port) = pair(move |stream| {
        let _ = wait.lock().expect("the only one").recv();
        say(stream, 200, "a")
    });
    let coordinator = Coordinator::start();
    let lb = start(&coordinator, &["--queue-timeout=10s", "--queue-length=1"]);
    let bounded = swarmguard_common::labels::RouteLabels { max_in_flight: 1, ..labels(port) };
    coordinator.routes(&bounded, &[("a", one)]);
    eventually("routes are known", || !lb.global.table.load().services.is_empty());
    let (mut first, mut second) = (lb.connect(), lb.connect());
    first.send(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n");
    eventually("the first is in flight", || lb.in_flight() == 1);
    second.send(b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n");
    let waiting = || lb.global.table.load().services[0].shared.waiting();
    eventually("the second waits", || waiting() == 1);
    let third = lb.get("/3");
    assert_eq!((third.status, third.header("retry-after")), (503, Some("1")));
    go.send(()).expect("it waits");
    assert_eq!(first.read(false).text(), "a");
    go.send(()).expect("it waits");
    assert_eq!(second.read(false).text(), "a");
    eventually("nobody waits", || waiting() == 0);
}

#[test]
fn traffic_goes_on_when_the_coordinator_dies() {
    let (_a, _b, [one, two], port) = pair(|stream| say(stream, 200, "a"));
    let mut coordinator = Coordinator::start();
    let lb = start(&coordinator, &["--algorithm=round-robin", "--dns-interval=100ms"]);
    coordinator.routes(&labels(port), &[("a", one), ("b", two)]);
    eventually("routes are known", || !lb.global.table.load().services.is_empty());
    // What a coordinator says that has not read the swarm yet.
    coordinator.say(FromRouteSource::Routes(swarmguard_common::wire::routes::Routes::default()));
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(lb.get("/").status, 200);
    coordinator.kill();
    // Longer than routes count as fresh: DNS is asked, knows nothing, and the last known routes stay.
    let end = std::time::Duration::from_secs(7);
    let step = Duration::from_millis(50);
    for _ in 0..end.as_millis() / step.as_millis() {
        assert_eq!(lb.get("/").status, 200);
        std::thread::sleep(step);
    }
    assert_eq!(lb.global.table.load().services[0].replicas.len(), 2);
}

#[test]
fn hcl_leaves_replicas_alone_that_are_busy_for_other_balancers_while_agents_say_so() {
    let (a, b, [one, two], port) = pair(|stream| say(stream, 200, "a"));
    let coordinator = Coordinator::start();
    // Figures are believed for as long as this test lasts.
    let lb = start(&coordinator, &["--cache-ttl=60"]);
    let labels = RouteLabels { algorithm: Some(Algorithm::Hcl), ..labels(port) };
    let load = |in_flight| {
        let low = BasisPoints::from_percent(10);
        let load = ReplicaLoad {
            cpu: low,
            memory: low,
            network: low,
            psi_cpu: BasisPoints::ZERO,
            in_flight: Some(in_flight),
            latency_us: Some(2_000),
            age_ms: 0,
        };
        Some(load)
    };
    // What the agent of `a` counts at its sockets is nothing that this balancer has sent.
    coordinator.routes_with_load(&labels, &[("a", one, load(40)), ("b", two, load(0))]);
    let others = || {
        let table = lb.global.table.load();
        let replicas = table.services.iter().flat_map(|service| &service.replicas);
        replicas.map(|it| it.others(swarmguard_runtime::clock::now())).max().unwrap_or(0)
    };
    eventually("the load is known", || others() == 40);
    for _ in 0..200 {
        assert_eq!(lb.get("/").status, 200);
    }
    let (busy, idle) = (a.seen().len(), b.seen().len());
    assert!(busy * 10 < idle, "{busy} to the one that is busy, {idle} to the other");
    // Without figures both are as good as the balancer itself can tell.
    coordinator.routes(&labels, &[("a", one), ("b", two)]);
    eventually("the load is unknown", || others() == 0);
    let before = a.seen().len();
    eventually("it takes requests again", || {
        lb.get("/");
        a.seen().len() > before + 20
    });
}

#[test]
fn a_replica_that_is_not_ready_or_gone_gets_nothing() {
    let (a, _b, [one, two], port) = pair(|stream| say(stream, 200, "a"));
    let coordinator = Coordinator::start();
    let lb = start(&coordinator, &[]);
    coordinator.routes(&labels(port), &[("b", two)]);
    eventually("b is known", || lb.get("/").text() == "b");
    assert!(a.seen().is_empty());
    coordinator.routes(&labels(port), &[("a", one)]);
    eventually("only a is left", || lb.get("/").text() == "a");
    for _ in 0..20 {
        assert_eq!(lb.get("/").text(), "a");
    }
    coordinator.routes(&labels(port), &[]);
    eventually("nobody is left", || lb.get("/").status == 503);
    assert_eq!(lb.get("/").header("retry-after"), Some("1"));
}
