//! Which replicas are hot, as far as their alerts can be believed.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::{
    domain::{BasisPoints, Condition, NodeId, ServiceId},
    labels::{ACT_AFTER, CLEAR_RATIO, ServicePolicy},
    time::Time,
    wire::agent::{NodeLoad, TaskLoad},
};

use super::{constant, placement};
use crate::{
    lease::LeaseState,
    swarm::Service,
    view::{
        Replica, View,
        agent::{Agent, Container},
        alerts::Standing,
        lives::Maturity,
        shortage::{CPU_SHORT, MEMORY_SHORT},
    },
};

/// Why an alert does not count, or not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It has not stood long enough: this is left.
    Holding(Duration),
    /// The task is not on the node that reports it.
    Stale(String),
    /// The reporter is not to be believed.
    Lease(&'static str),
    /// No fresh figures of the replica or its node.
    NoData,
    /// The task does not run yet, or not healthily.
    NotServing,
    /// It has just started: its figures tell of that.
    WarmingUp(Option<Duration>),
}

/// A replica with a standing alert of high CPU or memory.
#[derive(Clone, Debug)]
pub struct Hot<'a> {
    /// The node whose agent says so.
    pub reporter: &'a NodeId,
    /// The replica; `None` where the alert is stale.
    pub replica: Option<Replica<'a>>,
    /// CPU is high, and has been for long enough.
    pub cpu: bool,
    /// Memory is high, and has been for long enough.
    pub memory: bool,
    /// How long what counts has stood; where nothing counts yet, what is nearest to it.
    pub stood: Duration,
    /// How long it must stand.
    pub act_after: Duration,
    /// Why it does not count.
    pub doubt: Option<Doubt>,
    now: Time,
}

impl<'a> Hot<'a> {
    /// Whether it counts for nothing: nobody stands by it, or not for a task on the reporter's node.
    pub fn is_stale(&self) -> bool {
        matches!(self.doubt, Some(Doubt::Stale(_)))
    }

    /// Replica, its node's agent and fresh figures of both, where the alert counts.
    pub fn certain(&self) -> Option<Certain<'a>> {
        if self.doubt.is_some() {
            return None;
        }
        let replica = self.replica?;
        let agent = replica.agent?;
        let container = replica.container?;
        let load = container.recent.settled(self.now, self.stood).unwrap_or(*replica.load?);
        let node_load = agent.recent.settled(self.now, self.stood).or(agent.load)?;
        Some(Certain { replica, agent, container, load, node_load })
    }
}

/// A hot replica of which everything is known. Its figures and its node's are medians over the time that it has been hot,
/// at most the last seconds: none of them is a single reading.
#[derive(Clone, Copy, Debug)]
pub struct Certain<'a> {
    /// The replica.
    pub replica: Replica<'a>,
    /// The agent of its node.
    pub agent: &'a Agent,
    /// Its container.
    pub container: &'a Container,
    /// Its figures.
    pub load: TaskLoad,
    /// Its node's figures.
    pub node_load: NodeLoad,
}

impl Certain<'_> {
    /// Whether its node is short of CPU, or of memory, that this replica is hot by.
    pub fn node_is_short(&self, hot: &Hot<'_>) -> (bool, bool) {
        let over = |value: Option<BasisPoints>, high: BasisPoints| value.is_some_and(|value| value >= high);
        let short = &self.agent.shortage;
        let cpu = short.cpu.is_some() || over(self.node_load.cpu, CPU_SHORT);
        let memory = short.memory.is_some() || over(self.node_load.memory, MEMORY_SHORT);
        (hot.cpu && cpu, hot.memory && memory)
    }

    /// Others use more of the node than it does.
    pub fn is_lesser_part(&self) -> bool {
        self.node_load.cpu.is_some_and(|cpu| self.cpu_of_node() < cpu.ratio() * constant::MAIN_PART)
    }

    /// Its CPU as a share of the node's, where 1.0 is all.
    pub fn cpu_of_node(&self) -> f64 {
        share(f64::from(self.load.cpu_millis), f64::from(self.agent.hello.cpu_millis))
    }

    /// Its memory as a share of the node's memory.
    pub fn memory_of_node(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        share(f64::from(self.load.memory_kib) * 1_024.0, self.agent.hello.memory_bytes as f64)
    }
}

/// A part of a whole; 0 of nothing.
pub fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// All hot replicas by service.
#[derive(Clone, Debug, Default)]
pub struct HotList<'a> {
    services: BTreeMap<&'a ServiceId, Vec<Hot<'a>>>,
}

impl<'a> HotList<'a> {
    /// Walks the standing alerts of all agents.
    pub fn of(view: &'a View, now: Time) -> Self {
        let mut list = Self::default();
        for (node, agent) in &view.agents {
            for container in agent.containers.values().filter(|container| !container.standing.is_empty()) {
                let Some(service) = view.service_of(container) else { continue };
                let Ok(policy) = &service.policy else { continue };
                if let Some(hot) = examine(view, now, node, agent, container, (service, policy)) {
                    list.services.entry(&service.id).or_default().push(hot);
                }
            }
        }
        list
    }

    /// Since when each service has been hot by alerts that are believed or only too young.
    pub fn since(&self, now: Time) -> BTreeMap<ServiceId, Time> {
        let counts = |hot: &&Hot<'_>| matches!(hot.doubt, None | Some(Doubt::Holding(_)));
        let all = self.services.iter().filter_map(|(service, hot)| {
            let stood = hot.iter().filter(counts).map(|hot| hot.stood).max()?;
            Some(((*service).clone(), now.before(stood)))
        });
        all.collect()
    }

    /// Those of one service.
    pub fn of_service(&self, service: &ServiceId) -> &[Hot<'a>] {
        self.services.get(service).map_or(&[], Vec::as_slice)
    }
}

fn examine<'a>(
    view: &'a View,
    now: Time,
    node: &'a NodeId,
    agent: &'a Agent,
    container: &'a Container,
    (service, policy): (&Service, &ServicePolicy),
) -> Option<Hot<'a>> {
    let snapshot = view.snapshot.as_deref()?;
    let load = agent.fresh(container, now);
    // What has fallen below the clearing threshold is no longer hot, also before the agent says so.
    let stands = |condition, value: fn(&TaskLoad) -> Option<BasisPoints>, high: BasisPoints| {
        let standing: &Standing = container.standing.get(&condition)?;
        let cooled = load.and_then(value).is_some_and(|value| value < high.scaled(CLEAR_RATIO));
        (!cooled).then_some((standing, load.and_then(value).is_some()))
    };
    let cpu = stands(Condition::CpuHigh, |load| load.cpu, policy.thresholds.cpu_high);
    let memory = stands(Condition::MemoryHigh, |load| load.memory, policy.thresholds.memory_high);
    // An operator's own word is not shortened.
    let act_after = policy.act_after.unwrap_or(if is_stalled(agent, container, load) {
        constant::ACT_AFTER_STALLED
    } else {
        ACT_AFTER
    });
    // Each condition must stand for itself: what is hot for a moment is not older for something else that is.
    let ages = [cpu, memory].map(|found| found.map(|(standing, _)| now - standing.since));
    let ripe = ages.map(|age| age.is_some_and(|age| age >= act_after));
    let longest = |only_ripe: bool| {
        ages.iter().zip(ripe).filter(|(_, ripe)| *ripe || !only_ripe).filter_map(|(age, _)| *age).max()
    };
    let stood = longest(true).or_else(|| longest(false))?;
    // Only what is known counts; where nothing is, that is said.
    let cpu_known = ripe[0] && cpu.is_some_and(|(_, known)| known);
    let memory_known = ripe[1] && memory.is_some_and(|(_, known)| known);
    let mut hot = Hot {
        reporter: node,
        replica: None,
        cpu: cpu_known,
        memory: memory_known,
        stood,
        act_after,
        doubt: None,
        now,
    };
    let task = view.task_of(&container.intro.container, container.intro.task.as_ref());
    hot.doubt = match task {
        _ if agent.lease.state(now) == LeaseState::Lapsed => {
            Some(Doubt::Stale(format!("the agent of {}, which raised it, is silent", agent.hello.hostname)))
        }
        None => Some(Doubt::Stale(format!("its task is gone from {}", agent.hello.hostname))),
        // On its way out already.
        Some(task) if !task.is_wanted() => return None,
        Some(task) if task.node.as_ref() != Some(node) => {
            let actual = task.node.as_ref().and_then(|id| snapshot.nodes.get(id));
            let actual = actual.map_or("no node", |node| node.hostname.as_str());
            Some(Doubt::Stale(format!("reported on {}, actually on {actual}", agent.hello.hostname)))
        }
        Some(task) => {
            hot.replica = view.replica(snapshot, task, now);
            if !task.is_serving() {
                Some(Doubt::NotServing)
            } else if let Some(why) = placement::unbelievable(view, node, now) {
                Some(Doubt::Lease(why))
            } else if !(cpu_known || memory_known) || agent.load.is_none_or(|load| load.cpu.is_none()) {
                Some(Doubt::NoData)
            } else if view.lives.maturity(&task.id, service, policy.warm_up, now) != Maturity::Mature {
                Some(Doubt::WarmingUp(view.lives.served(&task.id, now)))
            } else {
                None
            }
        }
    };
    if stood < act_after && !hot.is_stale() {
        hot.doubt = Some(Doubt::Holding(act_after - stood));
    }
    Some(hot)
}

/// Tasks wait for memory, or for a CPU while the node's CPUs are busy: those that wait at their own limit on an idle node
/// are held back by that, and haste would not help them.
fn is_stalled(agent: &Agent, container: &Container, load: Option<&TaskLoad>) -> bool {
    let high = |share: Option<BasisPoints>| share.is_some_and(|share| share.0 >= constant::STALLED);
    let busy = agent.load.is_some_and(|load| load.cpu.is_some_and(|cpu| cpu >= CPU_SHORT));
    let waits =
        container.standing.contains_key(&Condition::Stalled) || load.is_some_and(|load| high(load.psi_cpu));
    (busy && waits)
        || load.is_some_and(|load| high(load.psi_memory))
        || agent.load.as_ref().is_some_and(|load| high(load.psi_memory))
}
