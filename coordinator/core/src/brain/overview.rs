//! The whole swarm at a glance: what the page, the command line and Prometheus' alerts are told once a second.

use std::collections::{BTreeMap, BTreeSet};

use swarmguard_common::{
    api::{
        API_VERSION, ActionNow, AlertNow, Conclusion, Coordination, Health, LastDay, LeaseState, NodeRow,
        NodeWord, Overview, Placement, ServiceMode, ServiceRow, SwarmName,
    },
    domain::{BasisPoints, NodeId, ServiceId},
    time::Time,
    wire::agent::NodeLoad,
};

use super::{Brain, report::ms};
use crate::{
    action::Kind,
    policy::SHORT_PSI,
    swarm::{Availability, Mode, Node, Service, Snapshot, TaskState},
    view::Replica,
};

/// Most alerts in one overview.
const MAX_ALERTS: usize = 200;
/// An alert that stands for this long without help costs points, and is told.
pub(super) const UNHELPED_AFTER_MS: u64 = 10_000;

/// What the judgement does not know itself, and the overview shows all the same.
#[derive(Clone, Debug)]
pub struct Beside {
    /// Wall clock, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Version of the program.
    pub version: String,
    /// Which swarm.
    pub swarm: SwarmName,
    /// Why Swarm cannot be read, if it cannot.
    pub trouble: Option<String>,
    /// Balancers connected.
    pub balancers: usize,
    /// Replicas that balancers send nothing to, because they fail.
    pub out_of_balance: Vec<String>,
    /// What was done since yesterday.
    pub last_day: LastDay,
    /// When each action began that is under way, where that was seen; wall clock.
    pub began_ms: BTreeMap<String, u64>,
}

impl Brain {
    /// The swarm at a glance.
    pub fn overview(&self, now: Time, beside: Beside) -> Overview {
        let alerts = self.alerts_now(now);
        let mut overview = Overview {
            api_version: API_VERSION.into(),
            version: beside.version.clone(),
            at_ms: beside.at_ms,
            swarm: beside.swarm.clone(),
            coordination: self.coordination(now, &beside),
            health: Health::of(Vec::new()),
            banner: Vec::new(),
            nodes: self.node_rows(now),
            services: self.service_rows(now, &alerts),
            actions: self.actions_now(now, &beside),
            alerts,
            last_day: beside.last_day,
        };
        overview.health = Health::of(self.deductions(now, &overview, &beside));
        overview.banner = super::banner::of(&overview, &beside);
        overview
    }

    /// Which replicas are where.
    pub fn placement(&self, now: Time) -> Placement {
        let Some(snapshot) = self.view.snapshot.as_deref() else { return Placement::default() };
        let (mut nodes, mut services): (Vec<_>, Vec<_>) = (
            snapshot.nodes.values().map(|node| (node.id.clone(), node.hostname.clone())).collect(),
            snapshot.services.values().map(|service| (service.id.clone(), service.name.clone())).collect(),
        );
        nodes.sort_by(|(_, one), (_, other)| one.cmp(other));
        services.sort_by(|(_, one), (_, other)| one.cmp(other));
        let place = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        let rows: BTreeMap<&NodeId, u32> =
            nodes.iter().enumerate().map(|(index, (id, _))| (id, place(index))).collect();
        let columns: BTreeMap<&ServiceId, u32> =
            services.iter().enumerate().map(|(index, (id, _))| (id, place(index))).collect();
        let mut cells: BTreeMap<(u32, u32), (u32, u32, Option<u8>, u32)> = BTreeMap::new();
        for task in snapshot.tasks.values().filter(|task| task.is_wanted()) {
            let row = task.node.as_ref().and_then(|node| rows.get(node));
            let (Some(row), Some(column)) = (row, columns.get(&task.service)) else { continue };
            let cell = cells.entry((*row, *column)).or_default();
            cell.0 += 1;
            cell.1 += u32::from(task.is_serving());
            let Some(replica) = self.view.replica(snapshot, task, now) else { continue };
            cell.2 = cell.2.max(replica.load.and_then(|load| load.cpu).map(whole));
            let standing = replica.container.map_or(0, |container| container.standing.len());
            cell.3 += place(standing);
        }
        let cells = cells.into_iter().map(|((row, column), (wanted, running, cpu, alerts))| {
            (row, column, wanted, running, cpu, alerts)
        });
        Placement { cells: cells.collect(), nodes, services }
    }

    fn coordination(&self, now: Time, beside: &Beside) -> Coordination {
        let snapshot = self.view.snapshot.as_deref();
        let leader = snapshot.and_then(|snapshot| snapshot.nodes.get(snapshot.leader()?));
        Coordination {
            leader: leader.map(|node| node.hostname.clone()),
            acts: self.acts().and_then(|node| Some(snapshot?.nodes.get(node)?.hostname.clone())),
            acting: self.is_acting(),
            observe: self.settings.observe || self.wishes.observe(),
            paused: self.wishes.paused_all(),
            snapshot_age_ms: snapshot.map(|snapshot| ms(now - snapshot.taken)),
            balancers: beside.balancers,
        }
    }

    fn node_rows(&self, now: Time) -> Vec<NodeRow> {
        let Some(snapshot) = self.view.snapshot.as_deref() else { return Vec::new() };
        let placed = self.view.placed();
        let mut rows: Vec<NodeRow> = snapshot
            .nodes
            .values()
            .map(|node| {
                let agent = self.view.agents.get(&node.id);
                let load = agent.and_then(|agent| agent.load);
                let on = placed.on(&node.id);
                let share = |of: fn(&NodeLoad) -> Option<BasisPoints>| load.as_ref().and_then(of).map(whole);
                NodeRow {
                    node: node.id.clone(),
                    hostname: node.hostname.clone(),
                    state: self.node_words(node, now),
                    cpu_percent: share(|load| load.cpu),
                    memory_percent: share(|load| load.memory),
                    network_percent: share(|load| load.network),
                    psi_percent: share(|load| load.psi_cpu),
                    reserved_cpu_millis: on.map_or(0, |on| millis(on.nano_cpus)),
                    cpu_millis: millis(node.nano_cpus),
                    reserved_memory_bytes: on.map_or(0, |on| u64::try_from(on.memory_bytes).unwrap_or(0)),
                    memory_bytes: u64::try_from(node.memory_bytes).unwrap_or(0),
                    replicas: on.map_or(0, |on| on.tasks as u64),
                    lease: self.view.lease(&node.id, now),
                    lease_age_ms: agent.map(|agent| ms(agent.lease.age(now))),
                }
            })
            .collect();
        rows.sort_by(|one, other| one.hostname.cmp(&other.hostname).then(one.node.cmp(&other.node)));
        rows
    }

    fn node_words(&self, node: &Node, now: Time) -> Vec<NodeWord> {
        let agent = self.view.agents.get(&node.id);
        let load = self.view.node_load(&node.id, now).copied().unwrap_or_default();
        let thresholds = self.settings.thresholds;
        let at_least = |value: Option<BasisPoints>, least: u16| value.is_some_and(|value| value.0 >= least);
        let lease = self.view.lease(&node.id, now);
        let may_have_agent = node.availability != Availability::Drain;
        let told = [
            (NodeWord::Down, node.is_down()),
            (NodeWord::Unknown, node.unknown),
            (NodeWord::Silent, lease == Some(LeaseState::Lapsed) && may_have_agent),
            (NodeWord::Suspect, lease == Some(LeaseState::Suspect)),
            (NodeWord::NoAgent, lease.is_none() && may_have_agent),
            (NodeWord::Blind, agent.is_some_and(|agent| agent.hello.blind)),
            (NodeWord::Starved, load.starved),
            (
                NodeWord::ShortCpu,
                at_least(load.psi_cpu, SHORT_PSI) || at_least(load.cpu, thresholds.cpu_high.0),
            ),
            (
                NodeWord::ShortMemory,
                at_least(load.psi_memory, SHORT_PSI) || at_least(load.memory, thresholds.memory_high.0),
            ),
            (NodeWord::ShortNetwork, at_least(load.network, thresholds.network_high.0)),
            (NodeWord::Drain, node.availability == Availability::Drain),
            (NodeWord::Pause, node.availability == Availability::Pause),
        ];
        let mut words: Vec<NodeWord> =
            told.into_iter().filter(|(_, holds)| *holds).map(|(word, _)| word).collect();
        if words.is_empty() {
            words.push(NodeWord::Ok);
        }
        match (node.leader, node.manager) {
            (true, _) => words.push(NodeWord::Leader),
            (false, true) => words.push(NodeWord::Manager),
            (false, false) => {}
        }
        words
    }

    fn service_rows(&self, now: Time, alerts: &[AlertNow]) -> Vec<ServiceRow> {
        let Some(snapshot) = self.view.snapshot.as_deref() else { return Vec::new() };
        let mut standing: BTreeMap<&str, u64> = BTreeMap::new();
        for alert in alerts.iter().filter(|alert| !alert.stale) {
            if let Some(service) = &alert.service {
                *standing.entry(service).or_default() += 1;
            }
        }
        let busy: BTreeMap<&ServiceId, &str> = self
            .actions_under_way()
            .filter(|record| record.kind != Kind::Node)
            .filter_map(|record| Some((record.service.as_ref()?, record.token.as_str())))
            .collect();
        let mut rows: Vec<ServiceRow> = snapshot
            .services
            .values()
            .map(|service| {
                let mut row = self.service_row(snapshot, service, now);
                row.alerts = standing.get(service.name.as_str()).copied().unwrap_or(0);
                row.action = busy.get(&service.id).map(|token| (*token).to_owned());
                row
            })
            .collect();
        rows.sort_by(|one, other| one.name.cmp(&other.name).then(one.service.cmp(&other.service)));
        rows
    }

    fn service_row(&self, snapshot: &Snapshot, service: &Service, now: Time) -> ServiceRow {
        let policy = service.policy.as_ref().ok();
        let known = self.verdicts.get(&service.id).map(|known| &known.judgement);
        let use_of = ServiceUse::of(
            self.view
                .tasks_of(&service.id)
                .filter(|task| task.is_wanted())
                .filter_map(|task| self.view.replica(snapshot, task, now)),
        );
        let wanted_tasks = self.view.tasks_of(&service.id).filter(|task| task.is_wanted());
        let (mode, wanted) = match service.mode {
            Mode::Replicated(replicas) => (ServiceMode::Replicated, Some(replicas)),
            Mode::Global => (ServiceMode::Global, Some(wanted_tasks.count() as u64)),
            Mode::ReplicatedJob { .. } | Mode::GlobalJob => (ServiceMode::Job, None),
        };
        let pending = |task: &&crate::swarm::Task| task.is_wanted() && task.state <= TaskState::Pending;
        ServiceRow {
            service: service.id.clone(),
            name: service.name.clone(),
            mode,
            protected: policy.is_some_and(|policy| policy.enabled),
            own: service.is_own() || policy.is_some_and(|policy| policy.role.is_some()),
            running: self.view.tasks_of(&service.id).filter(|task| task.is_serving()).count() as u64,
            wanted,
            pending: self.view.tasks_of(&service.id).filter(pending).count() as u64,
            cpu_percent: use_of.mean(use_of.cpu),
            cpu_max_percent: (use_of.known > 0).then_some(use_of.cpu_max),
            memory_percent: use_of.mean(use_of.memory),
            cpu_millis: use_of.cpu_millis,
            memory_bytes: use_of.memory_bytes,
            in_flight: use_of.in_flight,
            latency_ms: use_of.latency_ms(),
            conclusion: known.map(|judgement| judgement.conclusion),
            rule: known.map(|judgement| judgement.rule.word().into()),
            observe: self.observes(service),
            paused: self.wishes.is_paused(&service.id),
            labels_invalid: service.policy.is_err(),
            alerts: 0,
            action: None,
            update: service
                .update_state
                .filter(|state| state.is_unfinished())
                .map(|state| state.word().into()),
        }
    }

    fn actions_now(&self, now: Time, beside: &Beside) -> Vec<ActionNow> {
        let mut seen = BTreeSet::new();
        let under_way = self.actions(now).into_iter().filter(|action| {
            // A drain holds a node lease of its own beside its record: one line is enough.
            action.state != "over" && action.kind != "node" && seen.insert(action.action.clone())
        });
        let mut rows: Vec<ActionNow> = under_way
            .map(|action| ActionNow {
                service: action
                    .service
                    .as_ref()
                    .map(|id| self.service_name(id).unwrap_or_else(|| id.to_string())),
                source: action.source.as_ref().map(|node| self.hostname(node)),
                target: action.target.as_ref().map(|node| self.hostname(node)),
                total_ms: beside
                    .began_ms
                    .get(&action.action)
                    .map(|began| beside.at_ms.saturating_sub(*began)),
                action: action.action,
                kind: action.kind,
                step: action.state,
                step_ms: action.state_age_ms,
                waits_for: action.waits_for,
                undone: action.undone,
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.total_ms));
        rows
    }

    fn alerts_now(&self, now: Time) -> Vec<AlertNow> {
        let mut rows: Vec<AlertNow> = self
            .alerts(now)
            .into_iter()
            .map(|alert| {
                let unhelped = (!alert.stale && alert.stands_ms >= UNHELPED_AFTER_MS)
                    .then(|| self.why_unhelped(alert.service.as_ref()?))
                    .flatten();
                AlertNow {
                    condition: alert.condition,
                    service: alert.service.as_ref().and_then(|id| self.service_name(id)),
                    task: alert.task,
                    node: self.hostname(&alert.node),
                    percent: whole(BasisPoints::from_ratio(alert.percent / 100.0)),
                    stands_ms: alert.stands_ms,
                    unhelped,
                    stale: alert.stale,
                }
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.stands_ms));
        rows.truncate(MAX_ALERTS);
        rows
    }

    /// The rule that keeps a hot, protected service as it is; `None` where it is helped, or wants no help.
    fn why_unhelped(&self, service: &ServiceId) -> Option<String> {
        let protected = self.view.snapshot.as_ref()?.services.get(service)?.policy.as_ref().ok()?.enabled;
        let known = self.verdicts.get(service)?;
        let refused = known.judgement.conclusion == Conclusion::Refuse;
        (protected && refused && !self.is_busy(service)).then(|| known.judgement.rule.word().into())
    }
}

/// Whole per cent.
fn whole(share: BasisPoints) -> u8 {
    u8::try_from((share.0 + 50) / 100).unwrap_or(100)
}

/// Thousandths of a CPU from billionths.
fn millis(nano_cpus: i64) -> u64 {
    u64::try_from(nano_cpus / 1_000_000).unwrap_or(0)
}

/// Use of all replicas of a service whose figures are fresh.
#[derive(Default)]
struct ServiceUse {
    known: u64,
    cpu: u64,
    memory: u64,
    cpu_max: u8,
    cpu_millis: u64,
    memory_bytes: u64,
    in_flight: Option<u64>,
    latency_us: u64,
    timed: u64,
}

impl ServiceUse {
    fn of<'a>(replicas: impl Iterator<Item = Replica<'a>>) -> Self {
        let mut all = Self::default();
        for load in replicas.filter_map(|replica| replica.load) {
            let (Some(cpu), Some(memory)) = (load.cpu, load.memory) else { continue };
            all.known += 1;
            all.cpu += u64::from(cpu.0);
            all.memory += u64::from(memory.0);
            all.cpu_max = all.cpu_max.max(whole(cpu));
            all.cpu_millis += u64::from(load.cpu_millis);
            all.memory_bytes += u64::from(load.memory_kib) * 1_024;
            if let Some(in_flight) = load.in_flight {
                *all.in_flight.get_or_insert(0) += u64::from(in_flight);
            }
            if let Some(latency_us) = load.latency_us {
                all.latency_us += u64::from(latency_us);
                all.timed += 1;
            }
        }
        all
    }

    fn mean(&self, points: u64) -> Option<u8> {
        let mean = points.checked_div(self.known)?;
        Some(whole(BasisPoints(u16::try_from(mean).unwrap_or(u16::MAX))))
    }

    /// Rounded as far as people read it, so that noise alone is no news: tenths below 10 ms, whole above.
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a latency")]
    fn latency_ms(&self) -> Option<f64> {
        let ms = self.latency_us.checked_div(self.timed)? as f64 / 1_000.0;
        Some(if ms < 10.0 { (ms * 10.0).round() / 10.0 } else { ms.round() })
    }
}
