//! The engine API of the model: snapshots and the writes that SwarmGuard makes, and those that an operator makes.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde_json::{Value, json};
use swarmguard_common::{
    domain::{NetworkId, NodeId, ServiceId},
    labels::ServicePolicy,
};
use swarmguard_core::{
    command::{Command, CommandError, CommandResult},
    swarm::{Availability, Mode, Node, RecordObject, Service, Snapshot, Task, TaskState},
};

use super::{ModelService, SwarmModel, Workload, id, placement::hostname};

impl SwarmModel {
    /// What a coordinator on `own_node` reads.
    pub fn snapshot(&self, own_node: &NodeId) -> Snapshot {
        Snapshot {
            taken: self.now,
            own_node: Some(own_node.clone()),
            nodes: self.nodes.keys().map(|id| (id.clone(), self.read_node(id))).collect(),
            services: self
                .services
                .values()
                .map(|service| (service.id.clone(), read_service(service)))
                .collect(),
            tasks: self.tasks.keys().map(|id| (id.clone(), self.read_task(&self.tasks[id]))).collect(),
            records: self.configs.values().map(|config| (config.name.clone(), config.clone())).collect(),
        }
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

    fn read_node(&self, node: &NodeId) -> Node {
        let found = &self.nodes[node];
        Node {
            id: found.id.clone(),
            version: found.version,
            hostname: hostname(found),
            address: None,
            manager: found.manager,
            leader: found.id == self.leader,
            ready: found.ready && !found.is_unknown(),
            unknown: found.is_unknown(),
            availability: found.availability(),
            labels: BTreeMap::new(),
            engine_labels: BTreeMap::new(),
            engine_version: "20.10.24".into(),
            os: "linux".into(),
            architecture: "x86_64".into(),
            nano_cpus: 1_000_000_000,
            memory_bytes: 1 << 30,
            spec: found.spec.clone(),
        }
    }

    fn read_task(&self, task: &super::ModelTask) -> Task {
        Task {
            id: task.id.clone(),
            service: task.service.clone(),
            slot: task.slot,
            node: task.node.clone(),
            desired: task.desired,
            state: task.state,
            container: task.container(),
            addresses: Vec::new(),
            attachments: vec![on_network(3, task.number)],
            message: if task.state == TaskState::Pending { "no suitable node".into() } else { String::new() },
            job_iteration: task.job_iteration,
        }
    }
}

/// An address on the one network that everything is attached to.
fn on_network(block: u8, number: u64) -> (NetworkId, Ipv4Addr) {
    let [.., third, fourth] = number.to_be_bytes();
    (id("net1"), [10, block, third, fourth].into())
}

/// The number that an ID of the model ends with.
fn number_in(id: &str) -> u64 {
    id.trim_start_matches(|letter: char| !letter.is_ascii_digit()).parse().unwrap_or_default()
}

fn read_service(service: &ModelService) -> Service {
    let labels = service.spec["Labels"].as_object();
    let pairs = labels.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)));
    Service {
        id: service.id.clone(),
        version: service.version,
        name: service.spec["Name"].as_str().unwrap_or_default().into(),
        mode: mode(service),
        policy: ServicePolicy::from_labels(pairs),
        spec: service.spec.clone(),
        previous_spec: service.previous_spec.clone(),
        update_state: service.update_state.clone(),
        job_iteration: service.job_iteration,
        virtual_addresses: vec![on_network(2, number_in(service.id.as_str()))],
    }
}

fn mode(service: &ModelService) -> Mode {
    let job = &service.spec["Mode"]["ReplicatedJob"];
    let number = |key: &str| job[key].as_u64().unwrap_or(1);
    match service.job_iteration {
        None => Mode::Replicated(service.replicas()),
        Some(_) => Mode::ReplicatedJob {
            concurrent: number("MaxConcurrent"),
            completions: number("TotalCompletions"),
        },
    }
}
