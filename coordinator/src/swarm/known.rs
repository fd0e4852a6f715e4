//! What is known of Swarm, and which of it is to be read anew. Pure: the client asks for a plan, carries it out, and
//! hands the answers over.
//!
//! Nodes, services and configs have events, so they are read when one says that they changed. Tasks have none, so those
//! of a service are read while something happens to it: after its own events, after those of its tasks' containers,
//! while an action or an alert is about it, and while its replicas are not all as Swarm wants them. Everything is read
//! in full every [`FULL_EVERY`], whatever the events said.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use swarmguard_common::{
    domain::{NodeId, ServiceId, TaskId},
    time::Time,
};
use swarmguard_core::swarm::{
    Availability, Failure, Mode, Node, RecordObject, Service, Snapshot, Task, TaskState, engine::AnyTask,
};

/// Time between two full readings.
pub(super) const FULL_EVERY: Duration = Duration::from_secs(30);
/// Time between two looks at the node that leads: its leadership has no event of its own. Such a look is also the proof
/// that the engine answers, without which no snapshot is called fresh.
const LEADER_EVERY: Duration = Duration::from_secs(1);
/// After its last change a service's tasks are read with every snapshot for this long.
const FOLLOWED: Duration = Duration::from_secs(15);
/// Between two looks at services whose replicas are not all as wanted and do not change either.
const UNSETTLED_EVERY: Duration = Duration::from_secs(5);
/// More services at once are not read one by one.
pub(super) const MAX_FOCUS: usize = 64;
/// Tasks that are read by their IDs at once.
pub(super) const MAX_IDS: usize = 64;
/// Most tasks that are read by their IDs for one snapshot; further ones count as gone until the next full reading.
const MAX_BY_ID: usize = 8 * MAX_IDS;

/// What was said to have changed since the last reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// Anything: events may have been missed.
    pub all: bool,
    /// Some node.
    pub nodes: bool,
    /// Services themselves, and so perhaps their tasks.
    pub services: BTreeSet<ServiceId>,
    /// Tasks of these services.
    pub tasks_of: BTreeSet<ServiceId>,
    /// Tasks whose service may not be known yet.
    pub tasks: BTreeSet<TaskId>,
    /// Our records.
    pub records: bool,
}

/// Most changes that are told apart; more mean that everything is read.
const MAX_MARKS: usize = 4_096;

impl Marks {
    /// Bounds what waits: whoever changes more has all read.
    pub fn bound(&mut self) {
        if self.services.len() + self.tasks_of.len() + self.tasks.len() > MAX_MARKS {
            *self = Self { all: true, ..Self::default() };
        }
    }
}

/// Which objects of a kind are to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pick<T> {
    /// None.
    Nothing,
    /// These.
    Only(Vec<T>),
    /// All.
    All,
}

/// What is to be read for one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Everything that there is.
    pub full: bool,
    /// Nodes; one only where it is asked whether it still leads.
    pub nodes: Pick<NodeId>,
    /// Services.
    pub services: Pick<ServiceId>,
    /// Whether our records.
    pub records: bool,
    /// Tasks that Swarm wants, by service.
    pub tasks: Pick<ServiceId>,
    /// Services whose tasks are read with those that Swarm wants no more.
    pub past: Vec<ServiceId>,
    /// Single tasks.
    pub by_id: Vec<TaskId>,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub nodes: Vec<Node>,
    pub services: Vec<Service>,
    pub records: Vec<RecordObject>,
    /// Tasks that Swarm wants.
    pub tasks: Vec<Task>,
    /// Tasks of services that were read with their past.
    pub past: Vec<AnyTask>,
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Known {
    nodes: BTreeMap<NodeId, Node>,
    services: BTreeMap<ServiceId, Service>,
    tasks: BTreeMap<TaskId, Task>,
    records: BTreeMap<String, RecordObject>,
    full_at: Option<Time>,
    leader_at: Option<Time>,
    unsettled_at: Option<Time>,
    /// Services whose tasks are followed, and when they last changed.
    followed: BTreeMap<ServiceId, Time>,
    /// Attempts that came to nothing, of the services whose past was read last.
    failures: BTreeMap<TaskId, Failure>,
}

impl Known {
    /// What is to be read now. `watched`: services whose tasks are wanted in every snapshot. `events`: whether the
    /// engine's events come in.
    pub fn plan(&mut self, now: Time, marks: &Marks, watched: &BTreeSet<ServiceId>, events: bool) -> Plan {
        let full = marks.all || !events || self.full_at.is_none_or(|at| now.since(at) >= FULL_EVERY);
        if full {
            let past = self.with_past(watched, None);
            return Plan {
                full,
                nodes: Pick::All,
                services: Pick::All,
                records: true,
                tasks: Pick::All,
                past,
                by_id: known_only(marks.tasks.iter().cloned()),
            };
        }
        for service in marks.services.iter().chain(&marks.tasks_of) {
            self.followed.insert(service.clone(), now);
        }
        let mut unknown = Vec::new();
        for task in &marks.tasks {
            match self.tasks.get(task) {
                Some(task) => self.followed.extend([(task.service.clone(), now)]),
                None => unknown.push(task.clone()),
            }
        }
        let focus = self.focus(now, watched);
        // One request for all is cheaper than a list that names most of them.
        let tasks = if focus.len() > MAX_FOCUS { Pick::All } else { only(focus.iter().cloned()) };
        // What only the agents know of is read before it can be missed by anybody.
        let mut by_id = known_only(unknown.into_iter());
        let lingers = self.tasks.values().filter(|task| lingers(task) && !focus.contains(&task.service));
        if self.leader_is_due(now) {
            let there = lingers.filter(|task| self.is_up(task));
            by_id.extend(there.map(|task| task.id.clone()).take(MAX_IDS));
        }
        let services = marks.services.iter().chain(watched).cloned().collect::<BTreeSet<_>>();
        let services = if services.len() > MAX_FOCUS { Pick::All } else { only(services.into_iter()) };
        let records = marks.records || !watched.is_empty();
        let asked = !focus.is_empty() || !matches!(services, Pick::Nothing) || records;
        let nodes = if marks.nodes {
            Pick::All
        } else if asked && !self.leader_is_due(now) {
            Pick::Nothing
        } else {
            let leader = self.nodes.values().find(|node| node.leader).map(|node| node.id.clone());
            leader.map_or(Pick::All, |leader| Pick::Only(vec![leader]))
        };
        let past = self.with_past(watched, Some(&focus));
        let tasks = match tasks {
            // Their tasks are read once, with the others of the same service.
            Pick::Only(mut services) => {
                services.retain(|service| !past.contains(service));
                only(services.into_iter())
            }
            other => other,
        };
        Plan { full, nodes, services, records, tasks, past, by_id }
    }

    /// Services whose tasks are to be read.
    fn focus(&mut self, now: Time, watched: &BTreeSet<ServiceId>) -> BTreeSet<ServiceId> {
        self.followed.retain(|_, changed| now.since(*changed) < FOLLOWED);
        let mut focus: BTreeSet<ServiceId> = watched.iter().chain(self.followed.keys()).cloned().collect();
        if self.unsettled_at.is_none_or(|at| now.since(at) >= UNSETTLED_EVERY) {
            self.unsettled_at = Some(now);
            focus.extend(self.unsettled());
        }
        focus
    }

    /// Services whose replicas are not all as Swarm wants them.
    fn unsettled(&self) -> BTreeSet<ServiceId> {
        let mut wanted: BTreeMap<&ServiceId, u64> = BTreeMap::new();
        let mut unsettled = BTreeSet::new();
        for task in self.tasks.values().filter(|task| task.is_wanted()) {
            *wanted.entry(&task.service).or_default() += 1;
            if task.state != TaskState::Running && self.services.contains_key(&task.service) {
                unsettled.insert(task.service.clone());
            }
        }
        for service in self.services.values() {
            let Mode::Replicated(replicas) = service.mode else { continue };
            if wanted.get(&service.id).copied().unwrap_or(0) != replicas {
                unsettled.insert(service.id.clone());
            }
        }
        unsettled
    }

    /// Services whose tasks are read with those that ended: what an action waits for may have failed, and which tasks of a
    /// job ended is judged.
    fn with_past(&self, watched: &BTreeSet<ServiceId>, of: Option<&BTreeSet<ServiceId>>) -> Vec<ServiceId> {
        let all: BTreeSet<ServiceId> = watched.iter().cloned().chain(self.jobs(of)).collect();
        all.into_iter().take(MAX_FOCUS).collect()
    }

    /// Jobs that are looked after, of these services: which of their tasks ended is judged, too.
    fn jobs(&self, of: Option<&BTreeSet<ServiceId>>) -> Vec<ServiceId> {
        let jobs = self.services.values().filter(|service| {
            service.job_iteration.is_some() && service.policy.as_ref().is_ok_and(|policy| policy.enabled)
        });
        jobs.map(|job| job.id.clone()).filter(|id| of.is_none_or(|of| of.contains(id))).collect()
    }

    /// Whether something happens that is worth a look before long.
    pub fn is_busy(&self, now: Time) -> bool {
        self.followed.values().any(|changed| now.since(*changed) < FOLLOWED)
    }

    fn leader_is_due(&self, now: Time) -> bool {
        self.leader_at.is_none_or(|at| now.since(at) >= LEADER_EVERY)
    }

    fn is_up(&self, task: &Task) -> bool {
        task.node.as_ref().and_then(|node| self.nodes.get(node)).is_some_and(|node| !node.is_down())
    }

    /// Takes in what was read by a plan. Answers the tasks that Swarm wants no more and that may still run: they are to
    /// be read by their IDs, and handed to [`Self::take_by_id`].
    pub fn take(&mut self, now: Time, plan: &Plan, read: Read) -> Vec<TaskId> {
        self.take_nodes(now, plan, read.nodes);
        self.take_services(now, plan, read.services);
        if plan.records {
            self.records = read.records.into_iter().map(|record| (record.name.clone(), record)).collect();
        }
        let first = self.full_at.is_none();
        let mut past = Vec::new();
        // Those that were read before are read again, as long as anybody asks for them.
        self.failures.clear();
        for task in read.past {
            match task {
                AnyTask::Current(task) => past.push(task),
                AnyTask::Failed(id, failure) => drop(self.failures.insert(id, failure)),
            }
        }
        let gone = self.take_tasks(now, plan, read.tasks, past);
        if first {
            // Nothing has happened yet: this is how it is.
            self.followed.clear();
        }
        if plan.full {
            self.full_at = Some(now);
            self.unsettled_at = Some(now);
        }
        let mut by_id = plan.by_id.clone();
        by_id.extend(gone);
        let (first, rest) = by_id.split_at(by_id.len().min(MAX_BY_ID));
        for id in rest {
            self.tasks.remove(id);
        }
        first.to_vec()
    }

    /// Takes in tasks that were read by their IDs; those that were asked for and are not there are gone.
    pub fn take_by_id(&mut self, now: Time, asked: &[TaskId], found: Vec<Task>) {
        let there: BTreeSet<TaskId> = found.iter().map(|task| task.id.clone()).collect();
        for id in asked.iter().filter(|id| !there.contains(*id)) {
            if let Some(task) = self.tasks.remove(id) {
                self.followed.insert(task.service, now);
            }
        }
        // IDs are prefixes to the engine.
        for task in found.into_iter().filter(|task| asked.contains(&task.id)) {
            self.put(now, task);
        }
    }

    fn put(&mut self, now: Time, task: Task) {
        let same = self.tasks.get(&task.id).is_some_and(|old| is_same(old, &task));
        if !same {
            self.followed.insert(task.service.clone(), now);
        }
        self.tasks.insert(task.id.clone(), task);
    }

    fn take_nodes(&mut self, now: Time, plan: &Plan, read: Vec<Node>) {
        match &plan.nodes {
            Pick::Nothing => return,
            Pick::Only(_) => {
                for node in read {
                    self.nodes.insert(node.id.clone(), node);
                }
            }
            Pick::All => {
                let new: BTreeMap<NodeId, Node> =
                    read.into_iter().map(|node| (node.id.clone(), node)).collect();
                let old = std::mem::replace(&mut self.nodes, new);
                if !plan.full {
                    self.follow_nodes(now, &old);
                }
            }
        }
        self.leader_at = Some(now);
    }

    /// A node that comes or goes changes what runs on it, and gives room to what waits.
    fn follow_nodes(&mut self, now: Time, old: &BTreeMap<NodeId, Node>) {
        let word = |node: &Node| (node.ready, node.unknown, node.availability);
        let all: BTreeSet<&NodeId> = old.keys().chain(self.nodes.keys()).collect();
        let changed: Vec<&NodeId> =
            all.into_iter().filter(|id| old.get(*id).map(word) != self.nodes.get(*id).map(word)).collect();
        if changed.is_empty() {
            return;
        }
        let takes = |id: &&NodeId| {
            self.nodes.get(*id).is_some_and(|node| node.ready && node.availability == Availability::Active)
        };
        let room = changed.iter().any(takes);
        let on_them =
            self.tasks.values().filter(|task| task.node.as_ref().is_some_and(|node| changed.contains(&node)));
        let mut services: BTreeSet<ServiceId> = on_them.map(|task| task.service.clone()).collect();
        if room {
            let global = self
                .services
                .values()
                .filter(|service| matches!(service.mode, Mode::Global | Mode::GlobalJob));
            services.extend(global.map(|service| service.id.clone()));
            services.extend(self.unsettled());
        }
        self.followed.extend(services.into_iter().map(|service| (service, now)));
    }

    fn take_services(&mut self, now: Time, plan: &Plan, read: Vec<Service>) {
        let asked = match &plan.services {
            Pick::Nothing => return,
            Pick::Only(asked) => Some(asked),
            Pick::All => None,
        };
        let new: BTreeMap<ServiceId, Service> =
            read.into_iter().map(|service| (service.id.clone(), service)).collect();
        for service in new.values() {
            let version = self.services.get(&service.id).map(|old| old.version);
            if version.is_some_and(|version| version != service.version) {
                self.followed.insert(service.id.clone(), now);
            }
        }
        match asked {
            None => self.services = new,
            Some(asked) => {
                // One that was asked for and is not there was removed.
                for id in asked.iter().filter(|id| !new.contains_key(*id)) {
                    self.services.remove(id);
                }
                self.services.extend(new);
            }
        }
    }

    /// Answers the tasks that were known, and that Swarm wants no more.
    fn take_tasks(&mut self, now: Time, plan: &Plan, wanted: Vec<Task>, past: Vec<Task>) -> Vec<TaskId> {
        let of_past: BTreeSet<&ServiceId> = plan.past.iter().collect();
        let there: BTreeSet<TaskId> = wanted.iter().chain(&past).map(|task| task.id.clone()).collect();
        for task in wanted.into_iter().chain(past) {
            self.put(now, task);
        }
        let in_scope = |task: &Task| match &plan.tasks {
            Pick::All => true,
            Pick::Only(services) => services.contains(&task.service) || of_past.contains(&task.service),
            Pick::Nothing => of_past.contains(&task.service),
        };
        let (mut asked, mut ended) = (Vec::new(), Vec::new());
        for task in self.tasks.values().filter(|task| in_scope(task) && !there.contains(&task.id)) {
            // One that never was on a node cannot run there; and of these services everything was read.
            let may_run = task.node.is_some() && task.state <= TaskState::Running;
            if may_run && !of_past.contains(&task.service) {
                asked.push(task.id.clone());
            } else {
                ended.push(task.id.clone());
            }
        }
        for id in ended {
            if let Some(task) = self.tasks.remove(&id) {
                self.followed.insert(task.service, now);
            }
        }
        asked
    }

    /// The whole, as a reading that began then.
    pub fn snapshot(&self, taken: Time, own_node: NodeId) -> Snapshot {
        Snapshot {
            taken,
            own_node: Some(own_node),
            nodes: self.nodes.clone(),
            services: self.services.clone(),
            tasks: self.tasks.clone(),
            records: self.records.clone(),
            failures: self.failures.clone(),
        }
    }
}

/// Swarm wants it no more, and it may still run.
fn lingers(task: &Task) -> bool {
    !task.is_wanted() && task.state <= TaskState::Running
}

fn is_same(one: &Task, other: &Task) -> bool {
    one.state == other.state
        && one.desired == other.desired
        && one.node == other.node
        && one.container == other.container
        && one.message == other.message
}

fn only<T>(items: impl Iterator<Item = T>) -> Pick<T> {
    let items: Vec<T> = items.collect();
    if items.is_empty() { Pick::Nothing } else { Pick::Only(items) }
}

fn known_only(ids: impl Iterator<Item = TaskId>) -> Vec<TaskId> {
    ids.take(MAX_IDS).collect()
}

#[cfg(test)]
#[path = "known_tests.rs"]
mod tests;
