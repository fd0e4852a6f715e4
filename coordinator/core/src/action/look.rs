//! What one step of an action on a service looks at, and the steps that the way forward and the way back share.

use std::time::Duration;

use serde_json::Value;
use swarmguard_common::{
    domain::{NodeId, TaskId},
    time::Time,
};

use super::{
    Context, Next, Note, Step, lease,
    plan::{after_spec, frozen_spec, marked_spec, note, peak_spec, unmarked_spec},
    record::{Kind, Record, State, Why},
    slots::Slots,
    spec,
};
use crate::{
    command::{Command, CommandError},
    swarm::{Service, Snapshot, Task, UpdateState},
};

/// One look at a record and what Swarm shows of its service.
pub(super) struct Look<'a> {
    pub record: &'a Record,
    pub snapshot: &'a Snapshot,
    pub service: &'a Service,
    pub slots: Slots<'a>,
    pub now: Time,
    pub context: &'a Context<'a>,
}

impl<'a> Look<'a> {
    /// `None` where the service is gone.
    pub fn at(
        record: &'a Record,
        snapshot: &'a Snapshot,
        now: Time,
        context: &'a Context<'a>,
    ) -> Option<Self> {
        let service = snapshot.services.get(record.service.as_ref()?)?;
        Some(Self { record, snapshot, service, slots: Slots::of(snapshot, &service.id), now, context })
    }

    /// The service's spec means this.
    pub fn is(&self, spec: &Value) -> bool {
        spec::same(&self.service.spec, spec)
    }

    /// Its previous spec means this.
    pub fn was(&self, spec: &Value) -> bool {
        self.service.previous_spec.as_ref().is_some_and(|previous| spec::same(previous, spec))
    }

    /// How long the record has stood as it does.
    pub fn age(&self) -> Duration {
        self.now - self.context.since
    }

    pub fn hostname(&self, node: &NodeId) -> String {
        self.snapshot.nodes.get(node).map_or_else(|| node.to_string(), |node| node.hostname.clone())
    }

    pub fn note(&self, code: &'static str, text: impl Into<String>) -> Note {
        note(self.record, code, text)
    }

    /// A note about a task; one that is not on the source is the successor.
    pub fn note_on(&self, task: &Task, code: &'static str, text: &str) -> Note {
        let mut note = self.note(code, text);
        note.task = Some(task.id.clone());
        if self.record.source.as_ref() != task.node.as_ref() {
            note.target.clone_from(&task.node);
        }
        note
    }

    pub fn run(&self, command: Command) -> Step {
        Step { next: Next::Do(command), notes: Vec::new() }
    }

    pub fn waiting(&self, why: &str) -> Next {
        Next::Wait { until: self.now + Duration::from_secs(1), why: why.into() }
    }

    pub fn wait(&self, why: &str) -> Step {
        Step { next: self.waiting(why), notes: Vec::new() }
    }

    pub fn wait_or_undo(&self, limit: Duration, why: Why, what: &str) -> Step {
        if self.age() > limit {
            self.undo(why, &format!("waited {} s in vain for {what}", limit.as_secs()))
        } else {
            self.wait(what)
        }
    }

    /// The record says that a phase has begun.
    pub fn to(&self, state: State, notes: Vec<Note>) -> Step {
        let mut next = self.record.clone();
        next.state = state;
        Step { next: Next::Do(next.update()), notes }
    }

    pub fn undo(&self, why: Why, reason: &str) -> Step {
        let mut next = self.record.clone();
        next.state = State::Undoing;
        next.undone = Some((why, reason.into()));
        Step { next: Next::Do(next.update()), notes: vec![self.note("undoing", format!("{why}: {reason}"))] }
    }

    /// The spec is none of ours: somebody else wrote it.
    pub fn foreign(&self) -> Step {
        let mut paths = spec::differences(&self.record.before.spec, &self.service.spec).join(", ");
        if paths.is_empty() {
            paths.push_str("back to what it was");
        }
        let (why, what) = if self.is_rolled_back() {
            (Why::RolledBack, "somebody rolled the service back")
        } else {
            (Why::ForeignChange, "somebody else changed the service")
        };
        let mut step = self.undo(why, &format!("{what} ({paths})"));
        step.notes.push(self.note("foreign_change", format!("changed by somebody else: {paths}")));
        step
    }

    /// `docker service rollback` swaps spec and previous spec and says so in the update's state, which each write of ours
    /// clears: with one of ours as the previous spec it was asked for in the middle of this action.
    fn is_rolled_back(&self) -> bool {
        let before = &self.record.before;
        let mut ours = vec![peak_spec(before), unmarked_spec(before), frozen_spec(before)];
        ours.extend(self.record.source.as_ref().map(|source| marked_spec(before, source)));
        is_rollback(self.service) && ours.iter().any(|spec| self.was(spec))
    }

    /// Writes the service. One that the engine refused for what it says is not tried again on the way forward.
    pub fn write(&self, spec: Value) -> Step {
        if let Some((Command::WriteService { spec: sent, .. }, Err(CommandError::Refused(why)))) =
            self.context.last
            && *sent == spec
            && self.record.state < State::Closing
            && !self.is(&after_spec(&self.record.before))
        {
            return self.undo(Why::Refused, why);
        }
        self.run(Command::WriteService {
            service: self.service.id.clone(),
            version: self.service.version,
            spec,
        })
    }

    /// Gives back what is still held, and ends the action.
    pub fn finish(&self, mut notes: Vec<Note>) -> Step {
        if let Some(mut step) = self.resume().or_else(|| self.release()) {
            notes.append(&mut step.notes);
            return Step { notes, ..step };
        }
        notes.push(match &self.record.undone {
            None => self.note("done", self.done_text()),
            Some((why, reason)) => self.note("undone", format!("{why}: {reason}")),
        });
        self.to(State::Over, notes)
    }

    fn done_text(&self) -> String {
        let before = &self.record.before;
        let name = &self.service.name;
        let at = |node: &Option<NodeId>| node.as_ref().map(|node| self.hostname(node)).unwrap_or_default();
        match self.record.kind {
            Kind::Migrate => format!(
                "one replica of {name} moved from {} to {}",
                at(&self.record.source),
                at(&self.record.target)
            ),
            Kind::ScaleOut => format!("{name} has {} replicas instead of {}", before.after, before.replicas),
            Kind::ScaleIn => {
                format!(
                    "{name} has one replica fewer on {}: {} in all",
                    at(&self.record.source),
                    before.after
                )
            }
            Kind::Rollback => format!("{name} has its previous spec back"),
            Kind::Drain | Kind::Node => String::new(),
        }
    }

    /// The next call that gives the source back, if anything of it is held.
    pub fn release(&self) -> Option<Step> {
        let (command, note) = lease::release(self.record, self.snapshot)?;
        Some(Step { next: Next::Do(command), notes: note.into_iter().collect() })
    }

    /// The balancers hear that a replica stays which they were told goes; then the record names none any more. Nothing
    /// else takes a drain back, so that every way to the end leads through here. `None` where there is nothing to say.
    pub fn resume(&self) -> Option<Step> {
        let victim = self.record.victim.as_ref()?;
        // Undone, all that are left on the source stay, whichever of them the balancers were told of.
        let undone = self.record.undone.is_some();
        let here =
            |task: &&Task| &task.id == victim || undone && lease::is_source(self.record, task.node.as_ref());
        let tasks: Vec<TaskId> = self.slots.tasks().filter(here).map(|task| task.id.clone()).collect();
        if tasks.is_empty() {
            return None;
        }
        if matches!(self.context.last, Some((Command::ResumeBalancers { .. }, Ok(())))) {
            let mut next = self.record.clone();
            next.victim = None;
            return Some(self.run(next.update()));
        }
        Some(self.run(Command::ResumeBalancers { tasks }))
    }
}

/// Whether the last write of a service was a rollback: an operator's, or Swarm's own after a failure.
pub(super) fn is_rollback(service: &Service) -> bool {
    use UpdateState::{RollbackCompleted, RollbackPaused, RollbackStarted};
    matches!(service.update_state, Some(RollbackStarted | RollbackPaused | RollbackCompleted))
}
