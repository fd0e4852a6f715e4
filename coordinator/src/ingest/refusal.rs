//! What ingest refuses: counted by reason always, logged with the peer but not more often than is useful. A hostile peer
//! must not be able to fill the log any more than the memory.

use std::{collections::BTreeMap, fmt::Display, net::IpAddr, sync::Mutex, time::Duration};

use swarmguard_common::time::Time;
use swarmguard_runtime::clock;

use crate::metrics::{Metrics, ReasonLabel};

/// The same reason from the same address is logged at most once in this time.
const QUIET: Duration = Duration::from_secs(10);

/// Most (reason, address) pairs remembered for that; beyond them lines are only counted until old pairs expire.
const MAX_REMEMBERED: usize = 512;

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
    logged: Mutex<BTreeMap<(Reason, IpAddr), Logged>>,
}

#[derive(Debug)]
struct Logged {
    at: Time,
    suppressed: u64,
}

impl Refusals {
    /// Counts into `metrics`.
    pub fn new(metrics: std::sync::Arc<Metrics>) -> Self {
        Self { metrics, logged: Mutex::default() }
    }

    /// Something of `peer` was refused.
    pub fn note(&self, peer: IpAddr, reason: Reason, detail: impl Display) {
        self.metrics.ingest_refused.get_or_create(&ReasonLabel { reason: reason.word().into() }).inc();
        if let Some(suppressed) = self.speak(peer, reason, clock::now()) {
            tracing::warn!(%peer, reason = reason.word(), suppressed, "refused: {detail}");
        }
    }

    /// How often `reason` was counted so far.
    pub fn count(&self, reason: Reason) -> u64 {
        self.metrics.ingest_refused.get_or_create(&ReasonLabel { reason: reason.word().into() }).get()
    }

    /// Whether a line may be logged now, and how many were left out since the last one.
    fn speak(&self, peer: IpAddr, reason: Reason, now: Time) -> Option<u64> {
        let mut logged = self.logged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(entry) = logged.get_mut(&(reason, peer)) {
            if now.since(entry.at) < QUIET {
                entry.suppressed += 1;
                return None;
            }
            let suppressed = entry.suppressed;
            *entry = Logged { at: now, suppressed: 0 };
            return Some(suppressed);
        }
        if logged.len() >= MAX_REMEMBERED {
            logged.retain(|_, entry| now.since(entry.at) < QUIET);
            if logged.len() >= MAX_REMEMBERED {
                return None;
            }
        }
        logged.insert((reason, peer), Logged { at: now, suppressed: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_same_complaint_is_logged_once_in_a_while_and_says_what_it_left_out() {
        let refusals = Refusals::new(Metrics::new());
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let start = Time::from_millis(1_000_000);
        assert_eq!(refusals.speak(peer, Reason::Malformed, start), Some(0));
        for _ in 0..5 {
            assert_eq!(refusals.speak(peer, Reason::Malformed, start + QUIET / 2), None);
        }
        assert_eq!(refusals.speak(peer, Reason::Oversized, start + QUIET / 2), Some(0));
        assert_eq!(refusals.speak(peer, Reason::Malformed, start + QUIET), Some(5));
    }

    #[test]
    fn many_addresses_do_not_grow_the_memory() {
        let refusals = Refusals::new(Metrics::new());
        for number in 0..2_000_u32 {
            refusals.speak(IpAddr::V4(Ipv4Addr::from(number)), Reason::Handshake, Time::from_millis(5));
        }
        assert_eq!(refusals.logged.lock().expect("unpoisoned").len(), MAX_REMEMBERED);
    }
}
