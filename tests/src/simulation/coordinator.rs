//! Coordinators of the simulation: a brain with a slow, unreliable way to Swarm, that can die at any moment.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use swarmguard_common::{domain::NodeId, journal::Kind, time::Time};
use swarmguard_core::{
    brain::{AgentEvent, AgentInput, Brain, ConnectionId, Input, Settings, Wish},
    command::{Command, CommandError, CommandId, CommandResult},
    swarm::Snapshot,
};

use tokio::sync::oneshot;

use super::{World, checks::MAX_ACTIONS, network::Parcel};

/// Most that a coordinator's clock runs too fast or too slow, in millionths.
const CLOCK_DRIFT: u64 = 10_000;
/// For one replica to leave a node that is drained: short, so that drains are given up, too.
const LEAVING: Duration = Duration::from_secs(60);

/// A coordinator beside one manager.
pub(super) struct Coordinator {
    node: NodeId,
    /// `None` while it is dead.
    pub brain: Option<Brain>,
    /// Counts its lives.
    pub incarnation: u64,
    /// What its clock says when the world's says zero; another at every start.
    offset: Duration,
    /// How fast its clock runs, in millionths of the world's.
    pace: u64,
    /// When it may start after its last death.
    pub starts_at: Time,
    connections: u64,
    /// A reading that is on its way, with the time of its arrival.
    reading: Option<(Time, Arc<Snapshot>)>,
    read_at: Time,
    /// Commands on their way to Swarm, and answers on their way back.
    pub calls: VecDeque<Call>,
}

pub(super) struct Call {
    pub id: CommandId,
    pub command: Command,
    pub acts_at: Time,
    pub answers_at: Time,
    pub result: Option<CommandResult>,
    /// Where the answer goes if not to the brain.
    pub reply: Option<oneshot::Sender<CommandResult>>,
}

impl Coordinator {
    pub fn new(node: NodeId, rng: &mut fastrand::Rng) -> Self {
        Self {
            node,
            brain: None,
            incarnation: 0,
            offset: Duration::ZERO,
            pace: rng.u64(1_000_000 - CLOCK_DRIFT..=1_000_000 + CLOCK_DRIFT),
            starts_at: Time::ZERO,
            connections: 0,
            reading: None,
            read_at: Time::ZERO,
            calls: VecDeque::new(),
        }
    }

    /// What its own clock says: no two of them agree, and none runs quite right.
    pub fn clock(&self, now: Time) -> Time {
        let micros = u64::try_from((now - Time::ZERO).as_micros()).unwrap_or(u64::MAX);
        Time::ZERO + self.offset + Duration::from_micros(micros.saturating_mul(self.pace) / 1_000_000)
    }

    /// Numbers a new connection; each life has a range of its own.
    pub fn accept(&mut self) -> ConnectionId {
        self.connections += 1;
        ConnectionId((self.incarnation << 32) | self.connections)
    }

    /// Dies; commands that were sent may or may not still arrive.
    pub fn crash(&mut self, now: Time, down: Duration, in_flight_survive: bool) {
        self.brain = None;
        self.starts_at = now + down;
        self.reading = None;
        if !in_flight_survive {
            self.calls.retain(|call| call.result.is_some());
        }
    }

    fn start(&mut self, rng: &mut fastrand::Rng) {
        self.incarnation += 1;
        self.offset = Duration::from_millis(rng.u64(0..10_000_000));
        let mut settings = Settings::new(format!("{}.{}", self.node, self.incarnation));
        settings.max_actions = MAX_ACTIONS;
        settings.tuning.leaving = LEAVING;
        self.brain = Some(Brain::new(settings));
        self.read_at = Time::ZERO;
    }
}

impl World {
    pub(super) fn run_coordinators(&mut self) {
        for node in self.coordinators.keys().cloned().collect::<Vec<_>>() {
            let mut coordinator = self.coordinators.remove(&node).expect("it was there");
            self.run_coordinator(&mut coordinator);
            self.coordinators.insert(node, coordinator);
        }
    }

    fn run_coordinator(&mut self, coordinator: &mut Coordinator) {
        let up = self.swarm.nodes[&coordinator.node].up;
        if !up && coordinator.brain.is_some() {
            coordinator.crash(self.now, Duration::from_secs(2), true);
        }
        self.run_calls(coordinator);
        if up && coordinator.brain.is_none() && self.now >= coordinator.starts_at {
            coordinator.start(&mut self.rng);
        }
        self.read_swarm(coordinator);
        let now = coordinator.clock(self.now);
        if let Some(brain) = &mut coordinator.brain
            && brain.poll_timeout().is_some_and(|at| at <= now)
        {
            brain.handle(now, Input::Tick);
        }
        self.poll(coordinator);
    }

    fn read_swarm(&mut self, coordinator: &mut Coordinator) {
        let now = coordinator.clock(self.now);
        let Some(brain) = &mut coordinator.brain else { return };
        if let Some((_, snapshot)) = coordinator.reading.take_if(|(arrives, _)| *arrives <= self.now) {
            brain.handle(now, Input::Snapshot(snapshot));
        }
        let rhythm = match brain.snapshot_wish() {
            Wish::Usual => Duration::from_secs(1),
            Wish::Within(duration) => duration,
            Wish::Now => Duration::from_millis(50),
        };
        let due = self.now - coordinator.read_at >= rhythm;
        if due && coordinator.reading.is_none() && !self.network.is_blind(&coordinator.node) {
            let arrives = self.now + Duration::from_millis(self.rng.u64(5..200));
            let snapshot = Snapshot { taken: now, ..self.swarm.snapshot(&coordinator.node) };
            coordinator.reading = Some((arrives, Arc::new(snapshot)));
            coordinator.read_at = self.now;
        }
    }

    /// Commands reach Swarm, answers reach the brain.
    pub(super) fn run_calls(&mut self, coordinator: &mut Coordinator) {
        let now = self.now;
        for call in &mut coordinator.calls {
            if call.result.is_none() && call.acts_at <= now {
                let result = match self.sabotage.of_command(&call.command, &mut self.swarm) {
                    Some(command) => {
                        let result = self.swarm.execute(&command);
                        self.checks.command(now, &coordinator.node, &command, &result, &self.swarm);
                        result
                    }
                    None => Ok(()),
                };
                self.story
                    .tell(now, || format!("{}: {} -> {result:?}", coordinator.node, brief(&call.command)));
                call.result = Some(result);
            }
        }
        let mut answered = Vec::new();
        coordinator.calls.retain_mut(|call| match &call.result {
            Some(result) if call.answers_at <= now => {
                answered.push((call.id, result.clone(), call.reply.take()));
                false
            }
            _ => true,
        });
        let lost = self.network.is_blind(&coordinator.node);
        let now = coordinator.clock(now);
        for (id, result, reply) in answered {
            let result = if lost { Err(CommandError::Unavailable("timed out".into())) } else { result };
            if let Some(reply) = reply {
                // Whoever asked may be dead.
                let _ = reply.send(result);
            } else if let Some(brain) = &mut coordinator.brain {
                brain.handle(now, Input::Answer { id, result });
            }
        }
    }

    fn poll(&mut self, coordinator: &mut Coordinator) {
        let Some(brain) = &mut coordinator.brain else { return };
        while let Some(entry) = brain.poll_entry() {
            self.checks.entry(self.now, &entry);
            if entry.kind != Kind::Alert {
                self.story
                    .tell(self.now, || format!("{}: [{}] {}", coordinator.node, entry.code, entry.text));
            }
        }
        while let Some(output) = brain.poll_agent() {
            let agent = self.agents.keys().find(|node| {
                coordinator.incarnation == output.connection.0 >> 32
                    && self.connections_of(node, &coordinator.node) == Some(output.connection)
            });
            if let Some(to) = agent.cloned() {
                let parcel = Parcel::Down {
                    from: coordinator.node.clone(),
                    to,
                    connection: output.connection,
                    what: output.what,
                };
                self.network.send(self.now, parcel, &mut self.rng);
            }
        }
        let Some(brain) = &mut coordinator.brain else { return };
        while let Some((id, command)) = brain.poll_command() {
            let acts_at = self.now + Duration::from_millis(self.rng.u64(1..150));
            let answers_at = acts_at + Duration::from_millis(self.rng.u64(1..150));
            coordinator.calls.push_back(Call { id, command, acts_at, answers_at, result: None, reply: None });
            // The cruellest moments: a command just sent, whether it arrives or not.
            if self.scenario.crashes(&mut self.rng) {
                self.story
                    .tell(self.now, || format!("{}: crashes with a command in flight", coordinator.node));
                let (down, survives) = (Duration::from_millis(self.rng.u64(500..8_000)), self.rng.bool());
                coordinator.crash(self.now, down, survives);
                return;
            }
        }
    }

    pub(super) fn receive_up(
        &mut self,
        from: &NodeId,
        to: &NodeId,
        connection: ConnectionId,
        what: AgentEvent,
    ) {
        let Some(coordinator) = self.coordinators.get_mut(to) else { return };
        let now = coordinator.clock(self.now);
        // A message of an earlier life finds nobody who knows its connection.
        if connection.0 >> 32 != coordinator.incarnation {
            return;
        }
        if let Some(brain) = &mut coordinator.brain {
            brain.handle(now, Input::Agent(AgentInput { node: from.clone(), connection, what }));
        }
    }
}

fn brief(command: &Command) -> String {
    match command {
        Command::WriteService { service, version, spec } => format!(
            "write {service} at {version}: replicas {}, placement {}",
            spec["Mode"]["Replicated"]["Replicas"], spec["TaskTemplate"]["Placement"]
        ),
        Command::WriteNode { node, version, spec } => {
            format!("write {node} at {version}: {}", spec["Availability"])
        }
        Command::CreateRecord { name, labels, .. } => format!("create {name} {labels:?}"),
        Command::UpdateRecord { name, version, labels, .. } => {
            format!("update {name} at {version} {labels:?}")
        }
        other => format!("{other:?}"),
    }
}
