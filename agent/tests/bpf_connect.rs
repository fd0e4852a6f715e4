//! Balancing at `connect()`, on a real kernel: listeners on addresses of the loopback network stand for replicas, and a
//! cgroup for a container.

#[expect(dead_code, reason = "each test binary uses a part of it")]
mod kernel;

use std::collections::BTreeMap;
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use kernel::{Group, Process};
use swarmguard_agent::bpf::{Options, Programs};
use swarmguard_agent::connect::{Plan, Planner};
use swarmguard_common::domain::ContainerId;
use swarmguard_common::wire::connect::{ConnectReplica, ConnectRoutes, Front, ReplicaState};

/// Nobody listens here.
const VIP: Ipv4Addr = Ipv4Addr::new(127, 99, 0, 1);
const CLIENT: &str = "c1";

/// Replicas that listen, the programs, and the client's cgroup.
struct Stage {
    programs: Programs,
    planner: Planner,
    listeners: Vec<TcpListener>,
    groups: Group,
    port: u16,
}

impl Stage {
    fn new(test: &str, replicas: u8) -> Option<Self> {
        let (facts, root) = kernel::facts_or_skip(test)?;
        let mut programs =
            Programs::load(&root, &facts, Options::default()).expect("this kernel takes the programs");
        if programs.balanced().is_none() {
            kernel::skip(test, &format!("{:?}", programs.findings()));
            return None;
        }
        let first = TcpListener::bind((address(1), 0)).expect("the loopback network");
        let port = first.local_addr().expect("bound").port();
        let mut listeners = vec![first];
        listeners.extend((2..=replicas).map(|n| TcpListener::bind((address(n), port)).expect("a free port")));
        for listener in &listeners {
            listener.set_nonblocking(true).expect("a setting");
        }
        let groups = Group::new(&root);
        groups.child("client");
        groups.child("stranger");
        Some(Self { programs, planner: Planner::default(), listeners, groups, port })
    }

    fn client(&self) -> std::path::PathBuf {
        self.groups.child("client")
    }

    /// Tells the kernel of replicas in these states.
    fn route(&mut self, states: &[ReplicaState]) -> Plan {
        let routes = routes(VIP, states);
        self.plan(Some(&routes))
    }

    fn plan(&mut self, routes: Option<&ConnectRoutes>) -> Plan {
        let dir = self.client();
        let id: ContainerId = CLIENT.parse().expect("an ID");
        let plan = self.planner.plan(routes, &BTreeMap::from([(id, kernel::id(&dir))]));
        assert!(self.programs.balance(&plan, &|_| Some(dir.as_path())).expect("the maps take it"));
        plan
    }

    /// Connections open to each replica, in their order.
    fn open(&self, plan: &Plan) -> Vec<u64> {
        plan.slots.iter().map(|slot| self.programs.open_connections(*slot).expect("a slot")).collect()
    }

    /// How many connections each listener has waiting; takes them.
    fn accepted(&self) -> Vec<usize> {
        let count = |listener: &TcpListener| std::iter::from_fn(|| listener.accept().ok()).count();
        self.listeners.iter().map(count).collect()
    }

    /// Runs in a process of the client's cgroup.
    fn as_client(&self, body: impl FnOnce() -> io::Result<()>) {
        inside(&self.client(), body);
    }
}

/// A process of a cgroup that pauses where it says so.
struct Client {
    process: Process,
    said: PipeReader,
    go: PipeWriter,
}

impl Client {
    fn start(cgroup: &Path, body: impl FnOnce(&mut dyn FnMut() -> io::Result<()>) -> io::Result<()>) -> Self {
        let ((said, mut say), (mut told, go)) = (io::pipe().expect("a pipe"), io::pipe().expect("a pipe"));
        let process = Process::spawn(cgroup, None, move || {
            let mut pause = || {
                say.write_all(b"x")?;
                told.read_exact(&mut [0])
            };
            body(&mut pause)
        });
        Self { process, said, go }
    }

    /// Waits for its next pause.
    fn reached(&mut self) {
        self.said.read_exact(&mut [0]).expect("the client came so far");
    }

    fn go_on(&mut self) {
        self.go.write_all(b"x").expect("the client waits");
    }
}

fn inside(cgroup: &Path, body: impl FnOnce() -> io::Result<()>) {
    Process::spawn(cgroup, None, body).finish();
}

fn address(replica: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 99, 1, replica)
}

fn routes(vip: Ipv4Addr, states: &[ReplicaState]) -> ConnectRoutes {
    let network = "n1".parse().expect("an ID");
    let replicas = (1..).zip(states).map(|(number, state)| ConnectReplica {
        task: format!("t{number}").parse().expect("an ID"),
        address: address(number),
        node: "w1".parse().expect("an ID"),
        state: *state,
    });
    let service = "s1".parse().expect("an ID");
    let front = Front { service, network, address: vip, replicas: replicas.collect() };
    let containers = [(CLIENT.parse().expect("an ID"), vec![front.network.clone()])].into();
    ConnectRoutes { revision: 1, acting: true, fronts: vec![front], containers }
}

fn expect(what: &str, ok: bool) -> io::Result<()> {
    if ok { Ok(()) } else { Err(io::Error::other(what.to_owned())) }
}

use ReplicaState::{Draining, Silent, Usable};

#[test]
fn connections_are_spread_evenly_and_come_back_when_they_close() {
    let Some(mut stage) = Stage::new("bpf_connect", 4) else { return };
    let plan = stage.route(&[Usable; 4]);
    let port = stage.port;
    let mut client = Client::start(&stage.client(), move |pause| {
        let mut held = Vec::new();
        for _ in 0..40 {
            held.push(TcpStream::connect((VIP, port))?);
        }
        pause()?;
        held.truncate(10);
        pause()
    });
    client.reached();
    assert_eq!(stage.open(&plan), [10; 4], "each goes to the one with fewest");
    let figures = stage.programs.balanced().expect("loaded");
    assert_eq!((figures.directed, figures.open, figures.containers), (40, 40, 1));
    assert_eq!(stage.accepted(), [10; 4]);
    client.go_on();
    client.reached();
    assert_eq!(stage.open(&plan).iter().sum::<u64>(), 10, "what was closed is given back");
    client.go_on();
    client.process.finish();
    assert_eq!(stage.open(&plan), [0; 4], "a process that ends gives all back");
}

#[test]
fn a_replica_that_others_keep_busy_gets_the_next_ones_last() {
    let Some(mut stage) = Stage::new("bpf_connect", 2) else { return };
    let port = stage.port;
    stage.route(&[Usable, Draining]);
    let mut client = Client::start(&stage.client(), move |pause| {
        let _held: Vec<_> = (0..5).map(|_| TcpStream::connect((VIP, port))).collect::<io::Result<_>>()?;
        pause()?;
        let _more: Vec<_> = (0..6).map(|_| TcpStream::connect((VIP, port))).collect::<io::Result<_>>()?;
        pause()
    });
    client.reached();
    assert_eq!(stage.accepted(), [5, 0]);
    let plan = stage.route(&[Usable, Usable]);
    client.go_on();
    client.reached();
    let more = stage.accepted();
    assert!(matches!(more.as_slice(), [0, 6] | [1, 5]), "five to draw level, the sixth to either: {more:?}");
    assert_eq!(stage.open(&plan).iter().sum::<u64>(), 11);
    client.go_on();
    client.process.finish();
}

#[test]
fn short_connections_find_all_replicas() {
    let Some(mut stage) = Stage::new("bpf_connect", 3) else { return };
    stage.route(&[Usable; 3]);
    let port = stage.port;
    const ALL: usize = 300;
    let mut total = [0; 3];
    for _ in 0..ALL / 30 {
        stage.as_client(|| {
            for _ in 0..30 {
                drop(TcpStream::connect((VIP, port))?);
            }
            Ok(())
        });
        for (sum, more) in total.iter_mut().zip(stage.accepted()) {
            *sum += more;
        }
    }
    println!("ties: {total:?}");
    assert_eq!(total.iter().sum::<usize>(), ALL);
    // Each has 100 of 300 on average, with a deviation of 8: less than half of that does not happen by chance.
    assert!(total.iter().all(|count| *count > 50), "{total:?}");
}

#[test]
fn what_drains_or_is_silent_gets_none_and_keeps_what_it_has() {
    let Some(mut stage) = Stage::new("bpf_connect", 3) else { return };
    let port = stage.port;
    stage.route(&[Usable, Draining, Silent]);
    stage.as_client(|| (0..20).try_for_each(|_| TcpStream::connect((VIP, port)).map(drop)));
    assert_eq!(stage.accepted(), [20, 0, 0]);
    stage.route(&[Draining, Usable, Usable]);
    stage.as_client(|| (0..20).try_for_each(|_| TcpStream::connect((VIP, port)).map(drop)));
    assert_eq!(stage.accepted()[0], 0);
}

#[test]
fn without_routes_calls_go_where_they_always_went() {
    let Some(mut stage) = Stage::new("bpf_connect", 2) else { return };
    let port = stage.port;
    let refused = || {
        let error = TcpStream::connect((VIP, port)).err();
        expect(
            "nobody listens at the virtual address",
            error.is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused),
        )
    };
    stage.as_client(refused);
    let plan = stage.route(&[Usable; 2]);
    inside(&stage.groups.child("stranger"), refused);
    stage.as_client(|| {
        // Named by its own address, and another one.
        let direct = TcpStream::connect((address(2), port))?;
        expect("the peer is the replica", direct.peer_addr()? == SocketAddr::from((address(2), port)))
    });
    assert_eq!(stage.accepted(), [0, 1]);
    assert_eq!(stage.open(&plan), [0; 2], "what was not directed is not counted");
    stage.plan(None);
    stage.as_client(refused);
    stage.route(&[Draining; 2]);
    stage.as_client(refused);
    stage.route(&[Usable; 2]);
    stage.as_client(|| TcpStream::connect((VIP, port)).map(drop));
}

#[test]
fn applications_see_the_virtual_address_over_either_family() {
    let Some(mut stage) = Stage::new("bpf_connect", 1) else { return };
    let plan = stage.route(&[Usable]);
    let port = stage.port;
    stage.as_client(|| {
        let stream = TcpStream::connect((VIP, port))?;
        expect(
            "the peer has the name it was called by",
            stream.peer_addr()? == SocketAddr::from((VIP, port)),
        )?;
        let mapped = SocketAddr::from((VIP.to_ipv6_mapped(), port));
        let stream = TcpStream::connect(mapped)?;
        expect("over IPv6 too", stream.peer_addr()? == mapped)
    });
    assert_eq!(stage.accepted(), [2]);
    assert_eq!(stage.open(&plan), [0]);
}

#[test]
fn a_nested_group_counts_and_a_datagram_socket_is_left_alone() {
    let Some(mut stage) = Stage::new("bpf_connect", 1) else { return };
    stage.route(&[Usable]);
    let port = stage.port;
    inside(&stage.groups.child("client/nested"), || TcpStream::connect((VIP, port)).map(drop));
    assert_eq!(stage.accepted(), [1]);
    stage.as_client(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((VIP, port))?;
        expect("its peer is the virtual address", socket.peer_addr()? == SocketAddr::from((VIP, port)))
    });
    assert_eq!(stage.programs.balanced().expect("loaded").directed, 1);
}

#[test]
fn a_failed_attempt_and_a_second_one_on_the_same_socket_leave_no_count() {
    let Some(mut stage) = Stage::new("bpf_connect", 1) else { return };
    let plan = stage.route(&[Usable]);
    let port = stage.port;
    stage.listeners.clear();
    stage.as_client(|| {
        let error = TcpStream::connect((VIP, port)).err();
        expect(
            "the replica is not there",
            error.is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused),
        )?;
        // One socket, called twice.
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
        for _ in 0..2 {
            let again = rustix::net::connect(&socket, &std::net::SocketAddrV4::new(VIP, port));
            expect("the replica is not there", again == Err(rustix::io::Errno::CONNREFUSED))?;
        }
        Ok(())
    });
    assert_eq!(stage.programs.balanced().expect("loaded").directed, 3);
    assert_eq!(stage.open(&plan), [0]);
}

#[test]
fn late_ends_are_not_taken_off_the_next_ones_count() {
    let Some(mut stage) = Stage::new("bpf_connect", 1) else { return };
    stage.route(&[Usable]);
    let port = stage.port;
    let mut client = Client::start(&stage.client(), move |pause| {
        let _held = TcpStream::connect((VIP, port))?;
        pause()
    });
    client.reached();
    // Another replica at the same place.
    let mut other = routes(VIP, &[Usable]);
    other.fronts[0].replicas[0].task = "t9".parse().expect("an ID");
    let plan = stage.plan(Some(&other));
    assert_eq!(stage.open(&plan), [0]);
    client.go_on();
    client.process.finish();
    assert_eq!(stage.open(&plan), [0], "not minus one");
}
