//! From a service to a lease: which replicas may be used at all, then the algorithm, then the lease.
//!
//! Replicas that are not ready or are draining are never used. Sick ones (our own health check) and ejected ones
//! (breaker) are left out, but not at any price: where more than half of the well ones are ejected the fault is likely
//! not theirs, and ejection is ignored; where all are sick they are tried anyway, since an answer that may fail is
//! better than one that must.
//!
//! `hcl` compares a sample where replicas are many, as Prequal compares the few that it probed last: a pick costs the same
//! among a hundred as among a thousand, and several balancers do not all rush to the one that looks best.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use fastrand::Rng;
use swarmguard_common::{labels::Algorithm, time::Time};

use crate::{
    breaker::Gate,
    lease::{Lease, Ledger},
    pick::{self, Candidate, Reason, Tuning},
    replica::Replica,
    service::Service,
};

/// One of so many picks goes to a replica of which nothing was heard for [`STALE`], so that none starves on an old bad
/// impression. Where all were heard of, nothing is explored: one pick in a hundred that goes anywhere sits just at the p99.
const EXPLORE_ONE_IN: u32 = 100;

/// What a replica did longer ago says little about what it would do now.
const STALE: Duration = Duration::from_secs(3);

/// `hcl` compares at most so many, next to each other from a place drawn by lot. In a simulated queue (a hundred
/// replicas, exponential requests, 60 to 90 % load, all equal or every tenth four times as fast) p99 was within 2 % of
/// comparing all; with 32 it was up to 7 % more, with 16 up to 31 %.
const SAMPLE: usize = 64;

/// Picks that are tried again because a drain began between pick and lease.
const RACES: u32 = 8;

/// Why no replica can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is none, or none that was not tried already.
    NoReplica,
    /// All have as many requests in flight as they may.
    Full,
    /// The algorithm wants figures, there are none, and fallback is switched off.
    NoFigures,
}

/// What the caller knows of the request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    /// The replica that the client's cookie names.
    pub sticky: Option<u64>,
    /// Replicas that were tried in vain.
    pub tried: &'a [u64],
    /// Whether it could be sent again elsewhere, so that it may serve as the trial of a half-open breaker.
    pub repeatable: bool,
}

/// A lease and how it came about.
#[derive(Debug)]
pub struct Choice {
    /// The request may be sent there.
    pub lease: Lease,
    /// How it was picked.
    pub reason: Reason,
    /// Whether the figures of at least half of the candidates were fresh.
    pub fresh: bool,
    /// How many were compared.
    pub candidates: usize,
}

/// One worker's chooser; its memory is used again from pick to pick.
#[derive(Debug)]
pub struct Chooser {
    ledger: Rc<Ledger>,
    tuning: Tuning,
    scratch: RefCell<Scratch>,
}

#[derive(Debug)]
struct Scratch {
    rng: Rng,
    candidates: Vec<Candidate>,
    /// Where in the service's replicas each candidate stands.
    places: Vec<usize>,
    /// New replicas that were held back this time.
    held_back: Vec<usize>,
}

/// How much is overlooked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Normal,
    /// Breakers and slow start are ignored.
    Panic,
    /// Sick replicas are used too.
    Desperate,
}

/// How many replicas are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    Whole,
    /// Until [`SAMPLE`] may be used, from any place on.
    Sample,
}

impl Span {
    /// The algorithms of the proposal compare all.
    fn of(service: &Service) -> Self {
        let many = service.replicas.len() > SAMPLE;
        if many && service.algorithm == Algorithm::Hcl { Self::Sample } else { Self::Whole }
    }
}

/// What one pass over the replicas found.
#[derive(Debug, Default)]
struct Found {
    /// Ready, not draining, not sick.
    well: usize,
    /// Of those, ejected.
    ejected: usize,
    /// Usable but for their bound.
    full: usize,
    /// A half-open breaker waits for a trial there.
    trial: Option<usize>,
}

impl Chooser {
    /// `seed` makes the choices repeatable.
    pub fn new(ledger: Rc<Ledger>, tuning: Tuning, seed: u64) -> Self {
        let scratch = Scratch {
            rng: Rng::with_seed(seed),
            candidates: Vec::new(),
            places: Vec::new(),
            held_back: Vec::new(),
        };
        Self { ledger, tuning, scratch: RefCell::new(scratch) }
    }

    /// The worker's randomness, for what else needs some.
    pub fn with_rng<T>(&self, with: impl FnOnce(&mut Rng) -> T) -> T {
        with(&mut self.scratch.borrow_mut().rng)
    }

    /// Picks a replica and takes a lease there.
    ///
    /// # Errors
    /// When no replica can take the request.
    pub fn choose(&self, service: &Service, wish: Wish<'_>, now: Time) -> Result<Choice, Refusal> {
        for _ in 0..RACES {
            let (place, reason, fresh, candidates) = self.place(service, wish, now)?;
            let replica = service.replicas.get(place).ok_or(Refusal::NoReplica)?;
            if let Some(lease) = self.ledger.take(replica, &service.shared, now) {
                replica.picked(turn(service));
                return Ok(Choice { lease, reason, fresh, candidates });
            }
        }
        Err(Refusal::NoReplica)
    }

    fn place(
        &self,
        service: &Service,
        wish: Wish<'_>,
        now: Time,
    ) -> Result<(usize, Reason, bool, usize), Refusal> {
        let scratch = &mut *self.scratch.borrow_mut();
        if let Some(place) = wish.sticky.and_then(|key| sticky(service, key, wish.tried, now)) {
            return Ok((place, Reason::Sticky, false, 1));
        }
        let span = Span::of(service);
        let mut found = scratch.gather(service, wish, Level::Normal, span, now);
        if wish.repeatable
            && let Some(place) = found.trial
            && service.replicas[place].breaker.claim_trial(now)
        {
            return Ok((place, Reason::Exploration, false, 1));
        }
        if span == Span::Sample && found.ejected * 2 > found.well {
            // A sample may happen to hold most of the ejected ones.
            found = scratch.gather(service, wish, Level::Normal, Span::Whole, now);
        }
        if found.ejected * 2 > found.well || (scratch.places.is_empty() && found.full == 0) {
            found = scratch.gather(service, wish, Level::Panic, Span::Whole, now);
        }
        if scratch.places.is_empty() && found.full == 0 {
            found = scratch.gather(service, wish, Level::Desperate, Span::Whole, now);
        }
        if scratch.places.is_empty() {
            return Err(if found.full > 0 { Refusal::Full } else { Refusal::NoReplica });
        }
        scratch.pick(service, self.tuning, now)
    }
}

/// Which turn the service is at; it wraps around.
fn turn(service: &Service) -> u32 {
    let turn = service.shared.turn.load(Relaxed);
    #[expect(clippy::cast_possible_truncation, reason = "only differences count")]
    let turn = turn as u32;
    turn
}

impl Scratch {
    fn gather(&mut self, service: &Service, wish: Wish<'_>, level: Level, span: Span, now: Time) -> Found {
        self.candidates.clear();
        self.places.clear();
        self.held_back.clear();
        let mut found = Found::default();
        let turn = turn(service);
        let slow_start = service.labels.slow_start;
        let all = service.replicas.len();
        let (first, most) = match span {
            Span::Whole => (0, all),
            Span::Sample => (self.rng.usize(..all), SAMPLE),
        };
        for place in (first..all).chain(0..first) {
            if self.places.len() == most {
                break;
            }
            let replica = &service.replicas[place];
            if !replica.ready() || replica.draining() || wish.tried.contains(&replica.key) {
                continue;
            }
            if replica.sick() {
                if level < Level::Desperate {
                    continue;
                }
            } else {
                found.well += 1;
            }
            match replica.gate(now) {
                Gate::Closed => {}
                gate => {
                    found.ejected += 1;
                    if gate == Gate::HalfOpen {
                        found.trial = Some(place);
                    }
                    if level == Level::Normal {
                        continue;
                    }
                }
            }
            if replica.in_flight() >= service.labels.max_in_flight {
                found.full += 1;
                continue;
            }
            // The first request goes there at once: until it is answered nothing is known of it, and little can go wrong.
            let share = if replica.picks.load(Relaxed) == 0 { 1.0 } else { replica.share(slow_start, now) };
            if share < 1.0 && level == Level::Normal && self.rng.f32() >= share {
                self.held_back.push(place);
                continue;
            }
            self.push(place, replica, turn, now);
        }
        // New replicas are held back in favour of others; where there are no others, they take everything.
        if self.places.is_empty() {
            for place in std::mem::take(&mut self.held_back) {
                self.push(place, &service.replicas[place], turn, now);
            }
        }
        found
    }

    fn push(&mut self, place: usize, replica: &Arc<Replica>, turn: u32, now: Time) {
        self.places.push(place);
        self.candidates.push(Candidate { rested: replica.rested(turn), ..replica.candidate(now) });
    }

    /// The replica that was silent for longest, if that is too long.
    fn stale(&self, service: &Service, now: Time) -> Option<usize> {
        let silent = |place: &usize| service.replicas[*place].silent_for(now);
        let longest = (0..self.places.len()).max_by_key(|index| silent(&self.places[*index]))?;
        (silent(&self.places[longest]) > STALE).then_some(longest)
    }

    fn pick(
        &mut self,
        service: &Service,
        tuning: Tuning,
        now: Time,
    ) -> Result<(usize, Reason, bool, usize), Refusal> {
        let turn = service.shared.turn.fetch_add(1, Relaxed);
        let algorithm = service.algorithm;
        let by_latency = matches!(algorithm, Algorithm::Lease | Algorithm::Hcl);
        let explores = by_latency && self.rng.u32(..EXPLORE_ONE_IN) == 0;
        let stale = if explores { self.stale(service, now) } else { None };
        let picked = stale
            .map(|index| (index, Reason::Exploration))
            .or_else(|| pick::pick(algorithm, &self.candidates, tuning, turn, &mut self.rng));
        let (index, reason) = picked.ok_or(Refusal::NoFigures)?;
        let fresh = self.candidates.get(index).is_some_and(|candidate| candidate.score.is_some());
        Ok((self.places[index], reason, fresh, self.places.len()))
    }
}

fn sticky(service: &Service, key: u64, tried: &[u64], now: Time) -> Option<usize> {
    let usable = |replica: &Arc<Replica>| {
        replica.ready()
            && !replica.draining()
            && !replica.sick()
            && replica.gate(now) == Gate::Closed
            && replica.in_flight() < service.labels.max_in_flight
            && !tried.contains(&key)
    };
    service.replicas.iter().position(|replica| replica.key == key && usable(replica))
}

/// A service of `count` replicas that are ready, for measuring and for tests.
pub fn example_service(algorithm: Algorithm, count: u16, now: Time) -> Service {
    let replicas = (0..count).filter_map(|n| {
        let task = format!("task{n}").parse().ok()?;
        let replica = Replica::new(task, format!("node{n}"), ([127, 0, 0, 1], n).into());
        replica.set_ready(true, now);
        replica.skip_ramp();
        Some(Arc::new(replica))
    });
    Service {
        name: "example".into(),
        labels: crate::source::labels(80),
        algorithm,
        cookie: crate::service::cookie_name("example"),
        replicas: replicas.collect(),
        limit: None,
        clients: None,
        shared: Arc::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::replica::Outcome;

    const NOW: Time = Time::from_millis(5_000_000);

    fn chooser() -> Chooser {
        Chooser::new(Rc::default(), Tuning::default(), 42)
    }

    fn hits(service: &Service, chooser: &Chooser, count: usize) -> Vec<usize> {
        let mut hits = vec![0; service.replicas.len()];
        for _ in 0..count {
            let choice = chooser.choose(service, Wish::default(), NOW).expect("there is one");
            let place = service.replicas.iter().position(|it| Arc::ptr_eq(it, choice.lease.replica()));
            hits[place.expect("one of ours")] += 1;
        }
        hits
    }

    #[test]
    fn draining_unready_and_sick_replicas_get_nothing() {
        let service = example_service(Algorithm::Lease, 4, NOW);
        service.replicas[0].set_draining(true);
        service.replicas[1].set_ready(false, NOW);
        service.replicas[2].set_sick(true, NOW);
        assert_eq!(hits(&service, &chooser(), 100), [0, 0, 0, 100]);
        service.replicas[3].set_sick(true, NOW);
        let hits = hits(&service, &chooser(), 100);
        assert!(
            hits[0] == 0 && hits[1] == 0 && hits[2] > 0 && hits[3] > 0,
            "all sick: tried anyway, {hits:?}"
        );
        service.replicas[2].set_draining(true);
        service.replicas[3].set_draining(true);
        let refusal = chooser().choose(&service, Wish::default(), NOW).map(|_| ());
        assert_eq!(refusal, Err(Refusal::NoReplica));
    }

    #[test]
    fn an_ejected_outlier_gets_nothing_until_its_trial() {
        let service = example_service(Algorithm::Lease, 3, NOW);
        for _ in 0..5 {
            service.replicas[0].record(Outcome::Failed, NOW);
        }
        assert_eq!(hits(&service, &chooser(), 100)[0], 0);
        let later = NOW + Duration::from_secs(3);
        let wish = Wish { repeatable: true, ..Wish::default() };
        let trial = chooser().choose(&service, wish, later).expect("there is one");
        assert!(Arc::ptr_eq(trial.lease.replica(), &service.replicas[0]));
    }

    #[test]
    fn when_most_are_ejected_ejection_is_ignored() {
        let service = example_service(Algorithm::RoundRobin, 3, NOW);
        for replica in &service.replicas[..2] {
            (0..5).for_each(|_| {
                replica.record(Outcome::Failed, NOW);
            });
        }
        assert!(hits(&service, &chooser(), 300).iter().all(|hits| *hits > 50));
    }

    #[test]
    fn a_full_replica_is_passed_over_and_all_full_says_so() {
        let mut service = example_service(Algorithm::RoundRobin, 2, NOW);
        service.labels.max_in_flight = 1;
        let chooser = chooser();
        let choose = || chooser.choose(&service, Wish::default(), NOW);
        let first = choose().expect("room");
        let second = choose().expect("room at the other");
        assert!(!Arc::ptr_eq(first.lease.replica(), second.lease.replica()));
        assert_eq!(choose().map(|_| ()), Err(Refusal::Full));
        drop(first);
        assert!(choose().is_ok());
    }

    #[test]
    fn a_new_replica_starts_with_a_small_share() {
        let service = example_service(Algorithm::Lease, 2, NOW);
        service.replicas[1].set_ready(false, NOW);
        service.replicas[1].set_ready(true, NOW);
        let hits = hits(&service, &chooser(), 2_000);
        assert!((40..200).contains(&hits[1]), "about 5 %: {hits:?}");
    }

    #[test]
    fn a_new_replica_gets_its_first_request_at_once() {
        for algorithm in [Algorithm::Lease, Algorithm::Hcl] {
            let service = example_service(algorithm, 4, NOW);
            for replica in &service.replicas[..3] {
                replica.record(Outcome::Answered(Duration::from_millis(1)), NOW);
                replica.picked(0);
            }
            service.replicas[3].set_ready(false, NOW);
            service.replicas[3].set_ready(true, NOW);
            let chooser = chooser();
            let choice = chooser.choose(&service, Wish::default(), NOW).expect("there is one");
            assert!(Arc::ptr_eq(choice.lease.replica(), &service.replicas[3]), "{algorithm:?}");
        }
    }

    #[test]
    fn several_new_replicas_share_equally() {
        let service = example_service(Algorithm::Lease, 3, NOW);
        for replica in &service.replicas {
            replica.set_ready(false, NOW);
            replica.set_ready(true, NOW);
        }
        let hits = hits(&service, &chooser(), 3_000);
        assert!(hits.iter().all(|hits| (850..1_150).contains(hits)), "{hits:?}");
    }

    #[test]
    fn a_cookie_is_obeyed_while_its_replica_is_well() {
        let service = example_service(Algorithm::Lease, 5, NOW);
        let wish = Wish { sticky: Some(service.replicas[3].key), ..Wish::default() };
        for _ in 0..20 {
            let choice = chooser().choose(&service, wish, NOW).expect("there is one");
            assert_eq!(choice.reason, Reason::Sticky);
            assert!(Arc::ptr_eq(choice.lease.replica(), &service.replicas[3]));
        }
        service.replicas[3].set_draining(true);
        let choice = chooser().choose(&service, wish, NOW).expect("another one");
        assert!(!Arc::ptr_eq(choice.lease.replica(), &service.replicas[3]));
    }

    #[test]
    fn a_sample_of_many_leaves_none_out() {
        let service = example_service(Algorithm::Hcl, 100, NOW);
        for (place, replica) in service.replicas.iter().enumerate() {
            // Twenty that follow one another are slow.
            let ms = if (40..60).contains(&place) { 50 } else { 1 };
            replica.record(Outcome::Answered(Duration::from_millis(ms)), NOW);
        }
        let chooser = chooser();
        let choice = chooser.choose(&service, Wish::default(), NOW).expect("there is one");
        assert_eq!(choice.candidates, SAMPLE);
        drop(choice);
        let hits = hits(&service, &chooser, 20_000);
        let slow: usize = hits[40..60].iter().sum();
        assert!(slow < 100, "only to be tried: {hits:?}");
        assert!(
            hits.iter().enumerate().all(|(place, hits)| (40..60).contains(&place) || *hits > 100),
            "{hits:?}"
        );
    }

    #[test]
    fn a_sample_full_of_ejected_ones_is_no_reason_to_ignore_ejection() {
        let service = example_service(Algorithm::Hcl, 100, NOW);
        let bad = 10..50;
        for replica in &service.replicas[bad.clone()] {
            for _ in 0..5 {
                replica.record(Outcome::Failed, NOW);
            }
        }
        let hits = hits(&service, &chooser(), 2_000);
        assert!(hits[bad].iter().all(|hits| *hits == 0), "{hits:?}");
    }

    #[test]
    fn a_replica_of_which_nothing_was_heard_is_tried_and_no_other() {
        for algorithm in [Algorithm::Hcl, Algorithm::Lease] {
            let service = example_service(algorithm, 3, NOW);
            for (replica, ms) in service.replicas.iter().zip([1, 1, 500]) {
                replica.record(Outcome::Answered(Duration::from_millis(ms)), NOW);
            }
            assert_eq!(hits(&service, &chooser(), 1_000)[2], 0, "{algorithm:?}: it is known to be slow");
            let later = NOW + Duration::from_secs(4);
            for replica in &service.replicas[..2] {
                replica.record(Outcome::Answered(Duration::from_millis(1)), later);
            }
            let chooser = chooser();
            let tried = (0..2_000).filter(|_| {
                let choice = chooser.choose(&service, Wish::default(), later).expect("there is one");
                Arc::ptr_eq(choice.lease.replica(), &service.replicas[2])
            });
            let tried = tried.count();
            assert!((5..60).contains(&tried), "{algorithm:?}: about one in a hundred, {tried}");
        }
    }
}
