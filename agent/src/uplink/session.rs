//! One connection to one coordinator, from the handshake to its end: hello and welcome, then three things at once:
//! what is reliable goes down the control stream, reports go as datagrams, answers are read.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use swarmguard_common::wire::{
    HEARTBEAT_INTERVAL_MS, MAX_DATAGRAM_BYTES,
    agent::{Report, TaskLoad, ToAgent, ToCoordinator},
    codec::{self, CodecError},
};
use swarmguard_runtime::{
    clock,
    frame::{self, FrameError},
    identity::{COORDINATOR_NAME, Identity, IdentityError, Peer},
    transport::{self, TransportError},
};
use tokio::time::MissedTickBehavior;

use super::Shared;
use crate::state::Told;

/// Handshake and welcome together have this long at first, and a second more with each attempt that failed: a
/// coordinator that is just coming back should not be waited for with packets that went to its former container, while
/// a starved node needs seconds for the handshake alone.
const PATIENCE: Duration = Duration::from_secs(3);
const MOST_PATIENCE: Duration = Duration::from_secs(12);

/// Every report is acknowledged by the peer's QUIC. Without a word for this long (twice that on a starved node) the
/// connection is made anew: a coordinator that was killed is back sooner than the transport would give up.
const SILENCE: Duration = Duration::from_secs(5);

/// Messages taken from the state at once; more follow in the next round.
const BATCH: usize = 256;

/// The least time between two looks for names that did not come (see [`crate::state::NAME_PATIENCE`]).
const IDLE_LOOK: Duration = Duration::from_millis(500);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No endpoint.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Our certificate cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The attempt could not even begin.
    #[error("cannot connect: {0}")]
    Connect(#[from] quinn::ConnectError),
    /// Refused, lost, or not what it should be.
    #[error("the connection failed: {0}")]
    Connection(#[from] quinn::ConnectionError),
    /// Handshake or welcome did not come.
    #[error("no welcome within {} s", .0.as_secs())]
    Patience(Duration),
    /// Nothing comes back.
    #[error("the coordinator has been silent for {} s", .0.as_secs())]
    Silent(Duration),
    /// The first answer was something else.
    #[error("the coordinator did not say welcome first")]
    Unwelcome,
    /// The coordinator closed the control stream.
    #[error("the coordinator ended the control stream")]
    Ended,
    /// A frame was not one.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A message of ours is too large to be sent.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Writing failed.
    #[error("the control stream broke: {0}")]
    Write(#[from] quinn::WriteError),
}

/// Runs one connection until it ends.
pub(super) async fn run(
    shared: &Shared,
    endpoint: &Endpoint,
    address: SocketAddr,
    identity: &Identity,
    attempts: u32,
) -> Result<Infallible, SessionError> {
    let patience = (PATIENCE + Duration::from_secs(attempts.into())).min(MOST_PATIENCE);
    let config = transport::client_config(identity.client_config()?)?;
    let greet = async {
        let connection = endpoint.connect_with(config, address, COORDINATOR_NAME)?.await?;
        let (mut send, mut receive) = connection.open_bi().await?;
        let hello = ToCoordinator::Hello(shared.lock().hello.clone());
        frame::write(&mut send, &hello).await?;
        match frame::read(&mut receive).await? {
            Some(ToAgent::Welcome { version }) => Ok((connection, send, receive, version)),
            Some(_) => Err(SessionError::Unwelcome),
            None => Err(SessionError::Ended),
        }
    };
    let (connection, send, receive, version) =
        tokio::time::timeout(patience, greet).await.map_err(|_| SessionError::Patience(patience))??;
    let mut acknowledged = 0;
    // Our TLS has checked the certificate; one that names no node is nobody's to speak of.
    let coordinator = Peer::of_connection(&connection).ok().flatten().and_then(|peer| peer.node());
    shared.link(address, |link| {
        link.connected = true;
        link.connections += 1;
        acknowledged = link.acknowledged;
        link.node = coordinator;
        link.pulse = None;
    });
    tracing::info!(coordinator = %address, version, "connected");
    shared.lock().tell_standing(clock::now());
    shared.wake();
    let told = tokio::sync::Mutex::new(Told::after(acknowledged));
    let ended = async { Err::<Infallible, SessionError>(connection.closed().await.into()) };
    let (never, ..) = tokio::try_join!(
        listen(shared, address, receive),
        speak(shared, send, &told),
        report(shared, &connection, &told),
        ended
    )?;
    Ok(never)
}

/// Reads answers.
async fn listen(
    shared: &Shared,
    address: SocketAddr,
    mut stream: RecvStream,
) -> Result<Infallible, SessionError> {
    loop {
        match frame::read::<ToAgent>(&mut stream).await? {
            None => return Err(SessionError::Ended),
            Some(ToAgent::Acknowledge { seq }) => {
                let last = shared.lock().outbox().last_seq();
                // What was never sent cannot be known.
                shared.link(address, |link| link.acknowledged = link.acknowledged.max(seq.min(last)));
                shared.forget_acknowledged();
            }
            Some(ToAgent::Connect(routes)) => shared.lock().connect.hear(clock::now(), address, routes),
            Some(ToAgent::ConnectStill { revision }) => {
                shared.lock().connect.renew(clock::now(), address, revision);
            }
            Some(ToAgent::Pulse { able, acting }) => {
                let mut news = false;
                shared.link(address, |link| {
                    let before = link.pulse.replace((clock::now(), able, acting));
                    news = before
                        .is_none_or(|(_, was_able, was_acting)| (was_able, was_acting) != (able, acting));
                });
                if news {
                    shared.wake();
                }
            }
            Some(message) => shared.lock().learn(message),
        }
    }
}

/// Writes what is reliable, as it comes.
async fn speak(
    shared: &Shared,
    mut stream: SendStream,
    told: &tokio::sync::Mutex<Told>,
) -> Result<Infallible, SessionError> {
    let mut news = shared.news();
    let mut heard = Vec::new();
    loop {
        news.borrow_and_update();
        let mut bytes = Vec::new();
        let hears = shared.hears(clock::now());
        if hears != heard {
            heard.clone_from(&hears);
            bytes.extend_from_slice(&frame::to_bytes(&ToCoordinator::Hears(hears))?);
        }
        {
            let mut told = told.lock().await;
            for message in shared.lock().messages(clock::now(), &mut told, BATCH) {
                bytes.extend_from_slice(&frame::to_bytes(&message)?);
            }
        }
        if bytes.is_empty() {
            // Names that do not come make no news either. The sender lives as long as `shared` does.
            let _ = tokio::time::timeout(IDLE_LOOK, news.changed()).await;
        } else {
            stream.write_all(&bytes).await?;
        }
    }
}

/// Sends reports at the pace of the node lease. A report that cannot be sent is counted; the next is newer anyway.
async fn report(
    shared: &Shared,
    connection: &Connection,
    told: &tokio::sync::Mutex<Told>,
) -> Result<Infallible, SessionError> {
    let mut ticks = tokio::time::interval(Duration::from_millis(HEARTBEAT_INTERVAL_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = (0, clock::now());
    loop {
        ticks.tick().await;
        let received = connection.stats().udp_rx.datagrams;
        if received != heard.0 {
            heard = (received, clock::now());
        }
        let silent = clock::now().since(heard.1);
        let starved = shared.lock().node.starved;
        if silent > if starved { SILENCE * 2 } else { SILENCE } {
            return Err(SessionError::Silent(silent));
        }
        let datagrams = {
            let mut told = told.lock().await;
            let mut agent = shared.lock();
            let (node, tasks) = agent.loads(&mut told);
            let mut datagrams = Vec::with_capacity(1);
            for part in chunk(tasks) {
                datagrams.push(codec::encode(&agent.report(node, part))?);
            }
            datagrams
        };
        for datagram in datagrams {
            if let Err(error) = connection.send_datagram(datagram.into()) {
                shared.links().reports_dropped += 1;
                if let quinn::SendDatagramError::ConnectionLost(lost) = error {
                    return Err(lost.into());
                }
            }
        }
    }
}

/// Parts loads so that each part fits into one report datagram; one empty part where there is none, for a report
/// without containers still renews the node lease.
pub fn chunk(tasks: Vec<TaskLoad>) -> Vec<Vec<TaskLoad>> {
    let empty = Report { epoch: u64::MAX, seq: u64::MAX, node: largest_node(), tasks: Vec::new() };
    // The list's length takes up to three bytes once there are more than 250 tasks; one is counted already.
    let frame_bytes = codec::encode(&empty).map_or(MAX_DATAGRAM_BYTES, |bytes| bytes.len() + 2);
    let room = MAX_DATAGRAM_BYTES.saturating_sub(frame_bytes);
    let mut parts = vec![Vec::new()];
    let mut used = 0;
    for task in tasks {
        let bytes = codec::encode(&task).map_or(room, |bytes| bytes.len());
        if used + bytes > room {
            parts.push(Vec::new());
            used = 0;
        }
        used += bytes;
        if let Some(part) = parts.last_mut() {
            part.push(task);
        }
    }
    parts
}

fn largest_node() -> swarmguard_common::wire::agent::NodeLoad {
    let full = Some(swarmguard_common::domain::BasisPoints(u16::MAX));
    swarmguard_common::wire::agent::NodeLoad {
        cpu: full,
        memory: full,
        network: full,
        psi_cpu: full,
        psi_memory: full,
        psi_io: full,
        starved: true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use swarmguard_common::domain::BasisPoints;

    use super::*;

    #[test]
    fn no_container_is_still_a_report() {
        assert_eq!(chunk(Vec::new()), [Vec::new()]);
    }

    proptest! {
        #[test]
        fn every_load_is_sent_once_and_every_datagram_fits(
            loads in proptest::collection::vec((any::<u32>(), any::<u16>(), any::<bool>()), 0..600)
        ) {
            let tasks: Vec<TaskLoad> = loads
                .iter()
                .map(|(handle, points, known)| TaskLoad {
                    handle: *handle,
                    cpu: known.then_some(BasisPoints(*points)),
                    memory: Some(BasisPoints(*points)),
                    cpu_millis: *handle,
                    memory_kib: *handle,
                    latency_us: known.then_some(*handle),
                    ..TaskLoad::default()
                })
                .collect();
            let parts = chunk(tasks.clone());
            for part in &parts {
                let report = Report { epoch: u64::MAX, seq: u64::MAX, node: largest_node(), tasks: part.clone() };
                prop_assert!(codec::encode(&report).expect("small").len() <= MAX_DATAGRAM_BYTES);
            }
            prop_assert_eq!(parts.concat(), tasks);
        }
    }
}
