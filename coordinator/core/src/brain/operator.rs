//! Operators' commands: the same leases and the same protection of data as for the policy's own orders, without its
//! cooldowns and thresholds.

use std::time::Duration;

use swarmguard_common::{
    api::Plan,
    domain::{NodeId, ServiceId},
    time::Time,
};

use super::{Accepted, Brain, NotTaken, OperatorCommand, SNAPSHOT_VALID, wishes::Change};
use crate::{
    action::{self, Intent, Order, Refusal},
    policy,
    swarm::{Availability, Mode, Service},
};

pub(super) fn not_taken(code: &str, text: impl Into<String>, otherwise: impl Into<String>) -> NotTaken {
    NotTaken { code: code.into(), text: text.into(), otherwise: otherwise.into() }
}

impl Brain {
    /// An operator's command, answered at once. `by` names the operator in the journal. Passes through the same leases
    /// and refusals as everything else; only the coordinator whose turn it is takes one (`not_leader`).
    ///
    /// # Errors
    /// When the command is not taken; nothing was done then.
    pub fn operator(&mut self, now: Time, by: &str, command: OperatorCommand) -> Result<Accepted, NotTaken> {
        self.may_command(now)?;
        match command {
            OperatorCommand::Migrate { service, source, target } => {
                self.migrate_by_hand(now, by, &service, source, target)
            }
            OperatorCommand::Scale { service, replicas, node } => {
                self.scale_by_hand(now, by, &service, replicas, node)
            }
            OperatorCommand::Rollback { service } => self.rollback_by_hand(now, by, service),
            OperatorCommand::Drain { node } => self.drain_by_hand(now, by, node),
            OperatorCommand::Cancel { service, node, action } => {
                self.cancel_by_hand(now, by, service, node, action)
            }
            OperatorCommand::Pause { service } => self.pause(now, by, service, true),
            OperatorCommand::Resume { service } => self.pause(now, by, service, false),
            OperatorCommand::Observe { on } => {
                let change = Change::observe(on.then_some(by));
                let text = if on { "decides and explains only" } else { "acts again" };
                self.wish(now, change, if on { "observe" } else { "act" }, format!("{by}: {text}"), None)
            }
        }
    }

    /// What [`Self::operator`] would answer, without doing it. Costs a copy of everything that is known, so it is for
    /// those who may also command.
    ///
    /// # Errors
    /// As [`Self::operator`].
    pub fn plan(&self, now: Time, by: &str, command: OperatorCommand) -> Result<Plan, NotTaken> {
        let taken = self.clone().operator(now, by, command)?;
        Ok(Plan { dry_run: true, text: taken.text })
    }

    fn may_command(&self, now: Time) -> Result<(), NotTaken> {
        let Some(snapshot) = &self.view.snapshot else {
            return Err(not_taken("not_ready", "Swarm was not read yet", "a moment later"));
        };
        if !self.leads() {
            let otherwise = match self.turn.other() {
                Some(node) => format!("ask the coordinator of {}", self.hostname(node)),
                None => "a coordinator that acts: status says why none does".into(),
            };
            let text = format!("this coordinator does not act: {}", self.turn_text());
            return Err(not_taken("not_leader", text, otherwise));
        }
        if self.settings.observe {
            let otherwise = "a coordinator without --observe";
            return Err(not_taken("observe", "this coordinator was started to change nothing", otherwise));
        }
        if now - snapshot.taken > SNAPSHOT_VALID {
            return Err(not_taken(
                "not_ready",
                "Swarm has not answered for a while",
                "a manager with a quorum",
            ));
        }
        Ok(())
    }

    fn replicated(&self, id: &ServiceId) -> Result<(Service, u64), NotTaken> {
        let found = self.view.snapshot.as_ref().and_then(|snapshot| snapshot.services.get(id));
        let Some(service) = found else {
            return Err(not_taken(
                "unknown_service",
                format!("there is no service {id}"),
                "an existing service",
            ));
        };
        let Mode::Replicated(replicas) = service.mode else {
            let text = format!("{} is not a replicated service", service.name);
            return Err(not_taken("not_replicated", text, "a replicated service"));
        };
        let own = service.policy.as_ref().ok().and_then(|policy| policy::preflight::own(service, policy));
        match own {
            Some(own) => Err(not_taken(own.code.word(), own.text, own.otherwise)),
            None => Ok((service.clone(), replicas)),
        }
    }

    fn migrate_by_hand(
        &mut self,
        now: Time,
        by: &str,
        id: &ServiceId,
        source: Option<NodeId>,
        target: Option<NodeId>,
    ) -> Result<Accepted, NotTaken> {
        let (service, _) = self.replicated(id)?;
        if let Some(found) = self.stays(id, now) {
            return Err(not_taken(found.code.word(), found.text, found.otherwise));
        }
        let mut hosts: Vec<NodeId> =
            self.view.replicas(id, now).iter().map(|replica| replica.node.id.clone()).collect();
        hosts.dedup();
        hosts.sort();
        hosts.dedup();
        let source = match (source, hosts.as_slice()) {
            (Some(source), _) => source,
            (None, [only]) => only.clone(),
            (None, _) => {
                let text = format!("{} runs on {} nodes", service.name, hosts.len());
                return Err(not_taken("which_node", text, "name the node to leave"));
            }
        };
        let target = match target {
            Some(target) if target == source => {
                let text =
                    format!("{} is both the node to leave and the one to go to", self.hostname(&source));
                return Err(not_taken("same_node", text, "another target, or none"));
            }
            Some(target) => self.fits(now, &service, &target)?,
            None => self.room_for(id, &source, now).map_err(|why| {
                not_taken("no_room", format!("no node can take it: {why}"), "a node with room")
            })?,
        };
        let text = format!(
            "{by}: {} moves from {} to {}",
            service.name,
            self.hostname(&source),
            self.hostname(&target)
        );
        let intent = Intent::Migrate { service: id.clone(), source, target: Some(target) };
        self.order_by_hand(now, intent, text)
    }

    /// Swarm would place the service there, and the agent there is to be believed: how a replica fares on a node that
    /// is silent or blind nobody would see.
    fn fits(&self, now: Time, service: &Service, target: &NodeId) -> Result<NodeId, NotTaken> {
        let Some(snapshot) = self.view.snapshot.as_deref() else {
            return Err(not_taken("not_ready", "Swarm was not read yet", "a moment later"));
        };
        let Some(node) = snapshot.nodes.get(target) else {
            return Err(not_taken("unknown_node", format!("there is no node {target}"), "an existing node"));
        };
        match policy::placement::obstacle(self.view.placed(), service, node) {
            Some(obstacle) => {
                let text = format!("{} cannot take it: {obstacle}", node.hostname);
                Err(not_taken("does_not_fit", text, "another node"))
            }
            None => match policy::placement::unbelievable(&self.view, target, now) {
                Some(why) => {
                    let text = format!("{} is no target: {why}", node.hostname);
                    Err(not_taken("not_believed", text, "a fresh report of its agent, or another node"))
                }
                None => Ok(target.clone()),
            },
        }
    }

    fn scale_by_hand(
        &mut self,
        now: Time,
        by: &str,
        id: &ServiceId,
        wanted: u64,
        node: Option<NodeId>,
    ) -> Result<Accepted, NotTaken> {
        let (service, replicas) = self.replicated(id)?;
        let bounds =
            service.policy.as_ref().ok().and_then(|policy| Some((policy.scale_min?, policy.scale_max?)));
        let (min, max) = bounds.unwrap_or((1, 10_000));
        if wanted < u64::from(min) || wanted > u64::from(max) {
            let text = format!("{} may have {min} to {max} replicas", service.name);
            return Err(not_taken("bounds", text, "a number within its bounds"));
        }
        let text = format!("{by}: {} goes from {replicas} to {wanted} replicas", service.name);
        let intent = match wanted.cmp(&replicas) {
            std::cmp::Ordering::Equal => {
                return Ok(Accepted {
                    action: None,
                    text: format!("{} has {replicas} replicas already", service.name),
                });
            }
            std::cmp::Ordering::Greater => {
                let target = match node {
                    Some(node) => Some(self.fits(now, &service, &node)?),
                    None => policy::most_room(&self.view, &self.situation(), id, None, now).ok(),
                };
                Intent::ScaleOut { service: id.clone(), replicas: wanted, target }
            }
            std::cmp::Ordering::Less => {
                if replicas - wanted > 1 && node.is_some() {
                    let text = format!("{} would lose {} replicas", service.name, replicas - wanted);
                    return Err(not_taken("one_at_a_time", text, "one replica fewer where a node is named"));
                }
                let chosen = node.or_else(|| policy::choose_victim_node(&self.view, id, now));
                let Some(node) = chosen else {
                    return Err(not_taken(
                        "which_node",
                        "no node's load is known",
                        "name the node whose replica goes",
                    ));
                };
                Intent::ScaleIn { service: id.clone(), node }
            }
        };
        let accepted = self.order_by_hand(now, intent, text)?;
        // Further steps down follow one another; whatever was wished before is superseded.
        let steps = (wanted + 1 < replicas).then_some((replicas, wanted));
        if steps.is_some() || self.wishes.scales().iter().any(|(service, ..)| service == id) {
            self.wishes.ask(now, Change::scale(id, steps));
            self.write_wishes(now);
        }
        Ok(accepted)
    }

    /// The next step of each service that an operator scales in by several.
    pub(super) fn follow_scales(&mut self, now: Time) {
        for (id, from, to) in self.wishes.scales() {
            let found = self.replicated(&id).ok();
            let Some((service, replicas)) = found.filter(|(_, replicas)| (to + 1..=from).contains(replicas))
            else {
                // Done, gone, or raised by somebody else meanwhile.
                self.wishes.ask(now, Change::scale(&id, None));
                continue;
            };
            if self.is_busy(&id) || self.actions.is_held_off(&id, now) {
                continue;
            }
            let Some(node) = policy::choose_victim_node(&self.view, &id, now) else { continue };
            let text = format!("{} goes from {replicas} towards {to} replicas, as ordered", service.name);
            if self.order_by_hand(now, Intent::ScaleIn { service: id.clone(), node }, text).is_err() {
                self.actions.hold_off(&id, now);
            }
        }
    }

    fn rollback_by_hand(&mut self, now: Time, by: &str, id: ServiceId) -> Result<Accepted, NotTaken> {
        let (service, _) = self.replicated(&id)?;
        let text = format!("{by}: {} gets its previous spec back", service.name);
        self.order_by_hand(now, Intent::Rollback { service: id }, text)
    }

    /// Rollbacks that operators asked of Swarm itself, and that Swarm could only answer with a spec of ours.
    pub(super) fn follow_rollbacks(&mut self, now: Time) {
        let Some(snapshot) = self.view.snapshot.clone() else { return };
        let owed = snapshot.services.values().filter(|service| action::is_rollback_owed(&snapshot, service));
        for service in owed.filter(|service| !service.is_own()) {
            if self.is_busy(&service.id) || self.actions.is_held_off(&service.id, now) {
                continue;
            }
            let text = format!(
                "{}: a rollback was asked of Swarm, which had only SwarmGuard's own last write to go back to; the spec \
                 before it is restored",
                service.name
            );
            if self.order_by_hand(now, Intent::Rollback { service: service.id.clone() }, text).is_err() {
                self.actions.hold_off(&service.id, now);
            }
        }
    }

    fn drain_by_hand(&mut self, now: Time, by: &str, node: NodeId) -> Result<Accepted, NotTaken> {
        let found = self.view.snapshot.as_ref().and_then(|snapshot| snapshot.nodes.get(&node));
        let Some(found) = found else {
            return Err(not_taken("unknown_node", format!("there is no node {node}"), "an existing node"));
        };
        if found.availability == Availability::Drain {
            return Ok(Accepted { action: None, text: format!("{} is drained already", found.hostname) });
        }
        let hostname = found.hostname.clone();
        let mut services: Vec<ServiceId> = self
            .view
            .tasks_on(&node)
            .filter(|task| task.is_wanted())
            .map(|task| task.service.clone())
            .filter(|service| self.replicated(service).is_ok())
            .collect();
        services.sort();
        services.dedup();
        let staying: Vec<String> = services
            .iter()
            .filter_map(|service| {
                let found = self.stays(service, now)?;
                Some(format!("{}: {}", self.service_name(service).unwrap_or_default(), found.text))
            })
            .collect();
        if !staying.is_empty() {
            let text = format!("{hostname} cannot be left by all: {}", staying.join("; "));
            return Err(not_taken(
                "services_stay",
                text,
                "their labels, or docker node update --availability drain",
            ));
        }
        let text = format!("{by}: {hostname} is drained, {} services leave it first", services.len());
        self.order_by_hand(now, Intent::Drain { node }, text)
    }

    fn order_by_hand(&mut self, now: Time, intent: Intent, text: String) -> Result<Accepted, NotTaken> {
        let node = match &intent {
            Intent::Migrate { source, .. } => Some(source),
            Intent::ScaleIn { node, .. } | Intent::Drain { node } => Some(node),
            Intent::ScaleOut { .. } | Intent::Rollback { .. } => None,
        };
        let limit = self.settings.max_actions_per_node.max(1);
        if node.and_then(|node| self.leaving().get(node).copied()).is_some_and(|here| here >= limit) {
            return Err(not_taken("limit_node", "another action leaves this node", "the end of that action"));
        }
        if self.situation().under_way >= self.settings.max_actions.max(1) {
            return Err(not_taken(
                "limit",
                "as many actions as allowed are under way",
                "the end of one of them",
            ));
        }
        let (code, service) = (super::journal::kind_word(&intent), intent.service().cloned());
        let token = self.actions.token();
        let closed = self.closed(&intent);
        let order = Order {
            intent,
            token: token.clone(),
            holder: self.settings.holder.clone(),
            cooldown: Duration::ZERO,
            reason: text.clone(),
            avoid: self.silent(now),
            closed,
        };
        self.journal_operator(code, text.clone(), service, Some(token.clone()));
        if let Err(Refusal { code, text, otherwise }) = self.begin(now, order, None) {
            self.entries.pop_back();
            return Err(not_taken(code.word(), text, otherwise));
        }
        self.statistics.decisions += 1;
        Ok(Accepted { action: Some(token), text })
    }

    fn pause(
        &mut self,
        now: Time,
        by: &str,
        service: Option<ServiceId>,
        on: bool,
    ) -> Result<Accepted, NotTaken> {
        let name = match &service {
            None => "all services".into(),
            Some(id) => self.service_name(id).ok_or_else(|| {
                not_taken("unknown_service", format!("there is no service {id}"), "an existing service")
            })?,
        };
        let change = Change::pause(service.as_ref(), on.then_some(by));
        let (code, what) = if on { ("pause", "paused") } else { ("resume", "resumed") };
        self.wish(now, change, code, format!("{by}: automation of {name} is {what}"), service)
    }

    fn wish(
        &mut self,
        now: Time,
        change: Change,
        code: &str,
        text: String,
        service: Option<ServiceId>,
    ) -> Result<Accepted, NotTaken> {
        if !self.wishes.ask(now, change) {
            return Err(not_taken(
                "too_many",
                "too many changes wait to be written",
                "an engine that answers",
            ));
        }
        self.write_wishes(now);
        self.journal_operator(code, text.clone(), service, None);
        Ok(Accepted { action: None, text })
    }
}
