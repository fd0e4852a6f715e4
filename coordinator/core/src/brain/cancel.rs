//! Taking back what is under way at an operator's word. The word is kept until the action's record says that it is being
//! undone: a command for the record may be on its way just then, and would win.

use std::collections::BTreeSet;

use swarmguard_common::{
    domain::{NodeId, ServiceId},
    time::Time,
};

use super::{Accepted, Brain, NotTaken, operator::not_taken, wishes::Change};
use crate::{
    action::{self, Intent, Kind, Record, is_record},
    swarm::{RecordObject, Snapshot},
};

impl Brain {
    pub(super) fn cancel_by_hand(
        &mut self,
        now: Time,
        by: &str,
        service: Option<ServiceId>,
        node: Option<NodeId>,
        action: Option<String>,
    ) -> Result<Accepted, NotTaken> {
        if [service.is_some(), node.is_some(), action.is_some()].iter().filter(|named| **named).count() != 1 {
            let text = "a service, a node or an action is to be named, and only one of them";
            return Err(not_taken("which_action", text, "one of service, node, action"));
        }
        let steps = service.as_ref().is_some_and(|id| self.forget_steps(now, id));
        let meant = |of: Option<&ServiceId>, source: Option<&NodeId>, token: &str| {
            service.as_ref().is_some_and(|service| of == Some(service))
                || node.as_ref().is_some_and(|node| source == Some(node))
                || action.as_ref().is_some_and(|action| token == action)
        };
        let mut tokens = BTreeSet::new();
        let mut late = None;
        for record in self.actions_under_way().filter(|record| record.kind != Kind::Node) {
            if !meant(record.service.as_ref(), record.source.as_ref(), &record.token) {
                continue;
            }
            if record.is_late() {
                late = Some(record.clone());
            } else {
                tokens.insert(record.token.clone());
            }
        }
        let pending = self.actions.pending().filter(|order| {
            let source = match &order.intent {
                Intent::Migrate { source, .. } => Some(source),
                Intent::ScaleIn { node, .. } | Intent::Drain { node } => Some(node),
                Intent::ScaleOut { .. } | Intent::Rollback { .. } => None,
            };
            meant(order.intent.service(), source, &order.token)
        });
        tokens.extend(pending.map(|order| order.token.clone()));
        let text = match (tokens.iter().next(), late, steps) {
            (Some(first), _, _) => {
                let more =
                    if tokens.len() > 1 { format!(" and {} more", tokens.len() - 1) } else { String::new() };
                format!("{by}: {first}{more} is taken back")
            }
            (None, Some(record), false) => {
                let text = format!("{} {} is in phase {} already", record.kind, record.token, record.state);
                return Err(not_taken("too_late", text, "nothing: it ends by itself"));
            }
            (None, _, true) => format!("{by}: no further replica is taken away"),
            (None, None, false) => {
                let text = "nothing of it is under way".to_owned();
                return Err(not_taken("nothing_under_way", text, "an action that is under way"));
            }
        };
        let token = tokens.first().cloned();
        self.actions.cancel(tokens, &format!("at the word of {by}"));
        self.journal_operator("cancel", text.clone(), service, token.clone());
        self.write_cancels(now);
        Ok(Accepted { action: token, text })
    }

    /// Steps of a scale-in that are still to come.
    fn forget_steps(&mut self, now: Time, service: &ServiceId) -> bool {
        let stands = self.wishes.scales().iter().any(|(id, ..)| id == service);
        let forgotten = stands && self.wishes.ask(now, Change::scale(service, None));
        if forgotten {
            self.write_wishes(now);
        }
        forgotten
    }

    /// Has the records of cancelled actions say so; those that say so, are over, or never came to be need no word more.
    pub(super) fn write_cancels(&mut self, now: Time) {
        let Some(snapshot) = self.view.snapshot.clone() else { return };
        for (token, reason) in self.actions.cancels() {
            let Some((object, record)) = found(&snapshot, &token) else {
                self.actions.cancel_pending(&token);
                continue;
            };
            if record.is_late() {
                self.actions.forget_cancel(&token);
            } else if self.may_issue(&object.name, now)
                && let Some(command) = action::cancel(object, &reason)
            {
                self.issue(now, &object.name, command);
            }
        }
    }
}

fn found<'a>(snapshot: &'a Snapshot, token: &str) -> Option<(&'a RecordObject, Record)> {
    let ours = snapshot.records.values().filter(|object| is_record(&object.name));
    ours.filter_map(|object| Some((object, Record::parse(object).ok()?)))
        .find(|(_, record)| record.token == token && record.kind != Kind::Node)
}
