//! Proxies that ask: each has a place among the balancers as long as it asks, and says "drained" of a replica by asking
//! again after it was told that the replica goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use swarmguard_common::{domain::TaskId, time::Time};

use crate::ingest::hub::{Hub, Seat};

/// Who has not asked for so long has no place any more.
const ASKS: Duration = Duration::from_secs(15);
/// Proxies that are waited for; more are answered all the same.
const MAX_ASKERS: usize = 64;

/// What asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `agent-check`.
    HaProxy,
    /// The HTTP provider.
    Traefik,
}

/// Those that ask.
#[derive(Debug)]
pub struct Askers {
    hub: Arc<Hub>,
    all: Mutex<BTreeMap<(IpAddr, Kind), Asker>>,
}

#[derive(Debug)]
struct Asker {
    seat: Seat,
    last: Time,
    /// Services that it ever asked about.
    services: BTreeSet<String>,
    /// How often it was told that a replica goes.
    told: BTreeMap<TaskId, u32>,
}

impl Askers {
    /// Nobody has asked yet.
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { hub, all: Mutex::default() }
    }

    /// Somebody asked about these services and was told that these replicas go. `service_of` names the service of a task.
    pub fn asked(
        &self,
        (from, kind): (IpAddr, Kind),
        now: Time,
        services: impl IntoIterator<Item = String>,
        going: &[TaskId],
        service_of: impl Fn(&TaskId) -> Option<String>,
    ) {
        let mut all = self.all();
        if !all.contains_key(&(from, kind)) {
            let name = match kind {
                Kind::HaProxy => format!("HAProxy at {from}"),
                Kind::Traefik => format!("Traefik at {from}"),
            };
            if all.len() >= MAX_ASKERS {
                return;
            }
            let Some(seat) = self.hub.join(&name) else { return };
            let asker = Asker { seat, last: now, services: BTreeSet::new(), told: BTreeMap::new() };
            all.insert((from, kind), asker);
        }
        let Some(asker) = all.get_mut(&(from, kind)) else { return };
        asker.last = now;
        asker.services.extend(services);
        // Its messages are for balancers that hold a connection; it learns the same by asking.
        while asker.seat.urgent.try_recv().is_ok() {}
        let owes = self.hub.owes(asker.seat.id);
        asker.told.retain(|task, _| owes.contains(task));
        for task in going {
            *asker.told.entry(task.clone()).or_default() += 1;
        }
        let done: Vec<TaskId> = owes
            .into_iter()
            .filter(|task| {
                // The second answer says that it took the first in, and what was in flight had the time between them.
                let told = asker.told.get(task).is_some_and(|times| *times >= 2);
                let theirs = service_of(task).is_some_and(|service| asker.services.contains(&service));
                told || !theirs
            })
            .collect();
        if !done.is_empty() {
            self.hub.drained(asker.seat.id, &done);
        }
    }

    /// Lets go of those that ask no more.
    pub fn tidy(&self, now: Time) {
        self.all().retain(|_, asker| {
            let asks = now.since(asker.last) < ASKS;
            if !asks {
                self.hub.leave(asker.seat.id);
            }
            asks
        });
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<(IpAddr, Kind), Asker>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn a_replica_is_drained_when_it_was_asked_about_twice_and_others_hold_nothing_up() {
        let hub = Arc::new(Hub::default());
        let askers = Askers::new(Arc::clone(&hub));
        let (who, task) =
            ((IpAddr::from([10, 0, 0, 9]), Kind::HaProxy), "t1".parse::<TaskId>().expect("an ID"));
        let now = Time::from_millis(1_000);
        let of = |task: &TaskId| Some(if task.as_str() == "t1" { "web".to_owned() } else { "db".to_owned() });
        askers.asked(who, now, ["web".to_owned()], &[], of);
        assert_eq!(hub.connected(), 1);
        let waiting = tokio::spawn({
            let (hub, tasks) = (Arc::clone(&hub), ["t1", "t2"].map(|id| id.parse().expect("an ID")));
            async move { hub.drain(&tasks, LONG).await }
        });
        tokio::task::yield_now().await;
        askers.asked(who, now, ["web".to_owned()], std::slice::from_ref(&task), of);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "it was told for the first time");
        askers.asked(who, now, ["web".to_owned()], &[task], of);
        assert!(waiting.await.expect("no panic").is_empty(), "t2 is of a service that it never asked about");
        askers.tidy(now + ASKS);
        assert_eq!(hub.connected(), 0);
    }
}
