//! Every action against the model of Swarm, interrupted at every single command: by a crash before it was sent, by a
//! crash after it was carried out but before anybody knew, and by an operator, a node or a container in between.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use swarmguard_common::domain::{NodeId, ServiceId, TaskId};
use swarmguard_core::{
    action::{self, Ages, Context, Intent, Next, Order, Outcome, Tuning, spec},
    command::{Command, CommandResult},
    swarm::Availability,
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
}

impl Process {
    fn new(number: usize) -> Self {
        Self {
            holder: format!("holder-{number}"),
            ages: Ages::default(),
            last: None,
            tuning: Tuning::default(),
        }
    }
}

/// What happens at one command.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    CrashBefore,
    CrashAfter,
    LostAnswer,
    Operator(Meddling),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Meddling {
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
}

const MEDDLING: [Meddling; 12] = [
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
];

struct Stage {
    model: SwarmModel,
    service: ServiceId,
    source: NodeId,
    before: Value,
    tasks: BTreeSet<TaskId>,
    on_source: BTreeSet<TaskId>,
    least: usize,
    codes: Vec<String>,
    commands: usize,
}

struct Ending {
    outcome: Option<Outcome>,
    commands: usize,
}

impl Stage {
    fn new(seed: u64, nodes: u64, replicas: u64, workload: Workload) -> Self {
        let mut model = SwarmModel::new(seed, 1, nodes - 1);
        let service = model.create_service("web", replicas, &[], Workload::default());
        let until = model.now + Duration::from_secs(6);
        model.advance(until);
        // An operator's own update, so that there is a PreviousSpec to keep.
        model
            .operator_update(&service, |spec| spec["Labels"]["release"] = json!("2"))
            .expect("current version");
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
            least: tasks.len(),
            codes: Vec::new(),
            commands: 0,
            model,
            service,
            source,
            tasks,
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(TICK_MS) {
            let until = self.model.now + Duration::from_millis(TICK_MS);
            self.model.advance(until);
            self.least = self.least.min(self.model.serving(&self.service).count());
        }
    }

    fn order(&self, intent: Intent) -> Order {
        Order {
            intent,
            token: "a1".into(),
            holder: "holder-0".into(),
            cooldown: Duration::from_secs(2),
            reason: "a test".into(),
        }
    }

    /// Runs an intent to its end, with one fault at the `at`th command.
    fn run(&mut self, intent: Intent, at: usize, fault: Fault) -> Ending {
        let own = SwarmModel::node_id(1);
        let order = self.order(intent);
        let begun = action::begin(&order, &self.model.snapshot(&own)).expect("nothing stands against it");
        let mut process = Process::new(0);
        let Next::Do(command) = begun.next else { panic!("an action begins with a command") };
        let mut crashed = self.execute(&mut process, command, at, fault);
        let mut outcome = None;
        let end = self.model.now + Duration::from_secs(PATIENCE_S);
        let mut number = 1;
        while self.model.now < end {
            if crashed {
                process = Process::new(number);
                number += 1;
                crashed = false;
                self.pass(3_000);
            }
            self.pass(150);
            let snapshot = self.model.snapshot(&own);
            process.ages.update(&snapshot, self.model.now);
            let mut idle = true;
            for object in snapshot.records.values() {
                let context = Context {
                    holder: &process.holder,
                    since: process.ages.since(object, self.model.now),
                    last: process.last.as_ref().map(|(command, result)| (command, result)),
                    tuning: &process.tuning,
                };
                let step = action::step(object, &snapshot, self.model.now, &context);
                for note in step.notes {
                    if self.codes.iter().all(|code| code != note.code) {
                        self.codes.push(note.code.into());
                    }
                }
                match step.next {
                    Next::Do(command) => {
                        idle = false;
                        crashed = self.execute(&mut process, command, at, fault);
                        break;
                    }
                    Next::Start { intent, token } => {
                        let order = Order { token, ..self.order(intent) };
                        if let Ok(step) = action::begin(&order, &snapshot)
                            && let Next::Do(command) = step.next
                        {
                            idle = false;
                            crashed = self.execute(&mut process, command, at, fault);
                            break;
                        }
                    }
                    Next::Over { outcome: ended, .. }
                        if object.name.contains("-act-") || object.name.contains("-drain-") =>
                    {
                        outcome = Some(ended);
                    }
                    _ => {}
                }
            }
            if idle && snapshot.records.is_empty() {
                break;
            }
        }
        self.pass(8_000);
        Ending { outcome, commands: self.commands }
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
        match fault {
            Fault::CrashAfter => return true,
            Fault::LostAnswer => {
                let lost = swarmguard_core::command::CommandError::Unavailable("timed out".into());
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
                self.model.operator_update(&service, |spec| *spec = before).expect("current version")
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
        }
    }

    /// Nothing of ours is left anywhere.
    fn check_clean(&self, story: &str) {
        assert!(self.model.violations.is_empty(), "{story}: {:?}", self.model.violations);
        assert!(
            self.model.configs.is_empty(),
            "{story}: records are left: {:?}",
            self.model.configs.values()
        );
        if let Some(service) = self.model.services.get(&self.service) {
            assert!(!spec::is_marked(&service.spec), "{story}: the mark is left");
            assert!(
                spec::constraints(&service.spec).is_empty(),
                "{story}: a constraint is left: {}",
                service.spec
            );
            let previous = service.previous_spec.as_ref().expect("the operator updated it once");
            assert!(!spec::is_marked(previous), "{story}: a rollback would bring the mark back");
            assert!(
                spec::constraints(previous).is_empty(),
                "{story}: a rollback would bring a constraint back"
            );
        }
    }

    fn check_node(&self, story: &str, availability: Availability) {
        for node in self.model.nodes.values() {
            let expected = if node.id == self.source { availability } else { Availability::Active };
            assert_eq!(node.availability(), expected, "{story}: availability of {}", node.id);
        }
    }

    fn check_spec(&self, story: &str) {
        let now = &self.model.services[&self.service].spec;
        assert!(spec::same(now, &self.before), "{story}: spec {now} was {}", self.before);
    }

    fn serving(&self) -> BTreeSet<TaskId> {
        self.model.serving(&self.service).map(|task| task.id.clone()).collect()
    }

    /// After a migration: exactly one replica left the source, or, if it was undone, all are as good as before.
    fn check_replicas(&self, story: &str, outcome: Option<&Outcome>) {
        let serving = self.serving();
        assert_eq!(serving.len(), self.tasks.len(), "{story}: replicas");
        assert!(self.least >= self.tasks.len(), "{story}: capacity fell to {}", self.least);
        if outcome == Some(&Outcome::Done) {
            let gone: BTreeSet<&TaskId> = self.tasks.difference(&serving).collect();
            assert_eq!(gone.len(), 1, "{story}: tasks gone");
            assert!(gone.is_subset(&self.on_source.iter().collect()), "{story}: the wrong one went");
        }
    }

    fn migrate(&self) -> Intent {
        Intent::Migrate { service: self.service.clone(), source: self.source.clone(), target: None }
    }
}

/// Nodes and replicas: a single one, one each, several on the source, many.
const SHAPES: [(u64, u64); 5] = [(3, 1), (3, 2), (3, 3), (2, 4), (3, 7)];

#[test]
fn a_surge_moves_one_replica_and_leaves_everything_as_it_was() {
    for (nodes, replicas) in SHAPES {
        let mut stage = Stage::new(1, nodes, replicas, Workload::default());
        let ending = stage.run(stage.migrate(), usize::MAX, Fault::None);
        let story = format!("{replicas} on {nodes}: {:?}", stage.codes);
        assert_eq!(ending.outcome, Some(Outcome::Done), "{story}");
        stage.check_clean(&story);
        stage.check_node(&story, Availability::Active);
        stage.check_spec(&story);
        stage.check_replicas(&story, ending.outcome.as_ref());
        let phases = [
            "source_paused",
            "surged",
            "successor_running",
            "successor_healthy",
            "settled",
            "marked",
            "balancers_drained",
            "removed",
            "spec_closed",
            "unpaused",
            "done",
        ];
        let mut heard = stage.codes.iter();
        for phase in phases {
            assert!(heard.any(|code| code == phase), "{story}: {phase} is missing or out of order");
        }
    }
}

#[test]
fn a_coordinator_that_dies_at_any_command_leaves_nothing_broken() {
    for (nodes, replicas) in SHAPES {
        let commands = {
            let mut stage = Stage::new(1, nodes, replicas, Workload::default());
            stage.run(stage.migrate(), usize::MAX, Fault::None).commands
        };
        assert!(commands >= 12, "a surge takes a dozen calls, not {commands}");
        for at in 0..commands {
            for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::LostAnswer] {
                let mut stage = Stage::new(at as u64, nodes, replicas, Workload::default());
                let ending = stage.run(stage.migrate(), at, fault);
                let story = format!("{replicas} on {nodes}, {fault:?} at {at}: {:?}", stage.codes);
                stage.check_clean(&story);
                stage.check_node(&story, Availability::Active);
                stage.check_spec(&story);
                stage.check_replicas(&story, ending.outcome.as_ref());
                let begun = at > 0 || fault != Fault::CrashBefore;
                assert_eq!(ending.outcome.is_some(), begun, "{story}");
            }
        }
    }
}

#[test]
fn whatever_others_do_in_between_is_respected_and_nothing_of_ours_is_left() {
    for (nodes, replicas) in [(3, 1), (3, 3), (2, 4)] {
        for at in 0..20 {
            for meddling in MEDDLING {
                let mut stage = Stage::new(at as u64, nodes, replicas, Workload::default());
                let ending = stage.run(stage.migrate(), at, Fault::Operator(meddling));
                if at >= ending.commands {
                    continue;
                }
                // Rollouts go on, and managers believe in a silent node for 15 s before they replace its tasks.
                stage.pass(40_000);
                let story = format!(
                    "{replicas} on {nodes}, {meddling:?} at {at}: {:?} {:?}",
                    ending.outcome, stage.codes
                );
                check_meddled(&stage, meddling, replicas, &story);
            }
        }
    }
}

fn check_meddled(stage: &Stage, meddling: Meddling, replicas: u64, story: &str) {
    stage.check_clean(story);
    let drained = meddling == Meddling::SourceDrained;
    stage.check_node(story, if drained { Availability::Drain } else { Availability::Active });
    let Some(service) = stage.model.services.get(&stage.service) else {
        assert_eq!(meddling, Meddling::ServiceRemoved, "{story}");
        return;
    };
    let expected = if meddling == Meddling::Scale { replicas + 2 } else { replicas };
    assert_eq!(service.replicas(), expected, "{story}");
    assert_eq!(stage.serving().len() as u64, expected, "{story}");
    let previous = service.previous_spec.as_ref().and_then(spec::replicas);
    assert_ne!(previous, Some(replicas + 1), "{story}: a rollback would bring our replica back");
    match meddling {
        Meddling::NewImage => {
            assert_eq!(service.spec["TaskTemplate"]["ContainerSpec"]["Image"], "web:2", "{story}")
        }
        Meddling::ServiceLabel => assert_eq!(service.spec["Labels"]["note"], "x", "{story}"),
        Meddling::Scale => {}
        _ => stage.check_spec(story),
    }
    // What the operator does may cost capacity by itself: a stop-first rollout, a drained or dead node, a dead task.
    let harmless = matches!(
        meddling,
        Meddling::Scale | Meddling::DeployAgain | Meddling::ServiceLabel | Meddling::RecordsRemoved
    );
    if harmless {
        assert!(stage.least as u64 >= replicas, "{story}: capacity fell to {}", stage.least);
    }
}

#[test]
fn a_successor_that_never_becomes_healthy_is_taken_back_without_touching_the_others() {
    for (nodes, replicas) in SHAPES {
        let sick = Workload { failing_starts: 1_000, ..Workload::default() };
        let slow = Workload { healthy_ms: 400_000, ..Workload::default() };
        for (name, workload) in [("sick", sick), ("slow", slow)] {
            let mut stage = Stage::new(5, nodes, replicas, workload);
            let ending = stage.run(stage.migrate(), usize::MAX, Fault::None);
            let story = format!("{replicas} on {nodes}, {name}: {:?}", stage.codes);
            assert!(matches!(ending.outcome, Some(Outcome::Undone { .. })), "{story}: {:?}", ending.outcome);
            stage.check_clean(&story);
            stage.check_node(&story, Availability::Active);
            stage.check_spec(&story);
            if name == "sick" {
                assert_eq!(stage.serving(), stage.tasks, "{story}");
            }
            assert_eq!(stage.serving().len(), stage.tasks.len(), "{story}");
            assert!(stage.least >= stage.tasks.len(), "{story}: capacity fell to {}", stage.least);
        }
    }
}

#[test]
fn scaling_in_removes_a_replica_of_the_chosen_node_and_no_other() {
    for (nodes, replicas) in [(3, 2), (3, 3), (2, 4), (3, 7)] {
        let commands = {
            let mut stage = Stage::new(1, nodes, replicas, Workload::default());
            let intent = Intent::ScaleIn { service: stage.service.clone(), node: stage.source.clone() };
            stage.run(intent, usize::MAX, Fault::None).commands
        };
        for at in 0..=commands {
            for fault in [Fault::CrashBefore, Fault::CrashAfter] {
                let mut stage = Stage::new(at as u64, nodes, replicas, Workload::default());
                let intent = Intent::ScaleIn { service: stage.service.clone(), node: stage.source.clone() };
                let ending = stage.run(intent, at, fault);
                let story = format!("{replicas} on {nodes}, {fault:?} at {at}: {:?}", stage.codes);
                stage.check_clean(&story);
                stage.check_node(&story, Availability::Active);
                let Some(outcome) = ending.outcome else {
                    assert_eq!(at, 0, "{story}");
                    continue;
                };
                assert_eq!(outcome, Outcome::Done, "{story}");
                let serving = stage.serving();
                let gone: BTreeSet<&TaskId> = stage.tasks.difference(&serving).collect();
                assert_eq!((gone.len(), serving.len() as u64), (1, replicas - 1), "{story}");
                assert!(gone.is_subset(&stage.on_source.iter().collect()), "{story}: the wrong one went");
                let expected = spec::with_replicas(stage.before.clone(), replicas - 1);
                assert!(spec::same(&stage.model.services[&stage.service].spec, &expected), "{story}");
            }
        }
    }
}

#[test]
fn scaling_out_goes_to_the_target_where_steering_can_reach_it() {
    for target in 1..=5 {
        let target = SwarmModel::node_id(target);
        let mut stage = Stage::new(3, 5, 2, Workload::default());
        let hosts: BTreeSet<NodeId> =
            stage.model.serving(&stage.service).filter_map(|task| task.node.clone()).collect();
        let intent =
            Intent::ScaleOut { service: stage.service.clone(), replicas: 3, target: Some(target.clone()) };
        let ending = stage.run(intent, usize::MAX, Fault::None);
        let story = format!("to {target}: {:?}", stage.codes);
        assert_eq!(ending.outcome, Some(Outcome::Done), "{story}");
        stage.check_clean(&story);
        stage.check_node(&story, Availability::Active);
        let serving = stage.serving();
        assert!(stage.tasks.is_subset(&serving), "{story}: nobody is replaced");
        let new = serving.difference(&stage.tasks).next().expect("one more");
        if !hosts.contains(&target) {
            assert_eq!(stage.model.tasks[new].node.as_ref(), Some(&target), "{story}");
        }
    }
}

#[test]
fn a_drain_moves_every_service_first_and_drains_then() {
    let commands = {
        let mut stage = Stage::new(1, 3, 3, Workload::default());
        let node = stage.source.clone();
        stage.run(Intent::Drain { node }, usize::MAX, Fault::None).commands
    };
    for at in 0..=commands {
        let mut stage = Stage::new(at as u64, 3, 3, Workload::default());
        let node = stage.source.clone();
        let ending = stage.run(Intent::Drain { node }, at, Fault::CrashAfter);
        let story = format!("crash at {at}: {:?}", stage.codes);
        assert_eq!(ending.outcome, Some(Outcome::Done), "{story}");
        stage.check_clean(&story);
        stage.check_node(&story, Availability::Drain);
        stage.check_spec(&story);
        stage.check_replicas(&story, None);
        let left = stage.model.serving(&stage.service).any(|task| task.node.as_ref() == Some(&stage.source));
        assert!(!left, "{story}: a replica stayed");
    }
}
