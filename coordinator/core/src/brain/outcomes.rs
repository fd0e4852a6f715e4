//! Did it help? What each remedy was to change is kept with its prediction and compared once it has had time to show.
//! Less than a third of what was predicted is in vain: its like rests for a while. Several in vain in a row, among all
//! services, say that the rules do not fit this cluster: automation pauses, and says so.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::{
    domain::{NodeId, ServiceId},
    journal::{Entry, Kind as EntryKind},
    time::Time,
};

use super::{Brain, wishes::Change};
use crate::{
    action::{Intent, Kind},
    policy::{self, Figure},
};

/// What was done shows itself within this time after it is over: a replica is mature, figures have settled.
const SHOWS: Duration = Duration::from_secs(15);
/// Remedies that did not end within this time are no longer watched.
const GIVEN_UP: Duration = Duration::from_secs(600);
/// Share of what was predicted below which a remedy was in vain.
const HELPED: f64 = 1.0 / 3.0;
/// A node or replicas less busy than this were not short of CPU.
const MATTERS: f64 = 0.6;
/// So many in vain in a row pause automation.
const IN_A_ROW: u32 = 3;

#[derive(Clone, Debug)]
struct Remedy {
    intent: Intent,
    token: String,
    begun: Time,
    before: Figure,
}

/// Remedies under way or just over, one for each service at most.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcomes {
    remedies: BTreeMap<ServiceId, Remedy>,
    in_vain: u32,
}

/// How a remedy turned out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Helped,
    InVain { predicted_points: f64, points: f64 },
}

fn compare(before: Figure, after: Figure, adds: bool) -> Outcome {
    let predicted = before.is - before.predicted;
    let fell = before.is - after.is;
    // Where all was in use more is served, though each is as busy as before.
    let serves_more = adds && before.used_millis > 0.0 && {
        let share = before.is / before.predicted.max(0.01) - 1.0;
        after.used_millis / before.used_millis - 1.0 >= share * HELPED
    };
    if fell >= predicted * HELPED || serves_more {
        Outcome::Helped
    } else {
        Outcome::InVain { predicted_points: predicted * 100.0, points: fell * 100.0 }
    }
}

impl Brain {
    /// Keeps what an order is to change.
    pub(super) fn expect_outcome(&mut self, now: Time, intent: &Intent, token: &str) {
        let Some(service) = intent.service().cloned() else { return };
        let before = policy::figure(&self.view, intent, now);
        // The one before had no time to show itself by its own figures: those of now tell whether it serves more.
        if let Some(old) = self.outcomes.remedies.remove(&service)
            && let Some(after) = before.filter(|_| matches!(old.intent, Intent::ScaleOut { .. }))
            && compare(old.before, after, true) == Outcome::Helped
        {
            self.budget.give_back(&service, leaves(&old.intent));
        }
        // Where CPU is not the matter it does not tell.
        let Some(before) = before.filter(|before| before.is >= MATTERS) else { return };
        let remedy = Remedy { intent: intent.clone(), token: token.into(), begun: now, before };
        self.outcomes.remedies.insert(service, remedy);
    }

    /// Compares what has had time to show.
    pub(super) fn judge_outcomes(&mut self, now: Time) {
        let services: Vec<ServiceId> = self.outcomes.remedies.keys().cloned().collect();
        for service in services {
            let Some(remedy) = self.outcomes.remedies.get(&service) else { continue };
            let adds = matches!(remedy.intent, Intent::ScaleOut { .. });
            let kind = if adds { Kind::ScaleOut } else { Kind::Migrate };
            let ended = self.view.history.ended(&service, kind, &remedy.token);
            let (ended, undone) = match ended {
                Some(ended) => ended,
                None if now - remedy.begun < GIVEN_UP => continue,
                None => (now, true),
            };
            // The next remedy of the service, or another action, makes the figures its own.
            if undone || self.is_busy(&service) {
                self.outcomes.remedies.remove(&service);
                continue;
            }
            if now - ended < SHOWS {
                continue;
            }
            let Some(remedy) = self.outcomes.remedies.remove(&service) else { continue };
            let Some(after) = policy::figure_after(&self.view, &remedy.intent, now) else { continue };
            let outcome = compare(remedy.before, after, adds);
            let node = leaves(&remedy.intent).cloned();
            match outcome {
                Outcome::Helped => {
                    self.outcomes.in_vain = 0;
                    self.view.history.note_outcome(&service, kind, now, true);
                    self.budget.give_back(&service, node.as_ref());
                }
                Outcome::InVain { predicted_points, points } => {
                    let rests = self.view.history.note_outcome(&service, kind, now, false);
                    self.tell_in_vain(&service, adds, &remedy.token, (predicted_points, points), rests);
                    self.outcomes.in_vain += 1;
                    if self.outcomes.in_vain >= IN_A_ROW {
                        self.outcomes.in_vain = 0;
                        self.pause_itself(now);
                    }
                }
            }
        }
    }

    fn tell_in_vain(
        &mut self,
        service: &ServiceId,
        adds: bool,
        token: &str,
        (predicted, is): (f64, f64),
        rests: Duration,
    ) {
        let what = if adds { "the replicas added" } else { "the move" };
        let text = format!(
            "{what} did not help: {predicted:.0} points less busy were predicted, {is:.0} came; none more for {} min",
            rests.as_secs() / 60
        );
        let mut entry = Entry::new(EntryKind::Notice, "in_vain", text);
        entry.service = Some(service.clone());
        entry.action = Some(token.into());
        entry.figures.insert("predicted_points".into(), predicted);
        entry.figures.insert("points".into(), is);
        self.note_entry(entry);
    }

    fn pause_itself(&mut self, now: Time) {
        if !self.is_acting() || self.wishes.paused_all() {
            return;
        }
        let change = Change::pause(None, Some("SwarmGuard"));
        if self.wishes.ask(now, change) {
            self.write_wishes(now);
            let text = format!(
                "automation paused itself: {IN_A_ROW} actions in a row did not help; `resume` has it go on"
            );
            self.note_entry(Entry::new(EntryKind::Notice, "paused_itself", text));
        }
    }
}

/// The node that an order leaves.
pub(super) fn leaves(intent: &Intent) -> Option<&NodeId> {
    match intent {
        Intent::Migrate { source: node, .. } | Intent::ScaleIn { node, .. } => Some(node),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(is: f64, predicted: f64, used_millis: f64) -> Figure {
        Figure { is, predicted, used_millis }
    }

    #[test]
    fn a_third_of_what_was_predicted_is_enough() {
        let move_off = figure(0.95, 0.65, 900.0);
        assert_eq!(compare(move_off, figure(0.70, 0.0, 900.0), false), Outcome::Helped);
        assert_eq!(compare(move_off, figure(0.84, 0.0, 900.0), false), Outcome::Helped);
        assert!(matches!(compare(move_off, figure(0.92, 0.0, 900.0), false), Outcome::InVain { .. }));
        // Two replicas at their limits, and a third: as busy as before, but half as much again is served.
        let step = figure(1.0, 0.667, 2_000.0);
        assert_eq!(compare(step, figure(1.0, 0.0, 3_000.0), true), Outcome::Helped);
        assert!(matches!(compare(step, figure(1.0, 0.0, 2_050.0), true), Outcome::InVain { .. }));
    }
}
