//! Running jobs again whose node was lost. The attempt is written down first (`swarmguard-job-<service id>`, whose
//! labels say which iteration was lost and how often it was run again), then the job is updated with its own spec,
//! which makes Swarm run it anew. A successor that finds the note and the old iteration takes the second step.

use std::collections::BTreeMap;

use swarmguard_common::{domain::ServiceId, time::Time};

use super::{Brain, think::Known};
use crate::{
    action::spec,
    command::Command,
    explain::{Conclusion, Judgement},
    policy::jobs::{self, Again},
    swarm::{RecordObject, Service, Snapshot},
};

const PREFIX: &str = "swarmguard-job-";
const ITERATION: &str = "swarmguard.iteration";
const ATTEMPTS: &str = "swarmguard.attempts";
const HOLDER: &str = "swarmguard.holder";
const ATTEMPT: &str = "swarmguard.attempt.";
/// Longest list of lost nodes that an attempt names.
const MAX_NODES: usize = 8;

/// What the record of a job says.
#[derive(Clone, Copy, Debug, Default)]
struct Noted {
    /// The iteration that the last attempt is to replace.
    iteration: Option<u64>,
    /// Attempts for this run of the job.
    attempts: u32,
}

impl Noted {
    fn read(record: Option<&RecordObject>, current: Option<u64>) -> Self {
        let number = |key: &str| record.and_then(|record| record.labels.get(key)?.parse::<u64>().ok());
        let Some(iteration) = number(ITERATION) else { return Self::default() };
        // Further on than our own last attempt: somebody ran the job anew, and it has all its attempts again.
        if current.is_some_and(|current| current > iteration + 1) {
            return Self::default();
        }
        let attempts = number(ATTEMPTS).and_then(|attempts| u32::try_from(attempts).ok()).unwrap_or(u32::MAX);
        Self { iteration: Some(iteration), attempts }
    }
}

fn record_name(service: &ServiceId) -> String {
    format!("{PREFIX}{service}")
}

/// What is to become of a job.
struct Judged {
    noted: Noted,
    /// The attempt that is noted is not made yet.
    begun: bool,
    judgement: Judgement,
    again: Option<Again>,
    /// Paused, or only observed.
    held: bool,
}

impl Brain {
    fn judge_job(&self, now: Time, snapshot: &Snapshot, service: &Service) -> Option<Judged> {
        let noted = Noted::read(snapshot.records.get(&record_name(&service.id)), service.job_iteration);
        let begun = noted.iteration == service.job_iteration;
        // An attempt that is noted but not made yet is not one of those already made.
        let made = if begun { noted.attempts.saturating_sub(1) } else { noted.attempts };
        let (judgement, again) = jobs::judge(&self.view, service, made, now)?;
        let observe = self.settings.observe
            || self.wishes.observe()
            || service.policy.as_ref().is_ok_and(|policy| policy.observe);
        let held = self.wishes.is_paused(&service.id) || observe;
        Some(Judged { noted, begun, judgement, again, held })
    }

    /// Every job's verdict; whoever leads says what keeps one from being run again, also where nothing may be changed.
    pub(super) fn judge_jobs(&mut self, now: Time) {
        let Some(snapshot) = self.view.snapshot.clone() else { return };
        for service in snapshot.services.values().filter(|service| service.job_iteration.is_some()) {
            let Some(job) = self.judge_job(now, &snapshot, service) else { continue };
            let refused = job.judgement.conclusion == Conclusion::Refuse;
            if self.leads() && (refused || (job.held && job.again.is_some())) {
                self.journal_job(now, service, &job.judgement, job.held);
            }
            self.verdicts.insert(service.id.clone(), Known { judgement: job.judgement, at: now });
        }
    }

    /// Takes the next step of every job that is to be run again.
    pub(super) fn run_jobs(&mut self, now: Time) {
        let Some(snapshot) = self.view.snapshot.clone() else { return };
        for service in snapshot.services.values().filter(|service| service.job_iteration.is_some()) {
            let Some(job) = self.judge_job(now, &snapshot, service).filter(|job| !job.held) else { continue };
            let name = record_name(&service.id);
            let Some(again) = job.again.filter(|_| self.may_issue(&name, now)) else { continue };
            if job.begun {
                self.run_again(now, &name, service, job.noted.attempts);
            } else {
                self.journal_job(now, service, &job.judgement, false);
                self.note_attempt(now, &name, snapshot.records.get(&name), &again, job.noted.attempts + 1);
            }
        }
        let gone = snapshot.records.values().filter(|record| {
            let id = record.name.strip_prefix(PREFIX).and_then(|id| id.parse::<ServiceId>().ok());
            id.is_some_and(|id| !snapshot.services.contains_key(&id))
        });
        for record in gone {
            if self.may_issue(&record.name, now) {
                self.issue(now, &record.name, Command::RemoveRecord { id: record.id.clone() });
            }
        }
    }

    fn note_attempt(
        &mut self,
        now: Time,
        name: &str,
        record: Option<&RecordObject>,
        again: &Again,
        attempt: u32,
    ) {
        let mut labels: BTreeMap<String, String> =
            record.map(|record| record.labels.clone()).unwrap_or_default();
        if attempt == 1 {
            labels.retain(|key, _| !key.starts_with(ATTEMPT));
        }
        let nodes: Vec<String> = again.nodes.iter().take(MAX_NODES).map(|node| self.hostname(node)).collect();
        labels.insert(ITERATION.into(), again.iteration.to_string());
        labels.insert(ATTEMPTS.into(), attempt.to_string());
        labels.insert(HOLDER.into(), self.settings.holder.clone());
        let text = format!("iteration {} was lost with {}", again.iteration, nodes.join(", "));
        labels.insert(format!("{ATTEMPT}{attempt}"), text);
        let command = match record {
            None => Command::CreateRecord { name: name.into(), labels, data: b"{}".to_vec() },
            Some(record) => Command::UpdateRecord {
                id: record.id.clone(),
                version: record.version,
                name: name.into(),
                labels,
                data: record.data.clone(),
            },
        };
        self.issue(now, name, command);
    }

    fn run_again(&mut self, now: Time, name: &str, service: &Service, attempt: u32) {
        self.journal_job_step(now, service, attempt);
        let command = Command::WriteService {
            service: service.id.clone(),
            version: service.version,
            spec: spec::sendable(service.spec.clone()),
        };
        self.issue(now, name, command);
    }
}
