//! Replicas that can no longer be reached, or not yet: packets to them are lost without a word, as they are when a node
//! loses power and while an overlay network has not heard of a new address. No client is to notice.
//!
//! A socket filter that drops everything makes a peer of that kind, without root and without a network of its own.

mod support;

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use support::{After, Lb, Replica, coordinator::Coordinator, eventually, say};
use swarmguard_balancer::source::labels;
use swarmguard_common::labels::{Algorithm, RouteLabels};

/// From now on the kernel drops whatever arrives for this socket, before it is acknowledged.
fn lose_everything(socket: &impl AsRawFd) {
    let mut drop_all = [libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: drop_all.as_mut_ptr() };
    set(socket, libc::SO_ATTACH_FILTER, &program);
}

/// Takes that back.
fn lose_nothing(socket: &impl AsRawFd) {
    set(socket, libc::SO_DETACH_FILTER, &0_i32);
}

fn set<T>(socket: &impl AsRawFd, option: i32, value: &T) {
    let length = libc::socklen_t::try_from(size_of::<T>()).expect("small");
    // SAFETY: the kernel copies `length` bytes of `value`, and what a filter points to, before it returns.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const *value).cast(), length)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Quick to notice, and nothing else interferes.
const SETTINGS: [&str; 3] =
    ["--algorithm=round-robin", "--unreachable-timeout=300ms", "--health-check-interval=3600"];

#[test]
fn a_kept_connection_to_where_nothing_arrives_any_more_is_given_up() {
    // Answers, and the next request over the same connection never arrives.
    let replica = Replica::new(|stream, _, before| {
        let after = say(stream, 200, "well");
        if before % 2 == 0 {
            lose_everything(stream);
        }
        after
    });
    let lb = Lb::with(&[&replica], &SETTINGS);
    for method in ["GET", "DELETE"] {
        for _ in 0..4 {
            // The client's own patience is less than the 60 s that a replica has to answer.
            let answer = lb.connect().ask(&format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n"));
            assert_eq!(answer.text(), "well", "{method}");
        }
    }
    let totals = lb.global.stats.totals();
    assert!(totals.stale_connections >= 2, "{}", totals.stale_connections);
}

#[test]
fn a_replica_that_vanishes_with_requests_is_not_waited_for() {
    let vanishes = Replica::new(|stream, head, _| {
        if head.contains("/stay") {
            return say(stream, 200, "vanishes");
        }
        lose_everything(stream);
        // Whatever it would say now is not acknowledged either; it just is not there.
        std::thread::sleep(support::PATIENCE * 2);
        After::Close
    });
    let well = Replica::named("well");
    let lb = Lb::with(&[&vanishes, &well], &SETTINGS);
    for method in ["GET", "DELETE"] {
        for _ in 0..2 {
            let answer = lb.connect().ask(&format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n"));
            assert_eq!(answer.text(), "well", "{method}: sent again elsewhere");
        }
    }
    // What must not be sent again is not, and its client hears it long before the 60 s are over.
    let statuses: Vec<u16> = (0..2)
        .map(|_| {
            let post = "POST /once HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
            lb.connect().ask(post).status
        })
        .collect();
    assert!(statuses.contains(&502), "{statuses:?}");
    let posts = [&vanishes, &well]
        .map(|replica| replica.seen().iter().filter(|head| head.starts_with("POST /once")).count());
    assert_eq!(posts, [1, 1]);
}

#[test]
fn a_replica_that_reads_slowly_is_not_taken_for_unreachable() {
    let go = Arc::new(AtomicBool::new(false));
    let may_read = Arc::clone(&go);
    const BODY: usize = 16_000_000;
    let replica = Replica::new(move |stream, _, _| {
        while !may_read.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut body = vec![0; BODY];
        std::io::Read::read_exact(stream, &mut body).expect("the whole body");
        say(stream, 200, "read")
    });
    let lb = Lb::with(&[&replica], &SETTINGS);
    let mut client = lb.connect();
    let mut upload = client.stream.try_clone().expect("cloned");
    let sending = std::thread::spawn(move || {
        use std::io::Write as _;
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY}\r\n\r\n");
        upload.write_all(head.as_bytes()).expect("sent");
        upload.write_all(&vec![b'x'; BODY]).expect("sent");
    });
    eventually("the request is there", || !replica.seen().is_empty());
    // Many times as long as silence is put up with: all windows are full, and the kernels still speak.
    std::thread::sleep(Duration::from_secs(3));
    go.store(true, SeqCst);
    assert_eq!(client.read(false).text(), "read");
    sending.join().expect("sent");
}

/// A replica that listens behind a wall until it is taken down.
struct Walled {
    listener: TcpListener,
}

impl Walled {
    fn at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("bound");
        lose_everything(&listener);
        let accepting = listener.try_clone().expect("cloned");
        std::thread::spawn(move || {
            for stream in accepting.incoming().map_while(Result::ok) {
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { listener }
    }
}

fn serve(mut stream: TcpStream) {
    while support::read_head(&mut stream).is_some() {
        if say(&mut stream, 200, "walled") == After::Close {
            return;
        }
    }
}

#[test]
fn a_new_replica_takes_traffic_once_it_was_reached_and_costs_nobody_a_moment_before() {
    let [one, two]: [IpAddr; 2] = ["127.0.0.1", "127.0.0.2"].map(|it| it.parse().expect("an address"));
    let old = Replica::at(SocketAddr::new(one, 0), |stream, _, _| say(stream, 200, "old"));
    let port = old.address.port();
    let new = Walled::at(SocketAddr::new(two, port));
    let coordinator = Coordinator::start();
    let arguments = coordinator.arguments();
    let lb = Lb::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let labels =
        RouteLabels { algorithm: Some(Algorithm::RoundRobin), slow_start: Duration::ZERO, ..labels(port) };
    coordinator.routes(&labels, &[("old", one)]);
    eventually("the first is known", || !lb.global.table.load().services.is_empty());
    assert_eq!(lb.get("/").text(), "old");
    coordinator.routes(&labels, &[("old", one), ("new", two)]);
    eventually("the second is known", || lb.global.table.load().services[0].replicas.len() == 2);
    for _ in 0..50 {
        assert_eq!(lb.get("/").text(), "old");
    }
    assert_eq!(lb.global.stats.totals().retries, 0, "no request was sent where nothing arrives");
    lose_nothing(&new.listener);
    eventually("the second takes requests", || lb.get("/").text() == "walled");
    // The last one there is takes them at once, reached or not.
    coordinator.routes(&labels, &[("newest", one)]);
    eventually("only one is left", || lb.get("/").text() == "old");
}
