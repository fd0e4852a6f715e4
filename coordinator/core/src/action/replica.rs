//! Actions on one service: migrate, scale out, scale in. All three are ways through the same phases.
//!
//! ```text
//! leased ─ pause the source ─> surging ─ replicas + n, wait for healthy ─> settling ─> marking ─> draining ─> removing
//!   ─ replicas and placement in one write ─> closing ─ the same write again ─> releasing ─ unpause ─> over
//! ```
//! Migration takes all of them; scale-out skips pause and mark; scale-in skips the surge. Each phase is recorded before
//! its write, so "recorded, not yet written" and "written" are told apart by the spec that Swarm shows. Any spec that is
//! none of ours is somebody else's, and ends the action by taking back our own marks only.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;

use crate::{
    command::{Command, CommandError},
    swarm::{Service, Snapshot, Task, TaskState},
};
use swarmguard_common::{domain::TaskId, time::Time};

use super::{
    Context, Next, Note, Step,
    lease::{self, Hold},
    plan::{after_spec, before_spec, marked_spec, note, peak_spec},
    record::{Kind, Record, State},
    slots::Slots,
    spec, undo,
};

/// What one step looks at.
pub(super) struct Look<'a> {
    pub record: &'a Record,
    pub snapshot: &'a Snapshot,
    pub service: &'a Service,
    pub slots: Slots<'a>,
    pub now: Time,
    pub context: &'a Context<'a>,
}

pub(super) fn step(record: &Record, snapshot: &Snapshot, now: Time, context: &Context<'_>) -> Step {
    let found = record.service.as_ref().and_then(|service| snapshot.services.get(service));
    let Some(service) = found else { return service_gone(record, snapshot) };
    let look = Look { record, snapshot, service, slots: Slots::of(snapshot, &service.id), now, context };
    match record.state {
        State::Leased => look.leased(),
        State::Surging => look.surging(),
        State::Settling => look.settling(),
        State::Marking => look.marking(),
        State::Draining => look.draining(),
        State::Removing => look.removing(),
        State::Closing => look.closing(),
        State::Undoing => undo::step(&look),
        State::Releasing => look.releasing(),
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
    over.undone = Some(("service_gone".into(), "the service was removed".into()));
    Step { next: Next::Do(over.update()), notes: vec![note(record, "undone", "the service was removed")] }
}

impl Look<'_> {
    fn leased(&self) -> Step {
        let before = &self.record.before;
        if self.service.version != before.version && !self.is(&before.spec) {
            return self.undo("foreign_change", "the service changed before the action began");
        }
        if self.record.kind == Kind::ScaleOut {
            return self.to(State::Surging, Vec::new());
        }
        match lease::take(self.record, self.snapshot) {
            Hold::Paused => {
                let next = if before.peak > before.replicas { State::Surging } else { State::Marking };
                self.to(next, vec![self.note("source_paused", "the source takes no new tasks")])
            }
            Hold::Do(command) => self.run(*command),
            Hold::Busy(why) if self.age() > self.context.tuning.node_lease => self.undo("node_busy", &why),
            Hold::Busy(why) => self.wait(&why),
            Hold::Lost(code, why) => self.undo(code, &why),
        }
    }

    fn surging(&self) -> Step {
        let (before, peak) = (&self.record.before, peak_spec(&self.record.before));
        if let Some(step) = self.source_lost() {
            return step;
        }
        if self.is(&before.spec) {
            // Written and taken back by somebody, or not written yet: what it was before tells.
            if self.was(&peak) && !spec::same(&peak, &before.previous_spec.clone().unwrap_or_default()) {
                return self.undo("foreign_change", "somebody took the additional replica back");
            }
            if self.slots.any_doubled() || self.slots.len() != before.replicas {
                return self.wait_or_undo(
                    self.context.tuning.marking,
                    "not_settled",
                    "every slot to have one task",
                );
            }
            return self.write(peak);
        }
        if !self.is(&peak) {
            return self.foreign();
        }
        if self.was(&peak) {
            return self
                .undo("scaled_by_hand", "somebody else set the same number of replicas: theirs stays");
        }
        self.successors()
    }

    /// Waits for what was added to run and be healthy.
    fn successors(&self) -> Step {
        let (before, tuning) = (&self.record.before, self.context.tuning);
        let old: BTreeSet<u64> = before.tasks.iter().map(|task| task.slot).collect();
        let new: Vec<&Task> =
            self.slots.beyond(&old).into_iter().flat_map(|(_, tasks)| tasks.to_vec()).collect();
        let mut notes = vec![self.note("surged", format!("{} replicas asked for", before.peak))];
        if self.record.source.is_some()
            && new.iter().any(|task| lease::is_source(self.record, task.node.as_ref()))
        {
            return self.undo("on_source", "the successor was placed on the source");
        }
        if self.slots.any_doubled() {
            return self.undo("collateral", "another replica was touched");
        }
        if let Some(task) =
            new.iter().find(|task| task.container.is_some() && task.state >= TaskState::Starting)
        {
            notes.push(self.on(task, "successor_running", "the successor's container started"));
        }
        let serving: Vec<&&Task> = new.iter().filter(|task| task.is_serving()).collect();
        let wanted = before.peak - before.replicas;
        if serving.len() as u64 >= wanted {
            if let Some(task) = serving.first() {
                notes.push(self.on(task, "successor_healthy", "the successor is running and healthy"));
            }
            let mut next = self.record.clone();
            next.target = serving.first().and_then(|task| task.node.clone());
            next.state = match (self.record.kind, before.steer_off.is_empty()) {
                (Kind::ScaleOut, true) => State::Closing,
                (Kind::ScaleOut, false) => State::Removing,
                _ => State::Settling,
            };
            return Step { next: Next::Do(next.update()), notes };
        }
        if let Some(task) = new.iter().find(|task| task.node.is_none() && task.state == TaskState::Pending)
            && self.age() > tuning.pending
        {
            return self.undo("no_node", &format!("no node takes the successor: {}", task.message));
        }
        if self.age() > tuning.starting {
            let said = new.first().map_or("", |task| task.message.as_str());
            return self
                .undo("not_healthy", &format!("the successor did not become healthy in time: {said}"));
        }
        Step { next: self.waiting("the successor to run and be healthy"), notes }
    }

    fn settling(&self) -> Step {
        if let Some(step) = self.source_lost() {
            return step;
        }
        let peak = peak_spec(&self.record.before);
        if !self.is(&peak) {
            return self.foreign();
        }
        if self.was(&peak) {
            return self
                .undo("scaled_by_hand", "somebody else set the same number of replicas: theirs stays");
        }
        if self.slots.serving() < self.record.before.peak {
            return self.undo("not_settled", "a replica did not stay healthy");
        }
        if self.age() >= self.context.tuning.settle {
            return self.to(State::Marking, vec![self.note("settled", "the successor stayed healthy")]);
        }
        Step {
            next: Next::Wait {
                until: self.context.since + self.context.tuning.settle,
                why: "the successor to settle".into(),
            },
            notes: Vec::new(),
        }
    }

    fn marking(&self) -> Step {
        let before = &self.record.before;
        let Some(source) = &self.record.source else {
            return self.undo("no_source", "the record names no source");
        };
        if let Some(step) = self.source_lost() {
            return step;
        }
        let (peak, marked) = (peak_spec(before), marked_spec(before, source));
        if self.is(&peak) {
            if self.was(&marked) {
                return self.undo("foreign_change", "somebody took the mark back");
            }
            if before.peak > before.replicas && self.was(&peak) {
                return self
                    .undo("scaled_by_hand", "somebody else set the same number of replicas: theirs stays");
            }
            if self.slots.any_doubled() || self.slots.serving() < before.peak {
                return self.wait_or_undo(
                    self.context.tuning.marking,
                    "not_settled",
                    "all replicas to be healthy",
                );
            }
            return self.write(marked);
        }
        if !self.is(&marked) {
            return self.foreign();
        }
        match self.victim() {
            Victim::None => {
                self.wait_or_undo(self.context.tuning.marking, "not_marked", "Swarm to act on the mark")
            }
            Victim::Task(task) => {
                let mut next = self.record.clone();
                next.state = State::Draining;
                next.victim = Some(task.id.clone());
                let notes =
                    vec![self.on(task, "marked", "exactly one replica on the source is marked to go")];
                Step { next: Next::Do(next.update()), notes }
            }
            Victim::Gone => {
                self.to(State::Removing, vec![self.note("marked", "the replica on the source is gone")])
            }
            Victim::Wrong(why) => self.undo("collateral", &why),
        }
    }

    fn draining(&self) -> Step {
        if let Some(step) = self.unsafe_to_remove() {
            return step;
        }
        let Some(victim) = &self.record.victim else { return self.to(State::Removing, Vec::new()) };
        let deadline = self.context.tuning.drain;
        let command = Command::DrainBalancers {
            tasks: vec![victim.clone()],
            deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
        };
        let text = match self.context.last {
            Some((sent, Ok(()))) if *sent == command => "the balancers send it nothing more",
            Some((sent, Err(_))) if *sent == command => "the balancers could not be asked",
            _ if self.age() > deadline * 2 => "the balancers did not answer in time",
            _ => return self.run(command),
        };
        self.to(State::Removing, vec![self.note("balancers_drained", text)])
    }

    fn removing(&self) -> Step {
        let before = &self.record.before;
        let after = after_spec(before);
        if self.is(&after) {
            let victim = self.record.victim.as_ref();
            let gone = !self.slots.tasks().any(|task| Some(&task.id) == victim);
            let settled = self.slots.len() == before.after && !self.slots.any_doubled();
            if (gone && settled) || self.age() > self.context.tuning.removing {
                let text = match (gone, settled, victim.is_some()) {
                    (true, true, true) => "Swarm stops the replica on the source, and no other",
                    (true, true, false) => "placement is as before",
                    _ => "Swarm did not settle in time: look at the service",
                };
                return self.to(State::Closing, vec![self.note("removed", text)]);
            }
            return self.wait("Swarm to remove the replica");
        }
        if self.record.kind == Kind::ScaleOut {
            return if self.is(&peak_spec(before)) { self.write(after) } else { self.foreign() };
        }
        if let Some(step) = self.unsafe_to_remove() {
            return step;
        }
        self.write(after)
    }

    fn closing(&self) -> Step {
        let after = after_spec(&self.record.before);
        if !self.is(&after) {
            return self.foreign();
        }
        let written =
            matches!(self.context.last, Some((Command::WriteService { spec, .. }, Ok(()))) if *spec == after);
        if self.was(&after) || written {
            return self.to(
                State::Releasing,
                vec![self.note("spec_closed", "spec and previous spec are the true ones")],
            );
        }
        let late = self.age() > self.context.tuning.removing;
        if self.slots.any_doubled() && !late {
            return self.wait("every slot to have one task");
        }
        self.write(after)
    }

    pub(super) fn releasing(&self) -> Step {
        if let Some(step) = self.resumed() {
            return step;
        }
        if let Some((command, note)) = lease::release(self.record, self.snapshot) {
            return Step { next: Next::Do(command), notes: note.into_iter().collect() };
        }
        let notes = vec![match &self.record.undone {
            None => self.note("done", "all is as it was, apart from what was meant"),
            Some((code, reason)) => self.note("undone", format!("{code}: {reason}")),
        }];
        self.to(State::Over, notes)
    }

    /// The balancers hear that a replica stays which they were told goes; then the record names none any more. Nothing
    /// else takes a drain back, so that every way to the end leads through here. `None` where there is nothing to say.
    pub(super) fn resumed(&self) -> Option<Step> {
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

    /// Marked, the right slot is still the only doomed one, the source is still paused, and enough others serve.
    fn unsafe_to_remove(&self) -> Option<Step> {
        let before = &self.record.before;
        let source = self.record.source.as_ref()?;
        if !self.is(&marked_spec(before, source)) {
            return Some(self.foreign());
        }
        if let Some(step) = self.source_lost() {
            return Some(step);
        }
        match self.victim() {
            Victim::Wrong(why) => return Some(self.undo("collateral", &why)),
            Victim::None => return Some(self.undo("not_marked", "the mark shows no effect any more")),
            Victim::Task(task) if self.record.victim.as_ref().is_some_and(|victim| *victim != task.id) => {
                return Some(self.undo("collateral", "another replica is marked now"));
            }
            Victim::Task(_) | Victim::Gone => {}
        }
        let others = self
            .slots
            .tasks()
            .filter(|task| task.is_serving() && Some(&task.id) != self.record.victim.as_ref());
        let enough = others.count() as u64 >= before.after;
        if before.peak > before.replicas && self.slots.serving_off(Some(source)) == 0 {
            return Some(self.undo("successor_lost", "no replica serves on another node any more"));
        }
        (!enough).then(|| self.undo("successor_lost", "too few other replicas are healthy"))
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
            (None, 1, 1) if self.was_on_source(tasks[0].slot) => Victim::Gone,
            _ => Victim::Wrong("a replica that is not on the source is about to change".into()),
        }
    }

    fn was_on_source(&self, slot: u64) -> bool {
        let here = |node| lease::is_source(self.record, Some(node));
        self.record.before.tasks.iter().any(|task| task.slot == slot && here(&task.node))
    }

    fn source_lost(&self) -> Option<Step> {
        if self.record.kind == Kind::ScaleOut {
            return None;
        }
        match lease::still(self.record, self.snapshot) {
            Hold::Lost(code, why) => Some(self.undo(code, &why)),
            _ => None,
        }
    }

    pub(super) fn is(&self, spec: &Value) -> bool {
        spec::same(&self.service.spec, spec)
    }

    pub(super) fn was(&self, spec: &Value) -> bool {
        self.service.previous_spec.as_ref().is_some_and(|previous| spec::same(previous, spec))
    }

    pub(super) fn age(&self) -> Duration {
        self.now - self.context.since
    }

    pub(super) fn note(&self, code: &'static str, text: impl Into<String>) -> Note {
        note(self.record, code, text)
    }

    fn on(&self, task: &Task, code: &'static str, text: &str) -> Note {
        let mut note = self.note(code, text);
        note.task = Some(task.id.clone());
        if self.record.source.as_ref() != task.node.as_ref() {
            note.target.clone_from(&task.node);
        }
        note
    }

    pub(super) fn run(&self, command: Command) -> Step {
        Step { next: Next::Do(command), notes: Vec::new() }
    }

    pub(super) fn waiting(&self, why: &str) -> Next {
        Next::Wait { until: self.now + Duration::from_secs(1), why: why.into() }
    }

    pub(super) fn wait(&self, why: &str) -> Step {
        Step { next: self.waiting(why), notes: Vec::new() }
    }

    fn wait_or_undo(&self, limit: Duration, code: &str, why: &str) -> Step {
        if self.age() > limit {
            self.undo(code, &format!("waited in vain for {why}"))
        } else {
            self.wait(why)
        }
    }

    pub(super) fn to(&self, state: State, notes: Vec<Note>) -> Step {
        let mut next = self.record.clone();
        next.state = state;
        Step { next: Next::Do(next.update()), notes }
    }

    pub(super) fn undo(&self, code: &str, reason: &str) -> Step {
        let mut next = self.record.clone();
        next.state = State::Undoing;
        next.undone = Some((code.into(), reason.into()));
        Step { next: Next::Do(next.update()), notes: vec![self.note("undoing", format!("{code}: {reason}"))] }
    }

    fn foreign(&self) -> Step {
        let mut paths = spec::differences(&self.record.before.spec, &self.service.spec).join(", ");
        if paths.is_empty() {
            paths.push_str("back to what it was");
        }
        let mut step = self.undo("foreign_change", &format!("somebody else changed the service ({paths})"));
        step.notes.push(self.note("foreign_change", format!("changed by somebody else: {paths}")));
        step
    }

    /// Writes the service. One that the engine refused for what it says is not tried again on the way forward.
    pub(super) fn write(&self, spec: Value) -> Step {
        if let Some((Command::WriteService { spec: sent, .. }, Err(CommandError::Refused(why)))) =
            self.context.last
            && *sent == spec
            && self.record.state < State::Closing
        {
            return self.undo("refused", why);
        }
        self.run(Command::WriteService {
            service: self.service.id.clone(),
            version: self.service.version,
            spec,
        })
    }

    pub(super) fn before_spec(&self) -> Value {
        before_spec(&self.record.before)
    }
}

enum Victim<'a> {
    None,
    Task(&'a Task),
    Gone,
    Wrong(String),
}
