//! Routes out to all balancers, and who still owes a "drained".
//!
//! A balancer that goes away in the middle of a drain may still be sending requests by the routes it knows, so its debt
//! stays until it comes back under its name or the deadline passes: waiting a little is cheaper than a lost request.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use swarmguard_common::{
    domain::TaskId,
    time::Time,
    wire::{
        codec::CodecError,
        routes::{BalancerStats, FromRouteSource, Routes},
    },
};
use swarmguard_runtime::frame;
use tokio::sync::{mpsc, watch};

/// Balancers at once, those that are owed for included.
const MAX_BALANCERS: usize = 256;
/// Drain and resume messages that wait for one balancer; one that reads no faster is disconnected.
const URGENT_QUEUE: usize = 64;
/// Answers of a replica, over all balancers, after which it is known to answer.
const ANSWERS: u64 = 3;
/// Figures of balancers count for this long; they come once a second.
const FRESH: Duration = Duration::from_secs(5);

/// The balancers.
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
    routes: watch::Sender<Arc<[u8]>>,
    /// Counts up whenever a debt was paid.
    paid: watch::Sender<u64>,
    /// Counts up whenever what drains changes.
    stirred: watch::Sender<u64>,
    /// Counts figures of balancers.
    figured: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    balancers: BTreeMap<u64, Balancer>,
    draining: BTreeSet<TaskId>,
    /// The same for agents, balanced over HTTP or not.
    leaving: BTreeSet<TaskId>,
}

#[derive(Debug)]
struct Balancer {
    name: String,
    /// `None`: it is gone, and only its debt is left.
    urgent: Option<mpsc::Sender<Arc<[u8]>>>,
    owes: BTreeSet<TaskId>,
    /// Its newest figures, with those before them.
    figures: Option<Figures>,
}

/// Two figures of a balancer: what is between them makes rates.
#[derive(Clone, Debug)]
pub struct Figures {
    /// When the newest came.
    pub at: Time,
    /// The newest.
    pub newest: BalancerStats,
    /// Those before; `None` at first, and when the balancer began anew.
    pub before: Option<BalancerStats>,
}

/// A balancer's place in the hub.
#[derive(Debug)]
pub struct Seat {
    /// Its number.
    pub id: u64,
    /// Drain and resume, as frames.
    pub urgent: mpsc::Receiver<Arc<[u8]>>,
    /// The newest routes, as a frame.
    pub routes: watch::Receiver<Arc<[u8]>>,
}

impl Default for Hub {
    fn default() -> Self {
        let empty = framed(&FromRouteSource::Routes(Routes::default())).unwrap_or_else(|_| Arc::from([]));
        Self {
            state: Mutex::default(),
            routes: watch::Sender::new(empty),
            paid: watch::Sender::new(0),
            stirred: watch::Sender::new(0),
            figured: watch::Sender::new(0),
        }
    }
}

impl Hub {
    /// Takes a balancer in; `None` when there are too many.
    pub fn join(&self, name: &str) -> Option<Seat> {
        let mut state = self.state();
        // Back under its name: it reads the routes anew, in which what drains is marked.
        let returned = state.balancers.iter().find(|(_, one)| one.urgent.is_none() && one.name == name);
        if let Some(old) = returned.map(|(id, _)| *id) {
            state.balancers.remove(&old);
        }
        if state.balancers.len() >= MAX_BALANCERS {
            return None;
        }
        state.next += 1;
        let id = state.next;
        let (sender, urgent) = mpsc::channel(URGENT_QUEUE);
        let owes = state.draining.clone();
        if !owes.is_empty()
            && let Ok(frame) = framed(&FromRouteSource::Drain { tasks: owes.iter().cloned().collect() })
        {
            // The queue is new and empty.
            let _ = sender.try_send(frame);
        }
        state.balancers.insert(id, Balancer { name: name.into(), urgent: Some(sender), owes, figures: None });
        drop(state);
        self.pay();
        Some(Seat { id, urgent, routes: self.routes.subscribe() })
    }

    /// The balancer is gone. What it owes stays until it returns or a deadline passes.
    pub fn leave(&self, id: u64) {
        let mut state = self.state();
        let Some(balancer) = state.balancers.get_mut(&id) else { return };
        if balancer.owes.is_empty() {
            state.balancers.remove(&id);
        } else {
            balancer.urgent = None;
        }
    }

    /// The balancer sends nothing to these replicas any more.
    pub fn drained(&self, id: u64, tasks: &[TaskId]) {
        if let Some(balancer) = self.state().balancers.get_mut(&id) {
            for task in tasks {
                balancer.owes.remove(task);
            }
        }
        self.pay();
    }

    /// Tells every balancer that these replicas go, and waits until all said "drained" or the deadline passed.
    /// Returns the names of those that did not.
    pub async fn drain(&self, tasks: &[TaskId], deadline: Duration) -> Vec<String> {
        let mut paid = self.paid.subscribe();
        {
            let mut state = self.state();
            state.draining.extend(tasks.iter().cloned());
            state.leaving.extend(tasks.iter().cloned());
            for balancer in state.balancers.values_mut() {
                balancer.owes.extend(tasks.iter().cloned());
            }
            state.tell(&FromRouteSource::Drain { tasks: tasks.into() });
        }
        self.stir();
        let all = async {
            while !self.owing(tasks).is_empty() {
                if paid.changed().await.is_err() {
                    break;
                }
            }
        };
        if tokio::time::timeout(deadline, all).await.is_ok() {
            return Vec::new();
        }
        let late = self.owing(tasks);
        self.forgive(tasks);
        late
    }

    /// Tells every balancer that these replicas stay after all.
    pub fn resume(&self, tasks: &[TaskId]) {
        self.forgive(tasks);
        let mut state = self.state();
        for task in tasks {
            state.draining.remove(task);
            state.leaving.remove(task);
        }
        state.tell(&FromRouteSource::Resume { tasks: tasks.into() });
        drop(state);
        self.stir();
    }

    /// What is about to be stopped; what is not `alive` any more is forgotten.
    pub fn leaving(&self, alive: impl Fn(&TaskId) -> bool) -> BTreeSet<TaskId> {
        let mut state = self.state();
        state.leaving.retain(alive);
        state.leaving.clone()
    }

    /// Changes whenever what is about to be stopped does.
    pub fn stirs(&self) -> watch::Receiver<u64> {
        self.stirred.subscribe()
    }

    fn stir(&self) {
        self.stirred.send_modify(|count| *count += 1);
    }

    /// Marks nothing as draining any more, without a word to the balancers: another coordinator acts now.
    pub fn forget_drains(&self) {
        let mut state = self.state();
        state.draining.clear();
        state.leaving.clear();
    }

    /// Publishes routes; replicas that are being drained are marked, and those that are gone are forgotten.
    ///
    /// # Errors
    /// When the routes exceed a frame: balancers then keep what they have.
    pub fn publish(&self, mut routes: Routes) -> Result<(), CodecError> {
        let replicas = || routes.services.values().flat_map(|service| &service.replicas);
        let mut state = self.state();
        if !state.draining.is_empty() {
            let alive: BTreeSet<TaskId> = replicas().map(|replica| replica.task.clone()).collect();
            state.draining.retain(|task| alive.contains(task));
            for replica in routes.services.values_mut().flat_map(|service| &mut service.replicas) {
                replica.draining |= state.draining.contains(&replica.task);
            }
        }
        drop(state);
        self.routes.send_replace(framed(&FromRouteSource::Routes(routes))?);
        Ok(())
    }

    /// A balancer told how it does.
    pub fn figures(&self, id: u64, newest: BalancerStats, at: Time) {
        if let Some(balancer) = self.state().balancers.get_mut(&id) {
            let before = balancer.figures.take().map(|figures| figures.newest);
            let before = before.filter(|before| before.uptime_ms < newest.uptime_ms);
            balancer.figures = Some(Figures { at, newest, before });
        }
        self.figured.send_modify(|count| *count += 1);
    }

    /// Changes whenever a balancer told figures: an action may wait for the answers of a replica. Not with the drains of
    /// [`Self::stirs`]: balancers tell figures every second, and routes do not depend on them.
    pub fn told_figures(&self) -> watch::Receiver<u64> {
        self.figured.subscribe()
    }

    /// Replicas that answered at least [`ANSWERS`] requests of balancers, by figures that are fresh.
    pub fn answering(&self, now: Time) -> BTreeSet<TaskId> {
        let state = self.state();
        let fresh = state.balancers.values().filter_map(|one| one.figures.as_ref());
        let fresh = fresh.filter(|figures| now - figures.at < FRESH);
        let mut answers = BTreeMap::<&TaskId, u64>::new();
        for replica in
            fresh.flat_map(|figures| &figures.newest.services).flat_map(|service| &service.replicas)
        {
            let open = u64::from(replica.in_flight);
            let answered = replica.requests.saturating_sub(replica.failures).saturating_sub(open);
            *answers.entry(&replica.task).or_default() += answered;
        }
        answers.into_iter().filter(|(_, answers)| *answers >= ANSWERS).map(|(task, _)| task.clone()).collect()
    }

    /// All balancers by name: whether connected, and their figures.
    pub fn balancers(&self) -> Vec<(String, bool, Option<Figures>)> {
        let state = self.state();
        let mut all: Vec<_> = state
            .balancers
            .values()
            .map(|one| (one.name.clone(), one.urgent.is_some(), one.figures.clone()))
            .collect();
        drop(state);
        all.sort_by(|(one, ..), (other, ..)| one.cmp(other));
        all
    }

    /// Balancers connected now.
    pub fn connected(&self) -> usize {
        self.state().balancers.values().filter(|one| one.urgent.is_some()).count()
    }

    /// What a balancer has not said "drained" of.
    pub fn owes(&self, id: u64) -> BTreeSet<TaskId> {
        self.state().balancers.get(&id).map(|balancer| balancer.owes.clone()).unwrap_or_default()
    }

    fn owing(&self, tasks: &[TaskId]) -> Vec<String> {
        let state = self.state();
        let owing = state.balancers.values().filter(|one| tasks.iter().any(|task| one.owes.contains(task)));
        owing.map(|one| one.name.clone()).collect()
    }

    fn forgive(&self, tasks: &[TaskId]) {
        self.state().balancers.retain(|_, one| {
            for task in tasks {
                one.owes.remove(task);
            }
            one.urgent.is_some() || !one.owes.is_empty()
        });
        self.pay();
    }

    fn pay(&self) {
        self.paid.send_modify(|count| *count += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Queues a message for every balancer; one whose queue is full loses its seat, and so its connection.
    fn tell(&mut self, message: &FromRouteSource) {
        let Ok(frame) = framed(message) else { return };
        for balancer in self.balancers.values_mut() {
            if balancer.urgent.as_ref().is_some_and(|queue| queue.try_send(Arc::clone(&frame)).is_err()) {
                balancer.urgent = None;
            }
        }
    }
}

fn framed(message: &FromRouteSource) -> Result<Arc<[u8]>, CodecError> {
    frame::to_bytes(message).map(Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3_600);

    fn task(name: &str) -> TaskId {
        name.parse().expect("valid")
    }

    #[tokio::test]
    async fn nobody_to_wait_for_is_drained_at_once() {
        assert!(Hub::default().drain(&[task("a")], LONG).await.is_empty());
    }

    #[tokio::test]
    async fn every_balancer_is_told_and_waited_for() {
        let hub = Arc::new(Hub::default());
        let (mut one, two) = (hub.join("one").expect("room"), hub.join("two").expect("room"));
        let waiting = tokio::spawn({
            let hub = Arc::clone(&hub);
            async move { hub.drain(&[task("a")], LONG).await }
        });
        let frame = one.urgent.recv().await.expect("told");
        assert_eq!(*frame, *framed(&FromRouteSource::Drain { tasks: vec![task("a")] }).expect("small"));
        hub.drained(one.id, &[task("a")]);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        hub.drained(two.id, &[task("b")]);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "another task was drained");
        hub.drained(two.id, &[task("a")]);
        assert!(waiting.await.expect("no panic").is_empty());
    }

    #[test]
    fn a_replica_answers_once_fresh_figures_of_balancers_say_so_together() {
        use swarmguard_common::wire::routes::{ReplicaState, ReplicaStats, ServiceStats};
        let hub = Hub::default();
        let (one, two) = (hub.join("one").expect("room"), hub.join("two").expect("room"));
        let at = Time::from_millis(60_000);
        let tell = |seat: &Seat, requests, failures, in_flight| {
            let (task, state) = (task("a"), ReplicaState::Serving);
            let (p50_us, p99_us) = (None, None);
            let a = ReplicaStats { task, state, requests, failures, in_flight, p50_us, p99_us };
            let services =
                vec![ServiceStats { name: "web".into(), replicas: vec![a], ..ServiceStats::default() }];
            hub.figures(seat.id, BalancerStats { uptime_ms: 1, ready: true, connections: 0, services }, at);
            hub.answering(at).into_iter().collect::<Vec<_>>()
        };
        assert!(tell(&one, 9, 9, 0).is_empty(), "failures are no answers");
        assert!(tell(&one, 9, 4, 3).is_empty(), "nor are open requests");
        assert_eq!(tell(&two, 1, 0, 0), [task("a")]);
        assert!(hub.answering(at + Duration::from_secs(6)).is_empty(), "balancers that fell silent");
    }

    #[tokio::test]
    async fn agents_are_told_what_leaves_until_it_is_gone_or_stays() {
        let hub = Hub::default();
        let mut stirs = hub.stirs();
        hub.drain(&[task("a"), task("b"), task("c")], LONG).await;
        assert!(stirs.has_changed().expect("the hub lives"));
        stirs.mark_unchanged();
        hub.publish(Routes::default()).expect("small");
        hub.resume(&[task("b")]);
        assert!(stirs.has_changed().expect("the hub lives"));
        assert_eq!(
            hub.leaving(|one| *one != task("c")),
            [task("a")].into(),
            "no service of these has a route"
        );
        assert_eq!(hub.leaving(|_| true), [task("a")].into());
        hub.forget_drains();
        assert!(hub.leaving(|_| true).is_empty());
    }

    #[tokio::test]
    async fn one_that_left_is_waited_for_until_it_returns() {
        let hub = Arc::new(Hub::default());
        let one = hub.join("one").expect("room");
        let waiting = tokio::spawn({
            let hub = Arc::clone(&hub);
            async move { hub.drain(&[task("a")], LONG).await }
        });
        tokio::task::yield_now().await;
        hub.leave(one.id);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "it may still be sending");
        let mut again = hub.join("one").expect("room");
        assert!(again.urgent.recv().await.is_some(), "told again");
        hub.drained(again.id, &[task("a")]);
        assert!(waiting.await.expect("no panic").is_empty());
    }

    #[tokio::test]
    async fn after_the_deadline_the_late_are_named_and_forgiven() {
        let hub = Hub::default();
        let one = hub.join("one").expect("room");
        assert_eq!(hub.drain(&[task("a")], Duration::from_millis(20)).await, ["one"]);
        hub.leave(one.id);
        assert!(hub.state().balancers.is_empty());
    }

    #[tokio::test]
    async fn what_drains_is_marked_in_the_routes_until_it_is_gone() {
        use swarmguard_common::wire::routes::{RoutedReplica, RoutedService};
        let labels = swarmguard_common::labels::ServicePolicy::from_labels([("swarmguard.lb.port", "80")]);
        let labels = labels.expect("sensible").route.expect("balanced");
        let replica = |name: &str| RoutedReplica {
            task: task(name),
            node: "n".into(),
            addresses: vec![],
            ready: true,
            draining: false,
            load: None,
        };
        let routes = |names: &[&str]| {
            let replicas = names.iter().map(|name| replica(name)).collect();
            let service = RoutedService { name: "web".into(), labels: labels.clone(), replicas };
            Routes {
                revision: 1,
                age_ms: 0,
                acting: true,
                services: [("s".parse().expect("valid"), service)].into(),
            }
        };
        let hub = Hub::default();
        hub.drain(&[task("a")], LONG).await;
        hub.publish(routes(&["a", "b"])).expect("small");
        let mut expected = routes(&["a", "b"]);
        expected.services.values_mut().next().expect("one").replicas[0].draining = true;
        assert_eq!(**hub.routes.borrow(), *framed(&FromRouteSource::Routes(expected)).expect("small"));
        hub.publish(routes(&["b"])).expect("small");
        assert!(hub.state().draining.is_empty());
    }
}
