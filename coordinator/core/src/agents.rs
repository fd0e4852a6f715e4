//! What comes from agents' connections and goes to them.

use swarmguard_common::{
    domain::NodeId,
    wire::agent::{Hello, Report, ToAgent, ToCoordinator},
};

/// Numbers the connections of one process; a later connection has a higher number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// From the agent of one node. The caller has checked that the peer's certificate names this node.
#[derive(Clone, Debug)]
pub struct AgentInput {
    /// The node that the certificate names.
    pub node: NodeId,
    /// The connection that it came over.
    pub connection: ConnectionId,
    /// What.
    pub what: AgentEvent,
}

/// What came from an agent.
#[derive(Clone, Debug)]
pub enum AgentEvent {
    /// A connection said hello, as its first message; it supersedes the node's earlier one.
    Connected(Hello),
    /// A later message of the control stream.
    Message(ToCoordinator),
    /// A datagram.
    Report(Report),
    /// The connection is gone. The node lease runs on until it lapses.
    Disconnected,
}

/// Something for one agent connection.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentOutput {
    /// Which connection; one that is gone is passed by.
    pub connection: ConnectionId,
    /// What.
    pub what: AgentOrder,
}

/// What to do with an agent connection.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentOrder {
    /// Send this. `Welcome` is the caller's own; from here come `Acknowledge` and `Thresholds`.
    Send(ToAgent),
    /// Close it: superseded, of an old epoch, or over a limit.
    Close {
        /// Why, for the peer and the log.
        reason: String,
    },
}
