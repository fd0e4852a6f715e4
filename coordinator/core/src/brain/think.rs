//! A round of judgement: what bears on it is gathered, verdicts are kept and journalled, and orders given.

use swarmguard_common::{
    domain::{NodeId, ServiceId},
    time::Time,
};

use super::{Brain, SNAPSHOT_VALID, outcomes};
use crate::{
    action::{self, Intent, Kind, Order},
    explain::{Conclusion, Finding, Judgement},
    policy::{self, Situation, Spare, Verdict, preflight},
    rule::Rule,
    swarm::Mode,
};

/// The last verdict of a service.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub judgement: Judgement,
    pub at: Time,
}

impl Brain {
    pub(super) fn think(&mut self, now: Time) {
        let Some(snapshot) = self.view.snapshot.clone() else { return };
        if now - snapshot.taken > SNAPSHOT_VALID {
            return;
        }
        self.note_needed(now);
        self.note_heat(now);
        self.judge_outcomes(now);
        let situation = self.situation();
        let verdicts = policy::decide(&self.view, &situation, now);
        let judged: std::collections::BTreeSet<&ServiceId> =
            verdicts.iter().map(|verdict| &verdict.service).collect();
        self.verdicts.retain(|service, _| judged.contains(service));
        for verdict in verdicts {
            self.conclude(now, verdict);
        }
        self.judge_jobs(now);
    }

    fn conclude(&mut self, now: Time, mut verdict: Verdict) {
        let acts = verdict.intent.is_some() && self.is_acting() && !verdict.observed;
        if acts && let Some(intent) = verdict.intent.clone() {
            if self.actions.is_held_off(&verdict.service, now) {
                return;
            }
            self.order(now, &mut verdict, intent);
        } else if self.leads() && verdict.judgement.conclusion != Conclusion::Calm {
            self.journal_verdict(now, &verdict);
        }
        self.verdicts.insert(verdict.service.clone(), Known { judgement: verdict.judgement, at: now });
    }

    fn note_heat(&mut self, now: Time) {
        let Some(snapshot) = self.view.snapshot.clone() else { return };
        let hot = policy::hot_since(&self.view, now);
        for service in snapshot.services.keys() {
            let busy = self.is_busy(service);
            self.view.history.note_heat(service, now, hot.get(service).copied(), busy);
        }
    }

    /// What was to be done is turned down by a rule of the brain's own.
    fn turned_down(&mut self, now: Time, verdict: &mut Verdict, rule: Rule, text: String, otherwise: String) {
        verdict.intent = None;
        verdict.judgement.conclusion = Conclusion::Refuse;
        verdict.judgement.rule = rule;
        verdict.judgement.text = text;
        verdict.judgement.otherwise = otherwise;
        self.journal_verdict(now, verdict);
    }

    fn order(&mut self, now: Time, verdict: &mut Verdict, intent: Intent) {
        let node = outcomes::leaves(&intent).cloned();
        // Taking away what is spare relieves nobody and harms nobody that is not hot: only remedies cost.
        let costs = !matches!(intent, Intent::ScaleIn { .. });
        if costs && let Err(left) = self.budget.take(now, &verdict.service, node.as_ref()) {
            let text = format!(
                "as much was done about it, or off its node, in the last hour as may be; else: {}",
                verdict.judgement.text
            );
            let otherwise = format!("{} s more, or an operator's order", left.as_secs() + 1);
            self.turned_down(now, verdict, Rule::Budget, text, otherwise);
            return;
        }
        let hot_since = verdict.judgement.hot_for.map(|stood| now.before(stood));
        let token = self.actions.token();
        let order = Order {
            closed: self.closed(&intent),
            intent,
            token: token.clone(),
            holder: self.settings.holder.clone(),
            cooldown: verdict.keep,
            reason: verdict.judgement.text.clone(),
            avoid: self.silent(now),
        };
        // Journalled first, so that the decision stands before the first step.
        let entries = self.entries.len();
        self.journal_decision(verdict, &order.token);
        self.said.forget(&verdict.service);
        if let Err(refusal) = self.begin(now, order, hot_since) {
            self.entries.truncate(entries);
            self.budget.give_back(&verdict.service, node.as_ref().filter(|_| costs));
            self.turned_down(now, verdict, refusal.code, refusal.text, refusal.otherwise);
        } else {
            let remedy = matches!(verdict.judgement.rule, Rule::Migrate | Rule::Relief | Rule::ScaleOut);
            if let Some(intent) = verdict.intent.clone().filter(|_| remedy) {
                self.expect_outcome(now, &intent, &token);
            }
            self.statistics.decisions += 1;
        }
    }

    fn note_needed(&mut self, now: Time) {
        let Some(snapshot) = self.view.snapshot.clone() else { return };
        for service in snapshot.services.values() {
            let Ok(policy) = &service.policy else { continue };
            if !policy.enabled || policy.scale_min.is_none() {
                continue;
            }
            if !matches!(service.mode, Mode::Replicated(_)) {
                continue;
            }
            // While something of ours is under way not all replicas serve. What was needed before still counts.
            if self.is_busy(&service.id) {
                continue;
            }
            let needed = match policy::spare(&self.view, service, policy, now) {
                Spare::Needed { replicas, .. } => Some(replicas),
                Spare::Unknown(_) => None,
            };
            self.view.history.note_needed(&service.id, now, needed, policy.down_window);
            let over = policy::is_over(&self.view, service, policy, now);
            self.view.history.note_over(&service.id, now, over);
        }
    }

    /// What bears on the rules besides the view.
    pub(super) fn situation(&self) -> Situation {
        let mut situation = Situation {
            max_actions: self.settings.max_actions.max(1),
            max_actions_per_node: self.settings.max_actions_per_node.max(1),
            paused_all: self.wishes.paused_all(),
            paused: self.wishes.paused().cloned().collect(),
            observe: self.settings.observe || self.wishes.observe(),
            leaving: self.leaving(),
            ..Situation::default()
        };
        for record in self.actions_under_way() {
            if matches!(record.kind, Kind::Node | Kind::Drain) {
                continue;
            }
            situation.under_way += usize::from(!self.is_waiting_out(record));
            if let Some(service) = &record.service {
                situation.busy.insert(service.clone(), record.token.clone());
                let targets = self.view.snapshot.as_deref().map(|snapshot| action::targets(record, snapshot));
                for target in targets.into_iter().flatten() {
                    situation.arrives(target, service, record.source.as_ref());
                }
            }
        }
        for order in self.actions.pending() {
            let Some(service) = order.intent.service() else { continue };
            if situation.busy.insert(service.clone(), order.token.clone()).is_none() {
                situation.under_way += 1;
                situation.arrives_by(&order.intent);
            }
        }
        situation
    }

    /// Whether the limits leave room for one more action. A drain's own node lease does not count against it.
    pub(super) fn has_room(&self, intent: &Intent) -> bool {
        let situation = self.situation();
        let source = match intent {
            Intent::Migrate { source, .. } => Some(source),
            Intent::ScaleIn { node, .. } => Some(node),
            _ => None,
        };
        let draining = |node: &NodeId| {
            self.actions_under_way()
                .any(|record| record.kind == Kind::Drain && record.source.as_ref() == Some(node))
        };
        let here = source.map_or(0, |node| {
            let all = situation.leaving.get(node).copied().unwrap_or(0);
            all.saturating_sub(usize::from(draining(node)))
        });
        situation.under_way < situation.max_actions && here < situation.max_actions_per_node
    }

    /// What keeps a service where it is even at an operator's word. That two replicas run for a moment is not: who asks
    /// for the move accepts it.
    pub(super) fn stays(&self, service: &ServiceId, now: Time) -> Option<Finding> {
        let service = self.view.snapshot.as_ref()?.services.get(service)?;
        let default = swarmguard_common::labels::ServicePolicy::default();
        let policy = service.policy.as_ref().unwrap_or(&default);
        let found = preflight::findings(service, policy, &self.view.seen(service, now));
        found.into_iter().find(|finding| finding.refuses && finding.code != Rule::Singleton)
    }

    /// Nodes that Swarm's filters would refuse for one more replica of the service that an intent is about.
    pub(super) fn closed(&self, intent: &Intent) -> Vec<NodeId> {
        let Some(snapshot) = self.view.snapshot.as_deref() else { return Vec::new() };
        let Some(service) = intent.service().and_then(|id| snapshot.services.get(id)) else {
            return Vec::new();
        };
        let refuses = |node: &&crate::swarm::Node| {
            policy::placement::obstacle(self.view.placed(), service, node).is_some()
        };
        snapshot.nodes.values().filter(refuses).map(|node| node.id.clone()).collect()
    }

    /// The node with most room for one more replica of a service, other than its source.
    pub(super) fn room_for(&self, service: &ServiceId, source: &NodeId, now: Time) -> Result<NodeId, String> {
        policy::most_room(&self.view, &self.situation(), service, Some(source), now)
    }
}
