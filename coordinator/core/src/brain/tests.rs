//! The brain as its callers see it: a small cluster by hand, from alert to lease and on.

mod faults;

use std::sync::Arc;

use swarmguard_common::{
    domain::{Condition, Edge},
    journal::Kind,
    wire::agent::{Alert, NodeLoad, Report, TaskIntro, TaskLoad, ToAgent, ToCoordinator},
};

use super::*;
use crate::{
    command::CommandError,
    swarm::{RecordObject, Service},
    view::testing::{World, at, hello, percent, replicated, with_label},
};

/// A brain over a world that answers its config writes as Swarm does.
struct Stage {
    brain: Brain,
    world: World,
    ms: u64,
    seq: u64,
    version: u64,
    commands: Vec<Command>,
    entries: Vec<Entry>,
    /// `n1`'s agent says nothing.
    n1_silent: bool,
    /// Swarm refuses every write.
    refuses: bool,
    /// The engine takes every write and does not answer.
    hangs: bool,
    /// What it took.
    late: Vec<Command>,
}

impl Stage {
    fn new(service: Service, settings: Settings) -> Self {
        let mut world = World::new(["n1", "n2", "n3"]);
        world.service(service).task("t1", "s1", 1, "n2").task("t2", "s1", 2, "n3");
        let brain = Brain::new(settings);
        let (commands, entries) = (Vec::new(), Vec::new());
        let mut stage = Self {
            brain,
            world,
            ms: 0,
            seq: 0,
            version: 100,
            commands,
            entries,
            n1_silent: false,
            refuses: false,
            hangs: false,
            late: Vec::new(),
        };
        stage.connect();
        stage.snapshot();
        stage
    }

    fn connect(&mut self) {
        for node in ["n1", "n2", "n3"] {
            self.agent(node, AgentEvent::Connected(hello(node)));
        }
        for (node, task, handle) in [("n2", "t1", 1), ("n3", "t2", 2)] {
            let intro = TaskIntro {
                handle,
                container: format!("c{task}").parse().expect("an ID"),
                task: None,
                service: None,
                cpu_limit_millis: None,
                memory_limit_bytes: None,
                healthcheck: None,
                local_volumes: Vec::new(),
            };
            self.agent(node, AgentEvent::Message(ToCoordinator::Task(intro)));
        }
    }

    fn agent(&mut self, node: &str, what: AgentEvent) {
        let input = AgentInput { node: node.parse().expect("an ID"), connection: ConnectionId(1), what };
        self.brain.handle(at(self.ms), Input::Agent(input));
    }

    fn snapshot(&mut self) {
        self.world.swarm.taken = at(self.ms);
        self.brain.handle(at(self.ms), Input::Snapshot(Arc::new(self.world.swarm.clone())));
        self.drain();
    }

    /// Takes everything out of the brain; config writes happen, all else is only noted.
    fn drain(&mut self) {
        while let Some((id, command)) = self.brain.poll_command() {
            let result = self.carry_out(&command);
            self.commands.push(command);
            self.brain.handle(at(self.ms), Input::Answer { id, result });
        }
        while let Some(entry) = self.brain.poll_entry() {
            self.entries.push(entry);
        }
    }

    fn carry_out(&mut self, command: &Command) -> CommandResult {
        if self.refuses {
            return Err(CommandError::Refused("a test".into()));
        }
        if self.hangs {
            self.late.push(command.clone());
            return Err(CommandError::Unavailable("a test".into()));
        }
        self.version += 1;
        let version = self.version;
        let records = &mut self.world.swarm.records;
        match command {
            Command::CreateRecord { name, labels, data } => {
                if records.contains_key(name) {
                    return Err(CommandError::Conflict(name.clone()));
                }
                let (id, labels, data) = (format!("r{version}"), labels.clone(), data.clone());
                records.insert(name.clone(), RecordObject { id, version, name: name.clone(), labels, data });
            }
            Command::UpdateRecord { name, labels, version: was, .. } => match records.get_mut(name) {
                Some(record) if record.version == *was => {
                    record.labels.clone_from(labels);
                    record.version = version;
                }
                _ => return Err(CommandError::Conflict(name.clone())),
            },
            Command::RemoveRecord { id } => records.retain(|_, record| record.id != *id),
            _ => {}
        }
        Ok(())
    }

    fn report(&mut self, node: &str, cpu: u16, task: Option<(u32, u16)>) {
        self.seq += 1;
        let load = |(handle, cpu): (u32, u16)| TaskLoad {
            handle,
            cpu: percent(cpu),
            memory: percent(10),
            network: percent(3),
            cpu_millis: u32::from(cpu) * 40,
            in_flight: Some(7),
            latency_us: Some(4_000),
            ..TaskLoad::default()
        };
        let report = Report {
            epoch: 1,
            seq: self.seq,
            node: NodeLoad { cpu: percent(cpu), memory: percent(10), ..NodeLoad::default() },
            tasks: task.map(load).into_iter().collect(),
        };
        self.agent(node, AgentEvent::Report(report));
        // What stands is said again every second.
        if node == "n2" && self.ms.is_multiple_of(1_000) && self.brain.view.any_alert() {
            self.alert(Edge::Refresh);
        }
    }

    fn alert(&mut self, edge: Edge) {
        self.seq += 1;
        let alert = Alert {
            epoch: 1,
            seq: self.seq,
            handle: 1,
            condition: Condition::CpuHigh as u8,
            edge: edge as u8,
            value: 9_000,
            age_ms: 300,
        };
        self.agent("n2", AgentEvent::Message(ToCoordinator::Alert(alert)));
        self.drain();
    }

    /// Lets time pass with this CPU of `t1`; snapshots once a second.
    fn pass(&mut self, ms: u64, cpu: u16) {
        for _ in 0..ms / 250 {
            self.ms += 250;
            if !self.n1_silent {
                self.report("n1", 10, None);
            }
            self.report("n2", cpu.max(20), Some((1, cpu)));
            self.report("n3", 11, Some((2, 5)));
            self.brain.handle(at(self.ms), Input::Tick);
            self.drain();
            if self.ms.is_multiple_of(1_000) {
                self.snapshot();
            }
        }
    }

    fn codes(&self, kind: Kind) -> Vec<&str> {
        self.entries.iter().filter(|entry| entry.kind == kind).map(|entry| entry.code.as_str()).collect()
    }
}

fn settings() -> Settings {
    Settings::new("n1.1")
}

fn hot() -> Stage {
    hot_with(replicated("s1", 2), settings())
}

fn hot_with(service: Service, settings: Settings) -> Stage {
    let mut stage = Stage::new(service, settings);
    stage.pass(1_000, 90);
    stage.alert(Edge::Raise);
    stage.pass(4_000, 90);
    stage
}

#[test]
fn an_alert_that_stands_becomes_one_decision_and_one_lease() {
    let mut stage = hot();
    assert_eq!(stage.codes(Kind::Alert), ["cpu_high_raise"]);
    assert_eq!(stage.codes(Kind::Decision), ["migrate"], "{:?}", stage.entries);
    let created: Vec<&Command> =
        stage.commands.iter().filter(|command| matches!(command, Command::CreateRecord { .. })).collect();
    assert!(
        matches!(created.first(), Some(Command::CreateRecord { name, .. }) if name == "swarmguard-act-s1"),
        "{created:?}"
    );
    let decision = stage.entries.iter().find(|entry| entry.kind == Kind::Decision).expect("there");
    assert_eq!(decision.rule.as_deref(), Some("migrate"));
    assert!(decision.action.is_some() && decision.figures["cpu_percent"] > 80.0);
    assert_eq!(decision.node, Some("n2".parse().expect("an ID")));
    stage.pass(2_000, 90);
    assert_eq!(stage.codes(Kind::Decision).len(), 1, "one action at a time");
    assert!(stage.codes(Kind::Action).contains(&"leased"));
}

#[test]
fn a_target_that_falls_silent_is_given_up_and_another_is_picked() {
    let mut stage = hot();
    let targets = |stage: &Stage| {
        let decisions = stage.entries.iter().filter(|entry| entry.kind == Kind::Decision);
        decisions.map(|entry| entry.target.as_ref().expect("steered").to_string()).collect::<Vec<_>>()
    };
    let undone = |stage: &Stage| {
        stage.commands.iter().any(|command| {
            matches!(command, Command::UpdateRecord { labels, .. }
                if labels.get("swarmguard.undone").is_some_and(|code| code == "target_lost"))
        })
    };
    assert_eq!(targets(&stage), ["n1"]);
    stage.n1_silent = true;
    stage.pass(2_500, 90);
    assert!(!undone(&stage), "the lease has not lapsed yet");
    stage.pass(1_500, 90);
    assert!(undone(&stage), "{:?}", stage.codes(Kind::Action));
    stage.pass(10_000, 90);
    assert!(stage.codes(Kind::Action).contains(&"undone"), "{:?}", stage.codes(Kind::Action));
    assert_eq!(targets(&stage), ["n1", "n3"], "no cooldown, and not the silent one");
}

#[test]
fn a_standby_and_an_observer_write_nothing() {
    let mut follower = Stage::new(replicated("s1", 2), settings());
    follower.world.swarm.own_node = Some("n2".parse().expect("an ID"));
    let observer = Stage::new(replicated("s1", 2), Settings { observe: true, ..settings() });
    let labelled = Stage::new(with_label(replicated("s1", 2), "observe", "true"), settings());
    for (mut stage, decisions) in [(follower, 0), (observer, 1), (labelled, 1)] {
        stage.snapshot();
        stage.pass(1_000, 90);
        stage.alert(Edge::Raise);
        stage.pass(6_000, 90);
        assert_eq!(stage.commands, [], "{:?}", stage.entries);
        assert_eq!(stage.codes(Kind::Decision).len(), decisions, "said once, not every round");
    }
}

#[test]
fn a_refusal_is_said_once_a_minute() {
    let mut stage = hot_with(with_label(replicated("s1", 2), "migrate", "off"), settings());
    assert_eq!(stage.codes(Kind::Refusal), ["migrate_off"]);
    stage.pass(50_000, 90);
    assert_eq!(stage.codes(Kind::Refusal), ["migrate_off"]);
    stage.pass(12_000, 90);
    assert_eq!(stage.codes(Kind::Refusal), ["migrate_off", "migrate_off"]);
    let explanation = stage.brain.explain(at(stage.ms), &"s1".parse().expect("an ID")).expect("there");
    let verdict = explanation.verdict.expect("judged");
    assert_eq!((&*verdict.rule, explanation.alerts.len()), ("migrate_off", 1));
    assert!(verdict.otherwise.contains("swarmguard.migrate=auto"));
}

#[test]
fn a_lease_that_somebody_else_took_is_respected() {
    let mut stage = Stage::new(replicated("s1", 2), settings());
    stage.pass(1_000, 90);
    stage.alert(Edge::Raise);
    stage.pass(2_000, 90);
    // Another coordinator creates the record between two readings of ours.
    let (id, version) = ("r1".into(), 1);
    let name = "swarmguard-act-s1".to_string();
    let theirs =
        RecordObject { id, version, name: name.clone(), labels: Default::default(), data: Vec::new() };
    stage.world.swarm.records.insert(name, theirs.clone());
    stage.pass(4_000, 90);
    assert_eq!(stage.world.swarm.records.values().collect::<Vec<_>>(), [&theirs], "theirs is untouched");
}

#[test]
fn pauses_are_written_down_and_hold_until_resumed() {
    let mut stage = Stage::new(replicated("s1", 2), settings());
    let service: ServiceId = "s1".parse().expect("an ID");
    let pause = OperatorCommand::Pause { service: Some(service.clone()) };
    stage.brain.operator(at(0), "ops", pause).expect("taken");
    stage.drain();
    stage.pass(1_000, 90);
    assert!(stage.world.swarm.records.contains_key("swarmguard-settings"));
    // A successor knows nothing but what Swarm shows.
    stage.brain = Brain::new(settings());
    stage.connect();
    stage.snapshot();
    stage.alert(Edge::Raise);
    stage.pass(5_000, 90);
    assert_eq!(stage.codes(Kind::Refusal), ["paused"]);
    let resume = OperatorCommand::Resume { service: Some(service) };
    stage.brain.operator(at(stage.ms), "ops", resume).expect("taken");
    stage.drain();
    stage.pass(2_000, 90);
    assert!(stage.codes(Kind::Decision).contains(&"migrate"), "{:?}", stage.codes(Kind::Decision));
}

#[test]
fn operators_commands_pass_the_same_protection() {
    let mut stage = Stage::new(replicated("s1", 2), settings());
    stage.pass(1_000, 20);
    let service: ServiceId = "s1".parse().expect("an ID");
    let migrate = |service: &ServiceId, source: Option<&str>| OperatorCommand::Migrate {
        service: service.clone(),
        source: source.map(|id| id.parse().expect("an ID")),
        target: None,
    };
    let try_it = |stage: &mut Stage, command| {
        let result = stage.brain.operator(at(stage.ms), "ops", command);
        result.map(|accepted| accepted.action.is_some()).map_err(|refused| refused.code)
    };
    assert_eq!(
        try_it(&mut stage, migrate(&"nope".parse().expect("an ID"), None)),
        Err("unknown_service".into())
    );
    assert_eq!(try_it(&mut stage, migrate(&service, None)), Err("which_node".into()));
    assert_eq!(try_it(&mut stage, migrate(&service, Some("n1"))), Err("stale".into()));
    let none = OperatorCommand::Scale { service: service.clone(), replicas: 0, node: None };
    assert_eq!(try_it(&mut stage, none), Err("bounds".into()));
    assert_eq!(try_it(&mut stage, migrate(&service, Some("n2"))), Ok(true));
    assert_eq!(try_it(&mut stage, migrate(&service, Some("n3"))), Err("busy".into()));
    stage.world.swarm.own_node = Some("n3".parse().expect("an ID"));
    stage.ms += 250;
    stage.snapshot();
    assert_eq!(try_it(&mut stage, migrate(&service, Some("n2"))), Err("not_leader".into()));
}

#[test]
fn leases_and_agents_are_journalled_as_they_change() {
    let mut stage = Stage::new(replicated("s1", 2), settings());
    stage.pass(1_000, 20);
    stage.ms += 5_000;
    stage.brain.handle(at(stage.ms), Input::Tick);
    stage.drain();
    stage.pass(500, 20);
    let codes = stage.codes(Kind::Lease);
    for (code, count) in [("agent_came", 3), ("lease_granted", 3), ("lease_lapsed", 3), ("lease_renewed", 3)]
    {
        assert_eq!(codes.iter().filter(|known| **known == code).count(), count, "{code} in {codes:?}");
    }
}

#[test]
fn alerts_are_acknowledged_and_thresholds_told() {
    let mut stage = Stage::new(with_label(replicated("s1", 2), "cpu.high", "60"), settings());
    stage.alert(Edge::Raise);
    let mut acknowledged = Vec::new();
    let mut thresholds = 0;
    while let Some(message) = stage.brain.poll_agent() {
        match message.what {
            AgentOrder::Send(ToAgent::Acknowledge { seq }) => acknowledged.push(seq),
            AgentOrder::Send(ToAgent::Thresholds { services, .. }) => thresholds += services.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((acknowledged.as_slice(), thresholds), ([stage.seq].as_slice(), 2), "n2 and n3 host it");
}

#[test]
fn balancers_are_told_what_agents_count_until_it_is_too_old() {
    let mut stage = Stage::new(replicated("s1", 2), settings());
    stage.pass(1_000, 40);
    let task = "t1".parse().expect("an ID");
    let load = stage.brain.replica_load(at(stage.ms), &task).expect("fresh");
    assert_eq!((load.in_flight, load.latency_us), (Some(7), Some(4_000)));
    assert_eq!(stage.brain.replica_load(at(stage.ms + 60_000), &task), None);
}

#[test]
fn an_old_reading_of_swarm_is_not_acted_on() {
    for (readings, acts) in [(true, true), (false, false)] {
        let mut stage = Stage::new(with_label(replicated("s1", 2), "act-after", "8s"), settings());
        stage.pass(1_000, 90);
        stage.alert(Edge::Raise);
        for _ in 0..48 {
            stage.ms += 250;
            stage.report("n1", 10, None);
            stage.report("n2", 90, Some((1, 90)));
            stage.report("n3", 11, Some((2, 5)));
            stage.brain.handle(at(stage.ms), Input::Tick);
            if readings {
                stage.snapshot();
            }
        }
        stage.drain();
        assert_eq!(!stage.commands.is_empty(), acts, "readings: {readings}");
    }
}

#[test]
fn a_lost_job_is_noted_then_run_again_and_counted() {
    let mut job = replicated("s1", 1);
    job.mode = crate::swarm::Mode::ReplicatedJob { concurrent: 1, completions: 1 };
    job.job_iteration = Some(0);
    let mut stage = Stage::new(with_label(job, "job.retries", "2"), settings());
    let (id, lost): (ServiceId, NodeId) = ("s1".parse().expect("an ID"), "n2".parse().expect("an ID"));
    stage.world.swarm.tasks.retain(|task, _| task.as_str() == "t1");
    for iteration in 0..3 {
        stage.world.swarm.services.get_mut(&id).expect("there").job_iteration = Some(iteration);
        let task = stage.world.swarm.tasks.values_mut().next().expect("t1");
        (task.desired, task.job_iteration) = (crate::swarm::TaskState::Complete, Some(iteration));
        stage.world.swarm.nodes.get_mut(&lost).expect("there").ready = false;
        for _ in 0..20 {
            stage.ms += 1_000;
            stage.snapshot();
        }
        if iteration == 0 {
            // A successor goes on with what it finds.
            stage.brain = Brain::new(settings());
        }
        let writes =
            stage.commands.iter().filter(|command| matches!(command, Command::WriteService { .. })).count();
        let record = &stage.world.swarm.records["swarmguard-job-s1"];
        assert_eq!(record.labels["swarmguard.attempts"], (iteration + 1).min(2).to_string());
        assert!(record.labels["swarmguard.attempt.1"].contains("host-n2"), "{:?}", record.labels);
        assert_eq!(writes > 0, iteration < 2, "iteration {iteration}: {writes} writes");
        stage.commands.clear();
    }
    assert!(stage.codes(Kind::Refusal).contains(&"job_retries"));
}

#[test]
fn scaling_in_by_several_goes_on_step_by_step_unless_somebody_raises_it() {
    let mut stage = Stage::new(replicated("s1", 4), settings());
    stage.world.task("t3", "s1", 3, "n1").task("t4", "s1", 4, "n1");
    stage.ms += 1_000;
    stage.snapshot();
    stage.pass(6_000, 20);
    let service: ServiceId = "s1".parse().expect("an ID");
    let scale = OperatorCommand::Scale { service: service.clone(), replicas: 2, node: None };
    let accepted = stage.brain.operator(at(stage.ms), "ops", scale).expect("taken");
    assert!(accepted.action.is_some());
    stage.drain();
    stage.pass(1_000, 20);
    let wish = |stage: &Stage| {
        let settings = stage.world.swarm.records.get("swarmguard-settings");
        settings.and_then(|settings| settings.labels.get("swarmguard.scale.s1").cloned())
    };
    assert_eq!(wish(&stage).as_deref(), Some("4-2"));
    // The first step is over, as Swarm shows it.
    let finish = |stage: &mut Stage, task: &str, replicas: u64| {
        stage.world.swarm.records.remove("swarmguard-act-s1");
        stage.world.swarm.tasks.remove(&task.parse().expect("an ID"));
        let mut service = replicated("s1", replicas);
        service.version += replicas;
        stage.world.service(service);
        stage.pass(5_000, 20);
    };
    finish(&mut stage, "t4", 3);
    assert!(stage.world.swarm.records.contains_key("swarmguard-act-s1"), "the second step follows");
    finish(&mut stage, "t3", 2);
    assert_eq!(wish(&stage), None);
    assert!(!stage.world.swarm.records.contains_key("swarmguard-act-s1"));
}
