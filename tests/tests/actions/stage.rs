//! A service on the model of Swarm, and drivers that carry an action out on it: each may die at any command, and another
//! follows that knows nothing but what Swarm shows.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use swarmguard_common::domain::{NodeId, ServiceId, TaskId};
use swarmguard_core::{
    action::{self, Ages, Context, Intent, Next, Order, Outcome, Tuning, spec},
    command::{Command, CommandError, CommandResult},
    swarm::{Availability, Snapshot},
};
use swarmguard_tests::swarm_model::{SwarmModel, TICK_MS, Workload};

/// Longest story, in model seconds.
const PATIENCE_S: u64 = 900;

/// One coordinator process; a crash drops it.
struct Process {
    holder: String,
    ages: Ages,
    last: Option<(Command, CommandResult)>,
    tuning: Tuning,
    /// Records as last seen.
    known: Vec<action::Record>,
}

impl Process {
    fn new(number: usize) -> Self {
        Self {
            holder: format!("holder-{number}"),
            ages: Ages::default(),
            last: None,
            tuning: Tuning::default(),
            known: Vec::new(),
        }
    }
}

impl Process {
    /// Brings back records that somebody else removed.
    fn lost(&mut self, snapshot: &Snapshot) -> Vec<Command> {
        let records = snapshot.records.values().filter_map(|object| action::Record::parse(object).ok());
        let known = std::mem::replace(&mut self.known, records.collect());
        let there = |record: &action::Record| {
            let service = record.service.as_ref();
            snapshot.records.contains_key(&record.name)
                || !service.is_some_and(|service| snapshot.services.contains_key(service))
        };
        known.iter().filter(|record| !there(record)).filter_map(action::revive).collect()
    }
}

/// What happens at one command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    None,
    CrashBefore,
    CrashAfter,
    LostAnswer,
    Operator(Meddling),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Meddling {
    NewImage,
    Scale,
    DeployAgain,
    ServiceLabel,
    SourceActive,
    SourceDrained,
    ServiceRemoved,
    SuccessorDies,
    SourceLosesPower,
    TargetLosesPower,
    NewLeader,
    RecordsRemoved,
    /// A label of the source is written, so that the enforcer looks at it.
    NodeLabel,
    /// `docker service scale` to one more: just what a surge had set for its moment.
    ScaleByOne,
    /// `docker service rollback`.
    Rollback,
    /// The agent of the successor's node falls silent, so that its coordinator gives the action up.
    TargetSilent,
}

pub const MEDDLING: [Meddling; 14] = [
    Meddling::NewImage,
    Meddling::Scale,
    Meddling::DeployAgain,
    Meddling::ServiceLabel,
    Meddling::SourceActive,
    Meddling::SourceDrained,
    Meddling::ServiceRemoved,
    Meddling::SuccessorDies,
    Meddling::SourceLosesPower,
    Meddling::TargetLosesPower,
    Meddling::NewLeader,
    Meddling::RecordsRemoved,
    Meddling::NodeLabel,
    Meddling::TargetSilent,
];

pub struct Stage {
    pub model: SwarmModel,
    pub service: ServiceId,
    pub source: NodeId,
    pub before: Value,
    previous: Value,
    pub tasks: BTreeSet<TaskId>,
    pub on_source: BTreeSet<TaskId>,
    pub least: usize,
    /// How long any node was paused, in milliseconds.
    pub paused_ms: u64,
    pub codes: Vec<String>,
    commands: usize,
    /// Replicas that the balancers send nothing, as they were told.
    draining: BTreeSet<TaskId>,
    /// A look at Swarm leads to all commands that it calls for, not to the first alone.
    together: bool,
}

pub struct Ending {
    pub outcome: Option<Outcome>,
    pub commands: usize,
}

impl Stage {
    /// Three managers, where there are so many nodes.
    pub fn new(seed: u64, nodes: u64, replicas: u64, workload: Workload) -> Self {
        Self::with_managers(seed, nodes.min(3), nodes, replicas, workload)
    }

    pub fn with_managers(seed: u64, managers: u64, nodes: u64, replicas: u64, workload: Workload) -> Self {
        let mut model = SwarmModel::new(seed, managers, nodes - managers);
        let service = model.create_service("web", replicas, &[], Workload::default());
        let until = model.now + Duration::from_secs(6);
        model.advance(until);
        // An operator's own update, so that there is a PreviousSpec to keep; what it sets must come back exactly.
        let dress = |spec: &mut Value| {
            spec["Labels"]["release"] = json!("2");
            spec["TaskTemplate"]["Placement"] = json!({"Constraints": ["node.role!=none"], "MaxReplicas": 9});
            spec["UpdateConfig"] =
                json!({"Parallelism": 3, "Order": "stop-first", "FailureAction": "rollback"});
        };
        model.operator_update(&service, dress).expect("current version");
        let until = model.now + Duration::from_secs(6);
        model.advance(until);
        model.services.get_mut(&service).expect("made above").workload = workload;
        let source = model.serving(&service).find_map(|task| task.node.clone()).expect("replicas run");
        let tasks: BTreeSet<TaskId> = model.serving(&service).map(|task| task.id.clone()).collect();
        assert_eq!(tasks.len() as u64, replicas);
        let on_source = model
            .serving(&service)
            .filter(|task| task.node.as_ref() == Some(&source))
            .map(|task| task.id.clone());
        Self {
            on_source: on_source.collect(),
            before: model.services[&service].spec.clone(),
            previous: model.services[&service].previous_spec.clone().expect("updated once"),
            least: tasks.len(),
            paused_ms: 0,
            codes: Vec::new(),
            commands: 0,
            draining: BTreeSet::new(),
            together: false,
            model,
            service,
            source,
            tasks,
        }
    }

    /// The same, whose drivers send all commands of a look at once.
    pub fn together(seed: u64, nodes: u64, replicas: u64, workload: Workload) -> Self {
        Self { together: true, ..Self::new(seed, nodes, replicas, workload) }
    }

    /// What is there now is what the next action begins with.
    pub fn renew(&mut self) {
        self.tasks = self.serving();
        let here = |task: &&swarmguard_tests::swarm_model::ModelTask| self.tasks.contains(&task.id);
        self.source = self
            .model
            .serving(&self.service)
            .filter(here)
            .find_map(|task| task.node.clone())
            .expect("replicas run");
        let on_source =
            self.model.serving(&self.service).filter(|task| task.node.as_ref() == Some(&self.source));
        self.on_source = on_source.map(|task| task.id.clone()).collect();
        let service = &self.model.services[&self.service];
        self.before = service.spec.clone();
        self.previous = service.previous_spec.clone().expect("updated once");
        self.commands = 0;
        self.codes.clear();
    }

    /// A driver looks after what is left of earlier actions.
    pub fn watch(&mut self) {
        let mut process = Process::new(9);
        for _ in 0..20 {
            self.pass(150);
            let snapshot = self.model.snapshot(&SwarmModel::node_id(1));
            process.ages.update(&snapshot, self.model.now);
            for command in self.look(&process, &snapshot, &mut None) {
                self.execute(&mut process, command, usize::MAX, Fault::None);
            }
        }
    }

    /// Whether the record of an action is there that is not over.
    fn is_under_way(&self) -> bool {
        let mut records = self.model.configs.values();
        records.any(|config| config.labels.get("swarmguard.state").is_some_and(|state| state != "over"))
    }

    /// Whether an operator asked for a rollback that Swarm could not carry out.
    pub fn is_rollback_owed(&self) -> bool {
        let snapshot = self.model.snapshot(&SwarmModel::node_id(1));
        let service = snapshot.services.get(&self.service);
        service.is_some_and(|service| action::is_rollback_owed(&snapshot, service))
    }

    /// Whether only previous specs that operators may want back are left of what we kept in Swarm.
    fn is_idle(&self) -> bool {
        self.model.configs.values().all(|config| config.name == action::previous_name(&self.service))
    }

    pub fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(TICK_MS) {
            let until = self.model.now + Duration::from_millis(TICK_MS);
            self.model.advance(until);
            self.least = self.least.min(self.model.serving(&self.service).count());
            let paused = self.model.nodes.values().any(|node| node.availability() == Availability::Pause);
            self.paused_ms += if paused { TICK_MS } else { 0 };
        }
    }

    pub fn order(&self, intent: Intent) -> Order {
        Order {
            intent,
            token: "a1".into(),
            holder: "holder-0".into(),
            cooldown: Duration::from_secs(2),
            reason: "a test".into(),
            avoid: Vec::new(),
            closed: Vec::new(),
        }
    }

    /// Runs an intent to its end, with one fault at the `at`th command.
    pub fn run(&mut self, intent: Intent, at: usize, fault: Fault) -> Ending {
        let own = SwarmModel::node_id(1);
        let mut process = Process::new(0);
        let (mut begun, mut outcome) = (false, None);
        let end = self.model.now + Duration::from_secs(PATIENCE_S);
        for number in 1.. {
            if self.model.now >= end {
                break;
            }
            self.pass(150);
            let snapshot = self.model.snapshot(&own);
            process.ages.update(&snapshot, self.model.now);
            let lost = process.lost(&snapshot);
            let commands = if !lost.is_empty() {
                lost
            } else if begun {
                self.look(&process, &snapshot, &mut outcome)
            } else {
                // A driver that died before anything was there is followed by one that begins anew.
                let step = action::begin(&self.order(intent.clone()), &snapshot);
                let Next::Do(command) = step.expect("nothing stands against it").next else {
                    panic!("an action begins with a command")
                };
                vec![command]
            };
            if begun && commands.is_empty() && (self.is_idle() || self.is_rollback_owed()) {
                break;
            }
            let crashed = commands.into_iter().any(|command| self.execute(&mut process, command, at, fault));
            begun |= self.is_under_way();
            if crashed {
                process = Process::new(number);
                self.pass(3_000);
            }
        }
        self.pass(8_000);
        Ending { outcome, commands: self.commands }
    }

    /// What one look at Swarm leads to.
    fn look(
        &mut self,
        process: &Process,
        snapshot: &Snapshot,
        outcome: &mut Option<Outcome>,
    ) -> Vec<Command> {
        let mut commands = Vec::new();
        for object in snapshot.records.values() {
            let context = Context {
                holder: &process.holder,
                since: process.ages.since(object, self.model.now),
                last: process.last.as_ref().map(|(command, result)| (command, result)),
                ages: &process.ages,
                answers: false,
                tuning: &process.tuning,
            };
            let step = action::step(object, snapshot, self.model.now, &context);
            for note in step.notes {
                if self.codes.iter().all(|code| code != note.code) {
                    self.codes.push(note.code.into());
                }
            }
            match step.next {
                Next::Do(command) => commands.push(command),
                Next::Start { intent, token } => {
                    let order = Order { token, ..self.order(intent) };
                    if let Ok(step) = action::begin(&order, snapshot)
                        && let Next::Do(command) = step.next
                    {
                        commands.push(command);
                    }
                }
                Next::Over { outcome: ended, .. }
                    if object.name.contains("-act-") || object.name.contains("-drain-") =>
                {
                    *outcome = Some(ended);
                }
                _ => {}
            }
            if !self.together && !commands.is_empty() {
                break;
            }
        }
        commands
    }

    /// Whether the process died over it.
    fn execute(&mut self, process: &mut Process, command: Command, at: usize, fault: Fault) -> bool {
        let number = self.commands;
        self.commands += 1;
        let fault = if number == at { fault } else { Fault::None };
        match fault {
            Fault::CrashBefore => return true,
            Fault::Operator(meddling) => self.meddle(meddling),
            _ => {}
        }
        let result = self.model.execute(&command);
        match &command {
            Command::DrainBalancers { tasks, .. } => self.draining.extend(tasks.iter().cloned()),
            Command::ResumeBalancers { tasks } => self.draining.retain(|task| !tasks.contains(task)),
            _ => {}
        }
        match fault {
            Fault::CrashAfter => return true,
            Fault::LostAnswer => {
                let lost = CommandError::Unavailable("timed out".into());
                process.last = Some((command, Err(lost)));
            }
            _ => process.last = Some((command, result)),
        }
        false
    }

    fn meddle(&mut self, meddling: Meddling) {
        let (service, source) = (self.service.clone(), self.source.clone());
        let before = self.before.clone();
        let newcomer = self.model.wanted(&service).find(|task| !self.tasks.contains(&task.id)).cloned();
        match meddling {
            Meddling::NewImage => {
                let change =
                    |spec: &mut Value| spec["TaskTemplate"]["ContainerSpec"]["Image"] = json!("web:2");
                self.model.operator_update(&service, change).expect("current version");
            }
            Meddling::Scale => {
                let count = before["Mode"]["Replicated"]["Replicas"].as_u64().expect("replicated") + 2;
                let change = |spec: &mut Value| spec["Mode"]["Replicated"]["Replicas"] = json!(count);
                self.model.operator_update(&service, change).expect("current version");
            }
            Meddling::DeployAgain => {
                self.model.operator_update(&service, |spec| *spec = before).expect("current version");
            }
            Meddling::ServiceLabel => {
                self.model
                    .operator_update(&service, |spec| spec["Labels"]["note"] = json!("x"))
                    .expect("current version");
            }
            Meddling::SourceActive => {
                self.model.operator_availability(&source, Availability::Active).expect("current version");
            }
            Meddling::SourceDrained => {
                self.model.operator_availability(&source, Availability::Drain).expect("current version");
            }
            Meddling::ServiceRemoved => self.model.remove_service(&service),
            Meddling::SuccessorDies => {
                if let Some(task) = newcomer {
                    self.model.kill_task(&task.id);
                }
            }
            Meddling::SourceLosesPower => self.model.power_cut(&source),
            Meddling::TargetLosesPower => {
                if let Some(node) = newcomer.and_then(|task| task.node) {
                    self.model.power_cut(&node);
                }
            }
            Meddling::NewLeader => self.model.elect(&SwarmModel::node_id(1)),
            Meddling::RecordsRemoved => self.model.configs.retain(|_, config| !config.name.contains("-act-")),
            Meddling::NodeLabel => {
                let change = |spec: &mut Value| spec["Labels"]["probe"] = json!("1");
                self.model.operator_node(&source, change).expect("current version");
            }
            Meddling::ScaleByOne => {
                let count = before["Mode"]["Replicated"]["Replicas"].as_u64().expect("replicated") + 1;
                let change = |spec: &mut Value| spec["Mode"]["Replicated"]["Replicas"] = json!(count);
                self.model.operator_update(&service, change).expect("current version");
            }
            Meddling::Rollback => self.model.operator_rollback(&service).expect("there is a previous spec"),
            Meddling::TargetSilent => self.lose_target(),
        }
    }

    /// What the brain does when the lease of the successor's node lapses.
    fn lose_target(&mut self) {
        let snapshot = self.model.snapshot(&SwarmModel::node_id(1));
        let Some(object) = snapshot.records.get(&action::action_name(&self.service)) else { return };
        let record = action::Record::parse(object).expect("ours");
        let node = action::targets(&record, &snapshot).into_iter().next();
        if let Some(step) = node.and_then(|node| action::lose_target(object, &node, "a test"))
            && let Next::Do(command) = step.next
        {
            self.model.execute(&command).expect("current version");
        }
    }

    /// After a migration that nobody interfered with: all checks, with every node active.
    pub fn check_all(&self, story: &str, outcome: Option<&Outcome>) {
        self.check_clean(story);
        self.check_node(story, Availability::Active);
        self.check_spec(story);
        self.check_replicas(story, outcome);
    }

    /// Nothing of ours is left anywhere.
    pub fn check_clean(&self, story: &str) {
        assert!(self.model.violations.is_empty(), "{story}: {:?}", self.model.violations);
        assert!(self.is_idle(), "{story}: records are left: {:?}", self.model.configs.values());
        let serving = self.serving();
        let cut_off: Vec<&TaskId> = self.draining.intersection(&serving).collect();
        assert!(cut_off.is_empty(), "{story}: the balancers send nothing to {cut_off:?}, which stay");
        if let Some(service) = self.model.services.get(&self.service) {
            assert!(!spec::is_marked(&service.spec), "{story}: the mark is left");
            let meant = spec::constraints(&self.before);
            assert_eq!(spec::constraints(&service.spec), meant, "{story}: a constraint is left");
            let previous = service.previous_spec.as_ref().expect("the operator updated it once");
            assert!(!spec::is_marked(previous), "{story}: a rollback would bring the mark back");
            let untouched = spec::same(previous, &self.previous);
            assert!(
                untouched || spec::constraints(previous) == meant,
                "{story}: a rollback would bring a constraint back"
            );
        }
    }

    pub fn check_node(&self, story: &str, availability: Availability) {
        for node in self.model.nodes.values() {
            let expected = if node.id == self.source { availability } else { Availability::Active };
            assert_eq!(node.availability(), expected, "{story}: availability of {}", node.id);
        }
    }

    pub fn check_spec(&self, story: &str) {
        self.check_spec_with(story, self.tasks.len() as u64);
    }

    /// The spec is what the operator left, with so many replicas, and so is the previous one that a rollback restores,
    /// if it is not the operator's own.
    pub fn check_spec_with(&self, story: &str, replicas: u64) {
        let service = &self.model.services[&self.service];
        let meant = spec::with_replicas(self.before.clone(), replicas);
        let now = &service.spec;
        assert!(spec::same(now, &meant), "{story}: spec {now} was {meant}");
        let previous = service.previous_spec.as_ref().expect("the operator updated it once");
        let ours = spec::same(previous, &meant) || spec::same(previous, &self.previous);
        assert!(ours, "{story}: a rollback would restore {previous}");
    }

    pub fn serving(&self) -> BTreeSet<TaskId> {
        self.model.serving(&self.service).map(|task| task.id.clone()).collect()
    }

    /// After a migration: exactly one replica left the source, or, if it was undone, all are as good as before.
    pub fn check_replicas(&self, story: &str, outcome: Option<&Outcome>) {
        let serving = self.serving();
        assert_eq!(serving.len(), self.tasks.len(), "{story}: replicas");
        assert!(self.least >= self.tasks.len(), "{story}: capacity fell to {}", self.least);
        if outcome == Some(&Outcome::Done) {
            let gone: BTreeSet<&TaskId> = self.tasks.difference(&serving).collect();
            assert_eq!(gone.len(), 1, "{story}: tasks gone");
            assert!(gone.is_subset(&self.on_source.iter().collect()), "{story}: the wrong one went");
        }
    }

    pub fn migrate(&self) -> Intent {
        Intent::Migrate { service: self.service.clone(), source: self.source.clone(), target: None }
    }
}
