//! Actions on one service: migrate, scale out, scale in, roll back. All are ways through the same phases.
//!
//! ```text
//! leased ─ pause the source, only where Swarm could place the successor there ─> surging ─ replicas + n; unpause when
//!   they are assigned; wait for healthy ─> marking ─ wait until settled, mark ─> draining ─ balancers let go; replicas
//!   and placement in one write; the same write again ─> over
//! ```
//! Migration takes all of them; scale-out has only the surge, then closes; scale-in has no surge; a rollback only closes.
//! Each phase is recorded before its first write, so "recorded, not yet written" and "written" are told apart by the
//! spec that Swarm shows. Any spec that is none of ours is somebody else's, and ends the action by taking back our own
//! marks only.

use std::{collections::BTreeSet, time::Duration};

use super::{
    Context, Next, Step, deadlines,
    lease::{self, Hold},
    look::{Look, is_rollback},
    plan::{after_spec, marked_spec, note, peak_spec, rolled_back_spec, unmarked_spec},
    record::{Kind, Record, State, Why},
    spec, undo,
};
use crate::{
    command::{Command, CommandError},
    swarm::{Snapshot, Task, TaskState},
};
use swarmguard_common::time::Time;

pub(super) fn step(record: &Record, snapshot: &Snapshot, now: Time, context: &Context<'_>) -> Step {
    let Some(look) = Look::at(record, snapshot, now, context) else { return service_gone(record, snapshot) };
    match record.state {
        State::Leased => look.leased(),
        State::Surging => look.surging(),
        State::Marking => look.marking(),
        State::Draining => look.draining(),
        State::Closing => look.closing(),
        State::Undoing => undo::step(&look),
        State::Releasing => look.finish(Vec::new()),
        State::Moving | State::Over => look.wait("nothing: this state is not a replica action's"),
    }
}

fn service_gone(record: &Record, snapshot: &Snapshot) -> Step {
    if let Some((command, note)) = lease::release(record, snapshot) {
        return Step { next: Next::Do(command), notes: note.into_iter().collect() };
    }
    let mut over = record.clone();
    over.state = State::Over;
    over.cooldown = Duration::ZERO;
    over.undone = Some((Why::ServiceGone, "the service was removed".into()));
    Step { next: Next::Do(over.update()), notes: vec![note(record, "undone", "the service was removed")] }
}

impl Look<'_> {
    /// Only an action that needs the source paused begins here.
    fn leased(&self) -> Step {
        let before = &self.record.before;
        if self.service.version != before.version && !self.is(&before.spec) {
            return self.undo(Why::ForeignChange, "the service changed before the action began");
        }
        let next = match self.record.kind {
            Kind::ScaleIn => State::Marking,
            Kind::Rollback => State::Closing,
            _ => State::Surging,
        };
        if !before.pauses {
            return self.to(next, Vec::new());
        }
        self.pause().unwrap_or_else(|| {
            self.to(next, vec![self.note("source_paused", "the source takes no new tasks for a moment")])
        })
    }

    /// Takes the lease on the source and pauses it, one call at a time; `None` once it is paused.
    fn pause(&self) -> Option<Step> {
        match lease::take(self.record, self.snapshot) {
            Hold::Held => None,
            Hold::Do(command) => Some(self.run(*command)),
            Hold::Busy(why) if self.age() > self.context.tuning.node_lease => {
                Some(self.undo(Why::NodeBusy, &why))
            }
            Hold::Busy(why) => Some(self.wait(&why)),
            Hold::Lost(why, text) => Some(self.undo(why, &text)),
        }
    }

    fn surging(&self) -> Step {
        let (before, peak) = (&self.record.before, peak_spec(&self.record.before));
        if let Some(step) = self.source_lost(before.pauses && self.is(&before.spec)) {
            return step;
        }
        if self.is(&before.spec) {
            if self.service.version != before.version
                && self.was(&peak)
                && !before.previous_spec.as_ref().is_some_and(|previous| spec::same(&peak, previous))
            {
                return self.foreign();
            }
            if self.slots.any_doubled() || self.slots.len() != before.replicas {
                let what = "every slot to have one task";
                return self.wait_or_undo(self.context.tuning.marking, Why::NotSettled, what);
            }
            return self.write(peak);
        }
        if !self.is(&peak) {
            return self.foreign();
        }
        if self.was(&peak) {
            return self.scaled_by_hand();
        }
        self.successors()
    }

    fn scaled_by_hand(&self) -> Step {
        let count = self.record.before.peak;
        self.undo(Why::ScaledByHand, &format!("somebody else set {count} replicas, too: theirs stays"))
    }

    /// The tasks in slots that were not there before.
    fn added(&self) -> Vec<&Task> {
        let old: BTreeSet<u64> = self.record.before.tasks.iter().map(|task| task.slot).collect();
        self.slots.beyond(&old).into_iter().flat_map(|(_, tasks)| tasks.to_vec()).collect()
    }

    /// Waits for what was added to run and be healthy.
    fn successors(&self) -> Step {
        let before = &self.record.before;
        let new = self.added();
        let mut notes = vec![self.note("surged", format!("{} replicas asked for", before.peak))];
        if let Some(source) = &self.record.source
            && new.iter().any(|task| task.node.as_ref() == Some(source))
        {
            let text =
                format!("Swarm placed the successor on {}, which it is to leave", self.hostname(source));
            return self.undo(Why::OnSource, &text);
        }
        if self.slots.any_doubled() {
            return self.undo(Why::Collateral, "another replica was touched");
        }
        let wanted = before.peak - before.replicas;
        // What it was paused for is done: nothing of the service waits for a node any more.
        if new.len() as u64 >= wanted
            && new.iter().all(|task| task.node.is_some())
            && let Some(mut step) = self.release()
        {
            notes.append(&mut step.notes);
            return Step { notes, ..step };
        }
        if let Some(task) =
            new.iter().find(|task| task.container.is_some() && task.state >= TaskState::Starting)
        {
            notes.push(self.note_on(task, "successor_running", "the successor's container started"));
        }
        let serving: Vec<&&Task> = new.iter().filter(|task| task.is_serving()).collect();
        if serving.len() as u64 >= wanted {
            if let Some(task) = serving.first() {
                notes.push(self.note_on(task, "successor_healthy", "the successor is running and healthy"));
            }
            let mut next = self.record.clone();
            next.target = serving.first().and_then(|task| task.node.clone());
            next.state = if self.record.kind == Kind::ScaleOut { State::Closing } else { State::Marking };
            return Step { next: Next::Do(next.update()), notes };
        }
        if let Some((why, text)) = deadlines::passed(self, &new) {
            return self.undo(why, &text);
        }
        Step { next: self.waiting("the successor to run and be healthy"), notes }
    }

    fn marking(&self) -> Step {
        let before = &self.record.before;
        let Some(source) = &self.record.source else {
            return self.undo(Why::BadRecord, "the record names no source");
        };
        let (peak, marked) = (peak_spec(before), marked_spec(before, source));
        if self.is(&peak) {
            return self.settled().unwrap_or_else(|| self.write_mark(marked));
        }
        if !self.is(&marked) {
            return self.foreign();
        }
        if let Some(step) = self.source_lost(self.mark_needs_pause()) {
            return step;
        }
        match self.victim() {
            Victim::None => {
                self.wait_or_undo(self.context.tuning.marking, Why::NotMarked, "Swarm to act on the mark")
            }
            Victim::Task(task) => {
                let mut next = self.record.clone();
                next.state = State::Draining;
                next.victim = Some(task.id.clone());
                let text = "exactly one replica on the source is marked to go";
                Step { next: Next::Do(next.update()), notes: vec![self.note_on(task, "marked", text)] }
            }
            Victim::Gone => {
                self.to(State::Draining, vec![self.note("marked", "the replica on the source is gone")])
            }
            Victim::Wrong(why) => self.undo(Why::Collateral, &why),
        }
    }

    /// What stands against the mark yet; `None` once the successor has stayed healthy for long enough.
    fn settled(&self) -> Option<Step> {
        let before = &self.record.before;
        if let Some(step) = self.source_lost(false) {
            return Some(step);
        }
        let source = self.record.source.as_ref()?;
        if self.was(&marked_spec(before, source)) {
            return Some(self.foreign());
        }
        let surged = before.peak > before.replicas;
        if surged && self.was(&peak_spec(before)) {
            return Some(self.scaled_by_hand());
        }
        if self.slots.any_doubled() || self.slots.serving() < before.peak {
            if surged && self.added().iter().any(|task| !task.is_serving()) {
                return Some(self.undo(Why::NotSettled, "the successor did not stay healthy"));
            }
            let what = "all replicas to be healthy";
            return Some(self.wait_or_undo(self.context.tuning.marking, Why::NotSettled, what));
        }
        let tuning = self.context.tuning;
        if surged
            && self.age() < tuning.settle
            && !(self.context.answers && self.age() >= tuning.settle_least)
        {
            let until = self.context.since + tuning.settle;
            let why = "the successor to settle: to answer requests, or to stay healthy without any".into();
            return Some(Step { next: Next::Wait { until, why }, notes: Vec::new() });
        }
        None
    }

    fn write_mark(&self, marked: serde_json::Value) -> Step {
        if self.mark_needs_pause()
            && let Some(step) = self.pause()
        {
            return step;
        }
        let mut step = self.write(marked);
        if self.record.before.peak > self.record.before.replicas && matches!(step.next, Next::Do(_)) {
            let text = match self.context.answers {
                true => "the successor answers requests",
                false => "the successor stayed healthy",
            };
            step.notes.insert(0, self.note("settled", text));
        }
        step
    }

    /// The enforcer, should it look at the source between mark and removal, stops all replicas there that the mark
    /// excludes. A single one is to go anyway; of several only one is. The only manager is never paused: its coordinator
    /// could not come back.
    fn mark_needs_pause(&self) -> bool {
        self.record.source.as_ref().is_some_and(|source| {
            self.slots.copies_on(source) > 1 && !lease::is_only_manager(self.snapshot, source)
        })
    }

    /// From the mark to the end: the balancers let go, then the true spec is written, twice.
    fn draining(&self) -> Step {
        // Each write of ours clears that state.
        if is_rollback(self.service) {
            return self.undo(Why::RolledBack, "somebody rolled the service back");
        }
        if self.is(&after_spec(&self.record.before)) {
            return self.removed();
        }
        // Written after the removal, and just the number that the surge had set for its moment.
        if self.is(&unmarked_spec(&self.record.before)) && self.was(&after_spec(&self.record.before)) {
            return self.scaled_by_hand();
        }
        if let Some(step) = self.unsafe_to_remove() {
            return step;
        }
        let mut notes = Vec::new();
        if let Some(victim) = &self.record.victim {
            let deadline = self.context.tuning.drain;
            let command = Command::DrainBalancers {
                tasks: vec![victim.clone()],
                deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
            };
            let text = match self.context.last {
                Some((sent, Ok(()))) if *sent == command => "no balancer sends it anything more",
                Some((sent, Err(_))) if *sent == command => "the balancers could not be asked to leave it",
                // The engine refused or lost the write that follows.
                Some((Command::WriteService { .. }, _)) => "no balancer sends it anything more",
                _ if self.age() > deadline * 2 => "the balancers did not let go of it in time",
                _ => return self.run(command),
            };
            notes.push(self.note("balancers_drained", text));
        }
        let mut step = self.write(after_spec(&self.record.before));
        step.notes.splice(0..0, notes);
        step
    }

    /// The true spec is there: the source is given back at once, then Swarm removes the replica, then the same spec is
    /// written again.
    fn removed(&self) -> Step {
        if let Some(step) = self.release() {
            return step;
        }
        let before = &self.record.before;
        let victim = self.record.victim.as_ref();
        let gone = !self.slots.tasks().any(|task| Some(&task.id) == victim);
        let settled = self.slots.len() == before.after && !self.slots.any_doubled();
        let late = self.age() > self.context.tuning.removing;
        if !(gone && settled || late) {
            return self.wait("Swarm to remove the replica");
        }
        let text = match (gone, settled, victim.is_some()) {
            (true, true, true) => "Swarm stops the replica on the source, and no other",
            (true, true, false) => "the replica on the source is gone",
            _ => "Swarm did not settle in time: look at the service",
        };
        self.close(vec![self.note("removed", text)])
    }

    /// The last write, identical to the one before, so that a rollback restores no spec of ours.
    fn close(&self, mut notes: Vec<super::Note>) -> Step {
        let after = after_spec(&self.record.before);
        if self.was(&after) {
            notes.push(self.note("spec_closed", "spec and previous spec are the true ones"));
            return self.finish(notes);
        }
        let mut step = self.write(after);
        step.notes.splice(0..0, notes);
        step
    }

    fn closing(&self) -> Step {
        let before = &self.record.before;
        let after = after_spec(before);
        if self.record.kind == Kind::Rollback {
            return self.rolling_back();
        }
        if !self.is(&after) {
            return if self.is(&peak_spec(before)) { self.write(after) } else { self.foreign() };
        }
        if self.slots.any_doubled() && self.age() <= self.context.tuning.removing {
            return self.wait("every slot to have one task");
        }
        self.close(Vec::new())
    }

    /// One write. What was there before is then what a further rollback restores, as after any.
    fn rolling_back(&self) -> Step {
        let before = &self.record.before;
        let back = rolled_back_spec(before);
        if self.is(&back) {
            return self.finish(Vec::new());
        }
        if let Some((Command::WriteService { .. }, Err(CommandError::Refused(why)))) = self.context.last {
            return self.undo(Why::Refused, why);
        }
        if self.is(&before.spec) { self.write(back) } else { self.foreign() }
    }

    /// Marked, the right slot is still the only doomed one, the source stands as it must, and enough others serve.
    fn unsafe_to_remove(&self) -> Option<Step> {
        let before = &self.record.before;
        let source = self.record.source.as_ref()?;
        if !self.is(&marked_spec(before, source)) {
            return Some(self.foreign());
        }
        if let Some(step) = self.source_lost(self.mark_needs_pause()) {
            return Some(step);
        }
        match self.victim() {
            Victim::Wrong(why) => return Some(self.undo(Why::Collateral, &why)),
            Victim::None => return Some(self.undo(Why::NotMarked, "the mark shows no effect any more")),
            Victim::Task(task) if self.record.victim.as_ref().is_some_and(|victim| *victim != task.id) => {
                return Some(self.undo(Why::Collateral, "another replica is marked now"));
            }
            Victim::Task(_) | Victim::Gone => {}
        }
        let others = self
            .slots
            .tasks()
            .filter(|task| task.is_serving() && Some(&task.id) != self.record.victim.as_ref());
        let enough = others.count() as u64 >= before.after;
        if before.peak > before.replicas && self.slots.serving_off(Some(source)) == 0 {
            return Some(self.undo(Why::SuccessorLost, "no replica serves on another node any more"));
        }
        (!enough).then(|| self.undo(Why::SuccessorLost, "too few other replicas are healthy"))
    }

    /// Which replica the mark found.
    fn victim(&self) -> Victim<'_> {
        let doomed = self.slots.doomed();
        let [(_, tasks)] = doomed.as_slice() else {
            return match doomed.len() {
                0 => Victim::None,
                n => Victim::Wrong(format!("{n} slots are about to change instead of one")),
            };
        };
        let twins = tasks.iter().filter(|task| task.node.is_none()).count();
        let here = tasks.iter().find(|task| lease::is_source(self.record, task.node.as_ref()));
        match (here, twins, tasks.len()) {
            (Some(task), 1, 2) => Victim::Task(task),
            // Its node let go of it already: what is left of the slot waits for a node that there is not.
            (None, twins, all) if twins == all && self.was_on_source(tasks[0].slot) => Victim::Gone,
            _ => Victim::Wrong("a replica that is not on the source is about to change".into()),
        }
    }

    fn was_on_source(&self, slot: u64) -> bool {
        let here = |node| lease::is_source(self.record, Some(node));
        self.record.before.tasks.iter().any(|task| task.slot == slot && here(&task.node))
    }

    /// `paused`: the phase needs the source paused.
    fn source_lost(&self, paused: bool) -> Option<Step> {
        self.record.source.as_ref()?;
        match lease::still(self.record, self.snapshot, paused) {
            Hold::Lost(why, text) => Some(self.undo(why, &text)),
            _ => None,
        }
    }
}

enum Victim<'a> {
    None,
    Task(&'a Task),
    Gone,
    Wrong(String),
}
