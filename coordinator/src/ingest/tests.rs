//! Ingest against hostile peers, over real QUIC on loopback; a good peer must go on through all of it.

use std::{future::Future, net::SocketAddr};

use swarmguard_common::wire::{
    agent::{Alert, Hello, NodeLoad, Report, TaskIntro, TaskLoad, ToCoordinator},
    codec,
    routes::{FromRouteSource, ToRouteSource},
};
use swarmguard_core::brain::AgentEvent;
use swarmguard_runtime::{
    frame,
    identity::{Identity, Source, Unit, anonymous_client_config, issue::Authority},
    transport,
};
use tempfile::TempDir;

use super::*;

const TOKEN: &str = "a-token-long-enough";
const NODES: [&str; 3] = ["good", "bad", "third"];

struct World {
    dir: TempDir,
    ingest: Arc<Ingest>,
    inputs: Inputs,
    hub: Arc<Hub>,
    address: SocketAddr,
    _endpoint: Endpoint,
}

/// A peer with its control stream.
struct Client {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    seq: u64,
    _endpoint: Endpoint,
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

fn world(limits: Limits, token: Option<&str>) -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::create("cluster1").expect("made");
    let issue = |name: &str, unit| {
        let at = dir.path().join(name);
        std::fs::create_dir(&at).expect("made");
        authority.issue(name, unit, &at).expect("issued");
    };
    issue("manager", Unit::Manager);
    issue("anna", Unit::Operator);
    NODES.iter().for_each(|node| issue(node, Unit::Worker));
    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).expect("made");
    Authority::create("cluster1").expect("made").issue("good", Unit::Worker, &foreign).expect("issued");
    // It trusts our manager; we do not trust its authority.
    std::fs::write(foreign.join("ca.pem"), authority.pem()).expect("written");

    let identity = Identity::load(&Source::Files(dir.path().join("manager"))).expect("loads");
    let config = transport::server_config(identity.server_config().expect("usable")).expect("usable");
    let endpoint = transport::bind(loopback(), Some(config)).expect("bound");
    let hub = Arc::new(Hub::default());
    let token = token.map(Token::of);
    let (ingest, inputs) = Ingest::new(limits, "cluster1".into(), token, Arc::clone(&hub), Metrics::new());
    tokio::spawn(Arc::clone(&ingest).serve(endpoint.clone()));
    let address = endpoint.local_addr().expect("bound");
    World { dir, ingest, inputs, hub, address, _endpoint: endpoint }
}

fn hello(node: &str) -> ToCoordinator {
    ToCoordinator::Hello(Hello {
        node: node.parse().expect("valid"),
        epoch: 7,
        hostname: format!("{node}-host"),
        version: "0".into(),
        cpu_millis: 4_000,
        memory_bytes: 1 << 30,
        link_mbps: Some(1_000),
        blind: false,
    })
}

fn task(handle: u32) -> ToCoordinator {
    ToCoordinator::Task(TaskIntro {
        handle,
        container: "c0ffee".parse().expect("valid"),
        task: None,
        service: None,
        cpu_limit_millis: None,
        memory_limit_bytes: None,
        healthcheck: None,
        local_volumes: Vec::new(),
    })
}

fn alert(seq: u64, handle: u32) -> ToCoordinator {
    ToCoordinator::Alert(Alert { epoch: 7, seq, handle, condition: 0, edge: 0, value: 9_000, age_ms: 1 })
}

fn report(seq: u64) -> Report {
    Report {
        epoch: 7,
        seq,
        node: NodeLoad::default(),
        tasks: vec![TaskLoad { handle: 1, ..TaskLoad::default() }],
    }
}

impl World {
    fn client_config(&self, who: &str) -> quinn::ClientConfig {
        let tls = if who == "balancer" {
            anonymous_client_config(&self.dir.path().join("manager/ca.pem")).expect("usable")
        } else {
            let identity = Identity::load(&Source::Files(self.dir.path().join(who))).expect("loads");
            identity.client_config().expect("usable")
        };
        transport::client_config(tls).expect("usable")
    }

    /// Connects and opens the control stream, without a word.
    async fn connect(&self, who: &str) -> Result<Client, String> {
        let endpoint = transport::bind(loopback(), None).expect("bound");
        let connecting = endpoint.connect_with(self.client_config(who), self.address, "swarm-manager");
        let connection = connecting.expect("startable").await.map_err(|error| error.to_string())?;
        let (send, receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
        Ok(Client { connection, send, receive, seq: 0, _endpoint: endpoint })
    }

    async fn agent(&self, who: &str) -> Client {
        let mut client = self.connect(who).await.expect("let in");
        client.say(&hello(who)).await;
        client.say(&task(1)).await;
        client
    }

    fn refused(&self, reason: Reason) -> u64 {
        self.ingest.refusals().count(reason)
    }

    async fn until_refused(&self, reason: Reason, times: u64) {
        eventually(reason.word(), || self.refused(reason) >= times).await;
    }

    /// The next message of a node; its hello and introductions are passed over.
    async fn next_of(&mut self, node: &str) -> ToCoordinator {
        let next = async {
            loop {
                if let Event::Input(input) = self.inputs.events.recv().await.expect("open")
                    && input.node.as_str() == node
                    && let AgentEvent::Message(message) = input.what
                    && !matches!(message, ToCoordinator::Task(_))
                {
                    return message;
                }
            }
        };
        in_time("a message", next).await
    }

    /// The good peer is heard: its next alert comes through.
    async fn still_hears(&mut self, good: &mut Client) {
        good.seq += 1;
        let said = alert(good.seq, 1);
        good.say(&said).await;
        assert_eq!(self.next_of("good").await, said);
        assert_eq!(good.connection.close_reason(), None);
    }
}

impl Client {
    async fn say(&mut self, message: &ToCoordinator) {
        frame::write(&mut self.send, message).await.expect("written");
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.send.write_all(bytes).await.expect("written");
    }

    fn datagram(&self, bytes: Vec<u8>) {
        self.connection.send_datagram(bytes.into()).expect("sent");
    }

    /// What the coordinator says when it ends the connection.
    async fn farewell(&self) -> String {
        in_time("the end", self.connection.closed()).await.to_string()
    }
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(60), future).await {
        Ok(done) => done,
        Err(_) => panic!("{what} did not come"),
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let met = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(what, met).await;
}

#[tokio::test]
async fn an_agent_is_welcomed_and_heard() {
    let mut world = world(Limits::default(), None);
    let mut good = world.agent("good").await;
    let Some(Event::Up { input, outbox, .. }) = world.inputs.events.recv().await else { panic!("no hello") };
    assert_eq!(input.node.as_str(), "good");
    assert!(matches!(input.what, AgentEvent::Connected(hello) if hello.hostname == "good-host"));
    world.still_hears(&mut good).await;
    good.datagram(codec::encode(&report(1)).expect("small"));
    let heard = in_time("a report", world.inputs.reports.recv()).await.expect("open");
    assert!(matches!(heard.what, AgentEvent::Report(heard) if heard == report(1)));
    let welcome = in_time("a welcome", frame::read::<ToAgent>(&mut good.receive)).await.expect("whole");
    assert!(matches!(welcome, Some(ToAgent::Welcome { .. })));
    outbox.send_modify(|outbox| outbox.acknowledge = 5);
    let acknowledged =
        in_time("an acknowledgement", frame::read::<ToAgent>(&mut good.receive)).await.expect("whole");
    assert_eq!(acknowledged, Some(ToAgent::Acknowledge { seq: 5 }));
    outbox.send_modify(|outbox| outbox.close = Some("enough".into()));
    assert!(good.farewell().await.contains("enough"));
}

#[tokio::test]
async fn frames_that_break_the_rules_end_their_connection_and_no_other() {
    let mut world = world(Limits::default(), None);
    let mut good = world.agent("good").await;
    let garbage = [&[3, 0, 0, 0][..], &[99, 1, 2]].concat();
    let trailing = [&[9, 0, 0, 0][..], &[2, 1, 0, 0, 0, 0, 0, 0, 0]].concat();
    let cases: [(Reason, Vec<u8>); 6] = [
        (Reason::Oversized, u32::MAX.to_le_bytes().into()),
        (Reason::Malformed, garbage),
        (Reason::Malformed, trailing),
        (Reason::Unexpected, frame::to_bytes(&hello("bad")).expect("small")),
        (Reason::BadHandle, frame::to_bytes(&task(1)).expect("small")),
        (Reason::BadHandle, frame::to_bytes(&task(0)).expect("small")),
    ];
    for (reason, bytes) in cases {
        let before = world.refused(reason);
        let mut bad = world.agent("bad").await;
        bad.write(&bytes).await;
        let farewell = bad.farewell().await;
        assert!(farewell.contains(reason.word()), "{reason:?}: {farewell}");
        assert_eq!(world.refused(reason), before + 1, "{reason:?}");
        world.still_hears(&mut good).await;
    }
    let mut bad = world.agent("bad").await;
    bad.write(&[200, 0, 0, 0, 1, 2, 3]).await;
    bad.send.finish().expect("open");
    assert!(bad.farewell().await.contains("truncated"));
    world.still_hears(&mut good).await;
}

#[tokio::test]
async fn nobody_speaks_for_another_node_or_without_a_good_certificate() {
    let mut world = world(Limits::default(), Some(TOKEN));
    let mut good = world.agent("good").await;
    let mut bad = world.connect("bad").await.expect("let in");
    bad.say(&hello("good")).await;
    assert!(bad.farewell().await.contains("wrong_node"));
    let mut bad = world.connect("bad").await.expect("let in");
    bad.say(&alert(1, 1)).await;
    assert!(bad.farewell().await.contains("unexpected"));
    // The refusal of a client certificate reaches the client after its own side of the handshake is done.
    if let Ok(foreign) = world.connect("foreign").await {
        foreign.farewell().await;
    }
    world.until_refused(Reason::Handshake, 1).await;
    let mut operator = world.connect("anna").await.expect("let in");
    operator.say(&hello("good")).await;
    assert!(operator.farewell().await.contains("certificate"));
    // Without a certificate, as an agent: that is not a balancer's hello.
    let mut nobody = world.connect("balancer").await.expect("let in");
    nobody.say(&hello("good")).await;
    assert!(nobody.farewell().await.contains("malformed"));
    world.still_hears(&mut good).await;
}

#[tokio::test]
async fn bad_messages_and_datagrams_are_counted_and_the_connection_goes_on() {
    let mut world = world(Limits::default(), None);
    let mut good = world.agent("good").await;
    good.seq = 10;
    world.still_hears(&mut good).await;
    good.say(&alert(11, 1)).await;
    world.until_refused(Reason::Replayed, 1).await;
    good.say(&alert(12, 77)).await;
    world.until_refused(Reason::UnknownHandle, 1).await;
    assert_eq!(world.next_of("good").await, alert(12, 77), "passed on, to be acknowledged");
    let unknown = Alert { epoch: 7, seq: 13, handle: 1, condition: 200, edge: 0, value: 0, age_ms: 0 };
    good.say(&ToCoordinator::Alert(unknown)).await;
    world.until_refused(Reason::UnknownCondition, 1).await;
    good.say(&ToCoordinator::Gone { handle: 5 }).await;
    world.until_refused(Reason::UnknownHandle, 2).await;

    good.datagram(vec![255; 40]);
    world.until_refused(Reason::Malformed, 1).await;
    good.datagram(vec![0; 1_101]);
    world.until_refused(Reason::Oversized, 1).await;
    good.datagram(codec::encode(&Report { epoch: 8, ..report(1) }).expect("small"));
    world.until_refused(Reason::Epoch, 1).await;
    good.datagram(codec::encode(&report(5)).expect("small"));
    in_time("a report", world.inputs.reports.recv()).await.expect("open");
    good.datagram(codec::encode(&report(5)).expect("small"));
    world.until_refused(Reason::Replayed, 2).await;
    let mut boastful = report(6);
    boastful.node.cpu = Some(swarmguard_common::domain::BasisPoints(10_001));
    good.datagram(codec::encode(&boastful).expect("small"));
    world.until_refused(Reason::Malformed, 2).await;
    good.seq = 13;
    world.next_of("good").await;
    world.still_hears(&mut good).await;
}

#[tokio::test]
async fn a_flood_is_slowed_down_without_loss_and_others_are_heard_meanwhile() {
    let limits =
        Limits { messages_per_s: 200.0, message_burst: 20.0, datagrams_per_s: 10.0, ..Limits::default() };
    let mut world = world(limits, None);
    let mut good = world.agent("good").await;
    world.still_hears(&mut good).await;
    let mut bad = world.agent("bad").await;
    for seq in 1..=300 {
        bad.say(&alert(seq, 1)).await;
        bad.datagram(codec::encode(&report(seq)).expect("small"));
    }
    world.until_refused(Reason::Flood, 1).await;
    world.until_refused(Reason::DatagramFlood, 1).await;
    // Not still_hears(): that would pass over what the flooder says.
    good.seq += 1;
    good.say(&alert(good.seq, 1)).await;
    let (mut last, mut good_heard_at) = (0, None);
    while last < 300 {
        let Event::Input(input) = in_time("a message", world.inputs.events.recv()).await.expect("open")
        else {
            continue;
        };
        let AgentEvent::Message(ToCoordinator::Alert(alert)) = input.what else { continue };
        if input.node.as_str() == "good" {
            good_heard_at = Some(last);
        } else {
            assert_eq!(alert.seq, last + 1, "nothing is lost and nothing is swapped");
            last = alert.seq;
        }
    }
    assert!(good_heard_at.is_some_and(|at| at < 300), "{good_heard_at:?}");
}

#[tokio::test]
async fn a_new_connection_supersedes_the_old_one() {
    let mut world = world(Limits::default(), None);
    let old = world.agent("good").await;
    world.until_up().await;
    let mut new = world.agent("good").await;
    assert!(old.farewell().await.contains("took over"));
    world.still_hears(&mut new).await;
}

#[tokio::test]
async fn those_who_say_nothing_make_room_for_those_who_do() {
    let limits = Limits { greeting: 2, hello: Duration::from_millis(500), ..Limits::default() };
    let mut world = world(limits, None);
    let silent = [world.connect("bad").await, world.connect("third").await];
    let mut crowd = Vec::new();
    while world.refused(Reason::Crowded) == 0 {
        crowd.push(world.connect("third").await);
    }
    world.until_refused(Reason::HelloTimeout, 2).await;
    drop((silent, crowd));
    let come = async {
        loop {
            if let Ok(mut good) = world.connect("good").await {
                good.say(&hello("good")).await;
                good.say(&task(1)).await;
                return good;
            }
        }
    };
    let mut good = in_time("room", come).await;
    world.still_hears(&mut good).await;
}

#[tokio::test]
async fn one_address_cannot_take_all_places() {
    let limits = Limits { greeting_per_address: 1, ..Limits::default() };
    let world = world(limits, None);
    let silent = world.connect("bad").await.expect("let in");
    assert!(world.connect("third").await.is_err());
    assert_eq!(world.refused(Reason::Crowded), 1);
    silent.connection.close(0_u32.into(), b"done");
    let come = async { while world.connect("third").await.is_err() {} };
    in_time("the place of the one that left", come).await;
}

impl World {
    async fn until_up(&mut self) {
        let up = async { while !matches!(self.inputs.events.recv().await, Some(Event::Up { .. })) {} };
        in_time("a hello", up).await;
    }
}

#[tokio::test]
async fn a_balancer_needs_the_token_and_then_gets_routes_and_answers_drains() {
    let world = world(Limits::default(), Some(TOKEN));
    let say = |token: &str| ToRouteSource::Hello { token: token.into(), name: "lb".into() };
    let mut wrong = world.connect("balancer").await.expect("let in");
    frame::write(&mut wrong.send, &say("a-token-long-enougH")).await.expect("written");
    assert!(wrong.farewell().await.contains("wrong_token"));

    let mut balancer = world.connect("balancer").await.expect("let in");
    frame::write(&mut balancer.send, &say(TOKEN)).await.expect("written");
    let first =
        in_time("routes", frame::read::<FromRouteSource>(&mut balancer.receive)).await.expect("whole");
    assert!(matches!(first, Some(FromRouteSource::Routes(_))));
    let tasks = vec!["task1".parse().expect("valid")];
    let hub = Arc::clone(&world.hub);
    let wanted = tasks.clone();
    let draining = tokio::spawn(async move { hub.drain(&wanted, Duration::from_secs(60)).await });
    let drain =
        in_time("a drain", frame::read::<FromRouteSource>(&mut balancer.receive)).await.expect("whole");
    assert_eq!(drain, Some(FromRouteSource::Drain { tasks: tasks.clone() }));
    frame::write(&mut balancer.send, &ToRouteSource::Drained { tasks }).await.expect("written");
    assert_eq!(in_time("the end of the drain", draining).await.expect("no panic"), Vec::<String>::new());
}

#[tokio::test]
async fn without_a_configured_token_no_balancer_is_let_in() {
    let world = world(Limits::default(), None);
    let balancer = world.connect("balancer").await.expect("let in");
    assert!(balancer.farewell().await.contains("no_token"));
}
