//! What the API shows: the view and the actions as plain data.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use swarmguard_common::{
    api::{Explanation, Policy},
    domain::{BasisPoints, NodeId, ServiceId, TaskId},
    time::Time,
    wire::routes::ReplicaLoad,
};

use super::{
    ActionStatus, AlertStatus, Brain, ContainerStatus, LeaseStatus, NodeStatus, ServiceStatus, Statistics,
};
use crate::{
    action::{Kind, Record, action_name},
    policy::preflight,
    swarm::{Mode, RecordObject, Service},
    view::agent::{Agent, Container},
};

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Brain {
    /// Why a service is or is not touched; `None` where there is no such service.
    pub fn explain(&self, now: Time, service: &ServiceId) -> Option<Explanation> {
        let service = self.view.snapshot.as_ref()?.services.get(service)?;
        let known = self.verdicts.get(&service.id);
        let policy = service.policy.as_ref().ok();
        let action = self.view.snapshot.as_ref()?.records.get(&action_name(&service.id));
        Some(Explanation {
            service: service.id.clone(),
            name: service.name.clone(),
            verdict: known.map(|known| (&known.judgement).into()),
            verdict_age_ms: known.map(|known| ms(now - known.at)),
            acting: self.is_acting(),
            observe: self.observes(service),
            paused: self.wishes.is_paused(&service.id),
            policy: policy.map(Policy::from),
            label_errors: label_errors(service),
            cooldowns_ms: self.cooldowns(now, service),
            spare_ms: self.spare_for(now, service),
            alerts: self
                .alerts(now)
                .into_iter()
                .filter(|alert| alert.service.as_ref() == Some(&service.id))
                .collect(),
            action: action.and_then(|object| self.action_status(now, object)),
            preflight: policy
                .map_or_else(Vec::new, |policy| preflight::all(&self.view, service, policy, now))
                .into_iter()
                .map(Into::into)
                .collect(),
        })
    }

    fn spare_for(&self, now: Time, service: &Service) -> Option<u64> {
        let Mode::Replicated(replicas) = service.mode else { return None };
        let since = self.view.history.spare_since(&service.id, replicas)?;
        Some(ms(now - since)).filter(|spare_ms| *spare_ms > 0)
    }

    pub(super) fn observes(&self, service: &Service) -> bool {
        let by_label = service.policy.as_ref().is_ok_and(|policy| policy.observe);
        by_label || self.settings.observe || self.wishes.observe()
    }

    fn cooldowns(&self, now: Time, service: &Service) -> BTreeMap<Cow<'static, str>, u64> {
        let Ok(policy) = &service.policy else { return BTreeMap::new() };
        let kinds = [
            (Kind::Migrate, "migrate", policy.cooldown),
            (Kind::ScaleOut, "scale_out", policy.up_cooldown),
            (Kind::ScaleIn, "scale_in", policy.down_cooldown),
        ];
        let left = kinds.iter().filter_map(|(kind, word, cooldown)| {
            let past = self.view.history.past(&service.id, *kind)?;
            let left = cooldown.saturating_sub(now - past.ended);
            (!left.is_zero()).then(|| ((*word).into(), ms(left)))
        });
        left.collect()
    }

    /// All nodes.
    pub fn nodes(&self, now: Time) -> Vec<NodeStatus> {
        let Some(snapshot) = &self.view.snapshot else { return Vec::new() };
        let status = snapshot.nodes.values().map(|node| {
            let agent = self.view.agents.get(&node.id);
            NodeStatus {
                node: node.id.clone(),
                hostname: node.hostname.clone(),
                manager: node.manager,
                leader: node.leader,
                ready: node.ready,
                availability: node.availability,
                lease: agent.map(|agent| lease_status(&node.id, agent, now)),
                blind: agent.is_some_and(|agent| agent.hello.blind),
                load: agent.and_then(|agent| agent.load).map(Into::into),
                tasks: self.view.tasks_on(&node.id).filter(|task| task.is_wanted()).count(),
            }
        });
        status.collect()
    }

    /// All node leases.
    pub fn leases(&self, now: Time) -> Vec<LeaseStatus> {
        self.view.agents.iter().map(|(node, agent)| lease_status(node, agent, now)).collect()
    }

    /// All containers that agents report and that belong to a service.
    pub fn containers(&self, now: Time) -> Vec<ContainerStatus> {
        let all = self
            .view
            .agents
            .iter()
            .flat_map(|(node, agent)| agent.containers.values().map(move |container| (node, container)));
        all.map(|(node, container)| {
            let service = self.view.service_of(container);
            ContainerStatus {
                container: container.intro.container.clone(),
                node: node.clone(),
                task: self.task_id(container),
                service: service.map(|service| service.id.clone()),
                service_name: service.map(|service| service.name.clone()),
                load: container.load.map(|(load, _)| load.into()),
                load_age_ms: container.load.map(|(_, at)| ms(now - at)),
            }
        })
        .collect()
    }

    fn task_id(&self, container: &Container) -> Option<TaskId> {
        let known = self.view.task_of(&container.intro.container, container.intro.task.as_ref());
        known.map(|task| task.id.clone()).or_else(|| container.intro.task.clone())
    }

    /// All services.
    pub fn services(&self, now: Time) -> Vec<ServiceStatus> {
        let Some(snapshot) = &self.view.snapshot else { return Vec::new() };
        let status = snapshot.services.values().map(|service| ServiceStatus {
            service: service.id.clone(),
            name: service.name.clone(),
            protected: service.policy.as_ref().is_ok_and(|policy| policy.enabled),
            label_errors: label_errors(service),
            replicas: if let Mode::Replicated(replicas) = service.mode { Some(replicas) } else { None },
            running: self.view.tasks_of(&service.id).filter(|task| task.is_serving()).count(),
            paused: self.wishes.is_paused(&service.id),
            action: self
                .actions_under_way()
                .find(|record| record.kind != Kind::Node && record.service.as_ref() == Some(&service.id))
                .map(|record| record.token.clone()),
            rule: self.verdicts.get(&service.id).map(|known| known.judgement.rule.word().into()),
            preflight: service.policy.as_ref().ok().filter(|policy| policy.enabled).map_or_else(
                Vec::new,
                |policy| {
                    let found = preflight::all(&self.view, service, policy, now);
                    found.iter().map(|finding| finding.code.word().into()).collect()
                },
            ),
        });
        status.collect()
    }

    /// All standing alerts.
    pub fn alerts(&self, now: Time) -> Vec<AlertStatus> {
        let mut all = Vec::new();
        for (node, agent) in &self.view.agents {
            for container in agent.containers.values().filter(|container| !container.standing.is_empty()) {
                let task = self.view.task_of(&container.intro.container, container.intro.task.as_ref());
                let service = self.view.service_of(container).map(|service| service.id.clone());
                for (condition, standing) in &container.standing {
                    all.push(AlertStatus {
                        node: node.clone(),
                        container: container.intro.container.clone(),
                        task: self.task_id(container),
                        service: service.clone(),
                        condition: *condition,
                        percent: standing.value.percent(),
                        stands_ms: ms(now - standing.since),
                        heard_ms: ms(now - standing.heard),
                        stale: task.is_none_or(|task| task.node.as_ref() != Some(node)),
                    });
                }
            }
        }
        all
    }

    /// All actions under way, and tombstones.
    pub fn actions(&self, now: Time) -> Vec<ActionStatus> {
        let Some(snapshot) = &self.view.snapshot else { return Vec::new() };
        snapshot.records.values().filter_map(|object| self.action_status(now, object)).collect()
    }

    fn action_status(&self, now: Time, object: &RecordObject) -> Option<ActionStatus> {
        if !crate::action::is_record(&object.name) {
            return None;
        }
        let record = Record::parse(object).ok()?;
        Some(ActionStatus {
            record: object.name.clone(),
            action: record.token,
            kind: record.kind.word().into(),
            state: record.state.word().into(),
            service: record.service,
            source: record.source,
            target: record.target,
            holder: record.holder,
            state_age_ms: ms(self.view.history.ages.age(object, now)),
            waits_for: self.actions.waits_for(&object.name).map(Into::into),
            undone: record.undone.map(|(code, reason)| format!("{code}: {reason}")),
        })
    }

    /// Load of a replica for the balancers; `None` when unknown or older than its lease.
    pub fn replica_load(&self, now: Time, task: &TaskId) -> Option<ReplicaLoad> {
        let snapshot = self.view.snapshot.as_deref()?;
        let replica = self.view.replica(snapshot, snapshot.tasks.get(task)?, now)?;
        let (load, container) = (replica.load?, replica.container?);
        let (_, at) = container.load?;
        Some(ReplicaLoad {
            cpu: load.cpu?,
            memory: load.memory?,
            network: load.network.unwrap_or(BasisPoints::ZERO),
            psi_cpu: load.psi_cpu.unwrap_or(BasisPoints::ZERO),
            in_flight: load.in_flight,
            latency_us: load.latency_us,
            age_ms: u32::try_from(ms(now - at)).unwrap_or(u32::MAX),
        })
    }

    /// Counters.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }
}

fn lease_status(node: &NodeId, agent: &Agent, now: Time) -> LeaseStatus {
    LeaseStatus {
        node: node.clone(),
        state: agent.lease.state(now),
        age_ms: ms(agent.lease.age(now)),
        patience: agent.lease.patience(),
        connected: agent.connection.is_some(),
        epoch: agent.hello.epoch,
        version: agent.hello.version.clone(),
    }
}

/// Every label that makes no sense, those that only keep the service from being balanced included.
fn label_errors(service: &Service) -> Vec<String> {
    let errors = match &service.policy {
        Ok(policy) => &policy.route_errors,
        Err(errors) => errors,
    };
    errors.iter().map(ToString::to_string).collect()
}
