//! What is seen while something is broken: replicas of all services, and what the coordinator says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use swarmguard_common::{
    journal::{Entry, Kind},
    time::Time,
};
use swarmguard_runtime::clock;
use tokio::sync::mpsc;

use super::facts::Facts;
use crate::coordinator::Coordinator;

/// Lines that are kept.
const MAX_SEEN: usize = 100;
/// Entries that wait to be looked at.
const MAX_ENTRIES: usize = 256;

/// What has been seen since the fault.
#[derive(Debug)]
pub struct Watch {
    begun: Time,
    /// Service, replicas that it wants and had before.
    wanted: BTreeMap<String, u64>,
    /// Replicas that ran when last looked at, by service.
    last: BTreeMap<String, u64>,
    known: BTreeSet<String>,
    /// Milliseconds after the fault, and words.
    pub seen: Vec<(u64, String)>,
    /// When the coordinator first said something of it.
    pub detected: Option<Time>,
    /// When every service had its replicas again.
    pub repaired: Option<Time>,
    /// A service was short of replicas.
    pub was_short: bool,
    /// Tasks started meanwhile.
    pub restarts: u64,
    /// An alert about a node or service that the fault does not reach.
    pub outside: Option<String>,
}

impl Watch {
    /// From how things are before the fault.
    pub fn begin(facts: &Facts) -> Self {
        let users = facts.services.iter().filter(|service| !service.own || service.part.is_some());
        let wanted: BTreeMap<String, u64> = users
            .filter(|service| !service.job)
            .map(|service| {
                // One that was short before is not the drill's doing.
                let running = facts.running(&service.id) as u64;
                (service.name.clone(), service.wanted.unwrap_or(running).min(running))
            })
            .collect();
        Self {
            begun: clock::now(),
            last: wanted.clone(),
            wanted,
            known: facts.tasks.iter().map(|task| task.id.clone()).collect(),
            seen: Vec::new(),
            detected: None,
            repaired: None,
            was_short: false,
            restarts: 0,
            outside: None,
        }
    }

    /// The fault is made now.
    pub fn made(&mut self, now: Time) {
        self.begun = now;
    }

    fn say(&mut self, now: Time, text: String) {
        if self.seen.len() < MAX_SEEN {
            let ms = u64::try_from(now.since(self.begun).as_millis()).unwrap_or(u64::MAX);
            self.seen.push((ms, text));
        }
    }

    /// How it stands now. A container that was killed is known to Swarm a moment later, so that short means: seen so.
    pub fn look(&mut self, facts: &Facts, now: Time) {
        for task in &facts.tasks {
            let own = facts.service_of(task).is_none_or(|service| service.own && service.part.is_none());
            if !own && self.known.insert(task.id.clone()) {
                self.restarts += 1;
                self.was_short = true;
            }
        }
        let mut changed = Vec::new();
        let mut short = false;
        for (name, wanted) in &self.wanted {
            let Some(service) = facts.service(name) else { continue };
            let running = facts.running(&service.id) as u64;
            short |= running < *wanted;
            if self.last.get(name) != Some(&running) {
                changed.push((name.clone(), running, *wanted));
            }
        }
        for (name, running, wanted) in changed {
            self.say(now, format!("{name}: {running} of {wanted} replicas run"));
            self.last.insert(name, running);
        }
        if short {
            self.was_short = true;
            self.repaired = None;
        } else if self.was_short && self.repaired.is_none() {
            self.repaired = Some(now);
            self.say(now, "every service has its replicas".into());
        }
    }

    /// Whether every service has its replicas.
    pub fn is_whole(&self) -> bool {
        !self.was_short || self.repaired.is_some()
    }

    /// What the coordinator says; `reached` are the names of what the fault is about.
    pub fn hear(&mut self, entry: &Entry, reached: &BTreeSet<String>, nodes: &BTreeMap<String, String>) {
        if matches!(entry.kind, Kind::Operator | Kind::Notice) {
            return;
        }
        let now = clock::now();
        let node = entry.node.as_ref().and_then(|node| nodes.get(node.as_str())).cloned();
        let about = [node, entry.service_name.clone()].into_iter().flatten();
        let about: Vec<String> = about.collect();
        let ours = about.iter().any(|name| reached.contains(name));
        if ours && self.detected.is_none() {
            self.detected = Some(now);
        }
        let alert = entry.kind == Kind::Alert && entry.code.ends_with("_raise");
        if alert && !ours && !about.is_empty() && self.outside.is_none() {
            self.outside = Some(format!("{}: {}", about.join(", "), entry.text));
        }
        if ours || alert {
            self.say(now, format!("{} {}: {}", kind(entry.kind), entry.code, entry.text));
        }
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Alert => "alert",
        Kind::Decision => "decision",
        Kind::Refusal => "refusal",
        Kind::Action => "action",
        Kind::Lease => "lease",
        Kind::Notice => "notice",
        Kind::Operator => "operator",
    }
}

/// The journal from `since` on, also across coordinators that go and come.
pub fn follow(coordinator: Arc<Coordinator>, mut since: u64) -> mpsc::Receiver<Entry> {
    let (tell, heard) = mpsc::channel(MAX_ENTRIES);
    tokio::spawn(async move {
        loop {
            if let Ok(mut events) = coordinator.events(&format!("/api/v1/events?since={since}")).await {
                while let Some(event) = events.next().await {
                    let Ok(entry) = serde_json::from_str::<Entry>(&event.data) else { continue };
                    since = since.max(entry.id);
                    if tell.send(entry).await.is_err() {
                        return;
                    }
                }
            }
            if tell.is_closed() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    heard
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::facts::{Service, Task};

    fn facts(tasks: &[(&str, bool)]) -> Facts {
        let task = |(id, running): &(&str, bool)| Task {
            id: (*id).into(),
            service: "s".into(),
            running: *running,
            ..Task::default()
        };
        Facts {
            services: vec![Service {
                id: "s".into(),
                name: "web".into(),
                wanted: Some(2),
                ..Service::default()
            }],
            tasks: tasks.iter().map(task).collect(),
            ..Facts::default()
        }
    }

    #[test]
    fn what_was_lost_is_repaired_when_a_new_one_serves() {
        let before = facts(&[("1", true), ("2", true)]);
        let mut watch = Watch::begin(&before);
        let at = |ms| Time::from_millis(ms);
        watch.made(at(0));
        watch.look(&before, at(100));
        assert!(watch.is_whole() && watch.restarts == 0);
        watch.look(&facts(&[("1", true)]), at(500));
        watch.look(&facts(&[("1", true), ("3", false)]), at(900));
        assert!(!watch.is_whole());
        watch.look(&facts(&[("1", true), ("3", true)]), at(2_500));
        assert_eq!((watch.repaired, watch.restarts, watch.is_whole()), (Some(at(2_500)), 1, true));
        let said: Vec<&str> = watch.seen.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(
            said,
            ["web: 1 of 2 replicas run", "web: 2 of 2 replicas run", "every service has its replicas"]
        );
    }

    #[test]
    fn one_that_was_replaced_between_two_looks_was_short_too() {
        let mut watch = Watch::begin(&facts(&[("1", true), ("2", true)]));
        watch.look(&facts(&[("1", true), ("3", true)]), clock::now());
        assert!(watch.was_short && watch.repaired.is_some() && watch.restarts == 1);
    }
}
