//! How long a successor may take, by what it is doing: find a node, be pulled and created, become healthy. Each has a
//! time of its own, and a service whose own healthcheck gives it ten minutes to start has them here, too.

use std::time::Duration;

use serde_json::Value;

use super::{Tuning, look::Look, record::Why};
use crate::swarm::{Service, Task, TaskState};

/// Docker's defaults for what a healthcheck does not say.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const RETRIES: u64 = 3;
/// Between the last check that counts and what a reading of Swarm shows of it.
const MARGIN: Duration = Duration::from_secs(30);
/// What Swarm says of a task that simply waits for the scheduler.
const SAYS_NOTHING: [&str; 3] = ["", "pending task scheduling", "created"];

/// From the start of its container until a replica must be healthy: as the label says, else as its healthcheck allows,
/// and never less than what is usual.
pub(super) fn start(service: &Service, tuning: &Tuning) -> Duration {
    let label = service.policy.as_ref().ok().and_then(|policy| policy.start_deadline);
    label
        .unwrap_or_else(|| healthcheck(&service.spec).map_or(tuning.starting, |own| own.max(tuning.starting)))
}

/// Start period, and as many checks as may fail, each with its timeout.
fn healthcheck(spec: &Value) -> Option<Duration> {
    let check = spec.pointer("/TaskTemplate/ContainerSpec/Healthcheck")?.as_object()?;
    let nanos = |key: &str| check.get(key).and_then(Value::as_u64).filter(|nanos| *nanos > 0);
    let of = |key: &str, default: Duration| nanos(key).map_or(default, Duration::from_nanos);
    let retries = u32::try_from(nanos("Retries").unwrap_or(RETRIES)).unwrap_or(u32::MAX);
    let each = of("Interval", INTERVAL).saturating_add(of("Timeout", TIMEOUT));
    Some(
        of("StartPeriod", Duration::ZERO).saturating_add(each.saturating_mul(retries)).saturating_add(MARGIN),
    )
}

/// Which of its times a successor has used up, in words for people; `None` while there is time.
pub(super) fn passed(look: &Look<'_>, added: &[&Task]) -> Option<(Why, String)> {
    let tuning = look.context.tuning;
    let start = start(look.service, tuning);
    let failed = failures(look);
    if failed.len() >= tuning.tries
        && let Some(last) = failed.last()
    {
        return Some((Why::NotHealthy, format!("{} starts failed, the last {last}", failed.len())));
    }
    for task in added.iter().filter(|task| !task.is_serving()) {
        let stood = look.now - look.context.ages.task_since(&task.id, look.now);
        let node = task.node.as_ref().map_or_else(|| "no node".into(), |node| look.hostname(node));
        match task.state {
            // One that waits out the delay before it is started again.
            _ if task.desired < TaskState::Running => {}
            state if task.node.is_none() && state <= TaskState::Pending && stood > tuning.pending => {
                let text = format!("Swarm found no node for the successor in {} s", tuning.pending.as_secs());
                return Some((Why::NoNode, with_words(text, &task.message)));
            }
            state if task.node.is_some() && state < TaskState::Starting && stood > tuning.pulling => {
                let text = format!(
                    "the successor was not created on {node} in {} s: it is {}",
                    tuning.pulling.as_secs(),
                    state.word()
                );
                return Some((Why::NotHealthy, with_words(text, &task.message)));
            }
            TaskState::Starting if stood > start => {
                let text =
                    format!("the successor on {node} was not healthy {} s after its start", start.as_secs());
                return Some((Why::NotHealthy, text));
            }
            _ => {}
        }
    }
    // Whatever it does, and however often it is begun anew.
    let all = (tuning.pending + tuning.pulling).saturating_add(start);
    if look.age() > all {
        let mut text = format!("the successor did not become healthy in {} s", all.as_secs());
        if let Some(last) = failed.last() {
            text.push_str(&format!("; its last start {last}"));
        }
        return Some((Why::NotHealthy, text));
    }
    None
}

/// Starts of added replicas that came to nothing since the action began, in words, the newest last.
fn failures(look: &Look<'_>) -> Vec<String> {
    let before = &look.record.before;
    let mut failed: Vec<_> = look
        .snapshot
        .failures
        .values()
        .filter(|failure| failure.service == look.service.id)
        .filter(|failure| !before.tasks.iter().any(|task| task.slot == failure.slot))
        .filter(|failure| failure.version > before.version)
        .collect();
    failed.sort_by_key(|failure| failure.version);
    let words = |failure: &&crate::swarm::Failure| {
        let node = failure.node.as_ref().map_or_else(|| "no node".into(), |node| look.hostname(node));
        with_words(format!("on {node} was {}", failure.state.word()), &failure.message)
    };
    failed.iter().map(words).collect()
}

fn with_words(text: String, swarm: &str) -> String {
    if SAYS_NOTHING.contains(&swarm) { text } else { format!("{text}: {swarm}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::testing::replicated;

    fn with(check: Value) -> Service {
        let mut service = replicated("s1", 2);
        service.spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"] = check;
        service
    }

    #[test]
    fn a_service_has_the_time_to_start_that_its_healthcheck_gives_it() {
        let tuning = Tuning::default();
        let seconds = |service: &Service| start(service, &tuning).as_secs();
        let slow = json!({"Test": ["CMD", "true"], "Interval": 30_000_000_000_u64, "StartPeriod": 600_000_000_000_u64});
        assert_eq!(seconds(&with(slow)), 600 + 3 * 60 + 30, "start period, three checks, margin");
        let quick = json!({"Test": ["CMD", "true"], "Interval": 1_000_000_000, "Timeout": 1_000_000_000, "Retries": 2});
        assert_eq!(seconds(&with(quick)), 120, "never less than what is usual");
        assert_eq!(seconds(&with(json!({"Test": ["NONE"]}))), 210, "Docker's own defaults");
        let mut labelled = with(json!({"StartPeriod": 600_000_000_000_u64}));
        labelled.policy.as_mut().expect("valid labels").start_deadline = Some(Duration::from_secs(45));
        assert_eq!(seconds(&labelled), 45, "the label has the last word");
    }
}
