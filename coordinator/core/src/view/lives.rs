//! How long replicas have served, and from when on their figures tell of load rather than of a start.
//!
//! A program that has just started compiles, fills caches and opens connections: CPU that it uses then says nothing about
//! demand. It is over when use first came down, or after as long as it took the last replicas of the image.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use serde_json::Value;
use swarmguard_common::{
    domain::{ServiceId, TaskId},
    time::Time,
};

use crate::swarm::{Service, Snapshot, TaskState};

/// A replica serves for at least this long before its figures count, where nothing else is known.
const SHORTEST: Duration = Duration::from_secs(10);
/// A replica that was busy from its first moment on is taken to warm up for at most this long.
const LONGEST: Duration = Duration::from_secs(120);
/// Time over which a warm-up is watched; what has settled shows in its last third.
const WATCHED: Duration = Duration::from_secs(180);
/// Between two figures of one replica that are kept while it is watched.
const EVERY: Duration = Duration::from_secs(1);
/// Figures kept of one replica.
const MAX_FIGURES: usize = 200;
/// Starts and warm-ups remembered of one image: the longest of them counts.
const REMEMBERED: usize = 3;
/// Use of what a replica may have, below which it no longer warms up.
const CAME_DOWN: f64 = 0.5;
/// A warm-up is over when use stays below so much of what it settles at.
const SETTLED: f64 = 1.25;

/// Whether a replica's figures are evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maturity {
    /// They tell of load.
    Mature,
    /// It has served for a while, and was busy all the time: a long warm-up, or load.
    Young,
    /// They tell of its start.
    Immature,
}

#[derive(Clone, Debug)]
struct Life {
    service: ServiceId,
    /// First seen to be started.
    born: Time,
    /// First seen to serve.
    serves: Option<Time>,
    /// Its use came down after it began to serve.
    came_down: bool,
    /// Age since it began to serve, and use.
    figures: Vec<(Duration, f64)>,
}

#[derive(Clone, Debug, Default)]
struct Learned {
    image: String,
    warm_ups: VecDeque<Duration>,
    /// From the start of a container until it served.
    starts: VecDeque<Duration>,
}

/// What is known of the replicas that there are. Bounded by the tasks and services of the newest reading.
#[derive(Clone, Debug, Default)]
pub struct Lives {
    /// Those that began while this process watched; others have lived for long.
    lives: BTreeMap<TaskId, Life>,
    learned: BTreeMap<ServiceId, Learned>,
}

impl Lives {
    /// Takes in a reading. `use_of` is what a task uses of what it may have, where that is known.
    pub(super) fn read(
        &mut self,
        now: Time,
        before: Option<&Snapshot>,
        snapshot: &Snapshot,
        use_of: impl Fn(&TaskId) -> Option<f64>,
    ) {
        self.lives.retain(|task, _| snapshot.tasks.contains_key(task));
        self.learned.retain(|service, learned| {
            snapshot.services.get(service).is_some_and(|service| image(service) == learned.image)
        });
        let Some(before) = before else { return };
        let mut begun = Vec::new();
        for task in snapshot.tasks.values().filter(|task| task.is_wanted()) {
            let was = before.tasks.get(&task.id);
            let known = self.lives.contains_key(&task.id);
            if !known && was.is_some_and(|was| was.state >= TaskState::Running) {
                continue;
            }
            if task.state < TaskState::Starting {
                continue;
            }
            let life = self.lives.entry(task.id.clone()).or_insert_with(|| Life {
                service: task.service.clone(),
                born: now,
                serves: None,
                came_down: false,
                figures: Vec::new(),
            });
            if task.is_serving() {
                if life.serves.is_none() {
                    begun.push((task.service.clone(), now - life.born));
                }
                let since = *life.serves.get_or_insert(now);
                life.watch(now - since, use_of(&task.id));
            }
        }
        for (service, took) in begun {
            let Some(of) = snapshot.services.get(&service) else { continue };
            push(&mut self.learned_of(of).starts, took);
        }
        self.learn(snapshot, now);
    }

    fn learn(&mut self, snapshot: &Snapshot, now: Time) {
        for life in self.lives.values_mut() {
            if life.figures.is_empty() || life.serves.is_none_or(|since| now - since < WATCHED) {
                continue;
            }
            let Some(took) = warm_up(&std::mem::take(&mut life.figures)) else { continue };
            let Some(service) = snapshot.services.get(&life.service) else { continue };
            let learned = self.learned.entry(service.id.clone()).or_default();
            image(service).clone_into(&mut learned.image);
            push(&mut learned.warm_ups, took);
        }
    }

    fn learned_of(&mut self, service: &Service) -> &mut Learned {
        let learned = self.learned.entry(service.id.clone()).or_default();
        image(service).clone_into(&mut learned.image);
        learned
    }

    /// Whether a serving task's figures are evidence. `warm_up` is what its labels say of that.
    pub fn maturity(
        &self,
        task: &TaskId,
        service: &Service,
        warm_up: Option<Duration>,
        now: Time,
    ) -> Maturity {
        let Some(life) = self.lives.get(task) else { return Maturity::Mature };
        let Some(serves) = life.serves else { return Maturity::Immature };
        let served = now - serves;
        let told = warm_up.or_else(|| self.warm_up_of(&service.id));
        if let Some(warm_up) = told {
            return if served >= warm_up { Maturity::Mature } else { Maturity::Immature };
        }
        if served < SHORTEST || now - life.born < start_period(service) {
            Maturity::Immature
        } else if life.came_down || served >= LONGEST {
            Maturity::Mature
        } else {
            Maturity::Young
        }
    }

    /// Whether a task has served, or was there before this process watched.
    pub fn has_served(&self, task: &TaskId) -> bool {
        self.lives.get(task).is_none_or(|life| life.serves.is_some())
    }

    /// For how long a task has served; `None` where it does not, or has done so since before this process watched.
    pub fn served(&self, task: &TaskId, now: Time) -> Option<Duration> {
        Some(now - self.lives.get(task)?.serves?)
    }

    /// How long the last replicas of a service's image took to warm up.
    pub fn warm_up_of(&self, service: &ServiceId) -> Option<Duration> {
        self.learned.get(service)?.warm_ups.iter().max().copied()
    }

    /// How long a new replica takes from the start of its container until it serves: the longest of the last ones of the
    /// image, and what its healthcheck gives it where none was seen.
    pub fn start_takes(&self, service: &Service) -> Duration {
        let seen = self.learned.get(&service.id).and_then(|learned| learned.starts.iter().max().copied());
        seen.unwrap_or_else(|| start_period(service))
    }
}

fn push(list: &mut VecDeque<Duration>, took: Duration) {
    if list.len() >= REMEMBERED {
        list.pop_front();
    }
    list.push_back(took);
}

impl Life {
    fn watch(&mut self, age: Duration, used: Option<f64>) {
        let Some(used) = used else { return };
        self.came_down |= age >= Duration::from_secs(2) && used < CAME_DOWN;
        let due = self.figures.last().is_none_or(|(last, _)| age - *last >= EVERY);
        if due && age < WATCHED && self.figures.len() < MAX_FIGURES {
            self.figures.push((age, used));
        }
    }
}

/// When use came down to where it stayed; `None` where it never did, so that load and warm-up cannot be told apart.
fn warm_up(figures: &[(Duration, f64)]) -> Option<Duration> {
    let from = figures.len() - figures.len() / 3;
    let mut last: Vec<f64> = figures.get(from..)?.iter().map(|(_, used)| *used).collect();
    last.sort_by(f64::total_cmp);
    let settled = *last.get(last.len() / 2)?;
    if settled > 0.9 {
        return None;
    }
    let over = figures.iter().rev().find(|(_, used)| *used > settled * SETTLED + 0.05);
    Some(over.map_or(Duration::ZERO, |(age, _)| *age + EVERY).max(Duration::from_secs(3)))
}

fn image(service: &Service) -> &str {
    service.spec.pointer("/TaskTemplate/ContainerSpec/Image").and_then(Value::as_str).unwrap_or_default()
}

/// What the spec's healthcheck gives a container to start, in which failed checks do not count.
pub fn start_period(service: &Service) -> Duration {
    let pointer = "/TaskTemplate/ContainerSpec/Healthcheck/StartPeriod";
    Duration::from_nanos(service.spec.pointer(pointer).and_then(Value::as_u64).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::testing::{World, at, replicated};

    /// A task that begins to serve at 1 s, with its use by the second since; maturity at the end of it.
    fn lived(uses: impl IntoIterator<Item = f64>) -> (Lives, Time) {
        let mut world = World::new(["n1"]);
        world.service(replicated("s1", 1));
        let before = world.snapshot();
        world.task("t1", "s1", 1, "n1");
        let after = world.snapshot();
        let mut lives = Lives::default();
        lives.read(at(0), None, &before, |_| None);
        let mut last = (before, at(1_000));
        for (second, used) in (0_u64..).zip(uses) {
            let now = at(1_000 + second * 1_000);
            lives.read(now, Some(&last.0), &after, |_| Some(used));
            last = (after.clone(), now);
        }
        (lives, last.1)
    }

    fn maturity(lives: &Lives, warm_up: Option<u64>, now: Time) -> Maturity {
        let service = replicated("s1", 1);
        let task = "t1".parse().expect("an ID");
        lives.maturity(&task, &service, warm_up.map(Duration::from_secs), now)
    }

    #[test]
    fn a_start_is_no_evidence_and_calm_ends_it() {
        let (lives, now) = lived([0.1; 5]);
        assert_eq!(maturity(&lives, None, now), Maturity::Immature);
        let (lives, now) = lived([0.1; 12]);
        assert_eq!(maturity(&lives, None, now), Maturity::Mature);
        let (lives, now) = lived([1.0; 60]);
        assert_eq!(maturity(&lives, None, now), Maturity::Young, "busy from the first moment on");
        assert_eq!(maturity(&lives, Some(50), now), Maturity::Mature, "its label says so");
        assert_eq!(maturity(&lives, Some(70), now), Maturity::Immature);
        let (lives, now) = lived([1.0; 122]);
        assert_eq!(maturity(&lives, None, now), Maturity::Mature);
        assert_eq!(maturity(&Lives::default(), None, now), Maturity::Mature, "older than this process");
    }

    #[test]
    fn a_start_period_counts_from_the_start() {
        let (lives, now) = lived([0.1; 30]);
        let mut service = replicated("s1", 1);
        service.spec["TaskTemplate"]["ContainerSpec"]["Healthcheck"]["StartPeriod"] =
            600_000_000_000_u64.into();
        let task = "t1".parse().expect("an ID");
        assert_eq!(lives.maturity(&task, &service, None, now), Maturity::Immature);
        let later = now + Duration::from_secs(600);
        assert_eq!(lives.maturity(&task, &service, None, later), Maturity::Mature);
    }

    #[test]
    fn the_next_replica_of_an_image_is_known_to_take_as_long() {
        let warm = |seconds: usize, then: f64| {
            let uses = std::iter::repeat_n(1.0, seconds).chain(std::iter::repeat(then));
            let (lives, _) = lived(uses.take(190));
            lives.warm_up_of(&"s1".parse().expect("an ID"))
        };
        assert_eq!(warm(90, 0.1), Some(Duration::from_secs(90)));
        assert_eq!(warm(0, 0.5), Some(Duration::from_secs(3)), "it never took longer");
        assert_eq!(warm(90, 1.0), None, "load and warm-up look the same");
    }
}
