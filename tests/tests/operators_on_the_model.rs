//! What operators order, through the brain and against the Swarm model: it is done to the end, also when the brain is
//! replaced on the way, no service ever has fewer healthy replicas than before, and nothing is left behind.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use swarmguard_common::{
    domain::{BasisPoints, NodeId, ServiceId},
    time::Time,
    wire::agent::{Hello, NodeLoad, Report, TaskIntro, TaskLoad, ToCoordinator},
};
use swarmguard_core::{
    brain::{AgentEvent, AgentInput, Brain, ConnectionId, Input, NotTaken, OperatorCommand, Settings, Wish},
    swarm::{Availability, UpdateState},
};
use swarmguard_tests::swarm_model::{SwarmModel, TICK_MS, Workload};

const WORKLOAD: Workload =
    Workload { prepare_ms: 200, healthy_ms: 800, stop_ms: 500, failing_starts: 0, runs_ms: None };

/// A service to begin with: name, replicas, labels.
type Wanted<'a> = (&'a str, u64, &'a [(&'a str, &'a str)]);

struct Stage {
    model: SwarmModel,
    brain: Brain,
    own: NodeId,
    lives: u64,
    reports: u64,
    read_at: Time,
    services: Vec<ServiceId>,
    /// Fewest healthy replicas that each service may have.
    floor: BTreeMap<ServiceId, usize>,
    journal: Vec<String>,
}

impl Stage {
    fn new(workers: u64, services: &[Wanted<'_>]) -> Self {
        let mut model = SwarmModel::new(7, 1, workers);
        let made = services
            .iter()
            .map(|(name, replicas, labels)| model.create_service(name, *replicas, labels, WORKLOAD));
        let services: Vec<ServiceId> = made.collect();
        model.advance(model.now + Duration::from_secs(20));
        let own = model.leader.clone();
        let floor = services.iter().map(|id| (id.clone(), model.serving(id).count())).collect();
        let mut stage = Self {
            brain: Brain::new(Settings::new("first.1")),
            own,
            lives: 1,
            reports: 0,
            read_at: Time::ZERO,
            services,
            floor,
            journal: Vec::new(),
            model,
        };
        stage.connect();
        stage.pass(Duration::from_secs(8));
        stage
    }

    /// Another brain takes over, and knows nothing.
    fn replace_brain(&mut self) {
        self.lives += 1;
        self.brain = Brain::new(Settings::new(format!("life.{}", self.lives)));
        self.read_at = Time::ZERO;
        self.connect();
    }

    fn connect(&mut self) {
        for node in self.model.nodes.keys().cloned().collect::<Vec<_>>() {
            let hello = Hello {
                node: node.clone(),
                epoch: self.lives,
                hostname: node.to_string(),
                version: "test".into(),
                cpu_millis: 4_000,
                memory_bytes: 8 << 30,
                link_mbps: Some(1_000),
                blind: false,
            };
            self.agent(&node, AgentEvent::Connected(hello));
        }
    }

    fn agent(&mut self, node: &NodeId, what: AgentEvent) {
        let input = AgentInput { node: node.clone(), connection: ConnectionId(self.lives), what };
        self.brain.handle(self.model.now, Input::Agent(input));
    }

    fn report(&mut self) {
        self.reports += 1;
        for node in self.model.nodes.keys().cloned().collect::<Vec<_>>() {
            let here =
                self.model.tasks.values().filter(|task| task.serves() && task.node.as_ref() == Some(&node));
            let tasks: Vec<_> = here.cloned().collect();
            let mut loads = Vec::new();
            for task in tasks {
                let Some(container) = task.container() else { continue };
                let handle = u32::try_from(task.number + 1).expect("few");
                let intro = TaskIntro {
                    handle,
                    container,
                    task: Some(task.id.clone()),
                    service: Some(task.service.clone()),
                    cpu_limit_millis: None,
                    memory_limit_bytes: None,
                    healthcheck: Some(true),
                    local_volumes: Vec::new(),
                };
                self.agent(&node, AgentEvent::Message(ToCoordinator::Task(intro)));
                let share = Some(BasisPoints::from_percent(10));
                let load =
                    TaskLoad { handle, cpu: share, memory: share, network: share, ..TaskLoad::default() };
                loads.push(TaskLoad { cpu_millis: 400, ..load });
            }
            let share = Some(BasisPoints::from_percent(20));
            let report = Report {
                epoch: self.lives,
                seq: self.reports,
                node: NodeLoad { cpu: share, memory: share, ..NodeLoad::default() },
                tasks: loads,
            };
            self.agent(&node, AgentEvent::Report(report));
        }
    }

    fn pass(&mut self, duration: Duration) {
        let end = self.model.now + duration;
        while self.model.now < end {
            self.step();
        }
    }

    fn step(&mut self) {
        self.model.advance(self.model.now + Duration::from_millis(TICK_MS));
        let now = self.model.now;
        if now.as_millis() % 250 < TICK_MS {
            self.report();
        }
        let rhythm = match self.brain.snapshot_wish() {
            Wish::Usual => Duration::from_secs(1),
            Wish::Within(rhythm) => rhythm,
            Wish::Now => Duration::ZERO,
        };
        if now - self.read_at >= rhythm {
            self.read_at = now;
            self.brain.handle(now, Input::Snapshot(Arc::new(self.model.snapshot(&self.own))));
        }
        self.brain.handle(now, Input::Tick);
        self.poll();
        for (service, least) in &self.floor {
            let serving = self.model.serving(service).count();
            assert!(
                serving >= *least,
                "{service} has {serving} healthy of {least}\n{}",
                self.journal.join("\n")
            );
        }
    }

    fn poll(&mut self) {
        while let Some((id, command)) = self.brain.poll_command() {
            let result = self.model.execute(&command);
            self.brain.handle(self.model.now, Input::Answer { id, result });
        }
        while let Some(entry) = self.brain.poll_entry() {
            self.journal.push(format!("{} {:?} {}: {}", self.model.now, entry.kind, entry.code, entry.text));
        }
        while self.brain.poll_agent().is_some() {}
    }

    fn order(&mut self, command: OperatorCommand) -> Result<(), NotTaken> {
        let answer = self.brain.operator(self.model.now, "ops", command).map(|_| ());
        self.poll();
        answer
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let end = self.model.now + Duration::from_secs(600);
        while !done(self) {
            assert!(self.model.now < end, "never: {what}\n{}", self.journal.join("\n"));
            self.step();
        }
    }

    /// No action is under way; tombstones may stand, and do no harm.
    fn is_idle(&self) -> bool {
        self.brain.actions(self.model.now).iter().all(|action| action.state == "over")
    }

    fn nodes_of(&self, service: usize) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> =
            self.model.serving(&self.services[service]).filter_map(|task| task.node.clone()).collect();
        nodes.sort();
        nodes
    }
}

const SURGE: &[(&str, &str)] = &[("swarmguard.enable", "true"), ("swarmguard.migrate", "surge")];

#[test]
fn a_drained_node_is_left_by_all_before_it_is_drained() {
    // Unprotected services and singletons leave too: the operator asked for it.
    for replaced in [false, true] {
        let mut stage = Stage::new(3, &[("a", 3, SURGE), ("b", 1, SURGE), ("c", 2, &[])]);
        let node = stage.nodes_of(1)[0].clone();
        let specs: Vec<_> = stage.services.iter().map(|id| stage.model.services[id].spec.clone()).collect();
        stage.order(OperatorCommand::Drain { node: node.clone() }).expect("nothing stands against it");
        if replaced {
            stage.until("a first replica is on its way", |stage| {
                stage.journal.iter().any(|line| line.contains("source_paused"))
            });
            stage.pass(Duration::from_millis(1_500));
            stage.replace_brain();
        }
        stage.until("drained", |stage| {
            let left = stage
                .model
                .tasks
                .values()
                .filter(|task| task.serves())
                .all(|task| task.node.as_ref() != Some(&node));
            let drained = stage.model.nodes[&node].availability() == Availability::Drain;
            assert!(left || !drained, "drained before all had left\n{}", stage.journal.join("\n"));
            drained
        });
        stage.until("idle", Stage::is_idle);
        for (id, spec) in stage.services.iter().zip(specs) {
            assert_eq!(stage.model.services[id].spec, spec, "{}", stage.journal.join("\n"));
        }
        let others = stage.model.nodes.values().filter(|other| other.id != node);
        assert!(others.into_iter().all(|node| node.availability() == Availability::Active));
    }
}

#[test]
fn a_drain_that_would_lose_data_is_refused_and_names_the_service() {
    let mut stage = Stage::new(2, &[("db", 1, SURGE)]);
    let id = stage.services[0].clone();
    let mount = serde_json::json!([{"Type": "volume", "Source": "data", "Target": "/data"}]);
    stage
        .model
        .operator_update(&id, |spec| spec["TaskTemplate"]["ContainerSpec"]["Mounts"] = mount)
        .expect("current");
    // The update stops the one replica first, as the operator chose.
    stage.floor.insert(id, 0);
    stage.pass(Duration::from_secs(30));
    let node = stage.nodes_of(0)[0].clone();
    let refused =
        stage.order(OperatorCommand::Drain { node: node.clone() }).expect_err("its data would stay behind");
    assert_eq!(refused.code, "services_stay");
    assert!(refused.text.contains("db: its data stays behind"), "{refused}");
    assert_eq!(stage.model.nodes[&node].availability(), Availability::Active);
}

#[test]
fn a_node_that_hosts_a_balancer_of_ours_is_drained_too() {
    let ours: &[(&str, &str)] = &[("swarmguard.role", "balancer")];
    let mut stage = Stage::new(3, &[("a", 2, SURGE), ("lb", 2, ours)]);
    // The final drain stops it, as Swarm does.
    stage.floor.insert(stage.services[1].clone(), 0);
    let node = stage.nodes_of(1)[0].clone();
    stage.order(OperatorCommand::Drain { node: node.clone() }).expect("nothing stands against it");
    stage.until("drained", |stage| {
        stage.is_idle() && stage.model.nodes[&node].availability() == Availability::Drain
    });
    stage.until("the balancer runs elsewhere", |stage| stage.nodes_of(1).len() == 2);
    assert!(!stage.nodes_of(0).contains(&node));
}

#[test]
fn a_drain_is_taken_back_at_any_moment_without_costing_a_replica() {
    for moment in ["source_paused", "surged", "marked", "balancers_drained", "spec_closed"] {
        for replaced in [false, true] {
            let mut stage = Stage::new(3, &[("a", 3, SURGE), ("b", 1, SURGE), ("c", 2, &[])]);
            let node = stage.nodes_of(1)[0].clone();
            let specs: Vec<_> =
                stage.services.iter().map(|id| stage.model.services[id].spec.clone()).collect();
            stage.order(OperatorCommand::Drain { node: node.clone() }).expect("nothing stands against it");
            stage.until(moment, |stage| stage.journal.iter().any(|line| line.contains(moment)));
            let cancel = OperatorCommand::Cancel { service: None, node: Some(node.clone()), action: None };
            stage.order(cancel).expect("it is under way");
            if replaced {
                stage.pass(Duration::from_millis(400));
                stage.replace_brain();
            }
            stage.until("idle", Stage::is_idle);
            let story = stage.journal.join("\n");
            assert_eq!(stage.model.nodes[&node].availability(), Availability::Active, "{moment}\n{story}");
            for (id, spec) in stage.services.iter().zip(specs) {
                assert_eq!(stage.model.services[id].spec, spec, "{moment}\n{story}");
            }
            assert!(story.contains("Action undone: cancelled"), "{moment}\n{story}");
        }
    }
}

#[test]
fn a_drain_that_a_service_does_not_let_end_is_given_up() {
    let mut stage = Stage::new(3, &[("a", 1, SURGE), ("b", 1, SURGE)]);
    let node = stage.nodes_of(0)[0].clone();
    let stuck = stage.services[0].clone();
    // A rollout of somebody else that stands half done.
    stage.model.services.get_mut(&stuck).expect("there").update_state = Some(UpdateState::Paused);
    stage.order(OperatorCommand::Drain { node: node.clone() }).expect("nothing stands against it yet");
    // The node may be the only manager, which is left without a pause.
    stage.until("under way", |stage| !stage.is_idle());
    stage.until("given up", Stage::is_idle);
    assert_eq!(stage.model.nodes[&node].availability(), Availability::Active);
    let story = stage.journal.join("\n");
    assert!(story.contains("service_stays") && story.contains("did not leave"), "{story}");
}

#[test]
fn a_replica_goes_where_the_operator_says() {
    let mut stage = Stage::new(3, &[("a", 1, SURGE)]);
    let source = stage.nodes_of(0)[0].clone();
    let target = stage.model.nodes.keys().rfind(|node| **node != source).expect("another").clone();
    let command = OperatorCommand::Migrate {
        service: stage.services[0].clone(),
        source: None,
        target: Some(target.clone()),
    };
    stage.order(command).expect("nothing stands against it");
    stage.until("moved", |stage| stage.is_idle() && stage.nodes_of(0) == [target.clone()]);
    assert_eq!(stage.model.nodes[&source].availability(), Availability::Active);
}

#[test]
fn scaling_by_hand_goes_up_at_once_and_down_one_by_one() {
    let mut stage = Stage::new(3, &[("a", 2, SURGE)]);
    let service = stage.services[0].clone();
    let scale = |replicas| OperatorCommand::Scale { service: service.clone(), replicas, node: None };
    stage.order(scale(5)).expect("unbounded");
    stage.until("five", |stage| stage.is_idle() && stage.nodes_of(0).len() == 5);
    stage.order(scale(2)).expect("unbounded");
    stage.pass(Duration::from_secs(4));
    stage.replace_brain();
    stage.until("two", |stage| stage.is_idle() && stage.nodes_of(0).len() == 2);
    stage.pass(Duration::from_secs(30));
    assert_eq!(stage.nodes_of(0).len(), 2, "and no further\n{}", stage.journal.join("\n"));
}

/// Takes the word that automation rests, to be checked with `holds`, through ten minutes, a restart and a new leader.
fn stands(order: OperatorCommand, holds: impl Fn(&Stage) -> bool) {
    let mut stage = Stage::new(3, &[("a", 2, SURGE)]);
    assert!(!holds(&stage), "not before it was said");
    stage.order(order).expect("nothing stands against it");
    let still = |stage: &mut Stage, moment: &str| {
        for _ in 0..600 {
            stage.pass(Duration::from_secs(1));
            assert!(holds(stage), "{moment}\n{}", stage.journal.join("\n"));
        }
    };
    still(&mut stage, "ten minutes");
    stage.replace_brain();
    stage.until("read", &holds);
    still(&mut stage, "a restart");
    let next = SwarmModel::node_id(2);
    stage.model.elect(&next);
    stage.own = next;
    stage.replace_brain();
    stage.until("read", &holds);
    still(&mut stage, "a new leader");
}

#[test]
fn a_pause_stands_until_an_operator_takes_it_back() {
    let paused = |stage: &Stage| {
        let services = stage.brain.services(stage.model.now);
        !services.is_empty() && services.iter().all(|service| service.paused)
    };
    stands(OperatorCommand::Pause { service: None }, paused);
    let id = SwarmModel::new(7, 1, 3).create_service("a", 2, SURGE, WORKLOAD);
    stands(OperatorCommand::Pause { service: Some(id) }, paused);
}

#[test]
fn observing_stands_until_an_operator_takes_it_back() {
    stands(OperatorCommand::Observe { on: true }, |stage| {
        let explained = stage.brain.explain(stage.model.now, &stage.services[0]);
        explained.is_some_and(|explained| explained.observe)
    });
}
