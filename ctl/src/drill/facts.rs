//! What rails and report go by: nodes, services and replicas as the engine lists them.

use serde_json::{Value, json};

use crate::{
    engine::Engine,
    failure::{Failure, Outcome},
};

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Swarm's ID.
    pub id: String,
    /// Host name.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// Runs a manager.
    pub manager: bool,
    /// Holds the raft leadership.
    pub leader: bool,
    /// Swarm says it is ready, and for a manager that it is reachable.
    pub ready: bool,
    /// `active`, `pause` or `drain`.
    pub availability: String,
    /// CPUs, in thousandths of one.
    pub cpu_millis: u64,
    /// Memory.
    pub memory_bytes: u64,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    /// Swarm's ID.
    pub id: String,
    /// Name.
    pub name: String,
    /// May be drilled: `swarmguard.drill=true`.
    pub opted_in: bool,
    /// A part of SwarmGuard: `agent`, `coordinator`, `balancer`.
    pub part: Option<String>,
    /// A part of ours that has no role: the job of a drill.
    pub own: bool,
    /// Runs to completion.
    pub job: bool,
    /// Replicas that are wanted; `None` for global services.
    pub wanted: Option<u64>,
    /// An update or rollback is not complete.
    pub update: Option<String>,
    /// Its spec.
    pub spec: Value,
}

/// A task that Swarm wants to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Task {
    /// Swarm's ID.
    pub id: String,
    /// ID of its service.
    pub service: String,
    /// ID of its node.
    pub node: String,
    /// It runs, and is healthy where it has a healthcheck.
    pub running: bool,
    /// Its container, once there is one.
    pub container: String,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// By name.
    pub nodes: Vec<Node>,
    /// By name.
    pub services: Vec<Service>,
    /// Those that are wanted.
    pub tasks: Vec<Task>,
    /// The image that drills are made from.
    pub agent_image: String,
    /// ID of the network `host`.
    pub host_network: String,
}

impl Facts {
    /// Asks the engine.
    ///
    /// # Errors
    /// When it does not answer, or no agent is installed.
    pub async fn read(engine: &Engine) -> Outcome<Self> {
        let nodes = engine.list("/nodes", &json!({})).await?;
        let services = engine.list("/services", &json!({})).await?;
        let tasks = engine.list("/tasks", &json!({"desired-state": ["running"]})).await?;
        let mut facts = Self {
            nodes: nodes.iter().map(node).collect(),
            services: services.iter().map(service).collect(),
            tasks: tasks.iter().map(task).collect(),
            ..Self::default()
        };
        facts.nodes.sort_by(|one, other| one.name.cmp(&other.name));
        facts.services.sort_by(|one, other| one.name.cmp(&other.name));
        let agent = facts.services.iter().find(|service| service.part.as_deref() == Some("agent"));
        let agent = agent.ok_or_else(|| {
            Failure::usage("no agent is installed, from whose image drills are made")
                .hint("swarmguard install")
        })?;
        facts.agent_image = text(&agent.spec["TaskTemplate"]["ContainerSpec"]["Image"]);
        let host = engine.get("/networks/host?scope=swarm").await?;
        facts.host_network = text(&host["Id"]);
        Ok(facts)
    }

    /// A node by host name or ID.
    pub fn node(&self, wanted: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == wanted || node.id == wanted)
    }

    /// A service by name or ID.
    pub fn service(&self, wanted: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == wanted || service.id == wanted)
    }

    /// The service of a task.
    pub fn service_of(&self, task: &Task) -> Option<&Service> {
        self.services.iter().find(|service| service.id == task.service)
    }

    /// Tasks of a service.
    pub fn tasks_of<'a>(&'a self, service: &'a str) -> impl Iterator<Item = &'a Task> {
        self.tasks.iter().filter(move |task| task.service == service)
    }

    /// Tasks of a service that run.
    pub fn running(&self, service: &str) -> usize {
        self.tasks_of(service).filter(|task| task.running).count()
    }

    /// Services of users that have tasks on a node.
    pub fn users_on(&self, node: &Node) -> Vec<&Service> {
        let here = |service: &&Service| self.tasks_of(&service.id).any(|task| task.node == node.id);
        self.services.iter().filter(|service| service.part.is_none() && !service.own).filter(here).collect()
    }

    /// Containers of SwarmGuard on a node.
    pub fn own_containers(&self, node: &str) -> Vec<String> {
        let Some(node) = self.node(node) else { return Vec::new() };
        let own = |task: &&Task| self.service_of(task).is_some_and(|service| service.part.is_some());
        let here = self.tasks.iter().filter(|task| task.node == node.id && !task.container.is_empty());
        here.filter(own).map(|task| task.container.clone()).collect()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn node(node: &Value) -> Node {
    let manager = node["Spec"]["Role"] == "manager";
    let own = text(&node["Status"]["Addr"]);
    let known = text(&node["ManagerStatus"]["Addr"]);
    // A manager that is alone says 0.0.0.0.
    let known = known.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
    Node {
        id: text(&node["ID"]),
        name: text(&node["Description"]["Hostname"]),
        address: if own.is_empty() || own == "0.0.0.0" { known.to_owned() } else { own },
        manager,
        leader: node["ManagerStatus"]["Leader"] == true,
        ready: node["Status"]["State"] == "ready"
            && (!manager || node["ManagerStatus"]["Reachability"] == "reachable"),
        availability: text(&node["Spec"]["Availability"]),
        cpu_millis: node["Description"]["Resources"]["NanoCPUs"].as_u64().unwrap_or(0) / 1_000_000,
        memory_bytes: node["Description"]["Resources"]["MemoryBytes"].as_u64().unwrap_or(0),
    }
}

fn service(service: &Value) -> Service {
    let (spec, labels) = (&service["Spec"], &service["Spec"]["Labels"]);
    let mode = &spec["Mode"];
    let update = service["UpdateStatus"]["State"].as_str();
    Service {
        id: text(&service["ID"]),
        name: text(&spec["Name"]),
        opted_in: labels["swarmguard.drill"] == "true",
        part: labels["swarmguard.role"].as_str().map(ToOwned::to_owned),
        own: labels[crate::stack::NAMESPACE] == crate::commands::install::STACK,
        job: mode.get("ReplicatedJob").is_some() || mode.get("GlobalJob").is_some(),
        wanted: mode.get("Replicated").map(|mode| mode["Replicas"].as_u64().unwrap_or(1)),
        update: update
            .filter(|state| !matches!(*state, "completed" | "rollback_completed"))
            .map(ToOwned::to_owned),
        spec: spec.clone(),
    }
}

fn task(task: &Value) -> Task {
    Task {
        id: text(&task["ID"]),
        service: text(&task["ServiceID"]),
        node: text(&task["NodeID"]),
        running: task["Status"]["State"] == "running",
        container: text(&task["Status"]["ContainerStatus"]["ContainerID"]),
    }
}
