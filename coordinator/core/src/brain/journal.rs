//! What the brain writes down: alert edges, decisions, refusals (when the reason changes, and once a minute while it
//! stands), leases, and steps of actions.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::{
    domain::{Condition, ContainerId, Edge, NodeId, ServiceId, TaskId},
    journal::{Entry, Kind},
    time::Time,
};

use super::{Brain, MAX_ENTRIES};
use crate::{
    action::{Note, Order, Refusal},
    command::{Command, CommandError, CommandId},
    explain::{Conclusion, Judgement},
    lease::LeaseState,
    policy::Verdict,
    rule::Rule,
    swarm::Service,
    view::agent::NewEdge,
};

/// A refusal that stands is said again after this long.
const AGAIN: Duration = Duration::from_secs(60);

/// Alert edges of one container and condition are written down this often at most: one that flutters, or an agent that
/// makes them up, must not push out what people did.
const EDGES_EVERY: Duration = Duration::from_secs(10);
/// Most containers and conditions whose last edge is remembered; beyond that none is written down.
const MAX_EDGES: usize = 16_384;

/// What was said lately: of each service, bounded by the services that there are, and of each alert.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    /// When a raise (`true`) or a clear was last written down.
    edges: BTreeMap<(NodeId, Option<ContainerId>, Condition, bool), Time>,
    job_steps: BTreeMap<ServiceId, Time>,
    refusals: BTreeMap<ServiceId, BTreeMap<Rule, Time>>,
}

impl Said {
    /// Whether a rule is to be said of a service now; if so it counts as said.
    fn is_due(&mut self, service: &ServiceId, rule: Rule, now: Time) -> bool {
        let rules = self.refusals.entry(service.clone()).or_default();
        // Each rule for itself: two that take turns are not news at every turn.
        if rules.get(&rule).is_some_and(|at| now - *at < AGAIN) {
            return false;
        }
        rules.retain(|_, at| now - *at < AGAIN);
        rules.insert(rule, now);
        true
    }

    /// The same for the steps of a job that runs again.
    fn is_due_step(&mut self, service: &ServiceId, now: Time) -> bool {
        let due = self.job_steps.get(service).is_none_or(|at| now - *at >= AGAIN);
        if due {
            self.job_steps.insert(service.clone(), now);
        }
        due
    }

    /// Whether an alert edge is to be written down now; if so it counts as written.
    fn is_edge_due(&mut self, node: &NodeId, edge: &NewEdge, now: Time) -> bool {
        let key = (node.clone(), edge.container.clone(), edge.condition, edge.edge == Edge::Raise);
        if self.edges.get(&key).is_some_and(|at| now - *at < EDGES_EVERY) {
            return false;
        }
        if self.edges.len() >= MAX_EDGES {
            self.edges.retain(|_, at| now - *at < EDGES_EVERY);
        }
        if self.edges.len() >= MAX_EDGES {
            return false;
        }
        self.edges.insert(key, now);
        true
    }

    /// After an action everything is news again.
    pub fn forget(&mut self, service: &ServiceId) {
        self.refusals.remove(service);
        self.job_steps.remove(service);
    }

    /// What was said of services that are gone.
    pub fn forget_gone(&mut self, exists: impl Fn(&ServiceId) -> bool) {
        self.refusals.retain(|service, _| exists(service));
        self.job_steps.retain(|service, _| exists(service));
    }
}

impl Brain {
    fn write(&mut self, mut entry: Entry) {
        if self.entries.len() >= MAX_ENTRIES {
            self.statistics.dropped_entries += 1;
            return;
        }
        entry.service_name = entry.service.as_ref().and_then(|id| self.service_name(id));
        self.entries.push_back(entry);
    }

    /// Writes down something that the rules found.
    pub(super) fn note_entry(&mut self, entry: Entry) {
        if self.leads() {
            self.write(entry);
        }
    }

    pub(super) fn service_name(&self, service: &ServiceId) -> Option<String> {
        self.view.snapshot.as_ref()?.services.get(service).map(|service| service.name.clone())
    }

    pub(super) fn hostname(&self, node: &NodeId) -> String {
        let snapshot = self.view.snapshot.as_ref();
        let known = snapshot.and_then(|snapshot| snapshot.nodes.get(node)).map(|node| node.hostname.clone());
        let said = || self.view.agents.get(node).map(|agent| agent.hello.hostname.clone());
        known.or_else(said).unwrap_or_else(|| node.to_string())
    }

    pub(super) fn journal_edge(&mut self, now: Time, node: &NodeId, edge: &NewEdge) {
        let (word, over) = match edge.edge {
            Edge::Raise => ("raise", ""),
            Edge::Clear => ("clear", " is over"),
            // It still stands: nothing new.
            Edge::Refresh => return,
        };
        if !edge.news || !self.said.is_edge_due(node, edge, now) {
            self.statistics.dropped_entries += 1;
            return;
        }
        let container = edge.container.as_ref().and_then(|id| self.view.agents.get(node)?.containers.get(id));
        let service =
            container.and_then(|container| self.view.service_of(container)).map(|found| found.id.clone());
        let task: Option<TaskId> = container.and_then(|container| {
            let known = self.view.task_of(&container.intro.container, container.intro.task.as_ref());
            known.map(|task| task.id.clone()).or_else(|| container.intro.task.clone())
        });
        let condition = edge.condition.to_string();
        let text = format!("{condition}{over} at {:.1} % on {}", edge.percent, self.hostname(node));
        let mut entry = Entry::new(Kind::Alert, format!("{}_{word}", condition.replace(' ', "_")), text);
        (entry.service, entry.task, entry.node) = (service, task, Some(node.clone()));
        entry.figures.insert("value_percent".into(), edge.percent);
        entry.figures.insert("age_ms".into(), f64::from(edge.age_ms));
        self.write(entry);
    }

    pub(super) fn journal_late(&mut self, record: &str) {
        let text = format!(
            "the engine made {record} only after its order had been given up; it is removed, and nothing was changed"
        );
        self.write(Entry::new(Kind::Notice, "late_answer", text));
    }

    pub(super) fn journal_came(&mut self, node: &NodeId, again: bool) {
        let (code, what) = if again { ("agent_again", "came again") } else { ("agent_came", "came") };
        let version =
            self.view.agents.get(node).map_or_else(String::new, |agent| agent.hello.version.clone());
        let mut entry = Entry::new(
            Kind::Lease,
            code,
            format!("the agent of {} {what}, version {version}", self.hostname(node)),
        );
        entry.node = Some(node.clone());
        self.write(entry);
    }

    pub(super) fn journal_went(&mut self, node: &NodeId) {
        let text = format!("the connection of the agent of {} ended; its lease runs on", self.hostname(node));
        let mut entry = Entry::new(Kind::Lease, "agent_went", text);
        entry.node = Some(node.clone());
        self.write(entry);
    }

    pub(super) fn journal_lease(
        &mut self,
        now: Time,
        node: &NodeId,
        before: Option<LeaseState>,
        state: LeaseState,
    ) {
        let host = self.hostname(node);
        let (code, text) = match (before, state) {
            (None | Some(LeaseState::Live), LeaseState::Live) => {
                ("lease_granted", format!("{host} holds a node lease"))
            }
            (_, LeaseState::Live) => ("lease_renewed", format!("{host} is heard again")),
            (_, LeaseState::Suspect) => ("lease_suspect", format!("{host} has been silent for a while")),
            (_, LeaseState::Lapsed) => {
                ("lease_lapsed", format!("{host} is silent: what it said counts no more"))
            }
        };
        let mut entry = Entry::new(Kind::Lease, code, text);
        entry.node = Some(node.clone());
        if let Some(agent) = self.view.agents.get(node) {
            entry.figures.insert("age_ms".into(), agent.lease.age(now).as_secs_f64() * 1_000.0);
            entry.figures.insert("patience".into(), f64::from(agent.lease.patience()));
        }
        self.write(entry);
    }

    fn from_verdict(kind: Kind, code: &str, verdict: &Verdict) -> Entry {
        let judgement = &verdict.judgement;
        let mut entry = Entry::new(kind, code, judgement.text.clone());
        entry.service = Some(verdict.service.clone());
        entry.task.clone_from(&judgement.task);
        entry.node.clone_from(&judgement.node);
        entry.target.clone_from(&judgement.target);
        entry.figures = judgement.signals.iter().map(|(name, value)| ((*name).into(), *value)).collect();
        entry.rule = Some(judgement.rule.word().into());
        entry.otherwise = Some(judgement.otherwise.clone());
        entry
    }

    /// A refusal, or a decision that is only observed.
    pub(super) fn journal_verdict(&mut self, now: Time, verdict: &Verdict) {
        if !self.said.is_due(&verdict.service, verdict.judgement.rule, now) {
            return;
        }
        let entry = match (&verdict.intent, verdict.judgement.conclusion) {
            (Some(intent), Conclusion::Act) => {
                self.statistics.decisions += 1;
                let mut entry = Self::from_verdict(Kind::Decision, kind_word(intent), verdict);
                entry.text = format!("observed only: {}", entry.text);
                entry
            }
            _ => {
                self.statistics.refusals += 1;
                Self::from_verdict(Kind::Refusal, verdict.judgement.rule.word(), verdict)
            }
        };
        self.write(entry);
    }

    pub(super) fn journal_decision(&mut self, verdict: &Verdict, token: &str) {
        let Some(intent) = &verdict.intent else { return };
        let mut entry = Self::from_verdict(Kind::Decision, kind_word(intent), verdict);
        entry.action = Some(token.into());
        self.write(entry);
    }

    /// An order that could not begin after all.
    pub(super) fn journal_refused(&mut self, now: Time, order: &Order, refusal: &Refusal) {
        if let Some(service) = order.intent.service()
            && !self.said.is_due(service, refusal.code, now)
        {
            return;
        }
        self.statistics.refusals += 1;
        let mut entry = Entry::new(Kind::Refusal, refusal.code.word(), refusal.text.clone());
        entry.service = order.intent.service().cloned();
        entry.action = Some(order.token.clone());
        entry.rule = Some(refusal.code.word().into());
        entry.otherwise = Some(refusal.otherwise.clone());
        self.write(entry);
    }

    /// A verdict about a job. `held` is one that is paused or only observed.
    pub(super) fn journal_job(&mut self, now: Time, service: &Service, judgement: &Judgement, held: bool) {
        if !self.said.is_due(&service.id, judgement.rule, now) {
            return;
        }
        let acts = judgement.conclusion == Conclusion::Act;
        let (kind, counter) = if acts {
            (Kind::Decision, &mut self.statistics.decisions)
        } else {
            (Kind::Refusal, &mut self.statistics.refusals)
        };
        *counter += 1;
        let prefix = if held && acts { "paused or observed only: " } else { "" };
        let mut entry = Entry::new(kind, judgement.rule.word(), format!("{prefix}{}", judgement.text));
        entry.service = Some(service.id.clone());
        entry.node.clone_from(&judgement.node);
        entry.figures = judgement.signals.iter().map(|(name, value)| ((*name).into(), *value)).collect();
        entry.rule = Some(judgement.rule.word().into());
        entry.otherwise = Some(judgement.otherwise.clone());
        self.write(entry);
    }

    /// A job is being run again.
    pub(super) fn journal_job_step(&mut self, now: Time, service: &Service, attempt: u32) {
        if !self.said.is_due_step(&service.id, now) {
            return;
        }
        let mut entry = Entry::new(Kind::Action, "job_again", format!("run again, attempt {attempt}"));
        entry.service = Some(service.id.clone());
        entry.figures.insert("attempt".into(), f64::from(attempt));
        self.write(entry);
    }

    /// An operator's word.
    pub(super) fn journal_operator(
        &mut self,
        code: &str,
        text: String,
        service: Option<ServiceId>,
        action: Option<String>,
    ) {
        let mut entry = Entry::new(Kind::Decision, code, text);
        (entry.service, entry.action, entry.rule) = (service, action, Some("operator".into()));
        self.write(entry);
    }

    /// Operators' wishes that were taken and could not be written.
    pub(super) fn journal_given_up(&mut self, labels: &[String]) {
        let text = format!(
            "not written in time, and given up: {}; ask again where it still holds",
            labels.join(", ")
        );
        self.write(Entry::new(Kind::Notice, "wish_given_up", text));
    }

    pub(super) fn journal_note(&mut self, now: Time, note: &Note) {
        if !self.is_new_note(&note.action, note.code) {
            return;
        }
        if matches!(note.code, "balancers_drained" | "removed") {
            self.note_relieved(&note.action, now);
        }
        let mut entry = Entry::new(Kind::Action, note.code, note.text.clone());
        entry.service.clone_from(&note.service);
        entry.task.clone_from(&note.task);
        entry.node.clone_from(&note.node);
        entry.target.clone_from(&note.target);
        entry.action = Some(note.action.clone());
        entry.figures.clone_from(&note.figures);
        if let Some(track) = self.actions.track(&note.action) {
            let ms = |from: Time, to: Time| (to - from).as_secs_f64() * 1_000.0;
            entry.figures.insert("since_decision_ms".into(), ms(track.decided, now));
            if let Some(hot_since) = track.hot_since {
                entry.figures.insert("since_hot_ms".into(), ms(hot_since, now));
                if let Some(relieved) = track.relieved {
                    entry.figures.insert("mttr_ms".into(), ms(hot_since, relieved));
                }
            }
        }
        self.write(entry);
    }

    pub(super) fn journal_failure(&mut self, now: Time, id: CommandId, error: &CommandError) {
        let Some((record, command)) = self.actions.command(id) else { return };
        let what = match command {
            Command::CreateRecord { .. } => "taking the lease",
            Command::UpdateRecord { .. } => "noting the state",
            Command::RemoveRecord { .. } => "removing the record",
            Command::WriteService { .. } => "writing the service",
            Command::WriteNode { .. } => "writing the node",
            Command::DrainBalancers { .. } => "draining at the balancers",
            Command::ResumeBalancers { .. } => "resuming at the balancers",
        };
        let text = format!("{what} for {record} failed, looking again: {error}");
        let record = record.to_owned();
        let Some(unsaid) = self.actions.failure_is_due(&record, now) else { return };
        let mut entry = Entry::new(Kind::Notice, "command_failed", text);
        entry.figures.insert("failures_not_told".into(), unsaid.into());
        self.write(entry);
    }
}

/// The word of an intent in decisions.
pub(super) fn kind_word(intent: &crate::action::Intent) -> &'static str {
    use crate::action::Intent;
    match intent {
        Intent::Migrate { .. } => "migrate",
        Intent::ScaleOut { .. } => "scale_out",
        Intent::ScaleIn { .. } => "scale_in",
        Intent::Rollback { .. } => "rollback",
        Intent::Drain { .. } => "drain",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_kept_for_services_that_there_are() {
        let at = |ms: u64| Time::from_millis(1_000_000 + ms);
        let (web, gone): (ServiceId, ServiceId) =
            ("web".parse().expect("an ID"), "gone".parse().expect("an ID"));
        let mut said = Said::default();
        assert!(said.is_due(&web, Rule::Calm, at(0)) && said.is_due(&gone, Rule::Calm, at(0)));
        assert!(!said.is_due(&web, Rule::Calm, at(59_999)), "said a moment ago");
        said.forget_gone(|service| *service == web);
        assert_eq!(said.refusals.keys().collect::<Vec<_>>(), [&web]);
        assert!(said.is_due(&web, Rule::Calm, at(60_000)), "it still stands");
    }
}
