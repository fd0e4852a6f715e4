//! To the coordinators and back: one connection each, kept up for as long as the agent runs.
//!
//! Every attempt uses a fresh endpoint, hence a fresh UDP port: behind a NAT (Docker's, for a published port) an entry
//! that points at a coordinator's former container can outlive it, and packets from the same port would follow it.

pub mod addresses;
pub mod backoff;
pub mod outbox;
mod session;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quinn::Endpoint;
use swarmguard_common::{
    domain::NodeId,
    time::Time,
    wire::agent::{HeardCoordinator, MAX_HEARD, PULSE_VALID_MS},
};
use swarmguard_runtime::{
    clock,
    identity::{Identity, IdentityError, Source},
    transport::{self, TransportError},
};
use tokio::{sync::watch, task::JoinSet};

use crate::state::Agent;
use addresses::Addresses;
use backoff::Backoff;
pub use session::{SessionError, chunk};

/// Most coordinators connected to; a swarm has seven managers at most by recommendation.
pub const MAX_COORDINATORS: usize = 16;

/// How often the coordinators' addresses and the certificate files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// How often they are looked at while there is no coordinator or no certificate yet.
const EAGER_LOOK: Duration = Duration::from_secs(1);

/// Makes the endpoint for one attempt to reach a coordinator; a simulation brings its own sockets.
pub type MakeEndpoint = Arc<dyn Fn(SocketAddr) -> Result<Endpoint, TransportError> + Send + Sync>;

/// Endpoints on this machine's network, on any free port of the address family of the coordinator.
pub fn real_endpoints() -> MakeEndpoint {
    Arc::new(|remote: SocketAddr| {
        let any = if remote.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        // Both texts are addresses.
        let address = any.parse().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
        transport::bind(address, None)
    })
}

/// The agent's state and the word that it has something new to say. Cheap to clone.
#[derive(Clone)]
pub struct Shared {
    state: Arc<Mutex<Agent>>,
    news: watch::Sender<u64>,
    links: Arc<Mutex<Links>>,
}

/// How the connections are, for `/metrics` and `/healthz`.
#[derive(Clone, Debug, Default)]
pub struct Links {
    /// By coordinator.
    pub by_address: BTreeMap<SocketAddr, Link>,
    /// Reports not sent because the connection had no room or the peer takes no datagrams.
    pub reports_dropped: u64,
    /// Seconds since the Unix epoch at which the certificate expires; `None` without one.
    pub certificate_expires_at: Option<i64>,
    /// Why there is no usable certificate.
    pub identity_error: Option<String>,
}

/// One coordinator as the agent sees it.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// Welcomed and not lost since.
    pub connected: bool,
    /// Alerts it has acknowledged.
    pub acknowledged: u64,
    /// Successful connections since the start.
    pub connections: u64,
    /// Attempts that failed since the start.
    pub failures: u64,
    /// Why the last connection ended or could not be made.
    pub last_error: Option<String>,
    /// The node that its certificate names.
    pub node: Option<NodeId>,
    /// When its last pulse came, and whether it then could read Swarm and acted.
    pub pulse: Option<(Time, bool, bool)>,
}

impl Shared {
    /// Shares a state.
    pub fn new(agent: Agent) -> Self {
        Self { state: Arc::new(Mutex::new(agent)), news: watch::Sender::new(0), links: Arc::default() }
    }

    /// The state. Never held across an await.
    pub fn lock(&self) -> MutexGuard<'_, Agent> {
        // A panic elsewhere left plain figures behind, at worst one sample short.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the connections are. Never held across an await.
    pub fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the connections: there may be something to say.
    pub fn wake(&self) {
        self.news.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// The coordinators that are heard now, by their addresses.
    fn hears(&self, now: Time) -> Vec<HeardCoordinator> {
        let patience = if self.lock().node.starved { 2 } else { 1 };
        let valid = Duration::from_millis(PULSE_VALID_MS) * patience;
        let mut heard: Vec<HeardCoordinator> = Vec::new();
        for link in self.links().by_address.values().filter(|link| link.connected) {
            let (Some(node), Some((at, able, acting))) = (&link.node, link.pulse) else { continue };
            // One that has two addresses is named once.
            if now.since(at) < valid && heard.len() < MAX_HEARD && heard.iter().all(|one| one.node != *node) {
                heard.push(HeardCoordinator { node: node.clone(), able, acting });
            }
        }
        heard
    }

    fn link(&self, address: SocketAddr, change: impl FnOnce(&mut Link)) {
        change(self.links().by_address.entry(address).or_default());
    }

    /// Forgets alerts that every coordinator we are to talk to has.
    fn forget_acknowledged(&self) {
        let least = self.links().by_address.values().map(|link| link.acknowledged).min();
        if let Some(least) = least {
            self.lock().acknowledge(least);
        }
    }
}

/// What the uplink needs to know.
#[derive(Clone)]
pub struct Uplink {
    /// What is to be said.
    pub shared: Shared,
    /// Where the certificate is.
    pub identity: Source,
    /// Where the coordinators are.
    pub addresses: Addresses,
    /// How to reach them.
    pub endpoints: MakeEndpoint,
    /// Starts the jitter of waits; any number, the same one for the same waits.
    pub seed: u64,
}

impl Uplink {
    /// Keeps one connection to every coordinator, for ever.
    pub async fn run(self) {
        let mut links: JoinSet<SocketAddr> = JoinSet::new();
        let mut running: BTreeMap<SocketAddr, tokio::task::AbortHandle> = BTreeMap::new();
        let mut identity: Option<Arc<Identity>> = None;
        let mut stamp = 0;
        loop {
            let newest = Identity::stamp(&self.identity);
            if (identity.is_none() || newest != stamp)
                && let Some(loaded) = self.load()
            {
                identity = Some(Arc::new(loaded));
                stamp = newest;
                // Connections made with the old certificate are made anew.
                for (address, handle) in std::mem::take(&mut running) {
                    handle.abort();
                    self.shared.link(address, |link| link.connected = false);
                }
            }
            if let Some(identity) = &identity {
                let wanted = self.addresses.current().await;
                self.adjust(&wanted, identity, &mut links, &mut running);
            }
            while links.try_join_next().is_some() {}
            let quiet = if running.is_empty() { EAGER_LOOK } else { LOOK };
            tokio::time::sleep(quiet).await;
        }
    }

    fn load(&self) -> Option<Identity> {
        match Identity::load(&self.identity).and_then(check) {
            Ok(identity) => {
                let mut links = self.shared.links();
                links.certificate_expires_at = Some(identity.own.expires_at);
                links.identity_error = None;
                drop(links);
                if let Some(node) = identity.own.node() {
                    self.shared.lock().hello.node = node;
                }
                tracing::info!(
                    node = identity.own.name,
                    cluster = identity.own.cluster,
                    "certificate loaded"
                );
                Some(identity)
            }
            Err(error) => {
                let text = error.to_string();
                let mut links = self.shared.links();
                if links.identity_error.as_ref() != Some(&text) {
                    tracing::error!("no coordinator can be told anything: {text}");
                    links.identity_error = Some(text);
                }
                None
            }
        }
    }

    fn adjust(
        &self,
        wanted: &BTreeSet<SocketAddr>,
        identity: &Arc<Identity>,
        links: &mut JoinSet<SocketAddr>,
        running: &mut BTreeMap<SocketAddr, tokio::task::AbortHandle>,
    ) {
        running.retain(|address, handle| {
            let keep = wanted.contains(address) && !handle.is_finished();
            if !keep {
                handle.abort();
            }
            keep
        });
        self.shared.links().by_address.retain(|address, _| wanted.contains(address));
        for address in wanted.iter().take(MAX_COORDINATORS) {
            if !running.contains_key(address) {
                self.shared.link(*address, |_| {});
                let link = self.clone().keep(*address, Arc::clone(identity));
                running.insert(*address, links.spawn(link));
            }
        }
    }

    /// Keeps the connection to one coordinator.
    async fn keep(self, address: SocketAddr, identity: Arc<Identity>) -> SocketAddr {
        let port = u64::from(address.port());
        let mut backoff = Backoff::new(self.seed.wrapping_add(port));
        loop {
            let started = clock::now();
            let error = self.attempt(address, &identity, backoff.attempts()).await;
            let was_connected = {
                let mut connected = false;
                self.shared.link(address, |link| {
                    connected = std::mem::take(&mut link.connected);
                    link.failures += u64::from(!connected);
                    link.last_error = Some(error.to_string());
                });
                connected
            };
            if was_connected {
                tracing::warn!(coordinator = %address, "connection lost: {error}");
                // One that held for a while ended for a reason of its own; one that did not is a failed attempt.
                if clock::now().since(started) > backoff::LONGEST {
                    backoff.reset();
                }
            } else {
                tracing::debug!(coordinator = %address, "cannot connect: {error}");
                if backoff.attempts() == 3 {
                    tracing::warn!(coordinator = %address, "cannot connect, and will go on trying: {error}");
                }
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    async fn attempt(&self, address: SocketAddr, identity: &Identity, attempts: u32) -> SessionError {
        let endpoint = match (self.endpoints)(address) {
            Ok(endpoint) => endpoint,
            Err(error) => return SessionError::Transport(error),
        };
        let result = session::run(&self.shared, &endpoint, address, identity, attempts).await;
        endpoint.close(0_u32.into(), b"");
        match result {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }
}

/// A certificate that can stand for a node.
fn check(identity: Identity) -> Result<Identity, IdentityError> {
    if identity.own.node().is_some() {
        return Ok(identity);
    }
    Err(IdentityError::Subject { what: "node (CN)", found: identity.own.name })
}

/// The node that a certificate names, if it can be had.
///
/// # Errors
/// When there is no usable certificate.
pub fn node_of(source: &Source) -> Result<NodeId, IdentityError> {
    let identity = check(Identity::load(source)?)?;
    identity.own.node().ok_or(IdentityError::Subject { what: "node (CN)", found: identity.own.name.clone() })
}
