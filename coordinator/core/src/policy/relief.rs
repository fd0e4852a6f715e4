//! Relief of a short node, although none of its replicas may be hot: many small ones can fill a node. Of all that may
//! leave it the one goes whose move lowers the larger of the two nodes' uses most, and again until the node is no longer
//! short.

use std::time::Duration;

use swarmguard_common::domain::{NodeId, ServiceId};

use super::{
    Round, Verdict,
    burden::Burden,
    hot::{Certain, share},
    target::{Target, Use, best_target, gain, has_room},
};
use crate::{
    rule::Rule,
    swarm::{Mode, Node, Service, Task},
    view::{Replica, SPAN, agent::Agent, lives::Maturity},
};
use swarmguard_common::labels::ServicePolicy;

/// What tasks that want a CPU and wait for one are taken to ask for at most, of what they get.
const MOST_ASKED: f64 = 4.0;
/// A node is relieved when it has been short for this long: none of its replicas is hot, so that haste has less of a
/// reason, and what passes needs no move.
const SHORT_FOR: Duration = Duration::from_secs(10);

impl<'a> Round<'a> {
    /// One move for each short node that none leaves yet, in the place of the service's own verdict.
    pub(super) fn relieve(&self, verdicts: &mut [Verdict]) {
        for node in self.snapshot.nodes.values() {
            let Some((agent, by_memory)) = self.is_short(&node.id) else { continue };
            let leaves = |verdict: &Verdict| {
                verdict.intent.is_some() && verdict.judgement.node.as_ref() == Some(&node.id)
            };
            if self.situation.leaving.contains_key(&node.id) || verdicts.iter().any(leaves) {
                continue;
            }
            let found = self
                .view
                .tasks_on(&node.id)
                .filter(|task| task.is_serving())
                .filter_map(|task| self.candidate(verdicts, node, agent, task, by_memory))
                .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.service.cmp(&a.1.service)));
            let Some((_, better)) = found else { continue };
            if let Some(verdict) = verdicts.iter_mut().find(|verdict| verdict.service == better.service) {
                *verdict = better;
            }
        }
    }

    /// The agent of a node that has been short for as long as a hot replica must be hot; and whether of memory alone.
    fn is_short(&self, node: &NodeId) -> Option<(&'a Agent, bool)> {
        super::placement::unbelievable(self.view, node, self.now).is_none().then_some(())?;
        let agent = self.view.agents.get(node)?;
        // A shortage shows when it has lasted for half of what is looked at.
        let enough = SHORT_FOR - SPAN / 2;
        let [cpu, memory] =
            agent.shortage.lasted(self.now).map(|lasted| lasted.is_some_and(|it| it >= enough));
        (cpu || memory).then_some((agent, !cpu))
    }

    fn candidate(
        &self,
        verdicts: &[Verdict],
        node: &'a Node,
        agent: &'a Agent,
        task: &'a Task,
        by_memory: bool,
    ) -> Option<(f64, Verdict)> {
        let service = self.snapshot.services.get(&task.service)?;
        let policy = service.policy.as_ref().ok().filter(|policy| policy.enabled)?;
        let Mode::Replicated(replicas) = service.mode else { return None };
        let now = verdicts.iter().find(|verdict| verdict.service == service.id)?;
        // What is hot itself has a time of its own, which operators may have set.
        let is_free = now.intent.is_none()
            && !matches!(now.judgement.rule, Rule::Holding | Rule::WarmingUp)
            && self.may_be_touched(service, replicas)
            && self.view.lives.maturity(&task.id, service, policy.warm_up, self.now) == Maturity::Mature
            && self.why_it_stays(service, policy, &node.id).is_none();
        if !is_free {
            return None;
        }
        let replica = self.view.replica(self.snapshot, task, self.now)?;
        let certain = certain(self, replica, agent)?;
        let (gained, target, now) = self.best_move(service, policy, &certain, by_memory)?;
        let (what, of) = if by_memory { ("memory", now.memory) } else { ("CPU", now.cpu) };
        let text = format!(
            "{} is short: {:.0} % of its {what} is in use; of all that may leave it this brings most, {:.0} points",
            node.hostname,
            of * 100.0,
            gained.min(1.0) * 100.0
        );
        let mut verdict = self.go(service, policy, Rule::Relief, &certain, text, &target);
        verdict.observed = self.situation.observe || policy.observe;
        verdict.judgement.signals.extend(self.figures(service, policy));
        verdict.judgement.signals.insert("gain_points", gained * 100.0);
        verdict.judgement.signals.insert("node_cpu_percent", now.cpu * 100.0);
        verdict.judgement.signals.insert("node_memory_percent", now.memory * 100.0);
        Some((gained, verdict))
    }

    fn best_move(
        &self,
        service: &Service,
        policy: &ServicePolicy,
        certain: &Certain<'_>,
        by_memory: bool,
    ) -> Option<(f64, Target, Use)> {
        let source = &certain.replica.node.id;
        let limited = certain.container.intro.cpu_limit_millis.is_some();
        let waits = certain.load.psi_cpu.map_or(0.0, |waits| waits.ratio());
        // Without a limit of its own it gets what the others leave it. Tasks that wait for half of the time that they want
        // to run ask for twice what they get; elsewhere they take it.
        let asked = if limited { 1.0 } else { (1.0 / (1.0 - waits).max(0.01)).min(MOST_ASKED) };
        let used_millis = f64::from(certain.load.cpu_millis);
        let own = Use { cpu: certain.cpu_of_node() * asked, memory: certain.memory_of_node() };
        let now = Use { cpu: certain.node_load.cpu?.ratio(), memory: certain.node_load.memory?.ratio() };
        // What is asked for weighs where a move is compared; room is needed for what is used.
        let wants = Use { cpu: now.cpu + certain.cpu_of_node() * (asked - 1.0), ..now };
        let burden =
            Burden { cpu_millis: used_millis, memory_bytes: f64::from(certain.load.memory_kib) * 1_024.0 };
        let there = |target: &Target| Target {
            predicted_cpu: target.predicted_cpu + self.share_of(&target.node, used_millis * (asked - 1.0)),
            ..target.clone()
        };
        let fits = |target: &Target| {
            has_room(policy, target)?;
            self.is_worth_it(service, policy, source, (wants, own), &there(target), by_memory)
        };
        let target = best_target(self, service, burden, fits).ok()?;
        Some((gain(wants, own, &there(&target), by_memory), target, now))
    }

    /// So much CPU as a share of a node's.
    fn share_of(&self, node: &NodeId, millis: f64) -> f64 {
        self.view.agents.get(node).map_or(0.0, |agent| share(millis, f64::from(agent.hello.cpu_millis)))
    }

    /// Nobody else is at work on the service, neither an action of ours, an operator's pause, nor a rollout.
    fn may_be_touched(&self, service: &Service, replicas: u64) -> bool {
        !self.situation.busy.contains_key(&service.id)
            && !self.situation.is_paused(&service.id)
            && self.rollout(service, replicas, false).is_none()
    }

    /// Says of every verdict that is no action which nodes of the service are short, and that nothing of theirs may
    /// leave: what is calm in itself may still be served badly.
    pub(super) fn tell_shortage(&self, verdicts: &mut [Verdict]) {
        for verdict in verdicts.iter_mut().filter(|verdict| verdict.intent.is_none()) {
            let Some(text) = self.shortage_of(&verdict.service) else { continue };
            verdict.judgement.text = format!("{}; {text}", verdict.judgement.text);
        }
    }

    fn shortage_of(&self, service: &ServiceId) -> Option<String> {
        let mut nodes: Vec<&NodeId> = self
            .view
            .tasks_of(service)
            .filter(|task| task.is_wanted())
            .filter_map(|task| task.node.as_ref())
            .collect();
        nodes.sort();
        nodes.dedup();
        let short = nodes.into_iter().filter_map(|node| {
            let (agent, by_memory) = self.is_short(node)?;
            let load = agent.recent.settled(self.now, SPAN)?;
            let (what, is) = if by_memory { ("memory", load.memory?) } else { ("CPU", load.cpu?) };
            Some(format!(
                "{} is short, {:.0} % of its {what} is in use",
                super::name(self.snapshot, node),
                is.percent()
            ))
        });
        let all: Vec<String> = short.take(4).collect();
        (!all.is_empty()).then(|| format!("its node {}", all.join(", ")))
    }
}

/// A replica with settled figures, all of them known.
pub(super) fn certain<'a>(round: &Round<'a>, replica: Replica<'a>, agent: &'a Agent) -> Option<Certain<'a>> {
    let container = replica.container?;
    let fresh = *replica.load?;
    let load = container.recent.settled(round.now, SPAN).unwrap_or(fresh);
    // Unknown is not idle.
    fresh.cpu.and(load.cpu).and(load.network).and(load.memory)?;
    let node_load = agent.recent.settled(round.now, SPAN).or(agent.load)?;
    Some(Certain { replica, agent, container, load, node_load })
}
