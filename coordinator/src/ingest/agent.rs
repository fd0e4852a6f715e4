//! One agent's connection: checks every message against what an agent may say, before the judgement sees it.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use quinn::{Connection, RecvStream, SendStream};
use swarmguard_common::{
    domain::{BasisPoints, Condition, NodeId},
    wire::{
        MAX_DATAGRAM_BYTES,
        agent::{Alert, Hello, MAX_HEARD, Report, ToAgent, ToCoordinator},
        codec,
    },
};
use swarmguard_core::brain::{AgentEvent, AgentInput, ConnectionId};
use swarmguard_runtime::{
    clock, frame,
    identity::{Peer, Unit},
};
use tokio::sync::{mpsc::error::TrySendError, watch};

use super::{Event, Ingest, Outbox, Streams, is_ordinary, rate::Bucket, reason_of, refusal::Reason};

/// Longest host name and version string, in bytes.
const MAX_TEXT_BYTES: usize = 255;

/// An agent whose certificate and hello agree.
pub(super) struct Guest {
    streams: Streams,
    node: NodeId,
    as_manager: bool,
    hello: Hello,
}

/// What the reader of the control stream knows of its peer.
struct Speaker<'a> {
    ingest: &'a Ingest,
    from: IpAddr,
    node: &'a NodeId,
    id: ConnectionId,
    epoch: u64,
    handles: BTreeSet<u32>,
    highest_handle: u32,
    highest_seq: u64,
}

impl Ingest {
    pub(super) async fn greet_agent(&self, mut streams: Streams, peer: &Peer) -> Option<Guest> {
        let (connection, from) = (streams.connection.clone(), streams.from);
        let ToCoordinator::Hello(hello) = self.first(&mut streams).await? else {
            return self.refuse(&connection, from, Reason::Unexpected, "the first message is a hello");
        };
        let node = peer.node()?;
        if hello.node != node {
            let why = format!("the certificate is of node {node}, the hello of {}", hello.node);
            return self.refuse(&connection, from, Reason::WrongNode, &why);
        }
        let as_manager = peer.unit == Unit::Manager;
        if let Some(why) = self.roster.why_not(clock::now(), &node, as_manager) {
            return self.refuse(&connection, from, Reason::NotListed, &why);
        }
        if hello.hostname.len() > MAX_TEXT_BYTES || hello.version.len() > MAX_TEXT_BYTES {
            return self.refuse(&connection, from, Reason::Malformed, "host name or version is too long");
        }
        Some(Guest { streams, node, as_manager, hello })
    }

    pub(super) async fn agent(&self, guest: Guest) {
        let Guest { streams: Streams { connection, from, send, receive }, node, as_manager, hello } = guest;
        let id = self.supersede(&node, &connection);
        let epoch = hello.epoch;
        tracing::info!(%node, %from, host = hello.hostname, version = hello.version, "agent connected");
        let input = |what| AgentInput { node: node.clone(), connection: id, what };
        let (outbox, told) = watch::channel(Outbox::default());
        let up = Event::Up { input: input(AgentEvent::Connected(hello)), outbox, as_manager };
        if self.events.send(up).await.is_ok() {
            let handles = BTreeSet::new();
            let speaker = Speaker {
                ingest: self,
                from,
                node: &node,
                id,
                epoch,
                handles,
                highest_handle: 0,
                highest_seq: 0,
            };
            let why = tokio::select! {
                // In order, because all chance in a simulation comes from its seed. None is ready again and again
                // at the cost of the others: each answers only at its end.
                biased;
                why = speaker.control(receive) => why,
                why = self.datagrams(&connection, from, &node, id, epoch) => why,
                why = self.answers(send, from, told) => why,
            };
            match why {
                Some((reason, why)) => {
                    let _: Option<()> = self.refuse(&connection, from, reason, &why);
                }
                None => connection.close(quinn::VarInt::from_u32(super::close::GOING), b"the stream ended"),
            }
        }
        self.forget(&node, id);
        tracing::info!(%node, %from, "agent disconnected");
        // The receiver is gone only when the whole program ends.
        let _ = self.events.send(Event::Input(input(AgentEvent::Disconnected))).await;
    }

    /// Reports, until the connection ends.
    async fn datagrams(
        &self,
        connection: &Connection,
        from: IpAddr,
        node: &NodeId,
        id: ConnectionId,
        epoch: u64,
    ) -> Option<(Reason, String)> {
        let per_s = self.limits.datagrams_per_s;
        let mut bucket = Bucket::new(per_s, per_s, clock::now());
        let mut newest = 0;
        loop {
            let bytes = match connection.read_datagram().await {
                Ok(bytes) => bytes,
                Err(error) if is_ordinary(&error) => return None,
                Err(error) => return Some((Reason::Malformed, error.to_string())),
            };
            if bucket.take(clock::now()).is_err() {
                self.refusals.note(from, Reason::DatagramFlood, "more datagrams than allowed");
                continue;
            }
            let report = match checked_report(&bytes, epoch, newest) {
                Ok(report) => report,
                Err((reason, why)) => {
                    self.refusals.note(from, reason, why);
                    continue;
                }
            };
            newest = report.seq;
            let heard = AgentInput { node: node.clone(), connection: id, what: AgentEvent::Report(report) };
            match self.reports.try_send(heard) {
                Ok(()) => {
                    self.metrics.reports.inc();
                }
                Err(TrySendError::Full(_)) => {
                    self.refusals.note(
                        from,
                        Reason::QueueFull,
                        "the judgement cannot keep up: a report was dropped",
                    );
                }
                Err(TrySendError::Closed(_)) => return None,
            }
        }
    }

    /// Writes what the loop puts into the outbox, until it says to close.
    async fn answers(
        &self,
        mut send: SendStream,
        from: IpAddr,
        mut told: watch::Receiver<Outbox>,
    ) -> Option<(Reason, String)> {
        let mut sent = Outbox::default();
        let mut queue = vec![Arc::new(ToAgent::Welcome { version: env!("CARGO_PKG_VERSION").into() })];
        loop {
            for message in queue.drain(..) {
                match tokio::time::timeout(self.limits.write, frame::write(&mut send, &*message)).await {
                    Ok(Ok(())) => {}
                    // Too large to be sent: the agent goes on with what it has.
                    Ok(Err(error)) => self.refusals.note(from, reason_of(&error)?, error),
                    Err(_) => return Some((Reason::SlowReader, "it does not read what it is sent".into())),
                }
            }
            if told.changed().await.is_err() {
                // The loop forgot it: superseded, and about to be closed.
                std::future::pending::<()>().await;
            }
            let now = told.borrow_and_update().clone();
            if let Some(why) = now.close {
                return Some((Reason::Closed, why));
            }
            if now.acknowledge > sent.acknowledge {
                queue.push(Arc::new(ToAgent::Acknowledge { seq: now.acknowledge }));
            }
            if differs(now.thresholds.as_ref(), sent.thresholds.as_ref()) {
                queue.extend(now.thresholds.clone());
            }
            // Routes renew themselves.
            if differs(now.connect.as_ref(), sent.connect.as_ref()) {
                queue.extend(now.connect.clone());
            } else if now.connect_still != sent.connect_still {
                queue.push(Arc::new(ToAgent::ConnectStill { revision: now.connect_still.0 }));
            }
            if let Some((_, able, acting)) = now.pulse
                && now.pulse != sent.pulse
            {
                queue.push(Arc::new(ToAgent::Pulse { able, acting }));
            }
            sent = now;
        }
    }
}

impl Speaker<'_> {
    /// Reads the control stream until it ends (`None`) or breaks a rule (why).
    async fn control(mut self, mut stream: RecvStream) -> Option<(Reason, String)> {
        let limits = &self.ingest.limits;
        let mut bucket = Bucket::new(limits.messages_per_s, limits.message_burst, clock::now());
        loop {
            let message = match frame::read::<ToCoordinator>(&mut stream).await {
                Ok(Some(message)) => message,
                Ok(None) => return None,
                Err(error) => return reason_of(&error).map(|reason| (reason, error.to_string())),
            };
            while let Err(wait) = bucket.take(clock::now()) {
                self.ingest.refusals.note(
                    self.from,
                    Reason::Flood,
                    "messages come faster than allowed: slowed down",
                );
                tokio::time::sleep(wait).await;
            }
            match self.check(&message) {
                Verdict::Pass => {}
                Verdict::Note(reason, why) => self.ingest.refusals.note(self.from, reason, why),
                Verdict::Drop(reason, why) => {
                    self.ingest.refusals.note(self.from, reason, why);
                    continue;
                }
                Verdict::End(reason, why) => return Some((reason, why.into())),
            }
            let input = AgentInput {
                node: self.node.clone(),
                connection: self.id,
                what: AgentEvent::Message(message),
            };
            if self.ingest.events.send(Event::Input(input)).await.is_err() {
                return None;
            }
        }
    }

    fn check(&mut self, message: &ToCoordinator) -> Verdict {
        match message {
            ToCoordinator::Hello(_) => Verdict::End(Reason::Unexpected, "a second hello"),
            ToCoordinator::Task(intro) => self.check_intro(intro.handle),
            ToCoordinator::Gone { handle } => {
                if self.handles.remove(handle) {
                    return Verdict::Pass;
                }
                Verdict::Drop(Reason::UnknownHandle, "a container that was never introduced is gone")
            }
            ToCoordinator::Alert(alert) => self.check_alert(alert),
            ToCoordinator::Container(_) => Verdict::Pass,
            ToCoordinator::Hears(coordinators) if coordinators.len() > MAX_HEARD => {
                Verdict::End(Reason::Malformed, "more coordinators than a swarm has managers")
            }
            ToCoordinator::Hears(_) => Verdict::Pass,
        }
    }

    fn check_intro(&mut self, handle: u32) -> Verdict {
        if handle <= self.highest_handle {
            return Verdict::End(Reason::BadHandle, "a handle is 0 or was used before");
        }
        if self.handles.len() >= self.ingest.limits.handles {
            return Verdict::Drop(Reason::TooManyHandles, "more containers than a node can have");
        }
        self.highest_handle = handle;
        self.handles.insert(handle);
        Verdict::Pass
    }

    /// Bad alerts are passed on all the same: the judgement drops them, and acknowledges them by their place in the
    /// sequence, so that the agent does not send them for ever.
    fn check_alert(&mut self, alert: &Alert) -> Verdict {
        if alert.epoch != self.epoch {
            return Verdict::Note(Reason::Epoch, "an alert of another epoch than the hello's");
        }
        if alert.seq <= self.highest_seq {
            return Verdict::Drop(Reason::Replayed, "an alert that was sent before on this connection");
        }
        self.highest_seq = alert.seq;
        let Some((condition, _)) = alert.parts() else {
            return Verdict::Note(
                Reason::UnknownCondition,
                "an alert of a kind that this build does not know",
            );
        };
        let known = match condition {
            Condition::AgentOverBudget => alert.handle == 0,
            _ => self.handles.contains(&alert.handle),
        };
        if known {
            Verdict::Pass
        } else {
            Verdict::Note(Reason::UnknownHandle, "an alert of an unknown container")
        }
    }
}

/// Whether there is something newer than what was sent.
fn differs(new: Option<&Arc<ToAgent>>, sent: Option<&Arc<ToAgent>>) -> bool {
    match (new, sent) {
        (Some(new), Some(sent)) => !Arc::ptr_eq(new, sent),
        (new, _) => new.is_some(),
    }
}

enum Verdict {
    /// Good.
    Pass,
    /// Noted, and passed on.
    Note(Reason, &'static str),
    /// Noted, and dropped.
    Drop(Reason, &'static str),
    /// The connection ends.
    End(Reason, &'static str),
}

fn checked_report(bytes: &[u8], epoch: u64, newest: u64) -> Result<Report, (Reason, String)> {
    if bytes.len() > MAX_DATAGRAM_BYTES {
        return Err((Reason::Oversized, format!("a datagram of {} bytes", bytes.len())));
    }
    let report: Report = codec::decode(bytes).map_err(|error| (Reason::Malformed, error.to_string()))?;
    if report.epoch != epoch {
        return Err((Reason::Epoch, "a report of another epoch than the hello's".into()));
    }
    if report.seq <= newest {
        return Err((Reason::Replayed, "a report that is not newer than the last".into()));
    }
    let node = [report.node.cpu, report.node.memory, report.node.network];
    let pressure = [report.node.psi_cpu, report.node.psi_memory, report.node.psi_io];
    let of_tasks = report.tasks.iter().flat_map(|task| {
        [task.cpu, task.memory, task.network, task.psi_cpu, task.psi_memory, task.throttled]
    });
    if node.into_iter().chain(pressure).chain(of_tasks).flatten().any(|share| share > BasisPoints::FULL) {
        return Err((Reason::Malformed, "a report with more than 100 %".into()));
    }
    Ok(report)
}
