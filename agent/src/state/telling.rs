//! What coordinators are told: introductions, alerts and events on a connection's stream, loads in its reports.

use std::{collections::BTreeMap, time::Duration};

use swarmguard_common::{
    domain::{Condition, Edge},
    time::Time,
    wire::agent::{Alert, ContainerEvent, NodeLoad, Report, TaskIntro, TaskLoad, ToCoordinator},
};

use super::{Agent, container::intro, push};
use crate::{conditions::Change, uplink::outbox::Kept};

/// How long a new container waits to be named by the engine before it is introduced without names.
pub const NAME_PATIENCE: Duration = Duration::from_secs(2);

/// How long an engine event is of use.
const EVENT_LIFE: Duration = Duration::from_secs(10);

/// A report is sent this often in a second, and cold containers take turns so that each is in one of them.
const TURNS: u32 = 4;

/// What one coordinator has been told in one connection. A new connection starts with a new one.
///
/// Containers are introduced in the order in which they become known by name, which is not the order of their birth;
/// on the wire handles may only count up. So each connection numbers them anew.
#[derive(Debug, Default)]
pub struct Told {
    alert: u64,
    event: u64,
    /// Handle in the connection by handle here.
    introduced: BTreeMap<u32, u32>,
    last_handle: u32,
    turn: u32,
}

impl Told {
    /// For a connection to a coordinator that has acknowledged alerts up to `acknowledged`.
    pub fn after(acknowledged: u64) -> Self {
        Self { alert: acknowledged, ..Self::default() }
    }

    fn introduce(&mut self, handle: u32) -> u32 {
        self.last_handle += 1;
        self.introduced.insert(handle, self.last_handle);
        self.last_handle
    }
}

impl Agent {
    /// A coordinator is newly connected: tells everything that stands once more, to all alike.
    pub fn tell_standing(&mut self, now: Time) {
        let (outbox, counts) = (&mut self.outbox, &mut self.counts);
        for (handle, container) in &self.containers {
            container.conditions.standing(|change| push(outbox, counts, *handle, change));
        }
        if let Some(over) = &mut self.over_budget {
            let (value, since) = (over.share, over.since);
            let change = Change { condition: Condition::AgentOverBudget, edge: Edge::Refresh, value, since };
            push(outbox, counts, 0, change);
            over.told = now;
        }
    }

    /// What a coordinator is to be told next, reliably, at most `most` messages. Order: what an alert speaks of is
    /// introduced before it, and is gone after it.
    pub fn messages(&mut self, now: Time, told: &mut Told, most: usize) -> Vec<ToCoordinator> {
        let mut out = Vec::new();
        self.introduce_new(now, told, most, &mut out);
        self.tell_alerts(now, told, most, &mut out);
        let sent_all = told.alert >= self.outbox.last_seq() || self.outbox.after(told.alert).next().is_none();
        if sent_all {
            told.introduced.retain(|own, handle| {
                let alive = self.containers.contains_key(own);
                if !alive {
                    out.push(ToCoordinator::Gone { handle: *handle });
                }
                alive
            });
        }
        self.tell_events(now, told, most, &mut out);
        out
    }

    fn introduce_new(&self, now: Time, told: &mut Told, most: usize, out: &mut Vec<ToCoordinator>) {
        for (handle, container) in &self.containers {
            let named = container.description.is_some() || !self.expects_names;
            let ready = named || now.since(container.born) >= NAME_PATIENCE;
            if ready && out.len() < most && !told.introduced.contains_key(handle) {
                out.push(ToCoordinator::Task(intro(told.introduce(*handle), container)));
            }
        }
    }

    fn tell_alerts(&self, now: Time, told: &mut Told, most: usize, out: &mut Vec<ToCoordinator>) {
        for kept in self.outbox.after(told.alert) {
            if out.len() >= most {
                return;
            }
            told.alert = kept.seq;
            let handle = match told.introduced.get(&kept.handle) {
                _ if kept.handle == 0 => 0,
                Some(handle) => *handle,
                None => {
                    let alive = self.containers.get(&kept.handle).map(|container| intro(0, container));
                    // There may have been no room for the grave; nobody could make sense of the alert then.
                    let Some(intro) = alive.or_else(|| self.graves.get(&kept.handle).cloned()) else {
                        continue;
                    };
                    let handle = told.introduce(kept.handle);
                    out.push(ToCoordinator::Task(TaskIntro { handle, ..intro }));
                    handle
                }
            };
            out.push(ToCoordinator::Alert(self.alert(now, kept, handle)));
        }
    }

    fn alert(&self, now: Time, kept: &Kept, handle: u32) -> Alert {
        Alert {
            epoch: self.hello.epoch,
            seq: kept.seq,
            handle,
            condition: kept.condition as u8,
            edge: kept.edge as u8,
            value: kept.value.0,
            age_ms: age_ms(now, kept.since),
        }
    }

    fn tell_events(&mut self, now: Time, told: &mut Told, most: usize, out: &mut Vec<ToCoordinator>) {
        while self.events.front().is_some_and(|(_, at, _)| now.since(*at) > EVENT_LIFE) {
            self.events.pop_front();
        }
        let heard = told.event;
        for (seq, at, event) in self.events.iter().filter(|(seq, ..)| *seq > heard) {
            if out.len() >= most {
                return;
            }
            told.event = *seq;
            out.push(ToCoordinator::Container(ContainerEvent { age_ms: age_ms(now, *at), ..event.clone() }));
        }
    }

    /// The loads for one report interval of a connection: hot containers every time, the others in turns. Only
    /// containers that were introduced are in it.
    pub fn loads(&self, told: &mut Told) -> (NodeLoad, Vec<TaskLoad>) {
        told.turn = (told.turn + 1) % TURNS;
        let chosen = told.introduced.iter().filter_map(|(own, handle)| {
            let container = self.containers.get(own)?;
            let due = handle % TURNS == told.turn || container.conditions.hot();
            (due && container.fast.is_some()).then(|| container.load(*handle))
        });
        (self.node, chosen.collect())
    }

    /// A report with the next number.
    pub fn report(&mut self, node: NodeLoad, tasks: Vec<TaskLoad>) -> Report {
        self.report_seq += 1;
        Report { epoch: self.hello.epoch, seq: self.report_seq, node, tasks }
    }
}

fn age_ms(now: Time, since: Time) -> u32 {
    u32::try_from(now.since(since).as_millis()).unwrap_or(u32::MAX)
}
