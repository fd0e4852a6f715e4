//! Waiting for a rollout as Swarm carries it out, and taking it back.

use std::time::Duration;

use serde_json::{Value, json};
use swarmguard_runtime::clock;

use super::labels;
use crate::{
    engine::Engine,
    failure::{Failure, Outcome},
    session::Session,
};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// How long all replicas must have run before it counts as done.
const SETTLED: Duration = Duration::from_secs(3);
/// Tasks that failed, with none that runs, from which it will not come to anything.
const FAILURES: usize = 3;
/// Errors that are told.
const MAX_ERRORS: usize = 3;

/// How a rollout ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All replicas run as the spec says.
    Done,
    /// Swarm took it back by itself, with its reason.
    RolledBack(String),
    /// It stopped, with the reason and the tasks' errors.
    Failed(String),
    /// It is not over.
    TooLate,
}

/// A service whose rollout is watched.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Its ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The version from which on its state counts.
    pub version: u64,
    /// When it was changed, as the engine writes it; tasks that failed before are not counted.
    pub since: String,
}

impl Watched {
    /// From a service as it is after the change.
    pub fn of(service: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            id: text(&service["ID"]),
            name: text(&service["Spec"]["Name"]),
            version: service["Version"]["Index"].as_u64().unwrap_or(0),
            since: text(&service["UpdatedAt"]),
        }
    }
}

/// Waits until the rollout has ended, or `longest` has passed.
///
/// # Errors
/// When the engine does not answer.
pub async fn until_over(
    session: &Session,
    engine: &Engine,
    watched: &Watched,
    longest: Duration,
) -> Outcome<Ended> {
    let begun = clock::now();
    let mut running_since = None;
    let mut told = String::new();
    let mut rolled_back = None;
    loop {
        let service = engine.get(&format!("/services/{}", watched.id)).await?;
        let tasks = engine.list("/tasks", &json!({"service": [watched.id]})).await?;
        let now = clock::now();
        let look = Look::at(&service, &tasks, &watched.since);
        let line = format!("{}  {}/{} running  {}", watched.name, look.running, look.wanted, look.state());
        if line != told && session.for_people() {
            session.note(&line);
            told = line;
        }
        if look.update.as_deref() == Some("rollback_started") {
            rolled_back = Some(look.why());
        }
        match look.verdict() {
            Verdict::Ended(ended) => return Ok(ended),
            Verdict::Runs => {
                // Swarm may say no more than "completed" once its own rollback has ended.
                if let Some(why) = rolled_back {
                    return Ok(Ended::RolledBack(why));
                }
                let since = *running_since.get_or_insert(now);
                if now - since >= SETTLED {
                    return Ok(Ended::Done);
                }
            }
            Verdict::Goes => running_since = None,
        }
        if now - begun >= longest {
            return Ok(Ended::TooLate);
        }
        tokio::time::sleep(LOOK).await;
    }
}

struct Look {
    update: Option<String>,
    message: String,
    wanted: usize,
    running: usize,
    failed: usize,
    errors: Vec<String>,
    job: bool,
}

enum Verdict {
    Ended(Ended),
    Runs,
    Goes,
}

impl Look {
    fn at(service: &Value, tasks: &[Value], since: &str) -> Self {
        let wish = |task: &&Value| task["DesiredState"] == "running";
        let state = |task: &Value| task["Status"]["State"].as_str().unwrap_or_default().to_owned();
        let mode = &service["Spec"]["Mode"];
        let desired = tasks.iter().filter(wish).count();
        let wanted = match mode["Replicated"]["Replicas"].as_u64() {
            Some(replicas) => usize::try_from(replicas).unwrap_or(usize::MAX),
            None if mode.get("Replicated").is_some() => 1,
            // Swarm makes a global service's tasks only after a moment.
            None => desired.max(1),
        };
        // Swarm's times are RFC 3339 in UTC, so that they sort as text.
        let mut failed: Vec<&Value> = tasks
            .iter()
            .filter(|task| matches!(state(task).as_str(), "failed" | "rejected"))
            .filter(|task| task["CreatedAt"].as_str().is_some_and(|at| at >= since))
            .collect();
        failed
            .sort_by_key(|task| std::cmp::Reverse(task["CreatedAt"].as_str().unwrap_or_default().to_owned()));
        let mut errors: Vec<String> = failed
            .iter()
            .filter_map(|task| task["Status"]["Err"].as_str())
            .chain(tasks.iter().filter(wish).filter_map(|task| task["Status"]["Err"].as_str()))
            .filter(|error| !error.is_empty())
            .map(ToOwned::to_owned)
            .collect();
        errors.dedup();
        errors.truncate(MAX_ERRORS);
        Self {
            update: service["UpdateStatus"]["State"].as_str().map(ToOwned::to_owned),
            message: service["UpdateStatus"]["Message"].as_str().unwrap_or_default().into(),
            wanted,
            running: tasks.iter().filter(wish).filter(|task| state(task) == "running").count(),
            failed: failed.len(),
            errors,
            job: mode.get("ReplicatedJob").is_some() || mode.get("GlobalJob").is_some(),
        }
    }

    fn state(&self) -> String {
        let mut text = self.update.clone().unwrap_or_else(|| "starting".into());
        if let Some(error) = self.errors.first().filter(|_| self.running < self.wanted) {
            text += &format!("  last error: {error}");
        }
        text
    }

    fn why(&self) -> String {
        match self.errors.is_empty() {
            true => self.message.clone(),
            false => {
                format!("{}: {}", self.message, self.errors.join("; ")).trim_start_matches(": ").to_owned()
            }
        }
    }

    fn verdict(&self) -> Verdict {
        match self.update.as_deref() {
            Some("rollback_completed") => return Verdict::Ended(Ended::RolledBack(self.why())),
            Some("paused" | "rollback_paused") => return Verdict::Ended(Ended::Failed(self.why())),
            Some("updating" | "rollback_started") => return Verdict::Goes,
            _ => {}
        }
        if self.job {
            return Verdict::Ended(Ended::Done);
        }
        if self.running >= self.wanted {
            return Verdict::Runs;
        }
        if self.running == 0 && self.failed >= FAILURES {
            return Verdict::Ended(Ended::Failed(self.why()));
        }
        Verdict::Goes
    }
}

/// Gives a service an earlier spec again, with as many replicas as it has now, and waits for it.
///
/// # Errors
/// When that fails too: then somebody must look.
pub async fn take_back(
    session: &Session,
    engine: &Engine,
    name: &str,
    earlier: &Value,
    longest: Duration,
) -> Outcome<Ended> {
    let service = labels::service(engine, name).await?;
    let mut spec = earlier.clone();
    if let Some(replicas) = service["Spec"]["Mode"]["Replicated"].get("Replicas")
        && spec["Mode"].get("Replicated").is_some()
    {
        spec["Mode"]["Replicated"]["Replicas"] = replicas.clone();
    }
    labels::write(engine, &service, &spec)
        .await
        .map_err(|failure| failure.context(&format!("{name} cannot be rolled back")))?;
    let watched = Watched::of(&labels::service(engine, name).await?);
    match until_over(session, engine, &watched, longest).await? {
        Ended::Failed(why) => {
            Err(Failure::failed(format!("{name}: the spec from before does not run either: {why}"))
                .hint(format!("docker service ps {name} --no-trunc")))
        }
        ended => Ok(ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(update: Value, replicas: u64) -> Value {
        json!({"ID": "s1", "Spec": {"Name": "web", "Mode": {"Replicated": {"Replicas": replicas}}}, "UpdateStatus": update})
    }

    fn task(desired: &str, state: &str, at: &str, error: &str) -> Value {
        json!({"DesiredState": desired, "CreatedAt": at, "Status": {"State": state, "Err": error}})
    }

    fn verdict(service: &Value, tasks: &[Value]) -> Verdict {
        Look::at(service, tasks, "2026-01-01T00:00:05Z").verdict()
    }

    #[test]
    fn what_runs_is_done_and_what_swarm_took_back_is_told() {
        let runs = [task("running", "running", "2026-01-01T00:00:06Z", "")];
        assert!(matches!(verdict(&service(Value::Null, 1), &runs), Verdict::Runs));
        assert!(matches!(verdict(&service(json!({"State": "updating"}), 1), &runs), Verdict::Goes));
        assert!(matches!(verdict(&service(json!({"State": "completed"}), 2), &runs), Verdict::Goes));
        let back = service(json!({"State": "rollback_completed", "Message": "rolled back"}), 1);
        let Verdict::Ended(Ended::RolledBack(why)) = verdict(&back, &runs) else { panic!("rolled back") };
        assert_eq!(why, "rolled back");
    }

    #[test]
    fn a_global_service_without_tasks_does_not_run_yet() {
        let global = json!({"Spec": {"Mode": {"Global": {}}}});
        assert!(matches!(verdict(&global, &[]), Verdict::Goes));
        let runs = [task("running", "running", "2026-01-01T00:00:06Z", "")];
        assert!(matches!(verdict(&global, &runs), Verdict::Runs));
    }

    #[test]
    fn failures_from_before_do_not_count_and_new_ones_are_told_with_their_error() {
        let old: Vec<Value> =
            (0..5).map(|_| task("shutdown", "failed", "2026-01-01T00:00:01Z", "old")).collect();
        assert!(matches!(verdict(&service(Value::Null, 1), &old), Verdict::Goes));
        let new: Vec<Value> =
            (0..3).map(|_| task("shutdown", "rejected", "2026-01-01T00:00:07Z", "no such image")).collect();
        let Verdict::Ended(Ended::Failed(why)) = verdict(&service(Value::Null, 1), &new) else {
            panic!("failed")
        };
        assert!(why.contains("no such image"), "{why}");
    }
}
