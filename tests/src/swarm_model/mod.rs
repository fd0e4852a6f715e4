//! A model of Docker Swarm that behaves as its source does where SwarmGuard leans on it: versions, the dirty rule, the
//! updater, the restart supervisor, the constraint enforcer, the removal order, the scheduler and replicated jobs.
//!
//! Read from moby/swarmkit (`manager/orchestrator`, `manager/scheduler`). `cargo xtask test --only model` plays the same
//! scripts on it and on real engines, and both must end alike (`e2e::model`). It advances in ticks of [`TICK_MS`], is deterministic for a seed, and
//! knows nothing of SwarmGuard but the snapshot and command types.

mod api;
pub mod http;
mod node;
mod orchestrator;
mod placement;
#[cfg(test)]
mod tests;
mod updater;

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use swarmguard_common::{
    domain::{ContainerId, NodeId, ServiceId, TaskId},
    time::Time,
};
use swarmguard_core::swarm::{Availability, RecordObject, TaskState, UpdateState};

/// Length of one step of the model, in milliseconds.
pub const TICK_MS: u64 = 50;

/// Longest time that a node takes to be heard by a new leader, in milliseconds: its session is made anew.
const LONGEST_REGISTER_MS: u64 = 5_000;

/// How the containers of a service behave.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Image pull and container creation, in milliseconds.
    pub prepare_ms: u64,
    /// From start to healthy, in milliseconds.
    pub healthy_ms: u64,
    /// From SIGTERM to exit, in milliseconds.
    pub stop_ms: u64,
    /// Of 1,000 starts so many fail before they are healthy.
    pub failing_starts: u16,
    /// From healthy to the end of its work, in milliseconds; for ever where `None`.
    pub runs_ms: Option<u64>,
}

impl Default for Workload {
    fn default() -> Self {
        Self { prepare_ms: 100, healthy_ms: 1_000, stop_ms: 200, failing_starts: 0, runs_ms: None }
    }
}

/// A node of the model.
#[derive(Clone, Debug)]
pub struct ModelNode {
    /// Its ID.
    pub id: NodeId,
    /// `Spec`, the part that is written back.
    pub spec: Value,
    /// Version of the object.
    pub version: u64,
    /// Runs a manager.
    pub manager: bool,
    /// Powered and connected.
    pub up: bool,
    /// What the managers believe.
    pub ready: bool,
    /// CPUs that Swarm schedules by, in billionths of one.
    pub nano_cpus: i64,
    /// Memory that Swarm schedules by, in bytes.
    pub memory_bytes: i64,
    /// Since when it has been silent.
    silent_since: Option<Time>,
    /// The managers' new leader has not heard it yet; it does at this time.
    unknown_until: Option<Time>,
}

impl ModelNode {
    /// `Status.State` is `unknown`.
    pub fn is_unknown(&self) -> bool {
        self.ready && self.unknown_until.is_some()
    }

    /// `Spec.Availability`.
    pub fn availability(&self) -> Availability {
        serde_json::from_value(self.spec["Availability"].clone()).unwrap_or(Availability::Active)
    }
}

/// A service of the model.
#[derive(Clone, Debug)]
pub struct ModelService {
    /// Its ID.
    pub id: ServiceId,
    /// Version of the object: moves with every write, status included.
    pub version: u64,
    /// Version of the spec: moves with every spec write.
    pub spec_version: u64,
    /// `Spec`.
    pub spec: Value,
    /// `PreviousSpec`.
    pub previous_spec: Option<Value>,
    /// `UpdateStatus.State`.
    pub update_state: Option<UpdateState>,
    /// How its containers behave.
    pub workload: Workload,
    /// `JobStatus.JobIteration` of a replicated job.
    pub job_iteration: Option<u64>,
}

impl ModelService {
    /// `Spec.Mode.Replicated.Replicas`.
    pub fn replicas(&self) -> u64 {
        self.spec["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(0)
    }
}

/// A task of the model.
#[derive(Clone, Debug)]
pub struct ModelTask {
    /// Its ID.
    pub id: TaskId,
    /// Whose.
    pub service: ServiceId,
    /// Number of the replica.
    pub slot: u64,
    /// Where.
    pub node: Option<NodeId>,
    /// What is wanted.
    pub desired: TaskState,
    /// What is, as the managers know.
    pub state: TaskState,
    /// `TaskTemplate` it was made from.
    pub template: Value,
    /// `EndpointSpec` it was made from.
    pub endpoint: Value,
    /// Spec version it was made from.
    pub spec_version: u64,
    /// When it was made.
    pub created: Time,
    /// Order of making, for IDs and ties.
    pub number: u64,
    /// When `state` was entered.
    changed: Time,
    /// Told to start no earlier than this (restart delay).
    start_at: Time,
    /// Told to start no earlier than that task's end.
    start_after: Option<TaskId>,
    /// Will fail instead of becoming healthy.
    doomed: bool,
    /// Is not placed there: it was evicted from there.
    shuns: Option<NodeId>,
    /// Iteration of the job that it belongs to.
    pub job_iteration: Option<u64>,
}

impl ModelTask {
    /// What is wanted of it is that it runs, or that it comes to the end of its work, where it has not come yet.
    pub fn is_wanted(&self) -> bool {
        let at_work = self.desired == TaskState::Complete && self.state <= TaskState::Running;
        self.desired <= TaskState::Running || self.job_iteration.is_some() && at_work
    }

    /// Wanted, and running (healthy).
    pub fn serves(&self) -> bool {
        self.desired <= TaskState::Running && self.state == TaskState::Running
    }

    /// Takes requests though it may have been told to stop: until SIGTERM it answers.
    pub fn container(&self) -> Option<ContainerId> {
        let started = self.state >= TaskState::Starting && self.node.is_some();
        started.then(|| format!("{:064x}", self.number).parse().ok()).flatten()
    }
}

/// The model.
#[derive(Clone)]
pub struct SwarmModel {
    /// Now.
    pub now: Time,
    /// Nodes.
    pub nodes: BTreeMap<NodeId, ModelNode>,
    /// Services.
    pub services: BTreeMap<ServiceId, ModelService>,
    /// Tasks, ended ones included until they are reaped.
    pub tasks: BTreeMap<TaskId, ModelTask>,
    /// Config objects by ID.
    pub configs: BTreeMap<String, RecordObject>,
    /// Holds the raft leadership.
    pub leader: NodeId,
    /// What no client may do: the real leader would have panicked or the cluster would be harmed.
    pub violations: Vec<String>,
    rng: fastrand::Rng,
    /// The raft index: every write takes the next number.
    index: u64,
    made: u64,
    updaters: BTreeMap<ServiceId, updater::Updater>,
    reconcile: Vec<ServiceId>,
    enforce: Vec<NodeId>,
}

impl SwarmModel {
    /// A swarm of `managers` managers and `workers` workers, all ready and active.
    pub fn new(seed: u64, managers: u64, workers: u64) -> Self {
        let mut model = Self {
            now: Time::from_millis(1_000_000),
            nodes: BTreeMap::new(),
            services: BTreeMap::new(),
            tasks: BTreeMap::new(),
            configs: BTreeMap::new(),
            leader: id(&format!("node{:021}", 1)),
            violations: Vec::new(),
            rng: fastrand::Rng::with_seed(seed),
            index: 10,
            made: 0,
            updaters: BTreeMap::new(),
            reconcile: Vec::new(),
            enforce: Vec::new(),
        };
        for number in 1..=managers + workers {
            let role = if number <= managers { "manager" } else { "worker" };
            let node = ModelNode {
                id: id(&format!("node{number:021}")),
                spec: json!({"Availability": "active", "Role": role, "Labels": {}}),
                version: model.next_index(),
                manager: number <= managers,
                up: true,
                ready: true,
                nano_cpus: 1_000_000_000,
                memory_bytes: 1 << 30,
                silent_since: None,
                unknown_until: None,
            };
            model.nodes.insert(node.id.clone(), node);
        }
        model
    }

    /// The same swarm, whose luck is another's from now on.
    pub fn fork(&self, seed: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed), ..self.clone() }
    }

    /// The `number`th node, counted from 1 as `node1`.
    pub fn node_id(number: u64) -> NodeId {
        id(&format!("node{number:021}"))
    }

    /// The host name of a node; empty where there is no such node.
    pub fn hostname(&self, node: &NodeId) -> String {
        self.nodes.get(node).map(placement::hostname).unwrap_or_default()
    }

    /// Steps on until `until`.
    pub fn advance(&mut self, until: Time) {
        while self.now + Duration::from_millis(TICK_MS) <= until {
            self.now = self.now + Duration::from_millis(TICK_MS);
            self.watch_nodes();
            self.run_containers();
            self.enforce_constraints();
            self.restart_dead_tasks();
            self.reconcile_services();
            self.step_updaters();
            self.start_delayed_tasks();
            self.schedule();
            self.reap();
        }
    }

    /// Cuts a node's power: its containers die with it, the managers notice after three missed heartbeats.
    pub fn power_cut(&mut self, node: &NodeId) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.up = false;
        }
    }

    /// Brings a node back; what ran there before is found dead.
    pub fn power_on(&mut self, node: &NodeId) {
        let Some(found) = self.nodes.get_mut(node) else { return };
        found.up = true;
        let lost: Vec<TaskId> = self
            .tasks_on(node)
            .filter(|task| task.state <= TaskState::Running)
            .cloned()
            .map(|task| task.id)
            .collect();
        for task in lost {
            self.set_state(&task, TaskState::Failed);
        }
    }

    /// Another manager takes the lead: updaters are forgotten, every node is checked against the constraints again, and
    /// is unknown, which is a new version of its object, until it is heard (`markNodesUnknown`).
    pub fn elect(&mut self, leader: &NodeId) {
        self.leader = leader.clone();
        for node in self.nodes.values_mut().filter(|node| node.ready) {
            self.index += 1;
            node.version = self.index;
            let until = self.now + Duration::from_millis(self.rng.u64(50..LONGEST_REGISTER_MS));
            node.unknown_until = Some(until);
        }
        self.updaters.clear();
        self.reconcile = self.services.keys().cloned().collect();
        self.enforce = self.nodes.keys().cloned().collect();
    }

    /// A container dies by itself.
    pub fn kill_task(&mut self, task: &TaskId) {
        if self.tasks.get(task).is_some_and(|task| task.state <= TaskState::Running && task.node.is_some()) {
            self.set_state(task, TaskState::Failed);
        }
    }

    /// What an eviction is elsewhere: the task is told to stop, and a fresh one of its slot may run on any other node at
    /// once.
    pub fn evict_task(&mut self, task: &TaskId) {
        let Some(old) = self.tasks.get(task).filter(|task| task.is_wanted()).cloned() else { return };
        let Some(service) = self.services.get(&old.service).cloned() else { return };
        self.tell_to_stop(task, TaskState::Shutdown);
        let new = self.make_task(&service, old.slot, TaskState::Running);
        if let Some(new) = self.tasks.get_mut(&new) {
            new.shuns.clone_from(&old.node);
        }
    }

    /// Tasks of a service that are wanted and healthy.
    pub fn serving(&self, service: &ServiceId) -> impl Iterator<Item = &ModelTask> {
        self.tasks.values().filter(move |task| task.service == *service && task.serves() && self.is_up(task))
    }

    /// Tasks of a service that are wanted.
    pub fn wanted(&self, service: &ServiceId) -> impl Iterator<Item = &ModelTask> {
        self.tasks.values().filter(move |task| task.service == *service && task.desired <= TaskState::Running)
    }

    fn is_up(&self, task: &ModelTask) -> bool {
        task.node.as_ref().and_then(|node| self.nodes.get(node)).is_some_and(|node| node.up)
    }

    fn tasks_on(&self, node: &NodeId) -> impl Iterator<Item = &ModelTask> {
        self.tasks.values().filter(move |task| task.node.as_ref() == Some(node))
    }

    fn set_state(&mut self, task: &TaskId, state: TaskState) {
        let now = self.now;
        if let Some(task) = self.tasks.get_mut(task) {
            task.state = state;
            task.changed = now;
        }
    }

    fn set_desired(&mut self, task: &TaskId, desired: TaskState) {
        // "Time travel is not allowed": a desired state never goes back.
        if let Some(task) = self.tasks.get_mut(task).filter(|task| task.desired < desired) {
            task.desired = desired;
        }
    }

    fn next_index(&mut self) -> u64 {
        self.index += 1;
        self.index
    }
}

/// An identifier made by the model itself.
fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("the model makes valid identifiers")
}
