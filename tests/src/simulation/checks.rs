//! What must hold whatever happens, looked at from outside: the checkers know the model, not the brain.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};
use swarmguard_common::{
    domain::{NodeId, ServiceId, TaskId},
    journal::{Entry, Kind},
    time::Time,
};
use swarmguard_core::{
    action::{Why, action_name},
    command::{Command, CommandResult},
    swarm::{Availability, UpdateState},
};

use super::scenario::{Class, Pattern, Scenario};
use crate::swarm_model::SwarmModel;

/// Actions that a noisy load may provoke in one run, all services together.
const NOISE_ACTIONS: u64 = 8;
/// Actions at once that a coordinator may begin in the cluster, as [`super::coordinator`] sets it.
pub(super) const MAX_ACTIONS: usize = 2;

/// What is expected, and what went wrong.
pub(super) struct Checks {
    class: Class,
    undisturbed: bool,
    watching: bool,
    calm_from: Time,
    /// What operators last asked for: spec with their replica count.
    specs: BTreeMap<ServiceId, Value>,
    availability: BTreeMap<NodeId, Availability>,
    /// Nodes that an operator paused while they were paused already by SwarmGuard: Swarm shows no difference, so either
    /// is right in the end.
    either: BTreeSet<NodeId>,
    /// The last drain of each node that an operator ordered of SwarmGuard.
    drains: BTreeMap<NodeId, Drain>,
    drains_ordered: bool,
    /// Replicas that the balancers were told go.
    draining: BTreeSet<TaskId>,
    /// Serving replicas that must not be fallen below while only SwarmGuard acts.
    floor: BTreeMap<ServiceId, u64>,
    bounds: BTreeMap<ServiceId, (u64, u64)>,
    told: BTreeSet<String>,
    /// Kind of each action that was begun, by its token.
    kinds: BTreeMap<String, String>,
    /// Actions that an operator ordered, alone or as a part of a drain: cooldowns do not hold for them.
    by_hand: BTreeSet<String>,
    /// The last action of each service that ended: kind, when, and whether it went elsewhere at once because its target
    /// fell silent.
    ended: BTreeMap<ServiceId, (String, Time, bool)>,
    pub failures: Vec<String>,
    pub begun: BTreeMap<String, u64>,
}

/// A drain that was ordered.
struct Drain {
    token: String,
    /// Whether it was done, once it ended.
    done: Option<bool>,
    /// An operator set the node by hand while it was under way: which of the two came first Swarm does not show.
    overridden: bool,
}

/// The cooldown between two actions of a kind on one service, as the scenario's labels and the defaults have it.
fn cooldown(kind: &str) -> Option<Duration> {
    match kind {
        "migrate" => Some(Duration::from_secs(60)),
        // None of the operator's; the last step must have had time to show itself.
        "scale_out" => Some(Duration::from_secs(2)),
        "scale_in" => Some(Duration::from_secs(20)),
        _ => None,
    }
}

/// Whether a placement has what no operator of the simulation writes.
fn has_mark(placement: &Value) -> bool {
    let constraints = placement["Constraints"].as_array().into_iter().flatten().filter_map(Value::as_str);
    placement.get("Platforms").is_some() || constraints.into_iter().any(|text| text.starts_with("node.id!="))
}

/// Labels of the record of a service's action, where one is under way.
fn action_of<'a>(swarm: &'a SwarmModel, service: &ServiceId) -> Option<&'a BTreeMap<String, String>> {
    let record = swarm.configs.values().find(|config| config.name == action_name(service))?;
    (record.labels["swarmguard.state"] != "over").then_some(&record.labels)
}

/// Whether an undo waits for a rollout of somebody else that failed and stands paused: for as long as they leave it so,
/// because a write would start it anew.
fn waits_for_others(swarm: &SwarmModel, service: &ServiceId) -> bool {
    let state = swarm.services[service].update_state;
    let paused = matches!(state, Some(UpdateState::Paused | UpdateState::RollbackPaused));
    paused && action_of(swarm, service).is_some_and(|labels| labels["swarmguard.state"] == "undoing")
}

impl Checks {
    pub fn new(swarm: &SwarmModel, services: &[ServiceId], scenario: &Scenario) -> Self {
        let spec = |service: &ServiceId| (service.clone(), swarm.services[service].spec.clone());
        let bounds = |(index, service): (usize, &ServiceId)| {
            let replicas = scenario.replicas[index];
            (service.clone(), (replicas, scenario.scale_max[index].unwrap_or(replicas)))
        };
        Self {
            class: scenario.class,
            undisturbed: scenario.trouble_every.is_none(),
            watching: false,
            calm_from: swarm.now + Duration::from_secs(10) + scenario.troubled,
            specs: services.iter().map(spec).collect(),
            availability: swarm.nodes.keys().map(|node| (node.clone(), Availability::Active)).collect(),
            either: BTreeSet::new(),
            drains: BTreeMap::new(),
            drains_ordered: false,
            draining: BTreeSet::new(),
            floor: BTreeMap::new(),
            bounds: services.iter().enumerate().map(bounds).collect(),
            told: BTreeSet::new(),
            kinds: BTreeMap::new(),
            by_hand: BTreeSet::new(),
            ended: BTreeMap::new(),
            failures: Vec::new(),
            begun: BTreeMap::new(),
        }
    }

    /// From now on the services are up and must stay so.
    pub fn start(&mut self, swarm: &SwarmModel) {
        self.watching = true;
        for (service, (least, _)) in &self.bounds {
            let serving = swarm.serving(service).count() as u64;
            // Slow starters may not be up yet: what is up is what must stay.
            self.floor.insert(service.clone(), serving.min(*least));
        }
    }

    pub fn is_watching(&self) -> bool {
        self.watching
    }

    pub fn is_calm(&self, now: Time) -> bool {
        now >= self.calm_from
    }

    pub fn operator_scaled(&mut self, service: &ServiceId, replicas: u64) {
        if let Some(spec) = self.specs.get_mut(service) {
            spec["Mode"]["Replicated"]["Replicas"] = json!(replicas);
        }
    }

    /// What operators last wanted a node to be.
    pub fn meant(&self, node: &NodeId) -> Availability {
        self.availability[node]
    }

    /// A drain was taken.
    pub fn drain_ordered(&mut self, node: &NodeId, token: String) {
        self.drains_ordered = true;
        self.drains.insert(node.clone(), Drain { token, done: None, overridden: false });
    }

    /// Whether any was.
    pub fn drains_ordered(&self) -> bool {
        self.drains_ordered
    }

    /// `held`: SwarmGuard had it paused at that moment.
    pub fn operator_set(&mut self, node: &NodeId, availability: Availability, held: bool) {
        match self.drains.get_mut(node) {
            Some(drain) if drain.done.is_none() => drain.overridden = true,
            _ => {
                self.drains.remove(node);
            }
        }
        self.availability.insert(node.clone(), availability);
        if held && availability == Availability::Pause {
            self.either.insert(node.clone());
        } else {
            self.either.remove(node);
        }
    }

    pub fn operator_spec(&self, service: &ServiceId) -> Value {
        self.specs[service].clone()
    }

    pub fn operator_deployed(&mut self, service: &ServiceId, spec: Value) {
        self.specs.insert(service.clone(), spec);
    }

    /// Something is not as it must be.
    pub fn fail(&mut self, now: Time, text: String) {
        if self.failures.len() < 10 {
            self.failures.push(format!("at {now}: {text}"));
        }
    }

    /// After every step.
    pub fn look(&mut self, now: Time, swarm: &SwarmModel, services: &[ServiceId]) {
        if let Some(violation) = swarm.violations.first() {
            self.fail(now, violation.clone());
        }
        if !self.watching {
            return;
        }
        self.look_at_balancers(now, swarm, services);
        for service in services {
            let serving = swarm.serving(service).count() as u64;
            let floor = self.floor.get(service).copied().unwrap_or(0);
            if self.class == Class::OwnFaults && serving < floor {
                self.fail(
                    now,
                    format!("{service} fell to {serving} serving replicas, {floor} were there before"),
                );
            }
            let wish = swarm.services.get(service).map_or(0, crate::swarm_model::ModelService::replicas);
            self.look_at_bounds(now, swarm, service, wish);
            // What came up later must stay as well.
            if let (Some(floor), Some((least, _))) = (self.floor.get_mut(service), self.bounds.get(service)) {
                *floor = (*floor).max(serving.min(*least));
            }
        }
    }

    /// What the balancers were told of a replica is taken back before the action is over, unless the replica goes.
    fn look_at_balancers(&mut self, now: Time, swarm: &SwarmModel, services: &[ServiceId]) {
        if self.draining.is_empty() {
            return;
        }
        let over = services.iter().filter(|service| action_of(swarm, service).is_none());
        let left =
            over.flat_map(|service| swarm.serving(service)).find(|task| self.draining.contains(&task.id));
        if let Some(task) = left {
            self.fail(now, format!("{} of {} serves and is left draining", task.id, task.service));
        }
    }

    /// Without operators the replica count is what it was, or within the bounds, but for a surge under way.
    fn look_at_bounds(&mut self, now: Time, swarm: &SwarmModel, service: &ServiceId, wish: u64) {
        let (least, most) = self.bounds[service];
        let surging = action_of(swarm, service).is_some_and(|labels| labels["swarmguard.kind"] == "migrate");
        let most = most + u64::from(surging);
        if self.class == Class::OwnFaults && !(least..=most).contains(&wish) {
            self.fail(now, format!("{service} is set to {wish} replicas, {least} to {most} are allowed"));
        }
        // With nobody dying in between, no coordinator has begun what another does not know of.
        let acts = |service: &&ServiceId| {
            action_of(swarm, service).is_some_and(|labels| labels["swarmguard.state"] != "undoing")
        };
        let under_way = swarm.services.keys().filter(acts).count();
        if self.undisturbed && under_way > MAX_ACTIONS {
            self.fail(now, format!("{under_way} actions are under way at once"));
        }
    }

    /// When a command reached Swarm.
    pub fn command(
        &mut self,
        now: Time,
        by: &NodeId,
        command: &Command,
        result: &CommandResult,
        swarm: &SwarmModel,
    ) {
        let service = match command {
            Command::WriteService { service, .. } => service,
            Command::DrainBalancers { tasks, .. } => {
                self.draining.extend(tasks.iter().cloned());
                return;
            }
            Command::ResumeBalancers { tasks } => {
                self.draining.retain(|task| !tasks.contains(task));
                return;
            }
            _ => return,
        };
        if result.is_ok() && action_of(swarm, service).is_none() {
            self.fail(now, format!("{by} wrote {service} without an action lease"));
        }
    }

    /// When a coordinator wrote to its journal.
    pub fn entry(&mut self, now: Time, entry: &Entry) {
        let (Kind::Action, Some(action)) = (entry.kind, &entry.action) else { return };
        let Some(service) = &entry.service else { return self.drain_entry(action, &entry.code) };
        match entry.code.as_str() {
            "leased" => {
                let (kind, reason) = entry.text.split_once(": ").unwrap_or((&entry.text, ""));
                if reason.starts_with("ops: ") || reason.starts_with("drain ") {
                    self.by_hand.insert(action.clone());
                }
                self.began(now, action, service, kind);
            }
            code @ ("done" | "undone") => {
                let kind = self.kinds.get(action).cloned().unwrap_or_default();
                if self.by_hand.contains(action) {
                    self.ended.remove(service);
                    return;
                }
                let elsewhere = code == "undone" && entry.text.starts_with(Why::TargetLost.word());
                self.ended.insert(service.clone(), (kind, now, elsewhere));
            }
            _ => {}
        }
    }

    fn drain_entry(&mut self, action: &str, code: &str) {
        let found = self.drains.iter_mut().find(|(_, drain)| drain.token == action);
        let (Some((node, drain)), "done" | "undone") = (found, code) else { return };
        drain.done = Some(code == "done");
        if code == "done" && !drain.overridden {
            self.availability.insert(node.clone(), Availability::Drain);
        }
    }

    fn began(&mut self, now: Time, action: &str, service: &ServiceId, kind: &str) {
        // A successor that takes an action over may say so again.
        if !self.told.insert(action.to_owned()) {
            return;
        }
        *self.begun.entry(kind.to_owned()).or_default() += 1;
        if self.by_hand.contains(action) {
            // Its record takes the place of the last one's, which kept the cooldown.
            self.ended.remove(service);
            return;
        }
        self.kinds.insert(action.to_owned(), kind.to_owned());
        let Some((last, ended, elsewhere)) = self.ended.get(service) else { return };
        // Of several kinds only the last is remembered across a restart.
        let Some(cooldown) = cooldown(kind).filter(|_| last == kind && !elsewhere) else { return };
        let since = now - *ended;
        // The clocks do not run alike.
        if since < cooldown.mul_f64(0.98) {
            self.fail(now, format!("{service}: a {kind} began {since:?} after the last, not {cooldown:?}"));
        }
    }

    /// At the end, after a long calm.
    pub fn finish(&mut self, swarm: &SwarmModel, services: &[ServiceId], scenario: &Scenario, alerts: usize) {
        let now = swarm.now;
        for service in services {
            self.finish_service(now, swarm, service);
        }
        for (node, meant) in self.availability.clone() {
            let is = swarm.nodes[&node].availability();
            // Swarm does not show that somebody else paused a node that SwarmGuard has paused for a drain.
            let may_be_drained = self.drains.get(&node).is_some_and(|drain| drain.done != Some(false));
            let either = self.either.contains(&node) && is == Availability::Active
                || may_be_drained && is == Availability::Drain;
            if is != meant && !either {
                self.fail(now, format!("{node} is left {is:?}, operators meant {meant:?}"));
            }
        }
        let waiting: Vec<String> =
            services.iter().filter(|service| waits_for_others(swarm, service)).map(action_name).collect();
        for config in swarm.configs.values().filter(|config| !waiting.contains(&config.name)) {
            let state = config.labels.values().any(|value| value == "over")
                || config.name.contains("settings")
                || config.name.contains("-prev-");
            if !state && config.name.contains("-drain-") {
                self.fail(now, format!("the drain of {} never ended: {:?}", config.name, config.labels));
            } else if !state {
                self.fail(now, format!("{} is left unfinished: {:?}", config.name, config.labels));
            }
        }
        if alerts > 0 {
            self.fail(now, format!("{alerts} alerts stand though the load is low"));
        }
        let begun = self.begun.values().sum::<u64>().saturating_sub(self.by_hand.len() as u64);
        // Undisturbed, what the load calls for must be done.
        let undisturbed = self.undisturbed && scenario.workload.failing_starts == 0;
        let called_for = match scenario.pattern {
            // The replica alone fills a node, and all nodes are alike: where it may not be helped by another replica, no
            // move makes it better.
            Pattern::HotNode => scenario.scale_max[0].is_some(),
            Pattern::Demand => scenario.replicas[0] == 1 && scenario.scale_max[0].is_some(),
            Pattern::Noise => false,
        };
        if undisturbed && called_for && begun == 0 {
            self.fail(now, "nothing was done about the load".into());
        }
        if scenario.pattern == Pattern::Noise && begun > NOISE_ACTIONS {
            self.fail(now, format!("a noisy load provoked {begun} actions"));
        }
    }

    fn finish_service(&mut self, now: Time, swarm: &SwarmModel, service: &ServiceId) {
        let mut is = swarm.services[service].spec.clone();
        let mut meant = self.specs[service].clone();
        let replicas = is["Mode"]["Replicated"]["Replicas"].take().as_u64().unwrap_or(0);
        let asked = meant["Mode"]["Replicated"]["Replicas"].take().as_u64().unwrap_or(0);
        if let Some(previous) = &swarm.services[service].previous_spec
            && !waits_for_others(swarm, service)
            && has_mark(&previous["TaskTemplate"]["Placement"])
        {
            let placement = &previous["TaskTemplate"]["Placement"];
            self.fail(now, format!("a rollback of {service} would restore a placement of ours: {placement}"));
        }
        if is != meant {
            self.fail(now, format!("{service} is left changed\n     is {is}\n  meant {meant}"));
        }
        let (least, most) = self.bounds[service];
        let scales = least != most;
        // The one more of a surge stays as long as its undo may not write.
        let surge = u64::from(waits_for_others(swarm, service));
        let (least, most) = if scales { (least, most) } else { (asked, asked) };
        if !(least..=most + surge).contains(&replicas) {
            self.fail(
                now,
                format!(
                    "{service} is left with {replicas} replicas, {asked} were asked for ({least} to {most})"
                ),
            );
        }
        let serving = swarm.serving(service).count() as u64;
        // Starts that fail for ever never come to an end, and nothing starts where operators closed every node; all
        // others must have.
        let can_start = swarm.services[service].workload.failing_starts == 0
            && swarm.nodes.values().any(|node| node.availability() == Availability::Active);
        if serving < replicas && can_start {
            self.fail(now, format!("{service} has {serving} of {replicas} replicas serving after the calm"));
        }
    }
}
