//! The only door to the judgement: inputs and the time go in; commands, messages to agents, journal entries and the
//! next deadline come out. No IO, no clock, no panic; every queue is bounded.

mod act;
mod banner;
mod budget;
mod cancel;
mod failing;
mod health;
mod input;
mod jobs;
mod journal;
mod operator;
mod outcomes;
mod overview;
mod report;
mod successor;
mod tell;
mod think;
mod wishes;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use swarmguard_common::{
    domain::{Edge, NodeId, ServiceId, TaskId},
    journal::Entry,
    time::Time,
};

pub use input::{Accepted, Input, NotTaken, OperatorCommand, Settings, Wish};
pub use overview::Beside;
pub use swarmguard_common::api::{
    ActionStatus, AlertStatus, ContainerStatus, LeaseStatus, NodeStatus, ServiceStatus, Statistics,
};

pub use crate::agents::{AgentEvent, AgentInput, AgentOrder, AgentOutput, ConnectionId};

use crate::{
    acting::{Acting, Turn},
    action::{Intent, Kind, Record},
    command::{Command, CommandId, CommandResult},
    lease::LeaseState,
    swarm::Snapshot,
    view::{Heard, View},
};
use act::Actions;
use budget::Budget;
use journal::Said;
use outcomes::Outcomes;
use think::Known;
use wishes::Wishes;

/// Most journal entries that wait to be taken; further ones are dropped and counted.
const MAX_ENTRIES: usize = 10_000;
/// Most messages to agents that wait to be taken.
const MAX_MESSAGES: usize = 100_000;
/// Between two rounds of judgement while an alert stands.
const ROUND: Duration = Duration::from_millis(100);
/// Between two rounds of judgement while all is calm.
const CALM_ROUND: Duration = Duration::from_millis(500);
/// Between two readings of Swarm while an action is under way.
const PATIENT: Duration = Duration::from_millis(100);
/// The same while Swarm may be about to show what was just done or heard.
const EAGER: Duration = Duration::from_millis(50);
/// How long that is: Swarm's dispatcher collects what nodes tell it for 100 ms, and its orchestrator and scheduler take
/// their turns.
const AFTERMATH: Duration = Duration::from_millis(500);
/// Most services that are in question because of alerts; the tasks of the others are read by their events.
const MAX_IN_QUESTION: usize = 32;
/// A reading of Swarm older than this is not acted on.
const SNAPSHOT_VALID: Duration = Duration::from_secs(5);

/// The judgement of one coordinator. All coordinators keep the full view; only the one beside the raft leader acts.
#[derive(Clone, Debug)]
pub struct Brain {
    settings: Settings,
    view: View,
    statistics: Statistics,
    commands: VecDeque<(CommandId, Command)>,
    entries: VecDeque<Entry>,
    messages: VecDeque<AgentOutput>,
    /// Our records in the newest reading, tombstones included, that can be read.
    records: Vec<Record>,
    /// Actions under way and being begun.
    actions: Actions,
    /// What operators asked for, as Swarm keeps it.
    wishes: Wishes,
    /// Last verdict of each service.
    verdicts: BTreeMap<ServiceId, Known>,
    /// What the journal was told lately.
    said: Said,
    /// What may be done unasked.
    budget: Budget,
    /// Whether what was done helps.
    outcomes: Outcomes,
    leases: BTreeMap<NodeId, LeaseState>,
    acting: Acting,
    /// Whose turn it is to act.
    turn: Turn,
    /// Replicas that balancers got answers from, as last said.
    answering: BTreeSet<TaskId>,
    next_round: Option<Time>,
    /// When something was last done or heard whose effect Swarm may show only a moment later.
    happened: Option<Time>,
}

impl Brain {
    /// A brain that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            actions: Actions::new(&settings.holder),
            settings,
            view: View::default(),
            statistics: Statistics::default(),
            records: Vec::new(),
            commands: VecDeque::new(),
            entries: VecDeque::new(),
            messages: VecDeque::new(),
            wishes: Wishes::default(),
            verdicts: BTreeMap::new(),
            said: Said::default(),
            budget: Budget::default(),
            outcomes: Outcomes::default(),
            leases: BTreeMap::new(),
            acting: Acting::default(),
            turn: Turn::Nobody(crate::acting::Cause::NotRead),
            answering: BTreeSet::new(),
            next_round: None,
            happened: None,
        }
    }

    /// Takes something in, and thinks. Afterwards poll everything until it is empty. Costs microseconds for an agent's
    /// message and about a millisecond for a snapshot of a large swarm.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Snapshot(snapshot) => {
                let taken = snapshot.taken;
                if self.view.read(now, snapshot) {
                    self.happened = self.happened.filter(|at| taken < *at + AFTERMATH);
                    self.take_turn(now);
                    self.read_wishes(now);
                    self.forget(now);
                    let mut out = Vec::new();
                    tell::all_thresholds(&mut self.view, self.settings.thresholds, &mut out);
                    self.send(out);
                    self.act(now);
                }
            }
            Input::Agent(input) => self.hear(now, input),
            Input::Answer { id, result } => self.answered(now, id, result),
            Input::Answering(tasks) => self.answering = tasks,
            Input::Tick => {}
        }
        if self.next_round.is_none_or(|next| now >= next) {
            self.watch_leases(now);
            self.take_turn(now);
            self.think(now);
            let pace = if self.view.any_alert() { ROUND } else { CALM_ROUND };
            self.next_round = Some(now + pace);
        }
    }

    /// Puts the next round of judgement off, at least until then: the last one took long.
    pub fn rest_until(&mut self, then: Time) {
        self.next_round = self.next_round.map(|next| next.max(then));
    }

    /// The next command to carry out; its answer goes to `handle` as [`Input::Answer`], whatever it is.
    pub fn poll_command(&mut self) -> Option<(CommandId, Command)> {
        self.commands.pop_front()
    }

    /// The next thing for an agent connection.
    pub fn poll_agent(&mut self) -> Option<AgentOutput> {
        self.messages.pop_front()
    }

    /// The next journal entry. `id` and `at_ms` are 0: who keeps the journal sets them, at once.
    pub fn poll_entry(&mut self) -> Option<Entry> {
        self.entries.pop_front()
    }

    /// When to call `handle` with [`Input::Tick`] if nothing else came before; never further than a second away.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.next_round
    }

    /// How eagerly the next snapshot is awaited.
    pub fn snapshot_wish(&self) -> Wish {
        if self.actions.awaits_snapshot() {
            Wish::Now
        } else if !self.is_acting() || self.actions_under_way().next().is_none() {
            Wish::Usual
        } else if self.happened.is_some() {
            Wish::Within(EAGER)
        } else {
            Wish::Within(PATIENT)
        }
    }

    /// Whether this coordinator is the one to act: it is its turn, and it was not started to observe only.
    pub fn is_acting(&self) -> bool {
        self.leads() && !self.settings.observe
    }

    /// Whether it is this coordinator's turn to act.
    pub fn leads(&self) -> bool {
        self.turn.is_own()
    }

    /// Whose turn it is to act, as far as this coordinator can tell.
    pub fn turn(&self) -> &Turn {
        &self.turn
    }

    /// The node whose coordinator acts, as far as this one can tell.
    pub fn acts(&self) -> Option<&NodeId> {
        if self.is_acting() { self.view.snapshot.as_ref()?.own_node.as_ref() } else { self.turn.other() }
    }

    /// The same for people, and what keeps this one from acting although it is its turn.
    pub fn turn_text(&self) -> String {
        if self.leads() && self.settings.observe {
            return "this coordinator would act, but was started to change nothing (--observe)".into();
        }
        self.turn.text(|node| self.hostname(node))
    }

    fn take_turn(&mut self, now: Time) {
        let live = self
            .view
            .agents
            .values()
            .filter(|agent| agent.connection.is_some() && agent.lease.state(now) != LeaseState::Lapsed);
        let witnesses = live.map(|agent| agent.hears.as_deref());
        self.turn = self.acting.judge(now, self.view.snapshot.as_deref(), witnesses, others_run);
    }

    /// Services whose tasks bear on what is done now: of actions, of orders that begin, and with a standing alert. At
    /// most [`MAX_IN_QUESTION`].
    pub fn services_in_question(&self) -> BTreeSet<ServiceId> {
        let mut services: BTreeSet<ServiceId> = self
            .actions_under_way()
            .filter(|record| !matches!(record.kind, Kind::Node | Kind::Drain))
            .filter_map(|record| record.service.clone())
            .collect();
        services
            .extend(self.actions.pending().map(|order| &order.intent).filter_map(Intent::service).cloned());
        services.extend(self.wishes.scales().into_iter().map(|(service, ..)| service));
        let agents = self.view.agents.values();
        let alerted = agents
            .flat_map(|agent| agent.containers.values())
            .filter(|container| !container.standing.is_empty())
            .filter_map(|container| self.view.service_of(container));
        for service in alerted {
            if services.len() >= MAX_IN_QUESTION {
                break;
            }
            services.insert(service.id.clone());
        }
        services
    }

    fn hear(&mut self, now: Time, input: AgentInput) {
        let (node, mut out) = (input.node.clone(), Vec::new());
        let heard = self.view.hear(now, input, &mut self.statistics, &mut out);
        match heard {
            Heard::Came { again } => {
                tell::thresholds(&mut self.view, &node, self.settings.thresholds, &mut out);
                self.journal_came(&node, again);
            }
            Heard::Went => self.journal_went(&node),
            Heard::Edge(edge) => {
                tell::acknowledge(&mut self.view, &node, &mut out);
                if edge.edge == Edge::Raise {
                    // The round that notices it is soon, also while all was calm.
                    self.next_round = self.next_round.map(|next| next.min(now + ROUND));
                }
                self.journal_edge(now, &node, &edge);
            }
            Heard::Container(task) => {
                let service = task
                    .and_then(|task| Some(self.view.snapshot.as_ref()?.tasks.get(&task)?.service.clone()));
                // A task that Swarm has not shown yet may be the successor that is waited for.
                let awaited = service.is_none_or(|service| self.is_busy(&service));
                if awaited && self.actions_under_way().next().is_some() {
                    self.happened = Some(now);
                }
            }
            Heard::Nothing => tell::acknowledge(&mut self.view, &node, &mut out),
        }
        self.send(out);
    }

    fn send(&mut self, out: Vec<AgentOutput>) {
        for message in out {
            if self.messages.len() >= MAX_MESSAGES {
                self.statistics.dropped += 1;
            } else {
                self.messages.push_back(message);
            }
        }
    }

    fn answered(&mut self, now: Time, id: CommandId, result: CommandResult) {
        if let Err(error) = &result {
            self.statistics.failed_commands += 1;
            self.journal_failure(now, id, error);
        }
        self.actions.answered(now, id, result);
        self.happened = Some(now);
    }

    fn watch_leases(&mut self, now: Time) {
        let changed: Vec<(NodeId, LeaseState)> = self
            .view
            .agents
            .iter()
            .map(|(node, agent)| (node, agent.lease.state(now)))
            .filter(|(node, state)| self.leases.get(node) != Some(state))
            .map(|(node, state)| (node.clone(), state))
            .collect();
        for (node, state) in changed {
            let before = self.leases.insert(node.clone(), state);
            self.journal_lease(now, &node, before, state);
        }
        let agents = &self.view.agents;
        self.leases.retain(|node, _| agents.contains_key(node));
    }
}

/// Whether Swarm shows agents on other nodes, and another coordinator beside the one that reads.
fn others_run(snapshot: &Snapshot) -> bool {
    let elsewhere = |role: &str| {
        let of_role = snapshot.services.values().filter(|service| {
            let label = service.spec.pointer("/Labels/swarmguard.role");
            label.and_then(|label| label.as_str()) == Some(role)
        });
        of_role
            .flat_map(|service| snapshot.tasks_of(&service.id))
            .any(|task| task.is_serving() && task.node.is_some() && task.node != snapshot.own_node)
    };
    elsewhere("agent") && elsewhere("coordinator")
}

#[cfg(test)]
mod tests;
