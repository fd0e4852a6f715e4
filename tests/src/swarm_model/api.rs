//! The engine API of the model: snapshots and the writes that SwarmGuard makes, and those that an operator makes.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use swarmguard_common::domain::{NodeId, ServiceId};
use swarmguard_core::{
    command::{Command, CommandError, CommandResult},
    swarm::{
        Availability, Node, RecordObject, Service, Snapshot, TaskState, UpdateState,
        engine::{self, AnyTask, FromEngine},
    },
};

use super::{ModelNode, ModelService, ModelTask, SwarmModel, Workload, id, placement::hostname};

impl SwarmModel {
    /// What a coordinator on `own_node` reads.
    pub fn snapshot(&self, own_node: &NodeId) -> Snapshot {
        let nodes = self.nodes.values().map(|node| self.node_json(node));
        let services = self.services.values().map(service_json);
        let tasks = self.tasks.values().map(task_json);
        let ours = self.configs.values().filter(|config| config.name.starts_with(engine::OWN_CONFIGS));
        let (mut current, mut failures) = (BTreeMap::new(), BTreeMap::new());
        for task in read(tasks) {
            match task {
                AnyTask::Current(task) => {
                    current.insert(task.id.clone(), task);
                }
                AnyTask::Failed(id, failure) => {
                    failures.insert(id, failure);
                }
            }
        }
        Snapshot {
            taken: self.now,
            own_node: Some(own_node.clone()),
            nodes: read(nodes).map(|node: Node| (node.id.clone(), node)).collect(),
            services: read(services).map(|service: Service| (service.id.clone(), service)).collect(),
            tasks: current,
            failures,
            records: read(ours.map(config_json))
                .map(|record: RecordObject| (record.name.clone(), record))
                .collect(),
        }
    }

    /// All objects of a kind (`nodes`, `services`, `tasks`, `configs`) as the engine lists them.
    pub fn engine_json(&self, kind: &str) -> Option<Vec<Value>> {
        Some(match kind {
            "nodes" => self.nodes.values().map(|node| self.node_json(node)).collect(),
            "services" => self.services.values().map(service_json).collect(),
            "tasks" => self.tasks.values().map(task_json).collect(),
            "configs" => self.configs.values().map(config_json).collect(),
            _ => return None,
        })
    }

    /// Carries out what a coordinator asks of Swarm. Balancer commands are not Swarm's and answer `Ok`.
    ///
    /// # Errors
    /// As the engine answers: conflict on a stale version or a taken name, gone when the object is.
    pub fn execute(&mut self, command: &Command) -> CommandResult {
        match command {
            Command::CreateRecord { name, labels, data } => self.create_config(name, labels, data),
            Command::UpdateRecord { id, version, labels, .. } => self.update_config(id, *version, labels),
            Command::RemoveRecord { id } => {
                self.configs.remove(id);
                Ok(())
            }
            Command::WriteService { service, version, spec } => self.write_service(service, *version, spec),
            Command::WriteNode { node, version, spec } => self.write_node(node, *version, spec),
            _ => Ok(()),
        }
    }

    /// `docker service create`: `replicas` of it, with these labels.
    pub fn create_service(
        &mut self,
        name: &str,
        replicas: u64,
        labels: &[(&str, &str)],
        workload: Workload,
    ) -> ServiceId {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        let spec = json!({
            "Name": name,
            "Labels": labels,
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": "web:1",
                    "Healthcheck": {"Test": ["CMD", "/web", "healthcheck"], "Interval": 1_000_000_000_u64},
                },
                "Placement": {},
                "ForceUpdate": 0,
            },
            "Mode": {"Replicated": {"Replicas": replicas}},
            "EndpointSpec": {"Mode": "vip"},
        });
        self.create_service_of(spec, workload)
    }

    /// The same from a whole spec.
    pub fn create_service_of(&mut self, spec: Value, workload: Workload) -> ServiceId {
        self.made += 1;
        let job = spec["Mode"]["ReplicatedJob"].is_object();
        let service = ModelService {
            id: id(&format!("svc{:022}", self.made)),
            version: self.next_index(),
            spec_version: self.index,
            spec,
            previous_spec: None,
            update_state: None,
            workload,
            job_iteration: job.then_some(0),
        };
        let made = service.id.clone();
        self.services.insert(made.clone(), service);
        self.wake(&made);
        made
    }

    /// `docker service update`: an operator changes the spec as it stands now.
    pub fn operator_update(&mut self, service: &ServiceId, change: impl FnOnce(&mut Value)) -> CommandResult {
        let found = self.services.get(service).ok_or_else(|| CommandError::Gone(service.to_string()))?;
        let (version, mut spec) = (found.version, found.spec.clone());
        change(&mut spec);
        self.write_service(service, version, &spec)
    }

    /// `docker service rollback`: spec and previous spec change places, and the update's state says so.
    pub fn operator_rollback(&mut self, service: &ServiceId) -> CommandResult {
        let index = self.next_index();
        let found = self.services.get_mut(service).ok_or_else(|| CommandError::Gone(service.to_string()))?;
        let previous = found.previous_spec.clone();
        let previous =
            previous.ok_or_else(|| CommandError::Refused("does not have a previous spec".into()))?;
        found.previous_spec = Some(std::mem::replace(&mut found.spec, previous));
        found.update_state = Some(UpdateState::RollbackStarted);
        (found.version, found.spec_version) = (index, index);
        self.wake(service);
        Ok(())
    }

    /// `docker service rm`.
    pub fn remove_service(&mut self, service: &ServiceId) {
        self.services.remove(service);
        self.updaters.remove(service);
    }

    /// `docker node update --availability`.
    pub fn operator_availability(&mut self, node: &NodeId, availability: Availability) -> CommandResult {
        self.operator_node(node, |spec| spec["Availability"] = json!(availability))
    }

    /// `docker node update`: an operator changes the spec as it stands now.
    pub fn operator_node(&mut self, node: &NodeId, change: impl FnOnce(&mut Value)) -> CommandResult {
        let found = self.nodes.get(node).ok_or_else(|| CommandError::Gone(node.to_string()))?;
        let (version, mut spec) = (found.version, found.spec.clone());
        change(&mut spec);
        self.write_node(node, version, &spec)
    }

    fn write_service(&mut self, service: &ServiceId, version: u64, spec: &Value) -> CommandResult {
        let found = self.services.get(service).ok_or_else(|| CommandError::Gone(service.to_string()))?;
        if found.version != version {
            return Err(CommandError::Conflict("update out of sequence".into()));
        }
        if spec["TaskTemplate"].get("Placement").is_some_and(Value::is_null) {
            self.violations.push(format!("Placement: null was written to {service}: the leader panics"));
        }
        let index = self.next_index();
        if let Some(found) = self.services.get_mut(service) {
            found.previous_spec = Some(std::mem::replace(&mut found.spec, spec.clone()));
            found.update_state = None;
            found.version = index;
            found.spec_version = index;
            // Every write of a job, also an identical one, runs it again.
            found.job_iteration = found.job_iteration.map(|iteration| iteration + 1);
        }
        self.wake(service);
        Ok(())
    }

    fn write_node(&mut self, node: &NodeId, version: u64, spec: &Value) -> CommandResult {
        let index = self.next_index();
        let found = self.nodes.get_mut(node).ok_or_else(|| CommandError::Gone(node.to_string()))?;
        if found.version != version {
            return Err(CommandError::Conflict("update out of sequence".into()));
        }
        found.spec = spec.clone();
        found.version = index;
        self.enforce.push(node.clone());
        Ok(())
    }

    fn create_config(&mut self, name: &str, labels: &BTreeMap<String, String>, data: &[u8]) -> CommandResult {
        if self.configs.values().any(|config| config.name == name) {
            return Err(CommandError::Conflict(format!("config {name} already exists")));
        }
        self.made += 1;
        let config = RecordObject {
            id: format!("cfg{:022}", self.made),
            version: self.next_index(),
            name: name.into(),
            labels: labels.clone(),
            data: data.to_vec(),
        };
        self.configs.insert(config.id.clone(), config);
        Ok(())
    }

    fn update_config(&mut self, id: &str, version: u64, labels: &BTreeMap<String, String>) -> CommandResult {
        let index = self.next_index();
        let config = self.configs.get_mut(id).ok_or_else(|| CommandError::Gone(id.into()))?;
        if config.version != version {
            return Err(CommandError::Conflict("update out of sequence".into()));
        }
        config.labels = labels.clone();
        config.version = index;
        Ok(())
    }

    /// A node as the engine lists it.
    fn node_json(&self, node: &ModelNode) -> Value {
        let state = match (node.ready, node.is_unknown()) {
            (_, true) => "unknown",
            (true, _) => "ready",
            (false, _) => "down",
        };
        let mut json = json!({
            "ID": node.id,
            "Version": {"Index": node.version},
            "Spec": node.spec,
            "Description": {
                "Hostname": hostname(node),
                "Platform": {"Architecture": "x86_64", "OS": "linux"},
                "Resources": {"NanoCPUs": node.nano_cpus, "MemoryBytes": node.memory_bytes},
                "Engine": {"EngineVersion": "20.10.24"},
            },
            // Where it is reached: on loopback, so that tests can have something listen there.
            "Status": {"State": state, "Addr": format!("127.0.0.{}", number_in(node.id.as_str()) % 254 + 1)},
        });
        if node.manager {
            json["ManagerStatus"] = json!({"Leader": node.id == self.leader});
        }
        json
    }
}

/// A service as the engine lists it.
fn service_json(service: &ModelService) -> Value {
    let mut json = json!({
        "ID": service.id,
        "Version": {"Index": service.version},
        "Spec": service.spec,
        "Endpoint": {"VirtualIPs": [on_network(2, number_in(service.id.as_str()))]},
    });
    if let Some(previous) = &service.previous_spec {
        json["PreviousSpec"] = previous.clone();
    }
    if let Some(state) = service.update_state {
        json["UpdateStatus"] = json!({"State": state});
    }
    if let Some(iteration) = service.job_iteration {
        json["JobStatus"] = json!({"JobIteration": {"Index": iteration}});
    }
    json
}

/// A task as the engine lists it.
fn task_json(task: &ModelTask) -> Value {
    let mut status = json!({"State": task.state});
    if task.state == TaskState::Pending {
        status["Err"] = json!("no suitable node");
    }
    if matches!(task.state, TaskState::Failed | TaskState::Rejected) {
        status["Err"] = json!("task: non-zero exit (1)");
    }
    if let Some(container) = task.container() {
        status["ContainerStatus"] = json!({"ContainerID": container});
    }
    let address = on_network(3, task.number);
    let mut json = json!({
        "ID": task.id,
        "ServiceID": task.service,
        "Slot": task.slot,
        "Version": {"Index": task.spec_version},
        "DesiredState": task.desired,
        "Status": status,
        "NetworksAttachments": [{"Network": {"ID": address["NetworkID"]}, "Addresses": [address["Addr"]]}],
    });
    if let Some(node) = &task.node {
        json["NodeID"] = json!(node);
    }
    if let Some(iteration) = task.job_iteration {
        json["JobIteration"] = json!({"Index": iteration});
    }
    json
}

/// A config as the engine lists it.
fn config_json(config: &RecordObject) -> Value {
    json!({
        "ID": config.id,
        "Version": {"Index": config.version},
        "Spec": {"Name": config.name, "Labels": config.labels, "Data": engine::encode(&config.data)},
    })
}

/// What the coordinator makes of objects that the engine lists: read by the code that reads a real engine's.
fn read<T: FromEngine>(objects: impl Iterator<Item = Value>) -> impl Iterator<Item = T> {
    objects.filter_map(|object| engine::one(object).expect("the model makes whole objects"))
}

/// An address on the one network that everything is attached to.
fn on_network(block: u8, number: u64) -> Value {
    let [.., third, fourth] = number.to_be_bytes();
    json!({"NetworkID": "net1", "Addr": format!("10.{block}.{third}.{fourth}/16")})
}

/// The number that an ID of the model ends with.
fn number_in(id: &str) -> u64 {
    id.trim_start_matches(|letter: char| !letter.is_ascii_digit()).parse().unwrap_or_default()
}
