//! What is compared: which tasks a service has, in words that mean the same on the model and on an engine.
//!
//! IDs and times differ between the two, so a task is called by its slot and by how many the slot had before it; and
//! states are put together to those that an observer can rely upon.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use swarmguard_common::time::Time;
use swarmguard_core::swarm::TaskState;

use super::script::{Then, Until};

/// A task as read from either side.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Its ID there.
    pub id: String,
    /// Number of the replica.
    pub slot: u64,
    /// Sorts tasks of one slot by age.
    pub created: String,
    /// Host name of its node.
    pub node: Option<String>,
    /// What is wanted.
    pub desired: TaskState,
    /// What is.
    pub state: TaskState,
}

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// It has no node.
    Waiting,
    /// On its way to run.
    Moving,
    /// Running, and healthy.
    Running,
    /// Over: stopped or completed.
    Stopped,
    /// Over: it failed.
    Failed,
    /// Over: the enforcer, or the node, would not have it.
    Rejected,
    /// Given up for lost.
    Orphaned,
}

impl Class {
    fn of(state: TaskState) -> Self {
        match state {
            TaskState::New | TaskState::Allocated | TaskState::Pending => Self::Waiting,
            TaskState::Running => Self::Running,
            TaskState::Complete | TaskState::Shutdown | TaskState::Remove => Self::Stopped,
            TaskState::Failed => Self::Failed,
            TaskState::Rejected => Self::Rejected,
            TaskState::Orphaned => Self::Orphaned,
            _ => Self::Moving,
        }
    }
}

/// One task in a picture.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shown {
    /// Host name of its node.
    pub node: Option<String>,
    /// Swarm wants it to run.
    pub wanted: bool,
    /// Where it is.
    pub class: Class,
}

impl Shown {
    fn serves(&self) -> bool {
        self.wanted && self.class == Class::Running
    }
}

/// A service at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Picture {
    /// Its tasks by name: slot, and number within the slot.
    pub tasks: BTreeMap<(u64, usize), Shown>,
    /// `UpdateStatus.State`; empty where there is none.
    pub update: String,
    /// Fewest replicas that served since the step began.
    pub least: usize,
}

impl fmt::Display for Picture {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((slot, number), task) in &self.tasks {
            let node = task.node.as_deref().unwrap_or("no node");
            let wish = if task.wanted { "wanted" } else { "not wanted" };
            writeln!(out, "    {slot}.{number} {node}: {:?}, {wish}", task.class)?;
        }
        let update = if self.update.is_empty() { "none" } else { &self.update };
        write!(out, "    update: {update}; at least {} served", self.least)
    }
}

impl Picture {
    /// Replicas that serve.
    pub fn serving(&self) -> usize {
        self.tasks.values().filter(|task| task.serves()).count()
    }

    /// Wanted tasks on a node.
    pub fn on(&self, node: &str) -> usize {
        self.wanted().filter(|(_, task)| task.node.as_deref() == Some(node)).count()
    }

    /// The node of the task that was made last.
    pub fn youngest(&self) -> Option<&str> {
        let latest = self.wanted().filter(|(_, task)| task.node.is_some()).max_by_key(|((_, n), _)| *n);
        latest.and_then(|(_, task)| task.node.as_deref())
    }

    fn wanted(&self) -> impl Iterator<Item = (&(u64, usize), &Shown)> {
        self.tasks.iter().filter(|(_, task)| task.wanted)
    }

    /// Whether nothing is under way that ends by itself. What is to stop on a silent node does not.
    fn rests(&self, silent: &BTreeSet<String>) -> bool {
        let heard = |task: &&Shown| !task.node.as_ref().is_some_and(|node| silent.contains(node));
        self.tasks.values().filter(heard).all(|task| match (task.wanted, task.class) {
            (true, class) => matches!(class, Class::Waiting | Class::Running),
            // One that never got a node stays as it is.
            (false, Class::Waiting) => task.node.is_none(),
            (false, class) => class >= Class::Stopped,
        })
    }

    /// Whether a task with a node is on its way to run.
    fn starts(&self) -> bool {
        self.wanted().any(|(_, task)| task.node.is_some() && task.class == Class::Moving)
    }

    /// What of `then` does not hold after the step that led from `before` to this. `named` tells the node of a role.
    pub fn contradiction(
        &self,
        before: &Picture,
        then: Then,
        named: &dyn Fn(&str) -> String,
    ) -> Option<String> {
        let died: Vec<&Shown> = before
            .wanted()
            .filter(|(name, task)| task.serves() && !self.tasks.get(*name).is_some_and(|task| task.wanted))
            .map(|(_, task)| task)
            .collect();
        let doubled = || {
            let slots: Vec<u64> = self.wanted().map(|((slot, _), _)| *slot).collect();
            slots.len() - slots.iter().collect::<BTreeSet<_>>().len()
        };
        let waiting = || self.wanted().filter(|(_, task)| task.node.is_none()).count();
        let (holds, found) = match then {
            Then::Died(count, role) => {
                let node = named(role);
                let there = died.iter().filter(|task| task.node.as_ref() == Some(&node)).count();
                (
                    there == count && died.len() == count,
                    format!("{} died, {there} of them on {node}", died.len()),
                )
            }
            Then::DiedAnywhere(count) => (died.len() == count, format!("{} died", died.len())),
            Then::Doubled(count) => (doubled() == count, format!("{} slots are doubled", doubled())),
            Then::Waiting(count) => (waiting() == count, format!("{} wait for a node", waiting())),
            Then::NeverBelow(count) => (self.least >= count, format!("only {} served", self.least)),
            Then::FellTo(count) => (self.least == count, format!("at least {} served", self.least)),
            Then::On(count, role) => {
                let node = named(role);
                (self.on(&node) == count, format!("{} are on {node}", self.on(&node)))
            }
            Then::Update(state) => (self.update == state, format!("the update is {:?}", self.update)),
        };
        (!holds).then(|| format!("{then:?}: {found}"))
    }
}

/// Makes pictures of one service, and keeps what they need from one to the next.
#[derive(Clone, Debug, Default)]
pub struct Painter {
    names: BTreeMap<String, (u64, usize)>,
    made: BTreeMap<u64, usize>,
    last: Option<(Picture, Time)>,
    least: Option<usize>,
    changed: bool,
    silent: BTreeSet<String>,
}

impl Painter {
    /// A new step begins: what was least before no longer counts.
    pub fn begin(&mut self) {
        self.last = None;
        self.least = None;
        self.changed = false;
    }

    /// A node has no power from now on, or has it again.
    pub fn power(&mut self, node: &str, on: bool) {
        if on {
            self.silent.remove(node);
        } else {
            self.silent.insert(node.to_owned());
        }
    }

    /// Takes a reading in.
    pub fn paint(&mut self, mut tasks: Vec<Raw>, update: String, now: Time) {
        tasks.sort_by(|a, b| (a.slot, &a.created, &a.id).cmp(&(b.slot, &b.created, &b.id)));
        let mut picture = Picture { update, ..Picture::default() };
        for task in tasks {
            let name = *self.names.entry(task.id).or_insert_with(|| {
                let made = self.made.entry(task.slot).or_default();
                *made += 1;
                (task.slot, *made)
            });
            // A job's tasks are to complete; other tasks are never told so.
            let at_work = task.desired == TaskState::Complete && task.state <= TaskState::Running;
            let shown = Shown {
                node: task.node,
                wanted: task.desired <= TaskState::Running || at_work,
                class: Class::of(task.state),
            };
            picture.tasks.insert(name, shown);
        }
        let least = self.least.map_or(picture.serving(), |least| least.min(picture.serving()));
        self.least = Some(least);
        picture.least = least;
        if self.last.as_ref().is_none_or(|(last, _)| *last != picture) {
            self.changed |= self.last.is_some();
            self.last = Some((picture, now));
        }
    }

    /// The picture, once it is what is waited for. One of rest must have stood for `quiet`.
    pub fn settled(&self, until: Until, quiet: Duration, now: Time) -> Option<&Picture> {
        let (picture, since) = self.last.as_ref()?;
        let over = match until {
            Until::Rest | Until::LongRest => picture.rests(&self.silent) && now - *since >= quiet,
            Until::Changed => self.changed && picture.rests(&self.silent) && now - *since >= quiet,
            Until::Started => picture.starts(),
        };
        over.then_some(picture)
    }

    /// The newest picture.
    pub fn last(&self) -> Picture {
        self.last.as_ref().map(|(picture, _)| picture.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(id: &str, created: &str, desired: TaskState, state: TaskState) -> Raw {
        let node = (state > TaskState::Pending).then(|| "node1".to_owned());
        Raw { id: id.into(), slot: 1, created: created.into(), node, desired, state }
    }

    #[test]
    fn tasks_keep_their_names_and_a_picture_settles_when_nothing_moves() {
        let (at, quiet) = (Time::from_millis, Duration::from_millis(100));
        let mut painter = Painter::default();
        let old = raw("z", "1", TaskState::Running, TaskState::Running);
        painter.begin();
        painter.paint(
            vec![raw("a", "2", TaskState::Ready, TaskState::Preparing), old.clone()],
            String::new(),
            at(0),
        );
        assert!(painter.settled(Until::Rest, quiet, at(500)).is_none(), "one is on its way");
        let before = painter.last();
        assert!(before.tasks[&(1, 1)].serves(), "the older one is the first of its slot");
        painter.paint(vec![raw("a", "2", TaskState::Running, TaskState::Running)], String::new(), at(600));
        assert!(painter.settled(Until::Rest, quiet, at(650)).is_none(), "too soon");
        let after = painter.settled(Until::Rest, quiet, at(700)).expect("it stands").clone();
        assert!(after.tasks.contains_key(&(1, 2)) && !after.tasks.contains_key(&(1, 1)));
        let named = |_: &str| "node1".to_owned();
        assert_eq!(after.contradiction(&before, Then::Died(1, "source"), &named), None);
        assert_eq!(after.contradiction(&before, Then::NeverBelow(1), &named), None);
        assert!(after.contradiction(&before, Then::Died(0, "source"), &named).is_some());
        assert!(after.contradiction(&before, Then::Update("paused"), &named).is_some());
    }
}
