//! Actions: what is done to Swarm, one observed step at a time.
//!
//! [`begin`] turns an [`Order`] into the command that takes the action's lease; from then on [`step`] looks at the
//! lease record and the newest snapshot and says what comes next. It keeps nothing: the record and what Swarm shows are
//! enough to continue or undo from any point, so a crash, a lost answer and a new leader are all the same to it.
//!
//! How a caller drives it:
//! - Call [`step`] for every record of ours in each snapshot, tombstones and node leases included, while leading.
//! - After a command was sent, do not call it for that record again until the command was answered (however) and a
//!   snapshot *begun after the answer* is there. Everything else may happen in any order and as often as you like.
//! - Keep an [`Ages`] fed with every snapshot, on standby coordinators too: deadlines and cooldowns count from when a
//!   record was first seen in its present version, so no wall clock is compared between machines.
//! - Journal each note once per action and code: a step that must be repeated says the same again.

mod ages;
mod deadlines;
mod drain;
mod lease;
mod look;
mod plan;
mod previous;
mod record;
mod replica;
mod slots;
pub mod spec;
mod steer;
mod undo;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use swarmguard_common::{
    domain::{NodeId, ServiceId, TaskId},
    time::Time,
};

pub use ages::Ages;
pub use plan::begin;
pub use previous::{is_rollback_owed, to_roll_back_to};
pub use record::{
    Before, Kind, Record, RecordError, State, TaskBefore, Why, action_name, drain_name, is_record, node_name,
    previous_name,
};

use crate::{
    command::{Command, CommandResult},
    rule::Rule,
    swarm::{RecordObject, Snapshot},
};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intent {
    /// One replica leaves `source`, its successor first. Rebalancing is this with a target.
    Migrate {
        /// Whose replica.
        service: ServiceId,
        /// The node it leaves.
        source: NodeId,
        /// Where the successor should run; Swarm's choice where `None`. A wish: where steering is not possible, or
        /// Swarm would go there anyway, nothing is steered.
        target: Option<NodeId>,
    },
    /// More replicas.
    ScaleOut {
        /// Of which service.
        service: ServiceId,
        /// How many there shall be; more than there are.
        replicas: u64,
        /// Where the new one should run, as in [`Self::Migrate`].
        target: Option<NodeId>,
    },
    /// One replica fewer: a replica on this node, and no other.
    ScaleIn {
        /// Of which service.
        service: ServiceId,
        /// The node that loses it.
        node: NodeId,
    },
    /// The spec comes back that the operator had before: Swarm's own previous one, or the one that was kept because our
    /// writes came after it.
    Rollback {
        /// Of which service.
        service: ServiceId,
    },
    /// Every replicated service leaves the node, start first, one after another; then it is set to `drain`.
    Drain {
        /// Which.
        node: NodeId,
    },
}

impl Intent {
    /// The service that it changes; a drain changes many.
    pub fn service(&self) -> Option<&ServiceId> {
        match self {
            Self::Migrate { service, .. }
            | Self::ScaleOut { service, .. }
            | Self::ScaleIn { service, .. }
            | Self::Rollback { service } => Some(service),
            Self::Drain { .. } => None,
        }
    }
}

/// An intent with what its record must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What.
    pub intent: Intent,
    /// Names the action in journal and record: unique, 1 to 64 ASCII letters, digits, `-`.
    pub token: String,
    /// Who acts: node ID and something that is new at every start. Another holder's record is taken over first.
    pub holder: String,
    /// How long its tombstone keeps further actions off the service.
    pub cooldown: Duration,
    /// One sentence for people, at most 200 bytes are kept.
    pub reason: String,
    /// Nodes whose agents fell silent. Where Swarm is free to choose, the successor is kept off them, unless they host
    /// some of the service already: those may not be excluded.
    pub avoid: Vec<NodeId>,
    /// Nodes that Swarm would not place the service on for reasons that only the policy sees (reservations, ports).
    pub closed: Vec<NodeId>,
}

/// Why an order cannot begin. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// What forbids it.
    pub code: Rule,
    /// One sentence.
    pub text: String,
    /// What would change it.
    pub otherwise: String,
}

/// How long each phase may take before it is undone. All from when this process first saw the phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// For the pause lease of the node, when another action has it.
    pub node_lease: Duration,
    /// For Swarm to find a node for a new task.
    pub pending: Duration,
    /// From assigned to the start of the container: pulling the image and creating it.
    pub pulling: Duration,
    /// From the start of the container to healthy, at least: longer where the service's healthcheck allows more, as its
    /// label says where it has one.
    pub starting: Duration,
    /// Failed starts of a successor after which it is given up.
    pub tries: usize,
    /// Running and healthy before it is relied upon, while it answers nothing.
    pub settle: Duration,
    /// The same for one that was seen answering requests.
    pub settle_least: Duration,
    /// For Swarm to act on the mark.
    pub marking: Duration,
    /// Longest wait for the balancers.
    pub drain: Duration,
    /// For Swarm to remove a replica from its list.
    pub removing: Duration,
    /// For one more replica to leave a node that is drained, from when the last one did. Longer than all the phases of a
    /// move together.
    pub leaving: Duration,
    /// Take-overs of one record after which it is undone rather than continued.
    pub takeovers: u32,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            node_lease: Duration::from_secs(30),
            pending: Duration::from_secs(10),
            pulling: Duration::from_secs(600),
            starting: Duration::from_secs(120),
            tries: 2,
            settle: Duration::from_secs(2),
            settle_least: Duration::from_millis(200),
            marking: Duration::from_secs(10),
            drain: Duration::from_secs(5),
            removing: Duration::from_secs(30),
            leaving: Duration::from_secs(300),
            takeovers: 8,
        }
    }
}

/// What a step may know besides record and snapshot. None of it is needed for safety.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Who acts: as in [`Order::holder`].
    pub holder: &'a str,
    /// When this process first saw the record in its present version ([`Ages::since`]).
    pub since: Time,
    /// The last command of this record that this process sent, with its answer.
    pub last: Option<(&'a Command, &'a CommandResult)>,
    /// Since when records and tasks stand as they do.
    pub ages: &'a Ages,
    /// The added replicas were seen answering requests.
    pub answers: bool,
    /// Deadlines.
    pub tuning: &'a Tuning,
}

/// What comes next, and what is to be written down.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What comes next.
    pub next: Next,
    /// For the journal, once per action and code.
    pub notes: Vec<Note>,
}

/// What comes next in an action.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// This call. Then wait for its answer and a snapshot begun after it.
    Do(Command),
    /// Nothing before the next snapshot, or before this time at the latest.
    Wait {
        /// When to call again if no snapshot came before.
        until: Time,
        /// What is waited for.
        why: String,
    },
    /// A drain's next move: [`begin`] this under this token, then go on stepping the drain. Where it is refused, the
    /// next step of the drain asks again.
    Start {
        /// What.
        intent: Intent,
        /// [`Order::token`]: its beginning is the drain's, by which the two know each other.
        token: String,
    },
    /// It is over; the record is a tombstone that keeps the cooldown, and is removed by a later step.
    Over {
        /// How it ended.
        outcome: Outcome,
        /// When the cooldown ends.
        until: Time,
    },
}

/// How an action ended. Spec and availability are as they began either way, apart from the change that was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As meant.
    Done,
    /// Nothing of it is left.
    Undone {
        /// Why.
        why: Why,
        /// One sentence.
        reason: String,
    },
}

/// A step for the journal. Codes: `leased`, `source_paused`, `surged`, `successor_running`, `successor_healthy`,
/// `settled`, `marked`, `balancers_drained`, `removed`, `spec_closed`, `unpaused`, `node_drained`, `foreign_change`,
/// `undoing`, `undo_waits`, `steered`, `taken_over`, `done`, `undone`, `released`.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// A stable word.
    pub code: &'static str,
    /// One sentence.
    pub text: String,
    /// The action's token.
    pub action: String,
    /// The service it is about.
    pub service: Option<ServiceId>,
    /// The task it is about.
    pub task: Option<TaskId>,
    /// The source node.
    pub node: Option<NodeId>,
    /// The node of the successor.
    pub target: Option<NodeId>,
    /// Figures with their unit last.
    pub figures: BTreeMap<String, f64>,
}

/// The next step of the action whose lease this record is. A record that cannot be read is left alone.
pub fn step(object: &RecordObject, snapshot: &Snapshot, now: Time, context: &Context<'_>) -> Step {
    if record::is_previous(&object.name) {
        return previous::step(object, snapshot).map_or_else(
            || wait(now, "a spec that is not the one it was kept for".into()),
            |command| Step { next: Next::Do(command), notes: Vec::new() },
        );
    }
    let record = match Record::parse(object) {
        Ok(record) => record,
        Err(error) => return wait(now, error.to_string()),
    };
    match (record.kind, record.state) {
        (Kind::Node, _) => match lease::orphaned(&record, snapshot) {
            Some(command) => {
                let text = "its action's record is gone: the node is given back";
                Step { next: Next::Do(command), notes: vec![plan::note(&record, "released", text)] }
            }
            None => wait(now, "the action that holds it".into()),
        },
        (_, State::Over) => over(&record, snapshot, now, context),
        _ if record.holder != context.holder => take_over(&record, context),
        (Kind::Drain, _) => drain::step(&record, snapshot, now, context),
        (Kind::Migrate | Kind::ScaleOut | Kind::ScaleIn | Kind::Rollback, _) => {
            replica::step(&record, snapshot, now, context)
        }
    }
}

/// The command that has an action undone, at an operator's wish or because the drain it belongs to is given up; `None`
/// where it is over, or past the point where going on is the quickest way to leave nothing behind.
pub fn cancel(object: &RecordObject, reason: &str) -> Option<Command> {
    let record = Record::parse(object).ok()?;
    if record.kind == Kind::Node || record.is_late() {
        return None;
    }
    Some(undoing(record, Why::Cancelled, reason).update())
}

/// The command that brings back an action's record which somebody removed by hand, to undo the action; `None` for one
/// that is over. Only who knew the record can do that: one that also held a node left that behind (`swarmguard-node-…`).
pub fn revive(record: &Record) -> Option<Command> {
    if record.is_over() || matches!(record.kind, Kind::Node | Kind::Drain) {
        return None;
    }
    let undone = record.undone.clone();
    let mut next = undoing(record.clone(), Why::RecordLost, "the record was removed by hand in the middle");
    next.undone = undone.or(next.undone);
    Some(next.create())
}

/// Where the added replicas of an action run, or the node that was meant while none is assigned. Empty once the old one
/// may have been told to stop: then the new one is needed, wherever it is.
pub fn targets(record: &Record, snapshot: &Snapshot) -> Vec<NodeId> {
    let adds = record.before.peak > record.before.replicas && record.state < State::Closing;
    let Some(service) = record.service.as_ref().filter(|_| adds) else { return Vec::new() };
    let written = snapshot.services.get(service).is_some_and(|found| {
        record.state == State::Draining && spec::same(&found.spec, &plan::after_spec(&record.before))
    });
    if written {
        return Vec::new();
    }
    let old: BTreeSet<u64> = record.before.tasks.iter().map(|task| task.slot).collect();
    let slots = slots::Slots::of(snapshot, service);
    let mut nodes: Vec<NodeId> = slots
        .beyond(&old)
        .into_iter()
        .flat_map(|(_, tasks)| tasks.iter().filter_map(|task| task.node.clone()))
        .collect();
    if nodes.is_empty() {
        nodes.extend(record.target.clone());
    }
    nodes
}

/// The step that has an action undone because the node of its successor fell silent; `None` once the old replica may
/// have been told to stop.
pub fn lose_target(object: &RecordObject, node: &NodeId, reason: &str) -> Option<Step> {
    let record = Record::parse(object).ok().filter(|record| record.state < State::Closing)?;
    let code = if record.target.as_ref() == Some(node) { Why::TargetLost } else { Why::ElsewhereLost };
    let mut notes = vec![plan::note(&record, "undoing", format!("{code}: {reason}"))];
    let mut next = undoing(record, code, reason);
    next.target = Some(node.clone());
    notes.iter_mut().for_each(|note| note.target = Some(node.clone()));
    Some(Step { next: Next::Do(next.update()), notes })
}

fn undoing(mut record: Record, why: Why, reason: &str) -> Record {
    record.state = State::Undoing;
    record.undone = Some((why, record::shortened(reason)));
    record
}

fn wait(now: Time, why: String) -> Step {
    Step { next: Next::Wait { until: now + Duration::from_secs(1), why }, notes: Vec::new() }
}

/// A tombstone: keeps its cooldown, and goes with its service.
fn over(record: &Record, snapshot: &Snapshot, now: Time, context: &Context<'_>) -> Step {
    let until = context.since + record.cooldown;
    let orphan = record.service.as_ref().is_some_and(|service| !snapshot.services.contains_key(service));
    // What an operator asked of Swarm in the middle of it is still to be done, and this is all that says so.
    let owed = record.service.as_ref().and_then(|service| snapshot.services.get(service));
    let owed = owed.is_some_and(|service| is_rollback_owed(snapshot, service));
    let next = if orphan || now >= until && !owed {
        // What the operator had before stays, if only we know it.
        Next::Do(previous::to_keep(record, snapshot).unwrap_or_else(|| record.remove()))
    } else {
        let outcome = match &record.undone {
            None => Outcome::Done,
            Some((why, reason)) => Outcome::Undone { why: *why, reason: reason.clone() },
        };
        Next::Over { outcome, until }
    };
    Step { next, notes: Vec::new() }
}

/// A new holder says so before it does anything, so that the old one's updates of the record fail from then on.
fn take_over(record: &Record, context: &Context<'_>) -> Step {
    let mut next = record.clone();
    next.holder = context.holder.into();
    next.takeovers = record.takeovers.saturating_add(1);
    let text = format!("taken over from {} in phase {}", record.holder, record.state);
    if next.takeovers > context.tuning.takeovers && record.state < State::Closing {
        next.state = State::Undoing;
        next.undone = Some((Why::TooManyTakeovers, "its coordinators died again and again".into()));
    }
    Step { next: Next::Do(next.update()), notes: vec![plan::note(record, "taken_over", text)] }
}
