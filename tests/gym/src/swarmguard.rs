//! SwarmGuard itself: the real brain behind its only door, real agents, a slow way to Swarm.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use swarmguard_common::{domain::NodeId, journal::Kind as EntryKind};
use swarmguard_core::{
    brain::{Brain, Input, OperatorCommand, Settings, Wish},
    command::{Command, CommandId, CommandResult},
    rule::Rule,
    swarm::Snapshot,
};

use crate::{
    Time,
    agents::Agents,
    controller::{Act, Controller, End, Kind, Stage},
    machines::Machines,
    scenario::What,
};

/// Between two readings while nothing presses.
const READ_EVERY: Duration = Duration::from_secs(1);
/// The same at most while something does.
const READ_EAGERLY: Duration = Duration::from_millis(50);
/// A start of the program takes so long.
const RESTARTS_IN: Duration = Duration::from_secs(2);
/// Longest that a call to Swarm takes to arrive, and its answer to come back, in milliseconds.
const CALL_MS: u64 = 60;

/// A coordinator and all agents.
pub struct SwarmGuard {
    brain: Option<Brain>,
    starts_at: Time,
    lives: u64,
    own: NodeId,
    agents: Agents,
    rng: fastrand::Rng,
    reading: Option<(Time, Arc<Snapshot>)>,
    read_at: Time,
    calls: VecDeque<Call>,
    orders: Vec<OperatorCommand>,
}

struct Call {
    id: CommandId,
    command: Command,
    acts_at: Time,
    answers_at: Time,
    result: Option<CommandResult>,
}

impl SwarmGuard {
    /// Beside the manager `own`.
    pub fn new(machines: &Machines, own: NodeId, seed: u64) -> Self {
        Self {
            brain: None,
            starts_at: Time::ZERO,
            lives: 0,
            own,
            agents: Agents::new(machines),
            rng: fastrand::Rng::with_seed(seed ^ 0x0b5e),
            reading: None,
            read_at: Time::ZERO,
            calls: VecDeque::new(),
            orders: Vec::new(),
        }
    }

    fn read_swarm(&mut self, stage: &mut Stage<'_>) {
        let Some(brain) = &mut self.brain else { return };
        if let Some((_, snapshot)) = self.reading.take_if(|(arrives, _)| *arrives <= stage.now) {
            brain.handle(stage.now, Input::Snapshot(snapshot));
        }
        let rhythm = match brain.snapshot_wish() {
            Wish::Usual => READ_EVERY,
            Wish::Within(within) => within,
            Wish::Now => READ_EAGERLY,
        };
        if self.reading.is_none() && stage.now - self.read_at >= rhythm {
            let snapshot = Snapshot { taken: stage.now, ..stage.swarm.snapshot(&self.own) };
            let takes = Duration::from_millis(self.rng.u64(5..CALL_MS));
            self.reading = Some((stage.now + takes, Arc::new(snapshot)));
            self.read_at = stage.now;
        }
    }

    fn run_calls(&mut self, stage: &mut Stage<'_>) {
        for call in &mut self.calls {
            if call.result.is_none() && call.acts_at <= stage.now {
                call.result = Some(stage.swarm.execute(&call.command));
            }
        }
        let mut answered = Vec::new();
        self.calls.retain_mut(|call| {
            let is_due = call.answers_at <= stage.now;
            if let Some(result) = call.result.take_if(|_| is_due) {
                answered.push((call.id, result));
                return false;
            }
            true
        });
        for (id, result) in answered {
            if let Some(brain) = &mut self.brain {
                brain.handle(stage.now, Input::Answer { id, result });
            }
        }
    }

    fn poll(&mut self, stage: &mut Stage<'_>) {
        let Some(brain) = &mut self.brain else { return };
        while let Some(entry) = brain.poll_entry() {
            note(stage, &entry);
        }
        while let Some(output) = brain.poll_agent() {
            self.agents.hear(output);
        }
        while let Some((id, command)) = brain.poll_command() {
            let acts_at = stage.now + Duration::from_millis(self.rng.u64(1..CALL_MS));
            let answers_at = acts_at + Duration::from_millis(self.rng.u64(1..CALL_MS));
            self.calls.push_back(Call { id, command, acts_at, answers_at, result: None });
        }
    }
}

impl Controller for SwarmGuard {
    fn step(&mut self, stage: &mut Stage<'_>) {
        if stage.measured {
            self.agents.sample(stage.now, stage.machines, stage.up);
        }
        if self.brain.is_none() && stage.now >= self.starts_at {
            self.lives += 1;
            self.brain = Some(Brain::new(Settings::new(format!("{}.{}", self.own, self.lives))));
            self.read_at = Time::ZERO;
            self.agents.reconnect();
        }
        self.run_calls(stage);
        self.read_swarm(stage);
        if let Some(brain) = &mut self.brain {
            for input in self.agents.tell(stage.now, stage.machines, stage.up) {
                brain.handle(stage.now, Input::Agent(input));
            }
            for order in std::mem::take(&mut self.orders) {
                if let Err(refused) = brain.operator(stage.now, "gym", order) {
                    stage.acts.say(stage.now, format!("an order was not taken: {refused}"));
                }
            }
            if brain.poll_timeout().is_some_and(|at| at <= stage.now) {
                brain.handle(stage.now, Input::Tick);
            }
        }
        self.poll(stage);
    }

    fn happens(&mut self, what: &What, now: Time) {
        match what {
            What::Restart => {
                self.brain = None;
                self.starts_at = now + RESTARTS_IN;
                self.reading = None;
            }
            What::PauseAll => self.orders.push(OperatorCommand::Pause { service: None }),
            What::ResumeAll => self.orders.push(OperatorCommand::Resume { service: None }),
            _ => {}
        }
    }
}

/// Takes down what an entry of the journal says about actions.
fn note(stage: &mut Stage<'_>, entry: &swarmguard_common::journal::Entry) {
    let now = stage.now;
    match (entry.kind, &entry.action) {
        (EntryKind::Decision, Some(token)) => {
            let service = entry.service.as_ref().and_then(|id| stage.machines.service_index(id));
            let Some(service) = service else { return };
            let replicas = stage.swarm.services.get(&stage.machines.services[service].id);
            let from = replicas.map_or(0, swarmguard_tests::swarm_model::ModelService::replicas);
            // What it is for is the rule; the journal's code says only which steps it takes.
            let kind = match (entry.code.as_str(), entry.rule.as_deref()) {
                (_, Some(rule)) if rule == Rule::Leak.word() => Kind::Replace,
                (_, Some(rule)) if rule == Rule::Rebalance.word() => Kind::Rebalance,
                ("scale_out", _) => Kind::Out,
                ("scale_in", _) => Kind::In,
                _ => Kind::Move,
            };
            let index = |node: &Option<NodeId>| node.as_ref().and_then(|id| stage.machines.node_index(id));
            let act = Act {
                kind,
                service,
                source: index(&entry.node),
                target: index(&entry.target),
                from,
                to: from,
                asked: entry.rule.as_deref() == Some("operator"),
                text: entry.text.clone(),
                begun: now,
                ended: None,
                helped: None,
                judged: String::new(),
            };
            stage.acts.say(now, format!("[{}] {}", entry.code, entry.text));
            stage.acts.begin_token(token, act);
        }
        (EntryKind::Action, Some(token)) => {
            let target = entry.target.as_ref().and_then(|id| stage.machines.node_index(id));
            let replicas = stage.acts.of_token(token).and_then(|act| {
                let id = &stage.machines.services[act.service].id;
                stage.swarm.services.get(id).map(swarmguard_tests::swarm_model::ModelService::replicas)
            });
            stage.acts.say(now, format!("[{}] {}", entry.code, entry.text));
            let Some(act) = stage.acts.of_token(token) else { return };
            act.target = act.target.or(target);
            let end = match entry.code.as_str() {
                "done" => End::Done,
                "undone" => End::Undone,
                _ => return,
            };
            act.ended.get_or_insert((now, end));
            act.to = replicas.unwrap_or(act.to);
        }
        (EntryKind::Alert | EntryKind::Lease, _) => {}
        _ => stage.acts.say(now, format!("({}) {}", entry.code, entry.text)),
    }
}
