//! What agents and coordinators say to each other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::connect::ConnectRoutes;
use crate::{
    domain::{BasisPoints, Condition, ContainerId, Edge, NodeId, ServiceId, TaskId},
    labels::Thresholds,
};

/// Reliable, agent to coordinator. The first message of a connection is [`ToCoordinator::Hello`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToCoordinator {
    /// Who speaks. The node must be the one that the certificate names.
    Hello(Hello),
    /// A container came to life or the connection is new: `handle` stands for it until [`ToCoordinator::Gone`].
    Task(TaskIntro),
    /// The container is gone; standing alerts of the handle end without a clear edge.
    Gone {
        /// As introduced.
        handle: u32,
    },
    /// One edge of one condition; acknowledged by sequence number and sent again after a reconnect.
    Alert(Alert),
    /// What the engine said of a container; saves the coordinator polling.
    Container(ContainerEvent),
    /// The coordinators that the agent hears, at most [`MAX_HEARD`]; replaces what it said before. Sent when it changes,
    /// so that coordinators know of each other who lives.
    Hears(Vec<HeardCoordinator>),
}

/// Most coordinators named in [`ToCoordinator::Hears`].
pub const MAX_HEARD: usize = 16;
/// Time between two [`ToAgent::Pulse`]s, in milliseconds.
pub const PULSE_INTERVAL_MS: u64 = 500;
/// A coordinator without a pulse for this long is not heard, in milliseconds; twice that on a starved node.
pub const PULSE_VALID_MS: u64 = 1_500;

/// A coordinator that an agent hears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeardCoordinator {
    /// The node that its certificate names.
    pub node: NodeId,
    /// It says that it can read Swarm.
    pub able: bool,
    /// It says that it acts.
    pub acting: bool,
}

/// An agent introduces itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Swarm's ID of the agent's node.
    pub node: NodeId,
    /// Chosen at each agent start, strictly greater than at every earlier start of that node as far as its clock
    /// goes; orders connections and scopes sequence numbers.
    pub epoch: u64,
    /// Host name, at most 255 bytes.
    pub hostname: String,
    /// Version of the agent program.
    pub version: String,
    /// CPUs online, in thousandths of one.
    pub cpu_millis: u32,
    /// Memory of the node, in bytes.
    pub memory_bytes: u64,
    /// Speed of the link that carries the node's traffic, in Mbit/s; `None` where the driver does not say.
    pub link_mbps: Option<u32>,
    /// Without cgroup v2 the agent sees nothing: such a node is neither source nor target.
    pub blind: bool,
}

/// Introduces a container under a handle that is valid for this connection only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskIntro {
    /// Never 0; counts up, never used twice in one connection.
    pub handle: u32,
    /// The engine's ID.
    pub container: ContainerId,
    /// Swarm's task, where the agent knows it (from the engine's labels); else the coordinator finds it by container.
    pub task: Option<TaskId>,
    /// Swarm's service, likewise.
    pub service: Option<ServiceId>,
    /// CPU allowance (`cpu.max`) in thousandths of a CPU; `None` where there is no limit.
    pub cpu_limit_millis: Option<u32>,
    /// `memory.max` in bytes; `None` where there is no limit.
    pub memory_limit_bytes: Option<u64>,
    /// Whether the container has a healthcheck, which an image may bring without the service's spec showing it;
    /// `None` where the agent cannot ask an engine.
    pub healthcheck: Option<bool>,
    /// Where it has volumes of its own on this node that no service's spec shows, because its image asks for them. At most
    /// [`MAX_LOCAL_VOLUMES`].
    pub local_volumes: Vec<String>,
}

/// Volumes of one container that are told.
pub const MAX_LOCAL_VOLUMES: usize = 8;

/// One edge of one condition of one task. At most 64 bytes encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// As in [`Hello`].
    pub epoch: u64,
    /// Counts up from 1 within the epoch, over all coordinators alike.
    pub seq: u64,
    /// The task; 0 for a condition of the agent itself.
    pub handle: u32,
    /// A [`Condition`] by number. An unknown one is counted and passed by, so that agents may be newer.
    pub condition: u8,
    /// An [`Edge`] by number.
    pub edge: u8,
    /// The value that crossed, in hundredths of a per cent.
    pub value: u16,
    /// How long before the sending of this message the condition began to stand (raise, refresh) or ended (clear).
    pub age_ms: u32,
}

impl Alert {
    /// The condition and edge as words, or `None` where this build does not know the number.
    pub fn parts(&self) -> Option<(Condition, Edge)> {
        Some((Condition::try_from(self.condition).ok()?, Edge::try_from(self.edge).ok()?))
    }
}

/// What the local engine reported of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerEvent {
    /// The engine's ID.
    pub container: ContainerId,
    /// Swarm's task, where the engine's labels name it.
    pub task: Option<TaskId>,
    /// What happened.
    pub what: ContainerChange,
    /// How long before the sending of this message.
    pub age_ms: u32,
}

/// The engine events that matter to an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerChange {
    /// The container started.
    Started,
    /// Its healthcheck passed.
    Healthy,
    /// Its healthcheck failed often enough.
    Unhealthy,
    /// It ended.
    Died {
        /// Exit status.
        status: i32,
    },
}

/// Datagram, agent to coordinator: the newest wins, a lost one is not sent again. At most
/// [`super::MAX_DATAGRAM_BYTES`] encoded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// As in [`Hello`].
    pub epoch: u64,
    /// Counts up within the epoch; an older report than the last seen is dropped.
    pub seq: u64,
    /// Renews the node lease. In every report.
    pub node: NodeLoad,
    /// Some or all containers; hot ones come in every report, the others at least once a second in turns.
    pub tasks: Vec<TaskLoad>,
}

/// Load of a node now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLoad {
    /// Busy share of all CPUs.
    pub cpu: Option<BasisPoints>,
    /// Share of memory that is not available (`MemAvailable`).
    pub memory: Option<BasisPoints>,
    /// Bytes both ways of the link speed.
    pub network: Option<BasisPoints>,
    /// PSI `some` of cpu over the last second or so.
    pub psi_cpu: Option<BasisPoints>,
    /// PSI `some` of memory.
    pub psi_memory: Option<BasisPoints>,
    /// PSI `some` of io.
    pub psi_io: Option<BasisPoints>,
    /// The agent's own timers fire late: its silence is to be judged more patiently.
    pub starved: bool,
}

/// Load of one container now. `None` is unknown, which is not idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLoad {
    /// As introduced.
    pub handle: u32,
    /// Share of `cpu.max`, or of the node where there is no limit.
    pub cpu: Option<BasisPoints>,
    /// Memory needed (all but page cache) of `memory.max`, or of the node.
    pub memory: Option<BasisPoints>,
    /// Bytes both ways of the service's or the node's bandwidth.
    pub network: Option<BasisPoints>,
    /// CPU used, in thousandths of a CPU.
    pub cpu_millis: u32,
    /// Memory needed, in KiB.
    pub memory_kib: u32,
    /// PSI `some` of cpu.
    pub psi_cpu: Option<BasisPoints>,
    /// PSI `some` of memory.
    pub psi_memory: Option<BasisPoints>,
    /// Share of periods in which `cpu.max` throttled it.
    pub throttled: Option<BasisPoints>,
    /// Requests in flight as the kernel sees them on accepted sockets.
    pub in_flight: Option<u32>,
    /// Median server-side latency, in microseconds.
    pub latency_us: Option<u32>,
    /// What 95 of 100 answers did not exceed, in microseconds.
    pub latency_p95_us: Option<u32>,
}

/// Reliable, coordinator to agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Answer to a hello that was accepted.
    Welcome {
        /// Version of the coordinator program.
        version: String,
    },
    /// Alerts of the connection's epoch up to and including `seq` are known; the agent may forget them.
    Acknowledge {
        /// Highest sequence number without a gap below it.
        seq: u64,
    },
    /// Replaces all thresholds that came before. Services not named use `default`.
    Thresholds {
        /// For services that say nothing.
        default: Thresholds,
        /// By service.
        services: BTreeMap<ServiceId, Thresholds>,
        /// Which service each of this node's containers belongs to, for agents that cannot ask an engine.
        containers: BTreeMap<ContainerId, (TaskId, ServiceId)>,
    },
    /// Replaces the sender's routes for `connect()`, and renews them. Never sent before some service asks for it.
    Connect(ConnectRoutes),
    /// The routes are still so: renews them for [`super::connect::ROUTES_LEASE_MS`].
    ConnectStill {
        /// Of the routes that are meant; others are not renewed.
        revision: u64,
    },
    /// The coordinator lives: every [`PULSE_INTERVAL_MS`] where a swarm has several managers.
    Pulse {
        /// Its reading of Swarm is fresh.
        able: bool,
        /// It acts.
        acting: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec::{decode, encode};

    fn alert() -> Alert {
        Alert {
            epoch: 1_734_567_890_123,
            seq: 300,
            handle: 7,
            condition: 0,
            edge: 0,
            value: 9_150,
            age_ms: 312,
        }
    }

    #[test]
    fn golden_bytes_of_an_alert() {
        let bytes = encode(&ToCoordinator::Alert(alert())).expect("small");
        let golden = [3, 253, 203, 140, 77, 220, 147, 1, 0, 0, 251, 44, 1, 7, 0, 0, 251, 190, 35, 251, 56, 1];
        assert_eq!(
            bytes, golden,
            "the wire format changed: agents and coordinators of different builds must still talk"
        );
        assert_eq!(decode::<ToCoordinator>(&golden).expect("golden"), ToCoordinator::Alert(alert()));
    }

    #[test]
    fn golden_bytes_of_routes_for_connect() {
        use super::super::connect::{ConnectReplica, Front, ReplicaState};
        let routes = ConnectRoutes {
            revision: 7,
            acting: true,
            fronts: vec![Front {
                service: "s1".parse().expect("an ID"),
                network: "n1".parse().expect("an ID"),
                address: [10, 0, 1, 2].into(),
                replicas: vec![ConnectReplica {
                    task: "t1".parse().expect("an ID"),
                    address: [10, 0, 1, 7].into(),
                    node: "w1".parse().expect("an ID"),
                    state: ReplicaState::Draining,
                }],
            }],
            containers: [("c1".parse().expect("an ID"), vec!["n1".parse().expect("an ID")])].into(),
        };
        let golden = [
            3, 7, 1, 1, 2, b's', b'1', 2, b'n', b'1', 10, 0, 1, 2, 1, 2, b't', b'1', 10, 0, 1, 7, 2, b'w',
            b'1', 1, 1, 2, b'c', b'1', 1, 2, b'n', b'1',
        ];
        let message = ToAgent::Connect(routes);
        assert_eq!(encode(&message).expect("small"), golden);
        assert_eq!(decode::<ToAgent>(&golden).expect("golden"), message);
        assert_eq!(encode(&ToAgent::ConnectStill { revision: 7 }).expect("small"), [4, 7]);
    }

    #[test]
    fn golden_bytes_of_what_tells_coordinators_of_each_other() {
        let heard = HeardCoordinator { node: "m1".parse().expect("an ID"), able: true, acting: false };
        let message = ToCoordinator::Hears(vec![heard]);
        let golden = [5, 1, 2, b'm', b'1', 1, 0];
        assert_eq!(encode(&message).expect("small"), golden);
        assert_eq!(decode::<ToCoordinator>(&golden).expect("golden"), message);
        let pulse = ToAgent::Pulse { able: true, acting: true };
        assert_eq!(encode(&pulse).expect("small"), [5, 1, 1]);
    }

    #[test]
    fn golden_bytes_of_a_load() {
        let load = TaskLoad {
            handle: 7,
            cpu: Some(BasisPoints(9_150)),
            cpu_millis: 915,
            memory_kib: 1_024,
            in_flight: Some(20),
            latency_us: Some(3),
            latency_p95_us: Some(200),
            ..TaskLoad::default()
        };
        let golden = [7, 1, 251, 190, 35, 0, 0, 251, 147, 3, 251, 0, 4, 0, 0, 0, 1, 20, 1, 3, 1, 200];
        assert_eq!(encode(&load).expect("small"), golden);
        assert_eq!(decode::<TaskLoad>(&golden).expect("golden"), load);
    }

    #[test]
    fn the_largest_alert_stays_small() {
        let largest = Alert {
            epoch: u64::MAX,
            seq: u64::MAX,
            handle: u32::MAX,
            condition: u8::MAX,
            edge: u8::MAX,
            value: u16::MAX,
            age_ms: u32::MAX,
        };
        assert!(encode(&ToCoordinator::Alert(largest)).expect("small").len() <= 64);
        assert_eq!(largest.parts(), None);
    }

    #[test]
    fn an_identifier_from_the_wire_is_checked() {
        let bytes = encode(&("../etc", 0_u8)).expect("small");
        assert!(decode::<(NodeId, u8)>(&bytes).is_err());
    }
}
