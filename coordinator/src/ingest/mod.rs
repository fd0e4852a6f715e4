//! The QUIC server: who may speak, what they may say, how fast, and what becomes of everything else.
//!
//! Agents prove with their certificate which node they are; balancers have no certificate and prove with a token that
//! they may read routes. What passes goes into two bounded queues towards the loop: reliable messages, where a full queue
//! slows the peer down (QUIC's flow control carries that to the sender), and reports, where it drops them. Whatever is
//! refused is counted with its reason; one bad peer costs the good ones nothing.

mod agent;
mod balancer;
pub mod hub;
mod rate;
pub mod refusal;
pub mod roster;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use quinn::{Connection, ConnectionError, Endpoint, Incoming, RecvStream, SendStream, VarInt};
use serde::de::DeserializeOwned;
use swarmguard_common::{
    domain::{NodeId, Role},
    wire::agent::ToAgent,
};
use swarmguard_core::brain::{AgentInput, ConnectionId};
pub use swarmguard_runtime::token;
use swarmguard_runtime::{
    crowd::{Crowd, Place},
    frame::{self, FrameError},
    identity::Peer,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::metrics::Metrics;
use hub::Hub;
use refusal::{Reason, Refusals};
use roster::Roster;
use token::Token;

/// Application close codes, seen by the peer together with a sentence.
mod close {
    /// The coordinator ends.
    pub const GOING: u32 = 0;
    /// Refused; the text says why.
    pub const REFUSED: u32 = 1;
    /// A newer connection of the same node took over.
    pub const SUPERSEDED: u32 = 2;
}

/// What a peer may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once, of all peers.
    pub connections: usize,
    /// Connections that have not introduced themselves yet.
    pub greeting: usize,
    /// Of those, from one address: nobody keeps all the others out alone.
    pub greeting_per_address: usize,
    /// Longest time from the first packet to the hello.
    pub hello: Duration,
    /// Longest time that writing one message may take.
    pub write: Duration,
    /// Reliable messages a second and peer; faster peers are slowed down.
    pub messages_per_s: f64,
    /// Reliable messages at once, for instance all introductions after a reconnect.
    pub message_burst: f64,
    /// Datagrams a second and peer; more are dropped.
    pub datagrams_per_s: f64,
    /// Containers of one node at once.
    pub handles: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4_096,
            greeting: 256,
            greeting_per_address: 64,
            hello: Duration::from_secs(10),
            write: Duration::from_secs(20),
            messages_per_s: 2_000.0,
            message_burst: 20_000.0,
            datagrams_per_s: 500.0,
            handles: 8_192,
        }
    }
}

/// Reliable input for the loop.
#[derive(Debug)]
pub enum Event {
    /// An agent introduced itself; its earlier connection, if any, speaks no more.
    Up {
        /// Its hello.
        input: AgentInput,
        /// Where to put what it is to be told.
        outbox: watch::Sender<Outbox>,
        /// Its certificate is a manager's.
        as_manager: bool,
    },
    /// It said something, or went.
    Input(AgentInput),
}

/// What one agent is to be told. The newest wins, so a slow reader costs no memory.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    /// Alerts up to this one are known.
    pub acknowledge: u64,
    /// Thresholds.
    pub thresholds: Option<Arc<ToAgent>>,
    /// Routes for balancing at `connect()`.
    pub connect: Option<Arc<ToAgent>>,
    /// Revision of the routes that are still so, and how often that was said.
    pub connect_still: (u64, u64),
    /// How many pulses were given, whether Swarm can be read, and whether this coordinator acts.
    pub pulse: Option<(u64, bool, bool)>,
    /// The connection is to be closed, and why.
    pub close: Option<String>,
}

/// Everything that the tasks of all connections share.
#[derive(Debug)]
pub struct Ingest {
    limits: Limits,
    /// Our cluster, as our own certificate says; peers of another are refused.
    cluster: String,
    token: Option<Token>,
    refusals: Refusals,
    metrics: Arc<Metrics>,
    hub: Arc<Hub>,
    events: mpsc::Sender<Event>,
    reports: mpsc::Sender<AgentInput>,
    roster: Arc<Roster>,
    current: Mutex<BTreeMap<NodeId, (ConnectionId, Connection)>>,
    next: AtomicU64,
    greeting: Arc<Semaphore>,
    guests: Arc<Crowd>,
}

/// The loop's ends of the queues.
#[derive(Debug)]
pub struct Inputs {
    /// Reliable messages, in the order in which each node said them.
    pub events: mpsc::Receiver<Event>,
    /// Reports.
    pub reports: mpsc::Receiver<AgentInput>,
    /// Who may speak: the loop says so with each reading of Swarm.
    pub roster: Arc<Roster>,
}

/// Reliable messages that wait for the loop.
const EVENT_QUEUE: usize = 8_192;
/// Reports that wait for the loop.
const REPORT_QUEUE: usize = 8_192;

impl Ingest {
    /// Prepares ingest for the cluster that our certificate names. Without a token balancers are refused.
    pub fn new(
        limits: Limits,
        cluster: String,
        token: Option<Token>,
        hub: Arc<Hub>,
        metrics: Arc<Metrics>,
    ) -> (Arc<Self>, Inputs) {
        let (events, events_out) = mpsc::channel(EVENT_QUEUE);
        let (reports, reports_out) = mpsc::channel(REPORT_QUEUE);
        let greeting = Arc::new(Semaphore::new(limits.greeting));
        let refusals = Refusals::new(Arc::clone(&metrics));
        let (current, next) = (Mutex::default(), AtomicU64::new(1));
        let guests = Crowd::new(limits.greeting_per_address);
        let roster = Arc::<Roster>::default();
        let ingest = Self {
            roster: Arc::clone(&roster),
            limits,
            cluster,
            token,
            refusals,
            metrics,
            hub,
            events,
            reports,
            current,
            next,
            greeting,
            guests,
        };
        (Arc::new(ingest), Inputs { events: events_out, reports: reports_out, roster })
    }

    /// What was refused so far.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Accepts connections until the endpoint is closed.
    pub async fn serve(self: Arc<Self>, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let from = incoming.remote_address().ip();
            if endpoint.open_connections() > self.limits.connections {
                self.refusals.note(from, Reason::Crowded, "too many connections");
                incoming.refuse();
                continue;
            }
            let Some(place) = self.guests.enter(from) else {
                self.refusals.note(
                    from,
                    Reason::Crowded,
                    "too many of one address that have not introduced themselves",
                );
                incoming.refuse();
                continue;
            };
            let Ok(permit) = Arc::clone(&self.greeting).try_acquire_owned() else {
                self.refusals.note(
                    from,
                    Reason::Crowded,
                    "too many connections that have not introduced themselves",
                );
                incoming.refuse();
                continue;
            };
            // Half full: from here on an address must prove that it exists before it costs anything.
            let busy = self.greeting.available_permits() < self.limits.greeting / 2;
            if busy && !incoming.remote_address_validated() && incoming.may_retry() {
                // The only error is one that may_retry() has just ruled out.
                let _ = incoming.retry();
                continue;
            }
            let this = Arc::clone(&self);
            // Bounded by `connections` above; each ends with its connection.
            tokio::spawn(async move { this.connection(incoming, from, (place, permit)).await });
        }
    }

    async fn connection(&self, incoming: Incoming, from: IpAddr, place: (Place, OwnedSemaphorePermit)) {
        let greeted = tokio::time::timeout(self.limits.hello, self.greet(incoming, from)).await;
        drop(place);
        match greeted {
            Err(_) => self.refusals.note(from, Reason::HelloTimeout, "it did not introduce itself in time"),
            Ok(None) => {}
            Ok(Some(Guest::Agent(guest))) => {
                self.metrics.agents.inc();
                self.agent(guest).await;
                self.metrics.agents.dec();
            }
            Ok(Some(Guest::Balancer(guest))) => {
                self.metrics.balancers.inc();
                self.balancer(guest).await;
                self.metrics.balancers.dec();
            }
        }
    }

    /// From the first packet to a checked hello; `None` when refused, which was then noted and told to the peer.
    async fn greet(&self, incoming: Incoming, from: IpAddr) -> Option<Guest> {
        let connection = match incoming.accept() {
            Ok(connecting) => connecting.await,
            Err(error) => Err(error),
        };
        let connection = match connection {
            Ok(connection) => connection,
            Err(error) => {
                self.refusals.note(from, Reason::Handshake, error);
                return None;
            }
        };
        let peer = match Peer::of_connection(&connection) {
            Ok(peer) => peer,
            Err(error) => return self.refuse(&connection, from, Reason::Certificate, &error.to_string()),
        };
        if peer.is_none() && self.token.is_none() {
            let why = "balancers are not let in: no token is configured (--balancer-token-file)";
            return self.refuse(&connection, from, Reason::NoToken, why);
        }
        let (send, receive) = match connection.accept_bi().await {
            Ok(streams) => streams,
            Err(error) => {
                self.refusals.note(from, Reason::HelloTimeout, format_args!("no control stream: {error}"));
                return None;
            }
        };
        let guest = Streams { connection, from, send, receive };
        match (peer, &self.token) {
            (None, Some(token)) => self.greet_balancer(guest, token).await.map(Guest::Balancer),
            // Refused above, before it could keep us waiting for its stream.
            (None, None) => None,
            (Some(peer), _) if peer.cluster != self.cluster => {
                let why = format!("the certificate is of cluster {}, this is {}", peer.cluster, self.cluster);
                self.refuse(&guest.connection, from, Reason::Certificate, &why)
            }
            (Some(peer), _) if peer.may(Role::Agent) => {
                self.greet_agent(guest, &peer).await.map(Guest::Agent)
            }
            (Some(_), _) => self.refuse(
                &guest.connection,
                from,
                Reason::Certificate,
                "only nodes and balancers speak here",
            ),
        }
    }

    /// Notes a refusal, tells the peer, and ends the connection.
    fn refuse<T>(&self, connection: &Connection, from: IpAddr, reason: Reason, why: &str) -> Option<T> {
        self.refusals.note(from, reason, why);
        connection.close(VarInt::from_u32(close::REFUSED), format!("{}: {why}", reason.word()).as_bytes());
        None
    }

    /// The first message of a peer; one that brings none is refused.
    async fn first<T: DeserializeOwned>(&self, streams: &mut Streams) -> Option<T> {
        let (reason, why) = match frame::read(&mut streams.receive).await {
            Ok(Some(message)) => return Some(message),
            Ok(None) => (Reason::Truncated, "the stream ended before the hello".to_owned()),
            Err(error) => (reason_of(&error)?, error.to_string()),
        };
        self.refuse(&streams.connection, streams.from, reason, &why)
    }

    /// Makes this the node's connection and ends the one that was.
    fn supersede(&self, node: &NodeId, connection: &Connection) -> ConnectionId {
        let id = ConnectionId(self.next.fetch_add(1, Ordering::Relaxed));
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, old)) = current.insert(node.clone(), (id, connection.clone())) {
            old.close(VarInt::from_u32(close::SUPERSEDED), b"a newer connection of this node took over");
        }
        id
    }

    fn forget(&self, node: &NodeId, id: ConnectionId) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.get(node).is_some_and(|(of, _)| *of == id) {
            current.remove(node);
        }
    }
}

/// Ends all connections of an endpoint in an orderly way.
pub async fn close(endpoint: &Endpoint) {
    endpoint.close(VarInt::from_u32(close::GOING), b"the coordinator ends");
    endpoint.wait_idle().await;
}

enum Guest {
    Agent(agent::Guest),
    Balancer(balancer::Guest),
}

struct Streams {
    connection: Connection,
    from: IpAddr,
    send: SendStream,
    receive: RecvStream,
}

/// Which refusal an unreadable frame is; `None` where the connection merely ended.
fn reason_of(error: &FrameError) -> Option<Reason> {
    match error {
        FrameError::Oversized { .. } => Some(Reason::Oversized),
        FrameError::Codec(_) => Some(Reason::Malformed),
        FrameError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Some(Reason::Truncated),
        FrameError::Io(_) => None,
    }
}

/// Whether a connection ended as connections do.
fn is_ordinary(error: &ConnectionError) -> bool {
    !matches!(error, ConnectionError::TransportError(_) | ConnectionError::VersionMismatch)
}
