//! Small builders for tests: a world of nodes, services, tasks and agents whose figures are set by hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::json;
use swarmguard_common::{
    api::Statistics,
    domain::{BasisPoints, Condition, Edge, NodeId},
    labels::ServicePolicy,
    time::Time,
    wire::agent::{Alert, Hello, NodeLoad, Report, TaskIntro, TaskLoad, ToCoordinator},
};

use super::View;
use crate::{
    agents::{AgentEvent, AgentInput, AgentOutput, ConnectionId},
    swarm::{Availability, Mode, Node, RecordObject, Service, Snapshot, Task, TaskState},
};

/// An instant, in milliseconds after the world began.
pub fn at(ms: u64) -> Time {
    Time::from_millis(3_600_000 + ms)
}

/// A share.
pub fn percent(percent: u16) -> Option<BasisPoints> {
    Some(BasisPoints::from_percent(percent))
}

/// A ready, active worker with 4 CPUs and 8 GiB.
pub fn node(id: &str) -> Node {
    Node {
        id: id.parse().expect("an ID"),
        version: 1,
        hostname: format!("host-{id}"),
        address: Some([10, 0, 0, 7].into()),
        manager: false,
        leader: false,
        ready: true,
        unknown: false,
        availability: Availability::Active,
        labels: BTreeMap::new(),
        engine_labels: BTreeMap::new(),
        engine_version: "20.10.24".into(),
        os: "linux".into(),
        architecture: "x86_64".into(),
        nano_cpus: 4_000_000_000,
        memory_bytes: 8 << 30,
        plugins: BTreeSet::new(),
        generic: BTreeMap::new(),
        spec: json!({"Availability": "active", "Role": "worker"}),
    }
}

/// An enabled service with a healthcheck.
pub fn replicated(id: &str, replicas: u64) -> Service {
    let labels = json!({"swarmguard.enable": "true"});
    let mut service = Service {
        id: id.parse().expect("an ID"),
        version: 10,
        name: format!("name-{id}"),
        mode: Mode::Replicated(replicas),
        policy: Ok(ServicePolicy::default()),
        spec: json!({
            "Name": format!("name-{id}"),
            "Labels": labels,
            "Mode": {"Replicated": {"Replicas": replicas}},
            "TaskTemplate": {
                "ContainerSpec": {"Image": "web", "Healthcheck": {"Test": ["CMD", "/check"]}},
                "Placement": {},
                "Resources": {},
            },
            "EndpointSpec": {"Mode": "vip"},
        }),
        previous_spec: None,
        update_state: None,
        job_iteration: None,
        virtual_addresses: Vec::new(),
    };
    read_labels(&mut service);
    service
}

/// The service with one more of our labels.
pub fn with_label(mut service: Service, key: &str, value: &str) -> Service {
    service.spec["Labels"][format!("swarmguard.{key}")] = value.into();
    read_labels(&mut service);
    service
}

fn read_labels(service: &mut Service) {
    let labels = service.spec["Labels"].as_object().expect("an object");
    let pairs = labels.iter().map(|(key, value)| (key.as_str(), value.as_str().expect("text")));
    service.policy = ServicePolicy::from_labels(pairs);
}

/// A cluster that tests set by hand: `n1`'s coordinator looks at it.
#[derive(Clone, Debug)]
pub struct World {
    /// What Swarm says.
    pub swarm: Snapshot,
    /// What agents say.
    pub view: View,
    /// What was counted.
    pub statistics: Statistics,
    /// What was said to agents.
    pub out: Vec<AgentOutput>,
    handles: BTreeMap<String, u32>,
    seq: u64,
}

impl World {
    /// Nodes with agents; the first is the leader, and this coordinator's own.
    pub fn new<'a>(nodes: impl IntoIterator<Item = &'a str>) -> Self {
        let mut swarm = Snapshot { taken: at(0), ..Snapshot::default() };
        for id in nodes {
            let mut node = node(id);
            if swarm.own_node.is_none() {
                (node.manager, node.leader) = (true, true);
                swarm.own_node = Some(node.id.clone());
            }
            swarm.nodes.insert(node.id.clone(), node);
        }
        let mut world = Self {
            swarm,
            view: View::default(),
            statistics: Statistics::default(),
            out: Vec::new(),
            handles: BTreeMap::new(),
            seq: 0,
        };
        let ids: Vec<NodeId> = world.swarm.nodes.keys().cloned().collect();
        for id in &ids {
            world.agent(0, id.as_str(), AgentEvent::Connected(hello(id.as_str())));
        }
        world
    }

    /// Adds or replaces a service.
    pub fn service(&mut self, service: Service) -> &mut Self {
        self.swarm.services.insert(service.id.clone(), service);
        self
    }

    /// Adds a running task, whose container is named after it, and introduces it to the agent of its node.
    pub fn task(&mut self, id: &str, service: &str, slot: u64, node: &str) -> &mut Self {
        let task = Task {
            id: id.parse().expect("an ID"),
            service: service.parse().expect("an ID"),
            slot,
            node: Some(node.parse().expect("an ID")),
            desired: TaskState::Running,
            state: TaskState::Running,
            container: Some(format!("c{id}").parse().expect("an ID")),
            addresses: Vec::new(),
            attachments: Vec::new(),
            message: String::new(),
            job_iteration: None,
        };
        self.swarm.tasks.insert(task.id.clone(), task);
        self.introduce(id, service, node, Some(true))
    }

    /// Introduces a task's container to the agent of a node.
    pub fn introduce(&mut self, id: &str, service: &str, node: &str, healthcheck: Option<bool>) -> &mut Self {
        let handle = u32::try_from(self.handles.len() + 1).expect("few");
        self.handles.insert(id.into(), handle);
        let intro = TaskIntro {
            handle,
            container: format!("c{id}").parse().expect("an ID"),
            task: Some(id.parse().expect("an ID")),
            service: Some(service.parse().expect("an ID")),
            cpu_limit_millis: Some(2_000),
            memory_limit_bytes: None,
            healthcheck,
            local_volumes: Vec::new(),
        };
        self.agent(0, node, AgentEvent::Message(ToCoordinator::Task(intro)));
        self
    }

    /// Something from an agent.
    pub fn agent(&mut self, ms: u64, node: &str, what: AgentEvent) -> super::Heard {
        let input = AgentInput { node: node.parse().expect("an ID"), connection: ConnectionId(1), what };
        self.view.hear(at(ms), input, &mut self.statistics, &mut self.out)
    }

    /// A report of a node's CPU and of its tasks: name, CPU (of the 2 that each may have), memory, network, in per cent.
    pub fn report(&mut self, ms: u64, node: &str, cpu: u16, tasks: &[(&str, u16, u16, u16)]) -> &mut Self {
        self.seq += 1;
        let loads = tasks.iter().map(|(id, cpu, memory, network)| TaskLoad {
            handle: self.handles[*id],
            cpu: percent(*cpu),
            memory: percent(*memory),
            network: percent(*network),
            cpu_millis: u32::from(*cpu) * 20,
            memory_kib: u32::from(*memory) * 80_000,
            ..TaskLoad::default()
        });
        let report = Report {
            epoch: 1,
            seq: self.seq,
            node: NodeLoad {
                cpu: percent(cpu),
                memory: percent(20),
                network: percent(1),
                psi_cpu: percent(0),
                psi_memory: percent(0),
                psi_io: percent(0),
                starved: false,
            },
            tasks: loads.collect(),
        };
        self.agent(ms, node, AgentEvent::Report(report));
        self
    }

    /// The last report once more with a change.
    pub fn report_with(&mut self, ms: u64, node: &str, change: impl FnOnce(&mut Report)) -> &mut Self {
        self.seq += 1;
        let mut report = Report { epoch: 1, seq: self.seq, node: NodeLoad::default(), tasks: Vec::new() };
        change(&mut report);
        self.agent(ms, node, AgentEvent::Report(report));
        self
    }

    /// A task's handle.
    pub fn handle(&self, id: &str) -> u32 {
        self.handles[id]
    }

    /// An alert edge of a condition that began `age_ms` before.
    pub fn alert(
        &mut self,
        ms: u64,
        node: &str,
        id: &str,
        condition: Condition,
        edge: Edge,
        age_ms: u32,
    ) -> super::Heard {
        self.seq += 1;
        let alert = Alert {
            epoch: 1,
            seq: self.seq,
            handle: self.handles[id],
            condition: condition as u8,
            edge: edge as u8,
            value: 9_000,
            age_ms,
        };
        self.agent(ms, node, AgentEvent::Message(ToCoordinator::Alert(alert)))
    }

    /// A record of ours in Swarm.
    pub fn record(&mut self, record: RecordObject) -> &mut Self {
        self.swarm.records.insert(record.name.clone(), record);
        self
    }

    /// What Swarm says, as a snapshot.
    pub fn snapshot(&self) -> Snapshot {
        self.swarm.clone()
    }

    /// Has the view read what Swarm says now.
    pub fn read(&mut self, ms: u64) -> &mut Self {
        self.swarm.taken = at(ms);
        self.view.read(at(ms), Arc::new(self.swarm.clone()));
        self
    }
}

/// What the agent of a node says of itself: 4 CPUs, 8,000,000 KiB.
pub fn hello(node: &str) -> Hello {
    Hello {
        node: node.parse().expect("an ID"),
        epoch: 1,
        hostname: format!("host-{node}"),
        version: "1".into(),
        cpu_millis: 4_000,
        memory_bytes: 8_000_000 * 1_024,
        link_mbps: Some(1_000),
        blind: false,
    }
}
