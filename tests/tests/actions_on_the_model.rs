//! Every action, driven against the Swarm model by drivers that die at every step and are followed by others.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use swarmguard_common::{
    clock::Time,
    domain::{NodeId, ServiceId, TaskId},
};
use swarmguard_core::{
    action::{self, Ages, Context, Intent, Next, Order, Outcome, Tuning},
    command::{Command, CommandResult},
    swarm::Availability,
};
use swarmguard_tests::swarm_model::{SwarmModel, Workload};

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Where a driver dies, counted in commands over all drivers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    Never,
    /// The command was decided on and never sent.
    Before(usize),
    /// The command arrived, its answer did not.
    After(usize),
}

struct Trial {
    model: SwarmModel,
    service: ServiceId,
    spec: Value,
    tasks: BTreeSet<TaskId>,
    floor: usize,
    commands: usize,
    drivers: u32,
    outcome: Option<Outcome>,
    /// The action is over, and only its tombstone is waited for.
    cleaning: bool,
    log: Vec<String>,
}

impl Trial {
    fn new(seed: u64, workers: u64, replicas: u64, workload: Workload) -> Self {
        let mut model = SwarmModel::new(seed, 1, workers);
        let service = model.create_service("web", replicas, &[("swarmguard.enable", "true")], workload);
        let dress = |spec: &mut Value| {
            spec["TaskTemplate"]["Placement"] = json!({"Constraints": ["node.role!=none"], "MaxReplicas": 9});
            spec["UpdateConfig"] =
                json!({"Parallelism": 3, "Order": "stop-first", "FailureAction": "rollback"});
        };
        model.operator_update(&service, dress).expect("current version");
        step(&mut model, Duration::from_secs(40));
        let tasks: BTreeSet<TaskId> = model.serving(&service).map(|task| task.id.clone()).collect();
        assert_eq!(tasks.len() as u64, replicas);
        let spec = model.services[&service].spec.clone();
        Self {
            floor: tasks.len(),
            model,
            service,
            spec,
            tasks,
            commands: 0,
            drivers: 0,
            outcome: None,
            cleaning: false,
            log: Vec::new(),
        }
    }

    fn a_node(&self) -> NodeId {
        self.model.serving(&self.service).find_map(|task| task.node.clone()).expect("somewhere")
    }

    /// Drives the intent to its end, or until ten minutes have passed.
    fn drive(&mut self, intent: &Intent, death: Death, disturb: &mut dyn FnMut(&mut SwarmModel, usize)) {
        let end = self.model.now + Duration::from_secs(600);
        let mut begun = false;
        while self.model.now < end && self.outcome.is_none() {
            self.drivers += 1;
            self.one_driver(intent, &mut begun, death, end, disturb);
            self.advance(Duration::from_secs(2));
        }
    }

    fn one_driver(
        &mut self,
        intent: &Intent,
        begun: &mut bool,
        death: Death,
        end: Time,
        disturb: &mut dyn FnMut(&mut SwarmModel, usize),
    ) {
        let holder = format!("driver.{}", self.drivers);
        let tuning = Tuning::default();
        let mut ages = Ages::default();
        let mut last: Option<(Command, CommandResult)> = None;
        while self.model.now < end && !self.is_finished() {
            self.advance(LOOK_EVERY);
            let now = self.model.now;
            let snapshot = self.model.snapshot(&SwarmModel::node_id(1));
            ages.update(&snapshot, now);
            let mut commands = Vec::new();
            for record in snapshot.records.values().filter(|record| action::is_record(&record.name)) {
                let last = last.as_ref().map(|(command, result)| (command, result));
                let context =
                    Context { holder: &holder, since: ages.since(record, now), last, tuning: &tuning };
                let step = action::step(record, &snapshot, now, &context);
                for note in &step.notes {
                    self.note(format!("{holder} [{}] {}", note.code, note.text));
                }
                match step.next {
                    Next::Do(command) => commands.push(command),
                    Next::Over { outcome, .. } if record.name == action::action_name(&self.service) => {
                        self.outcome = Some(outcome);
                    }
                    _ => {}
                }
            }
            if !*begun {
                let order = Order {
                    intent: intent.clone(),
                    token: format!("t{}", self.drivers),
                    holder: holder.clone(),
                    cooldown: Duration::from_secs(5),
                    reason: "a trial".into(),
                };
                match action::begin(&order, &snapshot) {
                    Ok(step) => commands.extend(match step.next {
                        Next::Do(command) => Some(command),
                        _ => None,
                    }),
                    Err(refusal) => panic!("{intent:?} is refused: {refusal} {:#?}", self.log),
                }
            }
            for command in commands {
                self.commands += 1;
                disturb(&mut self.model, self.commands);
                if death == Death::Before(self.commands) {
                    return;
                }
                let result = self.model.execute(&command);
                self.log.push(format!("{now} {holder} #{} {} -> {result:?}", self.commands, brief(&command)));
                *begun |= result.is_ok();
                if death == Death::After(self.commands) {
                    return;
                }
                last = Some((command, result));
            }
        }
    }

    fn is_finished(&self) -> bool {
        if self.cleaning { self.model.configs.is_empty() } else { self.outcome.is_some() }
    }

    /// A step that is looked at again says the same again.
    fn note(&mut self, text: String) {
        if !self.log.iter().any(|line| line.ends_with(&text)) {
            self.log.push(format!("{} {text}", self.model.now));
        }
    }

    fn advance(&mut self, duration: Duration) {
        let end = self.model.now + duration;
        while self.model.now < end {
            step(&mut self.model, Duration::from_millis(50));
            let serving = self.model.serving(&self.service).count();
            assert!(serving >= self.floor, "fell to {serving} of {} {:#?}", self.floor, self.log);
            assert!(self.model.violations.is_empty(), "{:?}", self.model.violations);
        }
    }

    /// Which tasks are gone, once everything has settled.
    fn settle(&mut self, replicas_meant: u64) -> BTreeSet<TaskId> {
        self.floor = self.floor.min(usize::try_from(replicas_meant).expect("small"));
        let holder_log = std::mem::take(&mut self.log);
        // Tombstones and node leases are taken away by whoever looks next.
        self.cleaning = true;
        self.drivers += 1;
        let end = self.model.now + Duration::from_secs(60);
        let nothing = Intent::Drain { node: SwarmModel::node_id(1) };
        self.one_driver(&nothing, &mut true, Death::Never, end, &mut quiet);
        self.log.splice(0..0, holder_log);
        self.advance(Duration::from_secs(60));
        let mut meant = self.spec.clone();
        meant["Mode"]["Replicated"]["Replicas"] = json!(replicas_meant);
        let service = &self.model.services[&self.service];
        assert_eq!(service.spec, meant, "the spec is left changed {:#?}", self.log);
        assert_eq!(
            service.previous_spec.as_ref(),
            Some(&meant),
            "a rollback would restore a mark {:#?}",
            self.log
        );
        for node in self.model.nodes.values() {
            assert_eq!(node.availability(), Availability::Active, "{} is left {:#?}", node.id, self.log);
        }
        assert!(self.model.configs.is_empty(), "{:?} {:#?}", self.model.configs, self.log);
        let now: BTreeSet<TaskId> = self.model.serving(&self.service).map(|task| task.id.clone()).collect();
        assert_eq!(now.len() as u64, replicas_meant, "{:#?}", self.log);
        self.tasks.difference(&now).cloned().collect()
    }
}

fn step(model: &mut SwarmModel, duration: Duration) {
    let until = model.now + duration;
    model.advance(until);
}

fn brief(command: &Command) -> String {
    match command {
        Command::WriteService { spec, version, .. } => format!(
            "write service at {version}: replicas {} placement {} update {}",
            spec["Mode"]["Replicated"]["Replicas"], spec["TaskTemplate"]["Placement"], spec["UpdateConfig"]
        ),
        Command::UpdateRecord { name, labels, .. } => format!("update {name} {labels:?}"),
        Command::CreateRecord { name, .. } => format!("create {name}"),
        Command::WriteNode { node, spec, .. } => format!("write {node} {}", spec["Availability"]),
        other => format!("{other:?}"),
    }
}

fn quiet(_: &mut SwarmModel, _: usize) {}

/// How many commands the undisturbed action takes.
fn undisturbed(replicas: u64, workload: Workload) -> usize {
    let mut trial = Trial::new(1, 3, replicas, workload);
    let source = trial.a_node();
    let intent = Intent::Migrate { service: trial.service.clone(), source: source.clone(), target: None };
    trial.drive(&intent, Death::Never, &mut quiet);
    assert_eq!(trial.outcome, Some(Outcome::Done), "{:#?}", trial.log);
    let commands = trial.commands;
    let before: BTreeSet<TaskId> = trial
        .model
        .tasks
        .values()
        .filter(|task| task.node.as_ref() == Some(&source))
        .map(|task| task.id.clone())
        .collect();
    let gone = trial.settle(replicas);
    assert_eq!(gone.len(), 1, "{:#?}", trial.log);
    assert!(
        gone.is_subset(&before) || before.is_empty(),
        "another than the one on the source went {:#?}",
        trial.log
    );
    commands
}

#[test]
fn a_migration_moves_exactly_one_replica_and_leaves_nothing_behind() {
    for replicas in [1, 2, 3, 5] {
        undisturbed(replicas, Workload::default());
    }
    undisturbed(2, Workload { healthy_ms: 15_000, prepare_ms: 3_000, ..Workload::default() });
}

#[test]
fn a_migration_whose_driver_dies_at_any_command_is_finished_or_undone() {
    for replicas in [1, 3] {
        let commands = undisturbed(replicas, Workload::default());
        assert!(commands >= 6);
        for at in 1..=commands {
            for death in [Death::Before(at), Death::After(at)] {
                let mut trial = Trial::new(at as u64, 3, replicas, Workload::default());
                let source = trial.a_node();
                let intent = Intent::Migrate { service: trial.service.clone(), source, target: None };
                trial.drive(&intent, death, &mut quiet);
                assert!(trial.outcome.is_some(), "{death:?} never ended {:#?}", trial.log);
                let gone = trial.settle(replicas);
                assert!(gone.len() <= 1, "{death:?}: {gone:?} went {:#?}", trial.log);
            }
        }
    }
}

#[test]
fn a_leader_change_at_any_command_costs_no_replica() {
    let commands = undisturbed(2, Workload::default());
    for at in 1..=commands {
        let mut trial = Trial::new(at as u64, 3, 2, Workload::default());
        let source = trial.a_node();
        let intent = Intent::Migrate { service: trial.service.clone(), source, target: None };
        let leader = SwarmModel::node_id(1);
        trial.drive(&intent, Death::Never, &mut |model, command| {
            if command == at {
                model.elect(&leader);
            }
        });
        assert!(trial.outcome.is_some(), "never ended {:#?}", trial.log);
        trial.settle(2);
    }
}

#[test]
fn starts_that_fail_are_undone_and_cost_nothing() {
    let failing = Workload { failing_starts: 0, ..Workload::default() };
    let mut trial = Trial::new(3, 3, 2, failing);
    if let Some(service) = trial.model.services.get_mut(&trial.service) {
        service.workload.failing_starts = 1_000;
    }
    let source = trial.a_node();
    let intent = Intent::Migrate { service: trial.service.clone(), source, target: None };
    trial.drive(&intent, Death::Never, &mut quiet);
    assert!(matches!(trial.outcome, Some(Outcome::Undone { .. })), "{:?} {:#?}", trial.outcome, trial.log);
    assert!(trial.settle(2).is_empty());
}

#[test]
fn scaling_goes_one_up_and_takes_the_chosen_node_down() {
    let mut trial = Trial::new(5, 3, 3, Workload::default());
    let intent = Intent::ScaleOut { service: trial.service.clone(), replicas: 4, target: None };
    trial.drive(&intent, Death::Never, &mut quiet);
    assert_eq!(trial.outcome, Some(Outcome::Done), "{:#?}", trial.log);
    assert!(trial.settle(4).is_empty());

    let mut trial = Trial::new(6, 3, 3, Workload::default());
    let node = trial.a_node();
    let on_node: BTreeSet<TaskId> = trial
        .model
        .serving(&trial.service)
        .filter(|task| task.node.as_ref() == Some(&node))
        .map(|task| task.id.clone())
        .collect();
    trial.floor = 2;
    let intent = Intent::ScaleIn { service: trial.service.clone(), node };
    trial.drive(&intent, Death::Never, &mut quiet);
    assert_eq!(trial.outcome, Some(Outcome::Done), "{:#?}", trial.log);
    let gone = trial.settle(2);
    assert_eq!(gone.len(), 1);
    assert!(gone.is_subset(&on_node), "{:#?}", trial.log);
}
