//! Driving actions: orders that are not durable yet, one outstanding command for each record, and steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use swarmguard_common::{
    domain::{NodeId, ServiceId},
    time::Time,
};

use super::{Brain, failing::Failing};
use crate::{
    action::{
        self, Context, Intent, Kind, Next, Note, Order, Outcome, Record, Refusal, State, Step, action_name,
        drain_name, is_record,
    },
    command::{Command, CommandError, CommandId, CommandResult},
    lease::LeaseState,
    rule::Rule,
    swarm::{RecordObject, Snapshot},
};

/// Commands given out that nobody answers are taken for lost after this long.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// An order whose record does not appear is given up after this long.
const DURABLE_WITHIN: Duration = Duration::from_secs(10);
/// Orders that were given up are remembered this long: an engine may answer after minutes, and do then what was asked.
const GIVEN_UP: Duration = Duration::from_secs(3_600);
/// Most of them.
const MAX_GIVEN_UP: usize = 256;
/// After an order failed, the service is left alone this long.
const HOLD_OFF: Duration = Duration::from_secs(2);

/// A command given out for a record, until a snapshot that was begun after its answer.
#[derive(Clone, Debug)]
struct Outstanding {
    id: CommandId,
    command: Command,
    sent: Time,
    answer: Option<(Time, CommandResult)>,
}

/// An order that no record of Swarm shows yet.
#[derive(Clone, Debug)]
struct Pending {
    order: Order,
    since: Time,
    /// Said once the lease is seen to be ours.
    notes: Vec<Note>,
}

/// When an action's reason began, and when it was decided; for figures only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Track {
    /// First sample over the threshold.
    pub hot_since: Option<Time>,
    /// When it was decided.
    pub decided: Time,
    /// When the old replica took no new requests any more.
    pub relieved: Option<Time>,
}

/// Actions under way and being begun. Only a memory: what matters is in Swarm's records.
#[derive(Clone, Debug)]
pub(super) struct Actions {
    token_stem: String,
    next_token: u64,
    next_command: u64,
    outstanding: BTreeMap<String, Outstanding>,
    last: BTreeMap<String, (Command, CommandResult)>,
    pending: BTreeMap<String, Pending>,
    waits: BTreeMap<String, String>,
    notes: BTreeSet<(String, &'static str)>,
    tracks: BTreeMap<String, Track>,
    hold_off: BTreeMap<String, Time>,
    /// Tokens of orders that were given up before their record appeared, and when.
    given_up: BTreeMap<String, Time>,
    /// Tokens of actions that an operator cancelled, with the reason, until their records say so.
    cancels: BTreeMap<String, String>,
    failing: Failing,
}

impl Actions {
    pub fn new(holder: &str) -> Self {
        let plain: Vec<char> = holder.chars().filter(char::is_ascii_alphanumeric).collect();
        let stem = plain.iter().skip(plain.len().saturating_sub(24)).collect();
        Self {
            token_stem: stem,
            next_token: 1,
            next_command: 1,
            outstanding: BTreeMap::new(),
            last: BTreeMap::new(),
            pending: BTreeMap::new(),
            waits: BTreeMap::new(),
            notes: BTreeSet::new(),
            tracks: BTreeMap::new(),
            hold_off: BTreeMap::new(),
            given_up: BTreeMap::new(),
            cancels: BTreeMap::new(),
            failing: Failing::default(),
        }
    }

    /// A token that no other action of this process has.
    pub fn token(&mut self) -> String {
        let token = format!("{}-{}", self.token_stem, self.next_token);
        self.next_token += 1;
        token
    }

    pub fn answered(&mut self, now: Time, id: CommandId, result: CommandResult) {
        let found = self.outstanding.iter_mut().find(|(_, outstanding)| outstanding.id == id);
        if let Some((name, outstanding)) = found {
            self.failing.answered(now, name, &result);
            outstanding.answer.get_or_insert((now, result));
        }
    }

    /// Some command was answered, and what it did is not seen yet. One that fails again and again is not hurried.
    pub fn awaits_snapshot(&self) -> bool {
        let mut outstanding = self.outstanding.iter();
        outstanding.any(|(name, outstanding)| outstanding.answer.is_some() && !self.failing.is_slow(name))
    }

    /// The record that a command is for, and the command.
    pub fn command(&self, id: CommandId) -> Option<(&str, &Command)> {
        let (name, outstanding) = self.outstanding.iter().find(|(_, outstanding)| outstanding.id == id)?;
        Some((name, &outstanding.command))
    }

    /// Whether the journal is to be told that a command for a record failed, and how many failures it was not told of.
    pub fn failure_is_due(&mut self, record: &str, now: Time) -> Option<u32> {
        self.failing.is_due(record, now)
    }

    /// What an action waits for.
    pub fn waits_for(&self, record: &str) -> Option<&str> {
        self.waits.get(record).map(String::as_str)
    }

    /// Services and nodes that orders not durable yet are about.
    pub fn pending(&self) -> impl Iterator<Item = &Order> {
        self.pending.values().map(|pending| &pending.order)
    }

    pub fn track(&self, token: &str) -> Option<&Track> {
        self.tracks.get(token)
    }

    /// Whether a service is to be left alone for a moment, because an order for it has just failed.
    pub fn is_held_off(&self, service: &ServiceId, now: Time) -> bool {
        self.hold_off.get(&action_name(service)).is_some_and(|until| now < *until)
    }

    /// Leaves a service alone for a moment.
    pub fn hold_off(&mut self, service: &ServiceId, now: Time) {
        self.hold_off.insert(action_name(service), now + HOLD_OFF);
    }

    /// An order is not carried out, though its record may still appear.
    fn give_up(&mut self, token: String, now: Time) {
        self.given_up.retain(|_, at| now - *at < GIVEN_UP);
        if self.given_up.len() >= MAX_GIVEN_UP
            && let Some(oldest) =
                self.given_up.iter().min_by_key(|(_, at)| **at).map(|(token, _)| token.clone())
        {
            self.given_up.remove(&oldest);
        }
        self.given_up.insert(token, now);
    }

    fn is_outstanding(&self, record: &str) -> bool {
        self.outstanding.contains_key(record)
    }

    /// Actions that an operator wants taken back.
    pub fn cancel(&mut self, tokens: BTreeSet<String>, reason: &str) {
        self.cancels.extend(tokens.into_iter().map(|token| (token, reason.to_owned())));
    }

    /// The same, with the reason.
    pub fn cancels(&self) -> Vec<(String, String)> {
        self.cancels.iter().map(|(token, reason)| (token.clone(), reason.clone())).collect()
    }

    /// The record of a cancelled action says so, or that it goes on to its end.
    pub fn forget_cancel(&mut self, token: &str) {
        self.cancels.remove(token);
    }

    /// A cancelled action has no record. One whose record may be on its way is waited for.
    pub fn cancel_pending(&mut self, token: &str) {
        let found = self.pending.iter().find(|(_, pending)| pending.order.token == token);
        let name = found.map(|(name, _)| name.clone());
        if name.as_ref().is_some_and(|name| self.outstanding.contains_key(name)) {
            return;
        }
        if let Some(name) = name {
            self.pending.remove(&name);
        }
        self.cancels.remove(token);
    }

    /// Whether a command may be given out for a record: none is on its way, and those before did not fail just now.
    fn may_issue(&self, record: &str, now: Time) -> bool {
        !self.is_outstanding(record) && !self.failing.is_held(record, now)
    }

    /// Forgets answers whose effect a snapshot now shows, and commands that nobody answered.
    fn settle(&mut self, now: Time, taken: Time) {
        let settled: Vec<String> = self
            .outstanding
            .iter()
            .filter(|(_, outstanding)| match &outstanding.answer {
                Some((at, _)) => taken >= *at,
                None => now - outstanding.sent > ANSWER_WITHIN,
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in settled {
            if let Some(outstanding) = self.outstanding.remove(&name) {
                let lost = || Err(CommandError::Unavailable("nobody answered in time".into()));
                let result = outstanding.answer.map_or_else(lost, |(_, result)| result);
                self.last.insert(name, (outstanding.command, result));
            }
        }
    }
}

/// Name of the record that an intent is kept in.
pub(super) fn record_name(intent: &Intent) -> String {
    match intent {
        Intent::Migrate { service, .. }
        | Intent::ScaleOut { service, .. }
        | Intent::ScaleIn { service, .. }
        | Intent::Rollback { service } => action_name(service),
        Intent::Drain { node } => drain_name(node),
    }
}

impl Brain {
    /// Records of ours that are not tombstones.
    pub(super) fn actions_under_way(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| !record.is_over())
    }

    /// Whether an action is only being undone and has given its node back, or never had one. Such a one may wait for a
    /// stuck rollout of somebody else for as long as that takes, and must not keep others from acting.
    pub(super) fn is_waiting_out(&self, record: &Record) -> bool {
        let holds =
            |lease: &Record| lease.kind == Kind::Node && lease.token == record.token && !lease.is_over();
        record.state == State::Undoing && !self.records.iter().any(holds)
    }

    /// Whether an action on a service is under way or being begun.
    pub(super) fn is_busy(&self, service: &ServiceId) -> bool {
        self.actions.pending().any(|order| order.intent.service() == Some(service))
            || self.actions_under_way().any(|record| {
                record.service.as_ref() == Some(service) && !matches!(record.kind, Kind::Node | Kind::Drain)
            })
    }

    /// Reads our records anew, and forgets what none of them needs any more.
    pub(super) fn forget(&mut self, now: Time) {
        let Some(snapshot) = self.view.snapshot.clone() else { return };
        let ours = snapshot.records.values().filter(|object| is_record(&object.name));
        let known = std::mem::replace(
            &mut self.records,
            ours.filter_map(|object| Record::parse(object).ok()).collect(),
        );
        self.revive_lost(now, &known, &snapshot);
        let actions = &mut self.actions;
        let exists = |name: &String| snapshot.records.contains_key(name);
        actions.waits.retain(|name, _| exists(name));
        actions.failing.forget(now, exists);
        self.said.forget_gone(|service| snapshot.services.contains_key(service));
        let outstanding = &actions.outstanding;
        actions.last.retain(|name, _| exists(name) || outstanding.contains_key(name));
        let mut tokens: BTreeSet<String> = self.records.iter().map(|record| record.token.clone()).collect();
        tokens.extend(actions.pending.values().map(|pending| pending.order.token.clone()));
        actions.notes.retain(|(token, _)| tokens.contains(token));
        actions.tracks.retain(|token, _| tokens.contains(token));
    }

    /// Records of actions of ours that somebody removed by hand come back, to undo what was begun.
    fn revive_lost(&mut self, now: Time, known: &[Record], snapshot: &Snapshot) {
        if !self.is_acting() {
            return;
        }
        for record in known {
            let gone = !snapshot.records.contains_key(&record.name)
                && record.service.as_ref().is_some_and(|service| snapshot.services.contains_key(service));
            if gone
                && record.holder == self.settings.holder
                && self.may_issue(&record.name, now)
                && let Some(command) = action::revive(record)
            {
                self.issue(now, &record.name, command);
            }
        }
    }

    /// Takes every record, and every order that is not durable yet, one step further. Called with each new snapshot.
    pub(super) fn act(&mut self, now: Time) {
        let Some(snapshot) = self.view.snapshot.clone() else { return };
        self.actions.settle(now, snapshot.taken);
        self.actions.hold_off.retain(|_, until| now < *until);
        if !self.is_acting() {
            // It is another's turn: what was not durable was never begun.
            for pending in std::mem::take(&mut self.actions.pending).into_values() {
                self.actions.give_up(pending.order.token, now);
            }
            self.actions.cancels.clear();
            return;
        }
        self.begin_pending(now);
        self.write_cancels(now);
        for object in snapshot.records.values().filter(|object| is_record(&object.name)) {
            if !self.may_issue(&object.name, now) {
                continue;
            }
            if self.is_given_up(object) {
                self.journal_late(&object.name);
                self.issue(now, &object.name, Command::RemoveRecord { id: object.id.clone() });
                continue;
            }
            if let Some(step) = self.target_lost(now, object, &snapshot) {
                self.follow(now, &object.name, step, None);
                continue;
            }
            let last = self.actions.last.get(&object.name).cloned();
            let record = Record::parse(object).ok();
            let context = Context {
                holder: &self.settings.holder,
                since: self.view.history.ages.since(object, now),
                last: last.as_ref().map(|(command, result)| (command, result)),
                ages: &self.view.history.ages,
                answers: record.as_ref().is_some_and(|record| self.answers(record, &snapshot, now)),
                tuning: &self.settings.tuning,
            };
            let step = action::step(object, &snapshot, now, &context);
            let drain = record.filter(|record| record.kind == Kind::Drain);
            self.follow(now, &object.name, step, drain.as_ref());
        }
        self.follow_scales(now);
        self.follow_rollbacks(now);
        self.run_jobs(now);
        self.write_wishes(now);
    }

    /// Whether a record is of an order that was given up before the record was there: nothing was done for it.
    fn is_given_up(&self, object: &RecordObject) -> bool {
        Record::parse(object).is_ok_and(|record| {
            record.holder == self.settings.holder && self.actions.given_up.contains_key(&record.token)
        })
    }

    fn follow(&mut self, now: Time, name: &str, step: Step, drain: Option<&Record>) {
        for note in &step.notes {
            self.journal_note(now, note);
        }
        match step.next {
            Next::Do(command) => {
                self.actions.waits.remove(name);
                // A drain takes back a move of its own. What is on its way for that one comes first: a mark that arrived
                // after the node was unpaused would cost replicas.
                match &command {
                    Command::UpdateRecord { name: other, .. } if other != name => {
                        if self.may_issue(other, now) {
                            let other = other.clone();
                            self.issue(now, &other, command);
                        }
                    }
                    _ => self.issue(now, name, command),
                }
            }
            Next::Wait { why, .. } => {
                self.actions.waits.insert(name.into(), why);
            }
            Next::Start { intent, token } => {
                if let Some(drain) = drain {
                    self.start_for_drain(now, drain, intent, token);
                }
            }
            Next::Over { outcome, .. } => {
                let said = match outcome {
                    Outcome::Done => "over: done".into(),
                    Outcome::Undone { why, .. } => format!("over: {why}"),
                };
                self.actions.waits.insert(name.into(), said);
            }
        }
    }

    /// Gives a command out for a record; one at a time.
    pub(super) fn issue(&mut self, now: Time, name: &str, command: Command) {
        let id = CommandId(self.actions.next_command);
        self.actions.next_command += 1;
        self.statistics.commands += 1;
        self.commands.push_back((id, command.clone()));
        self.actions.outstanding.insert(name.into(), Outstanding { id, command, sent: now, answer: None });
    }

    /// Whether a command may be given out for a record.
    pub(super) fn may_issue(&self, record: &str, now: Time) -> bool {
        self.actions.may_issue(record, now)
    }

    /// An order of the policy's, a drain's or an operator's begins: the first command is given out, the rest follows
    /// with the snapshots.
    ///
    /// # Errors
    /// When it cannot begin now; nothing was done.
    pub(super) fn begin(&mut self, now: Time, order: Order, hot_since: Option<Time>) -> Result<(), Refusal> {
        let busy = |text: &str| Refusal {
            code: Rule::Busy,
            text: text.into(),
            otherwise: "the end of what is under way".into(),
        };
        let name = record_name(&order.intent);
        if self.actions.pending.contains_key(&name) {
            return Err(busy("another action has just begun"));
        }
        let Some(snapshot) = self.view.snapshot.clone() else { return Err(busy("Swarm was not read yet")) };
        let step = action::begin(&order, &snapshot)?;
        let track = Track { hot_since, decided: now, relieved: None };
        self.actions.tracks.insert(order.token.clone(), track);
        let Step { next, notes } = step;
        self.actions.pending.insert(name.clone(), Pending { order, since: now, notes });
        // A tombstone may just be on its way out: then the order begins with the snapshot that shows it gone.
        if !self.actions.is_outstanding(&name) {
            self.follow(now, &name, Step { next, notes: Vec::new() }, None);
        }
        Ok(())
    }

    /// Orders whose record is not there yet: those that first had to remove a tombstone go on, those whose lease went
    /// to somebody else are given up.
    fn begin_pending(&mut self, now: Time) {
        let Some(snapshot) = self.view.snapshot.clone() else { return };
        let names: Vec<String> = self.actions.pending.keys().cloned().collect();
        for name in names {
            let Some(pending) = self.actions.pending.get(&name) else { continue };
            let (order, since) = (pending.order.clone(), pending.since);
            let record = snapshot.records.get(&name).and_then(|object| Record::parse(object).ok());
            if record.is_some_and(|record| record.token == order.token) {
                if let Some(pending) = self.actions.pending.remove(&name) {
                    pending.notes.iter().for_each(|note| self.journal_note(now, note));
                }
                continue;
            }
            let in_time = now - since <= DURABLE_WITHIN;
            if self.actions.is_outstanding(&name) || in_time && self.actions.failing.is_held(&name, now) {
                continue;
            }
            let created = is_created(self.actions.last.get(&name), &name);
            let refused = if !in_time {
                let text = "its lease could not be taken in time".into();
                Err(Refusal { code: Rule::LeaseNotTaken, text, otherwise: "an engine that answers".into() })
            } else if created {
                // Created, and a manager that lags behind does not show it yet.
                continue;
            } else {
                action::begin(&order, &snapshot)
            };
            match refused {
                Ok(Step { next, notes }) => {
                    if let Some(pending) = self.actions.pending.get_mut(&name) {
                        pending.notes = notes;
                    }
                    self.follow(now, &name, Step { next, notes: Vec::new() }, None);
                }
                Err(refusal) => {
                    self.actions.pending.remove(&name);
                    self.actions.give_up(order.token.clone(), now);
                    self.actions.hold_off.insert(name, now + HOLD_OFF);
                    self.journal_refused(now, &order, &refusal);
                }
            }
        }
    }

    /// A drain wants a service's replica moved.
    fn start_for_drain(&mut self, now: Time, drain: &Record, intent: Intent, token: String) {
        let Some(service) = intent.service().cloned() else { return };
        if self.is_busy(&service) || self.actions.is_held_off(&service, now) {
            return;
        }
        if !self.has_room(&intent) {
            self.actions.waits.insert(drain.name.clone(), "the end of other actions".into());
            return;
        }
        if let Some(finding) = self.stays(&service, now) {
            let Some(snapshot) = self.view.snapshot.clone() else { return };
            let name =
                snapshot.services.get(&service).map_or_else(String::new, |service| service.name.clone());
            let reason = format!("{name} cannot leave: {}", finding.text);
            if let Some(object) = snapshot.records.get(&drain.name)
                && let Some(command) = action::cancel(object, &reason)
            {
                self.issue(now, &drain.name, command);
            }
            return;
        }
        let Intent::Migrate { service, source, .. } = intent else { return };
        let target = self.room_for(&service, &source, now).ok();
        let intent = Intent::Migrate { service: service.clone(), source, target };
        let order = Order {
            closed: self.closed(&intent),
            intent,
            token,
            holder: self.settings.holder.clone(),
            cooldown: Duration::ZERO,
            reason: format!("drain {}", drain.token),
            avoid: self.silent(now),
        };
        if let Err(refusal) = self.begin(now, order.clone(), None) {
            self.actions.hold_off(&service, now);
            self.actions.waits.insert(drain.name.clone(), refusal.to_string());
            self.journal_refused(now, &order, &refusal);
        }
    }

    /// Nodes that were heard once and are silent.
    pub(super) fn silent(&self, now: Time) -> Vec<NodeId> {
        let agents = self.view.agents.iter();
        let silent = agents.filter(|(_, agent)| agent.lease.state(now) == LeaseState::Lapsed);
        silent.map(|(node, _)| node.clone()).collect()
    }

    /// A note is journalled once for each action.
    pub(super) fn is_new_note(&mut self, token: &str, code: &'static str) -> bool {
        self.actions.notes.insert((token.into(), code))
    }

    /// When a replica stopped taking requests, for the figures of its action.
    pub(super) fn note_relieved(&mut self, token: &str, now: Time) {
        if let Some(track) = self.actions.tracks.get_mut(token) {
            track.relieved.get_or_insert(now);
        }
    }

    /// How many actions leave each node, orders not durable yet included.
    pub(super) fn leaving(&self) -> BTreeMap<NodeId, usize> {
        let mut leaving = BTreeMap::new();
        let pending = self.actions.pending().filter_map(|order| match &order.intent {
            Intent::Migrate { source, .. } => Some(source.clone()),
            Intent::ScaleIn { node, .. } | Intent::Drain { node } => Some(node.clone()),
            Intent::ScaleOut { .. } | Intent::Rollback { .. } => None,
        });
        let under_way = self
            .actions_under_way()
            .filter(|record| record.kind != Kind::Node && !self.is_waiting_out(record));
        for node in pending.chain(under_way.filter_map(|record| record.source.clone())) {
            *leaving.entry(node).or_default() += 1;
        }
        leaving
    }
}

/// Whether the last command for a record made it. What an operator had before is kept under a name of its own, before the
/// tombstone that knows it goes: that is no lease.
fn is_created(last: Option<&(Command, CommandResult)>, name: &str) -> bool {
    matches!(last, Some((Command::CreateRecord { name: made, .. }, Ok(()))) if made == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_that_is_kept_is_no_lease() {
        let made = |name: &str, result| {
            (Command::CreateRecord { name: name.into(), labels: BTreeMap::new(), data: Vec::new() }, result)
        };
        let lease = "swarmguard-act-s1";
        assert!(is_created(Some(&made(lease, Ok(()))), lease));
        assert!(!is_created(Some(&made("swarmguard-prev-s1", Ok(()))), lease));
        assert!(!is_created(Some(&made(lease, Err(CommandError::Refused("no".into())))), lease));
        assert!(!is_created(None, lease));
    }
}
