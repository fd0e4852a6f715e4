//! What ingest refuses: counted by reason always, logged with the peer but not more often than is useful. A hostile peer
//! must not be able to fill the log any more than the memory.

use std::{fmt::Display, net::IpAddr};

use swarmguard_runtime::clock;

use crate::{metrics::Metrics, quiet::Quiet};

/// Why something was refused. The words are stable: they are the values of a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// More connections than are allowed, or too many that have not introduced themselves.
    Crowded,
    /// TLS failed: no or a foreign certificate, another protocol, an older TLS.
    Handshake,
    /// The certificate names no node, no role, another cluster, or a role that may not connect here.
    Certificate,
    /// An agent spoke for a node that its certificate does not name.
    WrongNode,
    /// Swarm does not list the node, or lists it with another role than its certificate names.
    NotListed,
    /// No control stream or no hello in time.
    HelloTimeout,
    /// A balancer came, but no token is configured.
    NoToken,
    /// A balancer's token is wrong.
    WrongToken,
    /// A frame was announced that exceeds the limit.
    Oversized,
    /// A frame or datagram is no message of the protocol.
    Malformed,
    /// The stream ended inside a frame.
    Truncated,
    /// A message that may not come at this point, for instance a second hello.
    Unexpected,
    /// An epoch other than that of the connection's hello.
    Epoch,
    /// An alert or report that was seen already.
    Replayed,
    /// A handle that was never introduced.
    UnknownHandle,
    /// A handle that was used before, or is 0.
    BadHandle,
    /// More containers than a node can have.
    TooManyHandles,
    /// A condition or edge that this build does not know.
    UnknownCondition,
    /// Reliable messages faster than allowed: the peer was slowed down, nothing was lost.
    Flood,
    /// Datagrams faster than allowed: dropped.
    DatagramFlood,
    /// The judgement could not keep up: a report was dropped.
    QueueFull,
    /// The peer does not read what it is sent.
    SlowReader,
    /// The judgement wants no more of this connection.
    Closed,
}

impl Reason {
    /// The stable word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Crowded => "crowded",
            Self::Handshake => "handshake",
            Self::Certificate => "certificate",
            Self::WrongNode => "wrong_node",
            Self::NotListed => "not_listed",
            Self::HelloTimeout => "hello_timeout",
            Self::NoToken => "no_token",
            Self::WrongToken => "wrong_token",
            Self::Oversized => "oversized",
            Self::Malformed => "malformed",
            Self::Truncated => "truncated",
            Self::Unexpected => "unexpected",
            Self::Epoch => "epoch",
            Self::Replayed => "replayed",
            Self::UnknownHandle => "unknown_handle",
            Self::BadHandle => "bad_handle",
            Self::TooManyHandles => "too_many_handles",
            Self::UnknownCondition => "unknown_condition",
            Self::Flood => "flood",
            Self::DatagramFlood => "datagram_flood",
            Self::QueueFull => "queue_full",
            Self::SlowReader => "slow_reader",
            Self::Closed => "closed",
        }
    }
}

/// Counts and logs.
#[derive(Debug)]
pub struct Refusals {
    metrics: std::sync::Arc<Metrics>,
    quiet: Quiet<Reason>,
}

impl Refusals {
    /// Counts into `metrics`.
    pub fn new(metrics: std::sync::Arc<Metrics>) -> Self {
        Self { metrics, quiet: Quiet::default() }
    }

    /// Something of `peer` was refused.
    pub fn note(&self, peer: IpAddr, reason: Reason, detail: impl Display) {
        self.metrics.ingest_refused.inc([reason.word()]);
        if let Some(suppressed) = self.quiet.speak(peer, reason, clock::now()) {
            tracing::warn!(%peer, reason = reason.word(), suppressed, "refused: {detail}");
        }
    }

    /// How often `reason` was counted so far.
    pub fn count(&self, reason: Reason) -> u64 {
        self.metrics.ingest_refused.get([reason.word()])
    }
}
